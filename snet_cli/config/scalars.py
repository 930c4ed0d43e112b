"""What a plain scalar means in YAML 1.2, and options as YAML text; needs no parser, so short commands load none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
OCTAL = re.compile(r"0o[0-7]{1,40}")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,40}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
WORDS: dict[str, bool | float | None] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    ".nan": float("nan"),
    ".NaN": float("nan"),
    ".NAN": float("nan"),
}
"""Plain scalars of YAML 1.2 that are neither text nor digits."""

PLAIN_TEXT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
"""Text that `dump` leaves without quotes, unless it is one of WORDS."""


def scalar(text: str) -> Any:
    """What a plain scalar means in YAML 1.2: null, a boolean, a number, else the text itself."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text, 10)
    if OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if FLOAT.fullmatch(text):
        return float(text)
    infinite = INFINITE.fullmatch(text)
    return float(infinite.group(1) + "inf") if infinite else text


def dump(tree: Mapping[str, Any]) -> str:
    """YAML of a tree of options that `load` reads back as it is: block style outside, flow style inside."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{_text(str(key))}:")
            lines += [f"  {_text(str(name))}: {flow(item)}" for name, item in value.items()]
        else:
            lines.append(f"{_text(str(key))}: {flow(value)}")
    return "\n".join(lines) + "\n"


def flow(value: Any) -> str:
    """A value in flow style, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, float) and value != value:
        return ".nan"
    return json.dumps(value)


def _text(value: str) -> str:
    if PLAIN_TEXT.fullmatch(value) and value not in WORDS:
        return value
    return '"' + "".join(_escaped(c) for c in value) + '"'


def _escaped(c: str) -> str:
    """A character inside double quotes (YAML 1.2, section 5.7)."""
    if c in '"\\':
        return "\\" + c
    return c if c.isprintable() else f"\\U{ord(c):08x}"
