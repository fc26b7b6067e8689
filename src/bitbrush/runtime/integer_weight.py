"""Integer weights as parameters, so that a lowered denoiser lists its weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Never, Self

import torch
from torch import Tensor, nn

_ELSEWHERE = "load the artifact where it is needed instead: bitbrush.load(DIRECTORY)"


_FIXED = frozenset(("weight", "padding_mode", "padding", "stride", "dilation", "groups", "kernel_size"))
"""Attributes of a Conv2d or Linear that are compiled into a runtime's layer."""


@dataclass(frozen=True, eq=False)
class BiasState:
    """Identity of a layer's bias and its write count; cached results depend on both.

    Writes through ``bias.data``, and writes to inference tensors, which have no version counter, go unnoticed.
    """

    bias: Tensor | None
    writes: int

    @classmethod
    def of(cls, bias: Any) -> Self:
        """Captures the current state of a bias."""
        return cls(bias, 0 if bias is None or bias.is_inference() else bias._version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BiasState) and self.bias is other.bias and self.writes == other.writes

    def __hash__(self) -> int:
        return hash((id(self.bias), self.writes))


class IntegerWeight(nn.Parameter):
    """Integers in the layout of a runtime's kernels; they never change, and are copied but not pickled."""

    def __new__(cls, data: Tensor) -> Self:
        """Creates a parameter without gradient."""
        return super().__new__(cls, data, requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "IntegerWeight":
        """Copies views of one tensor to views of one copy; oneDNN's opaque layouts have no storage to share."""
        data = self.detach()
        return IntegerWeight(data.clone() if data.is_mkldnn else copy.deepcopy(data, memo))

    def data_ptr(self) -> int:
        """Returns the address; a number stands for it where oneDNN's layout has none, as accelerate asks for it."""
        return id(self) if self.is_mkldnn else super().data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Never:
        raise TypeError(
            f"integer weights are in the layout of this machine's kernels and are not pickled; {_ELSEWHERE}"
        )


class WithoutFloatWeight(nn.Module):
    """Base of integer layers: access to ``weight`` or a change of the computation raises an error with the remedy."""

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
    """Base of a runtime's integer layers: exposes integers, scales and bias as parameters.

    Scales come first: diffusers takes the dtype of the first parameter for the dtype of activations.
    """

    def show(self, weight: IntegerWeight, scale: Tensor, bias: Tensor | None, *, count: int) -> None:
        """Registers the parameters.

        Args:
            weight: Integers in the layout of the kernels.
            scale: Weight scales, (C_out,) float32.
            bias: (C_out,) or None.
            count: Number of weights; ``weight`` may pack two in a byte.
        """
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.integer_weight = weight
        self._count = count

    @property
    def unlisted_parameters(self) -> int:
        """Number of weights that the elements of :meth:`parameters`, bias apart, do not show."""
        return self._count - self.integer_weight.numel() - self.weight_scale.numel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's
        """Keeps dtypes and device, which the kernels were made for.

        Raises:
            ValueError: ``fn`` moves tensors to another device.
        """
        here = self.weight_scale.device
        there = fn(torch.empty(0, device=here)).device
        if there != here:
            raise ValueError(
                f"{type(self).__name__} stays on {here}, where its kernels run, and was sent to {there}; offload the "
                "other networks, or use bitbrush.load(..., runtime='reference'), which runs on any device"
            )
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the layer's part of a network's state.

        Raises:
            ValueError: The layer's own state is requested, as by networks that copy weights of a U-Net.
        """
        if not args and kwargs.get("destination") is None:
            raise ValueError(
                f"{type(self).__name__} has no weight in floating point for another network to start from; "
                "make that network (ControlNetModel.from_unet, AnimateDiff) from the full-precision pipeline"
            )
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        """Refuses values of the layer; a state without any, such as an adapter's, leaves it as it is."""
        *_, missing, _unexpected, errors = args
        if any(key.startswith(prefix) for key in state):
            errors.append(f"{prefix}integer_weight is in the layout of kernels and takes no values; {_ELSEWHERE}")
        else:
            missing.append(f"{prefix}integer_weight")
