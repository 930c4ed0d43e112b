"""Training methods by name. A method is added in a file of its own and one line here."""

from __future__ import annotations

from snet_cli.training.options import FitOptions
from snet_cli.workflows.build_alpha import ALPHA
from snet_cli.workflows.build_delta import DELTA
from snet_cli.workflows.build_shooting import SHOOTING_METHODS, shooting_entry
from snet_cli.workflows.training_plan import Ingredients, MethodEntry, Training, iteration_limit

METHODS: dict[str, MethodEntry] = {
    "auto": DELTA,
    "delta": DELTA,
    "alpha": ALPHA,
    **{name: shooting_entry(name) for name in SHOOTING_METHODS},
}
"""Registry name -> how it is built."""


def iterations_of(options: FitOptions) -> int:
    """Most iterations of the method that the options name."""
    return iteration_limit(options, METHODS[options.method])


def build_training(name: str, parts: Ingredients) -> Training:
    """The method of a registry name."""
    return METHODS[name].build(parts)
