"""Where the numbers of a local feature file lie, so that they can be copied straight from it.

Lance 2.0 keeps a fixed-size list without nulls as flat pages; the file's end says where they are
(https://lance.org/format/file, `file2.proto`). Lance's own reader takes 1 to 4 ms a file and copies once more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from head2toe.errors import StoreDamagedError

# start of the columns' metadata, of the table of their places, of the global buffers' table; numbers of both; version
_FOOTER = struct.Struct("<QQQIIHH4s")
_PLACE = struct.Struct("<QQ")
_PAGES = 2  # of ColumnMetadata
_OFFSETS, _SIZES = 1, 2  # of Page


def mapped_pages(path: Path, columns: Sequence[int]) -> list[list[np.ndarray]]:
    """The pages (bytes,) uint8 of each of `columns`, mapped and not yet read; StoreDamagedError for another layout."""
    with path.open("rb") as file:
        held = mmap(file.fileno(), 0, access=ACCESS_READ)
    _, table, _, _, n_columns, *_, magic = _FOOTER.unpack_from(held, len(held) - _FOOTER.size)
    if magic != b"LANC" or max(columns) >= n_columns:
        raise StoreDamagedError(f"read: {path} should be a Lance file of more than {max(columns)} columns")
    content, found = np.frombuffer(held, np.uint8), list[list[np.ndarray]]()
    for column in columns:
        start, size = _PLACE.unpack_from(held, table + column * _PLACE.size)
        places = [_place(page) for field, page in _fields(held[start : start + size]) if field == _PAGES]
        found.append([content[at : at + length] for at, length in places])
    return found


def _place(page: bytes) -> tuple[int, int]:
    """Where the one buffer of a flat page starts, and its bytes."""
    fields = dict(_fields(page))
    ((at,), (size,)) = (list(_varints(fields[number])) for number in (_OFFSETS, _SIZES))
    return at, size


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The (number, content) of a protobuf message's fields of variable length; plain integers are passed over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7:
            yield key >> 3, message[at : at + value]
            at += value


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer that starts at a byte, 7 bits a byte, and where it ends."""
    value, shift = message[at] & 0x7F, 7
    while message[at] & 0x80:
        at += 1
        value |= (message[at] & 0x7F) << shift
        shift += 7
    return value, at + 1
