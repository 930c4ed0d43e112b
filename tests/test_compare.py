"""`snet compare`: rows that are measured, kept, resumed and refused; what an experiment of the paper orders."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from snet_cli.cli.signals import Interrupted
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import load_trajectories
from snet_cli.evaluation.comparison import KEYS
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.loop import Limits, run
from snet_cli.training.method import Step
from snet_cli.workflows import compare as workflow
from snet_cli.workflows import compare_figures, compare_process
from snet_cli.workflows.compare import compare
from snet_cli.workflows.compare_hold import held_forecast
from snet_cli.workflows.compare_options import CompareOptions, Preset
from snet_cli.workflows.compare_plan import Job, merged, plan_comparison
from snet_cli.workflows.compare_process import run_isolated
from snet_cli.workflows.compare_rows import make_row
from snet_cli.workflows.compare_tracking import Stopwatch, tracked_iterations
from snet_cli.workflows.experiments import EXPERIMENTS
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.simulate import simulate
from tests.command import Snet


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two short vehicle files."""
    folder = tmp_path_factory.mktemp("data")
    options = SimulateOptions(trajectories=2, samples=21, horizon=2.0)
    paths = {"train": str(folder / "train.h5"), "test": str(folder / "test.h5")}
    for seed, path in enumerate(paths.values()):
        simulate("vehicle", path, options, common=CommonOptions(seed=seed))
    return paths


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows are made in this process; the labels of those that were."""
    made: list[str] = []

    def in_this_process(job: Job, *rest: Any) -> Any:
        made.append(job.label)
        return make_row(job, *rest)

    monkeypatch.setattr(workflow, "run_isolated", in_this_process)
    monkeypatch.setattr(compare_figures, "draw_comparison", lambda *rest: [])  # two seconds each
    return made


FEW = ("--preset", "paper", "--iterations", 3)


def by_method(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in result["rows"]}


@pytest.mark.slow
def test_each_method_runs_in_a_process_of_its_own(
    snet: Snet, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def delta_alone(job: Job, *rest: Any) -> Any:  # a process costs three seconds
        return (run_isolated if job.method == "delta" else make_row)(job, *rest)

    monkeypatch.setattr(workflow, "run_isolated", delta_alone)
    ran = snet("compare", files["train"], "--test", files["test"], "--methods", "delta", *FEW, "-o", "out", "--json")
    assert (ran.code, ran.json["command"], ran.json["output"]) == (0, "compare", "out")
    rows = by_method(ran.json)
    assert list(rows) == ["delta", "linear", "hold"]
    assert all(set(row) >= set(KEYS) for row in rows.values())
    delta = rows["delta"]
    assert (delta["status"], delta["iterations"], delta["case"], delta["message"]) == ("iterations", 3, None, None)
    assert 50 < delta["peak_memory_mb"] < 2000
    assert 0 < delta["seconds_setup"] < delta["seconds"]
    assert len(delta["gradient_norm"]) >= 3
    assert json.loads(Path("out/result.json").read_text())["rows"] == ran.json["rows"]
    assert {path.name for path in Path("out").iterdir()} >= {"table.csv", "table.md", "loss.png", "forecasts.png"}
    for name, key in (("train", "train_mse"), ("test", "test_mse")):
        data = load_trajectories(files[name])
        samples = data.outputs.reshape(len(data), -1, len(data.output_names))
        assert rows["hold"][key] == pytest.approx(np.mean((samples - samples[:, :1]) ** 2))


def test_hold_keeps_the_last_value_of_the_init_window(files: dict[str, str]) -> None:
    data = replace(load_trajectories(files["train"]), init_window=np.array([4, 0]), x0=None)
    forecast = held_forecast(data.output_names, data, torch.device("cpu"))
    held = forecast.trajectories.outputs.reshape(2, -1, len(data.output_names))
    samples = data.outputs.reshape(held.shape)
    assert np.array_equal(held, np.repeat([samples[:1, 3], samples[1:, 0]], held.shape[1], axis=1).reshape(held.shape))


@pytest.mark.slow
def test_resume_makes_what_is_missing_and_nothing_else(snet: Snet, files: dict[str, str], here: list[str]) -> None:
    command = ("compare", files["train"], "--test", files["test"], "--methods", "delta,bkpr-euler", "-o", "out")
    first = snet(*command, *FEW, "--json")
    assert (first.code, here) == (0, ["delta", "bkpr-euler", "linear"])
    assert snet(*command, *FEW).code == 5
    here.clear()
    Path("out/runs/bkpr-euler/row.json").unlink()
    again = snet(*command, *FEW, "--resume", "--json")
    assert (again.code, here) == (0, ["bkpr-euler"])
    assert by_method(again.json)["delta"] == by_method(first.json)["delta"]
    here.clear()
    more = snet(*command, "--preset", "paper", "--iterations", 4, "--resume", "--json")
    assert (more.code, here) == (0, ["delta", "bkpr-euler"])
    assert by_method(more.json)["delta"]["iterations"] == 4
    here.clear()
    assert snet(*command, *FEW, "--force").code == 0
    assert here == ["delta", "bkpr-euler", "linear"]


def test_an_interrupted_comparison_says_how_to_go_on(
    snet: Snet, files: dict[str, str], here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_euler(job: Job, *rest: Any) -> Any:
        if job.method == "bkpr-euler":
            raise Interrupted(signal.SIGINT)
        return make_row(job, *rest)

    monkeypatch.setattr(workflow, "run_isolated", stop_at_euler)
    both = ("--methods", "delta,bkpr-euler", "--set", "order=9")
    ran = snet("compare", files["train"], *both, *FEW, "-o", "my out", "-f")
    assert ran.code == 130
    assert "--methods delta,bkpr-euler" in ran.err
    assert "-o 'my out'" in ran.err
    assert "--set order=9 --resume" in ran.err
    assert "--force" not in ran.err
    with Path("my out/table.csv").open() as stream:
        assert [row["method"] for row in csv.DictReader(stream)] == ["delta"]


def test_a_method_that_fails_is_a_row_that_says_so(snet: Snet, files: dict[str, str], here: list[str]) -> None:
    command = ("compare", files["train"], "--set", "solver.max_evaluations=10", "--json", *FEW)
    both = snet(*command, "--methods", "bkpr-dopri5,delta", "-o", "both")
    row = by_method(both.json)["bkpr-dopri5"]
    assert (both.code, row["status"], row["final_loss"]) == (0, "failed", None)
    assert row["message"] == "failed: more than 10 evaluations of f in one solution at the first iteration"
    assert by_method(both.json)["delta"]["train_mse"] is not None
    alone = snet(*command, "--methods", "bkpr-dopri5", "-o", "alone")
    assert alone.code == 6
    assert alone.json["rows"][0] | {"seconds": 0, "seconds_setup": 0, "peak_memory_mb": 0} == row | {
        "seconds": 0,
        "seconds_setup": 0,
        "peak_memory_mb": 0,
    }
    assert "more than 10 evaluations" in alone.json["error"]["message"]


def test_a_process_that_dies_is_a_failed_row_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_process, "WORKER", "this.is.nowhere")
    done = run_isolated(Job("a", "hold", "hold", None), tmp_path, "", Silent())
    assert done.row.status == "failed"
    assert "its process ended with 1" in str(done.row.message)
    assert not list(tmp_path.iterdir())
    assert "memory" in compare_process._reason(-signal.SIGKILL, "")


def test_checkpoints_are_compared_under_their_own_names(snet: Snet, files: dict[str, str], here: list[str]) -> None:
    for name, method in (("one", "delta"), ("two", "alpha")):
        assert snet("fit", files["train"], "-o", f"{name}.h5", "--method", method, *FEW).code == 0
    ran = snet("compare", "--test", files["test"], "--checkpoints", "one.h5,two.h5", "-o", "out", "--json")
    assert ran.code == 0
    assert [(row["method"], row["case"]) for row in ran.json["rows"]] == [
        ("delta", "one"),
        ("alpha", "two"),
        ("linear", None),
        ("hold", None),
    ]
    evaluated = snet("evaluate", "one.h5", files["test"], "--json").json
    assert ran.json["rows"][0]["test_mse"] == pytest.approx(evaluated["mse"], rel=1e-12)
    assert "needs TRAIN" in by_method(ran.json)["linear"]["message"]


def test_a_method_stops_at_the_target(snet: Snet, files: dict[str, str], here: list[str]) -> None:
    command = ("compare", files["train"], "--methods", "delta,bkpr-euler", "--preset", "paper", "--json")
    ran = snet(*command, "--target-mse", 1e9, "-o", "out")
    assert {(row["status"], row["iterations"]) for row in ran.json["rows"][:2]} == {("converged", 1)}
    assert all(row["train_mse"] <= 1e9 for row in ran.json["rows"])


def test_the_common_loss_is_tracked_outside_the_clock() -> None:
    clock = Stopwatch()

    class Still:
        name, evaluations = "still", 0

        class model:  # noqa: N801
            parameters = staticmethod(lambda: [])

        def step(self) -> Step:
            return Step(1.0, 1.0, 1.0)

        def held_out(self) -> None:
            return None

    def track(progress: Any) -> bool:
        with clock.stopped():
            time.sleep(0.05)
        return progress.iteration == 3

    result = run(Still(), Limits(5, stop_when_stalled=False), is_enough=track, clock=clock)
    assert (result.status, result.iterations) == ("converged", 3)
    assert result.seconds < 0.05


def test_tracked_iterations_are_spread_evenly_and_dense_with_a_target() -> None:
    few, many = sorted(tracked_iterations(1200, target=False)), sorted(tracked_iterations(1200, target=True))
    assert (few[0], few[-1]) == (1, 1200)
    assert 12 <= len(few) <= 20
    assert set(few) <= set(many)
    assert all(b <= max(a + 1, 1.05 * a) for a, b in itertools.pairwise(many))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["TRAIN", "--methods", "dleta"], 2, "Did you mean 'delta'?"),
        (["TRAIN", "--methods", "delta,delta"], 2, "twice"),
        (["--preset", "vehicle-dens"], 2, "Did you mean 'vehicle-dense'?"),
        (["--preset", "vehicle-noisy", "--methods", "delta"], 2, "does not train 'delta'"),
        (["TRAIN", "--preset", "vehicle-noisy"], 2, "simulates its own data"),
        (["TRAIN", "--quick"], 2, "--preset vehicle-dense"),
        ([], 2, "TRAIN is missing"),
        (["-"], 2, "standard input"),
        (["--checkpoints", "a.h5"], 2, "--test"),
        (["TRAIN", "--set", "model.hiden=[8]"], 2, "Did you mean 'hidden'?"),
        (["TRAIN", "--model", "multi-agent"], 2, "of the model"),
        (["--preset", "vehicle-noisy", "--set", "model.angles=[x]"], 2, "angles"),
        (["none.h5"], 3, "none.h5"),
        (["TRAIN", "--test", "none.h5"], 3, "none.h5"),
        (["TRAIN", "--checkpoints", "none.h5"], 4, "none.h5"),
        (["TRAIN", "--checkpoints", "TRAIN"], 4, ""),
        (["TRAIN", "-o", "no/where"], 5, "no folder"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    snet: Snet, files: dict[str, str], here: list[str], arguments: list[str], code: int, said: str
) -> None:
    given = [files["train"] if argument == "TRAIN" else argument for argument in arguments]
    ran = snet("compare", *given, *([] if "-o" in given else ["-o", "out"]))
    assert ran.code == code, ran.err
    assert said in ran.err
    assert here == []
    assert list(Path().iterdir()) == []


def test_the_presets_are_the_experiments() -> None:
    assert set(get_args(Preset)) == {"paper", *EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_dry_run_shows_all_rows_of_an_experiment_and_writes_nothing(snet: Snet, name: str) -> None:
    ran = snet("compare", "--preset", name, "--dry-run", "--json", "-o", "out")
    assert ran.code == 0
    runs = [(run.method, case.label(run)) for case in EXPERIMENTS[name].cases for run in case.runs]
    rows = [(row["method"], row["case"]) for row in ran.json["rows"]]
    assert [row for row in rows if row[0] not in ("linear", "hold")] == runs
    assert not Path("out").exists()
    assert snet("compare", "--preset", name, "-n").code == 0


QUICKEST = ("agents-dense",)
"""The others differ from it in their data and methods."""


@pytest.mark.parametrize(
    "name", [name if name in QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
)
def test_an_experiment_of_three_iterations_ends_with_every_row(tmp_path: Path, name: str, here: list[str]) -> None:
    out = str(tmp_path / "out")
    options = CompareOptions(preset=name, order=7, gamma=3.0)  # no search for them, which would take most of the time
    result = compare(None, out, options, size="tiny", isolate=False).result
    cases = EXPERIMENTS[name].cases
    assert len(result["rows"]) == sum(len(case.runs) + 2 for case in cases)
    snets = [row for row in result["rows"] if row["method"] in ("delta", "alpha")]
    assert all(row["train_mse"] is not None and row["iterations"] <= 3 for row in snets)
    assert all(row["status"] in ("iterations", "converged", "failed") for row in result["rows"])


def test_an_explicit_option_wins_over_the_run_and_the_run_over_the_preset() -> None:
    options = CompareOptions(preset="agents-dense", gamma=5.0, theta_step={"name": "lbfgs"}, iterations=50)
    jobs = {job.label: job for job in plan_comparison(None, "out", options, CommonOptions()).jobs}
    alpha = jobs["alpha"].fit
    assert (alpha["gamma"], alpha["order"], alpha["iterations"]) == (5.0, 14, 50)
    assert alpha["theta_step"] == {"name": "lbfgs"}
    assert jobs["bkpr-dopri5"].fit["solver"] == {"rtol": 1e-5, "atol": 1e-7}
    assert merged({"a": {"name": "x", "k": 1}}, {"a": {"k": 2}}) == {"a": {"name": "x", "k": 2}}


def test_what_a_row_depends_on() -> None:
    plan = plan_comparison("t.h5", "out", CompareOptions(methods="delta"), CommonOptions())
    job, sums = plan.jobs[0], {"t.h5": "1"}
    assert job.fingerprint(sums) == Job.from_json(json.loads(json.dumps(job.to_json()))).fingerprint(sums)
    assert job.fingerprint(sums) != job.fingerprint({"t.h5": "2"})
    other = plan_comparison("t.h5", "out", CompareOptions(methods="delta", gamma=2.0), CommonOptions()).jobs[0]
    seeded = plan_comparison("t.h5", "out", CompareOptions(methods="delta"), CommonOptions(seed=1)).jobs[0]
    assert len({each.fingerprint(sums) for each in (job, other, seeded)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_snet_is_faster_per_iteration_and_forecasts_better(snet: Snet, name: str) -> None:
    ran = snet("compare", "--preset", name, "--quick", "-o", "out", "--json")
    assert ran.code == 0
    rows = ran.json["rows"]
    for case in EXPERIMENTS[name].cases:
        of_case = {(row["method"], row["case"]): row for row in rows}
        snets = [of_case[run.method, case.label(run)] for run in case.runs if run.method in ("delta", "alpha")]
        solvers = [of_case[run.method, case.label(run)] for run in case.runs if "-" in run.method]
        best = min(row["test_mse"] for row in snets)
        for row in solvers:
            # an iteration of delta is one gradient; one of alpha is twenty, which Euler on a few samples undercuts
            fast = [each for each in snets if each["method"] == "delta" or row["method"].endswith("dopri5")]
            if row["iterations"]:
                assert all(each["ms_per_iteration"] < row["ms_per_iteration"] for each in fast)
            assert row["test_mse"] is None or best < row["test_mse"]
        assert best < of_case["hold", case.name]["test_mse"]
