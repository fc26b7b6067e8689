"""The benchmark's report, in a browser where there is one: no errors, no requests, controls that arrange the pairs."""

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from bitbrush.bench.experiments.bench.report import SHOWN, picture_uri
from bitbrush.cli import app

BROWSER = shutil.which("chromium")


@pytest.fixture(scope="module")
def report(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    _one_tiny_pipe.save_pretrained(folder / "tiny")
    (folder / "animals.txt").write_text("a red cat\na dog <b>& co</b>\nan owl\n")
    options = ["--steps", "2", "--num-images", "3", "--clip", "emoji-clip", "--latents", "3"]
    command = ["bench", str(folder / "tiny"), f"same={folder / 'tiny'}", "gone=nowhere/model"]
    done = CliRunner().invoke(
        app, [*command, "-o", str(folder / "bench"), "--prompts", str(folder / "animals.txt"), *options]
    )
    assert done.exit_code == 0, done.output
    return folder / "bench" / "report.html"


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href", "srcset", "action"} and value]


def test_holds_all_it_shows(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    addresses = _Addresses()
    addresses.feed(page)
    assert addresses.found
    assert all(address.startswith("data:image/") for address in addresses.found)
    assert "default-src 'none'" in page
    assert "a dog &lt;b&gt;&amp; co&lt;/b&gt;" in page
    assert "<b>& co</b>" not in page
    assert "same is not graded, for the images are too few to tell; gone is not measured." in page


def test_large_pictures_are_shown_smaller() -> None:
    rng = np.random.default_rng(0)
    assert picture_uri(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).startswith("data:image/png")
    large = np.repeat(np.repeat(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), 16, 0), 16, 1)
    uri = picture_uri(large)
    assert uri.startswith("data:image/webp")
    assert len(uri) < SHOWN * SHOWN


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [str(BROWSER), *quiet, "--enable-logging=stderr", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return run


@pytest.mark.skipif(BROWSER is None, reason="needs chromium on the path")
def test_a_browser_finds_no_fault_and_arranges_the_pairs(
    report: Path, browse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    seen = browse("--dump-dom", report.as_uri())
    assert "CONSOLE" not in seen.stderr
    pairs = re.findall(r'<article class="pair" [^>]*>', seen.stdout)
    assert len(pairs) == 3
    assert not any(" hidden" in pair for pair in pairs)  # the only candidate is the chosen one
    assert [re.search(r'data-place="(\d)"', pair)[1] for pair in pairs] == ["0", "1", "2"]  # type: ignore[index]
