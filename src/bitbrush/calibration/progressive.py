"""Progressive calibration, PCR section 3.2 (arXiv 2311.06322): each step sees what the quantized steps before produced.

Deviations: latents are carried from step to step, so it costs two denoiser calls per step instead of restarting the
pipeline for each; every step is calibrated, the last included; ranges are those of the whole calibration set, no
moving average; no older parameters of a step distort what is observed at it.
"""

from collections.abc import Sequence

from torch import nn

from bitbrush.calibration.kept_steps import step_from_tensors, step_tensors
from bitbrush.calibration.observe import Calibration, Observations, observe_step, quantized_inputs
from bitbrush.calibration.one_pass import by_layer
from bitbrush.network.inputs import InputObserver
from bitbrush.numerics.affine import QParams
from bitbrush.session.allocator import trim
from bitbrush.session.session import Session
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import Trajectory, lockstep, pending

PROGRESSIVE_CALLS = 2
"""Denoiser calls of :func:`calibrate_progressively` for each that the pipeline makes."""
CALIBRATING = "calibrating"
"""Title under which it reports progress."""


def calibrate_progressively(
    denoiser: nn.Module, calibration: Calibration, trajectories: Sequence[Trajectory], session: Session
) -> dict[str, ActivationSchedule]:
    """Returns one range per layer and timestep, each observed on what the already quantized steps produced.

    At every step all batches run once with full-precision activations to observe, then once with the new parameters;
    the trajectories go on with that output. A timestep that the scheduler visits twice (PNDM, Heun) has one set of
    parameters, from what both calls saw. A step that the journal holds is not observed again.

    Args:
        denoiser: The denoiser with quantized weights.
        calibration: The layers, their bits, and how ranges are found.
        trajectories: Pipeline calls of this process's prompt batches, each at its first denoiser call.
        session: Processes (their histograms are merged at every step), journal, progress and costs.
    """
    observed: Observations = {}
    qparams: dict[float, dict[str, QParams]] = {}
    active: dict[str, QParams] = {}
    planned = pending(trajectories)[0].planned
    with (
        quantized_inputs(denoiser, calibration.names, active.get),
        session.progress(CALIBRATING, len(planned)) as advance,
    ):
        for number, calls in enumerate(lockstep(trajectories)):
            timestep, piece = calls[0].timestep, f"step-{number:04d}"
            active.clear()
            if (kept := session.journal.read(piece)) is not None:
                observed[timestep], qparams[timestep] = step_from_tensors(calibration.names, kept)
            else:
                observer = observed.setdefault(timestep, InputObserver())
                observer.add(observe_step(denoiser, calibration, calls, session))
                qparams[timestep] = calibration.qparams(observer, timestep, planned)
                session.journal.write(piece, step_tensors(calibration.names, observer, qparams[timestep]))
            active.update(qparams[timestep])
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(denoiser))
            session.count_call()
            advance()
            trim()
    return by_layer(qparams)
