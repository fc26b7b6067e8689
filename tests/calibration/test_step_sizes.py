"""Learned step sizes: less error of the guided output than the observed ranges leave, and state that goes on."""

import copy
import math

import torch
from torch import Tensor, nn

from bitbrush.calibration.observe import quantized_inputs
from bitbrush.calibration.probe import guided
from bitbrush.calibration.step_sizes import LARGEST, LEARNING_CALLS, StepSizeLearner, of_first_prompts, scaled
from bitbrush.numerics.affine import QParams, fake_quantize, quantize_straight_through
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import DenoiserCall
from tests.thread_ranks import in_threads

GUIDANCE = 7.5


def test_straight_through_is_what_is_computed_later() -> None:
    x, qparams = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), QParams.from_range(-1.5, 2.0, 4)
    torch.testing.assert_close(
        quantize_straight_through(x, torch.tensor(qparams.scale), qparams), fake_quantize(x, qparams)
    )


def test_gradients_are_those_of_lsq() -> None:
    qparams = QParams(0.5, 4, 4)  # from -2 to 5.5
    x = torch.tensor([-9.0, -1.1, 0.3, 2.74, 8.0], requires_grad=True)
    scale = torch.tensor(qparams.scale, requires_grad=True)
    rows = [torch.autograd.grad(y, [x, scale], retain_graph=True) for y in quantize_straight_through(x, scale, qparams)]
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


CALLS = [call(8, seed) for seed in range(20)]
GRIDS = {"first": QParams.from_range(-4.0, 4.0, 3), "second": QParams.from_range(-1.0, 8.0, 3)}


def error(denoiser: nn.Module, all_qparams: dict[str, QParams]) -> float:
    """Of guided outputs, on calls that nothing was learned on."""
    found = 0.0
    for seed in range(100, 110):
        one = call(8, seed)
        exact = one.run(denoiser)[0]
        with quantized_inputs(denoiser, tuple(all_qparams), all_qparams.get):
            found += float((guided(one.run(denoiser)[0] - exact, 8, GUIDANCE)).square().sum())
    return found


def learner(denoiser: nn.Module, *layers: str, ranks: Ranks = ALONE) -> StepSizeLearner:
    return StepSizeLearner(denoiser, layers, GUIDANCE, 8, Session(ranks=ranks))


def test_learned_grids_leave_less_error_on_other_calls() -> None:
    denoiser = Denoiser()
    all_qparams = learner(denoiser, "first", "second").learned(denoiser, CALLS, GRIDS)
    assert error(denoiser, all_qparams) < 0.7 * error(denoiser, dict(GRIDS))
    assert all(all_qparams[name].zero_point == GRIDS[name].zero_point for name in GRIDS)
    assert all(all_qparams[name].bits == GRIDS[name].bits for name in GRIDS)
    assert all(not parameter.grad for parameter in denoiser.parameters())
    assert not denoiser.first._forward_pre_hooks


def test_only_the_named_layers_learn_and_no_step_size_runs_away() -> None:
    denoiser = Denoiser()
    all_qparams = learner(denoiser, "second").learned(denoiser, 3 * CALLS, GRIDS)
    assert all_qparams["first"] == GRIDS["first"]
    assert all_qparams["second"] != GRIDS["second"]
    assert abs(math.log(all_qparams["second"].scale / GRIDS["second"].scale)) <= LARGEST + 1e-6


def test_a_network_without_errors_changes_nothing_much() -> None:
    """No error has no gradient, and no number becomes NaN."""
    denoiser = Denoiser()
    silent_input = DenoiserCall((torch.zeros(16, 1, 4, 4), 7.0), {}, 7.0, (7.0,))
    with torch.no_grad():
        denoiser.first.bias.zero_()
    assert learner(denoiser, "first", "second").learned(denoiser, [silent_input], GRIDS) == GRIDS


def test_calls_are_those_that_are_told() -> None:
    denoiser, session = Denoiser(), Session()
    StepSizeLearner(denoiser, ["first"], GUIDANCE, 8, session).learned(denoiser, CALLS, GRIDS)
    assert session.costs.calls == LEARNING_CALLS * len(CALLS)


def test_processes_agree_on_what_the_first_learned() -> None:
    fresh = Denoiser()

    def work(ranks: Ranks) -> dict[str, QParams]:
        denoiser = copy.deepcopy(fresh)
        own = [call(8, ranks.rank)]
        return learner(denoiser, "first", "second", ranks=ranks).learned(denoiser, own, GRIDS)

    alone = learner(Denoiser(), "first", "second").learned(Denoiser(), [call(8, 0)], GRIDS)
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


def test_rows_of_lists_are_taken_too() -> None:
    """Z-Image's latents and texts are lists of tensors; texts may differ in length."""
    latents, texts = (
        [torch.full((2, 2), float(i)) for i in range(4)],
        [torch.full((i + 1, 2), float(i)) for i in range(4)],
    )
    part = of_first_prompts(DenoiserCall((latents, torch.ones(4)), {"cap": texts, "rotary": (1, 2)}, 1.0, ()), 2, 1)
    assert [float(x[0, 0]) for x in part.args[0]] == [float(x[0, 0]) for x in part.kwargs["cap"]] == [0.0, 2.0]
    assert part.args[1].shape == (2,)
    assert part.kwargs["rotary"] == (1, 2)


def test_a_scaled_grid_has_the_same_integers() -> None:
    assert scaled(QParams(0.5, 3, 4), 1.25) == QParams(0.625, 3, 4)
