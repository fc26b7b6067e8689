"""Registration with diffusers, at once or when it is imported: loading, saving and quantizing go through bitbrush.

This module imports neither torch nor diffusers, so that ``import bitbrush`` stays fast.
"""

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any, Never

from bitbrush.artifact.quantization_config import METHOD, BitbrushConfig
from bitbrush.sources.plain_loading import is_plain

_MARK = "bitbrush_original"
_FROM_PRETRAINED, _SAVING = "bitbrush.artifact.from_pretrained", "bitbrush.artifact.save_pretrained"
_REFUSALS = "bitbrush.runtime.refusals"


def register() -> None:
    """Makes diffusers' own methods know artifacts; ``import bitbrush`` does this already.

    ``from_pretrained`` loads an artifact as :func:`bitbrush.load` does. ``save_pretrained`` and ``push_to_hub`` of a
    quantized pipeline or denoiser write one.
    """
    for name in _HOOKS:
        _HOOKS[name](import_module(name))


def register_on_import() -> None:
    """Registers with the modules of diffusers and transformers that are imported, and with others once they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name for name in _HOOKS if name in sys.modules))


class _Finder:
    """Finder that runs a hook after a module is executed, and leaves finding it to the others.

    Args:
        begun: Modules whose import began earlier. Their hooks run now, or, if they import this package themselves, at
            the next import after they are complete.
    """

    def __init__(self, begun: Iterable[str]) -> None:
        self._begun = set(begun)
        self._searching = threading.local()
        self._run_complete()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the module's spec with the hook appended to its execution; None for all other modules."""
        self._run_complete()
        if name not in _HOOKS or getattr(self._searching, "name", None) == name:
            return None
        self._searching.name = name
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching.name = None
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _HOOKS[name](module)

            loader.exec_module = exec_module
        return spec

    def _run_complete(self) -> None:
        for name in tuple(self._begun):
            module = sys.modules.get(name)
            if module is None or not getattr(module.__spec__, "_initializing", False):
                self._begun.discard(name)
                if module is not None:
                    _HOOKS[name](module)


def _register_quantizer(module: Any) -> None:
    """Enters the quantizer into diffusers' mappings."""
    module.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = BitbrushConfig
    module.AUTO_QUANTIZER_MAPPING[METHOD] = _quantizer


def _register_refusal(module: Any) -> None:
    """Enters a refusal into transformers' mappings: diffusers looks up ``quant_backend`` there, too."""
    module.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = BitbrushConfig
    module.AUTO_QUANTIZER_MAPPING[METHOD] = _refuse_text_encoder


def _quantizer(config: Any, **options: Any) -> Any:
    return import_module("bitbrush.artifact.quantizer").BitbrushQuantizer(config, **options)


def _refuse_text_encoder(*_: Any, **__: Any) -> Never:
    raise ValueError(
        "bitbrush quantizes denoisers, no text encoders: name the denoiser, e.g. components_to_quantize='unet', or "
        "quant_mapping={'unet': BitbrushConfig(...)}"
    )


def _register_pipelines(module: Any) -> None:
    _replace(module.DiffusionPipeline, "from_pretrained", _FROM_PRETRAINED, "load_pipeline_as", loads=True)
    _replace(module.DiffusionPipeline, "save_pretrained", _SAVING, "save_pipeline")
    _replace(module.DiffusionPipeline, "push_to_hub", _SAVING, "push")


def _register_models(module: Any) -> None:
    _replace(module.ModelMixin, "from_pretrained", _FROM_PRETRAINED, "load_model_as", loads=True)
    _replace(module.ModelMixin, "save_pretrained", _SAVING, "save_model")
    _replace(module.ModelMixin, "push_to_hub", _SAVING, "push")


def _register_files(module: Any) -> None:
    _replace(module.FromSingleFileMixin, "from_single_file", _FROM_PRETRAINED, "load_file_as", loads=True)


def _register_network_files(module: Any) -> None:
    _replace(module.FromOriginalModelMixin, "from_single_file", _FROM_PRETRAINED, "refuse_file", loads=True)


def _register_guiders(module: Any) -> None:
    _replace(module.SmoothedEnergyGuidance, "prepare_models", _REFUSALS, "prepare_smoothing")


_HOOKS: Mapping[str, Callable[[Any], None]] = MappingProxyType(
    {
        "diffusers.quantizers.auto": _register_quantizer,
        "transformers.quantizers.auto": _register_refusal,
        "diffusers.guiders.smoothed_energy_guidance": _register_guiders,
        "diffusers.loaders.single_file": _register_files,
        "diffusers.loaders.single_file_model": _register_network_files,
        "diffusers.models.modeling_utils": _register_models,
        "diffusers.pipelines.pipeline_utils": _register_pipelines,
    }
)


def _replace(kind: Any, method: str, module: str, function: str, *, loads: bool = False) -> None:
    """Replaces a method by ``function(original, owner, ...)``, whose module is imported when it is called.

    ``owner`` is the object, or the class of a class method.
    """
    present = getattr(kind, method)
    if hasattr(present, _MARK):
        return
    original = present.__func__ if loads else present

    @functools.wraps(original)
    def replaced(owner: Any, *args: Any, **kwargs: Any) -> Any:
        if is_plain():
            return original(owner, *args, **kwargs)
        return getattr(import_module(module), function)(original, owner, *args, **kwargs)

    setattr(replaced, _MARK, original)
    setattr(kind, method, classmethod(replaced) if loads else replaced)
