"""The mean error of a denoiser's output at each step, per channel, and taking it off: a bias of its last layer by step.

PTQD (arXiv 2305.10657) corrects the bias of the quantization noise so; StepbaQ and TCEC, the latent's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitbrush.timeline.tracker import timestep_argument


@dataclass(frozen=True)
class OutputCorrection:
    """``means[i][c]``: what channel c of the output is too large by at ``timesteps[i]``; these strictly descend."""

    timesteps: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.timesteps) != len(self.means) or not self.means:
            raise ValueError(f"{len(self.timesteps)} timesteps for {len(self.means)} means; one each, at least one")
        if any(a <= b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False)):
            raise ValueError(f"timesteps are {self.timesteps}; they must strictly descend")

    @classmethod
    def of(cls, means: Mapping[float, Tensor]) -> Self:
        """From the means (C,) of every timestep."""
        timesteps = tuple(sorted(means, reverse=True))
        return cls(timesteps, tuple(tuple(means[timestep].tolist()) for timestep in timesteps))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(values["timesteps"]), tuple(tuple(mean) for mean in values["means"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, float32 exactly."""
        return {"timesteps": list(self.timesteps), "means": [list(mean) for mean in self.means]}


def correct_output(denoiser: nn.Module, correction: OutputCorrection) -> RemovableHandle:
    """From now on the means of the nearest timestep, of two equally near the noisier, are taken off the output.

    The look-up is on the output's device, which the host does not wait for. A call at several timesteps is corrected
    by its first.
    """
    argument = timestep_argument(denoiser)
    tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def correct(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y = prediction(output)
        if y.device not in tables:
            times = torch.tensor(correction.timesteps, dtype=torch.float64, device=y.device)
            tables[y.device] = times, torch.tensor(correction.means, device=y.device)
        times, means = tables[y.device]
        now = torch.as_tensor(argument(args, kwargs), dtype=torch.float64, device=y.device).reshape(-1)[0]
        return less_means(output, means[(times - now).abs().argmin()])

    return denoiser.register_forward_hook(correct, with_kwargs=True)


def prediction(output: Any) -> Tensor:
    """The first tensor of what a denoiser returns: a tuple, or a diffusers output."""
    first: Tensor = output[0]
    return first


def less_means(output: Any, means: Tensor) -> Any:
    """A denoiser's output with ``means`` (C,) taken off its prediction, in float32; all else as it is."""
    y = prediction(output)
    corrected = (y.float() - means.view(-1, *(1,) * (y.dim() - channel_dimension(y) - 1))).to(y.dtype)
    if isinstance(output, tuple):
        return corrected, *output[1:]
    name = next(iter(output))
    return type(output)(**{**output, name: corrected})


def channel_dimension(y: Tensor) -> int:
    """Of images (N, C, H, W) the second, of tokens (N, tokens, C) the last."""
    return 1 if y.dim() > 3 else y.dim() - 1
