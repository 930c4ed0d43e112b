"""The process of one row: ``python -m snet_cli.workflows.compare_worker FOLDER FINGERPRINT``; the job lies in FOLDER.

It speaks on stdout, a JSON object a line: ``{"note": ...}``, ``{"detail": ...}``, ``{"tick": {...}}``. When the
comparison that started it is gone, however it ended, it ends too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snet_cli.workflows.compare_plan import Job
from snet_cli.workflows.compare_store import JOB
from snet_cli.workflows.reporter import Tick

TICK_SECONDS = 0.2
"""Shortest time between two ticks."""


class Speaker:
    """A `Reporter` whose words go through the pipe."""

    def __init__(self) -> None:
        self._next = 0.0

    def note(self, text: str) -> None:
        """Pass it on."""
        _say({"note": text})

    def detail(self, text: str) -> None:
        """Pass it on."""
        _say({"detail": text})

    def progress(self, tick: Tick) -> None:
        """Pass it on, now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + TICK_SECONDS
            _say({"tick": asdict(tick)})

    def should_stop(self) -> bool:
        """Never: a comparison that is stopped kills its processes."""
        return False


def _say(tree: dict[str, Any]) -> None:
    print(json.dumps(tree), flush=True)


def _end_with(parent: int) -> None:
    """Leave at once when the parent is gone: its place may be taken by a comparison that goes on in this folder."""
    while os.getppid() == parent:
        time.sleep(TICK_SECONDS)
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Make the row of the job in a folder."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from snet_cli.workflows.compare_rows import make_row

    folder, fingerprint = Path(arguments[0]), arguments[1]
    job = Job.from_json(json.loads((folder / JOB).read_text("utf-8")))
    try:
        make_row(job, folder, fingerprint, Speaker())
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
