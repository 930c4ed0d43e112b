"""What the options of an import mean for the recordings that were found: units, angles, rates, names, holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from snet_cli.data.channel_spec import (
    DEGREES,
    check_known,
    parse_angles,
    parse_derive,
    parse_hold,
    parse_units,
    shorten,
)
from snet_cli.data.derivatives import Turns, unwrap_angle
from snet_cli.data.recording import Recording
from snet_cli.data.signals import Intersample
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError, UsageError

ID_BYTES = 64
"""Longest name of a trajectory that a file can hold."""

TIME_UNITS = ("s", "ms", "us", "µs", "ns", "min", "h", "day", "week", "month", "year")
"""Units that a time column may carry in its name: ``t_ms``, ``year``."""


@dataclass(frozen=True)
class Meaning:
    """How recordings become trajectories.

    Attributes
    ----------
    hold : tuple of {"zoh", "linear", "cubic"}
        Of each input.
    units : mapping of str to str
        Of the channels, the time among them: as stated, else as found.
    stated : mapping of str to str
        Units that the user wrote.
    time_unit : str
    angles : mapping of str to bool
        Outputs that are unwrapped; true where they come in degrees.
    rates : mapping of str to str
        New outputs, and the outputs that they are the rates of.
    """

    hold: tuple[Intersample, ...]
    units: Mapping[str, str]
    stated: Mapping[str, str]
    time_unit: str
    angles: Mapping[str, bool]
    rates: Mapping[str, str]

    def applied(self, data: Trajectories, turns: Mapping[str, Turns] | None = None) -> Trajectories:
        """Assembled trajectories with their time unit and their angles; `turns` where they are a part of one."""
        data = replace(data, time_unit=self.time_unit)
        for name, degrees in self.angles.items():
            data = unwrap_angle(data, name, degrees, None if turns is None else turns[name])
        return data

    def check_rates(self, outputs: Sequence[str]) -> None:
        """Refuse the rate of a channel that there is not.

        Raises
        ------
        UsageError
        """
        known = list(outputs)
        for name, of in self.rates.items():
            check_known(of, known, "--derive", "state")
            known.append(name)


def meaning_of(heads: Sequence[Recording], hold: str, units: str, angles: str, derive: str) -> Meaning:
    """Put the options of an import beside what the recordings say of themselves.

    Parameters
    ----------
    heads : sequence of Recording
        One or more of each file; only their names and units count.
    hold, units, angles, derive : str
        As `tables.import_tables` has them.

    Raises
    ------
    UsageError
        If an option names no channel, or makes no sense.
    """
    first = heads[0]
    rates = parse_derive(derive)
    names = (*first.output_names, *rates, *first.input_names)
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"two channels are named '{shorten(name)}'.", "Rename one: --states name=column")
    stated = parse_units(units)
    for name in stated:
        check_known(name, [*names, first.time_name], "--units")
    found = {name: unit for head in reversed(heads) for name, unit in head.units.items()}
    known = found | stated
    turned = parse_angles(angles)
    for name in turned:
        check_known(name, first.output_names, "--angle", "state")
    return Meaning(
        hold=parse_hold(hold, first.input_names),
        units=known,
        stated=stated,
        time_unit=known.get(first.time_name) or _unit_in_name(first.time_name),
        angles={
            name: unit == "deg" or (unit is None and known.get(name, "").lower() in DEGREES)
            for name, unit in turned.items()
        },
        rates=rates,
    )


def require_alike(heads: Sequence[Recording]) -> None:
    """Refuse recordings that do not have the same channels and units.

    Raises
    ------
    DataError
    """
    first = heads[0]
    for other in heads[1:]:
        if (other.output_names, other.input_names) != (first.output_names, first.input_names):
            raise DataError(
                f"{other.source}: the channels are {other.output_names + other.input_names}, but "
                f"{first.output_names + first.input_names} in {first.source}.",
                "Import files with the same columns, or rename them: --states name=column",
            )
        for name, unit in other.units.items():
            if first.units.get(name, unit) != unit:
                raise DataError(
                    f"{other.source}: the unit of '{shorten(name)}' is '{shorten(unit)}', but "
                    f"'{shorten(first.units[name])}' in {first.source}.",
                    "Convert one of the files.",
                )


def unique_ids(ids: Sequence[str], longer: Sequence[str]) -> tuple[str, ...]:
    """Names of trajectories: where several want the same one, the `longer` form, and a number if that is taken too.

    Names that a file cannot hold are mended: control characters and "/" become "_", the end of a long name is cut.
    """
    wanted = Counter(ids)
    taken: set[str] = set()
    out: list[str] = []
    for short, long in zip(ids, longer, strict=True):
        base = _fitting(short if wanted[short] == 1 else long, ID_BYTES)
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{_fitting(base, ID_BYTES - len(str(number)) - 1)}-{number}"
        taken.add(name)
        out.append(name)
    return tuple(out)


def _fitting(name: str, size: int) -> str:
    clean = "".join(c if c.isprintable() and c != "/" else "_" for c in name).strip() or "_"
    return clean.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def _unit_in_name(name: str) -> str:
    """The unit of time that a column's name tells (``t_ms``, ``year``), else seconds."""
    last = name.replace(" ", "_").split("_")[-1].lower()
    singular = last[:-1] if last.endswith("s") and last[:-1] in TIME_UNITS[5:] else last
    return singular if singular in TIME_UNITS else "s"
