"""One process: what `processes.Processes` does for several, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from snet_cli.distributed.place import Place

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Alone:
    """One process: every sum is its own, and nothing is imported."""

    place = Place()
    rank, size, is_lead = 0, 1, True
    recorded = 1
    """How many processes a file says that there were."""
    lanes = 1
    """How many lanes all processes have together (`lanes`); 1 where each process is one."""

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors themselves."""
        return tensors

    def total(self, *numbers: float) -> tuple[float, ...]:
        """The numbers themselves."""
        return numbers

    def largest(self, *numbers: float) -> tuple[float, ...]:
        """The numbers themselves."""
        return numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """The flags themselves."""
        return flags

    def before(self, count: int) -> int:
        """Nothing stands before."""
        return 0

    def gather(self, part: Tensor) -> Tensor:
        """The part is the whole."""
        return part

    def collect(self, part: Tensor) -> Tensor:
        """The part is the whole."""
        return part

    def own(self, whole: Tensor, count: int) -> Tensor:
        """The whole is its part."""
        return whole

    def from_lead(self, value: T) -> T:
        """The value itself."""
        return value

    def bytes_from_lead(self, content: bytes) -> bytes:
        """The bytes themselves."""
        return content

    def align(self, tensors: list[Tensor]) -> None:
        """Nothing to align with."""

    def bytes_of_all(self, content: bytes) -> list[bytes]:
        """The bytes themselves."""
        return [content]

    def require_same(self, what: Mapping[str, str]) -> None:
        """Nothing to compare with."""

    def require_files(self, *paths: str) -> None:
        """One process may read its standard input."""

    def may_speak(self) -> bool:
        """Nobody else could."""
        return True

    def once(self, task: Callable[[Alone], T]) -> T:
        """What the task returns."""
        return task(self)


ALONE = Alone()
"""The team of one process; it has no state."""
