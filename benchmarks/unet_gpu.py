"""All that needs an NVIDIA GPU: speed, memory and error of denoisers, and the conformance suite.

    python benchmarks/unet_gpu.py                       # everything, within --budget seconds (13 minutes)
    python benchmarks/unet_gpu.py --dry                 # the same on a processor alone, tiny: shows that it runs

Writes ``gpu-CARD.json`` and ``gpu-CARD.md`` into --output after every subject; the same command goes on where it ended.
SDXL W8A8, compiled fp16 and fp16 as a CUDA graph come first, planned for four minutes.
Needs torch for CUDA, Triton, diffusers, pytest and pytest-xdist; no network. torchao is compared with where it is
installed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu.rates import limits
from gpu.subjects import OURS, SUBJECTS
from gpu.table import table

HERE = Path(__file__).resolve().parent
HEADLINES = {"sdxl": ["2x128", "2x64", "8x64", "8x128"], "sd15": ["8x64", "2x64", "2x128", "8x128"]}
"""Batch x latents; the first case of each is the one that is to be fast."""
DRY = {"tiny": ["1x8"]}
DRY_SUBJECTS = ["eager bf16", OURS]
PACKAGES = ("bitbrush", "torch", "triton", "diffusers", "torchao")
FIRST = 3
"""Subjects that the first case is measured with before anything else: ours, and what it is compared with."""
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:benchmark")
"""pytest-benchmark warns where tests run in parallel, and warnings are errors."""
COMPILERS = 8
"""Processes that share the tests on a card, most of whose time is the compiler's."""
LEAST_SECONDS = 20.0
"""A subject is not begun with less time left."""


def main() -> None:
    options = _options()
    deadline = time.monotonic() + options.budget
    device = torch.device("cpu" if options.dry else "cuda")
    if not options.dry and not torch.cuda.is_available():
        sys.exit("unet_gpu: torch sees no NVIDIA card here; --dry shows on a processor that everything runs")
    card = "dry run" if options.dry else torch.cuda.get_device_name()
    path = options.output / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    document = _begun(path, card)
    models = DRY if options.dry else {model: HEADLINES[model] for model in options.models}
    subjects = DRY_SUBJECTS if options.dry else options.subjects
    first, *_ = models
    for name in subjects[:FIRST]:
        _measure(document, path, name, first, models[first][:1], deadline, device)
    for key, measure in ONCE.items():
        if "error" in document.get(key, {"error": ""}):
            document[key] = measure(device, deadline)
            print(f"{key}: {document[key]}", flush=True)
            _write(document, path)
    for model, cases in models.items():
        _sweep(document, path, model, cases[0], deadline, device)
    for name in subjects:
        for model, cases in models.items():
            _measure(document, path, name, model, cases[:1] if SUBJECTS[name].headline else cases, deadline, device)
    print(f"\n{table(document)}\n{path}", flush=True)
    if not (document["conformance"].get("passed") and document["calls"].get("passed")):
        sys.exit(1)


def _begun(path: Path, card: str) -> dict[str, Any]:
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known
    installed = {one.metadata["Name"].lower(): one.version for one in importlib.metadata.distributions()}
    machine = {"card": card, "system": platform.platform(), "python": platform.python_version()}
    versions = {name: installed.get(name) for name in PACKAGES} | {"cuda": torch.version.cuda}
    return {"machine": machine, "versions": versions, "runs": {}, "errors": {}, "rates": {}, "tiles": {}}


def _conformance(device: torch.device, deadline: float) -> dict[str, Any]:
    """Runs the kernels' own tests on the GPU; in the dry run some of them, emulated. What failed is not run again."""
    on_card = device.type == "cuda"
    which = ["-n", str(COMPILERS)] if on_card else ["-k", "halves or nibbles_take"]
    command = [sys.executable, "-m", "pytest", "-q", *PLUGINS, "tests/runtime/cuda", *which]
    environment = _environment() | {"TRITON_INTERPRET": "0" if on_card else "1"}
    seconds = (deadline - time.monotonic()) / 2
    if seconds < LEAST_SECONDS:
        return {"error": "not run: out of time"}
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not ended after {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.strip()] or done.stderr.splitlines() or ["no output"]
    return {"passed": done.returncode == 0, "summary": lines[-1], "failures": [x for x in lines if "FAILED" in x]}


def _calls(device: torch.device, deadline: float) -> dict[str, Any]:
    """Measures the error of single denoiser calls; in the dry run the processor's own runtime computes them."""
    return _answer("gpu.calls", ("cuda", "20") if device.type == "cuda" else ("auto", "2"), deadline)


def _limits(device: torch.device, _: float) -> dict[str, Any]:
    return limits(device)


def _quantizing(device: torch.device, deadline: float) -> dict[str, Any]:
    """Compares a quantization computed on the GPU with one of the CPU."""
    return _answer("gpu.quantizing", (device.type, "4" if device.type == "cuda" else "2"), deadline)


def _answer(module: str, arguments: tuple[str, ...], deadline: float) -> dict[str, Any]:
    """The last line that the module's process writes; it has a third of what time is left."""
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS:
        return {"error": "not run: out of time"}
    command = [sys.executable, "-m", module, *arguments]
    environment = {name: value for name, value in _environment().items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=left / 3)
    except subprocess.TimeoutExpired:
        return {"error": f"not ended after {left / 3:.0f} s"}
    if done.returncode:
        return {"error": _message(done.stderr)}
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def _measure(
    document: dict[str, Any], path: Path, name: str, model: str, cases: list[str], deadline: float, device: torch.device
) -> None:
    runs = document["runs"].setdefault(model, {})
    missing = [case for case in cases if "seconds" not in runs.get(_title(case), {}).get(name, {})]
    if not missing:
        return
    left = deadline - time.monotonic()
    reason = "not measured: out of time; run the same command again"
    if left > LEAST_SECONDS:
        print(f"{model} {name}: {', '.join(missing)}; {left:.0f} s left", flush=True)
        rounds = "1" if device.type == "cpu" else "20"
        reason = _work(document, model, [name, model, device.type, rounds, *missing], left) or reason
    for case in missing:
        if "seconds" not in runs.setdefault(_title(case), {}).get(name, {}):
            runs[_title(case)][name] = {"error": reason}
    _write(document, path)


def _sweep(document: dict[str, Any], path: Path, model: str, case: str, deadline: float, device: torch.device) -> None:
    """The heaviest products with other tiles."""
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS or document["tiles"].get(model):
        return
    print(f"{model}: tiles; {left:.0f} s left", flush=True)
    answers, errors, _ = _run("gpu.tile_sweep", [model, device.type, case], left / 2)
    document["tiles"][model] = [json.loads(line) for line in answers.splitlines()]
    if not answers:
        print(errors[-2000:], flush=True)
    _write(document, path)


def _run(module: str, arguments: list[str], seconds: float) -> tuple[str, str, int]:
    """Returns the answers of the module's process, its errors, and its exit status: 0 if its time was over."""
    on_card = "cpu" not in arguments
    environment = _environment() | {"TRITON_INTERPRET": "0" if on_card else "1"}
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(), "", 0
    return done.stdout, done.stderr, done.returncode


def _work(document: dict[str, Any], model: str, arguments: list[str], seconds: float) -> str | None:
    """Takes what the worker says into the document; why it ended early, if it did and not for time."""
    answers, errors, ended = _run("gpu.worker", arguments, seconds)
    for line in answers.splitlines():
        match json.loads(line):
            case {"error": error}:
                document["errors"][model] = error
            case {"rates": rates}:
                document["rates"][model] = rates
            case {"case": case, "row": row, **figures}:
                document["runs"][model].setdefault(case, {})[row] = figures
    if not ended:
        return None
    print(errors[-2000:], flush=True)
    return f"{_message(errors)} (exit status {ended})"


def _message(errors: str) -> str:
    """Returns the last line that names an error, or else the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1])[:200]


def _title(case: str) -> str:
    batch, size = case.split("x")
    return f"batch {batch}, {size}x{size}"


def _environment() -> dict[str, str]:
    paths = [str(HERE), str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _write(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
    path.with_suffix(".md").write_text(table(document), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(HEADLINES), default=list(HEADLINES))
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--budget", type=float, default=780.0, help="seconds; what does not fit is left for a next run")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--dry", action="store_true", help="a tiny denoiser on the processor, kernels emulated")
    return parser.parse_args()


ONCE = {"conformance": _conformance, "calls": _calls, "limits": _limits, "quantizing": _quantizing}
"""Measurements that no denoiser of the cases takes part in; each is made once."""

if __name__ == "__main__":
    main()
