"""The posterior of θ at the end of a fit, where the method's equations hold it: kept in the checkpoint."""

from __future__ import annotations

import numpy as np
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.posterior import Posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import NumericalError
from snet_cli.training.arrow import DEFAULT_MEMORY
from snet_cli.training.joint import Joint
from snet_cli.training.method import Method
from snet_cli.training.posterior import MOST_NUMBERS, fits_memory, posterior_of
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.workflows.reporter import Reporter

MEMORY_SHARE = 0.25
"""Share of `--max-memory` for matrices of N_θ² doubles."""

STEPS_WORTH = 4.0
"""What the posterior costs, in iterations of the method: at most three eliminations and the sums over the samples."""

WARM_UP_SHARE = 10.0
"""The same while θ moves alone, whose iterations cost so much less."""


def posterior_at_end(
    method: Method,
    data: Trajectories,
    outputs: tuple[str, ...],
    common: CommonOptions,
    report: Reporter,
    seconds: float,
    each: float,
) -> Posterior | None:
    """The posterior of the θ that is kept; None, with a note, where there is none.

    Parameters
    ----------
    method : Method
        Only `joint` holds the equations for it, and only where all data is in memory.
    data : Trajectories
        The training data, for the noise that it states.
    outputs : tuple of str
        The model's outputs.
    seconds, each : float
        Time that is left, and that the longest iteration took.
    """
    if not isinstance(method, Joint) or not isinstance(method.arrow.source, RelaxedProblem):
        return None
    numbers = sum(p.numel() for p in method.model.parameters())
    memory = DEFAULT_MEMORY if common.max_memory is None else int(MEMORY_SHARE * common.max_memory)
    if numbers == 0:
        return None
    if not fits_memory(numbers, len(outputs), memory):
        why = f"more than {MOST_NUMBERS}" if numbers > MOST_NUMBERS else "too many for --max-memory"
        report.note(f"no confidence is kept: the model has {numbers} weights, {why}; snet evaluate --bands needs it.")
        return None
    if method.warm_up is not None and not method.moved:
        each *= WARM_UP_SHARE
    if method.team.any(report.should_stop() or seconds < STEPS_WORTH * each)[0]:
        report.note("no confidence is kept: the time was up. snet evaluate --bands needs it; --resume computes it.")
        return None
    stated = np.array([data.noise_std.get(name, np.nan) for name in outputs])
    try:
        with torch.no_grad():
            found = posterior_of(
                method.arrow, method.nodes, method.gamma, np.where(stated > 0, stated, np.nan), method.prior_std
            )
    except (NumericalError, torch.linalg.LinAlgError, torch.OutOfMemoryError):  # type: ignore[attr-defined]
        found = None
    if found is None:
        report.note("no confidence is kept: the equations at the end of the fit are singular or not finite.")
    else:
        report.detail(
            f"confidence: the data determines {found.effective:.1f} of {numbers} numbers; noise "
            + ", ".join(f"{name} {noise:.3g}" for name, noise in zip(outputs, found.noise_std, strict=True))
        )
    return found
