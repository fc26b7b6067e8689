"""Input that only its meaning makes bad is refused by name before any weights are loaded, and nothing is written."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitbrush.cli import app
from bitbrush.cli.encoding import visible
from bitbrush.cli.options import command_line, lora_files

PLAN = (
    (("--pipeline-argument", "height=N"), "pipeline argument height is 'N'; StableDiffusionPipeline takes int | None"),
    (("--pipeline-argument", "kwargs=1"), "cannot be given 'kwargs'"),
    (("--pipeline-argument", "strength=0.5"), "cannot be given 'strength'"),
    (("--pipeline-argument", "num_inference_steps=3"), "cannot be given 'num_inference_steps'"),
    (("--pipeline-argument", "eta=0.5"), "eta is 0.5, which StableDiffusionPipeline ignores with PNDMScheduler"),
    (("--steps", 1001), "steps is 1001, and PNDMScheduler has at most 1000"),
    (("--scheduler", "lcm", "--steps", 51), "steps is 51, and LCMScheduler has at most 50"),
    (("--scheduler", "flow_euler"), "scheduler is 'flow_euler', but StableDiffusionPipeline"),
    (("--guidance-scale", "nan"), "guidance_scale is nan"),
    (("--guidance-scale", 1e9), "guidance_scale is"),
    (("--seed", 2**64), "--seed"),
)


@pytest.fixture(autouse=True)
def _loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    for place in ("bitbrush.sources.models.load_pipeline", "bitbrush.artifact.loading.load_pipeline"):
        monkeypatch.setattr(place, fail)


@pytest.mark.parametrize(("options", "message"), PLAN)
def test_quantize(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, options: tuple, message: str
) -> None:
    given = ("--prompts", prompts, "--num-prompts", 2)
    stderr = refused("quantize", model, "-o", tmp_path / "new", *given, *options)
    assert message.replace("--seed", "seed") in stderr.replace("--seed", "seed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "message"), PLAN)
def test_generate(refused: Callable[..., str], artifact: Path, tmp_path: Path, options: tuple, message: str) -> None:
    stderr = refused("generate", artifact, "a cat", "-o", tmp_path / "new", *options)
    assert message in stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("digits.json", "9" * 5000),
        ("deep.json", "[" * 100_000),
        ("deep.toml", "a=" + "[" * 100_000),
        ("list.json", "[]"),
    ],
)
def test_recipe_files_are_named(
    refused: Callable[..., str], model: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert name in refused("quantize", model, "-o", tmp_path / "new", "--recipe", tmp_path / name)


@pytest.mark.parametrize("prompt", ["a\0cat", "a \udcff cat", "x" * 20_000])
def test_prompts_that_are_no_text(refused: Callable[..., str], artifact: Path, tmp_path: Path, prompt: str) -> None:
    assert "prompts" in refused("generate", artifact, prompt, "-o", tmp_path / "new")


def test_outputs_within_inputs_are_refused(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    inside = (
        ("quantize", model, "--prompts", prompts, "-o", model / "new"),
        ("quantize", model, "--prompts", prompts, "-o", model),
        ("recalibrate", artifact, "--prompts", prompts, "-o", artifact / "unet" / "new"),
        ("generate", artifact, "a cat", "-o", artifact / "images"),
        ("plans", model, artifact, "--prompts", prompts, "-o", artifact / "plans"),
        ("sensitivity", model, "--prompts", prompts, "-o", model / "s"),
        ("ablate", model, "--prompts", prompts, "-o", model / "a"),
        ("quantize", "emoji-sd", "-o", prompts, "--prompts", prompts),
    )
    for words in inside:
        assert "which is or lies in" in refused(*words)
    assert "--plot is" in refused("inspect", artifact, "--plot", artifact / "bits.svg")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["n" * 300, "x/" * 2000 + "x", "é" * 120])
def test_names_that_no_disk_takes(refused: Callable[..., str], model: Path, tmp_path: Path, name: str) -> None:
    assert "choose a shorter one" in refused("quantize", model, "-o", tmp_path / name)


WRITING = {
    "quantize": ("model", "--prompts", "prompts", "-o"),
    "recalibrate": ("artifact", "--prompts", "prompts", "-o"),
    "generate": ("artifact", "a cat", "-o"),
    "bench": ("model", "artifact", "--prompts", "prompts", "-o"),
    "bench --pictures": ("model", "artifact", "--prompts", "prompts", "-o", "new", "--pictures"),
    "plans": ("model", "artifact", "--prompts", "prompts", "-o"),
    "ablate": ("model", "--prompts", "prompts", "-o"),
    "ablate --markdown": ("model", "--prompts", "prompts", "-o", "new", "--markdown"),
    "sensitivity": ("model", "--prompts", "prompts", "-o"),
    "demo": ("-o",),
    "card": ("artifact", "-o"),
    "inspect --plot": ("artifact", "--plot"),
}
"""Commands, by the option after which a path to write comes last."""


def test_all_options_that_name_a_path_to_write_are_tried() -> None:
    options = {
        (command.callback.__name__, name)
        for command in app.registered_commands
        if command.callback
        for name in ("output", "plot", "pictures", "markdown")
        if name in inspect.signature(command.callback).parameters
    }
    tried = {(words[0], words[1].strip("-") if words[1:] else "output") for words in map(str.split, WRITING)}
    assert tried == options


@pytest.mark.parametrize("line", WRITING)
def test_places_that_take_no_files(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path, line: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    given = {"model": model, "artifact": artifact, "prompts": prompts, "new": tmp_path / "new"}
    words = [given.get(word, word) for word in WRITING[line]]
    before = sorted(tmp_path.rglob("*"))
    for place, reason in (
        (Path("/proc/bitbrush/x.svg"), "/proc is read-only, or not yours to write to; choose another output"),
        (tmp_path / "link" / "x.svg", f"{tmp_path / 'link'} is a link to nothing; choose another output"),
    ):
        stderr = refused(line.partition(" ")[0], *words, place)
        assert str(place) in stderr
        assert reason in stderr
    assert str(tmp_path / "link") in refused(line.partition(" ")[0], *words, tmp_path / "link")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", ["card", "inspect --plot", "ablate --markdown"])
@pytest.mark.parametrize("name", ["folder.svg", "linked.svg", "pipe.svg"])
def test_a_file_replaces_no_folder_and_no_device(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path, line: str, name: str
) -> None:
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "linked.svg").symlink_to(tmp_path / "folder.svg")
    os.mkfifo(tmp_path / "pipe.svg")
    given = {"model": model, "artifact": artifact, "prompts": prompts, "new": tmp_path / "new"}
    command, _, option = line.partition(" ")
    stderr = refused(command, *[given.get(word, word) for word in WRITING[line]], tmp_path / name)
    assert f"{option or '--output'} is {tmp_path / name}, which is no file to replace" in stderr


@pytest.mark.parametrize("name", [".", "..", ""])
def test_an_artifact_needs_a_name(refused: Callable[..., str], model: Path, name: str) -> None:
    assert "give the artifact's folder by its own name" in refused("quantize", model, "-o", name)


@pytest.mark.parametrize("command", ["quantize", "bench"])
def test_nonsense_of_a_launcher(
    refused: Callable[..., str],
    model: Path,
    artifact: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setenv("RANK", "x")
    words = (command, model, *([artifact] if command == "bench" else []), "--prompts", prompts, "-o", tmp_path / "new")
    assert "the environment variable RANK is 'x'" in refused(*words)


def test_seeds_of_all_images_fit(refused: Callable[..., str], artifact: Path, tmp_path: Path) -> None:
    words = ("generate", artifact, "a cat", "-o", tmp_path / "new", "--seed", 2**63 - 1, "--num-images", 2)
    assert "lower --seed" in refused(*words)


def test_control_characters_are_shown_not_sent() -> None:
    assert visible("a\x1b[2Jb\x07\x9b\n é") == "a\\x1b[2Jb\\x07\\x9b\n é"


def test_reports_hold_no_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bitbrush", "bench", str(tmp_path / "my model"), "-o", "x", "NAME=DIR"])
    assert command_line() == "bitbrush bench 'my model' -o x NAME=DIR"


def test_files_of_loras(tmp_path: Path) -> None:
    odd = tmp_path / "a@b"
    odd.touch()
    assert lora_files([str(odd), "x.safetensors@0.5", "y.safetensors"]) == [str(odd), "x.safetensors", "y.safetensors"]
    assert lora_files(None) == []


@pytest.mark.parametrize("digest", ["", "dd22", "g" * 64])
def test_a_cut_digest_is_not_called_an_altered_artifact(refused: Callable[..., str], digest: str) -> None:
    message = refused("verify", "anything", "--sha256", digest)
    assert (
        message
        == f"error: sha256 is {digest!r}; it must be all 64 hexadecimal digits, as `bitbrush quantize` printed them"
    )
