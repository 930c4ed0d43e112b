"""`fit --seeds` and `--folds`: several models, the best one kept, all of them in the checkpoint, their spread told."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import load_checkpoint, save_checkpoint
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.training.delta_batch import models_at_once
from snet_cli.training.options import EnsembleOptions, FitOptions
from snet_cli.workflows.ensemble import NORMALIZATION, WEIGHTS
from snet_cli.workflows.fit import fit
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.side_by_side import side_by_side
from tests.command import Snet
from tests.teams import together
from tests.training_cases import spirals

WORDS = ("t.h5", "--method", "delta", "--order", 6, "--elements", 1, "--model", "mlp", "--set", "model.hidden=[4]")
FIT = ("fit", *WORDS, "--iterations", 8, "--threads", 1)


@pytest.fixture
def folder(snet: Snet, tmp_path):
    """The empty folder of `snet`, with `t.h5`: six noisy trajectories."""
    save_trajectories("t.h5", spirals(6, 20, noise=0.02))
    return tmp_path


def test_members_are_the_models_that_their_seeds_make_alone(snet: Snet, folder):
    result = snet(*FIT, "-o", "e.h5", "--seed", 4, "--seeds", 3, "--json").json
    members, best = result["ensemble"]["members"], result["ensemble"]["best"]
    assert [member["seed"] for member in members] == [4, 5, 6]
    assert result["train_mse"] == members[best]["train_mse"] == min(member["train_mse"] for member in members)
    kept = load_checkpoint("e.h5")
    for number, seed in enumerate((4, 5, 6)):
        assert snet(*FIT, "-o", f"{seed}.h5", "--seed", seed, "-q").code == 0
        alone = load_checkpoint(f"{seed}.h5")
        for key, values in alone.state.items():
            assert np.array_equal(kept.extra[WEIGHTS][key][number], values)
            if number == best:
                assert np.array_equal(kept.state[key], values)
        assert np.array_equal(kept.extra[NORMALIZATION]["scale"][number], alone.normalization["scale"])
    spread = result["ensemble"]["spread"]["train_mse"]
    assert spread["mean"] == pytest.approx(np.mean([member["train_mse"] for member in members]))
    assert spread["min"] <= spread["mean"] <= spread["max"]


@pytest.mark.parametrize(("step", "tolerance"), [("adam", 2.2), pytest.param("lbfgs", 0.05, marks=pytest.mark.slow)])
def test_members_that_end_at_different_iterations_end_where_they_do_alone(snet: Snet, folder, step, tolerance):
    """On one thread to the last bit; Adam adds up the ends of its arrays in another order than their middle."""
    fit = ("fit", *WORDS, "--threads", 1, "--iterations", 60, "--tolerance", tolerance)
    fit = (*fit, "--set", f"theta_step.name={step}")
    result = snet(*fit, "-o", "e.h5", "--seeds", 4, "--json").json
    kept, ended = load_checkpoint("e.h5"), set()
    for number, member in enumerate(result["ensemble"]["members"]):
        alone = snet(*fit, "-o", f"{number}.h5", "--seed", number, "--json").json
        assert {key: member[key] for key in ("status", "iterations")} == {k: alone[k] for k in ("status", "iterations")}
        ended.add(member["iterations"])
        for key, values in load_checkpoint(f"{number}.h5").state.items():
            if step == "lbfgs":
                assert np.array_equal(kept.extra[WEIGHTS][key][number], values)
            else:
                assert np.allclose(kept.extra[WEIGHTS][key][number], values, rtol=1e-10, atol=1e-12)
    assert len(ended) > 1


def test_other_methods_go_one_after_the_other_and_say_so(snet: Snet, folder):
    """Verbose, and the same models as alone."""
    fit = ("fit", *WORDS, "--method", "alpha", "--gamma", 3, "--iterations", 2, "--threads", 1)
    done = snet(*fit, "-o", "e.h5", "--seeds", 2, "-v")
    assert "2 models are trained one after the other: method alpha moves more than θ." in done.err
    assert "in one batch." in snet(*FIT, "-o", "f.h5", "--seeds", 2, "-v").err
    assert snet(*fit, "-o", "1.h5", "--seed", 1, "-q").code == 0
    kept = load_checkpoint("e.h5").extra[WEIGHTS]
    assert all(np.array_equal(kept[key][1], values) for key, values in load_checkpoint("1.h5").state.items())


def test_models_side_by_side_are_what_they_are_alone(snet: Snet, folder):
    """A thread for each, and the bits of one thread."""
    fit = ("fit", *WORDS, "--method", "joint", "--set", "model.hidden=[4]", "--iterations", 4)
    done = snet(*fit, "-o", "e.h5", "--seeds", 2, "--threads", 2, "-v")
    assert "2 models are trained 2 side by side: method joint moves more than θ." in done.err
    kept = load_checkpoint("e.h5").extra[WEIGHTS]
    assert snet(*fit, "-o", "1.h5", "--seed", 1, "-q", "--threads", 1).code == 0
    assert all(np.array_equal(kept[key][1], v) for key, v in load_checkpoint("1.h5").state.items())


def test_one_model_that_fails_stops_those_beside_it():
    stopped = []

    def train(built: int, report: Silent, end: float) -> None:
        if built == 1:
            raise ValueError("of the second")
        while not report.should_stop():
            time.sleep(0.01)
        stopped.append(built)

    with pytest.raises(ValueError, match="of the second"):
        side_by_side(range(9), 9, train, Silent(), time.perf_counter() + 60, 2)
    assert stopped == [0]  # and none after it was begun


def test_a_batch_is_as_large_as_memory_allows():
    assert [models_at_once(points, None) for points in (100, 10**6, 10**9)] == [16, 2, 1]
    assert models_at_once(1000, 2.5e6) == 5


def test_the_time_ends_all_members(snet: Snet, folder):
    begin = time.monotonic()
    result = snet("fit", *WORDS, "--iterations", 10**6, "-o", "e.h5", "--seeds", 3, "--max-time", 1.5, "--json").json
    assert time.monotonic() - begin < 15  # seconds, on a machine that is busy with other tests
    assert {member["status"] for member in result["ensemble"]["members"]} <= {"max-time", "converged"}


def test_a_request_to_stop_keeps_all_models(folder):
    """As Ctrl-C does it."""

    class Stopping(Silent):
        asked = 0

        def should_stop(self) -> bool:
            self.asked += 1
            return self.asked > 5

    options = FitOptions(method="delta", order=6, elements=1, model={"name": "mlp", "hidden": [4]})
    result = fit("t.h5", "e.h5", options, report=Stopping(), ensemble=EnsembleOptions(seeds=3))
    assert [member["status"] for member in result["ensemble"]["members"]] == ["stopped"] * 3
    assert len({member["iterations"] for member in result["ensemble"]["members"]}) == 1
    assert all(len(values) == 3 for values in load_checkpoint("e.h5").extra[WEIGHTS].values())


def test_evaluate_tells_mean_and_spread(snet: Snet, folder):
    assert snet(*FIT, "-o", "e.h5", "--seeds", 2, "-q").code == 0
    result = snet("evaluate", "e.h5", "t.h5", "--json").json
    ensemble = result["ensemble"]
    for seed in (0, 1):
        assert snet(*FIT, "-o", f"{seed}.h5", "--seed", seed, "-q").code == 0
        assert (
            snet("evaluate", f"{seed}.h5", "t.h5", "-o", f"f{seed}.h5", "--json").json["mse"] == ensemble["mse"][seed]
        )
    a, b, y = (load_trajectories(path).outputs for path in ("f0.h5", "f1.h5", "t.h5"))
    assert ensemble["mean_mse"] == pytest.approx(np.mean((0.5 * (a + b) - y) ** 2), rel=1e-12)
    assert list(ensemble["spread"].values()) == pytest.approx(np.sqrt(np.mean((a - b) ** 2, axis=0)) / 2, rel=1e-12)
    told = snet("evaluate", "e.h5", "t.h5").out
    assert "2 models: mse " in told
    assert "root mean square spread between them: a " in told
    assert snet("evaluate", "0.h5", "t.h5", "--json").json["ensemble"] is None


def test_every_trajectory_is_held_out_by_one_fold(snet: Snet, folder):
    result = snet(*FIT, "-o", "e.h5", "--folds", 3, "--json").json
    members = result["ensemble"]["members"]
    assert [member["fold"] for member in members] == [1, 2, 3]
    assert all(member["validation"]["relaxed"] > 0 for member in members)
    assert len({member["train_mse"] for member in members}) == 3  # other trajectories each
    assert result["validation"]["mse"] == min(member["validation"]["mse"] for member in members)
    best = members[result["ensemble"]["best"]]["fold"]
    assert f"the best of 3 models: without part {best}; " in snet(*FIT, "-o", "f.h5", "--folds", 3).out


def test_processes_share_the_members(snet: Snet, folder):
    assert snet(*FIT, "-o", "one.h5", "--seeds", 3, "-q").code == 0
    lead, other = together(2, *FIT, "-o", "two.h5", "--seeds", 3, "-q", "--json")
    assert (lead.code, other.code, other.out, lead.err, other.err) == (0, 0, "", "", "")
    assert [member["seed"] for member in json.loads(lead.out)["ensemble"]["members"]] == [0, 1, 2]
    one, two = load_checkpoint("one.h5"), load_checkpoint("two.h5")
    assert all(np.array_equal(one.extra[WEIGHTS][key], two.extra[WEIGHTS][key]) for key in one.extra[WEIGHTS])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--seeds", 2, "--folds", 2), "--seeds and --folds are two kinds of ensembles."),
        (("--folds", 2, "--validation", 0.2), "--folds holds out trajectories of its own."),
        (("--folds", 7), "--folds 7 of 6 trajectories leaves some empty."),
    ],
)
def test_what_cannot_be_is_refused(snet: Snet, folder, flags, text):
    done = snet(*FIT, "-o", "e.h5", *flags)
    assert (done.code, done.out) == (2, "")
    assert text in done.err


def test_a_stack_of_another_shape_is_refused(snet: Snet, folder):
    assert snet(*FIT, "-o", "e.h5", "--seeds", 2, "-q").code == 0
    checkpoint = load_checkpoint("e.h5")
    key = next(iter(checkpoint.extra[WEIGHTS]))
    checkpoint.extra[WEIGHTS][key] = checkpoint.extra[WEIGHTS][key][:, :1]
    save_checkpoint("bad.h5", checkpoint)
    done = snet("evaluate", "bad.h5", "t.h5")
    assert (done.code, "bad.h5: its ensemble does not fit its model." in done.err) == (4, True)
