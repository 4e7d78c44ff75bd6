"""From encoded bytes to the pixels that a network is fed; light enough to be imported by every decoding worker."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from head2toe.errors import DataError

Encoded = bytes | np.ndarray
Resize = Literal["squash", "crop"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_RASTER = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_TURN = Image.Transpose
# how EXIF orientations 2..8 come upright; 1 is upright
_UPRIGHT = dict(enumerate((_TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE,
                           _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90), start=2))  # fmt: skip


@dataclass(frozen=True)
class ImagePreprocess:
    """What happens to a picture before the network; every field is part of a backbone's fingerprint.

    `size` is the (height, width) fed to the network. resize="squash" resizes the whole picture to it, as VTAB does;
    resize="crop" resizes the shorter side to floor(size / crop_pct) and keeps the centre, as timm evaluates. `mean` and
    `std` of pixels in [0, 1] are applied by the backbone on whole batches, on its device.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    resize: Resize = "squash"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if (
            len(self.size) != 2
            or not all(isinstance(side, (int, np.integer)) for side in self.size)
            or min(self.size) < 1
        ):
            raise DataError(f"ImagePreprocess: size must be (height, width), integers of at least 1, got {self.size}")
        if not {len(self.mean), len(self.std)} <= {1, 3} or min(self.std) <= 0:
            raise DataError(
                "ImagePreprocess: mean and std hold a number a channel, or one for all, those of std above 0; got "
                f"{self.mean} and {self.std}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise DataError(
                f"ImagePreprocess: interpolation must be one of {', '.join(get_args(Interpolation))}, got "
                f"'{self.interpolation}'"
            )
        if self.resize not in get_args(Resize):
            raise DataError(f"ImagePreprocess: resize must be squash or crop, got '{self.resize}'")
        if not 0.0 < self.crop_pct <= 1.0:
            raise DataError(f"ImagePreprocess: crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.resize == "squash" and self.crop_pct != 1.0:
            raise DataError(
                f"ImagePreprocess: 'squash' keeps the whole picture, so crop_pct={self.crop_pct} cannot hold"
            )

    def __call__(self, encoded: Encoded | str, /) -> UInt8[np.ndarray, "H W 3"]:
        """The picture in RGB at `size`; DataError where it cannot be read, or is text."""
        if isinstance(encoded, str):
            raise DataError("preprocess: expected the bytes of a picture or an array, got text; read the file first")
        image, resample = decode(encoded), Image.Resampling[self.interpolation.upper()]
        height, width = self.size
        if self.resize == "squash":
            return np.asarray(image.resize((width, height), resample))
        rows, columns = self._scaled(image.height, image.width)
        if rows * columns > _pixel_limit():
            raise DataError(f"preprocess: {image.width} x {image.height} pixels are too narrow to crop; use 'squash'")
        image = image.resize((columns, rows), resample)
        top, left = round((rows - height) / 2), round((columns - width) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) before the centre crop, rounded as torchvision (square) and timm (otherwise) do."""
        target_rows, target_columns = (math.floor(side / self.crop_pct) for side in self.size)
        if target_rows != target_columns:
            ratio = min(height / target_rows, width / target_columns)
            return round(height / ratio), round(width / ratio)
        if height <= width:
            return target_rows, int(target_rows * width / height)
        return int(target_rows * height / width), target_rows


def decode(encoded: Encoded) -> Image.Image:
    """Any picture as upright 8-bit RGB: `encoded` bytes of a file, or an array (H, W), (H, W, 1 | 3 | 4).

    Transparency is laid over white, the first frame of an animation counts, 16 bits are scaled to 8. Arrays are uint8,
    uint16, bool, or floats in [0, 1]. DataError where the bytes are damaged, cut short or no picture at all.
    """
    if isinstance(encoded, np.ndarray):
        return _rgb(_from_array(encoded))
    image = _load(encoded, draft=False)
    turn = _UPRIGHT.get(_orientation(image))
    return _rgb(image if turn is None else image.transpose(turn))


def check(encoded: Encoded | str) -> None:
    """Raise DataError where `decode` would, at a fraction of its cost: JPEG files are read at 1/8 of their size."""
    if isinstance(encoded, str):
        raise DataError("decode: expected a picture, got text")
    if isinstance(encoded, np.ndarray):
        _from_array(encoded)
    else:
        _rgb(_load(encoded, draft=True))


def _load(encoded: bytes, *, draft: bool) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
        if image.width * image.height > _pixel_limit():
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than Pillow trusts")
        if draft:
            image.draft("RGB", (1, 1))
        image.load()
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers raise anything on damaged bytes: SyntaxError, struct.error, zlib.error
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"decode: the picture cannot be read: {reason or type(error).__name__}") from error
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Raster formats only: Pillow would hand EPS to an interpreter and fetch what a WMF points to."""
    Image.init()
    return tuple(name for name in _RASTER if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; a broken EXIF block says nothing about the pixels."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow's EXIF reader raises anything on damaged tags, and the picture is still whole: it counts as upright
    except Exception:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"decode: pixels of mode {image.mode} cannot become RGB: {error}") from error


def _deep_to_8_bits(image: Image.Image) -> Image.Image:
    """To mode L: 16-bit files fill 0..65535 (also in mode I, where Pillow puts PGM), floats 0..1 or else 0..255."""
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    scale = 255.0 / 65535.0 if image.mode != "F" else 255.0 if pixels.max() <= 1.0 else 1.0
    return Image.fromarray(np.rint(pixels * scale).clip(0, 255).astype(np.uint8))


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or 0 in pixels.shape:
        raise DataError(
            f"decode: an image array has shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}"
        )
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype == np.uint16:
        pixels = np.rint(pixels * (255.0 / 65535.0)).astype(np.uint8)
    elif np.issubdtype(pixels.dtype, np.floating):
        low, high = pixels.min(), pixels.max()
        if not (low >= 0.0 and high <= 1.0):  # so that NaN fails too
            raise DataError(f"decode: float images hold values in [0, 1], got {low:.4g} to {high:.4g}; rescale them")
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DataError(f"decode: an image array is uint8, uint16, bool or float in [0, 1], got {pixels.dtype}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _pixel_limit() -> int:
    """Pillow's own guard against decompression bombs; None lifts it."""
    return Image.MAX_IMAGE_PIXELS or sys.maxsize
