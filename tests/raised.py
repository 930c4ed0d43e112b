"""`pytest -p tests.raised`: lists the errors of the program that no test of this run brought about.

Every place in the package where an error for users is made is found in the source; every one that is made while the
tests run is noted. What processes of their own raise is not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import snet_cli
from snet_cli import errors
from snet_cli.data import guard

PACKAGE = Path(snet_cli.__file__).parent

BASES = (errors.SnetError, guard.RefusedError)

NAMES = {name for name in dir(errors) if name.endswith("Error")} | {"RefusedError", "error"}

made: set[tuple[str, int]] = set()


def places() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the package that makes an error for users."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
                yield path, node


def pytest_configure() -> None:
    for base in BASES:
        base.__init__ = _noting(base.__init__)  # type: ignore[misc]


def _noting(original: Any) -> Any:
    def note(self: Any, *args: Any, **options: Any) -> None:
        caller = sys._getframe(1)
        made.add((caller.f_code.co_filename, caller.f_lineno))
        original(self, *args, **options)

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = list(places())
    lines = {(str(path), line) for path, line in made}
    missing = [
        (path, call)
        for path, call in found
        if not any((str(path), line) in lines for line in range(call.lineno, (call.end_lineno or call.lineno) + 1))
    ]
    terminalreporter.section(f"{len(found) - len(missing)} of {len(found)} errors were raised; the others:")
    for path, call in missing:
        terminalreporter.line(f"{path.relative_to(PACKAGE.parent)}:{call.lineno}: {ast.unparse(call)[:140]}")
