"""--networks on the command line: the plan, the run, and what commands tell of its artifact."""

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

PLAN = ("--method", "dynamic", "--steps", "2", "--num-prompts", "2", "--networks", "denoiser,text_encoders,vae")


def test_they_are_planned_quantized_and_shown(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new"
    command = ("quantize", model, "-o", output, "--prompts", prompts, *PLAN, "--text-encoder-weights", "4")
    plan = " ".join(run(*command, "--dry-run").stdout.split())
    for text in (
        "Linear of text_encoder",
        "8 per token, 16 where they are outliers",
        "Conv2d of vae",
        "text encoders 1",
        "vae 1 3 3",  # PNDM calls twice in a step
        "in floating point: no whole network; of the denoiser, text_encoder, vae norms",
    ):
        assert text in plan
    done = run(*command)
    assert done.exit_code == 0
    assert "; also text_encoders, vae;" in " ".join(done.stderr.split())
    assert "text_encoder: " in done.stdout
    summary = " ".join(run("inspect", output).stdout.split())
    for text in ("text encoder", "linear of text_encoder 4-bit weights", "embedding of text_encoder 8 bits per row"):
        assert text in summary
    assert "vae: decoder.conv_in" in run("inspect", output, "--layers").stdout
    assert run("verify", output).exit_code == 0
    assert run("generate", output, "a red cat", "-o", tmp_path / "images", "--steps", "2").exit_code == 0


def test_bad_networks_end_with_status_2(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--networks", "vae")
    assert result.exit_code == 2
    assert "it must name denoiser" in result.stderr
