"""Replayed evaluations: a recording is used where it has the same bits and takes less time, and never otherwise.

The device is a fake: what it records is the evaluation itself, spoilt as the case wants, under a clock of the test.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from snet_cli.training import delta, replay
from snet_cli.training.delta import REWEIGHT_EVERY, Delta
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.replay import BEFORE, LOOKS, Replay, recorder_for
from snet_cli.workflows.fit import fit
from tests.test_device_choice import Heard, changed, same_bytes
from tests.test_device_choice import file as file  # a fixture
from tests.training_cases import network, problem_of, spirals

pytestmark = pytest.mark.usefixtures("one_thread")

SLOW, FAST = 0.004, 0.001


class Clock:
    now = 0.0


class Recorder:
    """Records by keeping the evaluation; `spoil` changes what comes out of it."""

    def __init__(self, monkeypatch, pace=FAST, spoil=lambda value, gradient: (value, gradient), fails_to_record=None):
        self.clock, self.pace, self.spoil, self.error = Clock(), pace, spoil, fails_to_record
        self.recordings = self.replays = self.waits = 0
        monkeypatch.setattr(replay, "perf_counter", lambda: self.clock.now)

    def record(self, evaluate, theta):
        self.recordings += 1
        if self.error is not None:
            raise self.error

        def recorded(theta):
            self.replays += 1
            before = self.clock.now
            value, gradient = evaluate(theta)
            self.clock.now = before + self.pace
            return self.spoil(value.clone(), gradient.clone())

        return recorded

    def wait(self):
        self.waits += 1


def square(clock):
    """θ² summed, and its gradient, in SLOW seconds; counts its calls."""

    def evaluate(theta):
        clock.now += SLOW
        evaluate.calls += 1
        return (theta * theta).sum(), 2 * theta

    evaluate.calls = 0
    return evaluate


def asked(recorder, times, evaluate=None):
    """A replay that was asked so often, each time at another θ, and always told the truth but by what it trusts."""
    evaluate = evaluate or square(recorder.clock)
    chosen = Replay(evaluate, recorder)
    for k in range(times):
        theta = torch.tensor([1.0 + k, 0.5], dtype=torch.float64)
        value, gradient = chosen(theta)
        assert torch.equal(value, (theta * theta).sum())
        assert torch.equal(gradient, 2 * theta)
    return chosen, evaluate


DECIDED = BEFORE + 1 + LOOKS


def test_right_and_faster_is_used(monkeypatch):
    recorder = Recorder(monkeypatch)
    chosen, _ = asked(recorder, DECIDED)
    assert chosen.verdict == "evaluations are replayed from a recording, 1 ms instead of 4 ms."
    assert (recorder.recordings, recorder.replays) == (1, LOOKS)
    before, waits = recorder.replays, recorder.waits
    for _ in range(4):
        chosen(torch.ones(2, dtype=torch.float64))
    assert recorder.replays == before + 4
    assert recorder.waits == waits  # nothing waits for the device once it is decided


def test_nothing_is_recorded_before_a_few_evaluations(monkeypatch):
    recorder = Recorder(monkeypatch)
    chosen, evaluate = asked(recorder, BEFORE)
    assert (recorder.recordings, evaluate.calls, chosen.verdict) == (0, BEFORE, None)


def test_right_and_slower_is_not_used(monkeypatch):
    recorder = Recorder(monkeypatch, pace=SLOW)
    chosen, _ = asked(recorder, DECIDED + 5)
    assert chosen.verdict == "evaluations are not replayed from a recording: it takes 4 ms instead of 4 ms."
    assert (recorder.recordings, recorder.replays) == (1, LOOKS)


def one_bit(value, gradient):
    gradient[0] = torch.nextafter(gradient[0], gradient[0] + 1)
    return value, gradient


@pytest.mark.parametrize(
    "spoil",
    [
        one_bit,
        lambda value, gradient: (value * (1 + 1e-15), gradient),
        lambda value, gradient: (value * float("nan"), gradient),
        lambda value, gradient: (torch.tensor(1.25, dtype=torch.float64), gradient),  # of the first θ, a constant since
    ],
)
def test_wrong_is_not_used_however_fast(monkeypatch, spoil):
    recorder = Recorder(monkeypatch, spoil=spoil)
    chosen, _ = asked(recorder, DECIDED + 5)
    assert chosen.verdict == "evaluations are not replayed from a recording: it gives other numbers."
    assert (recorder.recordings, recorder.replays) == (1, 1)


def test_a_recording_that_cannot_be_made_or_played_is_not_tried_again(monkeypatch):
    recorder = Recorder(monkeypatch, fails_to_record=RuntimeError("operation not permitted\nwhen capturing"))
    chosen, _ = asked(recorder, DECIDED + 5)
    assert chosen.verdict == ("evaluations are not replayed from a recording: RuntimeError: operation not permitted.")
    assert (recorder.recordings, recorder.replays) == (1, 0)

    def fail(value, gradient):
        raise torch.OutOfMemoryError()

    recorder = Recorder(monkeypatch, spoil=fail)
    chosen, _ = asked(recorder, DECIDED + 5)
    assert chosen.verdict == "evaluations are not replayed from a recording: OutOfMemoryError."
    assert (recorder.recordings, recorder.replays) == (1, 1)


def test_an_error_of_the_evaluation_itself_is_raised(monkeypatch):
    recorder = Recorder(monkeypatch)

    def broken(theta):
        raise ValueError("the model's own")

    chosen = Replay(broken, recorder)
    chosen.asked = BEFORE + 1
    with pytest.raises(ValueError, match="the model's own"):
        chosen(torch.ones(2))
    assert chosen.verdict is None


def test_losses_that_are_not_finite_tell_nothing(monkeypatch):
    recorder = Recorder(monkeypatch)
    chosen, _ = asked(recorder, BEFORE + 1)
    for _ in range(5):
        chosen(torch.full((2,), float("nan"), dtype=torch.float64))
    assert (chosen.verdict, recorder.replays) == (None, 0)


def test_another_loss_is_recorded_anew_unless_a_recording_was_refused(monkeypatch):
    recorder = Recorder(monkeypatch)
    chosen, _ = asked(recorder, DECIDED)
    chosen.forget()
    for k in range(DECIDED + 2):
        chosen(torch.tensor([1.0 + k, 3.0]))
    assert recorder.recordings == 2
    assert recorder.replays == LOOKS + LOOKS + 2

    recorder = Recorder(monkeypatch, spoil=one_bit)
    chosen, _ = asked(recorder, DECIDED)
    chosen.forget()
    for k in range(DECIDED):
        chosen(torch.tensor([1.0 + k, 3.0]))
    assert recorder.recordings == 1


# in the optimiser


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))


def rosenbrock(x):
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2


def steps(recorder=None, iterations=30):
    point = Point()
    method = LbfgsStep(point, lambda: rosenbrock(point.theta))
    if recorder is not None:
        method.replay_with(recorder)
    return [method.step() for _ in range(iterations)], point.theta.detach().clone(), method


def test_l_bfgs_goes_the_same_way_and_leaves_the_model_where_it_is(monkeypatch):
    losses, theta, plain = steps()
    recorder = Recorder(monkeypatch, pace=-1.0)  # the evaluation has no time on this clock
    replayed_losses, replayed_theta, method = steps(recorder)
    assert recorder.replays > LOOKS
    assert (losses, theta.tolist(), plain.evaluations) == (replayed_losses, replayed_theta.tolist(), method.evaluations)
    assert rosenbrock(replayed_theta) == losses[-1]


def test_l_bfgs_does_not_ask_where_a_recording_leaves_the_model(monkeypatch):
    """A graph does not touch the model."""
    losses, theta, _ = steps()
    point = Point()
    method = LbfgsStep(point, lambda: rosenbrock(point.theta))

    def elsewhere(value, gradient):
        point.theta.data = torch.full((2,), float("nan"), dtype=torch.float64)
        return value, gradient

    method.replay_with(Recorder(monkeypatch, pace=-1.0, spoil=elsewhere))
    assert [method.step() for _ in range(30)] == losses
    assert torch.equal(point.theta.detach(), theta)


@pytest.mark.parametrize("change", [lambda method: method.restore(method.state()), lambda method: method.reopen()])
def test_l_bfgs_that_is_restored_or_reopened_records_anew(monkeypatch, change):
    recorder = Recorder(monkeypatch, pace=-1.0)
    _, _, method = steps(recorder, iterations=12)
    assert method.replay.trusted
    change(method)
    assert (method.replay.recorded, method.replay.trusted) == (None, False)
    for _ in range(8):
        method.step()
    assert recorder.recordings == 2


# in δ-SNet


def test_delta_has_the_bits_of_a_run_that_replays_nothing(file, monkeypatch):
    options = changed(iterations=12, prior=1e-6)
    fit("a.h5", "straight.h5", options)
    recorder, heard = Recorder(monkeypatch, pace=-1.0), Heard()
    monkeypatch.setattr(delta, "recorder_for", lambda device: recorder)
    fit("a.h5", "m.h5", options, report=heard)
    assert recorder.replays > LOOKS
    assert same_bytes("m.h5", "straight.h5")
    (told,) = [text for text in heard.details if text.startswith("theta-step: ")]
    assert told.startswith("theta-step: evaluations are replayed from a recording")
    fit("a.h5", "half.h5", options, report=Heard(6))
    fit("a.h5", "half.h5", options, resume=True)
    assert same_bytes("half.h5", "straight.h5")


def test_a_robust_loss_is_recorded_anew_when_it_changes(monkeypatch):
    data = spirals(3, 20)
    problem = problem_of(data, order=6)
    losses = []
    for recorder in (None, Recorder(monkeypatch, pace=-1.0)):
        monkeypatch.setattr(delta, "recorder_for", lambda device, found=recorder: found)
        method = Delta(problem, network(data, hidden=[4]), ThetaStepOptions(), 0.0, robust=True)
        losses.append([method.step() for _ in range(REWEIGHT_EVERY + 10)])
    assert losses[0] == losses[1]
    assert recorder.recordings == 2
    assert recorder.replays > REWEIGHT_EVERY


def test_only_l_bfgs_on_known_operators_is_recorded(monkeypatch):
    data = spirals(3, 20)
    problem = problem_of(data, order=6)
    monkeypatch.setattr(delta, "recorder_for", lambda device: Recorder(monkeypatch))
    model = network(data, hidden=[4])
    assert Delta(problem, model, ThetaStepOptions(), 0.0).theta.replay is not None
    adam = ThetaStepOptions.model_validate({"name": "adam", "rate": 1e-2})
    assert Delta(problem, model, adam, 0.0).remarks == ()
    monkeypatch.setattr(type(model), "in_stacks", lambda self, *features: None)
    assert Delta(problem, model, ThetaStepOptions(), 0.0).theta.replay is None


def test_a_processor_records_nothing():
    assert recorder_for(torch.device("cpu")) is None
    data = spirals(2, 20)
    method = Delta(problem_of(data, order=6), network(data, hidden=[4]), ThetaStepOptions(), 0.0)
    assert method.theta.replay is None
    assert isinstance(recorder_for(torch.device("cuda", 1)), replay.CudaRecorder)


def test_a_device_that_is_not_there_is_an_error_like_any_other(monkeypatch):
    """The true recorder, on a torch that has no CUDA: the first thing it does fails, and training goes on."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    losses, _, _ = steps()
    told, _, method = steps(recorder_for(torch.device("cuda")))
    assert told == losses
    assert method.replay.verdict.startswith("evaluations are not replayed from a recording: ")


class StandIn:
    """What a CUDA graph is to `replay`: everything between its begin and its end, done again in the same memory."""

    def __init__(self):
        self.again = lambda: None

    def replay(self):
        self.again()


def test_a_graph_has_memory_of_its_own_and_hands_out_copies(monkeypatch):
    """The true recorder on stand-ins of the streams and the graph of CUDA."""
    here = nullcontext()
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    for name, fake in {
        "Stream": stream,
        "current_stream": stream,
        "CUDAGraph": StandIn,
        **dict.fromkeys(("stream", "graph", "device"), lambda what: here),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    asked_at = []

    def evaluate(theta):
        asked_at.append(theta)
        return (theta * theta).sum(), 2 * theta

    first = torch.tensor([1.0, 2.0])
    graph = recorder_for(torch.device("cuda")).record(evaluate, first)
    static = asked_at[-1]
    assert static.data_ptr() != first.data_ptr()
    value, gradient = graph.found

    def again():
        for kept, new in zip((value, gradient), evaluate(static), strict=True):
            kept.copy_(new)

    graph.graph.again = again
    one, other = graph(torch.tensor([3.0, 0.0])), graph(torch.tensor([0.0, 1.0]))
    assert (float(one[0]), one[1].tolist()) == (9.0, [6.0, 0.0])
    assert (float(other[0]), other[1].tolist()) == (1.0, [0.0, 2.0])
    assert first.tolist() == [1.0, 2.0]


@pytest.mark.gpu
def test_on_a_device(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    data = spirals(20, 40)
    losses = []
    for record in (False, True):
        if not record:
            monkeypatch.setattr(delta, "recorder_for", lambda device: None)
        else:
            monkeypatch.setattr(delta, "recorder_for", recorder_for)
        problem = problem_of(data, order=6)
        moved = {name: getattr(problem, name).cuda() for name in ("t", "x", "derivative", "u", "weight", "scale")}
        problem = type(problem)(**{**vars(problem), **moved})
        method = Delta(problem, network(data, hidden=[16]).cuda(), ThetaStepOptions(), 0.0)
        losses.append([method.step() for _ in range(40)])
    assert losses[0] == losses[1]
    assert method.theta.replay.verdict is not None
    assert "Error" not in method.theta.replay.verdict, method.theta.replay.verdict
