"""What held-out samples say of a discretisation that was given: the error of its series, the noise of exact data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import Samples, channel_scales
from snet_cli.spectral.selection import choose_discretisation
from snet_cli.training.method_choice import predicts_exactly
from snet_cli.training.node_inputs import jump_times
from snet_cli.training.relaxed_data import known_start_mask
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.step_zero import start_of_outputs

FloatArray = NDArray[np.float64]


def held_out_error(
    data: Trajectories, layout: StateLayout, *, order: int, elements: int, known_start: bool, seed: int
) -> FloatArray:
    """Error of each output (d,) at samples that a series of this order does not see; NaN where none can be spared.

    `StepZero.noise` holds it where the discretisation was searched for; this is for one that was given.
    """
    is_known, values = known_start_mask(data, layout.states)
    selection = choose_discretisation(
        data.start,
        data.end,
        Samples(data.trajectory_of_row(), data.time, data.outputs),
        start_of_outputs(np.where(is_known & known_start, values, np.nan), layout),
        order=order,
        elements=elements,
        jumps=jump_times(data.inputs.sampled, len(data)),
        seed=seed,
    )
    return selection.channel_error


def noise_if_exact(
    data: Trajectories, layout: StateLayout, *, order: int, elements: int, known_start: bool, seed: int
) -> FloatArray:
    """Noise of each output (d,) beside a discretisation that was given: the held-out error of exact data, else NaN.

    Elsewhere that error may be what a coarse series misses, which is no noise.
    """
    error = held_out_error(data, layout, order=order, elements=elements, known_start=known_start, seed=seed)
    return error if predicts_exactly(error, channel_scales(data.outputs)[1]) else np.full(error.shape, np.nan)
