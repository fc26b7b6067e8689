"""A subject in a process of its own: ``python -m gpu.worker SUBJECT MODEL DEVICE ROUNDS BATCHxSIZE...``.

Writes a JSON line for every row: seconds of each round, peak memory of calls and what the subject holds between them.
Ours: also the error to the reference runtime, and the rate of every product, at the first case.
"""

import copy
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.runtime.reference import ReferenceRuntime
from gpu.denoisers import PLAIN, SHAPES, Case, Shape, make_denoiser, quantized_layers
from gpu.rates import product_rates
from gpu.subjects import OURS, SUBJECTS

WARM_UP = 3


def main() -> None:
    name, model, where, rounds, *cases = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    device, shape, subject = torch.device(where), SHAPES[model], SUBJECTS[name]
    wanted = [Case(*map(int, one.split("x"))) for one in cases]
    with torch.no_grad():
        started = time.perf_counter()
        denoiser = make_denoiser(shape, device, subject.dtype)
        reference = _reference(denoiser, shape, wanted[0], device) if name == OURS else None
        ready = subject.prepare(denoiser, shape, device)
        loaded = time.perf_counter() - started
        for case in wanted:
            _forget(denoiser)
            call = ready(case)
            if reference is not None and case == wanted[0]:
                say({"error": _error(call(PLAIN), reference)})
            for suffix, timestep in subject.timesteps:
                row = _timed(lambda call=call, timestep=timestep: call(timestep), int(rounds), device)
                say({"case": case.name, "row": name + suffix, **row, "load_seconds": round(loaded, 1)})
        if name == OURS:
            say({"rates": product_rates(denoiser, lambda: ready(wanted[0])(PLAIN), device)})


def _reference(denoiser: nn.Module, shape: Shape, case: Case, device: torch.device) -> Tensor:
    """The prediction of the same integers on the reference runtime."""
    exact = copy.deepcopy(denoiser)
    seen = Case(1, 32 if device.type == "cuda" else 8)
    layers = quantized_layers(exact, seen.call(exact, shape, torch.float32, device), 8)
    ReferenceRuntime().lower(exact, layers)
    prediction = case.call(exact, shape, torch.float32, device)(PLAIN)
    del exact, layers
    gc.collect()
    return prediction


def _error(y: Tensor, expected: Tensor) -> float:
    """Relative: norm of the difference over the norm."""
    return float((y.float() - expected).norm() / expected.norm())


def _forget(denoiser: nn.Module) -> None:
    """Frees the graphs of the last case."""
    forget = getattr(denoiser.forward, "forget", None)
    if forget is not None:
        forget()


def _timed(call: Callable[[], Tensor], rounds: int, device: torch.device) -> dict[str, Any]:
    on_card = device.type == "cuda"
    for _ in range(WARM_UP if on_card else 1):
        y = call()
    if not bool(y.isfinite().all()):
        raise ValueError("the prediction holds NaN or infinity")
    gc.collect()
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        _wait(device)
        before = time.perf_counter()
        call()
        _wait(device)
        seconds.append(round(time.perf_counter() - before, 6))
    return {"seconds": seconds, **(_state_of_gpu() if on_card else {})}


def _state_of_gpu() -> dict[str, Any]:
    """Returns peak memory in MiB, allocated and reserved, and what nvidia-smi says of clock, power and heat."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout if which(query[0]) else ""
    return {
        "allocated_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "reserved_mib": round(torch.cuda.max_memory_reserved() / 2**20),
        "clock_power_temperature": answer.strip().splitlines()[:1],
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
