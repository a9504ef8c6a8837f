import gc
import io
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import PngImagePlugin

from beni.data.images import GREY, Augment, Image, blank_like, decode
from beni.errors import DataError
from beni.nn.pixels import ImageTransform, as_triple

HALF = (0.5, 0.5, 0.5)


def encoded(picture, kind="png", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.from_bytes(buffer.getvalue(), f"memory.{kind}")


def gradient(width, height, mode="RGB"):
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return PILImage.fromarray(values).convert(mode)


def held(picture):
    return Image(lambda: picture.copy(), "held")


def test_rgb_is_decoded_as_it_is():
    picture = gradient(7, 5)
    assert np.array_equal(np.asarray(decode(encoded(picture))), np.asarray(picture))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_the_background(mode):
    picture = PILImage.new("RGBA", (3, 1), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 51))
    laid = decode(encoded(picture.convert(mode)), (200, 100, 50))
    assert laid.mode == "RGB"
    assert [laid.getpixel((x, 0)) for x in range(3)] == [(200, 100, 50), (160, 80, 40), (0, 0, 0)]


def test_the_background_is_white_where_none_is_asked_for():
    assert decode(encoded(PILImage.new("RGBA", (1, 1), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_a_transparent_entry_is_laid_over_the_background():
    picture = PILImage.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    laid = decode(encoded(picture, transparency=0), (1, 2, 3))
    assert [laid.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), (40, 50, 60)]


def test_a_transparent_colour_of_an_rgb_file_is_laid_over_the_background():
    picture = PILImage.new("RGB", (2, 1), (7, 7, 7))
    picture.putpixel((1, 0), (8, 8, 8))
    laid = decode(encoded(picture, transparency=(7, 7, 7)), (1, 2, 3))
    assert [laid.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), (8, 8, 8)]


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped():
    values = (np.array([[0, 257, 128 * 257, 65535]])).astype(np.uint16)
    picture = decode(encoded(PILImage.fromarray(values)))
    assert np.asarray(picture)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_any_other_mode_becomes_rgb(mode):
    if mode in ("YCbCr", "HSV", "LAB"):
        source = PILImage.new(mode, (4, 4))
        image = held(source)
    else:
        image = encoded(gradient(4, 4, mode), "tiff")
        source = gradient(4, 4, mode)
    picture = decode(image)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(source.convert("RGB")))


def test_a_cmyk_jpeg_has_the_colour_it_was_saved_with():
    picture = decode(encoded(PILImage.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg", quality=95))
    red, green, blue = picture.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_rotation_is_applied():
    picture = PILImage.new("RGB", (4, 2), (255, 255, 255))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = PILImage.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees: the left upper corner goes to the right
    turned = decode(encoded(picture, exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)


def test_of_an_animation_the_first_picture_is_shown_and_the_file_is_closed(tmp_path):
    path = tmp_path / "a.gif"
    frames = [PILImage.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert decode(Image.from_path(path)).getpixel((0, 0)) == (255, 0, 0)
        gc.collect()


def broken():
    whole = io.BytesIO()
    gradient(64, 64).save(whole, "png")
    jpeg = io.BytesIO()
    gradient(64, 64).save(jpeg, "jpeg")
    return {
        "empty": b"",
        "html": b"<html><body>404 not found</body></html>",
        "half a png": whole.getvalue()[: len(whole.getvalue()) // 2],
        "half a jpeg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "a png's head": whole.getvalue()[:30],
    }


@pytest.mark.parametrize("kind", broken())
def test_a_broken_file_is_an_error_with_its_name(kind, tmp_path):
    path = tmp_path / "broken.img"
    path.write_bytes(broken()[kind])
    with pytest.raises(DataError, match=r"broken\.img"):
        decode(Image.from_path(path))


def test_a_missing_file_is_an_error_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: FileNotFoundError"):
        decode(Image.from_path(tmp_path / "gone.png"))


def test_whatever_a_decoder_raises_is_an_error_with_the_pictures_name():
    def load():
        raise struct.error("unpack requires a buffer of 4 bytes")

    with pytest.raises(DataError, match=r"odd\.tiff: error: unpack"):
        decode(Image(load, "odd.tiff"))


def test_a_decompression_bomb_is_an_error_with_its_name():
    chunk = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    buffer = io.BytesIO()
    buffer.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(buffer, b"IHDR", chunk)
    PngImagePlugin.putchunk(buffer, b"IDAT", b"")
    with pytest.raises(DataError, match=r"bomb\.png: DecompressionBombError"):
        decode(Image.from_bytes(buffer.getvalue(), "bomb.png"))


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(16, 16), (40, 10), (10, 40), (1000, 1), (1, 1000), (1, 1), (17, 16)])
def test_every_picture_becomes_a_square_of_finite_pixels(resize, size):
    pixels = ImageTransform(16, HALF, HALF, resize)(gradient(*size))
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()


def test_pixels_of_a_picture_of_the_right_size_are_normalised_exactly():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    picture = gradient(8, 8)
    expected = (np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255 - np.float32(mean)[:, None, None]) / (
        np.float32(std)[:, None, None]
    )
    for resize in ("squash", "pad", "crop"):
        assert ImageTransform(8, mean, std, resize)(picture).numpy() == pytest.approx(expected, abs=1e-6)


def test_padding_has_the_mean_colour_and_so_is_zero_to_the_encoder():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    pixels = ImageTransform(16, mean, std, "pad")(PILImage.new("RGB", (32, 16), (255, 255, 255)))
    assert pixels[:, :4].abs().max() < 0.5 / 255 / 0.26
    assert pixels[:, 12:].abs().max() < 0.5 / 255 / 0.26
    white = (1 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(pixels[:, 4:12], white[:, None, None].expand(3, 8, 16))


def test_padding_a_tall_picture_leaves_its_middle_columns():
    pixels = ImageTransform(16, HALF, HALF, "pad")(PILImage.new("RGB", (8, 32), (0, 0, 0)))
    assert (pixels[:, :, 6:10] == -1).all()
    assert (pixels[:, :, :6].abs() < 0.01).all()
    assert (pixels[:, :, 10:].abs() < 0.01).all()


def test_cropping_keeps_the_centre_square():
    picture = PILImage.new("RGB", (32, 16), (255, 0, 0))
    picture.paste((0, 0, 255), (8, 0, 24, 16))
    pixels = ImageTransform(16, (0, 0, 0), (1, 1, 1), "crop")(picture)
    assert (pixels[0] == 0).all()
    assert (pixels[2] == 1).all()


def test_squashing_keeps_all_of_the_picture():
    picture = PILImage.new("RGB", (32, 16), (255, 0, 0))
    picture.paste((0, 0, 255), (16, 0, 32, 16))
    pixels = ImageTransform(16, (0, 0, 0), (1, 1, 1), "squash")(picture)
    assert pixels[0, 8, 2] == 1
    assert pixels[2, 8, 13] == 1


def test_shrinking_is_antialiased():
    stripes = PILImage.fromarray(np.tile(np.uint8([[0, 255]]), (64, 32)))
    pixels = ImageTransform(8, HALF, HALF)(stripes.convert("RGB"))
    assert pixels[:, :, 1:-1].abs().max() < 0.05  # without it every pixel would be black or every pixel white


def test_an_augmentation_that_is_off_is_the_decoded_picture():
    picture = gradient(9, 6)
    for seed in range(20):
        varied = Augment()(held(picture), np.random.default_rng(seed))
        assert np.array_equal(np.asarray(varied), np.asarray(picture))


ALL = Augment(flip=0.5, crop=0.5, stretch=1.3, colour=0.3, background=True, rotate=10)


def test_one_state_of_the_generator_gives_one_picture_and_others_give_others():
    picture = gradient(24, 16, "RGBA")
    seen = [np.asarray(ALL(held(picture), np.random.default_rng(seed))).tobytes() for seed in (0, 0, 1, 2, 3)]
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_a_certain_flip_mirrors_left_and_right():
    picture = gradient(9, 6)
    flipped = Augment(flip=1.0)(held(picture), np.random.default_rng(0))
    assert np.array_equal(np.asarray(flipped), np.asarray(picture)[:, ::-1])


@pytest.mark.parametrize("size", [(40, 20), (3, 50), (1, 1)])
def test_a_crop_lies_inside_the_picture(size):
    picture = PILImage.new("RGB", size, (1, 2, 3))
    for seed in range(50):
        cropped = Augment(crop=0.5, stretch=1.5)(held(picture), np.random.default_rng(seed))
        assert cropped.size[0] <= size[0]
        assert cropped.size[1] <= size[1]
        assert cropped.getcolors() == [(cropped.size[0] * cropped.size[1], (1, 2, 3))]  # nothing from outside


def test_a_crop_without_stretch_keeps_the_aspect_ratio_and_at_least_its_share():
    for seed in range(50):
        width, height = Augment(crop=0.5)(held(gradient(400, 200)), np.random.default_rng(seed)).size
        assert width * height >= 0.49 * 400 * 200
        assert width / height == pytest.approx(2, abs=0.02)


def test_a_random_background_replaces_white_and_only_where_it_is_asked_for():
    clear = PILImage.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert Augment()(held(clear), np.random.default_rng(0)).getpixel((0, 0)) == (255, 255, 255)
    seen = {Augment(background=True)(held(clear), np.random.default_rng(s)).getpixel((0, 0)) for s in range(5)}
    assert len(seen) == 5


def test_colour_changes_stay_within_their_range():
    picture = PILImage.new("RGB", (4, 4), (100, 100, 100))
    values = [Augment(colour=0.2)(held(picture), np.random.default_rng(s)).getpixel((0, 0))[0] for s in range(50)]
    assert min(values) >= 79
    assert max(values) <= 121
    assert len(set(values)) > 5


def test_the_blank_picture_has_the_same_size_and_one_grey():
    blank = blank_like(gradient(9, 6, "L"))
    assert blank.size == (9, 6)
    assert blank.getcolors() == [(54, GREY)]


def test_three_channel_values_are_needed():
    assert as_triple([1, 2, 3]) == (1, 2, 3)
    with pytest.raises(ValueError, match="unpack"):
        as_triple([0.5])
