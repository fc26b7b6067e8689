"""Learned step sizes: less error of the guided output than the observed ranges leave, and state that goes on."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.calibration.probe import guided
from bitbrush.calibration.ranges import calibrate_progressively, quantized_inputs
from bitbrush.calibration.step_sizes import LARGEST, LEARNING_CALLS, StepSizeLearner, of_first_prompts, scaled
from bitbrush.numerics.affine import AffineGrid, fake_quantize, quantize_straight_through
from bitbrush.session.costs import CallCounter
from bitbrush.session.journal import Journal
from bitbrush.session.progress import silent
from bitbrush.session.ranks import Ranks
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall, carried, prompt_batches
from tests.calibration.test_ranges import PLAN, PROMPTS, calibration, with_few_bits
from tests.thread_ranks import in_threads

GUIDANCE = 7.5


def test_straight_through_is_what_is_computed_later() -> None:
    x, grid = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), AffineGrid.from_range(-1.5, 2.0, 4)
    torch.testing.assert_close(quantize_straight_through(x, torch.tensor(grid.scale), grid), fake_quantize(x, grid))


def test_gradients_are_those_of_lsq() -> None:
    grid = AffineGrid(0.5, 4, 4)  # from -2 to 5.5
    x = torch.tensor([-9.0, -1.1, 0.3, 2.74, 8.0], requires_grad=True)
    scale = torch.tensor(grid.scale, requires_grad=True)
    rows = [torch.autograd.grad(y, [x, scale], retain_graph=True) for y in quantize_straight_through(x, scale, grid)]
    assert [float(of_x[i]) for i, (of_x, _) in enumerate(rows)] == [0, 1, 1, 1, 0]
    expected = [-4.0, -2 + 2.2, 1 - 0.6, 5 - 5.48, 11.0]
    torch.testing.assert_close(torch.stack([of_scale for _, of_scale in rows]), torch.tensor(expected))


class Denoiser(nn.Module):
    """Two layers on latents, called like a U-Net, with an outlier among the inputs of the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, sample: Tensor, timestep: float) -> tuple[Tensor]:
        h = torch.tanh(self.first(sample.flatten(1)))
        h = torch.cat([h[:, :-1], 8 * h[:, -1:].relu() ** 3], 1)
        return (self.second(h).view_as(sample),)


def call(prompts: int, seed: int) -> DenoiserCall:
    latents = torch.randn(prompts, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return DenoiserCall((torch.cat([latents, latents + 0.1]), 7.0), {}, 7.0, (7.0,))


GRIDS = {"first": AffineGrid.from_range(-4.0, 4.0, 3), "second": AffineGrid.from_range(-1.0, 8.0, 3)}


def error(denoiser: nn.Module, grids: dict[str, AffineGrid]) -> float:
    """Of guided outputs, on calls that nothing was learned on."""
    found = 0.0
    for seed in range(100, 110):
        one = call(8, seed)
        exact = one.run(denoiser)[0]
        with quantized_inputs(denoiser, tuple(grids), grids.get):
            found += float((guided(one.run(denoiser)[0] - exact, 8, GUIDANCE)).square().sum())
    return found


def learner(denoiser: nn.Module, *layers: str, ranks: Ranks | None = None) -> StepSizeLearner:
    more = {} if ranks is None else {"ranks": ranks}
    return StepSizeLearner(denoiser, layers, GUIDANCE, 8, CallCounter(), **more)


def test_learned_grids_leave_less_error_on_other_calls() -> None:
    denoiser = Denoiser()
    learning, grids = learner(denoiser, "first", "second"), dict(GRIDS)
    for seed in range(20):
        grids = learning.learned(denoiser, call(8, seed), GRIDS)
    assert error(denoiser, grids) < 0.7 * error(denoiser, dict(GRIDS))
    assert all(grids[name].zero_point == GRIDS[name].zero_point for name in GRIDS)
    assert all(grids[name].bits == GRIDS[name].bits for name in GRIDS)
    assert all(not parameter.grad for parameter in denoiser.parameters())
    assert not denoiser.first._forward_pre_hooks


def test_only_the_named_layers_learn_and_no_step_size_runs_away() -> None:
    denoiser = Denoiser()
    learning = learner(denoiser, "second")
    for seed in range(60):
        grids = learning.learned(denoiser, call(8, seed), GRIDS)
    assert grids["first"] == GRIDS["first"]
    assert grids["second"] != GRIDS["second"]
    assert float(learning.state()["u"].abs().max()) <= LARGEST


def test_a_network_without_errors_changes_nothing_much() -> None:
    """No error has no gradient, and no number becomes NaN."""
    denoiser = Denoiser()
    silent_input = DenoiserCall((torch.zeros(16, 1, 4, 4), 7.0), {}, 7.0, (7.0,))
    with torch.no_grad():
        denoiser.first.bias.zero_()
    grids = learner(denoiser, "first", "second").learned(denoiser, silent_input, GRIDS)
    assert grids == GRIDS


def test_state_goes_on_where_it_was() -> None:
    denoiser = Denoiser()
    whole, again = learner(denoiser, "first", "second"), learner(denoiser, "first", "second")
    whole.learned(denoiser, call(8, 0), GRIDS)
    again.set_state(whole.state())
    for seed in (1, 2):
        assert whole.learned(denoiser, call(8, seed), GRIDS) == again.learned(denoiser, call(8, seed), GRIDS)


def test_processes_agree_on_what_the_first_learned() -> None:
    fresh = Denoiser()

    def work(ranks: Ranks) -> dict[str, AffineGrid]:
        denoiser = copy.deepcopy(fresh)
        return learner(denoiser, "first", "second", ranks=ranks).learned(denoiser, call(8, ranks.rank), GRIDS)

    alone = learner(Denoiser(), "first", "second").learned(Denoiser(), call(8, 0), GRIDS)
    assert in_threads(2, work) == [alone, alone]


def test_rows_of_the_first_prompts_are_taken_of_both_halves() -> None:
    rows = torch.arange(6.0)
    shared = torch.arange(4.0).view(4, 1)
    given = DenoiserCall(
        (rows.view(6, 1), torch.tensor(3.0)), {"text": rows.view(6, 1) * 2, "more": {"ids": [rows, shared]}}, 3.0, ()
    )
    part = of_first_prompts(given, 3, 2)
    assert part.args[0].flatten().tolist() == [0, 1, 3, 4]
    assert part.args[1] == 3.0
    assert part.kwargs["text"].flatten().tolist() == [0, 2, 6, 8]
    assert part.kwargs["more"]["ids"][0].tolist() == [0, 1, 3, 4]
    assert part.kwargs["more"]["ids"][1] is shared


def test_a_scaled_grid_has_the_same_integers() -> None:
    assert scaled(AffineGrid(0.5, 3, 4), 1.25) == AffineGrid(0.625, 3, 4)


Calibrated = Callable[..., dict[str, ActivationSchedule]]


@pytest.fixture
def calibrated(tiny_pipe: StableDiffusionPipeline) -> Calibrated:
    what = calibration(tiny_pipe, 4)
    denoiser = with_few_bits(tiny_pipe.unet, what.layers)

    def made(*, calls: CallCounter | None = None, **more: Any) -> dict[str, ActivationSchedule]:
        counter = calls or CallCounter()
        names = [spec.name for spec in what.layers if not spec.edge]
        learning = StepSizeLearner(tiny_pipe.unet, names, GUIDANCE, 2, counter)
        with carried(tiny_pipe, "unet", prompt_batches(PROMPTS, 0, 2), PLAN) as trajectories:
            return calibrate_progressively(denoiser, what, trajectories, silent, counter, step_sizes=learning, **more)

    return made


def test_progressive_calibration_goes_on_with_what_was_learned(
    calibrated: Calibrated, tiny_pipe: StableDiffusionPipeline
) -> None:
    calls = CallCounter()
    schedules = calibrated(calls=calls)
    assert calls.per_batch == (2 + LEARNING_CALLS) * 5
    edges = {spec.name for spec in calibration(tiny_pipe).layers if spec.edge}
    with _without_learning():
        plain = calibrated()
    for name, schedule in schedules.items():
        first, other = schedule.grids[0], plain[name].grids[0]  # of the same latents
        assert (first.scale == other.scale) == (name in edges)


def test_a_calibration_taken_up_again_learns_the_same(calibrated: Calibrated, tmp_path: Any) -> None:
    journal = Journal(tmp_path)
    whole = calibrated(journal=journal)
    for piece in journal.pieces()[3:]:
        (tmp_path / f"{piece}.safetensors").unlink()
    assert calibrated(journal=journal) == whole


@contextmanager
def _without_learning() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepSizeLearner, "learned", lambda self, denoiser, call, grids: dict(grids))
        yield
