"""What is trained and for how long. `SMALL` is what ships; `LARGE` is meant for a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of one training stage.

    The rate rises linearly over `warmup` steps, stays at `learning_rate` for `hold` (a fraction of all steps),
    then falls to zero along half a cosine.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    hold: float = 0.0
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Learning rate of a step in [0, steps)."""
        progress = max(0.0, (step / self.steps - self.hold) / (1 - self.hold))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-pair encoding: captions learned from, tokens learned at most, and tokens a prompt may have."""

    captions: int = 20_000
    vocabulary: int = 1000
    max_length: int = 32


@dataclass(frozen=True)
class ClipConfig:
    """Both towers of the CLIP model; the text tower's width is the denoiser's cross-attention width."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 8
    scenes: int = 60_000
    schedule: Schedule = Schedule(steps=1500, batch_size=160, learning_rate=1e-3, warmup=100, weight_decay=0.05)


@dataclass(frozen=True)
class VaeConfig:
    """AutoencoderKL with one halving fewer than it has widths: three widths make factor 4.

    The loss is L1 + `edge_weight` * L1 of the image gradients + `kl_weight` * KL per latent element.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 8
    edge_weight: float = 0.5
    kl_weight: float = 1e-4
    scenes: int = 30_000
    schedule: Schedule = Schedule(steps=5000, batch_size=32, learning_rate=2.5e-3, warmup=50, weight_decay=1e-4)


@dataclass(frozen=True)
class DenoiserConfig:
    """UNet2DConditionModel with cross-attention in all but its finest resolution.

    `unconditional` is the share of captions emptied for classifier-free guidance, `snr_limit` the gamma of min-SNR
    weighting, `average_decay` the final decay of the averaged weights, which are what is kept.
    """

    widths: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 1
    head_dim: int = 4
    norm_groups: int = 32
    unconditional: float = 0.1
    snr_limit: float = 5.0
    average_decay: float = 0.999
    scenes: int = 60_000
    schedule: Schedule = Schedule(steps=3700, batch_size=64, learning_rate=6e-4, warmup=200, hold=0.3)


@dataclass(frozen=True)
class SecondTowerConfig:
    """The second text encoder of the SDXL pipeline, trained against the finished CLIP's image tower."""

    width: int = 160
    layers: int = 5
    heads: int = 5
    scenes: int = 20_000
    schedule: Schedule = Schedule(steps=1000, batch_size=160, learning_rate=1e-3, warmup=100, weight_decay=0.05)


@dataclass(frozen=True)
class FramingConfig:
    """Micro-conditioning: shares of the pictures that are blurred and cropped.

    `original`: least and largest side of a blurred picture's original; `enlarged`: of what a crop is cut from.
    """

    blurred: float = 0.15
    cropped: float = 0.15
    original: tuple[int, int] = (20, 56)
    enlarged: tuple[int, int] = (68, 88)


@dataclass(frozen=True)
class DenoiserXlConfig:
    """SDXL's denoiser: `transformer_layers` by resolution, `condition_width` of the embedding of each size.

    `denoiser` must have the widths of the Stable Diffusion denoiser that it is grown from.
    """

    denoiser: DenoiserConfig = DenoiserConfig(
        scenes=40_000, schedule=Schedule(steps=2800, batch_size=64, learning_rate=4e-4, warmup=100, hold=0.3)
    )
    transformer_layers: tuple[int, ...] = (1, 1, 2)
    condition_width: int = 32
    framing: FramingConfig = FramingConfig()


@dataclass(frozen=True)
class Recipe:
    """The configuration of every stage."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    second_tower: SecondTowerConfig = field(default_factory=SecondTowerConfig)
    denoiser_xl: DenoiserXlConfig = field(default_factory=DenoiserXlConfig)


SMALL = Recipe()
"""The shipped architecture."""

LARGE = Recipe(
    clip=ClipConfig(
        scenes=200_000,
        schedule=Schedule(steps=10_000, batch_size=512, learning_rate=1e-3, warmup=500, weight_decay=0.05),
    ),
    vae=VaeConfig(
        widths=(48, 96, 128),
        layers_per_block=2,
        scenes=200_000,
        schedule=Schedule(steps=40_000, batch_size=128, learning_rate=1e-3, warmup=500, weight_decay=1e-4),
    ),
    denoiser=DenoiserConfig(
        widths=(96, 160, 256),
        head_dim=4,
        average_decay=0.9998,
        scenes=200_000,
        schedule=Schedule(steps=60_000, batch_size=256, learning_rate=4e-4, warmup=1000, hold=0.3),
    ),
    denoiser_xl=DenoiserXlConfig(
        denoiser=DenoiserConfig(
            widths=(96, 160, 256),
            average_decay=0.9998,
            scenes=200_000,
            schedule=Schedule(steps=60_000, batch_size=256, learning_rate=4e-4, warmup=1000, hold=0.3),
        ),
    ),
)
"""For a GPU: a wider VAE against soft edges, a wider denoiser, longer training. Not yet trained.

Both models together stay below 60 MB in half precision.
"""
