"""One way to read features, whatever holds them: arrays or tensors, one matrix or tap blocks, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from head2toe.errors import FeatureError
from head2toe.solvers import work

if TYPE_CHECKING:
    import torch


class ColumnBlock(Protocol):
    """Anything that shows n x m numbers and gives a slice of its columns: a memory map, a store's reader."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: tuple[slice, slice | np.ndarray], /) -> np.ndarray: ...


CHUNK_BYTES = 64 << 20
MAPPED = 256  # columns gathered from a map before its pages are dropped: each may bring a megabyte of neighbours
BUFFER_BYTES = 8 << 20  # converted columns are multiplied while they are still in the cache


@dataclass(frozen=True, eq=False)
class Columns:
    """Blocks of features side by side, (n, F) in all, never concatenated and never converted whole.

    Feature j of the whole is column j - offsets[l] of block l.
    """

    blocks: tuple[np.ndarray | torch.Tensor | ColumnBlock, ...]
    offsets: np.ndarray

    @property
    def n(self) -> int:
        return int(self.blocks[0].shape[0])

    @property
    def n_features(self) -> int:
        return int(self.offsets[-1])

    @property
    def double(self) -> bool:
        """Whether any block holds float64, so that float32 arithmetic would lose what the caller gave."""
        return any("float64" in str(getattr(block, "dtype", "")) for block in self.blocks)

    def chunks(self, dtype: type[np.floating] = np.float32) -> Iterator[tuple[int, int, np.ndarray]]:
        """(block index, first feature, (n, m) array in `dtype`): views where the block already has that dtype."""
        for index, (block, start) in enumerate(zip(self.blocks, self.offsets, strict=False)):
            length = int(block.shape[1])
            width = max(1, length if _is(block, dtype) else CHUNK_BYTES // (self.n * np.dtype(dtype).itemsize))
            for first in range(0, length, width):
                yield index, int(start) + first, _array(block[:, slice(first, first + width)], dtype)
                _forget(block)

    def products(self, R: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(first feature, (m, c) float64 or float32 array): X' R piece by piece, for R (n, c), on each block's device.

        Blocks that need no conversion are multiplied whole. Raises FeatureError naming feature and row where a product
        is not finite.
        """
        import torch

        dtype = torch.float64 if self.double else torch.float32
        work.product(R.shape, self.n_features)
        there: dict[torch.device, torch.Tensor] = {}
        for index, (block, start) in enumerate(zip(self.blocks, self.offsets, strict=False)):
            length, whole = int(block.shape[1]), _is(block, np.float64 if self.double else np.float32)
            width = max(1, length if whole else BUFFER_BYTES // (dtype.itemsize * self.n))
            buffer = None
            for first in range(0, length, width):
                chunk = _tensor(block[:, slice(first, first + width)])
                right = there.setdefault(chunk.device, torch.from_numpy(R).to(chunk.device, dtype))
                if not whole:
                    buffer = _converted(chunk, dtype, buffer)
                    chunk = buffer[:, : chunk.shape[1]]
                # Which side is transposed matters: a thin product of a row-major matrix is 3 times faster this way.
                product = chunk.T @ right if chunk.stride(0) == 1 else (right.T @ chunk).T
                values = product.cpu().numpy()
                if not np.isfinite(values).all():
                    _refuse_non_finite(chunk.cpu().numpy(), int(start) + first, index)
                yield int(start) + first, values
                _forget(block)

    def to(self, device: str) -> Columns:
        """The same features with every block on a torch device; "cpu" leaves them where they are."""
        if device == "cpu":
            return self
        return Columns(tuple(_tensor(block[:, :]).to(device) for block in self.blocks), self.offsets)

    def take(self, index: np.ndarray, dtype: type[np.floating] = np.float64) -> np.ndarray:
        """The columns `index` (a,) in that order: (n, a), column-major."""
        out = np.empty((self.n, len(index)), dtype, order="F")
        which = np.searchsorted(self.offsets, index, side="right") - 1
        for block in np.unique(which):
            places = np.flatnonzero(which == block)
            out[:, places] = _gather(self.blocks[block], index[places] - self.offsets[block], dtype)
        return out


if TYPE_CHECKING:
    Block = np.ndarray | torch.Tensor | ColumnBlock
    Matrix = Block | list[Block] | tuple[Block, ...] | Columns
else:
    Matrix = object  # checked by `columns`, which names what it got


def columns(X: Matrix) -> Columns:
    """`X` as tap blocks: (n, F) numpy or torch of any float dtype, or a sequence of such blocks with equal n."""
    if isinstance(X, Columns):
        return X
    blocks = tuple(X) if isinstance(X, (list, tuple)) else (X,)
    if not blocks:
        raise FeatureError("solver: X should hold at least one block of features, got an empty sequence")
    for position, block in enumerate(blocks):
        if not hasattr(block, "shape") or len(block.shape) != 2:
            shape = getattr(block, "shape", type(block).__name__)
            raise FeatureError(f"solver: block {position} of X should be a matrix (n, features), got {shape}")
        if not _gives_arrays(block):
            raise FeatureError(
                f"solver: block {position} of X should be a numpy array or a torch tensor, or give such by slices; got "
                f"{type(block).__name__}; convert it (to_numpy(), toarray())"
            )
        if block.shape[0] != blocks[0].shape[0]:
            raise FeatureError(
                f"solver: every block of X should have {blocks[0].shape[0]} rows as block 0 has, "
                f"block {position} has {block.shape[0]}"
            )
    lengths = [int(block.shape[1]) for block in blocks]
    if blocks[0].shape[0] == 0 or sum(lengths) == 0:
        raise FeatureError(f"solver: X should have rows and columns, got {blocks[0].shape[0]} x {sum(lengths)}")
    return Columns(blocks, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def _gives_arrays(block: Block) -> bool:
    """Whether slices of a block are arrays: not those of a sparse matrix or a data frame."""
    if isinstance(block, np.ndarray):
        return True
    try:
        return type(block[slice(0, 1), slice(0, 1)]).__name__ in ("ndarray", "memmap", "Tensor", "Parameter")
    except Exception:  # a frame's KeyError and its like
        return False


def refuse_non_finite(values: np.ndarray, first: int, chunk: np.ndarray, block: int) -> None:
    """Raise, naming block, column and row, if `values`, computed from `chunk`, are not all finite."""
    if not np.isfinite(values).all():
        _refuse_non_finite(chunk, first, block)


def _refuse_non_finite(chunk: np.ndarray, first: int, block: int) -> None:
    rows, places = np.nonzero(~np.isfinite(chunk))
    if len(rows) == 0:
        raise FeatureError(
            f"solver: products of the features from {first} on (block {block}) overflow; scale them down"
        )
    raise FeatureError(
        f"solver: feature {first + places[0]} (block {block}) is {chunk[rows[0], places[0]]} in row {rows[0]}; "
        "features should be finite: drop the row or the feature"
    )


def _converted(chunk: torch.Tensor, dtype: torch.dtype, buffer: torch.Tensor | None) -> torch.Tensor:
    """`chunk` in the first columns of `buffer`, laid out as the chunk is; a new buffer if there is none."""
    import torch

    if buffer is None:
        n, width = chunk.shape
        shape = (width, n) if chunk.stride(0) == 1 else (n, width)
        buffer = torch.empty(shape, dtype=dtype, device=chunk.device)
        buffer = buffer.T if chunk.stride(0) == 1 else buffer
    part = buffer[:, : chunk.shape[1]]
    if chunk.stride(0) == 1:
        part.T.copy_(chunk.T)  # the same numbers, 2.4 times faster than column-major ones
    else:
        part.copy_(chunk)
    return buffer


def _tensor(part: np.ndarray | torch.Tensor) -> torch.Tensor:
    import torch

    if isinstance(part, torch.Tensor):
        return part.detach()
    if not part.dtype.isnative or min(part.strides) < 0:  # what torch cannot look at
        return torch.from_numpy(np.array(part, part.dtype.newbyteorder("="), order="C"))
    return torch.from_numpy(part if part.flags.writeable else part.copy())


def _is(block: object, dtype: type[np.floating]) -> bool:
    """Whether `block` can be used as it lies: the wanted dtype, in memory, and writeable, as torch asks of numpy."""
    if isinstance(block, np.memmap) or (isinstance(block, np.ndarray) and not block.flags.writeable):
        return False
    return str(getattr(block, "dtype", "")).removeprefix("torch.") == np.dtype(dtype).name


def _array(part: np.ndarray | torch.Tensor, dtype: type[np.floating]) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return part.astype(dtype, copy=False)
    import torch

    wanted = torch.float32 if dtype is np.float32 else torch.float64
    return part.detach().to(device="cpu", dtype=wanted).numpy()


def _gather(block: np.ndarray | torch.Tensor | ColumnBlock, index: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    if isinstance(block, np.memmap):
        out = np.empty((block.shape[0], len(index)), dtype, order="F")
        for first in range(0, len(index), MAPPED):
            part = slice(first, first + MAPPED)
            out[:, part] = block[:, index[part]]
            _forget(block)
        return out
    if isinstance(block, np.ndarray):
        return block[:, index].astype(dtype)
    return _array(block[:, index], dtype)


def _forget(block: object) -> None:
    """Drop the pages of a memory map that were just read: they would count as this process's memory."""
    mapping = getattr(block, "_mmap", None) if isinstance(block, np.memmap) else None
    if mapping is not None:
        import mmap

        mapping.madvise(mmap.MADV_DONTNEED)
