"""Loss and gradient from a recording, where that gives the same bits in less time; else they are computed as ever.

An evaluation of a small network on an accelerator is a hundred operators of microseconds, and Python takes longer to
call them than the device to compute them. A CUDA graph calls them all at once. What may be wrong with one (a number
that was taken for a constant, a kernel of another kind, no time gained) shows at other θ than the recorded one: there
both are computed and timed, and the recording is used only if every one of `LOOKS` has the bits of the evaluation
itself. Bits, because it is the clock that decides, and the same command has to write the same file.

Whatever is raised while recording, or while a recording is looked at, ends it: from then on nothing is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From θ (N,) to the loss, a scalar, and its gradient (N,)."""

BEFORE = 3
"""Evaluations before anything is recorded: libraries load their kernels and take their memory in the first ones."""

LOOKS = 3
"""Evaluations at which a recording is compared; the fastest of each kind tells the time."""


class Recorder(Protocol):
    """What is special about a device."""

    def record(self, evaluate: Evaluation, theta: Tensor) -> Evaluation:
        """The evaluation as recorded at this θ; the recording gives tensors of its own at every call."""
        ...

    def wait(self) -> None:
        """Until the device has done everything that it was given."""
        ...


class Replay:
    """An evaluation that is replayed once a recording of it has proved to be right and faster.

    Parameters
    ----------
    evaluate : callable
        The evaluation.
    recorder : Recorder

    Attributes
    ----------
    verdict : str or None
        What became of it, in one sentence; None as long as that is open.
    """

    def __init__(self, evaluate: Evaluation, recorder: Recorder) -> None:
        self.evaluate, self.recorder = evaluate, recorder
        self.verdict: str | None = None
        self.refused = False
        self.forget()

    def forget(self) -> None:
        """The loss has changed: what was recorded is another one's; a recording that was refused stays so."""
        self.asked = 0
        self.recorded: Evaluation | None = None
        self.trusted = False
        self.times: list[tuple[float, float]] = []

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient at θ (N,)."""
        if self.trusted and self.recorded is not None:
            return self.recorded(theta)
        if self.refused:
            return self.evaluate(theta)
        self.asked += 1
        if self.asked <= BEFORE:
            return self.evaluate(theta)
        if self.recorded is None:
            found = self.evaluate(theta)
            self._guarded(lambda: self._record(theta))
            return found
        found, seconds = self._timed(self.evaluate, theta)
        self._guarded(lambda: self._look(theta, found, seconds))
        return found

    def _guarded(self, attempt: Callable[[], None]) -> None:
        """Any error means that there is no recording: what the device or its driver may raise is theirs to choose."""
        try:
            attempt()
        except Exception as error:
            line = next(iter(str(error).splitlines()), "")
            self._refuse(f"{type(error).__name__}: {line}".removesuffix(": "))

    def _record(self, theta: Tensor) -> None:
        self.recorded = self.recorder.record(self.evaluate, theta)

    def _look(self, theta: Tensor, found: tuple[Tensor, Tensor], seconds: float) -> None:
        """Compare the recording with what was found at θ; the last look decides."""
        assert self.recorded is not None
        if not math.isfinite(float(found[0])):  # too far along a direction: tells nothing
            return
        replayed, replay_seconds = self._timed(self.recorded, theta)
        if not all(torch.equal(one, other) for one, other in zip(found, replayed, strict=True)):
            self._refuse("it gives other numbers")
            return
        self.times.append((seconds, replay_seconds))
        if len(self.times) < LOOKS:
            return
        slow, fast = (min(column) for column in zip(*self.times, strict=True))
        told = f"{1e3 * fast:.3g} ms instead of {1e3 * slow:.3g} ms"
        if fast < slow:
            self.trusted, self.verdict = True, f"evaluations are replayed from a recording, {told}."
        else:
            self._refuse(f"it takes {told}")

    def _refuse(self, why: str) -> None:
        self.refused, self.recorded = True, None
        self.verdict = f"evaluations are not replayed from a recording: {why}."

    def _timed(self, evaluate: Evaluation, theta: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
        self.recorder.wait()
        begin = perf_counter()
        found = evaluate(theta)
        self.recorder.wait()
        return found, perf_counter() - begin


# The device


class CudaRecorder:
    """CUDA graphs on one device (`recorder_for`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, evaluate: Evaluation, theta: Tensor) -> Evaluation:
        """The evaluation as a graph."""
        with torch.cuda.device(self.device):
            return _CudaGraph(evaluate, theta)

    def wait(self) -> None:
        """Until the device is idle."""
        torch.cuda.synchronize(self.device)


class _CudaGraph:
    """A graph with a θ, a loss and a gradient of its own, always in the same memory."""

    def __init__(self, evaluate: Evaluation, theta: Tensor) -> None:
        self.theta = theta.clone()
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        with torch.cuda.stream(side):  # as CUDA asks for: what is done once per stream must not be recorded
            evaluate(self.theta)
        here.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.found = evaluate(self.theta)

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        self.theta.copy_(theta)
        self.graph.replay()
        value, gradient = self.found
        return value.clone(), gradient.clone()


def recorder_for(device: torch.device) -> Recorder | None:
    """What records evaluations on this device; nothing on a processor, where calling them costs little."""
    return CudaRecorder(device) if device.type == "cuda" else None
