"""The tree `model`: which model, and the options it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from snet_cli.config.explain import Labels, explain, nearest, shown, unknown_key
from snet_cli.errors import UsageError
from snet_cli.models.options import MODEL_OPTIONS, ModelOptions

USER = "user"
"""Registry name of a model that comes from the user's own file."""


def is_reference(name: str) -> bool:
    """Whether a model's name is a file of the user's: FILE.py:Class."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def model_reference(model: Mapping[str, Any] | str | None) -> str | None:
    """FILE.py:Class where the option `model` names the user's own file, else None."""
    name = model if isinstance(model, str) else (model or {}).get("name")
    return name if isinstance(name, str) and is_reference(name) else None


def model_options(model: Mapping[str, Any] | str | None, default: str, labels: Labels | None = None) -> ModelOptions:
    """The options of the model that the option `model` asks for.

    Parameters
    ----------
    model : mapping, str or None
        `FitOptions.model`.
    default : str
        Registry name to take where `model` names none: what the data's system asks for.

    Raises
    ------
    UsageError
        For a model that does not exist, or an option that this model does not have.
    """
    tree = {"name": model} if isinstance(model, str) else dict(model or {})
    labels = labels or Labels({})
    name = tree.get("name") or default
    if not isinstance(name, str):
        raise UsageError(f"{labels.of(('model', 'name'))} is {shown(name)}, expected the name of a model.")
    name = USER if is_reference(name) else name
    if name not in MODEL_OPTIONS or (name == USER and tree.get("name") == USER):
        known = sorted(set(MODEL_OPTIONS) - {USER})
        raise UsageError(
            f"there is no model '{shown(name)[1:-1]}'.",
            nearest(name, known) or f"There are {', '.join(known)}, and FILE.py:Class.",
        )
    cls = MODEL_OPTIONS[name]
    for key in tree:
        if key not in cls.model_fields:
            others = [field for field in cls.model_fields if field != "name"]
            raise unknown_key(labels.of(("model", key)), key, others, f"the model '{name}' has no")
    return _validated(cls, {**tree, "name": name}, labels)


def check_model_tree(tree: Mapping[str, Any], labels: Labels) -> None:
    """Check the options of a model before any data is read; without a name, that some model has each key.

    Raises
    ------
    UsageError
        As `model_options`.
    """
    if tree.get("name") is not None:
        model_options(tree, USER, labels)
        return
    known = {key for cls in MODEL_OPTIONS.values() for key in cls.model_fields}
    for key, value in tree.items():
        if key not in known:
            raise unknown_key(labels.of(("model", key)), key, known, "no model has an")
        refused = []
        owners = [cls for cls in MODEL_OPTIONS.values() if key in cls.model_fields]
        for cls in owners:
            try:
                _validated(cls, {key: value}, labels)
            except UsageError as error:
                refused.append(error)
        if len(refused) == len(owners):
            raise refused[0]


def _validated(cls: type[ModelOptions], tree: Mapping[str, Any], labels: Labels) -> ModelOptions:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise explain(error, cls, tree, labels.within("model")) from None
