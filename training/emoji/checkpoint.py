"""Checkpoints of a training stage: safetensors and JSON, replaced as one.

A checkpoint is a directory `step-<N>` with `state.safetensors` and `state.json`. It is written under another name and
renamed when complete, so an interrupted run always finds a whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_PREFIX = "step-"
_OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class TrainingState:
    """What changes from step to step: modules by name (the trained one, its average) and the optimizer."""

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer


def save_checkpoint(directory: Path, state: TrainingState, step: int, identity: Mapping[str, Any]) -> None:
    """Keep the state after `step` steps, and drop older checkpoints of the directory."""
    final = directory / f"{_PREFIX}{step:08d}"
    if final.is_dir():
        return
    partial = directory / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_flatten(state), partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, "identity": identity}, indent=2), encoding="utf-8")
    older = _checkpoints(directory)
    partial.rename(final)
    for path in older:
        shutil.rmtree(path)


def load_checkpoint_(state: TrainingState, directory: Path, identity: Mapping[str, Any]) -> int:
    """Load the newest checkpoint into `state`; the result is the number of steps done, 0 where there is none.

    Raises ValueError where the checkpoint was made with another configuration or seed.
    """
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    record = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(identity))
    for key, value in wanted.items():
        if record["identity"].get(key) != value:
            found = record["identity"].get(key)
            raise ValueError(f"{newest} was made with {key} = {found}, not {value}; use another --out or remove it")
    _unflatten_(state, load_file(newest / "state.safetensors"))
    step: int = record["step"]
    return step


def _checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(directory.glob(f"{_PREFIX}*"))


def _flatten(state: TrainingState) -> dict[str, Tensor]:
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in state.modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, slots in state.optimizer.state_dict()["state"].items():
        for key, tensor in slots.items():
            tensors[f"{_OPTIMIZER}.{index}.{key}"] = tensor.detach().cpu().contiguous()
    return tensors


def _unflatten_(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    for name, module in state.modules.items():
        module.load_state_dict(_below(name, tensors))
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(_OPTIMIZER, tensors).items():
        index, slot = key.split(".")
        slots.setdefault(int(index), {})[slot] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose key starts with `name.`, by the rest of the key."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
