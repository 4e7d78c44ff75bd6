"""FeatureStore: write features once, read them in any order, know what is missing and what is damaged."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from head2toe.errors import FeatureError, StoreDamagedError, StoreError
from head2toe.store.codec import READ, STORED, decode, encode, refuse_unfinite
from head2toe.store.damage import opened_wreck, write_part
from head2toe.store.index import Index, Part
from head2toe.store.lance_folder import ConflictError, Fragment, LanceFolder, explained
from head2toe.store.place import Place
from head2toe.store.rows import Wanted, damaged_parts, load_index, read_rows
from head2toe.store.view import Compaction, Damage, View, ViewInfo
from head2toe.table import FeatureTable
from head2toe.taps import PooledTap, Tap

_ATTEMPTS = 100
_FILE_BYTES = 1 << 28
_VERSIONS = 256  # that pile up before old ones are dropped: each names every file, so that they grow with the square


def default_location() -> Path:
    """Where features are kept unless told otherwise: under HEAD2TOE_HOME, else the user's cache folder."""
    home = os.environ.get("HEAD2TOE_HOME")
    if home:
        return Path(home).expanduser() / "store"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "head2toe" / "store"


class FeatureStore:
    """Features on a local folder or an object store ("s3://bucket/features"), one Lance dataset a view.

    `storage_options` are Lance's (aws_endpoint, aws_access_key_id, ...). Any number of processes may read and write
    at once; a store can be pickled to spawned workers, but does not survive a fork.
    """

    def __init__(self, location: str | Path, storage_options: Mapping[str, str] | None = None) -> None:
        address = str(location).removeprefix("file://")
        if "://" not in address:
            address = str(Path(address).expanduser().absolute())
        self._place = Place(address, tuple(sorted((storage_options or {}).items())))
        self._open: dict[str, tuple[LanceFolder, Index, int]] = {}  # the index at that version
        self._intact: set[Fragment] = set()  # seen to match their names
        self._guard = threading.RLock()

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[str, dict[str, str]]]:
        return FeatureStore, (self._place.address, dict(self._place.options))

    def __repr__(self) -> str:
        return f"FeatureStore({self._place.address!r})"

    @property
    def location(self) -> str:
        return self._place.address

    def check_writable(self) -> None:
        """Raise StoreError, before any work, where features could not be written."""
        self._place.check_writable()

    def missing(self, view: View, ids: Sequence[str], taps: Sequence[Tap], *, verify: bool | None = None) -> list[str]:
        """The distinct ids that lack any of `taps`, in the asked order.

        Before features are reused, the files that hold them are compared with their checksums; damaged rows are
        dropped from the store, and so are missing. By default this is done on local folders only: object stores check
        their own bytes, and comparing would download them.
        """
        names = [tap.name for tap in taps]
        with self._reading("missing", view) as opened:
            if opened is None:
                return list(dict.fromkeys(ids))
            folder, index = opened
            _refuse_other_taps(folder, taps)
            if self._verifies(verify):
                index = self._without_damage(folder, index, ids, names)
            return list(index.lacking(ids, names))

    def write(self, view: View, ids: Sequence[str], features: Mapping[Tap, np.ndarray]) -> int:
        """Add one batch of features (n, length) by tap, whole or not at all; how many inputs were new in some tap.

        What is there already stays as it is. Raises FeatureError on NaN, infinite or too large numbers, naming tap
        and input, and StoreError where the disk is full.
        """
        stored = _stored(view, ids, features)
        first: dict[str, int] = {}
        for i, key in enumerate(ids):
            first.setdefault(key, i)
        for _ in range(_ATTEMPTS):
            with self._writing("write", view) as (folder, index, exclusive):
                _refuse_other_taps(folder, list(features))
                if folder.add_taps({tap: view.pool.length(tap) for tap in features}):
                    index = self._index(folder)
                lacking = index.lacking(ids, list(stored))
                if not lacking:
                    return 0
                parts = []
                for names, keys in _by_taps(lacking).items():
                    rows = np.array([first[key] for key in keys])
                    parts.append(write_part(folder, keys, {name: stored[name][rows] for name in names}))
                with contextlib.suppress(ConflictError):
                    folder.append([part.fragment for part in parts], exclusive)
                    for part in parts:
                        index.add(part)
                    self._open[view.key] = folder, index, folder.version
                    if exclusive and folder.version % _VERSIONS == 0:
                        folder.clean(exclusive)
                    return len(lacking)
        raise StoreError(f"write: {_ATTEMPTS} attempts on the view {view} met other writers; run again with fewer")

    def read(self, view: View, ids: Sequence[str], taps: Sequence[Tap], *, verify: bool | None = None) -> FeatureTable:
        """The features of `ids` (repeats allowed) in the asked order of rows and taps, one array (n, length) a tap.

        float16 and float32 come as stored, bfloat16 widened to float32. With `verify`, StoreDamagedError unless every
        file that is read matches its checksum; by default on local folders, where each file is compared once.
        """
        wanted = [Wanted(tap.name, view.pool.length(tap)) for tap in taps]
        names = [tap.name for tap in taps]
        with self._reading("read", view) as opened:
            if opened is None:
                raise StoreError(f"read: {self.location} holds nothing of the view {view}; extract features first")
            folder, index = opened
            _refuse_other_taps(folder, taps)
            while True:
                try:
                    if self._verifies(verify):
                        self._refuse_damaged(folder, index, ids, names)
                    blocks = read_rows(folder, index, ids, wanted)
                    break
                except KeyError as error:
                    key, tap = error.args
                    raise StoreError(
                        f"read: {self.location} lacks tap '{tap}' of input {key} in the view {view}; extract it first"
                    ) from error
                except StoreError:
                    moved = self._moved(view, folder)  # by a compaction of another process
                    if moved is None:
                        raise
                    folder, index = moved
            self._place.touch(view.key)
        pooled = tuple(PooledTap(tap, view.pool) for tap in taps)
        return FeatureTable(tuple(ids), pooled, tuple(decode(block, view.dtype) for block in blocks))

    def batches(
        self, view: View, ids: Sequence[str], taps: Sequence[Tap], *, memory: int = 1 << 28
    ) -> Iterator[FeatureTable]:
        """As `read`, in consecutive tables of at most about `memory` bytes each."""
        row = sum(view.pool.length(tap) for tap in taps) * READ[view.dtype].itemsize
        step = max(1, memory // max(1, row))
        for start in range(0, len(ids), step):
            yield self.read(view, ids[start : start + step], taps)

    def views(self) -> list[ViewInfo]:
        """All views that can be opened, the last used first; `unreadable` says which cannot."""
        return self._listed()[0]

    def unreadable(self) -> dict[str, StoreError]:
        """Why a view cannot be opened, by its key: most often its manifest is damaged."""
        return self._listed()[1]

    def find(self, text: str) -> View:
        """The one view whose key starts with `text` or whose backbone is called so."""
        infos, broken = self._listed()
        views = [info.view for info in infos]
        found = [view for view in views if text and (view.key.startswith(text) or view.backbone == text)]
        if len(found) == 1:
            return found[0]
        if not found and text:
            for key, error in broken.items():
                if key.startswith(text):
                    raise error
        listed = "; ".join(f"{view.key[:8]} is {view}" for view in found or views) or "no view at all"
        raise StoreError(f"store: '{text}' fits {len(found)} views at {self.location}, which has {listed}")

    def exists(self, view: View) -> bool:
        with self._reading("look up", view) as opened:
            return opened is not None

    def verify(self, view: View | None = None, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Compare every byte of features with its checksum and name what differs; nothing is changed.

        `progress` is told (files done, files in all) of each view. The next extraction of the damaged inputs, or
        `compact`, drops the damaged rows. Of all views, StoreError where one cannot be opened.
        """
        return [damage for one in self._these(view) for damage in self._verify(one, progress)]

    def compact(self, view: View | None = None) -> list[Compaction]:
        """Join the taps of each input and small files into large ones; drop damaged rows and old versions."""
        return [self._compact(one) for one in self._these(view)]

    def remove(self, view: View) -> None:
        """Delete a view and all its features."""
        with self._writing("remove", view, create=False) as (folder, _, _):
            folder.remove()
            self._open.pop(view.key)

    def _verifies(self, verify: bool | None) -> bool:
        if verify:
            self._intact.clear()
        return self._place.local is not None if verify is None else verify

    def _verify(self, view: View, progress: Callable[[int, int], None] | None) -> list[Damage]:
        with self._reading("verify", view) as opened:
            if opened is None:
                return []
            folder, index = opened
            found: list[Damage] = []
            for done, part in enumerate(index.parts, 1):
                for damaged in damaged_parts(folder, [part]):
                    with opened_wreck(folder, damaged) as wreck:
                        found += wreck.damages(folder)
                if progress is not None:
                    progress(done, len(index.parts))
            # files that seem lost were moved if another process compacted meanwhile
            return self._verify(view, progress) if found and self._moved(view, folder) is not None else found

    def _these(self, view: View | None) -> list[View]:
        if view is not None:
            return [view]
        infos, broken = self._listed()
        if broken:
            raise next(iter(broken.values()))
        return [info.view for info in infos]

    def _listed(self) -> tuple[list[ViewInfo], dict[str, StoreError]]:
        """The views that can be opened, the last used first, and why the others cannot, by key."""
        found: list[ViewInfo] = []
        broken: dict[str, StoreError] = {}
        with explained("list the views", self.location):
            keys = self._place.view_keys()
        for key in keys:
            try:
                with explained("look at a view", self._place.join(f"{key}.lance")):
                    info = self._info(key)
            except StoreError as error:
                broken[key] = error
            else:
                found += [] if info is None else [info]
        return sorted(found, key=lambda info: info.last_used or info.created, reverse=True), broken

    def _info(self, key: str) -> ViewInfo | None:
        folder = LanceFolder.open(self._place, key)
        if folder is None:
            return None
        index = load_index(folder, None)
        size, versions = folder.disk()
        taps, used = tuple(folder.taps.values()), self._place.last_used(key)
        rows = len(index.ids())
        return ViewInfo(folder.view, rows, taps, size, versions, len(index.parts), folder.created, used)

    @contextlib.contextmanager
    def _reading(self, doing: str, view: View) -> Iterator[tuple[LanceFolder, Index] | None]:
        """The newest version of a view, None where there is none."""
        with self._guard, explained(doing, self.location):
            yield self._newest(view.key)

    @contextlib.contextmanager
    def _writing(self, doing: str, view: View, create: bool = True) -> Iterator[tuple[LanceFolder, Index, bool]]:
        """The newest version of a view, made if need be, and whether no other process can change it meanwhile."""
        with self._guard, explained(doing, self.location), self._place.locked(view.key) as exclusive:
            opened = self._newest(view.key)
            if opened is None and create:
                folder = LanceFolder.create(self._place, view)
                opened = folder, self._index(folder)
            if opened is None:
                raise StoreError(f"{doing}: {self.location} has no view {view}; `head2toe store ls` lists them")
            yield *opened, exclusive

    def _newest(self, key: str) -> tuple[LanceFolder, Index] | None:
        if key in self._open:
            folder = self._open[key][0]
            with contextlib.suppress(OSError):  # it was removed, perhaps made again, or compacted
                folder.refresh()
                return folder, self._index(folder)
        self._open.pop(key, None)
        folder = LanceFolder.open(self._place, key)
        return None if folder is None else (folder, self._index(folder))

    def _moved(self, view: View, folder: LanceFolder) -> tuple[LanceFolder, Index] | None:
        """The newest version of a view, None where that is the one that `folder` was at when it was last asked."""
        before = folder.version
        newest = self._newest(view.key)
        return None if newest is None or (newest[0] is folder and folder.version == before) else newest

    def _index(self, folder: LanceFolder) -> Index:
        """The index of the folder's version; ids are read of files that are new since the last look."""
        _, known, version = self._open.get(folder.key, (None, None, -1))
        if known is not None and version == folder.version:
            return known
        index = load_index(folder, known)
        self._open[folder.key] = folder, index, folder.version
        return index

    def _damaged(self, folder: LanceFolder, index: Index, ids: Sequence[str], taps: Sequence[str]) -> list[Part]:
        """The parts whose bytes changed: of those that hold `taps` of `ids`, and of those whose inputs are unknown."""
        unseen = [part for part in index.parts_of(ids, taps) if part.fragment not in self._intact]
        damaged = damaged_parts(folder, unseen)
        self._intact.update(part.fragment for part in unseen if part not in damaged)
        return damaged + [part for part in index.parts if part.ids is None]

    def _refuse_damaged(self, folder: LanceFolder, index: Index, ids: Sequence[str], taps: Sequence[str]) -> None:
        damaged = self._damaged(folder, index, ids, taps)
        if damaged:
            with opened_wreck(folder, damaged[0]) as wreck:
                first = wreck.damages(folder)[0]
            raise StoreDamagedError(
                f"read: {len(damaged)} files at {self.location} differ from their checksums, the first: {first}; "
                "extract these inputs again to repair them"
            )

    def _without_damage(self, folder: LanceFolder, index: Index, ids: Sequence[str], taps: Sequence[str]) -> Index:
        """The index after dropping the damaged rows of the files that hold `taps` of `ids`."""
        for _ in range(_ATTEMPTS):
            if not self._damaged(folder, index, ids, taps):
                return index
            with self._writing("drop damaged rows", folder.view) as (folder, index, _):
                for part in self._damaged(folder, index, ids, taps):
                    with opened_wreck(folder, part) as wreck:
                        saved = wreck.save(folder)
                    with contextlib.suppress(ConflictError):
                        folder.replace([part.fragment], [saved] if saved is not None else [])
                index = self._forget(folder)
        raise StoreError(f"missing: {_ATTEMPTS} attempts to drop damaged rows of the view {folder.view} failed")

    def _forget(self, folder: LanceFolder) -> Index:
        """Read every id again: a saved file can bear the name of the damaged one."""
        self._open.pop(folder.key, None)
        return self._index(folder)

    def _compact(self, view: View) -> Compaction:
        with self._reading("compact", view) as opened:
            if opened is not None:
                self._without_damage(*opened, opened[1].ids(), list(opened[0].taps))
        with self._writing("compact", view, create=False) as (folder, index, exclusive):
            before = folder.disk()[0]
            folder.clean(exclusive)  # makes room, also where a disk was full the last time
            files = _joined(folder, index)
            if len(files) < len(index.parts):
                try:
                    fragments = [_rewrite(folder, index, names, ids) for names, ids in files]
                    folder.replace([part.fragment for part in index.parts], fragments)
                finally:
                    folder.clean(exclusive)
            counts = len(index.parts), len(self._index(folder).parts)
            return Compaction(view, counts, (before, folder.disk()[0]))


def _joined(folder: LanceFolder, index: Index) -> list[tuple[tuple[str, ...], list[str]]]:
    """(taps, inputs) of files of at most about 256 MB that would hold every row of `index`, taps joined."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key in index.ids():
        kept = index.taps_of(key)
        groups.setdefault(tuple(name for name in folder.taps if name in kept), []).append(key)
    files = []
    for names, ids in groups.items():
        row = sum(want.length for want in _wanted(folder, names)) * STORED[folder.view.dtype].itemsize
        step = max(1, _FILE_BYTES // max(1, row))
        files += [(names, ids[start : start + step]) for start in range(0, len(ids), step)]
    return files


def _rewrite(folder: LanceFolder, index: Index, names: Sequence[str], ids: Sequence[str]) -> Fragment:
    """A fragment with those taps of those inputs, not committed."""
    blocks = read_rows(folder, index, ids, _wanted(folder, names))
    return write_part(folder, ids, dict(zip(names, blocks, strict=True))).fragment


def _wanted(folder: LanceFolder, names: Sequence[str]) -> list[Wanted]:
    return [Wanted(name, folder.view.pool.length(folder.taps[name])) for name in names]


def _stored(view: View, ids: Sequence[str], features: Mapping[Tap, np.ndarray]) -> dict[str, np.ndarray]:
    """Features as they will be stored, by tap, after every check that needs no disk."""
    for tap, block in features.items():
        shape = (len(ids), view.pool.length(tap))
        if block.shape != shape:
            raise FeatureError(f"write: tap '{tap.name}' should be {shape} after pooling, got {block.shape}")
    stored = {tap.name: encode(block, view.dtype) for tap, block in features.items()}
    refuse_unfinite(list(stored), ids, list(features.values()), list(stored.values()), view.dtype)
    return stored


def _by_taps(lacking: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, taps in lacking.items():
        groups.setdefault(taps, []).append(key)
    return groups


def _refuse_other_taps(folder: LanceFolder, taps: Sequence[Tap]) -> None:
    kept = folder.taps
    for tap in taps:
        if tap != kept.get(tap.name, tap):
            raise StoreError(
                f"store: tap '{tap.name}' of the view {folder.view} was stored as {kept[tap.name]}, asked for {tap}; "
                "a network with other taps needs another fingerprint"
            )
