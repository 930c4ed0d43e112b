"""How the threads of this process wait for each other, which has to be settled before torch is imported.

Threads of OpenMP spin while they wait. Where each has a core of its own that is the fastest way; where another program
has one of them, every operation waits until that program is interrupted, and a fit takes five to ten times as long.
Sleeping costs a tenth to a quarter of the time of a fit on a quiet machine, and changes no bit of any result.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from pathlib import Path

POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
"""Environment variables that settle it, of the standard and of GNU's library; the user's own are left alone."""

LOOKS, BETWEEN = 5, 0.01
"""How often to look for other running threads, and seconds from one look to the next: what runs for a moment only is
no reason to sleep."""

LOAD = Path("/proc/loadavg")


def sleep_where_others_run(environment: MutableMapping[str, str], load: Path = LOAD) -> None:
    """Let threads sleep instead of spin, if another thread of this machine runs now."""
    if POLICY not in environment and SPINS not in environment and others_run(load):
        environment[POLICY] = "PASSIVE"


def others_run(load: Path = LOAD) -> bool:
    """Whether something beside this thread has been running all the while; False where the system does not tell."""
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN)
        try:
            running = int(load.read_text("ascii").split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if running <= 1:
            return False
    return True
