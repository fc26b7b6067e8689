"""Two gloo processes that share quantizations and a benchmark: what a single one makes, and no hang when one fails."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.store import WEIGHTS
from bitbrush.artifact.tensors import layer_tensors
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.rounding import reconstruction
from bitbrush.rounding.nearest import RoundedLayer, with_weights
from bitbrush.session.journal import Journal
from bitbrush.session.offload import CPU
from bitbrush.session.outputs import work_folder
from bitbrush.session.ranks import RankError
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import carried, pending, prompt_batches
from tests.artifact.pipelines import PROMPTS
from tests.fake_card import fake_card

WORLD = 2
ITERATIONS = 15
"""Of block reconstruction: sixty take long."""
LEFT_OUT = ["mid_block.*", "up_blocks.*"]
BRIEF = {"steps": 3, "num_prompts": 2, "batch_size": 1, "rounding": "nearest", "exclude": LEFT_OUT}
JOBS: dict[str, dict[str, Any]] = {
    "progressive": BRIEF,
    "one-shot": {**BRIEF, "method": "one-shot"},
    "split": {**BRIEF, "batch_size": 2},
    "learned": {**BRIEF, "batch_size": 2, "rounding": "learned"},
}


def quantized(
    folder: Path, keys: Mapping[str, Any], work: Path | None = None, device: torch.device = CPU
) -> Quantization:
    recipe = bitbrush.METHODS[keys.get("method", "pcr")].recipe(keys)
    pipe = bitbrush.load_full_precision(folder / "model").to(device)
    return bitbrush.quantize(pipe, recipe, PROMPTS, work=work)


def tensors_of(made: Quantization) -> dict[str, Tensor]:
    """All that a job decides; weights as unpacked integers."""
    tensors = {key: value for layer in made.outcome.layers for key, value in layer_tensors(layer).items()}
    return {**tensors, **{f"{layer.name}.weight": layer.weight.w_q for layer in made.outcome.layers}}


def in_group(rank: int, folder: Path, tasks: Sequence[str]) -> None:
    """Runs the functions named ``tasks`` in one process, and writes the error that one ends with to a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORLD, timeout=timedelta(minutes=5)
    )
    for task in tasks:
        try:
            globals()[task](rank, folder)
        except (ValueError, OSError) as error:
            error_file(folder, task, rank).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        except Exception:
            error_file(folder, task, rank).write_text(traceback.format_exc(), encoding="utf-8")
            raise


def error_file(folder: Path, task: str, rank: int) -> Path:
    return folder / f"{task}-{rank}.error"


def errors_of(folder: Path, task: str) -> list[str]:
    """The errors with which the processes ended ``task``, by rank; empty where they came to its end."""
    files = [error_file(folder, task, rank) for rank in range(WORLD)]
    return [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]


def together(folder: Path, tasks: Sequence[str]) -> None:
    """Runs ``tasks`` in a group of processes. Starting one takes longer than any task, so one group runs them all."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=in_group, args=(rank, folder, tasks)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()  # only one that a timeout found


def all_jobs(rank: int, folder: Path) -> None:
    """JOBS; and the last once more, ended after some pieces and run again."""
    reconstruction.ITERATIONS = ITERATIONS
    for name, keys in JOBS.items():
        made = quantized(folder, keys)
        assert made.processes == WORLD
        save_file(tensors_of(made), folder / f"{name}-{rank}.safetensors")
    write, left = Journal.write, 12

    def write_or_fail(journal: Journal, piece: str, tensors: dict[str, Tensor]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("ended")
        write(journal, piece, tensors)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "write", write_or_fail)
        with pytest.raises(OSError, match="ended"):
            quantized(folder, JOBS["learned"], folder / "work")
    resumed = quantized(folder, JOBS["learned"], folder / "work")
    save_file(tensors_of(resumed), folder / f"resumed-{rank}.safetensors")
    with pytest.MonkeyPatch.context() as patched, fake_card(patched) as gpu:
        on_gpu = quantized(folder, JOBS["learned"], device=gpu)
    save_file(tensors_of(on_gpu), folder / f"gpu-{rank}.safetensors")


@pytest.fixture(scope="module")
def shared(_one_tiny_pipe: StableDiffusionPipeline, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made of JOBS, and how they measured an artifact."""
    folder = tmp_path_factory.mktemp("shared")
    _one_tiny_pipe.save_pretrained(folder / "model")
    shutil.copytree(saved, folder / "candidate")
    (folder / "bench.txt").write_text("\n".join((*PROMPTS, "a green owl")), encoding="utf-8")
    together(folder, ["all_jobs", "measure", "failures"])
    assert errors_of(folder, "all_jobs") == ["", ""]
    return folder


@pytest.fixture(scope="module")
def single(shared: Path) -> dict[str, Quantization]:
    """Quantizations by a single process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reconstruction, "ITERATIONS", ITERATIONS)
        return {name: quantized(shared, keys) for name, keys in JOBS.items() if name != "split"}


def test_processes_on_gpus_give_what_they_give_on_the_cpu(shared: Path) -> None:
    """Histograms, moments of rounding and gradients come from a GPU's tensors and go back to them."""
    expected, on_gpu = made_by(shared, "learned"), made_by(shared, "gpu")
    assert on_gpu.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in on_gpu.items())


def made_by(shared: Path, name: str) -> dict[str, Tensor]:
    """What the first process made, the second the same to the last bit."""
    first, second = (load_file(shared / f"{name}-{rank}.safetensors") for rank in range(WORLD))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    return first


@pytest.mark.parametrize("name", ["progressive", "one-shot"])
def test_whole_batches_give_a_single_processs_artifact(
    shared: Path, single: dict[str, Quantization], name: str
) -> None:
    made, expected = made_by(shared, name), tensors_of(single[name])
    assert made.keys() == expected.keys()
    assert [key for key in made if not torch.equal(made[key], expected[key])] == []


def test_a_split_batch_gives_a_single_processs_artifact_of_smaller_batches(
    shared: Path, single: dict[str, Quantization]
) -> None:
    """Each process calls the denoiser with one prompt, as a single process does whose batches have one.

    Histograms merge exactly, so the artifacts are equal. Batches of two in a single process are no reference: kernels
    may sum a larger batch in another order, and one value that is rounded the other way changes all later ranges.
    """
    made, expected = made_by(shared, "split"), tensors_of(single["progressive"])
    assert made.keys() == expected.keys()
    assert [key for key in made if not torch.equal(made[key], expected[key])] == []


def test_learned_rounding_is_a_single_processs_where_it_begins(shared: Path, single: dict[str, Quantization]) -> None:
    """Sums add up in another order; what that turns in one block, all that follow see in their inputs.

    Moments off by 1e-5, a hundred times float32's rounding, change 0.4 % of these integers; other prompts 5 to 50 %.
    """
    made, expected = made_by(shared, "learned"), tensors_of(single["learned"])
    begin = [key for key in made if key.startswith(("conv_in.w", "down_blocks.0.", "time_embedding.")) and ".w" in key]
    assert len(begin) > 15
    for key in begin:
        if key.endswith(".weight"):
            assert (made[key] != expected[key]).float().mean() < 0.02, key
        elif key.endswith(".weight_scale"):
            torch.testing.assert_close(made[key], expected[key], rtol=1e-3, atol=0)


def test_learned_rounding_is_as_good_as_a_single_processs(shared: Path, single: dict[str, Quantization]) -> None:
    pipe = bitbrush.load_full_precision(shared / "model")
    with carried(pipe, "unet", prompt_batches(["a green car"] * 4, 1, 4), SamplingPlan(steps=1)) as trajectories:
        (call,) = pending(trajectories)
    wanted = call.run(pipe.unet)[0]
    errors = []
    for tensors in (made_by(shared, "learned"), tensors_of(single["learned"])):
        output = call.run(with_weights(pipe.unet, rounded_layers(tensors)))[0]
        errors.append(float((output - wanted).square().mean()))
    assert max(errors) < 1.3 * min(errors)
    assert errors[0] < 0.05 * float(wanted.square().mean())


def rounded_layers(tensors: Mapping[str, Tensor]) -> dict[str, RoundedLayer]:
    layers = {}
    for name in (key.removesuffix(".weight") for key in tensors if key.endswith(".weight")):
        qparams = WeightQParams(tensors[f"{name}.weight_scale"], tensors[f"{name}.weight_zero_point"], bits=8)
        weight = QuantizedWeight(tensors[f"{name}.weight"], qparams)
        layers[name] = RoundedLayer(weight, tensors.get(f"{name}.bias"))
    return layers


def test_resumed_it_comes_to_the_same(shared: Path) -> None:
    made, whole = made_by(shared, "resumed"), made_by(shared, "learned")
    assert all(torch.equal(made[key], whole[key]) for key in whole)


def test_work_of_another_number_of_processes_is_left_alone(shared: Path) -> None:
    with pytest.raises(
        ValueError, match="holds unfinished work for another number of processes; go on with the command that began it"
    ):
        quantized(shared, JOBS["learned"], shared / "work")


def failures(rank: int, folder: Path) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(BRIEF)
    pipe = bitbrush.load_full_precision(folder / "model")
    with pytest.raises(ValueError, match="the 2 processes were given different prompts; give all of them the same"):
        bitbrush.quantize(pipe, recipe, PROMPTS if rank == 0 else PROMPTS[::-1])
    with pytest.raises(ValueError, match="num_prompts is 1 for 2 processes, of which each needs one; start fewer"):
        quantized(folder, {**BRIEF, "num_prompts": 1})
    calls = 0

    def spoil(_: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        return (args[0] * float("nan"), *args[1:]) if rank == 1 and calls == 3 else args

    pipe.unet.register_forward_pre_hook(spoil)
    bitbrush.quantize(pipe, recipe, PROMPTS)


def measure(_: int, folder: Path, output: str = "bench") -> None:
    candidates, prompts = {"candidate": str(folder / "candidate")}, [str(folder / "bench.txt")]
    protocol = {"prompts": prompts, "clip": "emoji-clip", "num_images": 3, "batch_size": 2, "latents": 2}
    bitbrush.benchmark(str(folder / "model"), candidates, folder / output, **protocol)


def test_a_benchmark_finds_what_a_single_process_finds(shared: Path) -> None:
    assert errors_of(shared, "measure") == ["", ""]
    measure(0, shared, "alone")
    ours, theirs = (json.loads((shared / name / "results.json").read_text("utf-8")) for name in ("bench", "alone"))
    for key in ("reference", "floor", "candidates", "networks", "protocol"):
        assert without_times(ours[key]) == without_times(theirs[key])


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key != "seconds_per_image"}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def test_one_that_fails_ends_all_by_name(shared: Path) -> None:
    first, second = errors_of(shared, "failures")
    assert second.startswith("NonFiniteError: layer conv_in was given values from nan to nan at step")
    assert first == f"{RankError.__name__}: process 1 of 2 failed: {second}"


def test_torchrun_shares_the_command(shared: Path, single: dict[str, Quantization]) -> None:
    """One summary, and the artifact of a single process."""
    (shared / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    options = ["--method", "pcr", "--prompts", "prompts.txt", "--steps", "3", "--num-prompts", "2", "--batch-size", "1"]
    options += ["--rounding", "nearest", *(option for pattern in LEFT_OUT for option in ("--exclude", pattern))]
    command = [*torchrun, "-m", "bitbrush", "quantize", "model", "-o", "artifact", *options]
    ended = subprocess.run(command, cwd=shared, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("saved: artifact") == 1
    assert ended.stderr.count("2 prompts shared by 2 processes") == 1
    assert not work_folder(shared / "artifact").exists()
    assert bitbrush.read_manifest(shared / "artifact")["processes"] == WORLD
    whole = bitbrush.save(single["progressive"], shared / "whole", base_model="model")
    ours, theirs = (folder / "unet" / WEIGHTS for folder in (shared / "artifact", whole))
    assert ours.read_bytes() == theirs.read_bytes()
