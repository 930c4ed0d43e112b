"""What the flags of `import` say about channels: names, columns, units, holds, angles, derivatives.

One small grammar: items separated by commas, each ``name`` or ``name=value``. What an item *means* depends on
the flag (``--states speed=v`` is a rename, ``--units speed=m/s`` a unit), so every flag has its own function
here; files are not looked at.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from snet_cli.data.signals import INTERSAMPLE, Intersample
from snet_cli.errors import UsageError

LISTED = 20
"""Names listed in a message; a table may have 100 000 columns."""

SEARCHED = 10_000
"""Names searched for the nearest one, which takes about 10 µs a name."""

AngleUnit = Literal["rad", "deg"]
DEGREES = ("deg", "°", "degree", "degrees")


class ChannelItem(NamedTuple):
    """One item of ``--states`` or ``--inputs``: ``left`` or ``left=right``."""

    left: str
    right: str | None

    def __str__(self) -> str:
        return self.left if self.right is None else f"{self.left}={self.right}"


@dataclass(frozen=True)
class Request:
    """Which columns or arrays of a file are wanted, in the user's words.

    Attributes
    ----------
    states, inputs : tuple of ChannelItem
        As written; a reader resolves them against what the file holds.
    time : str or None
        Column of the sample times; None = the single obvious one.
    by : str or None
        Column whose values separate the recordings of one file.
    """

    states: tuple[ChannelItem, ...]
    inputs: tuple[ChannelItem, ...] = ()
    time: str | None = None
    by: str | None = None


def listing(names: Iterable[str]) -> str:
    """Names for a message: quoted, at most `LISTED` of them, long ones shortened."""
    all_names = list(names)
    shown = ", ".join(f"'{shorten(name)}'" for name in all_names[:LISTED])
    rest = len(all_names) - LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown or "nothing"


def shorten(text: str, limit: int = 60) -> str:
    """The text with control characters replaced and at most `limit` characters, for a message."""
    visible = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"


def nearest(name: str, names: Collection[str]) -> str:
    """A sentence ``Did you mean 'x'? `` with the most similar of `names`, or an empty text."""
    candidates = list(names)[:SEARCHED]
    found = difflib.get_close_matches(name[:200], candidates, n=1, cutoff=0.5)
    if not found:
        lower = {candidate.lower(): candidate for candidate in candidates}
        found = [lower[near] for near in difflib.get_close_matches(name[:200].lower(), list(lower), n=1, cutoff=0.5)]
    return f"Did you mean '{shorten(found[0])}'? " if found else ""


def check_name(name: str, flag: str) -> str:
    """The name of a channel, if a file can hold it.

    Raises
    ------
    UsageError
        If it is empty or holds "/", NUL or another control character; the hint writes the rename out.
    """
    if name and "/" not in name and all(unicodedata.category(c) != "Cc" for c in name):
        return name
    if not name:
        raise UsageError(f"{flag} holds an empty name.", f"Separate names by single commas: {flag} a,b")
    plain = "".join("_" if c == "/" or unicodedata.category(c) == "Cc" else c for c in name)
    raise UsageError(
        f"the name '{shorten(name)}' holds '/' or a control character, which names in a file may not hold.",
        f"Rename it: {flag} '{shorten(plain)}={shorten(name)}'",
    )


def parse_channels(text: str, flag: str) -> tuple[ChannelItem, ...]:
    """Items of ``--states`` or ``--inputs``: ``x,y=Y`` gives ``(x, None), (y, "Y")``."""
    return tuple(ChannelItem(*_name_value(item, flag)) for item in _items(text, flag))


def parse_units(text: str) -> dict[str, str]:
    """``x=m,v=m/s`` by name; an empty unit (``x=``) means not stated."""
    units: dict[str, str] = {}
    for item in _items(text, "--units"):
        name, separator, unit = item.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"--units: '{shorten(item)}' gives no unit.", "Write name=unit, as in --units x=m,v=m/s")
        _once(units, name.strip(), "--units")
        units[name.strip()] = unit.strip()
    return units


def parse_hold(text: str, inputs: Sequence[str]) -> tuple[Intersample, ...]:
    """How each input continues between its samples: one word for all, or ``u1=zoh,u2=linear`` (others zoh)."""
    chosen: dict[str, Intersample] = {}
    for item in _items(text, "--hold"):
        name, kind = _name_value(item, "--hold")
        if kind is None:
            if len(_items(text, "--hold")) > 1:
                raise UsageError(
                    f"--hold: '{shorten(item)}' names no input.",
                    "Write one of zoh, linear, cubic for all inputs, or input=hold for each.",
                )
            return (_hold(name),) * len(inputs)
        check_known(name, inputs, "--hold", "input")
        _once(chosen, name, "--hold")
        chosen[name] = _hold(kind)
    return tuple(chosen.get(name, "zoh") for name in inputs)


def parse_angles(text: str) -> dict[str, AngleUnit | None]:
    """Angle channels and their stated unit: ``yaw,pitch=deg`` gives ``{"yaw": None, "pitch": "deg"}``."""
    angles: dict[str, AngleUnit | None] = {}
    for item in _items(text, "--angle"):
        name, unit = _name_value(item, "--angle")
        if unit is not None and unit not in ("rad", "deg"):
            raise UsageError(f"--angle: '{shorten(unit)}' is no unit of angles.", "Write name, name=rad or name=deg.")
        _once(angles, name, "--angle")
        angles[name] = cast("AngleUnit | None", unit)
    return angles


def parse_derive(text: str) -> dict[str, str]:
    """Derived channels: ``v=d(q)`` gives ``{"v": "q"}``."""
    derived: dict[str, str] = {}
    for item in _items(text, "--derive"):
        match = re.fullmatch(r"([^=]+)=\s*d\((.+)\)", item)
        if match is None:
            raise UsageError(
                f"--derive: '{shorten(item)}' is no derivative.", "Write it as v=d(q): v is the rate of q."
            )
        name = check_name(match[1].strip(), "--derive")
        _once(derived, name, "--derive")
        derived[name] = match[2].strip()
    return derived


def check_known(name: str, names: Collection[str], flag: str, kind: str = "channel") -> None:
    """Raise UsageError, naming the nearest, if `name` is none of the channels this import has."""
    if name not in names:
        raise UsageError(
            f"{flag}: there is no {kind} '{shorten(name)}'.", f"{nearest(name, names)}There is {listing(names)}."
        )


def _items(text: str, flag: str) -> list[str]:
    """The trimmed items of a comma-separated text; none for an empty text."""
    if not text.strip():
        return []
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise UsageError(
            f"{flag} '{shorten(text)}' holds an empty item.", f"Separate items by single commas: {flag} a,b"
        )
    return items


def _name_value(item: str, flag: str) -> tuple[str, str | None]:
    """Both sides of ``name=value``; None where there is no "="."""
    name, separator, value = (part.strip() for part in item.partition("="))
    if not name or (separator and not value):
        raise UsageError(f"{flag}: '{shorten(item)}' lacks one of its sides.", "Write name or name=value.")
    return name, value if separator else None


def _once(seen: Mapping[str, object], name: str, flag: str) -> None:
    if name in seen:
        raise UsageError(f"{flag} names '{shorten(name)}' twice.", "Leave one of the two out.")


def _hold(kind: str) -> Intersample:
    if kind not in INTERSAMPLE:
        raise UsageError(
            f"--hold: '{shorten(kind)}' is no way to hold an input.",
            f"{nearest(kind, INTERSAMPLE)}There is {listing(INTERSAMPLE)}.",
        )
    return kind
