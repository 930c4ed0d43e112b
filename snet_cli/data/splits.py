"""Which recordings train, validate and test: ``valid=run_3,test=71-80``.

A recording is named by its id, by a pattern (``valid_*``) or by its position from 1, single or as a range. The rest
trains. Windows inherit the split of their recording, so that no window of a training run is tested on.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import check_known, listing, nearest, shorten
from snet_cli.data.trajectories import SPLIT_NAMES
from snet_cli.errors import UsageError

IntArray = NDArray[np.int64]

FORM = "Write --split valid=ID,ID,test=71-80: ids, or positions from 1."


def assign_split(text: str, ids: Sequence[str]) -> tuple[IntArray, list[str]]:
    """Split number of every recording (0 train, 1 valid, 2 test), and notes.

    Raises
    ------
    UsageError
        For an unknown split, id or position, and for a recording in two splits.
    """
    split = np.full(len(ids), -1, np.int64)
    notes: list[str] = []
    for number, item in parse_split(text):
        for position in find_recordings(item, ids, notes):
            if split[position] not in (-1, number):
                raise UsageError(
                    f"--split: '{shorten(ids[position])}' is in {SPLIT_NAMES[split[position]]} and in "
                    f"{SPLIT_NAMES[number]}.",
                    "Name every recording once.",
                )
            split[position] = number
    split[split == -1] = 0
    if not np.any(split == 0):
        notes.append("no recording is left to train on.")
    return split, notes


def parse_split(text: str) -> list[tuple[int, str]]:
    """Number of the split and item, for all items."""
    pairs: list[tuple[int, str]] = []
    current = -1
    for part in text.split(","):
        item = part.strip()
        name, separator, first = item.partition("=")
        if separator:
            check_known(name.strip(), SPLIT_NAMES, "--split", "split")
            current, item = SPLIT_NAMES.index(name.strip()), first.strip()
        if current < 0 or not item:
            raise UsageError(f"--split '{shorten(text)}' holds an item without a split, or none.", FORM)
        pairs.append((current, item))
    return pairs


def find_recordings(item: str, ids: Sequence[str], notes: list[str]) -> list[int]:
    """Positions from 0 of the recordings that an item names: an id, else a pattern, else positions."""
    if item in ids:
        return [ids.index(item)]
    if any(wildcard in item for wildcard in "*?["):
        found = [position for position, name in enumerate(ids) if fnmatch.fnmatchcase(name, item)]
        if found:
            return found
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", item)
    if match is None:
        raise UsageError(
            f"--split: no recording is named '{shorten(item)}'.", f"{nearest(item, ids)}There is {listing(ids)}."
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= len(ids):
        raise UsageError(
            f"--split: there is no position {item}, the recordings are 1 to {len(ids)}.", "Positions count from 1."
        )
    positions = list(range(first - 1, last))
    if any(ids[p].isdecimal() and int(ids[p]) != p + 1 for p in positions):
        notes.append(f"--split: {item} are positions: {listing(ids[p] for p in positions)}.")
    return positions
