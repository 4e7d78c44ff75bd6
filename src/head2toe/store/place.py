"""Where views are kept: a local folder, or the address of a bucket."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.errors import StoreError
from head2toe.files import alone

if TYPE_CHECKING:
    from lance.file import LanceFileSession


@dataclass(frozen=True)
class Place:
    """A local folder or the address of a bucket, with the options that open it."""

    address: str
    options: tuple[tuple[str, str], ...]

    @property
    def local(self) -> Path | None:
        return None if "://" in self.address else Path(self.address)

    @property
    def storage_options(self) -> dict[str, str] | None:
        return dict(self.options) or None

    def join(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"

    def session(self, name: str = "") -> LanceFileSession:
        from lance.file import LanceFileSession

        return LanceFileSession(self.join(name) if name else self.address, self.storage_options)

    def view_keys(self) -> list[str]:
        """The keys of the views kept here, sorted."""
        if self.local is not None and not self.local.is_dir():
            return []
        names = self.session().list_with_delimiter().common_prefixes
        return sorted(name.removesuffix(".lance") for name in names if name.endswith(".lance"))

    def check_writable(self) -> None:
        """Raise StoreError where nothing can be written; makes the folder. Buckets answer when they are written to."""
        if self.local is None:
            return
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.local).close()
        except OSError as error:
            why = "it is a file" if self.local.is_file() else error.strerror or str(error)
            raise StoreError(
                f"store: nothing can be written in {self.address} ({why}); choose another --store"
            ) from error

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Hold the view's lock where the place has locks; whether it is held. The system frees it if we are killed."""
        if self.local is None:
            yield False
            return
        self.local.mkdir(parents=True, exist_ok=True)
        with (self.local / f"{key}.lock").open("w") as file, alone(file) as held:
            yield held

    def touch(self, key: str) -> None:
        """Note that a view was used; a folder that cannot be written keeps its date."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                os.utime(self.local / f"{key}.lance")

    def last_used(self, key: str) -> datetime | None:
        if self.local is None:
            return None
        return datetime.fromtimestamp((self.local / f"{key}.lance").stat().st_mtime, UTC)
