"""Features to stored numbers and back, and their checksums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from head2toe.errors import FeatureError
from head2toe.store.view import Dtype

# numpy has no bfloat16: its bit patterns are stored, and widened to float32 when read
STORED: dict[Dtype, np.dtype] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
}
READ: dict[Dtype, np.dtype] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
}
_EXPONENT = {"float16": np.uint16(0x7C00), "float32": np.uint32(0x7F800000), "bfloat16": np.uint16(0x7F80)}


def encode(features: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Features (n, length) of any float type as stored numbers (n, length), rounded to nearest even."""
    if dtype == "float16" and features.dtype == np.float32:
        import torch  # converts to float16 ten times as fast as numpy

        return torch.from_numpy(np.require(features, requirements=("C", "W"))).half().numpy()
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # `refuse_unfinite` names the tap and the input
            return np.ascontiguousarray(features, STORED[dtype])
    bits = np.ascontiguousarray(features, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # rounding must not carry a NaN's payload into its sign
    return np.where(np.isnan(features), np.uint32(0x7FC0), rounded).astype(np.uint16)


def decode(stored: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Stored numbers as features: float16 and float32 as they are, bfloat16 exactly widened to float32."""
    if dtype != "bfloat16":
        return stored
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def refuse_unfinite(
    names: Sequence[str], ids: Sequence[str], raw: Sequence[np.ndarray], stored: Sequence[np.ndarray], dtype: Dtype
) -> None:
    """Raise FeatureError on NaN or infinite numbers, naming the first one's tap and input and every such tap."""
    masks = [_unfinite(block, dtype) for block in stored]
    bad = [i for i, mask in enumerate(masks) if mask.any()]
    if not bad:
        return
    row, column = np.argwhere(masks[bad[0]])[0]
    value, taps = float(raw[bad[0]][row, column]), ", ".join(f"'{names[i]}'" for i in bad)
    message = f"write: feature {column} of tap '{names[bad[0]]}' is {value:.6g} for input {ids[row]}"
    if np.isnan(value):
        raise FeatureError(f"{message}; taps with such numbers: {taps}; look at this input, or run in float32")
    raise FeatureError(
        f"{message}, beyond the largest {dtype}; taps that need float32: {taps}; run in float32 (--precision float32), "
        "or leave these taps out"
    )


def checks(ids: Sequence[str], tap: str, stored: np.ndarray) -> np.ndarray:
    """XXH3-64 of each row (n, length), seeded by input and tap so that no rows can change places: (n,) uint64."""
    digest = xxhash.xxh3_64_intdigest
    of_tap = digest(tap.encode())
    rows = np.ascontiguousarray(stored).data.cast("B")
    width = stored.shape[1] * stored.itemsize
    sums = (digest(rows[i * width : (i + 1) * width], digest(key.encode(), of_tap)) for i, key in enumerate(ids))
    return np.fromiter(sums, np.uint64, len(ids))


def file_name(content: Iterable[bytes]) -> str:
    """A data file is called by the XXH3-128 of its bytes, so that any flipped byte contradicts the name."""
    digest = xxhash.xxh3_128()
    for piece in content:
        digest.update(piece)
    return f"{digest.hexdigest()}.lance"


def _unfinite(stored: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Where all exponent bits are set: several times faster than isfinite on float16."""
    exponent = _EXPONENT[dtype]
    return (stored.view(exponent.dtype) & exponent) == exponent
