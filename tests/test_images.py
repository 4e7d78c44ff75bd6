import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform

from head2toe.errors import DataError
from head2toe.images import ImagePreprocess, check, decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height)).convert(mode)


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


# ---- decode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "fmt"),
    [("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "PPM"), ("L", "PNG"),
     ("L", "JPEG"), ("1", "PNG"), ("1", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("RGBA", "PNG"),
     ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"),
     ("F", "TIFF"), ("YCbCr", "TIFF"), ("YCbCr", "JPEG")],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, fmt):
    image = photo(20, 12, "L").convert("I").convert(mode) if mode == "I;16" else photo(20, 12, mode)
    encoded = encode(image, fmt)
    check(encoded)
    out = decode(encoded)
    assert (out.mode, out.size) == ("RGB", (20, 12))


def test_bytes_of_a_lossless_rgb_file_come_back_unchanged():
    image = photo(31, 17)
    assert np.array_equal(decode(encode(image)), image)


def test_gray_becomes_three_equal_channels():
    gray = photo(9, 7, "L")
    assert np.array_equal(decode(encode(gray)), np.repeat(np.asarray(gray)[:, :, None], 3, 2))


def test_transparency_lies_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 255, 51
    assert np.asarray(decode(encode(Image.fromarray(rgba))))[0, :, 0].tolist() == [255, 0, 204]
    assert np.asarray(decode(rgba))[0, :, 0].tolist() == [255, 0, 204]


def test_transparent_colour_of_a_palette_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    assert np.asarray(decode(encode(image, transparency=0)))[0].tolist() == [[255, 255, 255], [10, 20, 30]]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(fmt):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert np.asarray(decode(encode(Image.fromarray(deep), fmt)))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(decode(deep))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_comes_upright(orientation, fmt):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photo(16, 24), fmt, exif=exif)
    with Image.open(io.BytesIO(encoded)) as plain:
        expected = ImageOps.exif_transpose(plain).convert("RGB")
    assert np.array_equal(decode(encoded), expected)


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(encoded))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_short_is_refused_by_decode_and_check(fmt):
    encoded = encode(photo(200, 150), fmt)
    for read in (decode, check):
        with pytest.raises(DataError, match="cannot be read"):
            read(encoded[: len(encoded) // 2])


@pytest.mark.parametrize("junk", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(junk):
    for read in (decode, check):
        with pytest.raises(DataError, match="no known image format"):
            read(junk)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    check(encode(Image.new("L", (10, 10))))
    for side in (11, 100):  # Pillow itself warns above the limit and raises above its double
        with pytest.raises(DataError, match="cannot be read"):
            check(encode(Image.new("L", (side, side))))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_an_rgb_picture_or_a_data_error(data, fmt):
    encoded = bytearray(encode(photo(24, 16), fmt))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(encoded)).mode == "RGB"
    except DataError:
        return


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture():
    clean = encode(photo(16, 16), "JPEG")
    block = b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\x07" * 20
    broken = clean[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + clean[2:]
    assert np.array_equal(decode(broken), decode(clean))


@pytest.mark.parametrize(
    "pixels",
    [np.full((5, 4), 128, np.uint8), np.full((5, 4, 1), 128, np.uint8), np.full((5, 4, 3), 128, np.uint8),
     np.full((5, 4, 3), 128 / 255, np.float32), np.full((5, 4), 128 / 255), np.full((5, 4), 128 * 257, np.uint16),
     np.full((5, 4, 4), [128, 128, 128, 255], np.uint8)],
)  # fmt: skip
def test_arrays_of_every_accepted_kind_agree(pixels):
    assert np.array_equal(decode(pixels), np.full((5, 4, 3), 128, np.uint8))
    check(pixels)


def test_bool_arrays_are_black_and_white():
    assert np.asarray(decode(np.array([[False, True]])))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.zeros((3, 8, 8), np.uint8), "shape"), (np.zeros(4, np.uint8), "shape"), (np.zeros((0, 4), np.uint8), "shape"),
     (np.full((2, 2), 16.0), r"\[0, 1\]"), (np.full((2, 2), np.nan), r"\[0, 1\]"),
     (np.zeros((2, 2), np.int64), "int64")],
)  # fmt: skip
def test_arrays_that_could_mean_anything_are_refused(pixels, message):
    for read in (decode, check):
        with pytest.raises(DataError, match=message):
            read(pixels)


# ---- preprocess ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (96, 64)])
@pytest.mark.parametrize(("width", "height"), [(301, 200), (123, 457), (64, 64), (333, 500), (28, 28)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_equals_timm(size, width, height, interpolation):
    image = photo(width, height)
    preprocess = ImagePreprocess(size, MEAN, STD, interpolation, "crop", crop_pct=0.875)
    timm = create_transform(
        (3, *size), interpolation=interpolation, crop_pct=0.875, mean=MEAN, std=STD, normalize=False
    )
    assert np.array_equal(preprocess(encode(image)), timm(image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("width", "height"), [(301, 200), (64, 64), (64, 96)])
def test_squash_equals_timm(width, height):
    image = photo(width, height)
    timm = create_transform(
        (3, 96, 64), interpolation="bicubic", crop_mode="squash", crop_pct=1.0, mean=MEAN, std=STD, normalize=False
    )
    out = ImagePreprocess((96, 64), MEAN, STD)(encode(image))
    assert out.dtype == np.uint8
    assert np.array_equal(out, timm(image).permute(1, 2, 0).numpy())


def test_a_picture_of_the_right_size_passes_unchanged():
    image = photo(64, 48)
    assert np.array_equal(ImagePreprocess((48, 64), MEAN, STD)(encode(image)), image)


def test_a_line_of_pixels_is_not_blown_up():
    crop = ImagePreprocess((224, 224), MEAN, STD, resize="crop", crop_pct=0.875)
    with pytest.raises(DataError, match="squash"):
        crop(np.zeros((1, 5000), np.uint8))


@pytest.mark.parametrize("wrong", [{"crop_pct": 0.875}, {"resize": "crop", "crop_pct": 0.0}, {"size": (0, 4)}])
def test_settings_that_contradict_are_refused(wrong):
    with pytest.raises(DataError, match="ImagePreprocess"):
        ImagePreprocess(**{"size": (8, 8), "mean": MEAN, "std": STD} | wrong)


def test_text_is_no_picture():
    with pytest.raises(DataError, match="got text"):
        ImagePreprocess((8, 8), (0.5,) * 3, (0.5,) * 3)("cat.jpg")


def test_preprocess_travels_to_worker_processes():
    preprocess = ImagePreprocess((8, 8), MEAN, STD)
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
