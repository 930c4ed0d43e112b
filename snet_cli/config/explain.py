"""What is wrong with an option, in the words of who wrote it: name, value, what was expected, nearest right name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from snet_cli.errors import UsageError

Path = tuple[str, ...]

LONGEST_VALUE = 60
"""Characters of a value that an error message repeats."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"Did you mean 'x'?"`` for the nearest choice; empty where none is near."""
    found = difflib.get_close_matches(name, list(choices), 1)
    return f"Did you mean '{found[0]}'?" if found else ""


def shown(value: Any) -> str:
    """A value as an error message repeats it: short, texts in quotes, no control characters."""
    text = repr(value) if isinstance(value, str) else str(value)
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: ``"'auto' or a whole number from 2 to 100"``."""
    return field.title or _described(field.annotation, field.metadata)


def takes_only_text(field: FieldInfo) -> bool:
    """Whether a field holds text and nothing else, so that ``--time 1`` names a column and not the number one."""
    parts = [part for part in _alternatives(field.annotation) if part is not type(None)]
    return all(_plain(part) is str for part in parts)


def takes_flag(field: FieldInfo) -> bool:
    """Whether a field takes true and false."""
    return any(_plain(part) in (bool, Any) for part in _alternatives(field.annotation))


def is_tree(field: FieldInfo) -> bool:
    """Whether a field holds options of its own (`model`, `theta_step`), that are merged key by key."""
    for part in _alternatives(field.annotation):
        plain = _plain(part)
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            return True
        if get_origin(plain) is dict and get_args(plain)[1] is Any:
            return True
    return False


def unknown_key(label: str, key: str, choices: Iterable[str], nobody: str) -> UsageError:
    """The error for a key that nobody has; `nobody` reads like ``"snet fit has no"``."""
    choices = sorted(choices)
    hint = nearest(key, choices) or nearest(key.replace("-", "_"), choices)
    return UsageError(f"{label}: {nobody} option '{shown(key)[1:-1]}'.", hint or _listed(choices))


def _listed(choices: Sequence[str]) -> str:
    return f"There {'is' if len(choices) == 1 else 'are'} {', '.join(choices)}." if choices else "It has none."


def wrong_value(label: str, value: Any, field: FieldInfo) -> UsageError:
    """The error for a value that a field does not take."""
    choices = [c for part in _alternatives(field.annotation) for c in _choices(part) if isinstance(c, str)]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return UsageError(f"{label} is {shown(value)}, expected {expected(field)}.", hint)


def explain(error: ValidationError, cls: type[BaseModel], tree: Mapping[str, Any], label: Labels) -> UsageError:
    """The first thing that pydantic found wrong, as an error of ours.

    Parameters
    ----------
    cls : type
        The class that was to be built from `tree`.
    label : Labels
        Knows where each key was written.
    """
    first = error.errors(include_url=False)[0]
    owner, path, field = _field_at(cls, first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][len(path)])
        nobody = f"'{'.'.join(path)}' has no" if path else "there is no"
        return unknown_key(label.of((*path, key)), key, owner.model_fields, nobody)
    if field is None:  # a rule that ties several options together
        return UsageError(f"{first['msg'].removeprefix('Value error, ')}.")
    if first["type"] == "missing":
        return UsageError(f"{label.of(path)} is missing, expected {expected(field)}.")
    value: Any = tree
    for key in path:
        value = value[key] if isinstance(value, Mapping) and key in value else first["input"]
    return wrong_value(label.of(path), value, field)


class Labels:
    """Where each key of a merged tree was written, and how to name it in a message."""

    def __init__(self, labels: Mapping[Path, str], prefix: Path = ()) -> None:
        self.labels = labels
        self.prefix = prefix

    def within(self, *prefix: str) -> Labels:
        """The same labels, asked for by paths that start inside a tree."""
        return Labels(self.labels, (*self.prefix, *prefix))

    def of(self, path: Sequence[str]) -> str:
        """``"--order"``, ``"SNET_ORDER"``, ``"--set model.hidden"``, ``"fit.yaml: model.hidden"``."""
        path = (*self.prefix, *path)
        for size in range(len(path), 0, -1):
            if path[:size] in self.labels:
                return ".".join([self.labels[path[:size]], *path[size:]])
        deeper = [label for key, label in self.labels.items() if key[: len(path)] == path]
        return deeper[0] if deeper else ".".join(path)


def _field_at(cls: type[BaseModel], loc: Sequence[int | str]) -> tuple[type[BaseModel], Path, FieldInfo | None]:
    """The innermost option class, path and field that an error's location lies in."""
    owner: type[BaseModel] = cls
    path: Path = ()
    field: FieldInfo | None = None
    current: type[BaseModel] | None = cls
    for key in loc:
        if current is None or key not in current.model_fields:
            break
        owner, path, field = current, (*path, str(key)), current.model_fields[str(key)]
        inner = [_plain(part) for part in _alternatives(field.annotation)]
        current = next((part for part in inner if isinstance(part, type) and issubclass(part, BaseModel)), None)
        owner = current or owner
    return owner, path, field


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union; the annotation itself where it is none."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in _alternatives(member)]
    return [annotation]


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _described(annotation: Any, metadata: Sequence[Any]) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        titles = [m.title for m in more if isinstance(m, FieldInfo) and m.title]
        if titles:
            return titles[0]
        inner = [bound for m in more for bound in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return _described(annotation, [*metadata, *inner])
    parts = [part for part in _alternatives(annotation) if part is not type(None)]
    if len(parts) > 1:
        return " or ".join(_described(part, metadata) for part in parts)
    kind = parts[0]
    if get_origin(kind) is Annotated:
        return _described(kind, metadata)
    if get_origin(kind) is Literal:
        words = [shown(choice) for choice in get_args(kind)]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if get_origin(kind) is list:
        return f"a list{_length(metadata)}, each entry {_described(get_args(kind)[0], ())}"
    if get_origin(kind) is dict:
        return "a mapping {name: value}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"a mapping with {', '.join(kind.model_fields)}"
    words_of_kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words_of_kind.get(kind, "another value") + (_range(metadata) if kind in (int, float) else "")


def _bound(metadata: Sequence[Any], name: str) -> Any:
    return next((value for m in metadata if (value := getattr(m, name, None)) is not None), None)


def _range(metadata: Sequence[Any]) -> str:
    ge, gt, le, lt = (_bound(metadata, name) for name in ("ge", "gt", "le", "lt"))
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    low = f" of at least {ge}" if ge is not None else f" above {gt}" if gt is not None else ""
    high = f" of at most {le}" if le is not None else f" below {lt}" if lt is not None else ""
    if lt is not None and lt > 2**60:  # what a file can hold, no bound that a person would meet
        high = ""
    return f"{low} and{high}" if low and high else low + high


def _length(metadata: Sequence[Any]) -> str:
    low, high = _bound(metadata, "min_length"), _bound(metadata, "max_length")
    if low is not None and low == high:
        return f" of {low}"
    if low is not None and high is not None:
        return f" of {low} to {high}"
    return ""
