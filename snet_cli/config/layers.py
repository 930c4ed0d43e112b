"""One tree of options from many places: flags and `--set` > SNET_ variables > YAML > preset > defaults.

Every place is turned into settings (path, value, where it was written); a later place overwrites an earlier one path
by path. Trees of options (`model`, `theta_step`) are merged key by key, any other value is replaced as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from snet_cli.config.explain import (
    Labels,
    explain,
    is_tree,
    takes_flag,
    takes_only_text,
    unknown_key,
    wrong_value,
)
from snet_cli.config.scalars import flow, scalar
from snet_cli.errors import UsageError

Options = TypeVar("Options", bound=BaseModel)

PREFIX = "SNET_"


class Setting(NamedTuple):
    """One value that somebody wrote: where it goes, and how a message names it."""

    path: tuple[str, ...]
    value: Any
    label: str


@dataclass(frozen=True)
class Sources:
    """Everything that was written for one command.

    Attributes
    ----------
    flags : mapping of str to str, bool or list of str
        Flags of the command by key; None where a flag was not given.
    sets : sequence of str
        ``key=value`` of every `--set`.
    config : str or None
        Name of the YAML file.
    environment : mapping of str to str
    presets : mapping of str to mapping
        What each value of the option `preset` stands for.
    command : str
        How messages call the command: ``snet fit``.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    config: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = "this command"


@dataclass(frozen=True)
class Resolved:
    """The option objects of one command."""

    objects: Mapping[type[BaseModel], BaseModel]
    keys: frozenset[str]

    def get(self, cls: type[Options]) -> Options:
        """The options of one class."""
        found = self.objects[cls]
        assert isinstance(found, cls)
        return found

    def tree(self) -> dict[str, Any]:
        """All options by key, as `--show-config` prints them."""
        trees = [found.model_dump(mode="json") for found in self.objects.values()]
        return {key: value for tree in trees for key, value in tree.items() if key in self.keys}


def resolve(sources: Sources, classes: Sequence[type[BaseModel]], keys: frozenset[str] | None = None) -> Resolved:
    """Merge all places and validate.

    Parameters
    ----------
    classes : sequence of type
        Option classes whose fields are the keys of the tree; no key is in two of them.
    keys : frozenset of str, optional
        The fields that this command has; by default all.

    Raises
    ------
    UsageError
        For a key or a value that is wrong, naming where it was written, what was expected and the nearest right one.
    """
    fields = {name: found for cls in classes for name, found in cls.model_fields.items()}
    if keys is not None:
        fields = {name: found for name, found in fields.items() if name in keys}
    layers = [
        _of_yaml(sources.config, fields),
        _of_environment(sources.environment, fields),
        _of_command_line(sources, fields),
    ]
    for setting in (s for layer in layers for s in layer):
        if setting.path[0] not in fields:
            raise unknown_key(
                setting.label.rpartition(":")[0] or setting.label, setting.path[0], fields, f"{sources.command} has no"
            )
    preset = _preset(sources, layers, fields)
    tree, labels = _merged([preset, *layers])
    if "model" in fields and is_tree(fields["model"]) and isinstance(tree.get("model"), dict):
        from snet_cli.config.models import check_model_tree  # commands without a model need not load theirs

        check_model_tree(tree["model"], labels)
    return Resolved({cls: _build(cls, tree, fields, labels) for cls in classes}, frozenset(fields))


def read_config(name: str) -> dict[str, Any]:
    """The tree of a YAML file.

    Raises
    ------
    UsageError
        If it is missing, unreadable or holds anything but a mapping.
    """
    from snet_cli.config import strict_yaml  # PyYAML costs 30 ms, which most commands need not wait for

    try:
        with Path(name).open("rb") as stream:
            data = stream.read(strict_yaml.MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{name}: there is no such configuration file.", "Check the name after --config.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{name}: the configuration cannot be read ({reason}).") from None
    tree = strict_yaml.load(data, name)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{name}: the configuration is no mapping.", "Write one 'key: value' per line.")
    return tree


def _of_yaml(config: str | None, fields: Mapping[str, FieldInfo]) -> list[Setting]:
    if config is None:
        return []
    return [
        setting
        for key, value in read_config(config).items()
        for setting in _settings((key,), value, f"{config}: {key}", fields)
    ]


def _of_environment(environment: Mapping[str, str], fields: Mapping[str, FieldInfo]) -> list[Setting]:
    """Variables named after a key; all others, and empty ones, are somebody else's."""
    found = []
    for key, info in fields.items():
        name = PREFIX + key.upper()
        if text := environment.get(name, ""):
            found += _settings((key,), _flag_value(text, info), name, fields)
    return found


def _of_command_line(sources: Sources, fields: Mapping[str, FieldInfo]) -> list[Setting]:
    found: list[Setting] = []
    for key, value in sources.flags.items():
        if value not in (None, [], ()) and key in fields:  # a repeatable flag that was not given is empty
            flag = "--" + key.replace("_", "-")
            given = _flag_value(value, fields[key]) if isinstance(value, str) else value
            found += _settings((key,), given, flag, fields)
    if sources.sets:
        from snet_cli.config.strict_yaml import load_flow  # see read_config
    for text in sources.sets:
        key, equals, written = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise UsageError(f"--set '{text}' is no key=value.", "Write for example --set model.hidden=[16]")
        label = f"--set {'.'.join(path)}"
        found += _settings(path, load_flow(written, label), label, fields)
    seen: dict[tuple[str, ...], Setting] = {}
    for setting in found:
        other = seen.setdefault(setting.path, setting)
        if other is not setting and other.value != setting.value:
            raise UsageError(
                f"{other.label} and {setting.label} give one option two values: "
                f"{flow(other.value)} and {flow(setting.value)}.",
                "Leave one of them out.",
            )
    return found


def _flag_value(text: str, info: FieldInfo) -> Any:
    """The value of a flag's text: the text itself where only text fits, else as YAML reads a plain scalar."""
    if takes_only_text(info) or is_tree(info):
        return text
    if takes_flag(info) and text.lower() in ("0", "1", "yes", "no", "on", "off"):
        return text.lower() in ("1", "yes", "on")
    value = scalar(text)
    return text if value is None else value


def _settings(path: tuple[str, ...], value: Any, label: str, fields: Mapping[str, FieldInfo]) -> list[Setting]:
    """A value as settings: a tree of options is taken apart, a text in its place is its `name`."""
    if len(path) > 1 or path[0] not in fields or not is_tree(fields[path[0]]):
        return [Setting(path, value, label)]
    if isinstance(value, str):
        return [Setting((*path, "name"), value, label)]
    if isinstance(value, dict):
        return [Setting((*path, key), item, f"{label}.{key}") for key, item in value.items()]
    return [Setting(path, value, label)]


def _preset(sources: Sources, layers: Sequence[Sequence[Setting]], fields: Mapping[str, FieldInfo]) -> list[Setting]:
    """The settings of the preset that the topmost layer names; without options of a step that is not the preset's."""
    chosen = {s.path: s for layer in layers for s in layer}
    wanted = chosen.get(("preset",))
    if wanted is None or wanted.value is None:
        return []
    if wanted.value not in sources.presets:
        raise wrong_value(wanted.label, wanted.value, fields["preset"])
    label = f"preset {wanted.value}"
    found = []
    for key, value in sources.presets[wanted.value].items():
        other = chosen.get((key, "name"))
        if isinstance(value, Mapping) and other is not None and other.value != value.get("name", other.value):
            continue
        found += _settings((key,), copy.deepcopy(value), f"{label}: {key}", fields)
    return found


def _merged(layers: Sequence[Sequence[Setting]]) -> tuple[dict[str, Any], Labels]:
    tree: dict[str, Any] = {}
    labels: dict[tuple[str, ...], str] = {}
    for setting in (s for layer in layers for s in layer):
        inner = tree
        for depth, key in enumerate(setting.path[:-1]):
            held = inner.get(key)
            if held is not None and not isinstance(held, dict):
                name = ".".join(setting.path[: depth + 1])
                raise UsageError(f"{setting.label}: '{name}' is {flow(held)}, expected a mapping.")
            inner[key] = dict(held or {})
            inner = inner[key]
        inner[setting.path[-1]] = copy.deepcopy(setting.value)
        labels[setting.path] = setting.label
    return tree, Labels(labels)


def _build(cls: type[BaseModel], tree: Mapping[str, Any], fields: Mapping[str, FieldInfo], labels: Labels) -> BaseModel:
    own = {key: value for key, value in tree.items() if key in cls.model_fields and key in fields}
    for key, value in own.items():
        if isinstance(value, bool) and not takes_flag(cls.model_fields[key]):  # pydantic would read true as 1
            raise wrong_value(labels.of((key,)), value, cls.model_fields[key])
    try:
        return cls.model_validate(own)
    except ValidationError as error:
        raise explain(error, cls, own, labels) from None
