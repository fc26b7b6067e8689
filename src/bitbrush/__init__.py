"""Post-training quantization of text-to-image diffusion pipelines, with benchmarks of the quality retained."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bitbrush.artifact.registration import register, register_on_import

if TYPE_CHECKING:
    from bitbrush.api import Quantization, quantize, recalibrate
    from bitbrush.artifact.documents import ArtifactError
    from bitbrush.artifact.manifest import read_manifest
    from bitbrush.artifact.quantization_config import BitbrushConfig
    from bitbrush.artifact.store import load, save
    from bitbrush.bench.experiments.ablate.run import ablate
    from bitbrush.bench.experiments.bench.run import benchmark
    from bitbrush.bench.metrics.registry import (
        METRICS,
        ImageMetric,
        PairedMetric,
        PromptMetric,
        register_metric,
    )
    from bitbrush.methods import METHODS, register_method
    from bitbrush.methods.recipe import Recipe
    from bitbrush.runtime.watch import watch
    from bitbrush.sources.lora import Lora
    from bitbrush.sources.models import ModelOptions, load_full_precision

__version__ = version("bitbrush")
__all__ = [
    "METHODS",
    "METRICS",
    "ArtifactError",
    "BitbrushConfig",
    "ImageMetric",
    "Lora",
    "ModelOptions",
    "PairedMetric",
    "PromptMetric",
    "Quantization",
    "Recipe",
    "ablate",
    "benchmark",
    "load",
    "load_full_precision",
    "quantize",
    "read_manifest",
    "recalibrate",
    "register",
    "register_method",
    "register_metric",
    "save",
    "watch",
]

_HOMES = {
    "METHODS": "bitbrush.methods",
    "METRICS": "bitbrush.bench.metrics.registry",
    "ArtifactError": "bitbrush.artifact.documents",
    "BitbrushConfig": "bitbrush.artifact.quantization_config",
    "ImageMetric": "bitbrush.bench.metrics.registry",
    "Lora": "bitbrush.sources.lora",
    "ModelOptions": "bitbrush.sources.models",
    "PairedMetric": "bitbrush.bench.metrics.registry",
    "PromptMetric": "bitbrush.bench.metrics.registry",
    "Quantization": "bitbrush.api",
    "Recipe": "bitbrush.methods.recipe",
    "ablate": "bitbrush.bench.experiments.ablate.run",
    "benchmark": "bitbrush.bench.experiments.bench.run",
    "load": "bitbrush.artifact.store",
    "load_full_precision": "bitbrush.sources.models",
    "quantize": "bitbrush.api",
    "read_manifest": "bitbrush.artifact.manifest",
    "recalibrate": "bitbrush.api",
    "register_method": "bitbrush.methods",
    "register_metric": "bitbrush.bench.metrics.registry",
    "save": "bitbrush.artifact.store",
    "watch": "bitbrush.runtime.watch",
}


def __getattr__(name: str) -> Any:
    """Imports public names lazily, because ``bitbrush --help`` needs neither torch nor diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bitbrush' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register_on_import()
