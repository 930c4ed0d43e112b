"""Runs a command of `snet` inside the test process."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from snet_cli.cli.main import main


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Snet = Callable[..., Ran]


def run_in(capsys: pytest.CaptureFixture[str]) -> Snet:
    """A function that runs a command and returns its exit code and what it printed."""

    def run(*args: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
