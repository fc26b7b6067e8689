"""diffusers' quantizer interface: a full-precision denoiser is quantized once its weights are loaded."""

from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from bitbrush.artifact.on_load import quantize_loaded, require_quantizable
from bitbrush.artifact.quantization_config import BitbrushConfig


class AlreadyQuantized(ValueError):
    """Signal that a configuration is an artifact's; ``from_pretrained`` then loads it from its verified files."""


def require_one_device(device_map: Any) -> None:
    """Refuses a map over several devices.

    Raises:
        ValueError: The map distributes the denoiser over devices.
    """
    devices = {str(device) for device in device_map.values()} if isinstance(device_map, dict) else set()
    if len(devices) > 1:
        raise ValueError(
            f"device_map distributes the denoiser over {', '.join(sorted(devices))}, but a quantized one computes on "
            "one device: give device_map={'': DEVICE}"
        )


class BitbrushQuantizer(DiffusersQuantizer):
    """Quantizer that leaves loading to diffusers and lowers the denoiser at the end."""

    quantization_config: BitbrushConfig

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        """Takes the configuration that the user gave.

        Raises:
            AlreadyQuantized: The configuration is one of an artifact.
        """
        super().__init__(quantization_config, **kwargs)
        if self.pre_quantized:
            raise AlreadyQuantized(
                "these are weights of a bitbrush artifact, which from_pretrained loads after import bitbrush"
            )
        self._requested: Any = None

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuses a map over several devices."""
        require_one_device(device_map)

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """Returns float32, in which weights are rounded, and keeps the request for the runtime."""
        self._requested = torch_dtype
        return torch.float32

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        require_quantizable(model, self.quantization_config)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        quantize_loaded(model, self.quantization_config, self._requested)
        return model

    @property
    def is_serializable(self) -> bool:
        """True: ``save_pretrained`` writes the packed integers."""
        return True

    @property
    def is_trainable(self) -> bool:
        """False: integer weights have no gradients."""
        return False
