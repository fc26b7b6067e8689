"""The world: which scenes exist, what they are called, and how they look."""

from random import Random

import numpy as np
import pytest

from training.emoji.scenes import (
    COLOURS,
    OBJECTS,
    RESOLUTION,
    Position,
    Scene,
    Size,
    Sprites,
    Style,
    caption,
    render,
    sample_scene,
)

DUCK = Scene(("duck",), "blue", Size.MEDIUM, Position.CENTRE)
FOX_ABOVE_OWL = Scene(("fox", "owl"), "pink", Size.PAIR, Position.ABOVE)


def captions_of(scene: Scene, style: Style) -> set[str]:
    return {caption(scene, style, Random(seed)) for seed in range(50)}


def test_world_is_that_of_the_shipped_weights() -> None:
    assert len(set(OBJECTS)) == 110
    assert len(COLOURS) == 10


def test_captions_of_a_single_object() -> None:
    assert captions_of(DUCK, Style.COCO) == {
        "a duck on a blue background",
        "a picture of a duck in front of a blue wall",
        "there is a duck against a blue background",
    }
    placed = Scene(("owl",), "red", Size.LARGE, Position.LEFT)
    assert captions_of(placed, Style.SDP) == {
        "large owl, red background, on the left, 3d render",
        "large owl on the left, red backdrop, glossy, highly detailed",
        "cute large owl, red, on the left, icon",
    }


def test_captions_of_a_pair() -> None:
    assert captions_of(FOX_ABOVE_OWL, Style.COCO) == {
        "a fox above an owl on a pink background",
        "a fox above an owl in front of a pink wall",
    }


def test_render_is_deterministic(sprites: Sprites) -> None:
    scenes = [sample_scene(Random(seed)) for seed in range(20)]
    assert scenes == [sample_scene(Random(seed)) for seed in range(20)]
    for scene in scenes:
        np.testing.assert_array_equal(render(scene, sprites, Random(3)), render(scene, sprites, Random(3)))
        assert render(scene, sprites).shape == (RESOLUTION, RESOLUTION, 3)


def test_render_puts_objects_where_the_caption_says(sprites: Sprites) -> None:
    image = render(FOX_ABOVE_OWL, sprites)
    background = np.array(COLOURS["pink"], np.uint8)
    np.testing.assert_array_equal(image[0, 0], background)
    for name, row in (("fox", 17), ("owl", 47)):
        colour = sprites[name, Size.PAIR][14, 14, :3] * 255
        np.testing.assert_allclose(image[row, 32], colour, atol=1)


def test_render_keeps_objects_inside(sprites: Sprites) -> None:
    scene = Scene(("star",), "black", Size.LARGE, Position.LEFT)
    background = np.array(COLOURS["black"], np.uint8)
    covered = [(render(scene, sprites, Random(seed)) != background).any(-1).sum() for seed in range(20)]
    assert min(covered) == max(covered)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": ("unicorn",)}, "'unicorn' is not in the world"),
        ({"colour": "beige"}, "'beige' is not in the world"),
        ({"position": Position.ABOVE}, "1 objects for position ABOVE"),
        ({"size": Size.PAIR}, "PAIR is for two"),
    ],
)
def test_scene_rejects_what_does_not_exist(change: dict[str, object], message: str) -> None:
    fields = {"objects": ("duck",), "colour": "blue", "size": Size.MEDIUM, "position": Position.CENTRE}
    with pytest.raises(ValueError, match=message):
        Scene(**(fields | change))
