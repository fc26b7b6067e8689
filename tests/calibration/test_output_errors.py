"""Mean errors of the output: nothing of them is left where they were measured, and the steps go on without them."""

from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.calibration.output_errors import OutputErrors
from bitbrush.calibration.ranges import calibrate_progressively
from bitbrush.network.output_correction import OutputCorrection, correct_output
from bitbrush.session.costs import CallCounter
from bitbrush.session.progress import silent
from bitbrush.session.ranks import Ranks
from bitbrush.timeline.trajectory import DenoiserCall, carried, planned_timesteps, prompt_batches
from tests.calibration.test_ranges import PLAN, PROMPTS, calibration, with_few_bits
from tests.thread_ranks import in_threads


def corrected(
    pipe: StableDiffusionPipeline, denoiser: nn.Module, calls: CallCounter, *, bits: int = 4
) -> OutputCorrection:
    errors = OutputErrors(pipe.unet, calls)
    with carried(pipe, "unet", prompt_batches(PROMPTS, 0, 2), PLAN) as trajectories:
        calibrate_progressively(denoiser, calibration(pipe, bits), trajectories, silent, calls, errors=errors)
    return errors.correction()


def test_every_timestep_has_means_for_one_more_call_per_step(tiny_pipe: StableDiffusionPipeline) -> None:
    calls = CallCounter()
    found = corrected(tiny_pipe, with_few_bits(tiny_pipe.unet, calibration(tiny_pipe).layers), calls)
    planned = planned_timesteps(tiny_pipe, "unet", PLAN)
    assert found.timesteps == tuple(sorted(set(planned), reverse=True))
    assert len(set(found.means)) == len(found.timesteps)
    assert {len(means) for means in found.means} == {tiny_pipe.unet.config.out_channels}
    assert calls.per_batch == 3 * len(planned)


def test_the_steps_go_on_from_corrected_outputs(tiny_pipe: StableDiffusionPipeline) -> None:
    """A denoiser that is off by the same everywhere produces the full-precision trajectory."""
    tiny_pipe.scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    seen: list[list[Tensor]] = []
    means: list[Tensor] = []
    for offset in (0.0, 3.0):
        given: list[Tensor] = []
        denoiser = with_few_bits(tiny_pipe.unet, ())
        denoiser.register_forward_pre_hook(lambda _, args, to=given: to.append(args[0].clone()))
        with torch.no_grad():
            denoiser.conv_out.bias += offset
        means.append(torch.tensor(corrected(tiny_pipe, denoiser, CallCounter(), bits=16).means))
        seen.append(given)
    assert torch.allclose(means[1], means[0] + 3.0, atol=1e-3)
    assert all((a - b).abs().max() < 1e-2 * a.abs().max() for a, b in zip(*seen, strict=True))


class Shifted(nn.Module):
    """A denoiser whose answer is its input, and more by ``by`` in each channel."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, sample: Tensor, timestep: float) -> tuple[Tensor]:
        return (sample + self.by.view(-1, 1, 1),)


def call(samples: int, timestep: float = 7.0) -> DenoiserCall:
    return DenoiserCall((torch.randn(samples, 2, 4, 4), timestep), {}, timestep, (timestep,))


def outputs(calls: list[DenoiserCall], by: list[float]) -> list[Any]:
    return [one.run(Shifted(torch.tensor(by))) for one in calls]


def test_nothing_is_left_of_the_mean() -> None:
    errors = OutputErrors(Shifted(torch.zeros(2)), CallCounter())
    calls = [call(3), call(1)]
    for (y,), one in zip(errors.corrected(calls, outputs(calls, [1.0, -2.0])), calls, strict=True):
        assert torch.allclose(y, one.args[0], atol=1e-6)
    denoiser = Shifted(torch.tensor([1.0, -2.0]))
    correct_output(denoiser, errors.correction())
    assert torch.allclose(denoiser(calls[0].args[0], 7.0)[0], calls[0].args[0], atol=1e-6)


def test_visits_of_one_timestep_count_together() -> None:
    errors = OutputErrors(Shifted(torch.zeros(2)), CallCounter())
    for samples, by in ((1, [1.0, 0.0]), (3, [3.0, 4.0])):
        calls = [call(samples)]
        errors.corrected(calls, outputs(calls, by))
    assert torch.allclose(torch.tensor(errors.correction().means), torch.tensor([[2.5, 3.0]]))


def test_processes_share_the_mean() -> None:
    def work(ranks: Ranks) -> OutputCorrection:
        errors = OutputErrors(Shifted(torch.zeros(2)), CallCounter(), ranks)
        calls = [call(1 + 2 * ranks.rank)]
        errors.corrected(calls, outputs(calls, [[1.0, 0.0], [3.0, 4.0]][ranks.rank]))
        return errors.correction()

    first, second = in_threads(2, work)
    assert first == second
    assert torch.allclose(torch.tensor(first.means), torch.tensor([[2.5, 3.0]]))
