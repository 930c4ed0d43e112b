"""`snet fit --device auto`: a step is timed on the accelerator and on the processor, and the faster one trains.

Nothing that is trained notices. Step 0 is found on the processor whatever the device, each device then has a set-up of
its own as it would have without a choice, what is timed are steps of a copy of its model, and torch's generators are
put back. A trial of the accelerator that fails, in whatever way, means the processor; one of the processor is an error.

What is timed is the method without held-out trajectories, past its warm-up, at a fixed γ and from the first start: a
step costs the same, and building it trains nothing. Lanes of a process (`distributed.lanes`), which take their steps
one after the other, are timed as one.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from time import perf_counter
from typing import Literal, NamedTuple

import torch

from snet_cli.distributed import Place, Team
from snet_cli.errors import SnetError
from snet_cli.training.alpha import Alpha
from snet_cli.training.joint import Joint
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed_score import REFERENCE_GAMMA
from snet_cli.training.starts import DERIVATIVES
from snet_cli.workflows.build_shooting import SHOOTING_METHODS
from snet_cli.workflows.fit_task import Begun
from snet_cli.workflows.methods import build_training
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resources import choose_device
from snet_cli.workflows.resume import SavedRun
from snet_cli.workflows.train_one import set_threads_of_method, set_up
from snet_cli.workflows.training_plan import Ingredients

STEPS, SECONDS = 5, 0.5
"""Steps that are timed on a device after the first, at most, and the time after which no other one is begun; the
fastest counts, which a busy machine disturbs least."""

LOST, NOTICEABLE = 20.0, 1.0
"""How many times the other device's step, and seconds at least, a first step takes after which there is no second one:
the first step of L-BFGS costs up to ten others."""

TRIAL_SHARE = 0.1
"""Share of what is left of `--max-time` after which the second device is not tried."""


ERROR_LENGTH = 200
"""Most characters of an error's own text in the note."""


class Timed(NamedTuple):
    """Seconds of a step on a device; `first` where they are those of the first, and there was no other."""

    seconds: float
    first: bool = False


def candidates(name: Literal["auto", "cpu", "cuda"], place: Place | None = None) -> tuple[torch.device, ...]:
    """The devices that `--device` leaves: the accelerator and the processor where `auto` has a choice, else one.

    Raises
    ------
    UsageError
        If CUDA is asked for and there is none.
    """
    device = choose_device(name, place)
    return (device, torch.device("cpu")) if name == "auto" and device.type != "cpu" else (device,)


def devices_to_time(
    devices: Sequence[torch.device],
    options: FitOptions,
    report: Reporter,
    team: Team,
    saved: SavedRun | None = None,
    *,
    sliced: bool = False,
    several: bool = False,
) -> tuple[torch.device, ...]:
    """Those of the candidates that a step is to be timed on; one where none is, and with `--verbose` why.

    Parameters
    ----------
    saved : SavedRun, optional
        The run that goes on; it does so where it was, on however many processes it is one.
    sliced : bool
        Whether the data is read in slices.
    several : bool
        Whether several models are trained.
    """
    if len(devices) == 1:
        return tuple(devices)
    if saved is not None and team.size == 1:
        return tuple(device for device in devices if device.type == saved.about["run"]["device"])[:1] or (devices[0],)
    reasons = {
        "several processes share the work": team.size > 1,
        "the data is read in slices": sliced,
        "several models are trained": several,
        f"{options.method} is a solver": options.method in SHOOTING_METHODS,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why is None:
        return tuple(devices)
    report.detail(f"device {devices[0].type}: not timed against the {devices[-1].type}, because {why}.")
    return (devices[0],)


def plan_of_choice(devices: Sequence[torch.device]) -> list[str]:
    """What `--dry-run` says of it."""
    if len(devices) == 1:
        return []
    return [f"device: fit times a step on {devices[0].type} and on {devices[1].type}, and takes the faster one."]


def on_faster(begun: Begun, devices: Sequence[torch.device], report: Reporter, started: float) -> Begun:
    """The set-up on the device whose step is faster, and a note that says so.

    Parameters
    ----------
    begun : Begun
        On the processor.
    devices : sequence of torch.device
        The accelerator and the processor.
    started : float
        Reading of the clock from which `--max-time` counts.
    """
    accelerator, processor = devices
    most = begun.parts.options.max_time
    begin = perf_counter()
    end = math.inf if most is None else begin + TRIAL_SHARE * (started + most - begin)
    chosen = begun
    try:
        there, fast = _tried_on(accelerator, begun, started)
    except Exception as error:  # out of memory, no kernel, no driver: whatever it is, the processor remains
        report.note(f"device {processor.type}: a trial step on {accelerator.type} failed: {_told(error)}")
    else:
        if fast is None:
            report.detail(f"device {accelerator.type}: a formula gives the weights, and there is no step to time.")
            chosen = there
        else:
            _set_threads(begun)
            with _generators_kept(processor):
                slow = _time_of_step(begun, fast.seconds) if perf_counter() <= end else None
            chosen = there if slow is None or fast.seconds <= slow.seconds else begun
            report.note(_sentence((accelerator, fast), (processor, slow)))
        del there
    gc.collect()  # methods and their optimisers know each other: what was tried would stay beside what is trained
    if chosen is begun and accelerator.type == "cuda":
        with suppress(Exception):  # of a device that may have failed for good
            torch.cuda.empty_cache()
    _set_threads(chosen)
    return chosen


def _tried_on(device: torch.device, begun: Begun, started: float) -> tuple[Begun, Timed | None]:
    """The set-up on a device, and the time of a step there; of one that fails nothing is left."""
    with _generators_kept(device):
        there = _set_up_on(device, begun, started)
        return there, _time_of_step(there)


def _set_up_on(device: torch.device, begun: Begun, started: float) -> Begun:
    """What `fit --device` begins with on this device, from the step 0 that is there."""
    parts = begun.parts
    zero, train = parts.setup.step_zero, parts.data.train
    setup = set_up(parts.options, parts.common, train, device, started, zero, parts.team)
    there = Begun(replace(parts, setup=setup, device=device), begun.choice)
    _set_threads(there)
    return there


def _set_threads(begun: Begun) -> None:
    """As many threads as training will have."""
    parts = begun.parts
    points = parts.setup.problem.t.numel()
    set_threads_of_method(begun.choice.method, parts.common, parts.setup, points, parts.team)


def _generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """Generators of the processor and of this device are afterwards what they were."""
    own = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    return torch.random.fork_rng(own)


def _time_of_step(begun: Begun, other: float = math.inf) -> Timed | None:
    """How long a step of a copy of the model takes; None where a formula leaves no step to time.

    Parameters
    ----------
    other : float
        Seconds of a step on the other device.
    """
    device = begun.parts.device
    training = build_training(begun.choice.method, _for_trial(begun))
    if training.closed_form:
        return None
    method = training.method
    if isinstance(method, Alpha | Joint):
        method.end_warm_up()

    def seconds_of_step() -> tuple[float, bool]:
        synchronize(device)
        begin = perf_counter()
        total = method.step().total
        synchronize(device)
        return perf_counter() - begin, math.isfinite(total) and getattr(method, "outcome", None) is None

    first, goes_on = seconds_of_step()
    if not goes_on or first > max(NOTICEABLE, LOST * other):
        return Timed(first, first=True)
    times: list[float] = []
    while goes_on and len(times) < STEPS and sum(times) < SECONDS:
        seconds, goes_on = seconds_of_step()
        times.append(seconds)
    return Timed(min(times))


def _for_trial(begun: Begun) -> Ingredients:
    """The same with a copy of the model, and without what would train while the method is built."""
    parts = begun.parts
    trained = replace(parts.setup.trained, model=copy.deepcopy(parts.setup.trained.model))
    gamma = {"gamma": REFERENCE_GAMMA} if begun.choice.method == "alpha" and parts.options.gamma == "auto" else {}
    return replace(
        parts,
        setup=replace(parts.setup, trained=trained),
        data=replace(parts.data, validation=None),
        options=parts.options.model_copy(update=gamma),
        settled={"hidden_start": DERIVATIVES, "hidden_gamma": REFERENCE_GAMMA},
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a processor has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _told(error: Exception) -> str:
    """An error in one sentence; its kind as well where it is not ours."""
    if isinstance(error, SnetError):
        return error.message
    line = next(iter(str(error).splitlines()), "")[:ERROR_LENGTH].rstrip(".")
    return f"{type(error).__name__}: {line}." if line else f"{type(error).__name__}."


def _sentence(first: tuple[torch.device, Timed], second: tuple[torch.device, Timed | None]) -> str:
    """Which device was taken, and why."""
    (device, timed), (other, others) = first, second
    if others is None:
        return f"device {device.type}: --max-time leaves no time to try a step on {other.type} as well."
    if others.seconds < timed.seconds:
        (device, timed), (other, others) = (other, others), (device, timed)
    return f"device {device.type}: a step takes {_duration(timed)} there and {_duration(others)} on {other.type}."


def _duration(timed: Timed) -> str:
    seconds = timed.seconds
    text = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    return f"{text} (the first one)" if timed.first else text
