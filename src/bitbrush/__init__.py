"""bitbrush: text-to-image diffusion pipelines in few bits, after training, with the proof of what was kept."""

from importlib.metadata import version

from bitbrush.artifact.models import load_full_precision
from bitbrush.artifact.quantization import Quantization, quantize
from bitbrush.artifact.store import load, read_manifest, save
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import Recipe

__version__ = version("bitbrush")
__all__ = ["METHODS", "Quantization", "Recipe", "load", "load_full_precision", "quantize", "read_manifest", "save"]
