"""The state of a run as a checkpoint of kind "resume", and back.

/config                 what the run was made with, as JSON (`resume.SavedRun.about`)
/model/state            weights of now
/collocation            X and what moves it; step 0
/optimizer              what else the method remembers
/rng /progress /history /data     generators; best-so-far and counts; losses; sha256 of the data files
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.checkpoint_file import Checkpoint, encode_checkpoint, load_checkpoint_with_notes
from snet_cli.data.storage import display
from snet_cli.errors import CheckpointError
from snet_cli.spectral.mesh import mesh_between
from snet_cli.training.loop import RunState
from snet_cli.training.step_zero import StepZero

Arrays = dict[str, NDArray[Any]]

ABOUT = ("run", "method", "threads", "settled", "finished")
"""What `config` holds."""

TRAJECTORIES = ("nodes", "states", "held_out")
"""First words of the names under which methods keep X and what moves it; everything else is the optimiser's."""


def encode_state(model: Checkpoint, about: Mapping[str, Any], state: RunState, zero: StepZero) -> bytes:
    """The bytes of a state.

    Parameters
    ----------
    model : Checkpoint
        The model as it was set up: its contract, normalization, provenance and source go into the state.
    about : mapping
        As in `SavedRun`.
    """
    collocation: Arrays = {f"step_zero.{name}": value for name, value in _zero_arrays(zero).items()}
    optimizer: Arrays = {}
    for name, value in state.buffers.items():
        group = collocation if name.partition(".")[0] in TRAJECTORIES else optimizer
        group[name] = value.cpu().numpy()
    progress: Arrays = {
        "iteration": np.array(state.iteration),
        "best_iteration": np.array(state.best_iteration),
        "best_score": np.array(math.nan if state.best_score is None else state.best_score),
        "seconds": np.array(state.seconds),
        "diverged": np.array(int(state.diverged)),
        **{f"best.{i}": value.cpu().numpy() for i, value in enumerate(state.best or [])},
        **{f"good.{i}": value.cpu().numpy() for i, value in enumerate(state.good)},
    }
    parents = model.provenance["parents"]
    checkpoint = replace(
        model,
        kind="resume",
        config=dict(about),
        state={name: value.cpu().numpy() for name, value in state.weights.items()},
        extra={
            "collocation": collocation,
            "optimizer": optimizer,
            "rng": {name: value.cpu().numpy() for name, value in state.random.items()},
            "progress": progress,
            "history": {"loss": state.history},
            "data": {f"{role}_sha256": np.array(digest.encode()) for role, digest in parents.items()},
        },
        title=f"state of a run at iteration {state.iteration}",
    )
    return encode_checkpoint(checkpoint, "the resume state")


def encode_step_zero(zero: StepZero) -> bytes:
    """Step 0 as bytes, for the other processes of a team."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = dict(_zero_arrays(zero))
    np.savez(stream, **arrays)
    return stream.getvalue()


def decode_step_zero(content: bytes) -> StepZero:
    """What `encode_step_zero` was given, to the last bit."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _step_zero(arrays)


def _zero_arrays(zero: StepZero) -> Arrays:
    mesh = zero.mesh
    arrays: Arrays = {
        "numbers": np.array([mesh.basis.order, zero.misfit, zero.condition, zero.penalty], dtype=np.float64),
        "boundaries": mesh.boundaries,
        "elements": np.diff(mesh.first_element),
        "nodes": zero.nodes,
        "counts": zero.counts.astype(np.uint8),
        "determined": zero.determined.astype(np.uint8),
        "error": zero.error,
        "noise": zero.noise,
        "rate_variance": zero.rate_variance,
    }
    return arrays if zero.threshold is None else {**arrays, "threshold": zero.threshold}


def load_state(path: str, max_bytes: int) -> tuple[int, dict[str, Any], RunState, StepZero]:
    """Bytes of the file, what it says of its run, the run (on the CPU) and step 0.

    Raises
    ------
    CheckpointError
        If it is damaged, or something else.
    """
    loaded = load_checkpoint_with_notes(path, max_bytes=max_bytes)
    checkpoint, extra = loaded.checkpoint, loaded.checkpoint.extra
    if checkpoint.kind != "resume":
        raise CheckpointError(f"{display(path)}: is a model, expected the state of a run.", "")
    try:
        about = {"processes": 1, **{key: checkpoint.config[key] for key in ABOUT}}
        about["processes"] = int(checkpoint.config.get("processes", 1))
        progress = {name: _tensor(value) for name, value in extra["progress"].items()}
        score = float(progress["best_score"])
        buffers = {**extra.get("collocation", {}), **extra.get("optimizer", {})}
        state = RunState(
            {name: _tensor(value) for name, value in checkpoint.state.items()},
            {n: _tensor(value) for n, value in buffers.items() if not n.startswith("step_zero.")},
            np.asarray(extra["history"]["loss"], dtype=np.float64),
            _listed(progress, "best.") or None,
            _listed(progress, "good."),
            int(progress["best_iteration"]),
            None if math.isnan(score) else score,
            float(progress["seconds"]),
            {name: _tensor(value) for name, value in extra["rng"].items()},
            bool(progress["diverged"]),
        )
        zero = _step_zero({n.removeprefix("step_zero."): v for n, v in extra["collocation"].items()})
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{display(path)}: is no state of a run ({error!r}).", "") from None
    return loaded.size, about, state, zero


def _tensor(values: NDArray[Any]) -> Tensor:
    """A copy in torch's own memory, aligned as the original was."""
    return torch.tensor(np.asarray(values))


def _listed(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    numbers = sorted(int(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix))
    return [tensors[f"{prefix}{number}"] for number in numbers]


def _step_zero(arrays: Mapping[str, NDArray[Any]]) -> StepZero:
    order, misfit, condition, penalty = arrays["numbers"].tolist()
    return StepZero(
        mesh_between(arrays["boundaries"], arrays["elements"], int(order)),
        arrays["nodes"],
        arrays["counts"].astype(bool),
        arrays["determined"].astype(bool),
        misfit,
        arrays["error"],
        arrays["noise"],
        arrays["rate_variance"],
        condition,
        penalty,
        arrays.get("threshold"),
    )


def on_device(state: RunState, device: torch.device) -> RunState:
    """The state where its run computes; single numbers and generators stay on the CPU."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device) if tensor.dim() else tensor

    return replace(
        state,
        buffers={name: moved(value) for name, value in state.buffers.items()},
        best=None if state.best is None else [moved(value) for value in state.best],
        good=[moved(value) for value in state.good],
    )
