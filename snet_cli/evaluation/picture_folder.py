"""Where the pictures of forecasts go: looked at before any work, and without loading matplotlib."""

from __future__ import annotations

from pathlib import Path

from snet_cli.data.outputs import check_output
from snet_cli.data.storage import display
from snet_cli.errors import OutputError

FILES = ("forecast.png", "plane.png", "error_by_horizon.png", "learning_curve.png")
"""All pictures; those that have nothing to show are not drawn."""


def check_folder(folder: str | Path, force: bool = False) -> None:
    """Find out, before any work, whether the pictures can be written; makes the folder.

    Raises
    ------
    OutputError
        If it is a file, cannot be made, or holds one of the pictures already and `force` is false.
    """
    try:
        Path(folder).mkdir(exist_ok=True)
    except FileNotFoundError:
        parent = display(Path(folder).parent)
        raise OutputError(f"{display(folder)}: there is no folder {parent}.", "Make it first: mkdir -p") from None
    except FileExistsError:
        raise OutputError(f"{display(folder)}: is a file, expected a folder.", "Choose another --plot.") from None
    except OSError as problem:
        raise OutputError(
            f"{display(folder)}: the folder cannot be made: {problem.strerror}.", "Choose another --plot."
        ) from None
    for name in FILES:
        check_output(Path(folder) / name, force)
