"""What a comparison will do: the rows, the data they need, and what a finished row depends on. Nothing is run here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from snet_cli.config.explain import nearest
from snet_cli.config.models import model_reference
from snet_cli.data.options import CommonOptions
from snet_cli.errors import UsageError
from snet_cli.training.options import PAPER_PRESET
from snet_cli.workflows.compare_options import DEFAULT_METHODS, CompareOptions, names_in
from snet_cli.workflows.experiment_sizes import Size, experiment
from snet_cli.workflows.experiments import Case, DataSet, Experiment, Run

Kind = Literal["train", "hold", "checkpoint"]

SNAPSHOTS = (20, 60, 100, 300)
"""Iterations after which an experiment keeps the model, for training forecasts (Quaglino et al. 2020, figs. 1, 6)."""


class TimeLimits(NamedTuple):
    """Most seconds of what is measured beside training: models explode, and solvers then take for ever.

    Attributes
    ----------
    track : float
        Each rollout over the training data while training; forecasts that are not over by then are not tracked.
    train, test : float
        The final rollouts; forecasts that are not over by then count as not having reached their end. The one over the
        training data may take as long as training, if that took longer.
    gradients : float
        All gradient norms; longer horizons are left out then.
    """

    track: float = 10.0
    train: float = 60.0
    test: float = 600.0
    gradients: float = 15.0


FULL_LIMITS = TimeLimits()

TIME_LIMITS: Mapping[Size, TimeLimits] = {
    "full": FULL_LIMITS,
    "quick": TimeLimits(2.0, 10.0, 20.0, 5.0),
    "tiny": TimeLimits(0.2, 0.4, 0.4, 0.2),
}

DEPENDED_ON = ("seed", "dtype", "device", "threads", "max_memory")
"""Common options that a row depends on."""

DATA, RUNS = "data", "runs"
"""Folders in DIR: what an experiment simulated, and one folder per row."""


@dataclass(frozen=True)
class Job:
    """One row: everything that a process of its own needs to make it.

    Attributes
    ----------
    label : str
        Name of its folder under `RUNS`.
    kind : str
        ``"train"`` a method, ``"hold"`` the last value, or test a ``"checkpoint"``.
    method, case : str
        Of the row.
    train, test, checkpoint : str or None
        Paths.
    fit : mapping
        Complete tree of `fit` options.
    settings : mapping
        The same as it was asked for, presets by name and without defaults: what the row depends on.
    common : mapping
        Tree of the common options.
    target_mse : float or None
    snapshots : tuple of int
    model_file : str or None
        FILE.py:Class of the user's own model.
    seconds : TimeLimits
    """

    label: str
    kind: Kind
    method: str
    case: str | None
    train: str | None = None
    test: str | None = None
    checkpoint: str | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    target_mse: float | None = None
    snapshots: tuple[int, ...] = ()
    model_file: str | None = None
    seconds: TimeLimits = FULL_LIMITS

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        limits = TimeLimits(*tree.get("seconds", FULL_LIMITS))
        return cls(**{**tree, "snapshots": tuple(tree["snapshots"]), "seconds": limits})

    @property
    def source(self) -> str | None:
        """Path of the user's own model file, if the row has one."""
        reference = self.model_file or model_reference(self.settings.get("model"))
        return None if reference is None else reference.rpartition(":")[0]

    def fingerprint(self, sums: Mapping[str, str]) -> str:
        """The sha256 of all that the row depends on, versions of programs apart.

        Parameters
        ----------
        sums : mapping of str to str
            sha256 by path.
        """
        files = {role: sums.get(str(getattr(self, role))) for role in ("train", "test", "checkpoint")}
        common = {key: self.common.get(key) for key in DEPENDED_ON}
        depends = [self.kind, self.method, self.case, files, self.settings, common, self.target_mse, self.snapshots]
        if self.source is not None:
            depends.append(sums.get(self.source))
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All rows in order, and the data to be simulated for them by path."""

    jobs: tuple[Job, ...]
    data: Mapping[str, DataSet] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What `--dry-run` prints."""
        return {
            "rows": [
                {
                    "method": job.method,
                    "case": job.case,
                    "iterations": job.fit.get("iterations"),
                    "max_time": job.fit.get("max_time"),
                    "target_mse": job.target_mse,
                    "train": job.train,
                    "test": job.test,
                    "checkpoint": job.checkpoint,
                }
                for job in self.jobs
            ],
            "data": [
                {
                    "file": path,
                    "system": data.system,
                    "seed": data.seed,
                    **data.options.model_dump(mode="json", exclude_unset=True),
                    **data.parameters,
                }
                for path, data in self.data.items()
            ],
        }


def plan_comparison(
    train: str | None, folder: str, options: CompareOptions, common: CommonOptions, size: Size | None = None
) -> Plan:
    """The rows that are asked for.

    Parameters
    ----------
    train : str or None
        TRAIN.
    folder : str
        DIR, where an experiment's data will be.
    size : str, optional
        Of an experiment; by default full, or quick with `--quick`.

    Raises
    ------
    UsageError
        For a method that does not exist, or arguments that contradict each other.
    """
    methods, checkpoints = options.method_names, names_in(options.checkpoints)
    if "-" in (train, options.test, *checkpoints):
        raise UsageError("each row reads the files anew, which standard input cannot.", "Write it to a file first.")
    experimental = options.preset is not None and options.preset != "paper"
    if options.quick and not experimental:
        raise UsageError("--quick is the small form of an experiment.", "Name one: --preset vehicle-dense")
    if experimental:
        given = {"TRAIN": train, "--test": options.test, "--checkpoints": options.checkpoints or None}
        extra = next((name for name, value in given.items() if value is not None), None)
        if extra is not None:
            raise UsageError(f"the preset '{options.preset}' simulates its own data.", f"Leave {extra} out.")
        assert options.preset is not None
        size = size or ("quick" if options.quick else "full")
        plan = _plan_experiment(experiment(options.preset, size), methods, folder, options, common)
        return replace(plan, jobs=tuple(replace(job, seconds=TIME_LIMITS[size]) for job in plan.jobs))
    _require_something(train, options, methods, checkpoints)
    paper = {"preset": "paper"} if options.preset == "paper" else {}
    if not methods and not checkpoints:
        methods = DEFAULT_METHODS
    jobs = [
        _training(Run(name, 0, paper), None, train, options.test, options, common, options.iterations)
        for name in methods
    ]
    jobs += _checkpoints(checkpoints, train, options, common)
    return Plan((*jobs, *_yardsticks(None, train, options.test, options, common)))


def _require_something(
    train: str | None, options: CompareOptions, methods: tuple[str, ...], checkpoints: tuple[str, ...]
) -> None:
    """There is data for what is to be compared."""
    if train is None and (methods or not checkpoints):
        raise UsageError(
            "the argument TRAIN is missing.", "For example: snet compare train.h5 --test test.h5 -o comparison"
        )
    if train is None and options.test is None:
        raise UsageError("--checkpoints needs data to be tested on.", "Add --test test.h5")


def _plan_experiment(
    whole: Experiment, methods: tuple[str, ...], folder: str, options: CompareOptions, common: CommonOptions
) -> Plan:
    """The runs of every case, or those of some methods, and the yardsticks of each case."""
    known = sorted({run.method for case in whole.cases for run in case.runs})
    for name in methods:
        if name not in known:
            hint = nearest(name, known) or f"It has {', '.join(known)}."
            raise UsageError(f"--methods: the preset '{whole.name}' does not train '{name}'.", hint)
    if "seed" not in common.model_fields_set:
        common = common.model_copy(update={"seed": whole.seed})
    data: dict[str, DataSet] = {}
    jobs: list[Job] = []
    for case in whole.cases:
        runs = [run for run in case.runs if not methods or run.method in methods]
        if not runs:
            continue
        train, test = _file(data, folder, "train", case, case.train), _file(data, folder, "test", case, case.test)
        for run in runs:
            limit = run.iterations if options.iterations is None else min(run.iterations, options.iterations)
            jobs.append(_training(run, case, train, test, options, common, limit))
        jobs += _yardsticks(case.name, train, test, options, common)
    return Plan(tuple(jobs), data)


def _file(data: dict[str, DataSet], folder: str, role: str, case: Case, wanted: DataSet) -> str:
    """Where a data set will be: cases with the same one share its file."""
    for path, other in data.items():
        if other == wanted:
            return path
    name = role if case.name is None else f"{role}-{_slug(case.name)}"
    if role == "test" and not any("test" in Path(path).name for path in data):
        name = role
    path = str(Path(folder) / DATA / f"{name}.h5")
    data[path] = wanted
    return path


def _training(
    run: Run,
    case: Case | None,
    train: str | None,
    test: str | None,
    options: CompareOptions,
    common: CommonOptions,
    iterations: int | None,
) -> Job:
    """The job of one method."""
    own: dict[str, Any] = dict(run.fit)
    if run.tolerances is not None:
        own = merged({"solver": dict(zip(("rtol", "atol"), run.tolerances, strict=True))}, own)
    budget = {"method": run.method, "iterations": iterations, "max_time": options.max_time}
    settings = merged(own, options.explicit, budget)
    label = run.variant if case is None else case.label(run)
    return Job(
        _slug(run.method, label),
        "train",
        run.method,
        label,
        train,
        test,
        fit=merged(PAPER_PRESET if settings.get("preset") == "paper" else {}, settings),
        settings=settings,
        common=common.model_dump(mode="json"),
        target_mse=options.target_mse,
        snapshots=() if case is None else SNAPSHOTS,
    )


def _yardsticks(
    case: str | None, train: str | None, test: str | None, options: CompareOptions, common: CommonOptions
) -> list[Job]:
    """X' = Ax + Bu + c in closed form, with this program's own step 0; and the last value."""
    mesh = {key: value for key, value in options.explicit.items() if key in ("order", "elements")}
    settings = {"method": "delta", "model": {"name": "linear"}, "x0": options.x0, **mesh}
    tree = common.model_dump(mode="json")
    linear = Job(
        _slug("linear", case), "train", "linear", case, train, test, fit=settings, settings=settings, common=tree
    )
    return [linear, Job(_slug("hold", case), "hold", "hold", case, train, test, common=tree)]


def _checkpoints(
    paths: tuple[str, ...], train: str | None, options: CompareOptions, common: CommonOptions
) -> list[Job]:
    """A row for each trained model; its method is read later."""
    stems = [Path(path).stem for path in paths]
    for k, stem in enumerate(stems):
        if _slug(stem).lower() in [_slug(other).lower() for other in stems[:k]]:
            raise UsageError(
                f"--checkpoints: '{stem}' is called almost as another of them.", "Rename one: names tell rows apart."
            )
    return [
        Job(
            _slug("checkpoint", stem),
            "checkpoint",
            "",
            stem,
            train,
            options.test,
            path,
            common=common.model_dump(mode="json"),
            model_file=model_reference(options.model),
        )
        for path, stem in zip(paths, stems, strict=True)
    ]


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Later trees win, key by key; another step's options do not survive a change of its name."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            held = result.get(key)
            if isinstance(value, Mapping) and isinstance(held, Mapping):
                same = value.get("name", held.get("name")) == held.get("name")
                result[key] = {**(held if same else {}), **value}
            else:
                result[key] = dict(value) if isinstance(value, Mapping) else value
    return result


def _slug(*parts: str | None) -> str:
    """A folder's name: ``alpha-50pct-defaults``."""
    text = "-".join(part for part in parts if part).replace("%", "pct")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
