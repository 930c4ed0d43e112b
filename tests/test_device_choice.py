"""`snet fit --device auto`: the faster device is taken, and nothing but the time knows that there was a choice.

Two names of the processor, ``cpu:0`` and ``cpu``, stand for an accelerator and the processor beside it.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import CheckpointError, DataError
from snet_cli.training.method_choice import MethodChoice
from snet_cli.training.options import EnsembleOptions, FitOptions
from snet_cli.workflows import build_alpha, device_choice, multi_start
from snet_cli.workflows import fit as fit_module
from snet_cli.workflows.fit import fit
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.fit_task import Begun
from snet_cli.workflows.methods import build_training
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.train_one import set_up
from snet_cli.workflows.training_plan import Ingredients
from tests.training_cases import spirals

FAST, PROCESSOR = torch.device("cpu", 0), torch.device("cpu")

CUDA = torch.device("cuda")
"""Nothing that torch on a processor could use."""

MLP = {"name": "mlp", "hidden": [6]}
QUICK = FitOptions(method="delta", model=MLP, order=6, elements=2, iterations=8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Spirals in `a.h5` of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(4, 15, noise=0.01, horizon=1.0))
    return tmp_path


class Heard(Silent):
    """Collects notes and details, and asks to stop after so many iterations."""

    def __init__(self, iterations: float = float("inf")):
        self.notes: list[str] = []
        self.details: list[str] = []
        self.left = iterations

    def note(self, text):
        self.notes.append(text)

    def detail(self, text):
        self.details.append(text)

    def progress(self, tick):
        self.left -= tick.phase == "training"

    def should_stop(self):
        return self.left <= 0

    @property
    def told(self) -> list[str]:
        return [note for note in self.notes if note.startswith("device ")]


class Bench:
    """A clock that runs at the pace of the device which is waited for, and what was timed and taken."""

    def __init__(self, monkeypatch, accelerator=FAST, pace=(0.002, 0.008)):
        self.now, self.timed, self.taken = 0.0, [], []
        self.pace = dict(zip((accelerator, PROCESSOR), pace, strict=True))
        devices = (accelerator, PROCESSOR)
        monkeypatch.setattr(
            device_choice, "candidates", lambda name, place=None: devices if name == "auto" else (torch.device(name),)
        )
        monkeypatch.setattr(device_choice, "perf_counter", lambda: self.now)
        monkeypatch.setattr(device_choice, "synchronize", self.wait)
        monkeypatch.setattr(fit_module, "build_training", self.build)

    def wait(self, device):
        self.timed.append(device)
        self.now += self.pace[device]

    def build(self, name, parts):
        self.taken.append(parts.device)
        return build_training(name, parts)


def changed(**options) -> FitOptions:
    return FitOptions.model_validate({**QUICK.model_dump(), **options})


def begun_on(options) -> Begun:
    """What `fit` begins with on the processor."""
    common = CommonOptions()
    data = load_fit_data("a.h5", options, common, Silent())
    setup = set_up(options, common, data.train, PROCESSOR, 0.0)
    return Begun(Ingredients(setup, data, options, common, PROCESSOR), MethodChoice(options.method, ""))


def choose(heard) -> Begun:
    """The choice alone."""
    return device_choice.on_faster(begun_on(QUICK), (FAST, PROCESSOR), heard, 0.0)


def same_bytes(first: str, second: str) -> bool:
    return Path(first).read_bytes() == Path(second).read_bytes()


OFFERS = {
    "delta, held-out trajectories": changed(validation=0.25, iterations=5),
    "alpha, perturbed": changed(method="alpha", iterations=2, perturbation=0.1, gamma=2.0),
    "joint": changed(method="joint", iterations=11),
}

MORE_OFFERS = {
    "delta": changed(),
    "delta, adam": changed(theta_step={"name": "adam", "rate": 1e-2}),
    "delta, lm": changed(theta_step={"name": "lm"}),
    "alpha, gamma by a search": changed(method="alpha", iterations=4),
    "alpha, a hidden state": changed(method="alpha", model={**MLP, "hidden_states": 1}, iterations=2),
    "what auto comes to": FitOptions(model=MLP, iterations=4),
    "outliers": changed(loss="huber"),
}


@pytest.mark.parametrize(
    ("case", "pace"),
    [("delta, held-out trajectories", (0.008, 0.002)), *((case, (0.002, 0.008)) for case in OFFERS)],
)
def test_the_model_and_the_generators_have_the_bits_of_a_run_without_a_choice(file, monkeypatch, case, pace):
    require_same_bits(OFFERS[case], pace, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_OFFERS)
@pytest.mark.parametrize("pace", [(0.002, 0.008), (0.008, 0.002)], ids=["accelerator", "processor"])
def test_other_methods_have_the_bits_of_a_run_without_a_choice(file, monkeypatch, case, pace):
    require_same_bits(MORE_OFFERS[case], pace, monkeypatch)


def require_same_bits(options, pace, monkeypatch) -> None:
    fit("a.h5", "straight.h5", options, CommonOptions(device="cpu"))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    bench, heard = Bench(monkeypatch, pace=pace), Heard()
    fit("a.h5", "m.h5", options, report=heard)
    assert same_bytes("m.h5", "straight.h5")
    assert torch.equal(torch.get_rng_state(), before)
    assert bench.taken == [FAST if pace[0] < pace[1] else PROCESSOR]
    assert set(bench.timed) == {FAST, PROCESSOR}
    assert len(heard.told) == 1


@pytest.mark.parametrize(
    "options", [changed(method="alpha"), changed(method="alpha", model={**MLP, "hidden_states": 1})]
)
def test_a_trial_trains_nothing_while_the_method_is_built(file, monkeypatch, options):
    """Neither γ nor the start of hidden states is searched for, and X moves in every step."""

    def refuse(*args, **more):
        raise AssertionError("a trial")

    parts = begun_on(options)
    for name in ("search_gamma", "hold_out"):
        monkeypatch.setattr(build_alpha, name, refuse, raising=False)
    monkeypatch.setattr(multi_start, "rollout", refuse)
    method = build_training("alpha", device_choice._for_trial(parts)).method
    method.end_warm_up()
    nodes = method.nodes.clone()
    method.step()
    assert not torch.equal(method.nodes, nodes)
    assert method.model is not parts.parts.setup.trained.model


def test_a_note_tells_both_times(file, monkeypatch):
    Bench(monkeypatch, pace=(0.002, 0.0085))
    heard = Heard()
    fit("a.h5", "m.h5", QUICK, report=heard)
    Bench(monkeypatch, pace=(2.5, 1e-4))
    choose(heard)
    assert heard.told == [
        "device cpu: a step takes 2 ms there and 8.5 ms on cpu.",
        "device cpu: a step takes 0.1 ms there and 2.5 s on cpu.",
    ]


def test_a_device_that_is_lost_after_its_first_step_takes_no_other(file, monkeypatch):
    bench, heard = Bench(monkeypatch, pace=(0.002, 3.0)), Heard()
    choose(heard)
    assert heard.told == ["device cpu: a step takes 2 ms there and 3 s (the first one) on cpu."]
    assert bench.timed.count(PROCESSOR) == 2
    assert bench.timed.count(FAST) == 2 * (1 + device_choice.STEPS)


def test_an_accelerator_that_fails_means_the_processor_and_says_why(file, monkeypatch):
    """The error is a true one: this torch, or this machine, has no CUDA."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    fit("a.h5", "straight.h5", QUICK)
    bench, heard = Bench(monkeypatch, accelerator=CUDA), Heard()
    fit("a.h5", "m.h5", QUICK, report=heard)
    assert (bench.taken, bench.timed) == ([PROCESSOR], [])
    (note,) = heard.told
    assert note.startswith("device cpu: a trial step on cuda failed: ")
    assert note.endswith(".")
    assert same_bytes("m.h5", "straight.h5")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "OutOfMemoryError: CUDA out of memory."),
        (RuntimeError(), "RuntimeError."),
        (DataError("the data is bad.", "hint"), "the data is bad."),
    ],
)
def test_an_error_in_a_step_of_the_accelerator_is_told_and_one_of_the_processor_is_raised(
    file, monkeypatch, error, text
):
    bench = Bench(monkeypatch)

    def wait_for(broken):
        def wait(device):
            if device.index == broken.index:
                raise error
            bench.wait(device)

        monkeypatch.setattr(device_choice, "synchronize", wait)

    wait_for(FAST)
    heard = Heard()
    assert choose(heard).parts.device == PROCESSOR
    assert heard.told == [f"device cpu: a trial step on cpu failed: {text}"]
    wait_for(PROCESSOR)
    with pytest.raises(type(error)):
        fit("a.h5", "n.h5", QUICK)


def test_generators_are_put_back_after_an_error_too(file, monkeypatch):
    Bench(monkeypatch)

    def draw(device):
        torch.rand(3)
        if device == FAST:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(device_choice, "synchronize", draw)
    before = torch.get_rng_state()
    choose(Heard())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_tried_is_gone_when_training_is_built(file, monkeypatch):
    """Its memory, on either device, is that of the fit."""
    bench, tried, left = Bench(monkeypatch), [], []

    def build_trial(name, parts):
        training = build_training(name, parts)
        tried.append(weakref.ref(training.method))
        return training

    def build(name, parts):
        left.extend(method() for method in tried)
        return bench.build(name, parts)

    monkeypatch.setattr(device_choice, "build_training", build_trial)
    monkeypatch.setattr(fit_module, "build_training", build)
    fit("a.h5", "m.h5", QUICK)
    assert left == [None, None]


def test_what_has_no_choice_times_nothing(file, monkeypatch):
    bench, heard = Bench(monkeypatch), Heard()
    fit("a.h5", "cpu.h5", QUICK, CommonOptions(device="cpu"), report=heard)
    assert (bench.timed, heard.told, [d for d in heard.details if "device" in d]) == ([], [], [])
    solver = changed(method="bkpr-euler", iterations=2, theta_step={"name": "adam", "rate": 1e-2})
    fit("a.h5", "solver.h5", solver, report=heard)
    fit("a.h5", "several.h5", QUICK, report=heard, ensemble=EnsembleOptions(seeds=2))
    assert (bench.timed, heard.told) == ([], [])
    assert [d for d in heard.details if d.startswith("device")] == [
        "device cpu: not timed against the cpu, because bkpr-euler is a solver.",
        "device cpu: not timed against the cpu, because several models are trained.",
    ]
    assert bench.taken == [PROCESSOR, FAST]


def test_data_in_slices_is_not_timed(file, monkeypatch, small_slices):
    bench, heard = Bench(monkeypatch), Heard()
    fit("a.h5", "m.h5", QUICK, report=heard)
    assert (bench.timed, heard.told) == ([], [])
    assert "device cpu: not timed against the cpu, because the data is read in slices." in heard.details


def test_a_formula_has_no_step_to_time(file, monkeypatch):
    bench, heard = Bench(monkeypatch), Heard()
    fit("a.h5", "m.h5", changed(model="linear", iterations=1), report=heard)
    assert (bench.timed, heard.told, bench.taken) == ([], [], [FAST])
    assert "device cpu: a formula gives the weights, and there is no step to time." in heard.details


def test_a_resumed_run_goes_on_where_it_was_and_times_nothing(file, monkeypatch):
    fit("a.h5", "straight.h5", QUICK)
    bench = Bench(monkeypatch)
    fit("a.h5", "m.h5", QUICK, report=Heard(3))
    assert bench.timed
    bench.timed.clear()
    heard = Heard()
    assert fit("a.h5", "m.h5", QUICK, resume=True, report=heard)["resumed_from"] == 3
    assert (bench.timed, heard.told) == ([], [])
    assert same_bytes("m.h5", "straight.h5")


def test_a_run_of_the_processor_goes_on_there_beside_an_accelerator(file, monkeypatch):
    fit("a.h5", "straight.h5", QUICK)
    fit("a.h5", "m.h5", QUICK, report=Heard(3))
    bench = Bench(monkeypatch, accelerator=CUDA)
    fit("a.h5", "m.h5", QUICK, resume=True)
    assert (bench.timed, bench.taken) == ([], [PROCESSOR])
    assert same_bytes("m.h5", "straight.h5")


def test_a_run_of_a_device_that_is_gone_is_refused(file, monkeypatch):
    original = fit_module.fingerprint
    monkeypatch.setattr(fit_module, "fingerprint", lambda *args: {**original(*args), "device": "cuda"})
    fit("a.h5", "m.h5", QUICK, report=Heard(3))
    monkeypatch.setattr(fit_module, "fingerprint", original)
    with pytest.raises(CheckpointError, match="another configuration: device was cuda, here it is cpu"):
        fit("a.h5", "m.h5", QUICK, resume=True)


def test_the_state_names_the_device_that_was_taken(file, monkeypatch):
    """Of an accelerator that fails, and that the fingerprint would name otherwise."""
    Bench(monkeypatch, accelerator=CUDA)
    fit("a.h5", "m.h5", QUICK, report=Heard(3))
    monkeypatch.undo()
    monkeypatch.chdir(file)
    assert fit("a.h5", "m.h5", QUICK, resume=True)["resumed_from"] == 3


def test_max_time_counts_the_trial(file, monkeypatch):
    """A tenth of a second is left on the clock of the bench, which stands at zero."""
    bench, heard = Bench(monkeypatch), Heard()
    limited = changed(max_time=100.0)
    fit("a.h5", "m.h5", limited, report=heard, started=-99.9)
    assert heard.told == ["device cpu: --max-time leaves no time to try a step on cpu as well."]
    assert (set(bench.timed), bench.taken) == ({FAST}, [FAST])


def test_a_dry_run_says_what_fit_would_time(file, monkeypatch):
    bench, heard = Bench(monkeypatch), Heard()
    told = "device: fit times a step on cpu and on cpu, and takes the faster one."
    assert told in fit("a.h5", "m.h5", QUICK, dry_run=True, report=heard)["notes"]
    assert told in heard.notes
    assert told not in fit("a.h5", "m.h5", QUICK, CommonOptions(device="cpu"), dry_run=True)["notes"]
    assert told not in fit("a.h5", "m.h5", QUICK, dry_run=True, ensemble=EnsembleOptions(seeds=2))["notes"]
    assert bench.timed == []


def test_without_cuda_there_is_one_candidate():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert device_choice.candidates("auto") == device_choice.candidates("cpu") == (PROCESSOR,)


def test_cuda_is_a_candidate_beside_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_choice.candidates("auto") == (CUDA, PROCESSOR)
    assert device_choice.candidates("cuda") == (CUDA,)
    assert device_choice.candidates("cpu") == (PROCESSOR,)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [4, 400])
def test_on_a_device(tmp_path, monkeypatch, size):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(size, 30, noise=0.01))
    heard = Heard()
    fit("a.h5", "m.h5", QUICK, report=heard)
    (note,) = heard.told
    taken = note.removeprefix("device ").partition(":")[0]
    fit("a.h5", "straight.h5", QUICK, CommonOptions(device=taken))
    assert same_bytes("m.h5", "straight.h5")
