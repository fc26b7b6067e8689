"""One artifact that was tampered with, loaded and run: what came of it, within a time limit; shared by the fuzzers.

A tiny pipeline in the published shape of Stable Diffusion keeps a trial under half a second.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import diffusers
import torch
import transformers

import bitbrush
from bitbrush.artifact.folder import CARD, file_digests
from bitbrush.artifact.manifest import ArtifactError, manifest_digest
from tests.artifact.pipelines import PNDM, PROMPTS, Case, pipeline, stable_diffusion

SECONDS = 10
RESULTS = Path(__file__).parents[1] / "results"
UNET = {
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
REFUSED, SAME, OTHER = "ArtifactError", "loads, same image", "loads, other digest"
TRACEBACK, HANG, SILENT = "traceback", "hang", "silently accepted"
FAILURES = (TRACEBACK, HANG, SILENT)
"""Outcomes that must not occur."""
FINE = (REFUSED, SAME, OTHER)
LETTERS = dict(zip("ASOTHX", (REFUSED, SAME, OTHER, TRACEBACK, HANG, SILENT), strict=True))
"""Outcomes by the letter that stands for them in a record."""

Tamper = Callable[[Path], None]


class Hang(BaseException):
    """A trial took longer than its limit."""


def quiet() -> None:
    """Silences the libraries' reports, so that a run prints its own."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def make_artifact(folder: Path) -> Path:
    """Saves a quantized tiny pipeline; its images are the same each time."""
    pipe = pipeline(Case(stable_diffusion("StableDiffusionPipeline", UNET, "PNDMScheduler", PNDM)))
    keys = {"steps": 2, "num_prompts": 1, "rounding": "nearest", "exclude": ["*attn2.to_k"], "method": "pcr"}
    return bitbrush.save(bitbrush.quantize(pipe, PROMPTS[:1], **keys), folder, base_model="someone/tiny")


def image_of(folder: Path) -> torch.Tensor:
    """Loads an artifact and generates an image in two steps."""
    pipe = bitbrush.load(folder, runtime="reference")
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="pt").images


class Trials:
    """Outcomes of trials against one artifact."""

    def __init__(self, original: Path) -> None:
        self.original = original
        self._digest, self._image = manifest_digest(original), image_of(original)

    def outcome(self, tamper: Tamper) -> tuple[str, str]:
        """Returns the outcome of a trial, and the message or traceback that explains it."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(self.original, Path(folder) / "artifact"))
            tamper(copy)
            try:
                with _within(SECONDS):
                    image = image_of(copy)
            except ArtifactError as error:
                return REFUSED, str(error).replace(folder, "")
            except Hang:
                return HANG, f"more than {SECONDS} seconds"
            except Exception:  # noqa: BLE001 - what must not happen is recorded, whatever it is
                return TRACEBACK, traceback.format_exc()[-1500:].replace(folder, "")
            return self._loaded(copy, image)

    def _loaded(self, copy: Path, image: torch.Tensor) -> tuple[str, str]:
        if torch.equal(image, self._image):
            return SAME, ""
        if not bool(image.isfinite().all()):
            return SILENT, "the image holds NaN"
        return (SILENT, "the image differs") if manifest_digest(copy) == self._digest else (OTHER, "")


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raises Hang after seconds of computing, or twelve times as many on a clock that others share."""

    def stop(*_: Any) -> None:
        raise Hang

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(12 * seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def rehash(folder: Path) -> None:
    """Writes the hashes of what the folder holds into its manifest, as someone who tampers with it would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"] = {name: digest for name, digest in file_digests(folder).items() if name != CARD}
    path.write_text(json.dumps(manifest), encoding="utf-8")


class Record:
    """Outcome of every case, written after each, so that a killed run goes on; failures are repeated by the next run.

    A case during which the process died counts as a hang.
    """

    def __init__(self, name: str, facts: dict[str, Any], kinds: list[str]) -> None:
        self.path = RESULTS / f"reliability-{name}.json"
        self.kinds = kinds
        self.head = {"command": f"python -m benchmarks.reliability.{name}", **facts}
        self.each, self.messages = ["."] * len(kinds), {}
        if self.path.exists():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            if all(earlier.get(key) == value for key, value in self.head.items()):
                self.each = list(earlier["each"])
                self.messages = {int(number): message for number, message in earlier["failures"].items()}

    def open_cases(self) -> list[int]:
        """Returns the numbers of cases without an outcome, or with one that must not occur."""
        return [number for number, letter in enumerate(self.each) if LETTERS.get(letter) not in FINE]

    def set(self, number: int, outcome: str, message: str) -> None:
        """Notes the outcome of a case."""
        self.each[number] = next(letter for letter, name in LETTERS.items() if name == outcome)
        self.messages.pop(number, None)
        if outcome in FAILURES:
            self.messages[number] = f"{self.kinds[number]}: {outcome}: {message}"
        counts = Counter(LETTERS.get(letter, "to do") for letter in self.each)
        by_kind: dict[str, Counter[str]] = {}
        for kind, letter in zip(self.kinds, self.each, strict=True):
            by_kind.setdefault(kind.partition(",")[0], Counter())[LETTERS.get(letter, "to do")] += 1
        document = {
            **self.head,
            "outcomes": dict(counts),
            "by_kind": by_kind,
            "failures": self.messages,
            "letters": LETTERS,
            "each": "".join(self.each),
        }
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.path)


def seed_of(*parts: Any) -> int:
    """Returns a seed that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def run(name: str, cases: list[tuple[str, Tamper]], facts: dict[str, Any], judge: Callable[[str, str], str]) -> int:
    """Runs the cases that a record lacks, prints the counts, and returns the number of failures.

    Args:
        name: Name of the record.
        cases: Kind and tampering of each case.
        facts: What determines the cases; a record of others is begun anew.
        judge: Outcome of a kind, given the outcome of its trial.
    """
    quiet()
    record = Record(name, facts, [kind for kind, _ in cases])
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(make_artifact(Path(folder) / "artifact"))
        for number in record.open_cases():
            kind, tamper = cases[number]
            record.set(number, HANG, "the process died")
            outcome, message = trials.outcome(tamper)
            record.set(number, judge(kind, outcome), message or outcome)
            if number in record.messages:
                print(number, record.messages[number][-400:], flush=True)
    print(dict(Counter(LETTERS[letter] for letter in record.each)))
    return len(record.messages)
