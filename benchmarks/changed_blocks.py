"""Cost of looking for changed modules at each call of a fused denoiser, and of blocks that were changed.

    python benchmarks/changed_blocks.py --models emoji-sd,sd15

Batch 2 (guidance), one core, oneDNN runtime: CPU seconds, the least of several rounds. Artifacts are those of
benchmarks/unet_cpu.py, made on first use.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu.artifact import Form, artifact
from cpu.models import MODELS, TIMESTEPS
from cpu.ours import Way, open_artifact
from cpu.subjects import Task, bound
from torch import nn

from bitbrush.runtime.fused_forward import FusedForward

CHECKS = 100


def main() -> None:
    options = _options()
    options.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| model | a call, ms | looking for changes, ms | share | a call with all blocks changed, ms |")
    print("|---|---|---|---|---|")
    for name in options.models.split(","):
        model = MODELS[name]
        task = Task(model, model.latents[0], options.scratch)
        denoiser = open_artifact(artifact(task, Form(8)), Way("onednn"))
        denoise = bound(denoiser, task, torch.bfloat16, torch.channels_last)
        checks = _checks(denoiser)

        def call(denoise: Any = denoise, task: Task = task) -> None:
            denoise(task.inputs.latents, float(TIMESTEPS[0]))

        def check(checks: list[Callable[[], Any]] = checks) -> None:
            for _ in range(CHECKS):
                for one in checks:
                    one()

        plain, looking = _least(call, options.rounds), _least(check, options.rounds) / CHECKS
        _change(denoiser)
        changed = _least(call, options.rounds)
        cells = f"{plain:.1f}", f"{looking:.3f}", f"{looking / plain:.2%}", f"{changed:.1f}"
        print(f"| {name}@{task.size} | {' | '.join(cells)} |", flush=True)


def _checks(denoiser: nn.Module) -> list[Callable[[], Any]]:
    """What a call does to find changes: each fused block looks at its modules, the denoiser at its children."""
    blocks = [vars(module).get("forward") for module in denoiser.modules()]
    added = [hook for hook in denoiser._forward_pre_hooks.values() if hasattr(hook, "look")]
    return [
        *(one.may_fuse for one in blocks if isinstance(one, FusedForward)),
        *(lambda hook=hook: hook.look(denoiser) for hook in added),
    ]


def _change(denoiser: nn.Module) -> None:
    """One hook that does nothing on every module."""
    for module in denoiser.modules():
        module.register_forward_hook(lambda *_: None)


def _least(run: Callable[[], Any], rounds: int) -> float:
    """Milliseconds of CPU time."""
    spent = []
    with torch.no_grad():
        run()
        for _ in range(rounds):
            start = time.process_time()
            run()
            spent.append(1e3 * (time.process_time() - start))
    return min(spent)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="emoji-sd,sd15", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "unet-cpu", help="models")
    return parser.parse_args()


if __name__ == "__main__":
    main()
