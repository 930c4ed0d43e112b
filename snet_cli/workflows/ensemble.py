"""Several models of one data set: other first weights (`--seeds`), or other trajectories left out (`--folds`).

The discretisation and the method are chosen once, on all training trajectories; with other seeds step 0 is the same
too, and what is made of it. Members share nothing else: those of one process train in one batch where the method can
and side by side where not (`ensemble_members`), the processes of a team take some each and hand over what came out. The
best model by the rollout of its held-out trajectories (of the training data where nothing is held out) becomes the
checkpoint's; the weights of all stand beside it, stacked::

    /ensemble/<key>                (M, ...)   `state_dict` of every member
    /ensemble_normalization/<key>  (M, n)     centre, scale and start
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from snet_cli.data.checkpoint_file import Checkpoint, encode_checkpoint, load_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.distributed import Team
from snet_cli.errors import CheckpointError, NumericalError, UsageError
from snet_cli.training.options import EnsembleOptions
from snet_cli.workflows.ensemble_members import Member, MemberPlan, on_mesh, train_members
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.fit_task import FitTask
from snet_cli.workflows.member_runs import MemberName, MemberRun, open_metrics
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.resume import SavedRun, StateWriter
from snet_cli.workflows.train_one import set_up
from snet_cli.workflows.training_setup import STREAM_SPLIT, stream

WEIGHTS, NORMALIZATION = "ensemble", "ensemble_normalization"
"""Groups of a checkpoint that hold all members."""


def check_ensemble(task: FitTask, ensemble: EnsembleOptions) -> None:
    """Refuse what several models cannot be told together.

    Raises
    ------
    UsageError
    """
    if ensemble.seeds is not None and ensemble.folds is not None:
        raise UsageError("--seeds and --folds are two kinds of ensembles.", "Leave one of them out.")
    if ensemble.folds is not None and task.options.validation is not None:
        raise UsageError("--folds holds out trajectories of its own.", "Leave --validation out.")


def train_ensemble(
    task: FitTask,
    data: FitData,
    ensemble: EnsembleOptions,
    device: torch.device,
    keys: Mapping[MemberName, dict[str, Any]],
    saved: Mapping[MemberName, SavedRun],
    writers: list[StateWriter],
) -> tuple[Checkpoint, dict[str, Any]]:
    """Train all members, and put them into the checkpoint of the best.

    Parameters
    ----------
    keys, saved : mapping
        From `member_keys` and `saved_members`.
    writers : list
        Receives what keeps the states.

    Returns
    -------
    checkpoint : Checkpoint
    answer : dict
        The summary of the best, with ``ensemble``.
    """
    common, report, started, team = task.common, task.report, task.started, task.team
    known, options, discretised, zero = next(iter(saved.values()), None), task.options, task.options, None
    if known is not None:  # the method, and the discretisation, which `--max-time` may have cut short
        options = discretised = options.model_copy(update={"method": known.about["method"]})
        if ensemble.folds is None:
            zero = known.step_zero
        else:
            discretised = on_mesh(options, known.step_zero.mesh)
    base = set_up(discretised, common, data.train, device, started, zero, team)
    with open_metrics(task, saved) as metrics:
        plans = [
            MemberPlan(member, part, MemberRun(task, name, keys[name], saved.get(name), metrics, writers))
            for name, member, part in _parts(list(keys), data, common)
        ]
        mine = range(team.rank, len(plans), team.size)
        end = math.inf if options.max_time is None else started + options.max_time
        mine_of_all = [plans[number] for number in mine]
        trained = train_members(mine_of_all, options, base, data, device, report, end, team.place.local_size)
    found = {number: member for number, member in zip(mine, trained, strict=True) if member is not None}
    members = _exchanged(found, team)
    if not members:
        raise NumericalError("every model of the ensemble diverged at its first iteration.", "Look at `snet info`.")
    if len(members) < len(plans):
        report.note(f"{len(plans) - len(members)} of {len(plans)} models diverged at once and are left out.")
    return _combined(members, data, ensemble)


def require_a_trajectory_each(data: FitData, ensemble: EnsembleOptions) -> None:
    """Refuse more folds than trajectories.

    Raises
    ------
    UsageError
    """
    count, folds = len(data.train), ensemble.folds
    if folds is not None and folds > count:
        raise UsageError(f"--folds {folds} of {count} trajectories leaves some empty.", f"Give {count} or fewer.")


def _parts(
    names: Sequence[MemberName], data: FitData, common: CommonOptions
) -> Iterator[tuple[MemberName, CommonOptions, FitData]]:
    """Of each member its seed, and the trajectories that it trains on and is judged by."""
    count = len(data.train)
    order = np.random.default_rng(stream(common.seed, STREAM_SPLIT)).permutation(count)
    folds = np.array_split(order, len(names))
    for name, held in zip(names, folds, strict=True):
        if name.kind == "seed":
            yield name, name.seeded(common), data
        else:
            kept = np.setdiff1d(order, held)
            yield name, common, FitData(data.train.select(kept), data.train.select(np.sort(held)), data.parents)


def _exchanged(found: dict[int, Member], team: Team) -> list[Member]:
    """The members of all processes in order, on each of them."""
    if team.size == 1:
        return [found[number] for number in sorted(found)]
    parcels: dict[int, Member] = {}
    sizes, texts = [], []
    for number, member in found.items():
        image = encode_checkpoint(member.checkpoint, "a model of the ensemble")
        texts.append([number, member.told, member.summary, len(image)])
        sizes.append(image)
    images = team.bytes_of_all(b"".join(sizes))
    for text, image in zip(team.bytes_of_all(json.dumps(texts).encode()), images, strict=True):
        begin = 0
        for number, told, summary, size in json.loads(text):
            parcels[number] = Member(told, load_checkpoint(image[begin : begin + size]), summary)
            begin += size
    return [parcels[number] for number in sorted(parcels)]


def _combined(members: list[Member], data: FitData, ensemble: EnsembleOptions) -> tuple[Checkpoint, dict[str, Any]]:
    """The best member's checkpoint with the weights of all beside its own, and what the JSON says."""
    best = min(range(len(members)), key=lambda number: members[number].rank)
    kept = members[best].checkpoint
    checkpoints = [member.checkpoint for member in members]
    stacked = {
        WEIGHTS: {key: np.stack([c.state[key] for c in checkpoints]) for key in kept.state},
        NORMALIZATION: {key: np.stack([c.normalization[key] for c in checkpoints]) for key in kept.normalization},
    }
    asked = ensemble.model_dump(exclude_none=True)
    told = [member.told for member in members]
    timeless = [{key: value for key, value in one.items() if key != "ms_per_iteration"} for one in told]
    config = {**kept.config, "fit": {**kept.config["fit"], **asked}, "members": timeless, "best": best}
    record = provenance("fit", config["fit"], parents=data.parents)
    checkpoint = replace(
        kept,
        config=config,
        extra={**kept.extra, **stacked},
        provenance=record,
        history=history_line(record, [data.train.history]),
        title=f"{kept.title}, the best of {len(members)}",
    )
    spread = {
        "train_mse": _spread([one["train_mse"] for one in told]),
        "score": _spread([one["score"] for one in told]),
    }
    return checkpoint, {**members[best].summary, "ensemble": {"members": told, "best": best, "spread": spread}}


def _spread(values: list[float | None]) -> dict[str, float | None]:
    """Mean, standard deviation, least and largest of those that there are."""
    known = np.array([value for value in values if value is not None])
    if not known.size:
        return dict.fromkeys(("mean", "std", "min", "max"))
    return {"mean": known.mean(), "std": known.std(), "min": known.min(), "max": known.max()}


def members_of(checkpoint: Checkpoint, path: str) -> list[Checkpoint]:
    """Each member as a checkpoint of its own; none where it is no ensemble.

    Raises
    ------
    CheckpointError
        If the stacks do not fit the model.
    """
    if WEIGHTS not in checkpoint.extra:
        return []
    weights, scales = checkpoint.extra[WEIGHTS], checkpoint.extra.get(NORMALIZATION, {})
    own = {**checkpoint.state, **checkpoint.normalization}
    stacks = {**weights, **scales}
    counts = {values.shape[:1] for values in stacks.values()}
    fit = stacks.keys() == own.keys() and all(stacks[key].shape[1:] == own[key].shape for key in own)
    finite = all(np.isfinite(values).all() for values in stacks.values())
    if not (fit and finite and len(counts) == 1):
        raise CheckpointError(f"{path}: its ensemble does not fit its model.", "Train it again.")
    ((count,),) = counts
    return [
        replace(
            checkpoint,
            state={key: values[k] for key, values in weights.items()},
            normalization={key: values[k] for key, values in scales.items()},
        )
        for k in range(count)
    ]
