"""One view on disk: a Lance dataset of content-addressed data files.

Layout of `KEY.lance`: a fragment holds some taps of some inputs, each of them whole, so that adding rows or taps only
adds fragments. It has two files, each called by the hash of its bytes: a small one with the columns `id` (string) and
`checks` (binary, one uint64 a tap), and one with a fixed-size list a tap. Lance never parses a small file whose bytes
changed: it trusts lengths, and one flipped bit in them can ask for all memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from head2toe.errors import Head2ToeError, StoreDamagedError, StoreError
from head2toe.store.codec import file_name
from head2toe.store.place import Place
from head2toe.store.view import Dtype, View, tap_from_json, tap_to_json, view_from_json, view_to_json
from head2toe.taps import Tap

if TYPE_CHECKING:
    from lance import LanceDataset, LanceOperation
    from lance.fragment import DataFile, FragmentMetadata

# 2.0 keeps features in flat pages: on 2,272 x 61 x 512 float16 in one file it reads 1.7 times faster than 2.1 and 2.2
_FILE_VERSION = "2.0"
_ARROW: dict[Dtype, pa.DataType] = {"float16": pa.float16(), "float32": pa.float32(), "bfloat16": pa.uint16()}
_KEYS = pa.schema([pa.field("id", pa.string()), pa.field("checks", pa.binary())])


class ConflictError(Exception):
    """Another process committed first: look again and retry."""


@dataclass(frozen=True)
class File:
    """A file under `data/`, `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Fragment:
    """Some taps of some inputs; `taps` are in the order of their columns."""

    keys: File
    data: File
    taps: tuple[str, ...]
    n_rows: int


class LanceFolder:
    """An open view at one version; `refresh` moves it to the newest."""

    def __init__(self, place: Place, key: str, dataset: LanceDataset) -> None:
        self.place, self.key, self._dataset = place, key, dataset
        self._look()
        self._session = place.session(f"{key}.lance")

    @staticmethod
    def open(place: Place, key: str) -> LanceFolder | None:
        """The newest version of the view called `key`, None where there is none."""
        import lance

        address = place.join(f"{key}.lance")
        if place.local is not None and not (Path(address) / "_versions").is_dir():
            return None
        try:
            return LanceFolder(place, key, lance.dataset(address, storage_options=place.storage_options))
        except BaseException as error:
            _let_pass(error)
            # a process killed while it made the view leaves a folder without a version
            if not any(name.endswith(".manifest") for name in place.session().list(f"{key}.lance/_versions")):
                return None
            if "os error" in str(error):  # the bytes may be sound
                raise
            raise _unreadable(address, _first_line(error)) from error

    @staticmethod
    def create(place: Place, view: View) -> LanceFolder:
        """An empty view; the one that is there if another process was faster."""
        import lance

        created = datetime.now(UTC).isoformat(timespec="seconds")
        schema = _KEYS.with_metadata({"head2toe": view_to_json(view, created)})
        refused = None
        try:
            lance.write_dataset(
                schema.empty_table(),
                place.join(f"{view.key}.lance"),
                mode="create",
                data_storage_version=_FILE_VERSION,
                storage_options=place.storage_options,
            )
        except OSError as error:
            refused = error
        folder = LanceFolder.open(place, view.key)
        if folder is None:
            raise refused or StoreError(f"store: the view {view} could not be made at {place.address}; is it writable?")
        return folder

    @property
    def version(self) -> int:
        return self._dataset.version

    def refresh(self) -> None:
        """Move to the newest version; OSError where the view is gone, or was made again."""
        if self._seen != self._manifest():
            raise FileNotFoundError(f"{self.key} was removed or compacted")
        if self._dataset.latest_version != self._dataset.version:
            self._dataset.checkout_latest()
            self._look()

    def fragments(self) -> list[Fragment]:
        names = {number: _tap_name(name) for name, number in self._columns.items()}
        found = []
        for fragment in self._metadata():
            keys, data = fragment.files
            taps = tuple(names[i] for i in data.fields if i in names)
            if len(set(taps)) < len(data.fields):  # a flipped bit would give one tap's numbers as another's
                raise _unreadable(self.place.join(f"{self.key}.lance"), "a file names one tap twice, or an unknown one")
            found.append(Fragment(_file(keys), _file(data), taps, fragment.physical_rows))
        return found

    def add_taps(self, taps: Mapping[Tap, int]) -> bool:
        """Make room for `taps` of that many numbers, by the manifest only; whether the version changed.

        Lance then moves to the newest version, with whatever others added to it.
        """
        from lance.commit import CommitConflictError

        for attempt in range(_ATTEMPTS):
            fresh = [tap for tap in taps if tap.name not in self.taps]
            if not fresh:
                return attempt > 0
            fields = [
                _tap_field(tap.name, self.view.dtype, taps[tap]).with_metadata({"tap": tap_to_json(tap)})
                for tap in fresh
            ]
            try:
                self._dataset.add_columns(pa.schema(fields))
                self._look()
            except (OSError, ValueError) as error:
                self._dataset.checkout_latest()
                self._look()
                if not isinstance(error, CommitConflictError) and not any(tap.name in self.taps for tap in fresh):
                    raise
        raise StoreError(
            f"store: {_ATTEMPTS} attempts to add taps to the view {self.view} met other writers; try again"
        )

    def keys(self, places: Sequence[int]) -> pa.Table:
        """The columns `id` and `checks` of all rows of those of `fragments()`, in that order, in one scan."""
        if not places:
            return _KEYS.empty_table()
        fragments = self._dataset.get_fragments()
        asked = [fragments[place] for place in places]
        return self._dataset.scanner(columns=_KEYS.names, fragments=asked, scan_in_order=True).to_table()

    def path(self, file: File) -> Path:
        """Where a file of a local view lies."""
        assert self.place.local is not None
        return self.place.local / f"{self.key}.lance" / "data" / file.name

    def batches(
        self, file: File, columns: Sequence[str], rows: range | Sequence[int], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """The asked rows of a file, ascending, in batches of `batch_rows`; `columns` as `column` names them."""
        reader = self._session.open_reader(f"data/{file.name}", list(columns))
        if isinstance(rows, range):
            found = reader.read_range(rows.start, len(rows), batch_size=batch_rows, batch_readahead=2)
        else:
            found = reader.take_rows(list(rows), batch_size=batch_rows, batch_readahead=2)
        yield from found.to_batches()

    def content(self, file: File) -> Iterator[bytes]:
        """A file's bytes in pieces; FileNotFoundError where it is gone."""
        if self.place.local is not None:
            yield from _pieces(self.path(file))
            return
        path = f"data/{file.name}"
        if not self._session.contains(path):
            raise FileNotFoundError(path)
        for start in range(0, file.size, _PIECE):
            yield self._session.read_range(path, start, min(_PIECE, file.size - start))

    def write(self, ids: Sequence[str], checks: np.ndarray, taps: Mapping[str, np.ndarray]) -> Fragment:
        """Write a fragment, not yet committed: checks (n, L) uint64 and stored numbers (n, length) by tap."""
        sums = [row.tobytes() for row in checks]
        keys = pa.record_batch([pa.array(ids, pa.string()), pa.array(sums, pa.binary())], schema=_KEYS)
        fields = [_tap_field(name, self.view.dtype, block.shape[1]) for name, block in taps.items()]
        blocks = [_to_arrow(block, field.type) for block, field in zip(taps.values(), fields, strict=True)]
        data = pa.record_batch(blocks, schema=pa.schema(fields))
        put = self._write_local if self.place.local is not None else self._upload
        return Fragment(put(keys), put(data), tuple(taps), len(ids))

    def append(self, new: Sequence[Fragment], exclusive: bool) -> None:
        """Commit fragments made by `write`, all or none; ConflictError unless they follow the version seen here.

        Lance lets appends pass each other, so that two processes could add the same input. An `exclusive` caller (it
        holds the lock) appends in constant time; any other names every fragment in a merge, which Lance refuses when
        anything was committed in between.
        """
        from lance import LanceOperation

        fragments = [self._to_lance(fragment) for fragment in new]
        if exclusive:
            return self._commit(LanceOperation.Append(fragments))
        old = self._metadata()
        start = 1 + max((fragment.id for fragment in old), default=-1)
        for i, fragment in enumerate(fragments):
            fragment.id = start + i
        return self._commit(LanceOperation.Merge([*old, *fragments], self._dataset.lance_schema))

    def replace(self, old: Sequence[Fragment], new: Sequence[Fragment]) -> None:
        """Commit `new` in the place of `old`, all or none; ConflictError if an old one is already gone."""
        from lance import LanceOperation

        names = {fragment.keys.name for fragment in old}  # which hold the inputs: equal features share a file
        gone = [fragment.id for fragment in self._metadata() if str(fragment.files[0].path) in names]
        if len(gone) < len(names):
            raise ConflictError
        fragments = [self._to_lance(fragment) for fragment in new]
        self._commit(LanceOperation.Update(removed_fragment_ids=gone, new_fragments=fragments))

    def clean(self, exclusive: bool) -> None:
        """Drop old versions, and under a lock also what killed processes left (elsewhere only after seven days)."""
        self._dataset.cleanup_old_versions(retain_versions=1, delete_unverified=exclusive)

    def disk(self) -> tuple[int, int]:
        """(bytes of all files, number of versions)."""
        sizes = self._dataset.all_files().read_all()["size_bytes"].to_numpy()
        return int(sizes.sum()), len(self._dataset.version_refs())

    def remove(self) -> None:
        from lance import LanceDataset

        address = self.place.join(f"{self.key}.lance")
        if self.place.local is not None:
            shutil.rmtree(address)
        else:
            LanceDataset.drop(address, storage_options=self.place.storage_options)

    def _manifest(self) -> tuple[int, int] | None:
        """What tells this version's manifest from that of a view made again; None in a bucket, or where it is gone."""
        if self.place.local is None:
            return None
        name = f"{(1 << 64) - 1 - self.version:020}.manifest"  # the newest comes first in a listing
        with contextlib.suppress(FileNotFoundError):
            found = (self.place.local / f"{self.key}.lance" / "_versions" / name).stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def _look(self) -> None:
        """Note what the schema says: the view, and its taps by name in the order of their adding."""
        schema = self._dataset.schema
        metadata = schema.metadata or {}
        if b"head2toe" not in metadata:
            raise StoreError(f"store: {self.place.join(self.key)}.lance is a Lance dataset, but no view of head2toe")
        self.view, created = view_from_json(metadata[b"head2toe"].decode())
        self.created = datetime.fromisoformat(created)
        taps = [tap_from_json(field.metadata[b"tap"].decode()) for field in schema if field.metadata]
        self.taps = {tap.name: tap for tap in taps}
        self._columns = {field.name(): field.id() for field in self._dataset.lance_schema.fields()}
        self._seen = self._manifest()

    def _metadata(self) -> list[FragmentMetadata]:
        return [fragment.metadata for fragment in self._dataset.get_fragments()]

    def _commit(self, operation: LanceOperation.BaseOperation) -> None:
        from lance import LanceDataset
        from lance.commit import CommitConflictError

        try:
            self._dataset = LanceDataset.commit(
                self._dataset,
                operation,
                read_version=self._dataset.version,
                storage_options=self.place.storage_options,
                max_retries=0,
            )
        except CommitConflictError as error:
            raise ConflictError from error
        self._seen = self._manifest()

    def _to_lance(self, fragment: Fragment) -> FragmentMetadata:
        from lance.fragment import DataFile, FragmentMetadata

        major, minor = map(int, _FILE_VERSION.split("."))
        files = []
        for file, columns in ((fragment.keys, _KEYS.names), (fragment.data, [column(tap) for tap in fragment.taps])):
            fields = [self._columns[name] for name in columns]
            files.append(DataFile(file.name, fields, list(range(len(fields))), major, minor, file.size))
        return FragmentMetadata(id=0, files=files, physical_rows=fragment.n_rows)

    def _write_local(self, batch: pa.RecordBatch) -> File:
        assert self.place.local is not None
        folder = self.place.local / f"{self.key}.lance" / "data"
        folder.mkdir(exist_ok=True)
        draft = folder / f"{uuid.uuid4().hex}.lance"
        try:
            file = _write_file(draft, batch)
            os.replace(draft, folder / file.name)
        finally:
            draft.unlink(missing_ok=True)
        return file

    def _upload(self, batch: pa.RecordBatch) -> File:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "draft.lance"
            file = _write_file(draft, batch)
            self._session.upload_file(draft, f"data/{file.name}")
        return file


def column(tap: str) -> str:
    """The column of a tap: Lance allows no dot in a column's name."""
    return "tap/" + tap.replace("%", "%25").replace("/", "%2F").replace(".", "/")


def from_arrow(array: pa.Array, length: int) -> np.ndarray:
    """A fixed-size-list array of n lists as (n, length), without a copy."""
    return array.flatten().to_numpy(zero_copy_only=True).reshape(-1, length)


@contextlib.contextmanager
def explained(doing: str, address: str) -> Iterator[None]:
    """Turn what Lance raises, its panics included, into one StoreError."""
    try:
        yield
    except BaseException as error:
        _let_pass(error)
        if any(sign in str(error) for sign in _FULL):
            raise StoreError(
                f"{doing}: no space is left at {address}; what was committed before is safe: free some space and run "
                "the same command again"
            ) from error
        raise StoreError(f"{doing}: {address}: {_first_line(error)}") from error


_ATTEMPTS = 100
_PIECE = 1 << 22
# ENOSPC, EDQUOT, EFBIG
_FULL = ("os error 28", "os error 122", "os error 27", "No space left", "Disk quota", "File too large")


def _let_pass(error: BaseException) -> None:
    """Re-raise what is no failure of Lance; its panics derive from BaseException only."""
    if isinstance(error, (Head2ToeError, ConflictError)):
        raise error
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _unreadable(address: str, why: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"store: the manifest of the view at {address} cannot be read ({why}); delete that folder and extract again"
    )


def _first_line(error: BaseException) -> str:
    """The message without the source position that Lance appends."""
    return str(error).split(", /")[0].splitlines()[0] if str(error) else type(error).__name__


def _tap_name(column: str) -> str:
    return column.removeprefix("tap/").replace("/", ".").replace("%2F", "/").replace("%25", "%")


def _tap_field(tap: str, dtype: Dtype, length: int) -> pa.Field:
    return pa.field(column(tap), pa.list_(_ARROW[dtype], length))


def _file(file: DataFile) -> File:
    return File(str(file.path), file.file_size_bytes or 0)


def _to_arrow(block: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=kind)


def _write_file(path: Path, batch: pa.RecordBatch) -> File:
    """Write a Lance file; the name that its bytes ask for."""
    from lance.file import LanceFileWriter

    with LanceFileWriter(str(path), batch.schema, version=_FILE_VERSION) as writer:
        writer.write_batch(batch)
    return File(file_name(_pieces(path)), path.stat().st_size)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
