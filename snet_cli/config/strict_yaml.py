"""A strict subset of YAML 1.2: what a configuration needs, and nothing that surprises.

PyYAML reads YAML 1.1: `1e-3` is a text there, `012` is ten, `1:30` is ninety, `no` is false. Here its parser only
delivers events; scalars follow the core schema of YAML 1.2 (section 10.3.2), and anchors, aliases, tags, duplicate
keys, several documents, deep nesting and large files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from snet_cli.config.scalars import scalar
from snet_cli.errors import UsageError

MAX_BYTES = 1_000_000
"""Largest configuration: far more than anyone writes by hand."""

MAX_DEPTH = 16
"""Deepest nesting; the deepest option lies at three."""

MAX_NODES = 100_000
"""Most scalars, lists and mappings together."""


def load(text: str | bytes, source: str) -> Any:
    """The value of one YAML document.

    Parameters
    ----------
    text : str or bytes
        UTF-8 where it is bytes.
    source : str
        What error messages call it: a file name, ``--set model.hidden``.

    Raises
    ------
    UsageError
        Naming source, line and what is wrong.
    """
    return _read(text, source, flow_only=False)


def load_flow(text: str, source: str) -> Any:
    """The value of a `--set`: a scalar, ``[a, b]`` or ``{a: b}``.

    Raises
    ------
    UsageError
        As `load`; also for a block mapping or list, which a shell would hardly deliver in one piece.
    """
    return _read(text, source, flow_only=True)


def _read(text: str | bytes, source: str, *, flow_only: bool) -> Any:
    if len(text) > MAX_BYTES:
        raise UsageError(f"{source}: it has {len(text)} bytes, more than {MAX_BYTES}.", "Is this a configuration?")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{source}: byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from None
    try:
        return _Reader(source, flow_only).document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(source, mark, f"this is not YAML: {error.problem or error.context}.", "Quote texts with ' or \".")
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: this is not YAML: {' '.join(str(error).split())[:200]}.") from None


def _refuse(source: str, mark: Any, problem: str, hint: str) -> NoReturn:
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    raise UsageError(f"{source}{where}: {problem}", hint) from None


class _Reader:
    """Builds values from parser events; depth is bounded, so recursion is too."""

    def __init__(self, source: str, flow_only: bool) -> None:
        self.source = source
        self.flow_only = flow_only
        self.nodes = 0

    def document(self, events: Iterator[yaml.Event]) -> Any:
        """The value of the only document; None for an empty stream."""
        value: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.refuse(event, "there is a second document.", "Keep one document: no line '---'.")
                value = self.node(next(events), events, 0)
        return value

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
        """The value that starts at this event."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse(event, f"there are more than {MAX_NODES} values.", "Is this a configuration?")
        if depth > MAX_DEPTH:
            self.refuse(event, f"the nesting is deeper than {MAX_DEPTH}.", "Is this a configuration?")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self.refuse(event, "anchors (&) and aliases (*) are not read.", "Write the value again, or quote the text.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.refuse(event, f"tags such as '{tag}' are not read.", "Leave the tag out, or quote the text.")
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.style is None else event.value
        if self.flow_only and not getattr(event, "flow_style", False):
            self.refuse(event, "a mapping or list needs brackets here.", "Write {a: b} or [a, b], or quote the text.")
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(events, depth)
        return self.mapping(events, depth)

    def sequence(self, events: Iterator[yaml.Event], depth: int) -> list[Any]:
        values = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            values.append(self.node(event, events, depth + 1))
        return values

    def mapping(self, events: Iterator[yaml.Event], depth: int) -> dict[str, Any]:
        """Keys are texts as they are written: `y` and `012` stay what they are."""
        values: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
                self.refuse(event, "a key must be plain text.", "Write key: value.")
            if event.value in values:
                self.refuse(event, f"the key '{event.value}' is there twice.", "Keep one of them.")
            values[event.value] = self.node(next(events), events, depth + 1)
        return values

    def refuse(self, event: yaml.Event, problem: str, hint: str) -> NoReturn:
        _refuse(self.source, event.start_mark, problem, hint)
