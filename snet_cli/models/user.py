"""The user's own torch module, named on the command line as FILE.py:Class, and its source kept as text.

The class is called with those of the keyword arguments `states` and `inputs` (tuples of names) that its constructor
has, and must define ``forward(t, x, u)`` with t (...,), x (..., n), u (..., m), returning ẋ (..., n) in physical units.
The file runs only because it was named on this command line; a checkpoint keeps its text and sha256 but never runs it.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snet_cli.errors import UsageError
from snet_cli.models.base import Model, StateSpace


class UserSource(NamedTuple):
    """A model file: the class to take from it, its text and its sha256."""

    class_name: str
    text: str
    sha256: str


class UserModel(Model):
    """Wraps the user's module; all of it counts as dependent on θ."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def from_features(self, *features: Tensor) -> Tensor:
        """The user's forward(t, x, u)."""
        derivative: Tensor = self.module(*features)
        return derivative


def read_source(reference: str) -> UserSource:
    """Read FILE.py:Class.

    Raises
    ------
    UsageError
        If the reference has no class, or the file cannot be read.
    """
    path, _, class_name = reference.rpartition(":")
    if not path or not class_name.isidentifier():
        raise UsageError(f"'{reference}' does not name a model of your own.", "Write FILE.py:Class.")
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the model file '{path}' cannot be read: {error}.", "Write FILE.py:Class.") from error
    return UserSource(class_name, text, hashlib.sha256(text.encode()).hexdigest())


def build_user_model(source: UserSource, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Model:
    """Run the user's file and make one instance of the class, on a random state of its own.

    Raises
    ------
    UsageError
        If the file fails, has no such class, or f does not return one derivative per state.
    """
    namespace: dict[str, object] = {"__name__": "snet_user_model"}
    try:
        exec(compile(source.text, f"<model file {source.class_name}>", "exec"), namespace)
        cls = namespace.get(source.class_name)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UsageError(
                f"the model file has no torch module named '{source.class_name}'.",
                "Define `class " + source.class_name + "(torch.nn.Module)` with forward(t, x, u).",
            )
        known = {"states": space.states, "inputs": space.inputs}
        accepted = inspect.signature(cls).parameters
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            module = cls(**{name: value for name, value in known.items() if name in accepted}).to(dtype)
    except UsageError:
        raise
    except Exception as error:  # the user's code may fail in any way; what it says is what they need to see
        raise UsageError(f"the model file failed: {type(error).__name__}: {error}.", "Run it with python.") from error
    model = UserModel(module)
    _try_once(model, source, space, dtype)
    return model


def _try_once(model: Model, source: UserSource, space: StateSpace, dtype: torch.dtype) -> None:
    """One evaluation on two points finds a wrong signature or shape before training starts."""
    t = torch.zeros(2, dtype=dtype)
    x, u = torch.ones(2, len(space.states), dtype=dtype), torch.ones(2, len(space.inputs), dtype=dtype)
    try:
        with torch.no_grad():
            derivative = model(t, x, u)
        shape = tuple(derivative.shape)
    except Exception as error:  # the user's code again
        raise UsageError(
            f"{source.class_name}.forward failed on t (2,), x (2, {x.shape[1]}), u (2, {u.shape[1]}): {error}.",
            "It must accept any leading shape and return ẋ with the shape of x.",
        ) from error
    if shape != tuple(x.shape):
        raise UsageError(
            f"{source.class_name}.forward returned shape {shape} for x of shape {tuple(x.shape)}.",
            "It must return one derivative per state, in the order of the states.",
        )
