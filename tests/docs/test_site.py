"""Site and package checks find what they look for, and hosted CI runs them."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def check(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".ci" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://example.org/badge.svg">',
        "<style>@import 'https://fonts.example/css';</style>",
        '<p style="background: url(https://example.org/x.png)">',
    ],
)
def test_what_a_page_fetches_is_found(page: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    done = check("site_offline.py", tmp_path)
    assert done.returncode == 1
    assert "index.html: fetches" in done.stderr


def test_links_and_files_of_the_site_are_no_fetches(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a href="https://arxiv.org">x</a><script src="a.js"></script>', encoding="utf-8"
    )
    (tmp_path / "a.css").write_text("p { background: url(x.png) }", encoding="utf-8")
    assert check("site_offline.py", tmp_path).returncode == 0


def test_an_empty_site_is_not_passed(tmp_path: Path) -> None:
    assert check("site_offline.py", tmp_path).returncode == 1


def test_a_wheel_that_lacks_a_file_is_found(tmp_path: Path) -> None:
    files = [path for path in (ROOT / "src" / "bitbrush").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wheel = tmp_path / "whole.whl"
    for left_out in (None, "bitbrush/py.typed"):
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in files:
                name = path.relative_to(ROOT / "src").as_posix()
                if name != left_out:
                    archive.writestr(name, "")
        done = check("wheel_whole.py", wheel)
        assert done.returncode == (1 if left_out else 0)
        assert (f"{left_out} is missing" in done.stderr) == bool(left_out)


def test_hosted_ci_runs_the_readmes_commands_on_every_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [
        step["run"].removesuffix(" PYTHON=python") for job in jobs.values() for step in job["steps"] if "run" in step
    ]
    assert {"make demo", "make test", "make docs"} <= set(steps)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {one.rpartition(" ")[2] for one in project["classifiers"] if ":: 3." in one}
    assert versions == set(jobs["test"]["strategy"]["matrix"]["python"])


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check("site_offline.py", tmp_path / "site").returncode == 0
