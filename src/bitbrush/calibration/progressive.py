"""Progressive calibration, PCR section 3.2 (arXiv 2311.06322): each step observes the output of the quantized steps.

Deviations: latents are carried from step to step, so that a step costs two denoiser calls instead of a restart of the
pipeline. Every step is calibrated, the last included. Ranges cover the whole calibration set, without a moving average.
No older parameters of a step distort its observation.
"""

from collections.abc import Sequence

from torch import nn

from bitbrush.calibration.kept_steps import step_from_tensors, step_tensors
from bitbrush.calibration.observe import Calibration, observe_step, quantized_inputs
from bitbrush.calibration.one_pass import by_layer
from bitbrush.numerics.affine import QParams
from bitbrush.session.allocator import trim
from bitbrush.session.session import Session
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall, Trajectory, lockstep, pending

CALIBRATING = "calibrating"
"""Title of progress reports."""


def progressive_calls(timesteps: Sequence[float]) -> int:
    """Counts the denoiser calls of :func:`calibrate_progressively` for the timesteps of a pipeline's calls."""
    return len(timesteps) + len(set(timesteps))


def calibrate_progressively(
    denoiser: nn.Module, calibration: Calibration, trajectories: Sequence[Trajectory], session: Session
) -> dict[str, ActivationSchedule]:
    """Computes one range per layer and timestep, each observed on the output of the already quantized steps.

    At every step all batches run once with full-precision activations to observe, then once with the new parameters.
    The trajectories continue with the second output. Schedulers such as PNDM and Heun call the denoiser twice at a
    timestep. Its parameters are those of the first call: the steps in between were calibrated on what these gave.
    Steps in the journal are not observed again.

    Args:
        denoiser: Denoiser with quantized weights.
        calibration: Layers, their bits, and the range estimator.
        trajectories: Pipeline calls of this process's prompt batches, each suspended at its first denoiser call.
        session: Processes (their histograms are merged at every step), journal, progress and costs.

    Returns:
        Schedules by layer name.
    """
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
            if timestep not in qparams:
                qparams[timestep] = _step_qparams(denoiser, calibration, calls, planned, session, piece)
            active.update(qparams[timestep])
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(denoiser))
            session.count_call()
            advance()
            trim()
    return by_layer(qparams)


def _step_qparams(
    denoiser: nn.Module,
    calibration: Calibration,
    calls: Sequence[DenoiserCall],
    planned: Sequence[float],
    session: Session,
    piece: str,
) -> dict[str, QParams]:
    """Observes the calls of one step and computes every layer's parameters, or reads them from the journal."""
    if (tensors := session.journal.read(piece)) is not None:
        return step_from_tensors(calibration.names, tensors)
    observer = observe_step(denoiser, calibration, calls, session)
    qparams = calibration.qparams(observer, calls[0].timestep, planned)
    session.journal.write(piece, step_tensors(calibration.names, qparams))
    return qparams
