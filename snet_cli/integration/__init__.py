"""Forward integration: batched Dormand-Prince 5(4) and Euler, one step size and one outcome per trajectory."""

from snet_cli.integration.inputs import InputSignal
from snet_cli.integration.integrate import integrate
from snet_cli.integration.outcome import Outcome, Solution, Tolerances

__all__ = ["InputSignal", "Outcome", "Solution", "Tolerances", "integrate"]
