"""The presets of `compare` hold what the paper's tables and figures need, in three sizes."""

from __future__ import annotations

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import UsageError
from snet_cli.simulation.simulate import simulate
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.options import PAPER_PRESET, FitOptions
from snet_cli.workflows.experiment_sizes import experiment
from snet_cli.workflows.experiments import EXPERIMENTS
from snet_cli.workflows.fit import fit

METHODS = {
    "vehicle-dense": {None: "delta alpha bkpr-euler bkpr-dopri5 adj-euler adj-dopri5", "lobatto-15": "delta alpha"},
    "vehicle-sparse": {"50%": "alpha bkpr-euler bkpr-dopri5", "25%": "alpha bkpr-euler bkpr-dopri5"},
    "vehicle-noisy": {None: "alpha bkpr-euler"},
    "agents-dense": {None: "delta alpha bkpr-euler bkpr-dopri5"},
    "agents-sparse": {"50%": "alpha bkpr-euler", "20%": "alpha bkpr-euler"},
    "agents-gains": {None: "delta alpha bkpr-euler"},
}


def simulated(data):
    options = data.options.model_dump()
    return simulate(data.system, data.parameters, seed=data.seed, **options).trajectories


def test_every_preset_has_the_methods_of_its_table():
    found = {
        name: {case.name: " ".join(run.method for run in case.runs if run.variant is None) for case in each.cases}
        for name, each in EXPERIMENTS.items()
    }
    assert found == METHODS


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", ["full", "quick", "tiny"])
def test_no_two_rows_have_one_method_and_one_case(name, size):
    each = experiment(name, size)
    rows = [(run.method, case.label(run)) for case in each.cases for run in case.runs]
    assert len(set(rows)) == len(rows)
    assert all((row.method, row.case) in rows for row in each.published)


@pytest.mark.parametrize("name", METHODS)
def test_full_size_is_that_of_the_paper(name):
    for case in experiment(name).cases:
        train, test = case.train.options, case.test.options
        assert (train.trajectories, train.horizon) == (100, 10.0)
        assert (test.trajectories, test.horizon, test.noise, test.keep) == (100, 100.0, 0.0, 1.0)
        assert case.train.seed != case.test.seed
        limits = {run.method: run.iterations for run in case.runs if run.variant is None}
        assert limits["alpha"] in (100, 140, 160, 175, 180, 190)
        assert set(limits.values()) <= {100, 140, 160, 175, 180, 190, 480, 500, 990, 1200}


@pytest.mark.parametrize("name", METHODS)
def test_tiny_data_has_all_samples_of_the_full_one_and_few_trajectories(name):
    for small, full in zip(experiment(name, "tiny").cases, experiment(name).cases, strict=True):
        train = simulated(small.train)
        options = full.train.options
        assert len(train) == 2
        assert set(train.row_size) == {round(options.keep * options.samples)}
        assert np.all(train.end == 1.0)
        test = simulated(small.test)
        assert test.output_names == train.output_names
        assert test.inputs.names == train.inputs.names
        assert all(run.iterations == 3 for run in small.runs)


def test_agents_take_the_iterations_and_tolerances_of_the_paper():
    (case,) = experiment("agents-dense").cases
    assert next(run.iterations for run in case.runs if run.method == "alpha") == 180
    assert {run.method: run.tolerances for run in case.runs}["bkpr-dopri5"] == (1e-5, 1e-7)


def test_data_options_are_valid_options_of_simulate():
    for name in EXPERIMENTS:
        for size in ("full", "quick", "tiny"):
            for case in experiment(name, size).cases:
                for data in (case.train, case.test):
                    assert SimulateOptions.model_validate(data.options.model_dump()) == data.options


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match=r"no preset 'vehicle-dens'\. Did you mean 'vehicle-dense'\?"):
        experiment("vehicle-dens")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["delta", "alpha"])
def test_increased_gains_leave_the_learning_curve_of_snet_unchanged(method, tmp_path, monkeypatch):
    """App. C, fig. 5: the iterations after which the loss is below 30, 10, 3, 1 and 0.3 % of the first one.

    Under increased gains they differ by at most a fifth from those under the training policy. The level at which a
    curve ends is no matter of learning: it is what order 14 leaves of the true f, whose jumps at ±π grow with gains.
    """
    monkeypatch.chdir(tmp_path)
    reached = {}
    for system in ("multi-agent", "multi-agent-gains"):
        save_trajectories(f"{system}.h5", simulate(system, trajectories=5).trajectories)
        for seed in range(2):
            options = FitOptions(preset="paper", **PAPER_PRESET, method=method, iterations=70)
            fit(f"{system}.h5", "m.h5", options, CommonOptions(seed=seed), force=True)
            loss = load_checkpoint("m.h5").extra["history"]["loss"][:, 2]
            below = loss[:, None] < loss[0] * np.array([0.3, 0.1, 0.03, 0.01, 0.003])
            assert below.any(0).all()
            reached[system, seed] = 1 + below.argmax(0)
    for seed in range(2):
        ratio = reached["multi-agent-gains", seed] / reached["multi-agent", seed]
        assert np.all(np.abs(ratio - 1.0) <= 0.2), ratio
