"""How many bytes of memory an object's tensors take: what is kept as long as there is room asks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bytes_of(value: Any, seen: set[int] | None = None) -> float:
    """Bytes of all tensors that an object holds, each storage once; weights of the model do not count."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.nn.Module):
        return 0.0
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0.0
        seen.add(storage.data_ptr())
        return float(storage.nbytes())
    if isinstance(value, list | tuple):
        return sum(bytes_of(item, seen) for item in value)
    return sum(bytes_of(item, seen) for item in vars(value).values()) if hasattr(value, "__dict__") else 0.0
