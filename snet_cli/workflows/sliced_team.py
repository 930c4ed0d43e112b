"""Slices that several processes work on in turn, and the lead takes in order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from snet_cli.data.content import Array, Content
from snet_cli.distributed import Team

S = TypeVar("S")

NOTHING = b"-"
"""What the lead sends: it has its own slice."""


def in_turn(slices: Sequence[S], work: Callable[[S], Content], team: Team) -> Iterator[Content]:
    """The work on every slice, in order, on the lead; the other processes of a team see only their own.

    Process r does slices r, r + size, ... and sends the lead what it has done, a slice at a time. Every process has to
    take all that comes.
    """
    if team.size == 1:
        yield from map(work, slices)
        return
    for begin in range(0, len(slices), team.size):
        part = slices[begin : begin + team.size]
        own = work(part[team.rank]) if team.rank < len(part) else Content({})
        sent = team.bytes_of_all(NOTHING if team.is_lead else _packed(own))
        if team.is_lead:
            yield own
            yield from (_unpacked(content) for content in sent[1 : len(part)])
        elif team.rank < len(part):
            yield own


def _packed(content: Content) -> bytes:
    """The arrays as bytes; the lead has the attributes from its own slice."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {name: array.read() for name, array in content.arrays.items()}
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpacked(packed: bytes) -> Content:
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return Content({}, {name: Array.of(arrays[name]) for name in arrays.files})
