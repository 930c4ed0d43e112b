"""The flags that commands share, and flags that take their help from an option class.

A flag's value stays text here: it is checked together with YAML and SNET_ variables, so that all of them are
understood, and refused, in the same words.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import BaseModel

from snet_cli.data.options import CommonOptions


def flag(cls: type[BaseModel], key: str, metavar: str = "", *names: str) -> Any:
    """A flag for one field of an option class; its help is the field's description and default."""
    field = cls.model_fields[key]
    default = field.get_default(call_default_factory=True)
    unset = default is None or default == "" or isinstance(default, bool | list | dict)
    text = (field.description or "") + ("" if unset else f" Default: {default}.")
    return typer.Option(*names, "--" + key.replace("_", "-"), metavar=metavar or None, help=text, show_default=False)


Text = str | None
"""A flag that was given as text, or not at all."""

Switch = bool | None
"""A flag without a value, given or not."""

Output = Annotated[Text, typer.Option("-o", "--output", metavar="FILE", help="File to write; - is stdout.")]
Config = Annotated[Text, typer.Option("-c", "--config", metavar="FILE.yaml", help="Options as YAML; flags win.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One option by its key: --set model.hidden=[16]. Repeatable."),
]
Seed = Annotated[Text, flag(CommonOptions, "seed", "N")]
Device = Annotated[Text, flag(CommonOptions, "device", "auto|cpu|cuda")]
Dtype = Annotated[Text, flag(CommonOptions, "dtype", "float64|float32")]
Threads = Annotated[Text, flag(CommonOptions, "threads", "N")]
MaxMemory = Annotated[Text, flag(CommonOptions, "max_memory", "SIZE")]
MaxBytes = Annotated[
    Text,
    typer.Option(
        "--max-bytes", metavar="SIZE", help="Largest file that is read, stored or unpacked, such as 4GB; unset: 1GiB."
    ),
]
Json = Annotated[Switch, typer.Option("--json", help="Print one JSON object on stdout, nothing else there.")]
Quiet = Annotated[Switch, typer.Option("-q", "--quiet", help="Say nothing but errors on stderr.")]
Verbose = Annotated[Switch, typer.Option("-v", "--verbose", help="Say more on stderr.")]
Force = Annotated[Switch, typer.Option("-f", "--force", help="Overwrite an existing output.")]
DryRun = Annotated[Switch, typer.Option("-n", "--dry-run", help="Check everything and print the plan; write nothing.")]
ShowConfig = Annotated[Switch, typer.Option("--show-config", help="Print the resolved options as YAML and end.")]
