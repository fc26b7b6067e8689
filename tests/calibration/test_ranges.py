"""Ranges over the steps: what progressive calibration sees, counted, and against a plain restart for every step."""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from bitbrush.calibration.observe import (
    ActivationBits,
    Calibration,
    Observations,
    observe,
)
from bitbrush.calibration.one_pass import one_shot_schedules, static_schedules
from bitbrush.calibration.progressive import calibrate_progressively
from bitbrush.calibration.relaxing import Relaxation
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS, LayerSpec, layer_specs, set_weight
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.histogram import NonFiniteError
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.rounding.nearest import round_all_to_nearest
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall, carried, planned_timesteps, prompt_batches

PROMPTS = ("a red cat", "two blue dogs on the left", "a green tree", "a house")
PLAN = SamplingPlan(steps=4)
Schedules = dict[str, ActivationSchedule]


def calibration(pipe: StableDiffusionPipeline, bits: int = 8, relaxation: Relaxation | None = None) -> Calibration:
    specs = layer_specs(pipe.unet, UNET, weight_bits=4, exclude=("*.conv_shortcut",))
    return Calibration(specs, ActivationBits(bits, relaxation), RangeEstimator.MIN_MAX)


def with_few_bits(denoiser: nn.Module, specs: Sequence[LayerSpec]) -> nn.Module:
    rounded = copy.deepcopy(denoiser)
    for name, layer in round_all_to_nearest(denoiser, specs, WeightRange.MIN_MAX).items():
        set_weight(rounded.get_submodule(name), layer.weight.dequantize(), layer.bias)
    return rounded


def progressively(
    pipe: StableDiffusionPipeline,
    what: Calibration,
    *,
    denoiser: nn.Module | None = None,
    plan: SamplingPlan = PLAN,
    batch_size: int = 2,
    session: Session | None = None,
) -> Schedules:
    with carried(pipe, "unet", prompt_batches(PROMPTS, 0, batch_size), plan) as trajectories:
        return calibrate_progressively(denoiser or pipe.unet, what, trajectories, session or Session())


def observed(
    pipe: StableDiffusionPipeline, what: Calibration, *, plan: SamplingPlan = PLAN, batch_size: int = 2, **record: Any
) -> Observations:
    with carried(pipe, "unet", prompt_batches(PROMPTS, 0, batch_size), plan) as trajectories:
        return observe(pipe.unet, what, trajectories, Session(), **record)


def use_scheduler(pipe: StableDiffusionPipeline, name: str) -> None:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)


class Restarted:
    """The published procedure, plainly: for every call of the plan the pipeline is run anew from its beginning.

    Calls before ``until`` have quantized inputs, call ``until`` is watched, those after it are of no interest.
    """

    def __init__(self, pipe: StableDiffusionPipeline, denoiser: nn.Module, names: Sequence[str]) -> None:
        self.pipe = copy.copy(pipe)
        self.pipe.unet = copy.deepcopy(denoiser)
        self.qparams: list[dict[str, QParams]] = []
        self.seen: dict[float, dict[str, tuple[float, float]]] = defaultdict(dict)
        self.index, self.until, self.timestep = -1, 0, 0.0
        self.pipe.unet.register_forward_pre_hook(self._begin)
        for name in names:
            self.pipe.unet.get_submodule(name).register_forward_pre_hook(partial(self._watch, name))

    def _begin(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.index, self.timestep = self.index + 1, float(args[1])

    def _watch(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.index < self.until:
            return (fake_quantize(args[0], self.qparams[self.index][name]), *args[1:])
        if self.index == self.until:
            low, high = self.seen[self.timestep].get(name, (0.0, 0.0))
            x = args[0]
            self.seen[self.timestep][name] = (min(low, float(x.min())), max(high, float(x.max())))
        return None

    def run(self, planned: Sequence[float], bits: Callable[[str, int], int]) -> list[dict[str, QParams]]:
        for self.until, timestep in enumerate(planned):
            if timestep in planned[: self.until]:
                self.qparams.append(self.qparams[planned.index(timestep)])
                continue
            for batch in prompt_batches(PROMPTS, 0, 2):
                self.index = -1
                self.pipe(
                    list(batch.prompts),
                    num_inference_steps=PLAN.steps,
                    generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
                    output_type="latent",
                )
            place = sorted(set(planned), reverse=True).index(timestep)
            self.qparams.append(
                {n: QParams.from_range(*seen, bits(n, place)) for n, seen in self.seen[timestep].items()}
            )
        return self.qparams


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_each_step_is_calibrated_on_what_the_quantized_steps_produced(
    tiny_pipe: StableDiffusionPipeline, scheduler: str
) -> None:
    use_scheduler(tiny_pipe, scheduler)
    what = calibration(tiny_pipe, 5, Relaxation(0.5, 1.0, 7))
    denoiser = with_few_bits(tiny_pipe.unet, what.layers)
    planned = planned_timesteps(tiny_pipe, "unet", PLAN)
    schedules = progressively(tiny_pipe, what, denoiser=denoiser)

    plainly = Restarted(tiny_pipe, denoiser, list(schedules))
    edges = UNET.high_precision_layers(tiny_pipe.unet)
    all_qparams = plainly.run(
        planned, lambda name, place: HIGH_PRECISION_ACTIVATION_BITS if name in edges else 7 if place >= 2 else 5
    )
    # A timestep that is visited twice keeps the parameters of its first visit.
    expected = dict(reversed([*zip(planned, all_qparams, strict=True)]))
    assert schedules == {n: ActivationSchedule.of({t: g[n] for t, g in expected.items()}) for n in schedules}

    one_shot = one_shot_schedules(what, observed(tiny_pipe, what))
    later = [n for n in schedules if schedules[n].qparams[1:] != one_shot[n].qparams[1:]]
    assert len(later) > 0.8 * len(schedules)  # all but text and time; else the comparison would have shown nothing


def test_two_calls_per_step_and_prompt_batch(tiny_pipe: StableDiffusionPipeline) -> None:
    for scheduler, expected in [("PNDMScheduler", PLAN.steps + 1), ("DDIMScheduler", PLAN.steps)]:
        use_scheduler(tiny_pipe, scheduler)
        visited: list[float] = []
        session = Session()
        with tiny_pipe.unet.register_forward_pre_hook(lambda _, args, to=visited: to.append(float(args[1]))):
            progressively(tiny_pipe, calibration(tiny_pipe), session=session)
        planned = planned_timesteps(tiny_pipe, "unet", PLAN)
        assert len(planned) == expected
        # Both batches are watched, then both go on: 2 x 2 calls at every planned one, the last included.
        assert visited == [timestep for timestep in planned for _ in range(4)]
        assert session.costs.calls == 2 * expected <= 2 * PLAN.steps + 2


@pytest.mark.parametrize(
    "scheduler",
    [
        "PNDMScheduler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    ],
)
def test_every_timestep_of_the_plan_has_a_grid(tiny_pipe: StableDiffusionPipeline, scheduler: str) -> None:
    use_scheduler(tiny_pipe, scheduler)
    what = calibration(tiny_pipe)
    planned = planned_timesteps(tiny_pipe, "unet", PLAN)
    progressive = progressively(tiny_pipe, what)
    one_shot = one_shot_schedules(what, observed(tiny_pipe, what))
    for schedules in (progressive, one_shot):
        assert set(schedules) == {spec.name for spec in what.specs if not spec.name.endswith("conv_shortcut")}
        for schedule in schedules.values():
            assert schedule.timesteps == tuple(sorted(set(planned), reverse=True))
        assert len(set(progressive["conv_out"].qparams)) == len(set(planned))


def test_pndm_repeated_timestep_shares_a_grid_that_covers_both_visits(tiny_pipe: StableDiffusionPipeline) -> None:
    what = calibration(tiny_pipe, 16)
    watched: list[tuple[float, float, float]] = []
    clock: list[float] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda _, args: clock.append(float(args[1])))
    tiny_pipe.unet.conv_in.register_forward_pre_hook(
        lambda _, args: watched.append((clock[-1], float(args[0].min()), float(args[0].max())))
    )
    schedule = one_shot_schedules(what, observed(tiny_pipe, what))["conv_in"]
    twice = [t for t in schedule.timesteps if clock.count(t) == 4]
    assert twice == [schedule.timesteps[1]]
    lows, highs = ([visit[i] for visit in watched if visit[0] == twice[0]] for i in (1, 2))
    assert len(set(lows)) == len(lows) == 4
    assert schedule.at(twice[0]) == QParams.from_range(min(lows), max(highs), 16)


def test_with_very_many_bits_progressive_is_one_shot(tiny_pipe: StableDiffusionPipeline) -> None:
    use_scheduler(tiny_pipe, "DDIMScheduler")  # which visits no timestep twice

    def furthest(bits: int) -> float:
        what = calibration(tiny_pipe, bits)
        progressive = progressively(tiny_pipe, what)
        one_shot = one_shot_schedules(what, observed(tiny_pipe, what))
        assert all(progressive[name].qparams[0] == one_shot[name].qparams[0] for name in one_shot)
        return max(
            abs(a.scale / b.scale - 1)
            for name, schedule in one_shot.items()
            for a, b in zip(progressive[name].qparams, schedule.qparams, strict=True)
        )

    assert furthest(16) < 0.002
    assert furthest(4) > 0.05


def test_relaxed_steps_have_exactly_the_relaxed_bits(tiny_pipe: StableDiffusionPipeline) -> None:
    plan = SamplingPlan(steps=5)
    for normal, relaxed in [(8, 9), (10, 12)]:
        what = calibration(tiny_pipe, normal, Relaxation(0.6, 1.0, relaxed))
        for name, schedule in progressively(tiny_pipe, what, plan=plan, batch_size=4).items():
            bits = [qparams.bits for qparams in schedule.qparams]
            expected = [normal] * 3 + [relaxed] * 2
            if name in UNET.high_precision_layers(tiny_pipe.unet):
                expected = [HIGH_PRECISION_ACTIVATION_BITS for _ in expected]
                assert min(bits) >= 10
            assert bits == expected


def test_a_static_schedule_covers_all_that_was_seen(tiny_pipe: StableDiffusionPipeline) -> None:
    what = calibration(tiny_pipe, 6)
    observations = observed(tiny_pipe, what)
    for name, schedule in static_schedules(what, observations).items():
        seen = [observer.histograms[name] for observer in observations.values()]
        bits = HIGH_PRECISION_ACTIVATION_BITS if name in UNET.high_precision_layers(tiny_pipe.unet) else 6
        whole = QParams.from_range(min(h.low for h in seen), max(h.high for h in seen), bits)
        assert schedule == ActivationSchedule.static(whole)


def test_ranges_do_not_depend_on_how_prompts_are_batched(tiny_pipe: StableDiffusionPipeline) -> None:
    what = calibration(tiny_pipe, 16)

    def both(batch_size: int) -> list[Schedules]:
        one_shot = one_shot_schedules(what, observed(tiny_pipe, what, batch_size=batch_size))
        return [one_shot, progressively(tiny_pipe, what, batch_size=batch_size)]

    # Progressively, float noise moves values over rounding boundaries: by a 16-bit step, not more.
    for singly, together, tolerance in zip(both(1), both(4), (1e-4, 2e-3), strict=True):
        for name, schedule in together.items():
            for a, b in zip(singly[name].qparams, schedule.qparams, strict=True):
                assert a.scale == pytest.approx(b.scale, rel=tolerance)


def test_observing_hands_out_every_call_and_changes_none(tiny_pipe: StableDiffusionPipeline) -> None:
    recorded: list[tuple[int, DenoiserCall]] = []
    observed(tiny_pipe, calibration(tiny_pipe), record=lambda batch, call: recorded.append((batch, call)))
    planned = planned_timesteps(tiny_pipe, "unet", PLAN)
    assert [(batch, call.timestep) for batch, call in recorded] == [(b, t) for t in planned for b in (0, 1)]
    given: list[torch.Tensor] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    for batch in prompt_batches(PROMPTS, 0, 2):
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        tiny_pipe(list(batch.prompts), num_inference_steps=PLAN.steps, generator=generators, output_type="latent")
    in_turn = [call for batch in (0, 1) for b, call in recorded if b == batch]
    assert all(torch.equal(call.args[0], x) for call, x in zip(in_turn, given, strict=True))


@pytest.mark.parametrize("calibrate", [progressively, observed])
def test_nan_names_layer_and_step(tiny_pipe: StableDiffusionPipeline, calibrate: Callable[..., Any]) -> None:
    timesteps: list[float] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda _, args: timesteps.append(float(args[1])))
    tiny_pipe.unet.time_embedding.register_forward_hook(
        lambda _, __, output: output * (float("nan") if timesteps[-1] < 500 else 1)
    )
    message = r"layer down_blocks\.0\.resnets\.0\.time_emb_proj was given .* at step 3 \(timestep 251\)"
    with pytest.raises(NonFiniteError, match=message):
        calibrate(tiny_pipe, calibration(tiny_pipe))


@pytest.mark.parametrize("calibrate", [progressively, observed])
def test_no_hook_is_left_behind(tiny_pipe: StableDiffusionPipeline, calibrate: Callable[..., Any]) -> None:
    calibrate(tiny_pipe, calibration(tiny_pipe))
    with torch.no_grad():
        tiny_pipe.unet.conv_in.bias[0] = float("nan")
    with pytest.raises(NonFiniteError):
        calibrate(tiny_pipe, calibration(tiny_pipe))
    assert not any(module._forward_pre_hooks for module in tiny_pipe.unet.modules())


def test_a_layer_that_is_never_called_is_named(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.unet.unused = nn.Linear(2, 2)
    what = calibration(tiny_pipe)
    observations = observed(tiny_pipe, what)
    for calibrate in (
        lambda: progressively(tiny_pipe, what),
        lambda: one_shot_schedules(what, observations),
        lambda: static_schedules(what, observations),
    ):
        with pytest.raises(ValueError, match="layer unused is never called by the denoiser; exclude it by pattern"):
            calibrate()
