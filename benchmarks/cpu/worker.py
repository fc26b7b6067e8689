"""A subject in a process of its own: loads, says so, and then does one thing for every line it reads.

Started as ``python -m cpu prepare|serve SUBJECT MODEL SIZE SCRATCH``. Lines in and out are JSON objects:

    {"call": T}          one denoiser call at timestep T      -> {"seconds": s, "cpu_seconds": s}
    {"generate": N}      N steps with guidance                -> {"seconds": s, "cpu_seconds": s}
    {"profile": T}       one call, by kind of operator        -> {"milliseconds": {kind: ms}}
    {"memory": true}                                          -> {"peak_mib": m, "resident_mib": m}

The first line out, unasked, is ``{"load_seconds": s, "first_call_seconds": s}``. End of input ends the process.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from diffusers import DDIMScheduler

from cpu.models import MODELS, TIMESTEPS
from cpu.operators import profile
from cpu.registry import SUBJECTS
from cpu.subjects import THREADS, Denoise, Task

GUIDANCE = 7.5
WARM_UP_CALLS = 2


def main() -> None:
    started = _process_age()
    action, name, model, size, scratch = sys.argv[1:]
    answers = _claim_stdout()
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    subject, task = SUBJECTS[name], Task(MODELS[model], int(size), Path(scratch))
    if action == "prepare":
        if subject.prepare is not None:
            subject.prepare(task)
        return
    before = time.perf_counter()
    denoise = subject.load(task)
    loaded = time.perf_counter() - before + started
    first = _timed(lambda: _call(denoise, task, float(TIMESTEPS[0])))["seconds"]
    for timestep in TIMESTEPS[1:WARM_UP_CALLS]:
        _call(denoise, task, float(timestep))
    _say(answers, {"load_seconds": loaded, "first_call_seconds": first})
    for line in sys.stdin:
        _say(answers, _obey(json.loads(line), denoise, task))


def _obey(command: dict[str, Any], denoise: Denoise, task: Task) -> dict[str, Any]:
    match command:
        case {"call": timestep}:
            return _timed(lambda: _call(denoise, task, float(timestep)))
        case {"generate": steps}:
            return _timed(lambda: _generate(denoise, task, int(steps)))
        case {"profile": timestep}:
            return {"milliseconds": profile(lambda: denoise(task.inputs.latents, float(timestep)))}
        case {"memory": True}:
            return {"peak_mib": _status_mib("VmHWM"), "resident_mib": _status_mib("VmRSS")}
    raise ValueError(f"command {command} is none of call, generate, profile, memory")


def _timed(work: Callable[[], object]) -> dict[str, float]:
    """``cpu_seconds`` are those of all threads: they tell less of the machine's other work than ``seconds`` do."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _call(denoise: Denoise, task: Task, timestep: float) -> None:
    latents = task.inputs.latents
    prediction = denoise(latents, timestep)
    if prediction.shape != latents.shape or not bool(torch.isfinite(prediction.float()).all()):
        raise ValueError(f"the prediction has shape {tuple(prediction.shape)}, or holds NaN or infinity")


def _generate(denoise: Denoise, task: Task, steps: int) -> None:
    """A pipeline's loop around the denoiser: scheduler and guidance; no text encoder, no VAE."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    scheduler.set_timesteps(steps)
    latents = task.inputs.latents[:1]
    for timestep in scheduler.timesteps:
        unconditional, text = denoise(torch.cat([latents, latents]), float(timestep)).float().chunk(2)
        latents = scheduler.step(unconditional + GUIDANCE * (text - unconditional), timestep, latents).prev_sample


def _claim_stdout() -> TextIO:
    """The real standard output; what libraries print goes to standard error from here on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _process_age() -> float:
    """Seconds since this process was started: the imports."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(value) / 1024
