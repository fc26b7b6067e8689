"""SIGINT, also twice, and SIGTERM unwind a command once: one line, exit code 130 or 143, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitbrush.cli.signals import Terminated

HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Undoes that a shell ignores SIGINT for commands in the background, which children inherit."""
SCRIPT = (
    HEARING
    + """
import sys, time
from pathlib import Path
import typer
from bitbrush.cli.console import reporting_errors, resumable
from bitbrush.cli.signals import ignore_signals, unwind_on_signals

def work(folder: Path) -> None:
    with resumable():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("unwinding", flush=True)
            time.sleep(1)
            (folder / "cleaned").touch()

app = typer.Typer()
app.command()(reporting_errors(work))
unwind_on_signals()
try:
    app()
finally:
    ignore_signals()
"""
)
EXITS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals between processes")


def test_terminated_is_an_interruption() -> None:
    assert issubclass(Terminated, KeyboardInterrupt)


@pytest.mark.parametrize("first", EXITS)
@pytest.mark.parametrize("second", [None, signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_the_unwinding(
    first: signal.Signals, second: signal.Signals | None, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stdout.readline() == "unwinding\n"
    if second is not None:
        process.send_signal(second)
    _, told = process.communicate(timeout=60)
    code, word = EXITS[first]
    assert process.returncode == code
    assert told == (
        f"{word}; nothing half-written is left behind; run the same command again to go on from what is finished\n"
    )
    assert (tmp_path / "cleaned").exists()


def test_an_ignored_signal_stays_ignored() -> None:
    script = (
        "import signal\nfrom bitbrush.cli.signals import unwind_on_signals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nunwind_on_signals()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


MODULE = "import runpy; runpy.run_module('bitbrush', run_name='__main__')"
COMMANDS = {
    "quantize": ("quantize", "MODEL", "--prompts", "PROMPTS", "--num-prompts", "3", "--steps", "200"),
    "generate": ("generate", "MODEL", "a cat", "--steps", "900"),
    "bench": ("bench", "MODEL", "ARTIFACT", "--prompts", "PROMPTS", "--steps", "500", "--clip", "emoji-clip"),
    "plans": ("plans", "MODEL", "ARTIFACT", "--prompts", "PROMPTS", "--no-recalibration", "--steps", "900,950"),
    "ablate": (
        *("ablate", "MODEL", "--prompts", "PROMPTS", "--num-images", "3", "--clip", "emoji-clip", "--recipes", "pcr"),
        *("--calibration-prompts", "OTHERS", "--num-prompts", "2", "--bits", "W4A8", "--steps", "500"),
    ),
}

ANNOUNCED = ("steps, guidance", "held-out prompts")
"""Words of what commands say before long work."""


@pytest.mark.slow
@pytest.mark.parametrize("number", EXITS)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_cleanly_wherever_they_are(
    command: str, number: signal.Signals, model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "others.txt").write_text("a white horse\na black sheep\n", encoding="utf-8")
    places = {"MODEL": model, "ARTIFACT": artifact, "PROMPTS": prompts, "OTHERS": tmp_path / "others.txt"}
    words = [str(places.get(word, word)) for word in COMMANDS[command]]
    root = tmp_path / "root"
    root.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING + MODULE, *words, "-o", str(root / "output")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stderr is not None
    while not any(words in (line := process.stderr.readline()) for words in ANNOUNCED):
        assert line, "the command ended"
    time.sleep(1)
    for _ in range(2):
        process.send_signal(number)
    _, told = process.communicate(timeout=120)
    code, word = EXITS[number]
    assert process.returncode == code, told
    assert word in told
    assert "Traceback" not in told
    assert not list(root.rglob("*.part"))
