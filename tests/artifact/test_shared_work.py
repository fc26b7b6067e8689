"""Two gloo processes that share a quantization: what a single one makes, and no hang when one of them fails."""

import multiprocessing
import traceback
from collections.abc import Mapping
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
from bitbrush.artifact.tensors import layer_tensors
from bitbrush.timeline.journal import Journal
from bitbrush.timeline.ranks import RankError
from tests.artifact.conftest import PROMPTS

WORLD = 2
BRIEF = {"steps": 3, "num_prompts": 2, "batch_size": 1, "rounding": "nearest"}
JOBS: dict[str, dict[str, Any]] = {
    "progressive": BRIEF,
    "one-shot": {**BRIEF, "method": "one-shot"},
    "split": {**BRIEF, "batch_size": 2},
    "learned": {**BRIEF, "batch_size": 2, "rounding": "learned"},
}


def quantized(folder: Path, keys: Mapping[str, Any], work: Path | None = None) -> Quantization:
    recipe = bitbrush.METHODS[keys.get("method", "pcr")].recipe(keys)
    return bitbrush.quantize(bitbrush.load_full_precision(folder / "model"), recipe, PROMPTS, work=work)


def tensors_of(made: Quantization) -> dict[str, Tensor]:
    """All that a job decides; weights as unpacked integers."""
    tensors = {key: value for layer in made.outcome.layers for key, value in layer_tensors(layer).items()}
    return {**tensors, **{f"{layer.name}.weight": layer.weight.w_q for layer in made.outcome.layers}}


def in_group(rank: int, folder: Path, job: str) -> None:
    """What each process does: runs the function named ``job`` and leaves the error that it ends with, if any."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{job}", rank=rank, world_size=WORLD, timeout=timedelta(minutes=5)
    )
    try:
        globals()[job](rank, folder)
    except (ValueError, OSError) as error:
        (folder / f"{job}-{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    except Exception:
        (folder / f"{job}-{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def together(folder: Path, job: str) -> list[str]:
    """The errors with which the processes ended, by rank; empty ones where they came to the end."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=in_group, args=(rank, folder, job)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [folder / f"{job}-{rank}.error" for rank in range(WORLD)]
    return [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]


def all_jobs(rank: int, folder: Path) -> None:
    for name, keys in JOBS.items():
        made = quantized(folder, keys)
        assert made.processes == WORLD
        save_file(tensors_of(made), folder / f"{name}-{rank}.safetensors")
    # Ended after some pieces and run again it comes to the same.
    write, left = Journal.write, 12

    def write_or_fail(journal: Journal, piece: str, tensors: dict[str, Tensor]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("ended")
        write(journal, piece, tensors)

    Journal.write = write_or_fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="ended"):
        quantized(folder, JOBS["learned"], folder / "work")
    Journal.write = write  # type: ignore[method-assign]
    save_file(tensors_of(quantized(folder, JOBS["learned"], folder / "work")), folder / f"resumed-{rank}.safetensors")


@pytest.fixture(scope="module")
def shared(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made of JOBS."""
    folder = tmp_path_factory.mktemp("shared")
    _one_tiny_pipe.save_pretrained(folder / "model")
    assert together(folder, "all_jobs") == ["", ""]
    return folder


@pytest.fixture(scope="module")
def single(shared: Path) -> dict[str, dict[str, Tensor]]:
    return {name: tensors_of(quantized(shared, keys)) for name, keys in JOBS.items()}


def made_by(shared: Path, name: str) -> dict[str, Tensor]:
    """What the first process made, the second the same to the last bit."""
    first, second = (load_file(shared / f"{name}-{rank}.safetensors") for rank in range(WORLD))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    return first


@pytest.mark.parametrize("name", ["progressive", "one-shot"])
def test_whole_batches_give_a_single_processs_artifact(
    shared: Path, single: dict[str, dict[str, Tensor]], name: str
) -> None:
    made, expected = made_by(shared, name), single[name]
    assert made.keys() == expected.keys()
    assert [key for key in made if not torch.equal(made[key], expected[key])] == []


def test_a_batch_that_is_split_gives_nearly_the_same_grids(shared: Path, single: dict[str, dict[str, Tensor]]) -> None:
    """Histograms sample other elements of a batch of another size."""
    made, expected = made_by(shared, "split"), single["split"]
    scales = [key for key in made if key.endswith("activation_scale")]
    off = torch.cat([(made[key] / expected[key] - 1).abs() for key in scales])
    print("split", off.median(), off.max())
    others = [key for key in made if not key.endswith(("activation_scale", "activation_zero_point"))]
    assert all(torch.equal(made[key], expected[key]) for key in others)


def test_learned_rounding_differs_by_summation_order_alone(shared: Path, single: dict[str, dict[str, Tensor]]) -> None:
    made, expected = made_by(shared, "learned"), single["learned"]
    weights = [key for key in made if key.endswith(".weight")]
    other = torch.cat([(made[key] != expected[key]).flatten().float() for key in weights])
    print("learned", other.mean(), [(key, float((made[key] != expected[key]).float().mean())) for key in weights])
    off = torch.cat([(made[key] / expected[key] - 1).abs() for key in made if key.endswith("weight_scale")])
    print(off.median(), off.max())


def test_resumed_it_comes_to_the_same(shared: Path) -> None:
    made, whole = made_by(shared, "resumed"), made_by(shared, "learned")
    assert all(torch.equal(made[key], whole[key]) for key in whole)


def test_work_of_another_number_of_processes_is_left_alone(shared: Path) -> None:
    with pytest.raises(ValueError, match="holds unfinished work for another number of processes; remove it"):
        quantized(shared, JOBS["learned"], shared / "work")


def failures(rank: int, folder: Path) -> None:
    keys = BRIEF
    if rank == 1:
        pipe = bitbrush.load_full_precision(folder / "model")
    # Different prompts are noticed by both.
    prompts = PROMPTS if rank == 0 else PROMPTS[::-1]
    recipe = bitbrush.METHODS["pcr"].recipe(keys)
    with pytest.raises(ValueError, match="the 2 processes were given different prompts; give all of them the same"):
        bitbrush.quantize(bitbrush.load_full_precision(folder / "model"), recipe, prompts)
    with pytest.raises(ValueError, match="num_prompts is 1 for 2 processes, of which each needs one; start fewer"):
        quantized(folder, {**keys, "num_prompts": 1})
    # One is given NaN in the midst.
    pipe = bitbrush.load_full_precision(folder / "model")
    calls = 0

    def spoil(_: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        return (args[0] * float("nan"), *args[1:]) if rank == 1 and calls == 4 else args

    pipe.unet.register_forward_pre_hook(spoil)
    bitbrush.quantize(pipe, recipe, PROMPTS)


def test_one_that_fails_ends_all_by_name(shared: Path) -> None:
    first, second = together(shared, "failures")
    assert second.startswith("NonFiniteError: layer conv_in was given values from nan to nan at step")
    assert first == f"{RankError.__name__}: process 1 of 2 failed: {second}"
