"""Known physical constants of each trajectory: masses, policy gains. They come from the file being used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError


def known_constants(
    data: Trajectories, names: tuple[str, ...], fallback: Mapping[str, float] | None = None
) -> NDArray[np.float64]:
    """Values of the named constants, shape (B, c): `param_<name>`, then the file's `system`, then `fallback`.

    Raises
    ------
    DataError
        If a constant is found nowhere.
    """
    values = np.empty((len(data), len(names)))
    for column, name in enumerate(names):
        if name in data.parameters:
            values[:, column] = data.parameters[name]
        elif data.system is not None and isinstance(data.system.get(name), int | float):
            values[:, column] = float(data.system[name])
        elif fallback is not None and name in fallback:
            values[:, column] = fallback[name]
        else:
            raise DataError(
                f"the model needs the known constant '{name}'; the file has neither param_{name} nor it in its system.",
                f"Add a data set param_{name}(traj), or choose --model mlp.",
            )
    return values
