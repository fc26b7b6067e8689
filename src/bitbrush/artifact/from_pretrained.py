"""Artifact loading through diffusers' ``from_pretrained``: its quantizer interface for bitbrush's layers."""

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

from bitbrush.artifact.denoiser import require_uncorrected, require_values
from bitbrush.artifact.documents import require_schema
from bitbrush.artifact.schema import QuantizationEntry
from bitbrush.artifact.tensors import LAYER_KEYS, layer_from_tensors
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.low_rank import branch_
from bitbrush.network.skip_inputs import split_
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.runtime.lowered import lower, lowered_of
from bitbrush.sources.networks import KEYS_SHOWN
from bitbrush.sources.savable import refuse_saving

_REFUSING = "refuses_bitbrush"
"""Attribute of a ``save_pretrained`` that already rejects quantized components."""


class QuantMethod(StrEnum):
    """Identifier of this quantizer in ``config.json``; diffusers expects an enumeration."""

    BITBRUSH = "bitbrush"


def register() -> None:
    """Registers bitbrush so that ``DiffusionPipeline.from_pretrained`` loads its artifacts, computing in float32.

    :func:`bitbrush.load` also loads artifacts, verifies the hash of every file first and has a choice of runtimes.
    ``save_pretrained`` of a pipeline with a quantized component raises ValueError before it writes anything.
    """
    original = DiffusionPipeline.save_pretrained
    if not hasattr(original, _REFUSING):
        DiffusionPipeline.save_pretrained = _before_writing(original)
    auto.AUTO_QUANTIZER_MAPPING[QuantMethod.BITBRUSH.value] = BitbrushQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantMethod.BITBRUSH.value] = BitbrushConfig


def _before_writing(save_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    """Rejects quantized components first; diffusers would have written earlier components before its own error."""

    @functools.wraps(save_pretrained)
    def refusing(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        networks = (part for part in pipe.components.values() if isinstance(part, nn.Module))
        if any(lowered_of(network) is not None for network in networks):
            refuse_saving()
        return save_pretrained(pipe, *args, **kwargs)

    setattr(refusing, _REFUSING, True)
    return refusing


class BitbrushConfig(QuantizationConfigMixin):
    """Quantization configuration: weight bits of every quantized layer by name; everything else is in the tensors.

    Args:
        weight_bits: Weight bits of every quantized layer by name.
        split_skips: Split convolutions with the input channel of the split; see ``network/skip_inputs.py``.
        low_ranks: Layers with a low-rank branch and its rank; see ``network/low_rank.py``.
        first_tokens: Layers with tensors of a known first token; see ``network/first_token.py``.
        **others: Keys of other versions, rejected if they change the result.
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
        require_schema(self.to_dict(), QuantizationEntry, "quantization_config of config.json")

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values, without empty entries."""
        own: dict[str, Any] = {"quant_method": self.quant_method.value, "weight_bits": dict(self.weight_bits)}
        if self.split_skips:
            own["split_skips"] = dict(self.split_skips)
        if self.low_ranks:
            own["low_ranks"] = dict(self.low_ranks)
        if self.first_tokens:
            own["first_tokens"] = list(self.first_tokens)
        return own

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the same values as :meth:`to_dict`; diffusers logs them."""
        return self.to_dict()


class _Expected(nn.Module):
    """Placeholder for a layer while diffusers reads the file's tensors and assigns them as parameters."""

    def __init__(self, original: nn.Conv2d | nn.Linear, absent: set[str]) -> None:
        super().__init__()
        self._original = [original]  # a list hides the module: its parameter names are not in the file
        for key in LAYER_KEYS - absent - ({"bias"} if original.bias is None else set()):
            self.register_parameter(key, nn.Parameter(torch.empty(0, device="meta"), requires_grad=False))

    @property
    def original(self) -> nn.Conv2d | nn.Linear:
        return self._original[0]


class BitbrushQuantizer(DiffusersQuantizer):
    """Quantizer that collects packed tensors during loading and installs quantized layers at the end."""

    quantization_config: BitbrushConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Rejects a device map over several devices.

        Raises:
            ValueError: The map distributes the denoiser over devices.
        """
        devices = {str(device) for device in device_map.values()} if isinstance(device_map, dict) else set()
        if len(devices) > 1:
            raise ValueError(
                f"device_map distributes the denoiser over {', '.join(sorted(devices))}, but a quantized one computes "
                "on one device: give device_map={'': DEVICE}"
            )

    def update_torch_dtype(self, _: torch.dtype | None) -> torch.dtype:
        """Returns float32 for every requested type, because scales of 1e-9 underflow in half precision.

        The denoiser accepts and returns any type; it casts at each call.
        """
        return torch.float32

    @property
    def supports_parallel_loading(self) -> bool:
        """False: layers are loaded one after another."""
        return False

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Tensor], **_: Any
    ) -> bool:
        """Returns whether a parameter belongs to a quantized layer."""
        return param_name.rpartition(".")[0] in self.quantization_config.weight_bits

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, target_device: Any, *_: Any, **__: Any
    ) -> None:
        """Assigns a packed tensor to the placeholder of its layer."""
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
        """Rejects missing tensors, because diffusers only logs them."""
        state = model.state_dict()
        missing = [key for key, tensor in state.items() if tensor.is_meta]
        if missing:
            raise ValueError(
                f"the artifact's {type(model).__name__} lacks {len(missing)} of its {len(state)} tensors "
                f"({', '.join(missing[:KEYS_SHOWN])}); quantize or copy it again"
            )
        quantized = self.quantization_config.weight_bits
        require_values(model, {key: value for key, value in state.items() if key.rpartition(".")[0] not in quantized})

    def _restore(self, model: nn.Module, name: str, bits: int) -> QuantizedLayer:
        expected = model.get_submodule(name)
        assert isinstance(expected, _Expected)
        original = expected.original
        read = {key: parameter for key, parameter in expected.named_parameters() if not parameter.is_meta}
        tensors = {f"{name}.{key}": parameter.detach().cpu() for key, parameter in read.items()}
        layer = layer_from_tensors(name, tuple(original.weight.shape), bits, tensors)
        _set_submodule(model, name, original.to("meta"))  # the quantized layer now holds the values
        return layer

    @property
    def is_serializable(self) -> bool:
        """False: a loaded pipeline cannot be saved; copy the artifact's folder instead."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: integer weights have no gradients."""
        return False


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
