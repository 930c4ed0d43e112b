"""What a checkpoint keeps of the uncertainty of θ: a Gaussian around the estimate, and the noise it was judged by.

    /posterior/names, sizes      parameters in order, and how many numbers each holds       (P,), (P,)
    /posterior/factor            lower triangle, row by row, of L:
                                 L Lᵀ = Σ_d information_d / dispersion_d + diag(prior_std)⁻²
    /posterior/deviation, prior_std    standard deviation of each number of θ, and before any data      (N_θ,)
    /posterior/noise_std, correlation, values      each output's noise, how many neighbouring errors say the same,
                                                   and how many values were observed                     (d,)
    /posterior/effective         numbers of θ that the data determines
    /posterior/dispersion        what the information of each output was divided by, so that bands hold the error of the
                                 model as well (d,); one number for all in files of before, and 1 where there is none

A factor with a positive diagonal is that of a positive definite matrix whatever its other entries are, so that no file
can hold a posterior that is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import CheckpointError

FloatArray = NDArray[np.float64]

GROUP = "posterior"

LEVEL, HALF_WIDTH = 0.95, 1.959963984540054
"""Share of a Gaussian that a band or interval holds, and its half width in standard deviations."""

LONGEST_SHOWN = 8
"""Numbers of a parameter that are told one by one; longer ones are weights of networks."""


@dataclass(frozen=True)
class Posterior:
    """θ ~ N(estimate, (L Lᵀ)⁻¹).

    Attributes
    ----------
    names : tuple of str
        Parameters as the model names them, in its order.
    sizes : tuple of int
        Numbers in each; N_θ in all.
    factor : ndarray, shape (N_θ, N_θ)
        L, lower triangular with a positive diagonal.
    deviation, prior_std : ndarray, shape (N_θ,)
        Standard deviation of each number, √(L Lᵀ)⁻¹_ii, and that of the prior.
    noise_std : ndarray, shape (d,)
        Standard deviation of each output's measurement noise, as stated or as estimated.
    correlation : ndarray, shape (d,)
        Neighbouring errors of an output that count as one, at least 1.
    values : ndarray of int, shape (d,)
        Observed values of each output.
    effective : float
        tr(Σ_d information_d / dispersion_d (L Lᵀ)⁻¹): how many numbers of θ the data determines.
    dispersion : ndarray, shape (d,)
        What the information of each output was divided by, at least 1; 1 where its errors at the samples are noise.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    factor: FloatArray
    deviation: FloatArray
    prior_std: FloatArray
    noise_std: FloatArray
    correlation: FloatArray
    values: NDArray[np.int64]
    effective: float
    dispersion: FloatArray

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The group of a checkpoint."""
        width = max(len(name.encode()) for name in self.names)
        return {
            "names": np.array([name.encode() for name in self.names], f"S{width}"),
            "sizes": np.array(self.sizes, np.int64),
            "factor": self.factor[np.tril_indices(len(self.factor))],
            "deviation": self.deviation,
            "prior_std": self.prior_std,
            "noise_std": self.noise_std,
            "correlation": self.correlation,
            "values": self.values,
            "effective": np.array([self.effective]),
            "dispersion": self.dispersion,
        }


def read_posterior(extra: Mapping[str, Mapping[str, NDArray[Any]]], label: str) -> Posterior | None:
    """The posterior in the groups of a checkpoint; None where it has none.

    Parameters
    ----------
    label : str
        What errors call the file.

    Raises
    ------
    CheckpointError
        If an array is missing, has another shape than the others ask for, or holds what no posterior can.
    """
    group = extra.get(GROUP)
    if group is None:
        return None
    names, sizes = _member(group, "names", "S", label), _member(group, "sizes", "iu", label)
    if names.size == 0 or names.shape != sizes.shape or (sizes < 0).any() or sizes.max(initial=0) > 2**31:
        raise _bad(label, "'posterior/sizes' does not give every parameter its size")
    count = int(sizes.sum())
    packed = _floats(group, "factor", (count * (count + 1) // 2,), label)
    outputs = _member(group, "noise_std", "f", label).shape[:1]
    values = _member(group, "values", "iu", label)
    if values.shape != outputs:
        raise _bad(label, f"'posterior/values' has shape {values.shape}, expected {outputs}")
    factor = np.zeros((count, count))
    factor[np.tril_indices(count)] = packed
    if not (np.diagonal(factor) > 0).all():
        raise _bad(label, "'posterior/factor' has a diagonal that is not positive, so that it factors no covariance")
    return Posterior(
        tuple(name.decode("utf-8", "replace") for name in names.tolist()),
        tuple(int(size) for size in sizes),
        factor,
        _floats(group, "deviation", (count,), label, least=0.0),
        _floats(group, "prior_std", (count,), label, least=0.0),
        _floats(group, "noise_std", outputs, label, least=0.0),
        _floats(group, "correlation", outputs, label, least=0.0),
        np.asarray(values, np.int64),
        float(_floats(group, "effective", (1,), label)[0]),
        _dispersion(group, outputs, label),
    )


def _dispersion(group: Mapping[str, NDArray[Any]], outputs: tuple[int, ...], label: str) -> FloatArray:
    """One for each output, whatever age the file is of."""
    if "dispersion" not in group:
        return np.ones(outputs)
    one_for_all = group["dispersion"].shape == (1,)
    found = _floats(group, "dispersion", (1,) if one_for_all else outputs, label, least=1.0)
    return np.broadcast_to(found, outputs).copy()


def _member(group: Mapping[str, NDArray[Any]], name: str, kinds: str, label: str) -> NDArray[Any]:
    if name not in group:
        raise _bad(label, f"there is no '{GROUP}/{name}'")
    values = np.asarray(group[name])
    if values.dtype.kind not in kinds or values.ndim != 1:
        raise _bad(label, f"'{GROUP}/{name}' has type {values.dtype} and shape {values.shape}, expected a plain list")
    return values


def _floats(
    group: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], label: str, least: float = -np.inf
) -> FloatArray:
    values = np.asarray(_member(group, name, "f", label), np.float64)
    if values.shape != shape:
        raise _bad(label, f"'{GROUP}/{name}' has shape {values.shape}, expected {shape}")
    if not np.isfinite(values).all() or (values < least).any():
        raise _bad(label, f"'{GROUP}/{name}' holds values that no {name} can have")
    return values


def _bad(label: str, what: str) -> CheckpointError:
    return CheckpointError(f"{label}: {what}.", "Train it again.")


def describe_posterior(state: Mapping[str, NDArray[Any]], posterior: Posterior) -> dict[str, Any]:
    """What `snet info` says of it, JSON-able."""
    return {
        "level": LEVEL,
        "parameters": named_parameters(state, posterior),
        "numbers": len(posterior.factor),
        "effective": posterior.effective,
        "dispersion": posterior.dispersion.tolist(),
        "noise_std": posterior.noise_std.tolist(),
        "correlation": posterior.correlation.tolist(),
        "values": posterior.values.tolist(),
    }


def named_parameters(state: Mapping[str, NDArray[Any]], posterior: Posterior) -> list[dict[str, Any]]:
    """Scalars and short vectors among the parameters, number by number, JSON-able: name, estimate and half width.

    A network's weights mean nothing one by one and are left out: everything with two axes, or longer than
    `LONGEST_SHOWN`, and vectors that stand beside such a matrix (``layer.bias`` beside ``layer.weight``).
    """
    matrices = {name.rpartition(".")[0] for name in posterior.names if np.ndim(state.get(name, 0.0)) > 1}
    found, begin = [], 0
    for name, size in zip(posterior.names, posterior.sizes, strict=True):
        part = slice(begin, begin + size)
        begin += size
        values = np.asarray(state.get(name, np.zeros(0)), np.float64)
        beside_a_matrix = values.ndim == 1 and name.rpartition(".")[0] in matrices and name.endswith("bias")
        if values.ndim > 1 or size > LONGEST_SHOWN or values.size != size or beside_a_matrix:
            continue
        shown = name.removeprefix("module.")  # where a user's own module stands in ours
        for i, (value, deviation) in enumerate(zip(values.ravel(), posterior.deviation[part], strict=True)):
            found.append(
                {
                    "name": shown if values.ndim == 0 else f"{shown}[{i}]",
                    "estimate": float(value),
                    "half_width": float(HALF_WIDTH * deviation),
                    "prior_std": float(posterior.prior_std[part][i]),
                }
            )
    return found
