"""Artifacts through diffusers' own ``from_pretrained``: its quantizer interface, implemented for bitbrush's layers."""

import functools
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from bitbrush.artifact.denoiser import require_uncorrected
from bitbrush.artifact.tensors import LAYER_KEYS, layer_from_tensors
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.low_rank import branch_
from bitbrush.network.skip_inputs import split_
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.runtime.lowered import lower, lowered_of
from bitbrush.sources.networks import KEYS_SHOWN
from bitbrush.sources.savable import refuse_saving

_REFUSING = "refuses_bitbrush"
"""Marks a ``save_pretrained`` that refuses quantized components already."""


class QuantMethod(StrEnum):
    """The name by which a ``config.json`` asks for this quantizer; diffusers expects an enumeration."""

    BITBRUSH = "bitbrush"


def register() -> None:
    """From now on ``DiffusionPipeline.from_pretrained`` loads bitbrush artifacts, computing in float32.

    :func:`bitbrush.load` does the same, but verifies every file's hash first and lets the runtime be chosen.
    ``save_pretrained`` of a pipeline with a quantized component raises ValueError before it writes anything.
    """
    original = DiffusionPipeline.save_pretrained
    if not hasattr(original, _REFUSING):
        DiffusionPipeline.save_pretrained = _before_writing(original)
    auto.AUTO_QUANTIZER_MAPPING[QuantMethod.BITBRUSH.value] = BitbrushQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantMethod.BITBRUSH.value] = BitbrushConfig


def _before_writing(save_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses a quantized component first: diffusers would have written those before it when it is refused."""

    @functools.wraps(save_pretrained)
    def refusing(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        networks = (part for part in pipe.components.values() if isinstance(part, nn.Module))
        if any(lowered_of(network) is not None for network in networks):
            refuse_saving()
        return save_pretrained(pipe, *args, **kwargs)

    setattr(refusing, _REFUSING, True)
    return refusing


class BitbrushConfig(QuantizationConfigMixin):
    """``weight_bits`` of every quantized layer by name; all else is in the tensors.

    ``split_skips``: the convolutions that became two, and at which input channel; see ``network/skip_inputs.py``.
    ``low_ranks``: the layers that have a branch, and of which rank; see ``network/low_rank.py``.
    ``first_tokens``: the layers that have tensors of a known first token; see ``network/first_token.py``.
    """

    def __init__(
        self,
        weight_bits: dict[str, int],
        split_skips: dict[str, int] | None = None,
        low_ranks: dict[str, int] | None = None,
        first_tokens: Sequence[str] = (),
        **others: Any,
    ) -> None:
        require_uncorrected(others)
        self.quant_method = QuantMethod.BITBRUSH
        self.weight_bits = weight_bits
        self.split_skips = split_skips or {}
        self.low_ranks = low_ranks or {}
        self.first_tokens = first_tokens

    def to_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {"quant_method": self.quant_method.value, "weight_bits": dict(self.weight_bits)}
        if self.split_skips:
            own["split_skips"] = dict(self.split_skips)
        if self.low_ranks:
            own["low_ranks"] = dict(self.low_ranks)
        if self.first_tokens:
            own["first_tokens"] = list(self.first_tokens)
        return own

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class _Expected(nn.Module):
    """Stands where a layer will be while diffusers reads and places the tensors of the file as its parameters."""

    def __init__(self, original: nn.Conv2d | nn.Linear, absent: set[str]) -> None:
        super().__init__()
        self._original = [original]  # in a list it is no submodule: its own keys are not in the file
        for key in LAYER_KEYS - absent - ({"bias"} if original.bias is None else set()):
            self.register_parameter(key, nn.Parameter(torch.empty(0, device="meta"), requires_grad=False))

    @property
    def original(self) -> nn.Conv2d | nn.Linear:
        return self._original[0]


class BitbrushQuantizer(DiffusersQuantizer):
    """Takes the packed tensors as they are read, and puts layers that compute with them in place at the end."""

    quantization_config: BitbrushConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Raises ValueError for a map that distributes the denoiser over devices."""
        devices = {str(device) for device in device_map.values()} if isinstance(device_map, dict) else set()
        if len(devices) > 1:
            raise ValueError(
                f"device_map distributes the denoiser over {', '.join(sorted(devices))}, but a quantized one computes "
                "on one device: give device_map={'': DEVICE}"
            )

    def update_torch_dtype(self, _: torch.dtype | None) -> torch.dtype:
        """float32 whatever is asked for: scales of 1e-9 would be nothing in half precision.

        The denoiser takes and gives any type all the same, cast at each call.
        """
        return torch.float32

    @property
    def supports_parallel_loading(self) -> bool:
        return False

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Tensor], **_: Any
    ) -> bool:
        return param_name.rpartition(".")[0] in self.quantization_config.weight_bits

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, *_: Any, **__: Any
    ) -> None:
        name, _dot, key = param_name.rpartition(".")
        parameter = nn.Parameter(param_value.to(target_device), requires_grad=False)
        model.get_submodule(name).register_parameter(key, parameter)

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        split_(model, self.quantization_config.split_skips)
        branch_(model, self.quantization_config.low_ranks)
        for name in self.quantization_config.weight_bits:
            absent = set() if name in self.quantization_config.first_tokens else {"first_input", "first_output"}
            _set_submodule(model, name, _Expected(model.get_submodule(name), absent))  # type: ignore[arg-type]

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        self._require_tensors(model)
        layers = [self._restore(model, name, bits) for name, bits in self.quantization_config.weight_bits.items()]
        lower(model, choose_runtime(RuntimeName.REFERENCE), layers)
        return model

    def _require_tensors(self, model: nn.Module) -> None:
        """diffusers itself only logs what is missing."""
        state = model.state_dict()
        missing = [key for key, tensor in state.items() if tensor.is_meta]
        if missing:
            raise ValueError(
                f"the artifact's {type(model).__name__} lacks {len(missing)} of its {len(state)} tensors "
                f"({', '.join(missing[:KEYS_SHOWN])}); quantize or copy it again"
            )

    def _restore(self, model: nn.Module, name: str, bits: int) -> QuantizedLayer:
        expected = model.get_submodule(name)
        assert isinstance(expected, _Expected)
        original = expected.original
        read = {key: parameter for key, parameter in expected.named_parameters() if not parameter.is_meta}
        tensors = {f"{name}.{key}": parameter.detach().cpu() for key, parameter in read.items()}
        layer = layer_from_tensors(name, tuple(original.weight.shape), bits, tensors)
        _set_submodule(model, name, original.to("meta"))  # its values are the layer's
        return layer

    @property
    def is_serializable(self) -> bool:
        """Not from memory: copy the artifact's folder instead."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
