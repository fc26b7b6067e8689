"""Check that a pipeline can be loaded from what an artifact stores: class names, configurations and tensors."""

from collections.abc import Collection
from typing import Any, Never

import diffusers
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from bitbrush.network.empty import without_values
from bitbrush.network.lazy_weights import lazy_layers, weight_shape
from bitbrush.network.low_rank import branch_, branch_ranks
from bitbrush.network.skip_inputs import split_, split_begins
from bitbrush.sources.agreement import require_agreement
from bitbrush.sources.networks import KEYS_SHOWN, component_class, reports_tensors
from bitbrush.sources.settings import require_settings

UNDO = {
    "lora": "fuse the adapter first: pipe.fuse_lora(), then pipe.unload_lora_weights()",
    "base_layer": "fuse the adapter first: pipe.fuse_lora(), then pipe.unload_lora_weights()",
    "_ip.": "an IP-Adapter cannot be kept: pipe.unload_ip_adapter()",
    "image_projection_layers": "an IP-Adapter cannot be kept: pipe.unload_ip_adapter()",
    "kv.": "load the pipeline again, without pipe.fuse_qkv_projections(): undoing that leaves its layers behind",
}
"""Remedies by substrings of the names of additional tensors."""

_PLAIN_LAYERS = nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding
"""Layers whose settings are compared."""


def require_savable(pipe: DiffusionPipeline, quantized: Collection[str] = ()) -> None:
    """Checks that an artifact of the pipeline could be loaded.

    Args:
        pipe: Pipeline.
        quantized: Names of quantized networks, whose tensors are not their configuration's.

    Raises:
        ValueError: It could not; the message names the component and the remedy.
    """
    saved_class(pipe)
    require_settings(pipe)
    require_agreement(pipe, type(pipe).__name__)
    for name, part in pipe.components.items():
        if part is not None:
            _require_known_class(pipe, name)
        if isinstance(part, nn.Module) and name not in quantized:
            _require_own_tensors(name, getattr(part, "_orig_mod", part))


def saved_class(pipe: DiffusionPipeline) -> type[DiffusionPipeline]:
    """Finds the class that loads the pipeline: its own, or the nearest base class in diffusers.

    Raises:
        ValueError: There is none, or it does not take all of the components.
    """
    bases = type(pipe).__mro__[: type(pipe).__mro__.index(DiffusionPipeline)]
    base: Any = next((kind for kind in bases if getattr(diffusers, kind.__name__, None) is kind), None)
    problem = f"{type(pipe).__name__} is no class of diffusers"
    if base is None:
        raise ValueError(f"{problem}, nor derived from one, so that its artifact could not be loaded")
    arguments, _ = base._get_signature_keys(base)
    others = [name for name, part in pipe.components.items() if part is not None and name not in arguments]
    if others:
        raise ValueError(
            f"{problem}, and {base.__name__}, as which its artifact is loaded, takes no {others[0]}; quantize "
            f"a {base.__name__} of its other components"
        )
    pipeline_class: type[DiffusionPipeline] = base
    return pipeline_class


def _require_known_class(pipe: DiffusionPipeline, name: str) -> None:
    library, kind = pipe.config[name]
    if component_class(library, kind) is None:
        raise ValueError(
            f"{name} is a {kind} of {library}, and loading an artifact takes classes of diffusers and transformers: "
            "quantize the pipeline with an object of those, and replace it after loading"
        )


def _require_own_tensors(name: str, network: Any) -> None:
    """Rejects a network whose tensors differ from those that its configuration creates."""
    if not reports_tensors(type(network)) or getattr(network.config, "quantization_config", None) is not None:
        return  # a container of networks, or a network that another library quantized
    fresh = _from_configuration(network)
    shapes, plain_shapes = _shapes(network), _shapes(fresh)
    changes = [key for key in {**shapes, **plain_shapes} if shapes.get(key) != plain_shapes.get(key)]
    if changes:
        remedy = next((text for part, text in UNDO.items() if any(part in key for key in changes)), None)
        raise ValueError(
            f"{name} ({type(network).__name__}) has other tensors than its configuration makes "
            f"({', '.join(changes[:KEYS_SHOWN])}), so that its artifact could not be loaded; "
            f"{remedy or 'undo what was done to its layers'}"
        )
    _require_own_settings(name, network, fresh)
    if empty := [key for key, tensor in network.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"{name} ({type(network).__name__}) has no values in memory for {', '.join(empty[:KEYS_SHOWN])}; load the "
            "pipeline whole, without offloading"
        )


def _require_own_settings(name: str, network: nn.Module, fresh: nn.Module) -> None:
    """Rejects layer settings that no configuration records, such as circular padding for tileable images."""
    settings, plain_settings = _settings(network), _settings(fresh)
    for layer, setting in settings.items():
        plain = plain_settings.get(layer, "no such layer")
        if setting != plain:
            raise ValueError(
                f"{name}.{layer} is {setting}, and the configuration makes {plain}: "
                "its artifact would be loaded without the change; undo it, quantize, and make it again in "
                "bitbrush.load(DIRECTORY, runtime='reference')"
            )


def _settings(network: nn.Module) -> dict[str, str]:
    """Returns the settings of torch's own layers, as they print them."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _PLAIN_LAYERS)}
    return {name: f"{type(layer).__name__}({layer.extra_repr()})" for name, layer in layers.items()}


def _from_configuration(network: Any) -> nn.Module:
    """Creates the network that loading starts from: its class with its configuration, without values."""
    with without_values():
        fresh: nn.Module = (
            type(network).from_config(network.config)
            if isinstance(network, ModelMixin)
            else type(network)(network.config)
        )
        split_(fresh, split_begins(network))
        branch_(fresh, branch_ranks(network))
    return fresh


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    held = {f"{name}.weight": weight_shape(network.get_submodule(name)) for name in lazy_layers(network)}
    return shapes | held


def refuse_saving(*_: Any, **__: Any) -> Never:
    """Refuses to save a quantized pipeline whose integers are in no file.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "the pipeline was quantized in memory, and its kernels' integers are not those of a file: save the "
        "Quantization: quantization.save(DIRECTORY)"
    )
