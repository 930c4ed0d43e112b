"""What can be wrong with a comparison before any training: data that cannot be read, models that do not fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snet_cli.config.models import model_options
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import UsageError
from snet_cli.models.registry import default_model, state_space
from snet_cli.training.options import FitOptions
from snet_cli.workflows.compare_plan import Job
from snet_cli.workflows.experiments import DataSet
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.training_setup import choose_model, lay_out


def check_models(jobs: Sequence[Job], data: Mapping[str, DataSet], common: CommonOptions, report: Reporter) -> None:
    """The model of every row that is trained can be built for its data, and TEST has what it needs.

    Parameters
    ----------
    data : mapping of str to DataSet
        What is still to be simulated, by path.

    Raises
    ------
    SnetError
    """
    trained = [job for job in jobs if job.kind == "train" and job.train is not None]
    for job in trained:
        known = data.get(str(job.train))
        if known is not None:
            model_options(FitOptions.model_validate(dict(job.fit)).model, default_model(known.system))
    files = {str(job.train): job for job in reversed(trained) if job.train not in data}
    for path, first in files.items():
        train = load_fit_data(path, FitOptions.model_validate(dict(first.fit)), common, report).train
        for job in trained:
            if job.train == path and job.method != "linear":
                options = FitOptions.model_validate(dict(job.fit))
                choice = choose_model(options, train)
                lay_out(options, choice, train)
                state_space(choice.name, train.output_names, train.inputs.names)
        _check_test(first.test, train, common)
    alone = {job.test for job in jobs if job.train is None and job.test is not None}
    for path in alone:
        load_with_notes(str(path), max_bytes=common.max_bytes, allow_missing_channels=True)


def _check_test(path: str | None, train: Trajectories, common: CommonOptions) -> None:
    """TEST is driven by the inputs of TRAIN, and measures one of its outputs if it measures anything."""
    if path is None:
        return
    test = load_with_notes(path, max_bytes=common.max_bytes, allow_missing_channels=True).trajectories
    missing = [name for name in train.inputs.names if name not in test.inputs.names]
    if missing:
        raise UsageError(
            f"--test {path}: has no input '{missing[0]}', which TRAIN has.", "Import both with the same --inputs."
        )
    if test.output_names and not set(test.output_names) & set(train.output_names):
        raise UsageError(
            f"--test {path}: has none of the outputs of TRAIN ({', '.join(train.output_names)}).",
            "Import both with the same --states.",
        )
