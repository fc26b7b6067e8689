"""Rounding of weights to integers: to nearest, or learned by block on recorded full-precision trajectories."""

from dataclasses import replace

from bitbrush.methods.recipe import Rounding
from bitbrush.methods.stage import Stage, StageCalls
from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import LayerSpec
from bitbrush.rounding.learned import COMPENSATED, PUBLISHED, learn_rounding, learning_work
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest
from bitbrush.rounding.samples import (
    RECORDING_CALLS,
    RECORDING_TITLE,
    record_samples,
    recorded_samples,
    sample_pieces,
    sample_shards,
)
from bitbrush.session.progress import PlannedWork

PROCEDURES = {Rounding.LEARNED: COMPENSATED, Rounding.ADAROUND: PUBLISHED}


def record_trajectories(state: QuantizationState) -> QuantizationState:
    """Records the denoiser calls that rounding is learned on."""
    samples = record_samples(state.pipe, state.family, state.batches, state.recipe.plan, state.session)
    return replace(state, samples=samples)


def round_weights(state: QuantizationState) -> QuantizationState:
    """Rounds the weights of every quantized layer; branches have their integers already."""
    specs, recipe = _to_round(state), state.recipe
    if recipe.rounding is Rounding.NEAREST:
        rounded = round_all_to_nearest(state.denoiser, specs, recipe.weight_range)
    else:
        rounded = learn_rounding(
            state.denoiser,
            state.family,
            specs,
            recipe.weight_range,
            state.samples,
            state.session,
            shards=sample_shards(state.batches, len(state.samples), state.session.ranks),
            procedure=PROCEDURES[recipe.rounding],
        )
    factors = {name: RoundedLayer(weight, None) for name, weight in state.factors.items()}
    return replace(state, rounded=rounded | factors, samples=())


def _to_round(state: QuantizationState) -> tuple[LayerSpec, ...]:
    return tuple(spec for spec in state.calibration.layers if spec.name not in state.factors)


def _recording_calls(state: QuantizationState, of_pipeline: int) -> StageCalls:
    recorded = [piece.batch for piece in sample_pieces(state.batches, state.session.ranks)]
    return StageCalls(recorded, RECORDING_CALLS * of_pipeline)


def _learning_work(state: QuantizationState, of_pipeline: int) -> tuple[PlannedWork, ...]:
    procedure = PROCEDURES.get(state.recipe.rounding)
    if procedure is None:
        return ()
    layers = [spec.name for spec in _to_round(state)]
    samples = recorded_samples(sample_pieces(state.batches, state.session.ranks), of_pipeline)
    return (learning_work(state.denoiser, state.family, layers, samples, procedure),)


RECORD_TRAJECTORIES = Stage(
    name="recording",
    summary="Denoiser calls of full-precision trajectories are recorded for learned rounding.",
    run=record_trajectories,
    wanted=lambda state: state.rounded is None and state.recipe.rounding in PROCEDURES,
    calls=_recording_calls,
    title=RECORDING_TITLE,
)
ROUND_WEIGHTS = Stage(
    name="rounding",
    summary="Weights become integers, to nearest or learned block by block.",
    run=round_weights,
    work=_learning_work,
    wanted=lambda state: state.rounded is None,
)
