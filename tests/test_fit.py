"""`snet fit` from file to checkpoint: its JSON, its file, what it reads and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.training.options import PAPER_PRESET, FitOptions
from snet_cli.workflows.fit import fit
from snet_cli.workflows.reporter import Silent, Tick
from tests.shooting_cases import held
from tests.training_cases import spirals

KEYS = {
    "snet", "command", "method", "model", "status", "iterations", "seconds", "seconds_setup", "ms_per_iteration",
    "loss", "parameters", "order", "elements", "gamma", "train_mse", "train_diverged", "validation", "evaluations",
    "peak_memory_mb", "resumed_from", "output",
}  # fmt: skip
"""The keys that DESIGN, section 4, fixes."""

QUICK = FitOptions(method="delta", model={"name": "mlp", "hidden": [8]}, order=6, elements=2, iterations=5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Spirals in `a.h5` of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(8, 40, noise=0.01))
    return tmp_path


class Listener(Silent):
    """Collects what is told, and asks to stop after so many iterations."""

    def __init__(self, stop_after: float = math.inf):
        self.notes: list[str] = []
        self.ticks: list[Tick] = []
        self.stop_after = stop_after

    def note(self, text):
        self.notes.append(text)

    def progress(self, tick):
        self.ticks.append(tick)

    def should_stop(self):
        return len(self.ticks) >= self.stop_after


# result and files


def test_the_papers_preset_on_the_vehicle(snet):
    made = snet("simulate", "vehicle", "-o", "v.h5", "--trajectories", 4, "--samples", 40)
    assert made.code == 0, made.err
    ran = snet("fit", "v.h5", "-o", "m.h5", "--method", "delta", "--preset", "paper", "--iterations", 5, "--json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert result.keys() >= KEYS
    assert result["loss"].keys() == {"total", "residual", "misfit"}
    told = {key: result[key] for key in ("command", "method", "model", "status", "iterations", "order", "elements")}
    assert told == {
        "command": "fit",
        "method": "delta",
        "model": "vehicle",
        "status": "iterations",
        "iterations": 5,
        "order": 14,
        "elements": 1,
    }
    assert result["evaluations"] == 5
    assert result["parameters"] == 32 * (2 + 1 + 9) + 9 + 32 * (3 + 9) + 32 * (3 + 3)
    assert result["validation"] is result["resumed_from"] is result["gamma"] is None
    assert result["loss"]["total"] == result["loss"]["residual"] > 0
    assert result["train_mse"] > 0
    assert result["seconds"] >= result["seconds_setup"] > 0
    assert snet("info", "m.h5", "--check").code == 0
    checkpoint = load_checkpoint("m.h5")
    assert {key: checkpoint.config["fit"][key] for key in PAPER_PRESET} == PAPER_PRESET
    assert checkpoint.extra["history"]["loss"].shape == (5, 4)
    assert checkpoint.contract["constants"] == {"m": 1.0, "I": 1.0}


def test_the_same_options_and_seed_give_the_same_bytes_under_any_name(file):
    fit("a.h5", "m.h5", QUICK)
    Path("sub").mkdir()
    fit("a.h5", "sub/other.h5", QUICK, metrics="metrics.csv", report=Listener())
    fit("a.h5", "seed.h5", QUICK, CommonOptions(seed=1))
    assert Path("m.h5").read_bytes() == Path("sub/other.h5").read_bytes()
    assert Path("m.h5").read_bytes() != Path("seed.h5").read_bytes()


def test_metrics_are_one_row_per_iteration(file):
    result = fit("a.h5", "m.h5", QUICK, metrics="metrics.csv")
    rows = list(csv.DictReader(Path("metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == ["iteration", "residual", "misfit", "total", "held_out", "seconds"]
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5]
    assert float(rows[-1]["residual"]) == result["loss"]["residual"]
    assert np.diff([float(row["seconds"]) for row in rows]).min() >= 0
    history = load_checkpoint("m.h5").extra["history"]["loss"]
    assert [float(row["total"]) for row in rows] == history[:, 2].tolist()


def test_a_dry_run_plans_everything_and_writes_nothing(file):
    before = sorted(file.iterdir())
    plan = fit("a.h5", "m.h5", QUICK, dry_run=True, metrics="metrics.csv")
    assert sorted(file.iterdir()) == before
    json.dumps(plan, allow_nan=False)
    assert (plan["order"], plan["elements"], plan["iterations"], plan["trajectories"]) == (6, 2, 5, 8)
    assert plan["step_zero"].keys() == {"a", "b"}
    automatic = fit("a.h5", "m.h5", FitOptions(), dry_run=True)
    noise = [automatic["step_zero"][name]["noise"] for name in ("a", "b")]
    assert noise == pytest.approx([0.01, 0.01], rel=1.0)
    assert automatic["model"]["name"] == "mlp"


@pytest.mark.parametrize("occupied", ["m.h5", "metrics.csv"])
def test_existing_outputs_are_refused_before_any_file_is_read(snet, occupied):
    Path(occupied).write_text("precious")
    ran = snet("fit", "none.h5", "-o", "m.h5", "--metrics", "metrics.csv")
    assert ran.code == 5
    assert ran.err.startswith(f"error: {occupied}: exists already.\n")
    assert Path(occupied).read_text() == "precious"
    assert Path("m.h5").exists() == (occupied == "m.h5")


def test_a_folder_that_does_not_exist_is_found_before_training(file, snet):
    assert snet("fit", "a.h5", "-o", "none/m.h5").code == 5


# how training ends


def test_a_request_to_stop_keeps_the_model_so_far(file):
    listener = Listener(stop_after=3)
    result = fit("a.h5", "m.h5", QUICK.model_copy(update={"iterations": 1000}), report=listener)
    assert (result["status"], result["iterations"]) == ("stopped", 3)
    assert [tick.done for tick in listener.ticks if tick.phase == "training"] == [1, 2, 3]
    assert load_checkpoint("m.h5").kind == "model"


def test_the_time_limit_holds_for_the_whole_command(file):
    adam = {"name": "adam", "rate": 1e-3}
    options = FitOptions.model_validate({**QUICK.model_dump(), "iterations": 10**6, "theta_step": adam, "max_time": 2})
    begin = time.perf_counter()
    result = fit("a.h5", "m.h5", options)
    assert result["status"] == "max-time"
    assert result["iterations"] > 10
    assert time.perf_counter() - begin < 4.0
    assert result["seconds"] < 4.0


def test_the_tolerance_ends_training(file):
    result = fit("a.h5", "m.h5", QUICK.model_copy(update={"iterations": 500, "tolerance": 0.1}))
    assert result["status"] == "converged"
    assert result["loss"]["total"] <= 0.1
    assert result["iterations"] < 500


def test_a_linear_model_needs_one_step(file):
    result = fit("a.h5", "m.h5", FitOptions(method="delta", model="linear", order=10, elements=2))
    assert (result["status"], result["iterations"], result["evaluations"]) == ("converged", 1, 1)
    assert result["train_mse"] < 1e-3


def test_single_precision_trains_too(file):
    single = fit("a.h5", "s.h5", QUICK, CommonOptions(dtype="float32"))
    double = fit("a.h5", "d.h5", QUICK)
    assert single["loss"]["residual"] == pytest.approx(double["loss"]["residual"], rel=1e-2)
    kinds = {load_checkpoint("s.h5").state[name].dtype for name in ("network.0.weight", "network.2.bias")}
    assert kinds == {np.dtype(np.float32)}


# which trajectories


def test_a_validation_file_chooses_the_best_iteration(file):
    save_trajectories("val.h5", spirals(3, 40, seed=5))
    result = fit("a.h5", "m.h5", QUICK.model_copy(update={"iterations": 12, "validation": "val.h5"}))
    assert result["validation"].keys() == {"relaxed", "mse", "best_iteration"}
    assert result["validation"]["best_iteration"] in (5, 10, 12)
    assert result["validation"]["mse"] > 0
    parents = load_checkpoint("m.h5").provenance["parents"]
    assert parents.keys() == {"train", "validation"}


def test_a_fraction_is_drawn_from_the_training_file_by_the_seed(file):
    plans = [fit("a.h5", "m.h5", QUICK.model_copy(update={"validation": f}), dry_run=True) for f in (0.25, "0.25", 0.9)]
    assert [(plan["trajectories"], plan["validation"]) for plan in plans] == [(6, 2), (6, 2), (1, 7)]
    drawn = [
        fit("a.h5", f"{seed}.h5", QUICK.model_copy(update={"validation": 0.25}), CommonOptions(seed=seed))["validation"]
        for seed in (0, 1)
    ]
    assert drawn[0]["mse"] != drawn[1]["mse"]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0.97", "error: --validation 0.97 of 8 trajectories leaves none to train on.\nGive a file, or a smaller"),
        ("1.5", "error: --validation 1.5: a fraction lies between 0 and 1.\nGive 0.2, or a file.\n"),
        ("none.h5", "error: none.h5: "),
    ],
)
def test_a_validation_that_cannot_be_is_refused(file, snet, share, message):
    ran = snet("fit", file / "a.h5", "-o", "m.h5", "--validation", share)
    assert ran.code == (3 if share == "none.h5" else 2)
    assert ran.err.startswith(message)


def test_a_validation_file_needs_the_same_channels(file, snet):
    other = spirals(2, 40)
    save_trajectories("b.h5", replace(other, output_names=("a", "z"), state_names=("a", "z")))
    ran = snet("fit", file / "a.h5", "-o", "m.h5", "--validation", file / "b.h5", "--order", 6, "--elements", 2)
    assert ran.code == 2
    assert "has no channel 'b', which the training file has.\n" in ran.err


def test_the_split_of_the_file_is_obeyed_and_test_trajectories_are_never_read(file):
    data = spirals(8, 40)
    split = np.array([0, 0, 1, 2, 0, 2, 1, 0])
    poisoned = data.outputs.copy()
    poisoned[np.isin(data.trajectory_of_row(), [3, 5])] = 1e30
    save_trajectories("s.h5", replace(data, split=split, outputs=poisoned))
    save_trajectories("t.h5", data.select([0, 1, 4, 7]))
    save_trajectories("v.h5", data.select([2, 6]))
    plan = fit("s.h5", "m.h5", QUICK, dry_run=True)
    assert (plan["trajectories"], plan["validation"]) == (4, 2)
    ours = fit("s.h5", "m.h5", QUICK)
    theirs = fit("t.h5", "n.h5", QUICK.model_copy(update={"validation": "v.h5"}))
    assert ours["loss"] == theirs["loss"]
    assert ours["validation"] == theirs["validation"]


# bad data


def refused(snet, data, *more):
    """Exit code and error text of a fit on this data."""
    save_trajectories("bad.h5", data)
    ran = snet("fit", "bad.h5", "-o", "bad_model.h5", *more)
    assert not Path("bad_model.h5").exists()
    return ran.code, ran.err


def test_a_channel_that_is_never_measured_is_named(snet):
    data = spirals(3, 30)
    data.outputs[:, 1] = np.nan
    code, err = refused(snet, data)
    assert code == 3
    assert err.startswith("error: bad.h5: output 'b' has no value at all (every entry of 'y_b' is missing).\n")


def test_a_channel_that_is_measured_in_no_training_trajectory_is_named(snet):
    data = spirals(3, 30)
    data.outputs[data.trajectory_of_row() < 2, 1] = np.nan
    code, err = refused(snet, replace(data, split=np.array([0, 0, 1])))
    assert code == 3
    assert err.endswith(
        "error: the channel 'b' has no measured value in the trajectories to train on.\n"
        "Leave it out on import, or train on trajectories that measure it.\n"
    )


def test_inputs_that_end_before_the_outputs_are_refused_with_both_times(snet):
    data = spirals(2, 30)
    knots = [np.linspace(0, 4, 9), np.linspace(0, 3, 9)]
    code, err = refused(snet, replace(data, inputs=held(knots, [np.zeros(9), np.ones(9)])))
    assert code == 3
    assert err.endswith(
        "error: trajectory '1': the inputs are known from 0 to 3 s, the outputs from 0 to 4 s.\n"
        "Cut the outputs to the time that the inputs cover.\n"
    )


def test_a_trajectory_with_one_sample_is_refused(snet):
    data = spirals(2, 30)
    keep = (data.trajectory_of_row() == 0) | (data.time == 0)
    code, err = refused(snet, data.select_rows(keep))
    assert code == 3
    assert err.startswith("error: trajectory '1' has 1 sample(s); training needs 2.\n")


def test_trajectories_of_two_samples_are_trained_on_with_nothing_held_out(snet):
    data = spirals(2, 30)
    save_trajectories("two.h5", data.select_rows((data.time == 0) | (data.time == 4)))
    ran = snet("fit", "two.h5", "-o", "m.h5", "--method", "delta", "--iterations", 2, "--json")
    assert ran.code == 0
    assert "are not determined by their samples" in ran.err
    assert (ran.json["order"], ran.json["elements"]) == (4, 1)


def test_a_structured_model_on_other_channels_is_wrong_usage(snet):
    code, err = refused(snet, spirals(2, 30), "--model", "vehicle")
    assert code == 2
    assert err == (
        "error: the output 'a' observes no state of the model (x, y, phi, vx, vy, omega).\n"
        "Say observe: {a: STATE}, or choose --model mlp.\n"
    )


def test_an_option_that_the_model_does_not_have_is_named_with_the_nearest(snet):
    code, err = refused(snet, spirals(2, 30), "--model", "mlp", "--set", "model.hiden=[8]")
    assert code == 2
    assert err.startswith("error: --set model.hiden: the model 'mlp' has no option 'hiden'.\nDid you mean 'hidden'?")
    code, err = refused_again(snet, "--set", "model.angles=[c]")
    assert code == 2
    assert err.startswith("error: model.angles names 'c', which is none of a, b, p, r.\n")


def refused_again(snet, *more):
    ran = snet("fit", "bad.h5", "-o", "bad_model.h5", *more)
    return ran.code, ran.err


def test_a_constant_channel_is_a_note_not_an_error(snet):
    data = spirals(4, 30)
    data.outputs[:, 1] = 2.5
    save_trajectories("c.h5", data)
    ran = snet("fit", "c.h5", "-o", "m.h5", "--order", 6, "--elements", 1, "--iterations", 5, "--json")
    assert ran.code == 0, ran.err
    assert math.isfinite(ran.json["train_mse"])
    assert "note: output 'b' is constant (2.5).\n" in ran.err


@pytest.mark.parametrize("method", ["delta", "alpha", "joint"])
def test_a_system_at_rest_is_learned_at_once_and_stays_at_rest(snet, method):
    data = spirals(3, 30)
    data.outputs[:] = np.array([1e5, -0.3])  # the derivative of the series is rounding, some 1e-10 of a unit
    save_trajectories("rest.h5", data)
    ran = snet("fit", "rest.h5", "-o", "m.h5", "--method", method, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["status"], ran.json["iterations"]) == ("converged", 1)
    assert ran.json["train_mse"] <= (1e-9 * 1e5) ** 2


def test_a_file_without_outputs_cannot_be_trained_on(snet):
    data = spirals(2, 30)
    empty = data.select_rows(np.zeros(60, bool))
    code, err = refused(snet, replace(empty, truth=None))
    assert code == 3
    assert err == "error: the file holds no measured outputs, so there is nothing to train on.\n"


def test_missing_values_are_only_missing(file):
    data = load_trajectories("a.h5")
    rng = np.random.default_rng(0)
    values = np.where(rng.random(data.outputs.shape) < 0.2, np.nan, data.outputs)
    save_trajectories("holes.h5", replace(data, outputs=values))
    whole, holes = (
        fit(name, f"m_{name}", QUICK.model_copy(update={"iterations": 40})) for name in ("a.h5", "holes.h5")
    )
    assert holes["status"] == whole["status"] == "iterations"
    assert holes["loss"]["residual"] == pytest.approx(whole["loss"]["residual"], rel=1.0)
