"""`--method auto`: which method, and the test that decided.

δ-SNet where step 0 leaves nothing to improve, `joint` where inputs lag and its Schur complement fits the memory, α-SNet
otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import ILL_CONDITIONED, channel_scales
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.state_layout import StateLayout

SAMPLES_PER_UNKNOWN = 2.0
"""Measured values per unknown of its series that every trajectory and channel must have for δ-SNet."""

EXACT = 1e-3
"""Held-out error of step 0, in standard deviations of the channel, below which its series is as good as the truth."""


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
    """The rule of `--method auto`.

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


def or_joint(choice: MethodChoice, layout: StateLayout, weights: int, *, fits: bool) -> MethodChoice:
    """`joint` instead where all that no output sees are lags of inputs, and its Schur complement fits the memory.

    Parameters
    ----------
    choice : MethodChoice
        Of `choose_method`.
    weights : int
        N_θ.
    fits : bool
        Whether S and the arrays of a trajectory fit.
    """
    if not layout.lags or len(layout.hidden) != len(layout.lags):
        return choice
    if not fits:
        return choice._replace(reason=f"{choice.reason} (joint: {weights} weights are too many for --max-memory.)")
    return MethodChoice("joint", f"the inputs lag. The Schur complement of {weights} weights fits the memory.")
