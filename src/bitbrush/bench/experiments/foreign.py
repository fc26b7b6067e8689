"""Pipelines of other packages as candidates: quantized by a peer on load or before, or returned by a function."""

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from bitbrush.artifact.sizes import MIB, checkpoint_bytes
from bitbrush.bench.experiments.storage import inner_tensors, memory_bytes, stored_bytes
from bitbrush.bench.experiments.subject import Subject
from bitbrush.bench.peers.registry import installed_peer, names_peer, peers, suggestion
from bitbrush.network.families import DENOISERS, denoiser_name
from bitbrush.runtime.choose import dtype_name
from bitbrush.sources.checkpoint_type import in_type
from bitbrush.sources.models import ModelOptions, find_model

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
UNQUANTIZED = 32
"""Bits of activations that stay in floating point."""
NO_FILES = "no files of its own: size as its tensors would be stored"
UNKNOWN_BITS = "activation bits are unknown, and counted as 32"
NOT_SMALLER = "takes no less memory than full precision"


def peer_pipeline(
    name: str, source: str, pipe: DiffusionPipeline, reference: Subject
) -> tuple[Subject, DiffusionPipeline]:
    """Quantizes a full-precision pipeline by a peer.

    Args:
        name: Name in tables.
        source: ``PEER:SCHEME``.
        pipe: Full-precision pipeline on the device where it runs; its denoiser is replaced.
        reference: Description of the full-precision model.

    Returns:
        Description and pipeline.

    Raises:
        ValueError: The scheme is unknown, or the package is missing.
    """
    peer, _, scheme = source.partition(":")
    quantizer, component = installed_peer(peer, scheme), denoiser_name(pipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # some packages draw random numbers
        setattr(pipe, component, quantizer.quantize(getattr(pipe, component), scheme))
    what = scheme if quantizer.schemes else Path(scheme).name
    runtime = f"{quantizer.package} {version(quantizer.package)}: {what}"
    subject = _described(name, source, pipe, reference, runtime, quantizer.schemes.get(scheme, UNQUANTIZED))
    if subject.memory_mib >= reference.memory_mib:  # SDNQ leaves small layers as they are
        return replace(subject, notes=(*subject.notes, NOT_SMALLER)), pipe
    return subject, pipe


def function_pipeline(name: str, source: str, reference: Subject) -> tuple[Subject, DiffusionPipeline]:
    """Calls the function ``MODULE:FUNCTION`` without arguments, which returns a pipeline.

    Raises:
        ValueError: There is no such function, or it returns no pipeline.
    """
    pipe = named_function(source)()
    if not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"{source} returns a {type(pipe).__name__}; it must return a diffusers pipeline")
    pipe.set_progress_bar_config(disable=True)
    subject = _described(name, source, pipe, reference, f"function: {source}", UNQUANTIZED)
    return replace(subject, notes=(*subject.notes, UNKNOWN_BITS)), pipe


def quantized_by(source: str) -> str | None:
    """Returns the package that a saved pipeline's denoiser was quantized with; None for full precision.

    Raises:
        UnknownModelError: There is no such pipeline.
    """
    found = find_model(source)
    for component in DENOISERS:
        config = _config(found, component)
        if config is not None:
            scheme = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
            return dict(scheme).get("quant_method")
    return None


def _config(found: str, component: str) -> Path | None:
    """Returns the configuration file of a component in a folder or on the hub; None where there is none."""
    path = Path(found, component, "config.json")
    if not Path(found).exists():
        try:
            path = Path(hf_hub_download(found, f"{component}/config.json"))
        except (OSError, HfHubHTTPError):
            return None
    return path if path.is_file() else None


def saved_pipeline(name: str, source: str, reference: Subject) -> tuple[Subject, DiffusionPipeline]:
    """Loads a pipeline whose denoiser another package quantized before it was saved."""
    method = quantized_by(source)
    for peer in peers().values():
        if peer.module.rpartition(".")[2] == method:
            importlib.import_module(peer.module)  # some register with diffusers when they are imported
    pipe = DiffusionPipeline.from_pretrained(find_model(source), **in_type(torch.float32))
    pipe.set_progress_bar_config(disable=True)
    subject = _described(name, source, pipe, reference, f"saved by {method}", UNQUANTIZED)
    component = denoiser_name(pipe)
    size = checkpoint_bytes(source, ModelOptions(), component, getattr(pipe, component))
    return replace(subject, denoiser_mib=size / MIB, notes=(UNKNOWN_BITS,)), pipe


def names_function(source: str) -> bool:
    """Whether a source has the form ``MODULE:FUNCTION``."""
    return _FUNCTION.fullmatch(source) is not None


def named_function(source: str) -> Callable[[], Any]:
    """Imports ``MODULE:FUNCTION``; modules of the current directory are found, too.

    Raises:
        ValueError: The module or the function does not exist; the message suggests peers of a similar name.
    """
    module, _, function = source.partition(":")
    with _current_directory_first():
        try:
            found = getattr(importlib.import_module(module), function)
        except Exception as error:
            hint = suggestion(module, peers())
            raise ValueError(
                f"{source!r} names neither a peer ({', '.join(peers())}) nor a function that can be imported: "
                f"{type(error).__name__}: {error}{hint}"
            ) from error
    if not callable(found):
        raise ValueError(f"{source} is a {type(found).__name__}; name a function that returns a pipeline")
    return found  # type: ignore[no-any-return]


@contextmanager
def _current_directory_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _described(
    name: str,
    source: str,
    pipe: DiffusionPipeline,
    reference: Subject,
    runtime: str,
    activation_bits: float,
) -> Subject:
    """Describes a pipeline by its tensors, since other packages keep no manifest."""
    denoiser = getattr(pipe, denoiser_name(pipe))
    memory = memory_bytes(denoiser) / MIB
    return Subject(
        name=name,
        source=source,
        digest=_digest(pipe, source, runtime),
        denoiser_mib=stored_bytes(denoiser) / MIB,
        memory_mib=memory,
        float32_mib=reference.float32_mib,
        weight_bits=32 * memory / reference.float32_mib,
        activation_bits=activation_bits,
        operators=layer_kinds(denoiser),
        runtime=runtime,
        notes=(NO_FILES,),
    )


def layer_kinds(network: nn.Module) -> dict[str, int]:
    """Counts convolutions and linear layers by class and by dtype or tensor class of their weights."""
    kinds: Counter[str] = Counter()
    for layer in network.modules():
        weight, kind = getattr(layer, "weight", None), type(layer).__name__
        if isinstance(weight, Tensor) and ("Conv" in kind or "Linear" in kind):
            plain = type(weight) in (Tensor, nn.Parameter)
            kinds[f"{kind}, {dtype_name(weight.dtype) if plain else type(weight).__name__}"] += 1
    return dict(sorted(kinds.items()))


def _digest(pipe: DiffusionPipeline, source: str, runtime: str) -> str:
    """Computes the SHA-256 over source, package version and all tensors, whatever their classes."""
    digest = hashlib.sha256(f"{source}\n{runtime}\n{_code(source)}\n".encode())
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module):
            for key, tensor in sorted(part.state_dict(keep_vars=True).items()):
                for inner in inner_tensors(tensor) if isinstance(tensor, Tensor) else ():
                    digest.update(f"{name}/{key} {inner.dtype} {tuple(inner.shape)}\n".encode())
                    digest.update(inner.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _code(source: str) -> str:
    """Returns the source text of a function's module, which may change how the same tensors are used."""
    module = None if names_peer(source) else sys.modules.get(source.partition(":")[0])
    return "" if module is None else inspect.getsource(module)
