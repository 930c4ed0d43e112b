"""Small trajectories and checkpoints with everything in them, and ways to tamper with their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import save_trajectories

Change = Callable[[h5py.File], Any]


def sample_trajectories(seed: int = 0, trajectories: int = 4, samples: int = 12) -> Trajectories:
    """Ragged recordings of two outputs and three states, one sampled and one Fourier input, every optional array."""
    rng = np.random.default_rng(seed)
    row_size = samples + np.arange(trajectories)
    time = np.concatenate([np.cumsum(rng.uniform(0.1, 1.0, k)) for k in row_size])
    outputs = rng.normal(size=(time.size, 2))
    outputs[rng.uniform(size=outputs.shape) < 0.2] = np.nan
    knots = np.tile(np.array([0.0, 10.0, 30.0]), trajectories)
    sampled = SampledInputs(("τ",), np.full(trajectories, 3), knots, rng.normal(size=(knots.size, 1)), ("linear",))
    waves = [rng.normal(size=(trajectories, 1, 2)) for _ in range(3)]
    fourier = FourierInputs(("Fx",), rng.normal(size=(trajectories, 1)), *waves)
    x0 = rng.normal(size=(trajectories, 3))
    x0[0, 0] = np.nan
    return Trajectories(
        ids=tuple(f"Lauf {b:03d} ä" for b in range(trajectories)),
        row_size=row_size,
        time=time,
        outputs=outputs,
        output_names=("x", "phi.dot"),
        inputs=Inputs(("Fx", "τ"), sampled, fourier, {"Fx": "N", "τ": "N m"}),
        state_names=("x", "phi.dot", "h 1"),
        units={"x": "m", "phi.dot": "rad/s", "h 1": "°C", "Fx": "N", "τ": "N m"},
        noise_std={"x": 0.05},
        truth=rng.normal(size=(time.size, 3)),
        x0=x0,
        split=np.arange(trajectories) % 3,
        init_window=np.arange(trajectories),
        parameters={"m": rng.uniform(1, 2, trajectories)},
        system={"name": "vehicle", "m": 1.0},
        title="Prüfstand",
        history="snet 0.1.0 simulate",
        provenance={"snet": "0.1.0", "seed": 7, "parents": {}},
    )


def sample_checkpoint(seed: int = 0, **changes: Any) -> Checkpoint:
    """A model with arrays of every type and shape, a user's model file and a loss curve."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "kind": "model",
        "config": {"fit": {"gamma": "auto", "hidden": [32]}},
        "contract": {"states": ["x", "v"], "units": {"x": "m"}, "time_unit": "s"},
        "state": {
            "net.0.weight": rng.normal(size=(8, 3)),
            "net.0.bias": rng.normal(size=8).astype(np.float32),
            "steps": np.array(480, dtype=np.int64),
            "rate": np.array(0.01),
            "mask": np.array([True, False, True]),
            "empty": np.zeros((0, 3)),
            "half": np.ones(3, np.float16),
        },
        "normalization": {"centre": rng.normal(size=2), "scale": np.ones(2)},
        "extra": {"history": {"history": np.array([[1.0, np.nan], [2.0, 0.5]])}},
        "title": "δ-SNet",
        "history": "snet 0.1.0 fit",
        "provenance": {"parents": {"train": "ab" * 32}},
        "model_source": "class Müller:\n    pass\n",
    }
    return Checkpoint(**{**content, **changes})


def same(a: Any, b: Any) -> bool:
    """Whether two trees of dataclasses, mappings, tuples and arrays hold the same, NaN equal to NaN, types alike."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return bool(a.dtype.kind == b.dtype.kind and a.shape == b.shape and a.tobytes() == b.astype(a.dtype).tobytes())
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def edited(path: Path, change: Change, data: Trajectories | None = None) -> Path:
    """A trajectory file changed with h5py after it was written, as people do."""
    save_trajectories(path, data or sample_trajectories(), force=True)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def set_text(item: Any, name: str, text: str) -> None:
    item.attrs[name] = np.bytes_(text.encode())


def replace_values(file: h5py.File, name: str, values: Any) -> None:
    attributes = {k: v for k, v in file[name].attrs.items() if k != "DIMENSION_LIST"}
    del file[name]
    file.create_dataset(name, data=values)
    file[name].attrs.update(attributes)


def plain_trajectories(**changes: Any) -> Trajectories:
    """Two recordings of one output, without inputs."""
    values: dict[str, Any] = {
        "ids": ("a", "b"),
        "row_size": np.array([3, 2]),
        "time": np.array([0.0, 1.0, 2.0, 0.0, 1.0]),
        "outputs": np.arange(5.0)[:, None],
        "output_names": ("x",),
        "inputs": Inputs.none(),
    }
    return Trajectories(**{**values, **changes})
