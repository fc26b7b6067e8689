"""Integer weights as parameters, so that a lowered denoiser tells what it holds."""

import copy
from dataclasses import dataclass
from typing import Any, Never, Self

from torch import Tensor, nn

_ELSEWHERE = "load the artifact where it is needed instead: bitbrush.load(DIRECTORY)"


_FIXED = frozenset(("weight", "padding_mode", "padding", "stride", "dilation", "groups", "kernel_size"))
"""Attributes of a Conv2d or Linear that are part of what a runtime made of the layer."""


@dataclass(frozen=True, eq=False)
class BiasState:
    """Which bias a layer has, and how often it was written to: results that are remembered depend on both.

    Writing by way of ``bias.data`` leaves no sign.
    """

    bias: Tensor | None
    writes: int

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """The state of the layer's bias, now."""
        bias: Any = layer.bias
        return cls(bias, 0 if bias is None or bias.is_inference() else bias._version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BiasState) and self.bias is other.bias and self.writes == other.writes

    def __hash__(self) -> int:
        return hash((id(self.bias), self.writes))


class IntegerWeight(nn.Parameter):
    """Integers in the layout of a runtime's kernels. They never change, and are copied but not pickled."""

    def __new__(cls, data: Tensor) -> Self:
        return super().__new__(cls, data, requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "IntegerWeight":
        """Parts of one tensor are copied as parts of one tensor; oneDNN's opaque layouts have no storage to share."""
        data = self.detach()
        return IntegerWeight(data.clone() if data.is_mkldnn else copy.deepcopy(data, memo))

    def __reduce_ex__(self, protocol: Any) -> Never:
        raise TypeError(
            f"integer weights are in the layout of this machine's kernels and are not pickled; {_ELSEWHERE}"
        )


class WithoutFloatWeight(nn.Module):
    """Base of layers of integers: tells whoever asks for their weight, or changes how they compute, what can do it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED:
            raise AttributeError(
                f"{type(self).__name__} was made for one {name}, and setting another would change nothing; use "
                "bitbrush.load(..., runtime='reference'), which computes with what is set"
            )
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has integers and no weight in floating point; what reads or changes weights "
                "works on bitbrush.load(..., runtime='reference')"
            )
        return super().__getattr__(name)


class IntegerParameters(WithoutFloatWeight):
    """Base of a runtime's integer layers: shows their integers, scales and bias as parameters of the module.

    Scales come first: code of diffusers takes the type of the first parameter for the type of activations.
    """

    def show(self, weight: IntegerWeight, scale: Tensor, bias: Tensor | None, *, count: int) -> None:
        """Registers the parameters. ``count``: how many weights there are, of which ``weight`` may pack two a byte."""
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.integer_weight = weight
        self._count = count

    @property
    def unlisted_parameters(self) -> int:
        """How many more weights the layer has than :meth:`parameters` has elements beside the bias."""
        return self._count - self.integer_weight.numel() - self.weight_scale.numel()

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        *_, errors = args
        errors.append(f"{prefix}integer_weight is in the layout of kernels and takes no values; {_ELSEWHERE}")
