"""A picture whose pixels are sound is used, whatever is wrong with what is written beside them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import PngImagePlugin

from beni.data.fetch.check import check_picture
from beni.data.images import BadImage, Image, decode, size_of, without_metadata

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8)
TURNED = np.rot90(PIXELS, -1)


def saved(form, pixels=PIXELS, **options):
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind, content, last=False):
    """A PNG with a further chunk behind its header, or at its end."""
    whole = saved("PNG")
    at = len(whole) - 12 if last else 33
    return whole[:at] + chunk(kind, content) + whole[at:]


def exif(orientation=6, kind=3, offset=8, extra=b""):
    entry = struct.pack("<HHI", 0x0112, kind, 1) + struct.pack("<HH", orientation, 0)
    return b"II*\0" + struct.pack("<I", offset) + struct.pack("<H", 1 + bool(extra)) + entry + extra + b"\0\0\0\0"


BOMB = zlib.compress(b"a" * (3 << 20))
RATIO = struct.pack("<HHI", 0x9205, 5, 1) + struct.pack("<I", 50) + b"\1\0\0\0\0\0\0\0"
SOUND = {
    "a text above 1 MiB": with_chunk(b"zTXt", b"note\0\0" + BOMB),
    "a text above 1 MiB at the end": with_chunk(b"zTXt", b"note\0\0" + BOMB, last=True),
    "an international text above 1 MiB": with_chunk(b"iTXt", b"note\0\1\0\0\0" + BOMB),
    "a colour profile above 1 MiB": with_chunk(b"iCCP", b"icc\0\0" + BOMB),
    "EXIF that is none": with_chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
    "EXIF of three bytes": with_chunk(b"eXIf", b"abc"),
    "EXIF written as a text that is none": with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  4\nzzzz"),
    "an orientation that is no number": with_chunk(b"eXIf", exif(kind=2)),
    "an orientation of 77": with_chunk(b"eXIf", exif(77)),
    "an orientation of 0": with_chunk(b"eXIf", exif(0)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_picture_is_used_with_its_pixels_as_they_are(name):
    image = Image.from_bytes(SOUND[name], name)
    assert size_of(image) == (6, 10)
    assert np.array_equal(np.asarray(decode(image)), PIXELS)
    check_picture(name, SOUND[name], 10_000, 1)


@pytest.mark.parametrize("kind", [b"zTXt", b"eXIf"])
def test_a_file_is_read_like_bytes(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(kind, b"note\0\0" + BOMB))
    image = Image.from_path(path)
    assert size_of(image) == decode(image).size[::-1] == (6, 10)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_and_pixels_agree_for_every_format_and_orientation(form, orientation):
    if form not in PILImage.registered_extensions().values():
        pytest.skip(f"this Pillow has no {form}")
    said = PILImage.Exif()
    said[0x0112] = orientation
    image = Image.from_bytes(saved(form, exif=said.tobytes()), form)
    assert size_of(image) == decode(image).size[::-1]
    assert size_of(image) == ((10, 6) if orientation >= 5 else (6, 10))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("extra", [RATIO, RATIO[:7]], ids=["a ratio by zero", "cut off"])
def test_size_and_pixels_agree_where_exif_cannot_be_written_back_or_read(form, extra):
    image = Image.from_bytes(saved(form, exif=b"Exif\0\0" + exif(6, extra=extra)), form)
    assert size_of(image) == decode(image).size[::-1]


def test_a_picture_on_its_side_is_turned_though_its_exif_cannot_be_written_back():
    data = with_chunk(b"eXIf", exif(6, extra=RATIO))
    image = Image.from_bytes(data, "a")
    assert np.array_equal(np.asarray(decode(image)), TURNED)
    assert size_of(image) == TURNED.shape[:2]


@pytest.mark.parametrize("cut", [40, 90, 200])
def test_a_picture_whose_pixels_are_damaged_is_still_bad(cut):
    data = with_chunk(b"zTXt", b"note\0\0" + BOMB)
    damaged = data[: len(data) - len(saved("PNG")) + cut]
    with pytest.raises(BadImage):
        decode(Image.from_bytes(damaged, "a"))


def test_metadata_are_left_out_of_png_only_and_nothing_else_is():
    assert without_metadata(saved("JPEG")) is None
    assert without_metadata(saved("PNG")) is None
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b")
    assert without_metadata(saved("PNG", pnginfo=text)) == saved("PNG")
    assert np.array_equal(np.asarray(PILImage.open(io.BytesIO(without_metadata(SOUND["EXIF of three bytes"])))), PIXELS)


@pytest.mark.parametrize(("most", "grey"), [(1.0, 128), (255.0, 128), (65535.0, 128)])
def test_floats_are_scaled_by_the_range_that_they_are_in(most, grey):
    values = np.array([[0.0, most / 2], [most, np.nan]], dtype=np.float32)
    decoded = np.asarray(decode(Image.from_bytes(saved("TIFF", values), "float")))[..., 0]
    assert decoded[0, 0] == decoded[1, 1] == 0
    assert decoded[1, 0] == 255
    assert abs(int(decoded[0, 1]) - grey) <= 1
