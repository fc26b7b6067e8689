"""Progressive calibration, PCR section 3.2 (arXiv 2311.06322): each step observes the output of the quantized steps.

Deviations: latents are carried from step to step, so that a step costs two denoiser calls instead of a restart of the
pipeline. Every step is calibrated, the last included. Ranges cover the whole calibration set, without a moving average.
No older parameters of a step distort its observation.
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
from bitbrush.timeline.trajectory import DenoiserCall, Trajectory, lockstep, pending

PROGRESSIVE_CALLS = 2
"""Denoiser calls of :func:`calibrate_progressively` per denoiser call of the pipeline."""
CALIBRATING = "calibrating"
"""Title of progress reports."""


def calibrate_progressively(
    denoiser: nn.Module, calibration: Calibration, trajectories: Sequence[Trajectory], session: Session
) -> dict[str, ActivationSchedule]:
    """Computes one range per layer and timestep, each observed on the output of the already quantized steps.

    At every step all batches run once with full-precision activations to observe, then once with the new parameters.
    The trajectories continue with the second output. Steps in the journal are not observed again.

    A timestep has one set of parameters. Several calls of it for one sample are parts of a step, e.g. guidance in two
    calls, and the parameters cover all of them. PNDM and Heun come back to a timestep with another sample. Then
    it keeps the parameters of the first visit, because the steps in between were calibrated with them.

    Args:
        denoiser: Denoiser with quantized weights.
        calibration: Layers, their bits, and the range estimator.
        trajectories: Pipeline calls of this process's prompt batches, each suspended at its first denoiser call.
        session: Processes (their histograms are merged at every step), journal, progress and costs.

    Returns:
        Schedules by layer name.
    """
    observed: Observations = {}
    qparams: dict[float, dict[str, QParams]] = {}
    before: DenoiserCall | None = None
    active: dict[str, QParams] = {}
    planned = pending(trajectories)[0].planned
    with (
        quantized_inputs(denoiser, calibration.names, active.get),
        session.progress(CALIBRATING, len(planned)) as advance,
    ):
        for number, calls in enumerate(lockstep(trajectories)):
            timestep, piece = calls[0].timestep, f"step-{number:04d}"
            active.clear()
            if (tensors := session.journal.read(piece)) is not None:
                observed[timestep], qparams[timestep] = step_from_tensors(calibration.names, tensors)
            else:
                observer = observe_step(denoiser, calibration, calls, session)
                if timestep not in qparams or (before is not None and before.is_of_one_step_with(calls[0])):
                    observed.setdefault(timestep, InputObserver()).add(observer)
                    qparams[timestep] = calibration.qparams(observed[timestep], timestep, planned)
                session.journal.write(piece, step_tensors(calibration.names, observed[timestep], qparams[timestep]))
            before = calls[0]
            active.update(qparams[timestep])
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(denoiser))
            session.count_call()
            advance()
            trim()
    return by_layer(qparams)
