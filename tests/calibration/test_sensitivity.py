"""Sensitivities of a tiny pipeline: what they count, what they grow with, and what a disturbed call does."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bitbrush.calibration import sensitivity
from bitbrush.calibration.propagation import Propagation
from bitbrush.calibration.sensitivity import (
    ACTIVATION_CHOICES,
    WEIGHT_CHOICES,
    Measurement,
    Sensitivities,
    measure_sensitivities,
    measured_batch,
    probed_calls,
    segments,
    sensitivity_calls,
    sensitivity_works,
)
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.session.journal import Journal
from bitbrush.session.progress import Advance
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, prompt_batches
from tests.recorded_progress import RecordedProgress

PLAN = SamplingPlan(steps=5)
PIECES = 2 + 4
"""Segments and probed calls of the tests' few."""
BATCH = prompt_batches(("a red cat", "two blue dogs"), 0, 2)[0]
LAYERS = ("conv_in", "mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")


def measurement(pipe: StableDiffusionPipeline) -> Measurement:
    return Measurement(pipe, "unet", PLAN, LAYERS, 8, RangeEstimator.L4, WeightRange.MSE)


def test_more_bits_err_less_and_every_call_is_counted(tiny_pipe: StableDiffusionPipeline) -> None:
    calls: list[None] = []
    tiny_pipe.unet.register_forward_hook(lambda *_: calls.append(None))
    session = Session()
    found = measure_sensitivities(measurement(tiny_pipe), BATCH, session)

    assert len(calls) == session.costs.calls == sensitivity_calls(6)  # PNDM calls once more than it has steps
    assert found.inputs.shape == (6, len(LAYERS), len(ACTIVATION_CHOICES))
    assert found.weights.shape == (len(LAYERS), len(WEIGHT_CHOICES))
    assert len(found.timesteps) == 6
    for errors in (found.inputs.sum(0), found.weights):
        assert (errors[:, 0] > 10 * errors[:, -1]).all()
        assert (errors > 0).all()
    assert found.products[0] == 8 * 8 * 8 * 4 * 9 * 2  # pixels, channels out and in, kernel, guidance


def test_errors_at_unmeasured_calls_lie_between(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "probed_calls", lambda calls: (0, calls - 1))
    inputs = measure_sensitivities(measurement(tiny_pipe), BATCH, Session()).inputs
    logarithm = inputs.log()
    torch.testing.assert_close(logarithm.diff(dim=0), (logarithm[-1] - logarithm[0]).expand(5, -1, -1) / 5)


@torch.no_grad()
def test_a_disturbance_reaches_the_final_latents(tiny_pipe: StableDiffusionPipeline) -> None:
    def plain(_: int, call: DenoiserCall) -> Any:
        return call.run(tiny_pipe.unet)

    def noisy(share: float, index: int, call: DenoiserCall) -> Any:
        (output,) = plain(index, call)
        noise = share * torch.randn(output.shape, generator=torch.Generator().manual_seed(index))
        noise[1::2] = 0  # of the second prompt, both halves
        return (output + noise,)

    propagation = Propagation(tiny_pipe, "unet", PLAN)
    run = propagation.clean(BATCH, plain)
    assert len(run.calls) == len(run.outputs) == 6
    assert propagation.effect(run, range(2, 4), plain, plain).tolist() == [0.0, 0.0]
    first, second = propagation.effect(run, range(2, 4), partial(noisy, 1e-3), plain).tolist()
    assert first > 0
    assert second == 0
    assert propagation.effect(run, range(2, 4), partial(noisy, 2e-3), plain)[0] == pytest.approx(4 * first, rel=0.2)


@pytest.mark.usefixtures("_ten_segments")
def test_segments_cover_all_calls_once_and_are_short_at_the_ends() -> None:
    for calls in (1, 2, 3, 5, 20, 51, 100):
        assert [index for segment in segments(calls) for index in segment] == list(range(calls))
        assert set(probed_calls(calls)) >= {0, calls - 1}
        assert all(set(probed_calls(calls)) & set(segment) for segment in segments(calls))
    assert [len(segment) for segment in segments(51)] == [2, 1, 3, 7, 13, 12, 7, 3, 1, 2]


def test_prompts_to_measure_with_fit_one_batch() -> None:
    prompts = tuple(f"{number} cats" for number in range(12))
    assert [len(measured_batch(prompt_batches(prompts, 0, size)).prompts) for size in (16, 5, 1)] == [8, 5, 1]


class Killed(BaseException):
    pass


def tensors_of(found: Sensitivities) -> dict[str, Tensor]:
    return {"inputs": found.inputs, "weights": found.weights, "products": found.products}


def assert_same(found: Sensitivities, whole: Sensitivities) -> None:
    assert found.timesteps == whole.timesteps
    assert all(torch.equal(one, tensors_of(whole)[name]) for name, one in tensors_of(found).items())


@pytest.fixture(scope="module")
def whole(_one_tiny_pipe: StableDiffusionPipeline) -> Sensitivities:
    return measure_sensitivities(measurement(_one_tiny_pipe), BATCH, Session())


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("piece", range(PIECES))
def test_killed_at_any_piece_it_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline,
    whole: Sensitivities,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
    written: bool,
) -> None:
    journal, write = Journal(tmp_path), Journal.write

    def write_or_die(self: Journal, name: str, tensors: dict[str, Tensor]) -> None:
        if len(self.pieces()) == piece and not written:
            raise Killed
        write(self, name, tensors)
        if len(self.pieces()) == piece + 1:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", write_or_die)
        with pytest.raises(Killed):
            measure_sensitivities(measurement(tiny_pipe), BATCH, Session(journal=journal))
    assert len(journal.pieces()) == piece + written
    session = Session(journal=journal)
    assert_same(measure_sensitivities(measurement(tiny_pipe), BATCH, session), whole)
    assert len(journal.pieces()) == PIECES
    done = piece + written
    segment_calls, probes = (13, 5, 0)[min(done, 2)], 2 * min(4, PIECES - done)
    assert session.costs.calls == 6 + segment_calls + probes  # the clean run is made again


def test_killed_in_the_middle_of_pieces_it_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline, whole: Sensitivities, tmp_path: Path
) -> None:
    """Each run goes a few reports further than the one before."""
    patience = left = 5
    ends, found = 0, None

    @contextmanager
    def progress(_: str, __: int) -> Iterator[Advance]:
        def advance() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        yield advance

    while found is None:
        left = patience = patience + 2
        try:
            found = measure_sensitivities(
                measurement(tiny_pipe), BATCH, Session(progress=progress, journal=Journal(tmp_path))
            )
        except Killed:
            ends += 1
    assert ends > 4
    assert_same(found, whole)


def test_the_plan_is_what_is_reported(tiny_pipe: StableDiffusionPipeline) -> None:
    progress = RecordedProgress(list(sensitivity_works(6, len(BATCH.prompts), len(LAYERS))))
    measure_sensitivities(measurement(tiny_pipe), BATCH, Session(progress=progress))
    progress.require_as_planned()
