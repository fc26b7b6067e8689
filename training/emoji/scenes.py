"""The world of the emoji models: a grammar of scenes, their captions and their pictures.

A scene is one object in a size and a place, or two objects beside or above one another, on a flat background.
The words are those the shipped weights were trained with, so every caption made here is in their distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from random import Random

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 64  # pixels, both ways
JITTER = 0.015  # standard deviation of an object's place, as a fraction of the picture
SINGLE_SHARE = 0.65  # of the scenes drawn by `sample_scene`
COCO_SHARE = 0.7  # of the captions drawn by `sample_style`

OBJECTS: tuple[str, ...] = (
    *("dog", "cat", "fox", "lion", "tiger", "panda", "koala", "frog", "pig", "cow", "monkey", "rabbit", "bear"),
    *("polar bear", "penguin", "owl", "duck", "parrot", "flamingo", "turtle", "crocodile", "octopus", "crab"),
    *("lobster", "tropical fish", "blowfish", "whale", "shark", "butterfly", "ladybug", "bee", "snail", "elephant"),
    *("giraffe", "zebra", "hedgehog", "rose", "sunflower", "tulip", "cactus", "palm tree", "evergreen tree"),
    *("mushroom", "maple leaf", "four leaf clover", "red apple", "green apple", "banana", "grapes", "watermelon"),
    *("lemon", "strawberry", "pineapple", "cherries", "avocado", "carrot", "broccoli", "hamburger", "pizza"),
    *("hot dog", "doughnut", "cupcake", "ice cream", "birthday cake", "pretzel", "cookie", "teapot", "beer mug"),
    *("house", "castle", "tent", "bus", "taxi", "fire engine", "police car", "tractor", "sailboat", "rocket"),
    *("flying saucer", "helicopter", "airplane", "bicycle", "alarm clock", "crescent moon", "full moon", "star"),
    *("rainbow", "sun", "fire", "umbrella", "balloon", "gift", "trophy", "soccer ball", "basketball", "teddy bear"),
    *("christmas tree", "pumpkin", "crown", "top hat", "guitar", "trumpet", "drum", "camera", "television"),
    *("light bulb", "key", "bomb", "backpack", "diamond"),
)

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 45, 45),
    "green": (50, 150, 70),
    "blue": (45, 90, 200),
    "yellow": (240, 210, 70),
    "purple": (130, 70, 180),
    "orange": (240, 140, 50),
    "pink": (245, 160, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
    "gray": (130, 130, 135),
}


class Size(Enum):
    """How large an object is drawn: the word in the caption and the sprite's side in pixels."""

    SMALL = ("small", 22)
    PAIR = ("", 28)
    MEDIUM = ("", 32)
    LARGE = ("large", 46)

    def __init__(self, word: str, pixels: int) -> None:
        self.word = word
        self.pixels = pixels


class Position(Enum):
    """Where objects stand: the phrase in the caption and each object's centre (x, y) as fractions of the picture."""

    CENTRE = ("", (0.5, 0.5))
    LEFT = ("on the left", (0.3, 0.5))
    RIGHT = ("on the right", (0.7, 0.5))
    TOP = ("at the top", (0.5, 0.3))
    BOTTOM = ("at the bottom", (0.5, 0.7))
    LEFT_OF = ("to the left of", (0.27, 0.5), (0.73, 0.5))
    ABOVE = ("above", (0.5, 0.27), (0.5, 0.73))

    def __init__(self, phrase: str, *centres: tuple[float, float]) -> None:
        self.phrase = phrase
        self.centres = centres


SINGLE_SIZES = (Size.SMALL, Size.MEDIUM, Size.LARGE)
SINGLE_POSITIONS = tuple(position for position in Position if len(position.centres) == 1)
PAIR_POSITIONS = tuple(position for position in Position if len(position.centres) == 2)

Sprites = Mapping[tuple[str, Size], NDArray[np.float32]]
"""Sprite of each object in each size: `(pixels, pixels, 4)` RGBA in [0, 1], straight alpha."""


class Style(StrEnum):
    """How a caption is worded: sentences as in MS-COCO, or keywords as in Stable Diffusion prompts (sdp)."""

    COCO = "coco"
    SDP = "sdp"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Two objects are read in the order of the caption: the first is left of or above the second.

    Raises ValueError for words outside the world, and where objects, size and position do not go together.
    """

    objects: tuple[str, ...]
    colour: str
    size: Size
    position: Position

    def __post_init__(self) -> None:
        for name in self.objects:
            if name not in OBJECTS:
                raise ValueError(
                    f"object {name!r} is not in the world; scenes.OBJECTS lists the {len(OBJECTS)} that are"
                )
        if self.colour not in COLOURS:
            raise ValueError(f"colour {self.colour!r} is not in the world; use one of {', '.join(COLOURS)}")
        if len(self.objects) != len(self.position.centres):
            places = len(self.position.centres)
            raise ValueError(f"{len(self.objects)} objects for position {self.position.name}, which has {places}")
        if (self.size is Size.PAIR) != (len(self.objects) == 2):
            raise ValueError(
                f"size {self.size.name} for {len(self.objects)} objects; PAIR is for two, the others for one"
            )


# Every template names the position (the shipped weights' own captions sometimes left it out), so that
# a caption determines objects, colour and position: prompts of disjoint combinations are distinct texts.
_TEMPLATES: Mapping[Style, Mapping[str, tuple[str, ...]]] = {
    Style.COCO: {
        "centred": (
            "{subject} on a {colour} background",
            "a picture of {subject} in front of a {colour} wall",
            "there is {subject} against a {colour} background",
        ),
        "placed": (
            "{subject} {place} of a {colour} picture",
            "there is {subject} {place} against a {colour} background",
        ),
        "pair": (
            "{subject} on a {colour} background",
            "{subject} in front of a {colour} wall",
        ),
    },
    Style.SDP: {
        "centred": (
            "{subject}, {colour} background, centered, 3d render",
            "{subject}, {colour} backdrop, glossy, highly detailed",
            "cute {subject}, {colour}, centered, icon",
        ),
        "placed": (
            "{subject}, {colour} background, {place}, 3d render",
            "{subject} {place}, {colour} backdrop, glossy, highly detailed",
            "cute {subject}, {colour}, {place}, icon",
        ),
        "pair": (
            "{subject}, {colour} background, 3d render",
            "{subject}, {colour}, icon, glossy",
        ),
    },
}


def sample_scene(rng: Random) -> Scene:
    """A scene drawn uniformly among single objects (65 %) or among pairs of different objects (35 %)."""
    colour = rng.choice(tuple(COLOURS))
    if rng.random() < SINGLE_SHARE:
        return Scene((rng.choice(OBJECTS),), colour, rng.choice(SINGLE_SIZES), rng.choice(SINGLE_POSITIONS))
    return Scene(tuple(rng.sample(OBJECTS, 2)), colour, Size.PAIR, rng.choice(PAIR_POSITIONS))


def sample_style(rng: Random) -> Style:
    """The style of a training caption: "coco" for 70 %."""
    return Style.COCO if rng.random() < COCO_SHARE else Style.SDP


def caption(scene: Scene, style: Style, rng: Random) -> str:
    """A caption of the scene, worded by one of the style's templates at random."""
    names = [f"{scene.size.word} {name}".strip() for name in scene.objects]
    if style is Style.COCO:
        names = [_with_article(name) for name in names]
    kind = "pair" if len(names) == 2 else "centred" if scene.position is Position.CENTRE else "placed"
    subject = f" {scene.position.phrase} ".join(names)
    template = rng.choice(_TEMPLATES[style][kind])
    return template.format(subject=subject, colour=scene.colour, place=scene.position.phrase)


def render(scene: Scene, sprites: Sprites, rng: Random | None = None) -> NDArray[np.uint8]:
    """Picture of the scene, `(64, 64, 3)` RGB in [0, 255].

    With `rng` every object is moved by a Gaussian of 1.5 % of the picture; without it stands exactly in its place.
    """
    background = np.array(COLOURS[scene.colour], np.float32) / np.float32(255)
    image = np.broadcast_to(background, (RESOLUTION, RESOLUTION, 3)).copy()
    for name, (x, y) in zip(scene.objects, scene.position.centres, strict=True):
        if rng is not None:
            x, y = x + rng.gauss(0, JITTER), y + rng.gauss(0, JITTER)
        _paste_(image, sprites[name, scene.size], x, y)
    return (image * 255).round().astype(np.uint8)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _paste_(image: NDArray[np.float32], sprite: NDArray[np.float32], x: float, y: float) -> None:
    """Lay the sprite over the image with its centre at (x, y), moved inside where it would stick out."""
    side = sprite.shape[0]
    left, top = (min(max(round(centre * RESOLUTION - side / 2), 0), RESOLUTION - side) for centre in (x, y))
    window = image[top : top + side, left : left + side]
    alpha = sprite[..., 3:]
    window *= 1 - alpha
    window += alpha * sprite[..., :3]
