"""θ by a formula where a model has one, from the points of all processes together."""

from __future__ import annotations

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model, NodeData


def solve_in_closed_form(model: Model, data: NodeData, team: Team = ALONE) -> bool:
    """Set θ to the minimiser of R; returns whether there is a formula.

    Parameters
    ----------
    data : NodeData
        The points of this process; those of all are gathered only where the model has a formula.
    """
    if type(model).solve_in_closed_form is Model.solve_in_closed_form:
        return False
    return model.solve_in_closed_form(NodeData(*(team.gather(part) for part in data)))
