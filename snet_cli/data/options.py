"""Options that every command shares, those of `snet import`, and the value types of sizes and lists."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from snet_cli.data.storage import MAX_BYTES

SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
"""MB is 10^6 bytes, as in every report; MiB is 2^20."""

SIZE_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)")


def parse_size(value: Any) -> Any:
    """Bytes of a size such as ``"4GB"`` or ``"512 MiB"``; anything that is not text passes through.

    Raises
    ------
    ValueError
        If the text is no size.
    """
    if not isinstance(value, str):
        return value
    match = SIZE_FORM.fullmatch(value.strip())
    factor = SIZE_UNITS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise ValueError("no size")
    return int(float(match.group(1)) * factor)


def join_listing(value: Any) -> Any:
    """The text ``a,b`` or ``a=1,b=2`` of a YAML list or mapping; text passes through."""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=2**62, title="a size such as 4GB or 512MiB")]
"""A number of bytes, given as a number or as text with a unit."""

Listing = Annotated[str, BeforeValidator(join_listing)]
"""Names, or name=value pairs, separated by commas; in YAML also a list or a mapping."""

Interval = Annotated[
    str, Field(pattern=r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)s$|^[1-9][0-9]*it$", title="an interval such as 60s or 100it")
]
"""Seconds, or a number of iterations."""


def parse_interval(text: str) -> tuple[float, int | None]:
    """Seconds and iterations of an `Interval`: ``"60s"`` -> (60, None), ``"100it"`` -> (inf, 100)."""
    return (math.inf, int(text[:-2])) if text.endswith("it") else (float(text[:-1]), None)


PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CommonOptions(BaseModel):
    """What every command has, as far as it makes sense there."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of every random stream.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where to compute; auto: cuda where there is one, and in fit only if a step is faster there.",
    )
    dtype: Literal["float64", "float32"] = Field(
        default="float64", description="Precision of the network; bases, step 0 and integration stay float64."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads; unset: as many as the machine offers. Other counts, other last digits."
    )
    max_memory: Size | None = Field(
        default=None, description="Largest memory to plan for, such as 4GB; unset: what the machine has."
    )
    max_bytes: Size = Field(
        default=MAX_BYTES, description="Largest file that is read, stored or unpacked, such as 4GB."
    )


class ImportOptions(BaseModel):
    """How the columns of recordings become trajectories."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, coerce_numbers_to_str=True)

    states: Listing = Field(default="", description="Columns that are states: x,y or name=column or x=X,Y,yaw.")
    inputs: Listing = Field(default="", description="Columns that are inputs, written like --states.")
    time: str | None = Field(default=None, description="Column of the times; unset: the single one called t or time.")
    by: str | None = Field(default=None, description="Column whose values tell recordings apart.")
    units: Listing = Field(default="", description="Units: x=m,v=m/s; they win over those of the header.")
    hold: Listing = Field(
        default="", description="Inputs between samples: zoh (default), linear or cubic, or u1=zoh,u2=linear."
    )
    angle: Listing = Field(
        default="", description="Angles to unwrap within a recording; yaw=deg: in degrees, made radians."
    )
    window: PositiveTime | None = Field(default=None, description="Cut recordings into trajectories this long.")
    stride: PositiveTime | None = Field(default=None, description="Time between the starts of windows.")
    decimate: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Keep every N-th row of the outputs; inputs keep their own clock."
    )
    derive: Listing = Field(default="", description="Rates to add: v=d(q), by a local polynomial fit.")
    init_window: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Leading samples that start a forecast and are not scored."
    )
    split: Listing = Field(default="", description="valid=...,test=71-80 by id or position from 1; the rest is train.")
