"""`python -m tests.device.run FOLDER words ";" words ...`: commands of `snet`, up to one that fails, on the device.

The device is that of `device.cpp`, built in the folder. It needs a process of its own: once it is there, threads wait
for it, and nothing can be forked any more.
"""

from __future__ import annotations

import copy
import itertools
import sys
import types
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.cpp_extension import load

from snet_cli.cli.main import main
from snet_cli.distributed.place import Place
from snet_cli.workflows import compare_figures, compare_rows, device_choice, evaluate, plan_slices, resources

NAME = "elsewhere"

LEAST = 100
"""Operations on the device that even the smallest command takes."""


def build(folder: Path) -> Any:
    """Compile the device, and let torch know it; returns a module whose `operations` counts what ran there."""
    folder.mkdir(exist_ok=True)
    source = Path(__file__).with_name("device.cpp")
    built = load("snet_test_device", [str(source)], build_directory=str(folder), is_python_module=True)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(NAME)
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "_is_in_bad_fork": False,
    }.items():
        setattr(module, name, lambda answer=answer: answer)
    module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)  # type: ignore[attr-defined]
    module.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return built


def deepcopy_on_the_device(known: Any = Tensor.__deepcopy__) -> None:
    """Copies of tensors by their values; torch's own are made of storages, which only its own devices have."""

    def copied(self: Tensor, memo: dict[int, Any]) -> Tensor:
        if self.device.type != NAME:
            return known(self, memo)
        if id(self) not in memo:
            clone = self.detach().clone()
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(clone, self.requires_grad) if parameter else clone
        return memo[id(self)]

    Tensor.__deepcopy__ = copied  # type: ignore[method-assign]


def take(device: torch.device) -> None:
    """Let every command compute there."""

    def chosen(name: Literal["auto", "cpu", "cuda"], place: Place | None = None) -> torch.device:
        return device

    for module in (compare_figures, compare_rows, device_choice, evaluate, plan_slices, resources):
        module.choose_device = chosen
    device_choice.candidates = lambda name, place=None: (device,)


if __name__ == "__main__":
    built = build(Path(sys.argv[1]))
    deepcopy_on_the_device()
    assert copy.deepcopy(torch.ones(2, device=NAME)).device.type == NAME
    take(torch.device(NAME, 0))
    for separated, words in itertools.groupby(sys.argv[2:], lambda word: word == ";"):
        if separated:
            continue
        before = built.operations()
        if (code := main(list(words))) != 0:
            sys.exit(code)
        if built.operations() < before + LEAST:
            sys.exit("the command did not compute on the device")
