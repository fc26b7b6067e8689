"""The folder in which a quantization keeps what it has finished, and whose work that is."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitbrush.methods.state import QuantizationState
from bitbrush.network.held import device_of
from bitbrush.session.journal import Journal
from bitbrush.timeline.trajectory import PromptBatch

FINGERPRINT = "fingerprint.json"
VERSIONS = ("bitbrush", "torch", "diffusers", "transformers")


def work_folder(output: Path) -> Path:
    """Where the work for an artifact is kept: beside it, hidden."""
    return output.with_name(f".{output.name}.work")


def open_work(folder: Path, state: QuantizationState, digest: str) -> Journal:
    """The journal of ``folder``, made if there is none. ``digest``: of the pipeline's networks.

    Raises ValueError, naming what differs, if the work in it was done for another model, recipe, prompts, versions,
    number of threads or processes, or on another device: going on with it would not give what the job gives.
    """
    ours = {"model": digest, **_fingerprint(state)}
    path = folder / FINGERPRINT
    journal = Journal(folder, state.session.ranks)
    if journal.pieces():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        unlike = [part for part in ours if ours[part] != theirs.get(part)]
        if unlike:
            raise ValueError(
                f"{folder} holds unfinished work for another {' and another '.join(unlike)}; remove it to start anew, "
                "or choose another output"
            )
        return journal
    if folder.exists() and {other.suffix for other in folder.iterdir()} - {".json", ".part"}:
        raise ValueError(f"{folder} exists and holds no {FINGERPRINT}; remove it or choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return journal


def require_same_work(state: QuantizationState) -> None:
    """Raises ValueError in every process, naming what differs, if those that share the job were given different ones.

    The networks' weights are not compared.
    """
    parts = _fingerprint(state)
    digests = [hashlib.sha256(json.dumps(part, sort_keys=True).encode()).digest()[:7] for part in parts.values()]
    own = torch.tensor([int.from_bytes(digest) for digest in digests])
    differ = state.session.ranks.least(own.clone()) != state.session.ranks.most(own.clone())
    unlike = [name for name, other in zip(parts, differ.tolist(), strict=True) if other]
    if unlike:
        raise ValueError(
            f"the {state.session.ranks.world} processes were given different {' and '.join(unlike)}; "
            "give all of them the same: they share one quantization"
        )


def _fingerprint(state: QuantizationState) -> dict[str, Any]:
    return {
        "recipe": state.recipe.to_dict(),
        "prompts": _prompts_digest(state.batches),
        "family": state.family.name,
        "weights": _weights_digest(state),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "number of threads": torch.get_num_threads(),  # sums are added up in another order
        "number of processes": state.session.ranks.world,
        "device": device_of(state.denoiser).type,
    }


def _prompts_digest(batches: Sequence[PromptBatch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((batch.prompts, batch.seeds, sorted(batch.inputs))).encode())
        for name in sorted(batch.inputs):
            for value in batch.inputs[name]:
                digest.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return digest.hexdigest()


def _weights_digest(state: QuantizationState) -> str | None:
    """Of weights that were rounded before, None where they are rounded here."""
    if state.rounded is None:
        return None
    digest = hashlib.sha256()
    for name, layer in sorted(state.rounded.items()):
        digest.update(name.encode())
        for tensor in (layer.weight.w_q, layer.weight.grid.scale, layer.weight.grid.zero_point, layer.bias):
            digest.update(_bytes(tensor) if tensor is not None else b"none")
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
