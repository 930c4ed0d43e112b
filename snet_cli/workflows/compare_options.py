"""Options of `snet compare`: its own, and everything that `fit` can be told about training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from snet_cli.config.explain import nearest
from snet_cli.data.options import Listing
from snet_cli.errors import UsageError
from snet_cli.training.options import FitOptions, Positive

Preset = Literal[
    "paper", "vehicle-dense", "vehicle-sparse", "vehicle-noisy", "agents-dense", "agents-sparse", "agents-gains"
]

METHODS = tuple(
    name for name in get_args(FitOptions.model_fields["method"].annotation) if isinstance(name, str) and name != "auto"
)
"""What can be compared; `auto` is a choice among these."""

DEFAULT_METHODS = ("delta", "alpha", "bkpr-euler", "bkpr-dopri5")

OWN = ("test", "methods", "checkpoints", "quick", "target_mse", "resume")
"""Fields of `CompareOptions` that `fit` has not."""

NOT_TAKEN = ("method", "validation")
"""Fields of `FitOptions` that `compare` has not; all rows train on the same trajectories."""


class CompareOptions(FitOptions):
    """What is compared, on which data, under which budget; the rest is handed to the training of each method."""

    preset: Preset | None = Field(  # type: ignore[assignment]
        default=None,
        description="paper: every method as in Quaglino et al. 2020; any other: that experiment, which simulates its "
        "own data.",
    )
    test: str | None = Field(default=None, description="Trajectory file that the trained models forecast.")
    methods: Listing = Field(
        default="", description=f"Methods to train, separated by commas; unset: {','.join(DEFAULT_METHODS)}."
    )
    checkpoints: Listing = Field(default="", description="Trained models to compare, separated by commas.")
    quick: bool = Field(default=False, description="An experiment in its small form, of under two minutes.")
    target_mse: Positive | None = Field(
        default=None, description="Train rollout MSE (rtol 1e-6) at which a method has converged and stops."
    )
    resume: bool = Field(default=False, description="Keep the rows that are finished, and go on.")
    max_time: Positive | None = Field(
        default=None, description="Most seconds of set-up and iterations, for each method."
    )
    iterations: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most iterations of each method; unset: its own limit, or the experiment's."
    )

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods that were asked for by name.

        Raises
        ------
        UsageError
            With the nearest name, if there is no such method, or one stands twice.
        """
        names = names_in(self.methods)
        if self.methods and not names:
            raise UsageError("--methods names no method.", f"There are {', '.join(METHODS)}.")
        for name in names:
            if name not in METHODS:
                hint = nearest(name, METHODS) or f"There are {', '.join(METHODS)}."
                raise UsageError(f"--methods: there is no method '{name}'.", hint)
        _require_distinct(names, "--methods")
        return names

    @property
    def explicit(self) -> dict[str, Any]:
        """What somebody said about training, as a tree of `fit` options: no defaults, nothing of `compare` alone."""
        tree: dict[str, Any] = self.model_dump(mode="json", exclude_unset=True, exclude={*OWN, "preset", "max_time"})
        return tree


def names_in(listing: str) -> tuple[str, ...]:
    """``a, b`` as names."""
    return tuple(part.strip() for part in listing.split(",") if part.strip())


def _require_distinct(names: tuple[str, ...], label: str) -> None:
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise UsageError(f"{label}: '{twice[0]}' stands there twice.", "Name each once.")
