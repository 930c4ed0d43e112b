"""Order and elements for α-SNet: as fine as the samples allow, because R holds what they do not determine.

The search of step 0 (`spectral.selection`) takes the coarsest series that the samples cannot tell from a finer one;
under noise that is far too coarse for the residual, whose discretisation error then exceeds the noise: on the vehicle
with three harmonics, noise 0.05 and 25 samples it chooses 9 unknowns, and the forecast error over the training horizon
is fifty times that of 25 unknowns.
"""

from __future__ import annotations

MOST_REFINED = 3.0
"""Unknowns of the series, relative to what step 0 chose: below that, more of them only cost time."""

ENOUGH_SAMPLES = 4.0
"""Samples per unknown from which step 0's choice stands: they average the noise below what its series leaves out."""

HIDDEN_SAMPLES = 3.0
"""Samples per unknown where states are hidden: their series has no samples of its own that could ask for less, and R
alone shapes it. On the recorded tanks the choice of step 0, 8 of them, doubles the training rollout's error."""

HIGHEST_ORDER = 24
"""Orders beyond this on one element gain nothing that more elements do not gain more cheaply."""


def refine_for_alpha(
    order: int, elements: int, samples: int, *, exact: bool = False, hidden: bool = False
) -> tuple[int, int]:
    """Order and elements of the longest trajectory for α-SNet.

    Parameters
    ----------
    order, elements : int
        What step 0 chose.
    samples : int
        Sample times of the longest trajectory.
    exact : bool
        Whether step 0's held-out error is below `method_choice.EXACT` of every channel's deviation: then its choice
        stands.
    hidden : bool
        Whether there are states that no output determines: then dense data gets more elements of the same order.

    Returns
    -------
    order, elements : int
        At most one unknown per sample and three times those of step 0 (a third of the samples where states are
        hidden), and never fewer than step 0's.
    """
    unknowns = order * elements + 1
    if not exact and hidden and samples >= HIDDEN_SAMPLES * unknowns:
        return order, round(samples / (HIDDEN_SAMPLES * order))
    if exact or samples >= ENOUGH_SAMPLES * unknowns:
        return order, elements
    wanted = max(unknowns, min(samples, int(MOST_REFINED * unknowns)))
    refined = max(order, round((wanted - 1) / elements))
    if refined <= HIGHEST_ORDER:
        return refined, elements
    pieces = -(-refined // HIGHEST_ORDER)
    return max(order, round(refined / pieces)), elements * pieces
