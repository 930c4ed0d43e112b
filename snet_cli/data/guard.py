"""What an HDF5 file may hold, checked before any of its values is read.

HDF5 can point to other files, loop, declare a petabyte in a kilobyte, and keep values (variable-length strings,
references) that its own library cannot read safely once a bit has flipped. Our two kinds of file need none of that.
So `inspect` walks through the structure only (links, types, shapes, filters, the index of chunks) and refuses the
rest. What it asks HDF5 for, and in which order, matters: the layout of a data set is asked before its shape, because
the shape of a virtual one is looked up in other files; an attribute's type is asked before its value.

It bounds what a file can make the program do. It cannot mend bugs of the HDF5 library itself on crafted metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h5py
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

MAX_OBJECTS = 10_000
MAX_DEPTH = 4
MAX_ATTRIBUTES = 1_000
"""Attributes of one object."""

MAX_ATTRIBUTE_BYTES = 1 << 20

MAX_RATIO = 1_100
"""Declared over stored bytes; deflate's own limit is 1 032."""

FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}

SCALE_ATTRIBUTES = (b"DIMENSION_LIST", b"REFERENCE_LIST")
"""Written by HDF5 for dimension scales, never read by us; the only ones that may hold references."""

FIXED_STRING_LINE = "attrs.create('{name}', np.bytes_(text.encode()), dtype=h5py.string_dtype('utf-8', {size}))"

NUMBERS: tuple[h5t.TypeID, ...] = tuple(
    getattr(h5t, name)
    for name in (
        *(f"IEEE_F{bits}{order}" for bits in (16, 32, 64) for order in ("LE", "BE")),
        *(f"STD_{sign}{bits}{order}" for sign in "IU" for bits in (8, 16, 32, 64) for order in ("LE", "BE")),
    )
)
"""The number types that are read: IEEE floats and plain integers of either byte order."""


class RefusedError(Exception):
    """Something in a file that is not read; the message names it, the hint says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass
class _Walk:
    """What the walk has seen so far."""

    size: int
    max_bytes: int
    objects: int = 1
    declared: int = 0
    stored: int = 0
    addresses: set[Any] = field(default_factory=set)


def inspect(file: h5py.File, size: int, max_bytes: int) -> None:
    """Refuse a file whose structure is not that of plain arrays and attributes.

    Parameters
    ----------
    file : h5py.File
        Just opened; no value of it has been read.
    size : int
        Bytes of the file.
    max_bytes : int
        Limit on the bytes that all arrays declare together.

    Raises
    ------
    RefusedError
        Naming the object, what it has, and what was expected. Errors of HDF5 itself pass through.
    """
    if file.id.get_create_plist().get_userblock() != 0:
        raise RefusedError("the HDF5 data stands behind a user block, which is not read.", "Remove it with h5unjam.")
    walk = _Walk(size, max_bytes)
    walk.addresses.add(h5o.get_info(file.id).addr)
    root = h5g.open(file.id, b"/")
    _inspect_attributes(root, "/")
    _inspect_group(root, "", 1, walk)


def _inspect_group(group: h5g.GroupID, path: str, depth: int, walk: _Walk) -> None:
    count = group.get_num_objs()
    walk.objects += count
    if walk.objects > MAX_OBJECTS:
        raise RefusedError(
            f"holds more than {MAX_OBJECTS} objects.", "No file of snet has so many: is it the right one?"
        )
    if depth > MAX_DEPTH:
        raise RefusedError(f"groups are nested deeper than {MAX_DEPTH}, at '{path}'.", "No file of snet is so deep.")
    names: list[bytes] = []
    group.links.iterate(names.append)
    for raw in names:
        name = f"{path}/{_text(raw, 'a name')}"
        if b"/" in raw or raw in (b"", b"."):  # HDF5 would read it as a path, through links not yet looked at
            raise RefusedError(f"'{name}' is not a name that HDF5 allows.", "The file is damaged.")
        link = group.links.get_info(raw)
        if link.type != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
            raise RefusedError(
                f"'{name}' is {kinds.get(link.type, 'a user-defined link')}, expected the data itself.",
                "Copy the data into the file: h5repack does not, h5copy -f ext,soft does.",
            )
        _inspect_object(h5o.open(group, raw), name, depth, walk)


def _inspect_object(item: Any, name: str, depth: int, walk: _Walk) -> None:
    address = h5o.get_info(item).addr
    if address in walk.addresses:
        raise RefusedError(f"'{name}' is a second name of another object (a hard link).", "Copy the data instead.")
    walk.addresses.add(address)
    if isinstance(item, h5g.GroupID):
        _inspect_attributes(item, name)
        _inspect_group(item, name, depth + 1, walk)
    elif isinstance(item, h5d.DatasetID):
        _inspect_dataset(item, name, walk)
        _inspect_attributes(item, name)
    else:
        raise RefusedError(f"'{name}' is a named type, expected an array or a group.", "Remove it from the file.")


def _inspect_dataset(dataset: h5d.DatasetID, name: str, walk: _Walk) -> None:
    """Layout and storage first: the shape of a virtual data set would be looked up in other files."""
    plan = dataset.get_create_plist()
    layout = plan.get_layout()
    if layout == h5d.VIRTUAL:
        raise RefusedError(f"'{name}' is a virtual data set: its values lie in other files.", "Copy the values.")
    if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
        raise RefusedError(f"'{name}' has an unknown layout.", "Write it chunked or contiguous.")
    if layout == h5d.CONTIGUOUS and plan.get_external_count() != 0:
        raise RefusedError(f"the values of '{name}' lie in other files (external storage).", "Copy the values.")
    _inspect_filters(plan, name)
    _inspect_type(dataset.get_type(), f"'{name}'", "a fixed-length one, dtype='S64'")
    space = dataset.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        raise RefusedError(f"'{name}' has no values at all (a null data space).", "Write an array of length zero.")
    shape = dataset.shape
    item = dataset.get_type().get_size()
    declared = math.prod(shape) * item
    if layout == h5d.CHUNKED:
        declared = max(declared, _inspect_chunks(dataset, plan.get_chunk(), shape, item, name))
    stored = dataset.get_storage_size()
    if layout != h5d.CHUNKED and stored < declared <= walk.max_bytes:
        raise RefusedError(f"'{name}' declares {declared} bytes but stores {stored}.", "Write all its values.")
    _inspect_size(declared, stored, name, walk)


def _inspect_filters(plan: Any, name: str) -> None:
    """Known filters only, each at most once: deflate on deflate could grow a million times."""
    codes = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    for code in codes:
        if code not in FILTERS:
            raise RefusedError(
                f"'{name}' uses the filter {code}, expected only {', '.join(FILTERS.values())}.",
                "Rewrite it: h5repack -f GZIP=4 IN OUT",
            )
    if len(set(codes)) < len(codes):
        raise RefusedError(f"'{name}' uses one filter twice.", "Rewrite it: h5repack -f GZIP=4 IN OUT")


def _inspect_chunks(
    dataset: h5d.DatasetID, chunk: tuple[int, ...], shape: tuple[int, ...], item: int, name: str
) -> int:
    """Bytes that all chunks have when unpacked; every chunk must be stored."""
    if len(chunk) != len(shape):
        raise RefusedError(f"'{name}' has {len(shape)} dimensions but chunks of {len(chunk)}.", "The file is damaged.")
    if min(chunk, default=1) < 1:
        raise RefusedError(f"'{name}' has chunks of size zero.", "The file is damaged.")
    expected = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    stored = dataset.get_num_chunks()
    if stored != expected:
        raise RefusedError(
            f"'{name}' has {stored} of {expected} chunks; the rest was never written.", "Write all its values."
        )
    return expected * math.prod(chunk) * item


def _inspect_size(declared: int, stored: int, name: str, walk: _Walk) -> None:
    walk.declared += declared
    walk.stored += stored
    if walk.declared > walk.max_bytes:
        raise RefusedError(
            f"'{name}' brings the declared size to {walk.declared} bytes, more than the limit of {walk.max_bytes}.",
            "If you trust the file, raise the limit: --max-bytes SIZE",
        )
    if declared > MAX_RATIO * stored or walk.stored > walk.size or walk.declared > MAX_RATIO * walk.size:
        raise RefusedError(
            f"'{name}' declares {declared} bytes but stores {stored}, less than any compression needs.",
            "The file is damaged or made to exhaust the memory.",
        )


def _inspect_attributes(item: Any, name: str) -> None:
    if h5a.get_num_attrs(item) > MAX_ATTRIBUTES:
        raise RefusedError(f"'{name}' has more than {MAX_ATTRIBUTES} attributes.", "No file of snet has so many.")
    for raw in _attribute_names(item):
        attribute = h5a.open(item, raw)
        kind = attribute.get_type()
        label = f"the attribute '{_text(raw, 'an attribute')}' of '{name}'"
        if raw in SCALE_ATTRIBUTES:
            if not _holds_references(kind, raw):
                raise RefusedError(f"{label} is not what HDF5 writes for dimension scales.", "Remove it.")
            continue
        line = FIXED_STRING_LINE.format(name=_text(raw, "an attribute"), size="len(text.encode())")
        _inspect_type(kind, label, line)
        if attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise RefusedError(f"{label} is larger than {MAX_ATTRIBUTE_BYTES} bytes.", "Write it as a data set.")


def _attribute_names(item: Any) -> Iterator[bytes]:
    names: list[bytes] = []
    h5a.iterate(item, names.append)
    yield from names


def _holds_references(kind: h5t.TypeID, name: bytes) -> bool:
    """Whether the type is that of DIMENSION_LIST (lists of object references) or REFERENCE_LIST (reference, axis)."""
    if name == b"DIMENSION_LIST":
        return isinstance(kind, h5t.TypeVlenID) and bool(kind.get_super().get_class() == h5t.REFERENCE)
    if not isinstance(kind, h5t.TypeCompoundID) or kind.get_nmembers() != 2:
        return False
    return [kind.get_member_class(i) for i in (0, 1)] == [h5t.REFERENCE, h5t.INTEGER]


def _inspect_type(kind: h5t.TypeID, label: str, string_line: str) -> None:
    """Numbers, the Boolean of h5py and fixed-length strings; nothing with references or pointers in it."""
    code = kind.get_class()
    if code in (h5t.INTEGER, h5t.FLOAT):
        if not any(kind.equal(known) for known in NUMBERS):
            raise RefusedError(f"{label} has an unusual number format.", "Write it as float64, float32 or an integer.")
        return
    if isinstance(kind, h5t.TypeEnumID):
        if kind.get_size() == 1 and kind.get_nmembers() == 2 and kind.get_super().get_class() == h5t.INTEGER:
            if [(kind.get_member_name(i), kind.get_member_value(i)) for i in (0, 1)] == [(b"FALSE", 0), (b"TRUE", 1)]:
                return
    elif isinstance(kind, h5t.TypeStringID):
        if not kind.is_variable_str():
            return
        raise RefusedError(f"{label} is a variable-length string, which is not read.", f"Write {string_line}")
    names = {
        h5t.COMPOUND: "a compound type",
        h5t.REFERENCE: "a reference",
        h5t.VLEN: "a variable-length type",
        h5t.OPAQUE: "an opaque type",
        h5t.BITFIELD: "a bit field",
        h5t.ENUM: "an enumeration",
        h5t.ARRAY: "an array type",
        h5t.TIME: "a time type",
    }
    raise RefusedError(f"{label} holds {names.get(code, 'an unknown type')}, expected numbers.", "Write plain arrays.")


def _text(raw: bytes, what: str) -> str:
    """A name in the file as text, control characters replaced."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(f"{what} in the file is not UTF-8: {raw[:60]!r}.", "Rename it.") from None
    return "".join(c if c.isprintable() else "?" for c in text)
