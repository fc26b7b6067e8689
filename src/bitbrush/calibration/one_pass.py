"""Activation ranges from one pass of the full-precision model: one for all steps, or one per step."""

from collections.abc import Mapping
from functools import reduce

from bitbrush.calibration.observe import Calibration, Observations
from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.histogram import Histogram
from bitbrush.timeline.schedule import ActivationSchedule


def static_schedules(
    calibration: Calibration, observations: Observations, counts: Mapping[float, int] | None = None
) -> dict[str, ActivationSchedule]:
    """Computes one range per layer for all steps, from the union of the observations.

    Args:
        calibration: Layers and range estimator.
        observations: Observed inputs by timestep.
        counts: Weight of each timestep's histogram; 0 if missing. None weights every timestep with 1.

    Returns:
        Schedules by layer name.
    """
    everything = InputObserver()
    counts = counts if counts is not None else dict.fromkeys(observations, 1)
    for name in calibration.names:
        histograms = [observations[t].histogram(name).times(count) for t, count in counts.items()]
        everything.histograms[name] = reduce(Histogram.merge, histograms)
    any_step = next(iter(observations))
    qparams = calibration.qparams(everything, any_step, (any_step,))
    return {name: ActivationSchedule.static(layer_qparams) for name, layer_qparams in qparams.items()}


def one_shot_schedules(calibration: Calibration, observations: Observations) -> dict[str, ActivationSchedule]:
    """Computes one range per layer and timestep, from a single pass."""
    planned = tuple(observations)
    return by_layer({t: calibration.qparams(observer, t, planned) for t, observer in observations.items()})


def by_layer(by_step: Mapping[float, Mapping[str, QParams]]) -> dict[str, ActivationSchedule]:
    """Regroups quantization parameters by timestep and layer into one schedule per layer."""
    names = next(iter(by_step.values()))
    return {name: ActivationSchedule.of({t: qparams[name] for t, qparams in by_step.items()}) for name in names}
