"""MAT files v5 to v7.2: a chain of tagged elements, read without trust and without scipy.

`scipy.io.loadmat` is a C reader for files of honest programs: a flipped bit can end it in a bus error (measured), and
an error that ends the process is none that a message can explain. Recordings need little of the format (matrices
of real numbers, and structures of them), so that little is read here, every length checked against the bytes that
are there. The format: "MAT-File Format", MathWorks, chapter 1.

An element is a tag (type, number of bytes) and its content, padded to 8 bytes; up to 4 bytes may stand inside the
tag. A matrix is an element of elements: flags, dimensions, name, numbers. Element 15 is a deflated element.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128
MATRIX, DEFLATED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type numbers of elements that hold numbers."""

STRUCTURE = 2
NUMERIC_CLASSES = range(6, 16)
OTHER_CLASSES = {1: "is a cell array", 3: "is an object", 4: "is a text", 5: "is a sparse matrix"}
COMPLEX_FLAG = 0x800
MAX_DEPTH = 4


class DamageError(Exception):
    """The bytes contradict each other; the text says where."""


class TooLargeError(Exception):
    """The elements inflate to more than the limit."""


class Element(NamedTuple):
    """One element: its type number and its content."""

    kind: int
    content: memoryview


class Arrays(NamedTuple):
    """Matrices by name, and why other variables cannot be read."""

    found: dict[str, NDArray[Any]]
    refused: dict[str, str]


def read_mat5(data: bytes, max_bytes: int) -> Arrays:
    """All matrices of real numbers; a field f of a 1 × 1 structure s is ``s.f``.

    Raises
    ------
    DamageError
        If the file is cut off or its lengths contradict each other.
    TooLargeError
        If its elements inflate to more than `max_bytes`.
    """
    order = "<" if data[126:128] == b"IM" else ">"
    arrays = Arrays({}, {})
    left = max_bytes
    for element in elements(memoryview(data)[HEADER_BYTES:], order, padded=False):
        inner = element
        if element.kind == DEFLATED:
            content = inflate(bytes(element.content), left)
            left -= len(content)
            inner = next(elements(memoryview(content), order), element)
        if inner.kind == MATRIX:
            read_matrix(inner.content, order, None, arrays, MAX_DEPTH)
    return arrays


def inflate(content: bytes, limit: int) -> bytes:
    """The inflated element, of at most `limit` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise DamageError(str(error)) from None
    if len(out) > limit:
        raise TooLargeError
    if not stream.eof:
        raise DamageError("a deflated array ends early")
    return out


def elements(content: memoryview, order: str, padded: bool = True) -> Iterator[Element]:
    """The elements of a chain; those of the file itself are `padded` by their own length only."""
    position = 0
    while position < len(content):
        if position + 8 > len(content):
            raise DamageError("it ends in the middle of an array")
        first, size = struct.unpack_from(order + "II", content, position)
        if first >> 16:  # up to 4 bytes inside the tag
            kind, size, begin, step = first & 0xFFFF, first >> 16, position + 4, 8
            if size > 4:
                raise DamageError("a small element is too long")
        else:
            kind, begin = first, position + 8
            step = 8 + (-(-size // 8) * 8 if padded else size)
        if begin + size > len(content):
            raise DamageError("it ends in the middle of an array")
        yield Element(kind, content[begin : begin + size])
        position += step


def read_matrix(content: memoryview, order: str, name: str | None, arrays: Arrays, depth: int) -> None:
    """Sort one matrix into what can be read and what cannot; `name` is known for the field of a structure."""
    parts = elements(content, order)
    flags = _numbers(_next(parts), order)
    if flags.size < 1:
        raise DamageError("an array has no flags")
    kind, is_complex = int(flags[0]) & 0xFF, int(flags[0]) & COMPLEX_FLAG
    if kind not in NUMERIC_CLASSES and kind not in OTHER_CLASSES and kind != STRUCTURE:
        arrays.refused[name or f"variable {len(arrays.refused) + 1}"] = "is no plain array"
        return
    shape = tuple(int(length) for length in _numbers(_next(parts), order))
    if len(shape) < 2 or any(length < 0 for length in shape):
        raise DamageError("an array has no shape")
    own = bytes(_next(parts).content).decode("utf-8", "replace").rstrip("\x00")
    full = own if name is None else name
    if not full:  # MATLAB's own tables, without a name
        return
    if kind == STRUCTURE:
        _read_structure(parts, order, full, shape, arrays, depth)
    elif kind in OTHER_CLASSES:
        arrays.refused[full] = OTHER_CLASSES[kind]
    elif is_complex:
        arrays.refused[full] = "holds complex numbers"
    elif len(shape) > 2:
        arrays.refused[full] = "has more than two dimensions"
    else:
        values = _numbers(_next(parts), order)
        if values.size != math.prod(shape):
            raise DamageError(f"'{full}' holds {values.size} values, its shape says {math.prod(shape)}")
        arrays.found[full] = values.reshape(shape, order="F")


def _read_structure(
    parts: Iterator[Element], order: str, name: str, shape: tuple[int, ...], arrays: Arrays, depth: int
) -> None:
    """The fields of a 1 × 1 structure: name length, names, then one matrix each."""
    if math.prod(shape) != 1 or depth == 0:
        arrays.refused[name] = "is an array of structures"
        return
    length = _numbers(_next(parts), order)
    names = bytes(_next(parts).content)
    if length.size != 1 or not 0 < length[0] or len(names) % int(length[0]):
        raise DamageError(f"the fields of '{name}' have no names")
    for start in range(0, len(names), int(length[0])):
        field = names[start : start + int(length[0])].split(b"\x00")[0].decode("utf-8", "replace")
        element = _next(parts)
        if element.kind == MATRIX and len(element.content):
            read_matrix(element.content, order, f"{name}.{field}", arrays, depth - 1)


def _next(parts: Iterator[Element]) -> Element:
    element = next(parts, None)
    if element is None:
        raise DamageError("it ends in the middle of an array")
    return element


def _numbers(element: Element, order: str) -> NDArray[Any]:
    """The content of an element of numbers."""
    code = NUMBERS.get(element.kind)
    if code is None:
        raise DamageError(f"an element has the unknown type {element.kind}")
    dtype = np.dtype(order + code)
    if len(element.content) % dtype.itemsize:
        raise DamageError("an element ends in the middle of a number")
    return np.frombuffer(element.content, dtype=dtype)
