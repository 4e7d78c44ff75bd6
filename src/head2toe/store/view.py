"""What a store holds, as plain data: views, what is known of them, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from head2toe.errors import StoreError
from head2toe.taps import Pool, Tap

FORMAT_VERSION = 1

Dtype = Literal["float16", "float32", "bfloat16"]


@dataclass(frozen=True)
class View:
    """Features that may stand in one matrix: one network's weights, preprocessing and precision, one pool, one dtype.

    `fingerprint` stands for the first three; `backbone` is the id that a user types, a description that takes no part
    in the key.
    """

    fingerprint: str
    pool: Pool
    dtype: Dtype
    backbone: str

    @property
    def key(self) -> str:
        """32 hex digits, the name of the view's folder: equal exactly where features may be mixed."""
        parts = {
            "format": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "pool": _told(self.pool),
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        moments = ", means and deviations" if self.pool.moments > 1 else ""
        return f"{self.backbone}, target size {self.pool.target_size}{moments}, {self.dtype} ({self.key[:8]})"


@dataclass(frozen=True)
class ViewInfo:
    """A view as `store ls` lists it.

    `rows` counts distinct inputs; `bytes` is everything on disk, old versions included; `last_used` is None on object
    stores, which keep no such date.
    """

    view: View
    rows: int
    taps: tuple[Tap, ...]
    bytes: int
    versions: int
    fragments: int
    created: datetime
    last_used: datetime | None

    @property
    def n_features(self) -> int:
        return sum(self.view.pool.length(tap) for tap in self.taps)


@dataclass(frozen=True)
class Damage:
    """Stored bytes that differ from their checksum.

    `tap` and `id` name the damaged features. Where both are None, `file` is damaged outside of them: either no row is
    lost (`rows` is 0) or the names of all its rows.
    """

    view: View
    file: str
    tap: str | None
    id: str | None
    rows: int

    def __str__(self) -> str:
        if self.tap is not None:
            what = f"tap '{self.tap}' of input {self.id}"
        else:
            what = f"the names of {self.rows} inputs" if self.rows else "the structure of a file, no features"
        return f"view {self.view}: {what} (data/{self.file})"


@dataclass(frozen=True)
class Compaction:
    """What `compact` did to one view: data files and bytes on disk, before and after."""

    view: View
    fragments: tuple[int, int]
    bytes: tuple[int, int]


def _told(pool: Pool) -> dict[str, object]:
    """A pool's fields; one moment is not told, as in views that were written before there were two."""
    fields = asdict(pool)
    return fields if pool.moments > 1 else {name: value for name, value in fields.items() if name != "moments"}


def view_to_json(view: View, created: str) -> str:
    return json.dumps({"format": FORMAT_VERSION, "created": created, **asdict(view)}, sort_keys=True)


def view_from_json(text: str) -> tuple[View, str]:
    """The view and the ISO date of its creation."""
    fields = json.loads(text)
    if fields["format"] != FORMAT_VERSION:
        raise StoreError(
            f"store: a view has format {fields['format']}, this version reads {FORMAT_VERSION}; "
            "install a newer head2toe, or remove the view and extract again"
        )
    pool = Pool(**fields["pool"])
    return View(fields["fingerprint"], pool, fields["dtype"], fields["backbone"]), fields["created"]


def tap_to_json(tap: Tap) -> str:
    return json.dumps(asdict(tap), sort_keys=True)


def tap_from_json(text: str) -> Tap:
    fields = json.loads(text)
    return Tap(**(fields | {"shape": tuple(fields["shape"])}))
