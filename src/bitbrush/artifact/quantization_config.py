"""Quantization configurations: what a user asks for, and what an artifact's ``config.json`` holds.

diffusers and transformers take them by their methods alone, so that this module imports neither.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from bitbrush.artifact.documents import require_schema
from bitbrush.artifact.schema import QuantizationEntry, require_uncorrected

METHOD = "bitbrush"
QUANTIZATION = "quantization_config"
"""Key of a network's ``config.json``."""


class QuantMethod(StrEnum):
    """Identifier of this quantizer in ``config.json``; diffusers expects an enumeration."""

    BITBRUSH = METHOD


class BitbrushConfig:
    """Configuration that makes ``from_pretrained`` quantize a denoiser while it loads, without prompts.

    Args:
        weights: Weight bits, 2 to 8.
        activations: Activation bits, 4 to 16.
        method: Quantization method; of bitbrush's own, ``dynamic`` needs no prompts.
        runtime: ``auto``, ``onednn``, ``cuda`` or ``reference``, as in :func:`bitbrush.load`.
        memory: ``expanded`` or ``low``, as in :func:`bitbrush.load`.
        **keys: Further recipe keys, e.g. ``exclude=["*attn2*"]`` or ``weight_range="min-max"``.
    """

    def __init__(
        self,
        weights: int = 4,
        activations: int = 8,
        method: str = "dynamic",
        runtime: str = "auto",
        memory: str = "expanded",
        **keys: Any,
    ) -> None:
        self.quant_method = QuantMethod.BITBRUSH
        self.weights = weights
        self.activations = activations
        self.method = method
        self.runtime = runtime
        self.memory = memory
        self.keys = keys

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **_: Any) -> "BitbrushConfig | StoredConfig":
        """Creates the configuration; an entry of an artifact's ``config.json`` gives a :class:`StoredConfig`."""
        plain = {key: value for key, value in config_dict.items() if key != "quant_method"}
        return StoredConfig(**plain) if "weight_bits" in plain else cls(**plain)

    def __repr__(self) -> str:
        return f"BitbrushConfig({', '.join(f'{key}={value!r}' for key, value in self._given.items())})"

    @property
    def recipe_keys(self) -> dict[str, Any]:
        """Keys of the recipe, without how it is run."""
        return {"method": self.method, "weights": self.weights, "activations": self.activations, **self.keys}

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values."""
        return {"quant_method": self.quant_method.value, **self._given}

    @property
    def _given(self) -> dict[str, Any]:
        return {**self.recipe_keys, "runtime": self.runtime, "memory": self.memory}


class StoredConfig:
    """Entry of an artifact's ``config.json``: weight bits by layer; everything else is in the tensors.

    Args:
        weight_bits: Weight bits of every quantized layer by name.
        split_skips: Split convolutions with the input channel of the split; see ``network/skip_inputs.py``.
        low_ranks: Layers with a low-rank branch and its rank; see ``network/low_rank.py``.
        first_tokens: Layers with tensors of a known first token; see ``network/first_token.py``.
        embeddings: Embedding tables with 8 bits per row.
        tied_embeddings: Further embeddings that look up one of these tables, and its name.
        **others: Keys of other versions, rejected if they change the result.
    """

    def __init__(
        self,
        weight_bits: dict[str, int],
        split_skips: dict[str, int] | None = None,
        low_ranks: dict[str, int] | None = None,
        first_tokens: Sequence[str] = (),
        embeddings: Sequence[str] = (),
        tied_embeddings: dict[str, str] | None = None,
        **others: Any,
    ) -> None:
        require_uncorrected(others)
        self.quant_method = QuantMethod.BITBRUSH
        self.weight_bits = weight_bits
        self.split_skips = split_skips or {}
        self.low_ranks = low_ranks or {}
        self.first_tokens = first_tokens
        self.embeddings = embeddings
        self.tied_embeddings = tied_embeddings or {}
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
        if self.embeddings:
            own["embeddings"] = list(self.embeddings)
        if self.tied_embeddings:
            own["tied_embeddings"] = dict(self.tied_embeddings)
        return own
