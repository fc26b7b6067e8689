"""Speed, memory and load time of denoisers on this CPU: bitbrush's executors and what people use instead.

    python benchmarks/unet_cpu.py --models sd15 --latents 32,64      # calls; -h lists the rest
    python benchmarks/unet_cpu.py --models emoji-sd --generate 50    # whole generations
    python benchmarks/unet_cpu.py --models sd15 --latents 64 --per-operator --subjects "eager bf16"

Batch 2 (guidance), all cores. Every subject runs in a process of its own; the two baselines stay alive and take turns
with it. Finished subjects are kept in the results file: the same command goes on where it ended. The peers' packages
are in benchmarks/requirements-peers.txt; one that is not installed has a row that says so.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cpu.models import MODELS
from cpu.process import SubjectError, Worker, prepare
from cpu.registry import BF16, FP32, SUBJECTS
from cpu.results import Results, Row
from cpu.rounds import Measured, facts, measure_calls, measure_generations
from cpu.subjects import Subject, Task
from cpu.table import table

BASELINES = (FP32, BF16)


def main() -> None:
    options = _options()
    options.scratch.mkdir(parents=True, exist_ok=True)
    results = Results(options.results)
    for name in options.models:
        model = MODELS[name]
        for size in options.latents or model.latents:
            task = Task(model, size, options.scratch)
            if options.per_operator:
                _print_operators(task, options)
                continue
            key = f"{task.key} x{options.generate}" if options.generate else task.key
            _measure_all(task, key, results, options)
            print(f"\n{key}\n{table(results.runs.get(key, {}))}", flush=True)


def _measure_all(task: Task, key: str, results: Results, options: argparse.Namespace) -> None:
    missing = [name for name in options.subjects if not results.has(key, name)]
    if not missing:
        return
    with ExitStack() as stack:
        anchors = [stack.enter_context(_worker(SUBJECTS[name], task)) for name in options.anchors]
        for name in missing:
            if name in options.anchors:
                rows = _baseline(anchors, name, options)
            else:
                rows = _subject(anchors, name, task, options)
            results.put(key, rows)
            print(f"{key} {name}: {_brief(rows)}", flush=True)


def _baseline(anchors: Sequence[Worker], name: str, options: argparse.Namespace) -> dict[str, Row]:
    measured = _turns(anchors, options)
    worker = next(one for one in anchors if one.name == name)
    return _rows(measured, [name], worker, options)


def _subject(anchors: Sequence[Worker], name: str, task: Task, options: argparse.Namespace) -> dict[str, Row]:
    try:
        with _worker(SUBJECTS[name], task) as worker:
            measured = _turns([*anchors, worker], options)
            rows = [row for row in measured.seconds if row not in options.anchors]
            return _rows(measured, rows, worker, options)
    except SubjectError as error:
        return {name: {"error": str(error)}}


def _worker(subject: Subject, task: Task) -> Worker:
    log = Path(tempfile.gettempdir()) / f"{subject.name} {task.key}.log"
    if subject.prepare is not None:
        prepare(subject.name, task, log)
    return Worker(subject.name, task, log)


def _turns(workers: Sequence[Worker], options: argparse.Namespace) -> Measured:
    if options.generate:
        return measure_generations(workers, options.generate, options.rounds, options.lock)
    return measure_calls(workers, options.rounds, options.lock)


def _rows(measured: Measured, names: Sequence[str], worker: Worker, options: argparse.Namespace) -> dict[str, Row]:
    beside = {anchor: _rounded(measured.seconds[anchor]) for anchor in options.anchors}
    beside_cpu = {anchor: _rounded(measured.cpu_seconds[anchor]) for anchor in options.anchors}
    about = {**facts(worker), "idle_cores": round(measured.idle_cores, 3)}
    rows: dict[str, Row] = {
        name: {
            "seconds": _rounded(measured.seconds[name]),
            "cpu_seconds": _rounded(measured.cpu_seconds[name]),
            "beside": beside,
            "beside_cpu": beside_cpu,
        }
        for name in names
    }
    rows[worker.name] |= about
    return rows


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(one, 4) for one in seconds]


def _brief(rows: dict[str, Row]) -> str:
    return "; ".join(row.get("error") or f"{min(row['seconds']):.2f} s at best" for row in rows.values())


def _print_operators(task: Task, options: argparse.Namespace) -> None:
    for name in options.subjects:
        try:
            with _worker(SUBJECTS[name], task) as worker:
                milliseconds = worker.ask(profile=options.timestep)["milliseconds"]
        except SubjectError as error:
            print(f"{task.key} {name}: {error}")
            continue
        print(f"\n{task.key} {name}, timestep {options.timestep}: milliseconds by kind of operator")
        for kind, spent in milliseconds.items():
            print(f"{kind:28} {spent:9.1f}  {spent / milliseconds['total']:6.1%}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument("--models", type=_names(MODELS), default=["sd15"], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--latents", type=_sizes, help="sizes, such as 32,64; each model has its own default")
    parser.add_argument("--subjects", type=_names(SUBJECTS), default=list(SUBJECTS), help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--anchors", type=_names(SUBJECTS), default=list(BASELINES), help="subjects kept alive")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--generate", type=int, default=0, metavar="STEPS", help="time generations of STEPS steps")
    parser.add_argument("--per-operator", action="store_true", help="print where the time of one call goes instead")
    parser.add_argument("--timestep", type=int, default=501, help="of the call that --per-operator looks at")
    parser.add_argument("--results", type=Path, default=here / "results" / "unet-cpu.json")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "unet-cpu", help="20 GB of models"
    )
    parser.add_argument("--lock", type=Path, help="file that is locked while a round is timed")
    return parser.parse_args()


def _names(known: object) -> object:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:  # type: ignore[operator]
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")  # type: ignore[call-overload]
        return names

    return parse


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    main()
