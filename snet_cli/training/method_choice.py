"""`--method auto`: which method, and the test that decided.

Joint Gauss-Newton wherever nothing keeps it from being used (`why_not_joint`); else δ-SNet where step 0 leaves nothing
to improve, and α-SNet otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import ILL_CONDITIONED, channel_scales
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.starts import free_states
from snet_cli.training.state_layout import StateLayout

SAMPLES_PER_UNKNOWN = 2.0
"""Measured values per unknown of its series that every trajectory and channel must have for δ-SNet."""

MOST_WORK = 1e12
"""Products for one Schur complement, N_θ² for each residual, beyond which a step of joint takes about a minute of one
core: the first-order methods, whose iterations cost N_θ a residual, have learned before joint has begun."""

EXACT = 1e-3
"""Held-out error of step 0, in standard deviations of the channel, below which its series is as good as the truth."""


def predicts_exactly(error: NDArray[np.float64], spread: NDArray[np.float64]) -> bool:
    """Whether step 0 predicts held-out samples as well as the truth would, from errors and deviations (d,)."""
    return bool(np.isfinite(error).all() and (error < EXACT * spread).all())


class MethodChoice(NamedTuple):
    """Registry name of the method, and one sentence that says why."""

    method: str
    reason: str


def samples_per_unknown(mesh: Mesh, data: Trajectories) -> NDArray[np.float64]:
    """Measured values per unknown of the series, for each trajectory and channel: shape (B, d)."""
    count = np.zeros((mesh.trajectories, data.outputs.shape[1]))
    np.add.at(count, data.trajectory_of_row(), np.isfinite(data.outputs).astype(np.float64))
    unknowns = np.diff(mesh.first_element) * mesh.basis.order + 1
    ratio: NDArray[np.float64] = count / unknowns[:, None]
    return ratio


def choose_method(
    mesh: Mesh,
    data: Trajectories,
    *,
    condition: float,
    held_out_error: NDArray[np.float64],
    hidden: tuple[str, ...] = (),
    determined: bool = True,
) -> MethodChoice:
    """The rule of `--method auto` where it is not joint.

    Parameters
    ----------
    mesh : Mesh
        Of step 0.
    data : Trajectories
    condition : float
        Largest condition number of step 0 (`StepZero.condition`).
    held_out_error : ndarray, shape (d,)
        Error of step 0 at samples that it did not see (`StepZero.noise`); NaN where none was held out: then this test
        is failed, because nothing shows that the series is right.
    hidden : tuple of str
        States that no output measures directly or through others.
    determined : bool
        Whether y = C x determines x where nothing is hidden.
    """
    if hidden or not determined:
        what = f"nothing measures {', '.join(hidden)}" if hidden else "the outputs do not determine the states"
        return MethodChoice("alpha", f"{what}.")
    ratio = samples_per_unknown(mesh, data)
    worst = np.unravel_index(int(np.argmin(ratio)), ratio.shape)
    channel = data.output_names[worst[1]]
    if ratio[worst] < SAMPLES_PER_UNKNOWN:
        return MethodChoice(
            "alpha",
            f"trajectory '{data.ids[worst[0]]}' has {ratio[worst]:.2g} samples of '{channel}' per unknown"
            f" of its series, fewer than {SAMPLES_PER_UNKNOWN:g}.",
        )
    if condition > ILL_CONDITIONED:
        return MethodChoice(
            "alpha",
            f"step 0 is ill-conditioned ({condition:.3g}, above {ILL_CONDITIONED:g}).",
        )
    relative = held_out_error / channel_scales(data.outputs)[1]
    if not np.isfinite(relative).all():
        return MethodChoice("alpha", "no held-out sample shows how exact step 0 is.")
    j = int(np.argmax(relative))
    found = f"step 0's held-out error is {relative[j]:.2g} standard deviations of '{data.output_names[j]}'"
    if relative[j] >= EXACT:
        return MethodChoice("alpha", f"{found}, not below {EXACT:g}.")
    return MethodChoice("delta", f"{found}, below {EXACT:g}, and every trajectory is densely sampled.")


def why_not_joint(layout: StateLayout, weights: int, residuals: int, *, fits: bool) -> str | None:
    """What keeps joint Gauss-Newton from being the method of `--method auto`; None where nothing does.

    Parameters
    ----------
    layout : StateLayout
    weights, residuals : int
        N_θ, and n for each node of each element.
    fits : bool
        Whether S and the arrays of a trajectory fit the memory.
    """
    if hidden := [layout.states[i] for i in free_states(layout)]:
        return f"nothing measures {', '.join(hidden)}, which takes several starts"
    if not fits:
        return f"{weights} weights are too many for its Schur complement or --max-memory"
    if residuals * weights**2 > MOST_WORK:
        return f"a step on {residuals} residuals and {weights} weights takes too long"
    return None
