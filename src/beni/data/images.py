"""From an image reference to pixels: decoding with Pillow, augmentation, and each encoder's own normalisation.

Pillow's resampling filters widen with the scale factor, so shrinking is antialiased; torch's ``interpolate`` is not by
default. Everything here runs in the loader's workers and returns one tensor per image.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageOps

from beni.config.ranges import Above, AtLeast, AtMost, Below, Example
from beni.errors import DataError

GREY = (128, 128, 128)
ORIENTATION = 0x0112
"""The EXIF tag that says how pixels lie."""
TURNS: dict[int, PILImage.Transpose | None] = {
    1: None,
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
"""Orientation -> what turns the pixels upright."""
PNG = b"\x89PNG\r\n\x1a\n"
METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
"""Chunks of a PNG without which its pixels are the same."""

T = TypeVar("T")


@dataclass(frozen=True)
class Image:
    """A picture not yet decoded.

    Attributes:
        load: returns the opened picture; called in a worker.
        key: what identifies the content (a path, a hash, a URL, a generator's address); used in logs and as cluster.
        url: where it has yet to be fetched from (``beni.data.fetch.fetcher``); None for a picture that is at hand.
        path: its file; None where it has none of its own.
        content: returns it as it is encoded; None for a picture that is drawn.
    """

    load: Callable[[], PILImage.Image]
    key: str
    url: str | None = None
    path: str | None = None
    content: Callable[[], bytes] | None = None

    @staticmethod
    def from_path(path: Path) -> Image:
        """A file, decoded when needed."""
        return Image(partial(PILImage.open, path), str(path), path=str(path), content=partial(Path.read_bytes, path))

    @staticmethod
    def from_bytes(data: bytes, key: str) -> Image:
        """An encoded picture in memory."""
        return Image(partial(_open_bytes, data), key, content=partial(bytes, data))

    @staticmethod
    def from_url(url: str) -> Image:
        """A picture that a ``Fetcher`` has to fetch; as it is, it cannot be opened."""
        return Image(partial(_not_fetched, url), public_name(url), url)


class BadImage(DataError):
    """A picture that cannot be had.

    Attributes:
        name: of the picture, fit for logs.
        reason: in a few words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"image {name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return BadImage, (self.name, self.reason)


def public_name(url: str) -> str:
    """A URL without what may be secret in it: user, password, query. What was left out is told by a short hash."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        public = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        public = url.partition("?")[0].rpartition("@")[2]
    hidden = "" if public == url else "#" + hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:8]
    return public + hidden


def _open_bytes(data: bytes) -> PILImage.Image:
    return PILImage.open(io.BytesIO(data))


def _not_fetched(url: str) -> PILImage.Image:
    raise DataError(f"{public_name(url)} has not been fetched: the source's samples must pass through a Fetcher")


def decode(image: Image, background: tuple[int, int, int] = (255, 255, 255)) -> PILImage.Image:
    """Any mode, with its EXIF rotation applied and transparency laid over ``background``, as RGB.

    Raises:
        BadImage: when the content cannot be decoded.
    """
    return _read(image, partial(_decoded, background=background))


def size_of(image: Image) -> tuple[int, int]:
    """(height, width) in pixels after the EXIF rotation, read from the header where the format allows it.

    Raises:
        BadImage: when the content cannot be opened.
    """
    return _read(image, _measured)


def _read(image: Image, use: Callable[[PILImage.Image], T]) -> T:
    """What ``use`` makes of the opened picture; without its metadata, where it is they that Pillow cannot read.

    Raises:
        BadImage: when the picture cannot be read without them either.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata that end too early
            return _with_or_without_metadata(image, use)
    except DataError:  # bad for a reason of its own, or nothing that the picture can help
        raise
    except Exception as error:  # broken files make Pillow raise anything: struct.error, TypeError, EOFError ...
        raise BadImage(image.key, f"{type(error).__name__}: {error}") from error


def _with_or_without_metadata(image: Image, use: Callable[[PILImage.Image], T]) -> T:
    try:
        with image.load() as opened:
            return use(opened)
    except (DataError, FileNotFoundError):
        raise
    except Exception:
        bare = None if image.content is None else without_metadata(image.content())
        if bare is None:
            raise
        with _open_bytes(bare) as opened:
            return use(opened)


def _decoded(opened: PILImage.Image, background: tuple[int, int, int]) -> PILImage.Image:
    opened.load()
    picture = opened.copy()
    if (turn := TURNS.get(_orientation(opened))) is not None:
        picture = picture.transpose(turn)
    if picture.mode == "F":
        picture = PILImage.fromarray(_bytes_of_floats(np.asarray(picture)))
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):  # 16 bits, which convert() clips at 255
        picture = PILImage.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = PILImage.new("RGBA", picture.size, (*background, 255))
        picture = PILImage.alpha_composite(canvas, picture)
    return picture.convert("RGB")


def _measured(opened: PILImage.Image) -> tuple[int, int]:
    width, height = opened.size
    if opened.format == "TIFF":  # whose size Pillow gives as it will be once it is loaded, when it turns the pixels
        return height, width
    return (width, height) if _orientation(opened) >= 5 else (height, width)  # those that swap the sides


def _orientation(opened: PILImage.Image) -> int:
    """How the EXIF data say that the pixels lie, 1 to 8; 1, as they are, where they say nothing that makes sense."""
    try:
        said = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises anything for damaged EXIF data
        return 1
    return said if isinstance(said, int) and said in TURNS else 1


def _bytes_of_floats(values: np.ndarray) -> np.ndarray:
    """Grey values of a float picture as bytes: [0, 1], [0, 255] and [0, 65535] are told apart by the largest."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    most = float(values.max(initial=0.0))
    scale = 255.0 if most <= 1 else 1.0 if most <= 255 else 1 / 257
    return (values * scale).round().clip(0, 255).astype(np.uint8)


def without_metadata(data: bytes) -> bytes | None:
    """A PNG without its texts, colour profile and EXIF data, which Pillow refuses a sound picture for when they are
    large or damaged; None for other formats, and where there are none.
    """
    if not data.startswith(PNG):
        return None
    kept, at = [PNG], len(PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in METADATA:
            kept.append(data[at:end])
        at = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def size_if_any(image: Image) -> tuple[int, int]:
    """A picture's (height, width) in pixels; (0, 0) for a bad one, whose fate is decided when it is its turn."""
    try:
        return size_of(image)
    except BadImage:
        return 0, 0


@dataclass(frozen=True)
class Augment:
    """Random views of a training picture; all off by default.

    Attributes:
        flip: probability of a left-right flip.
        crop: smallest share of the area a random crop keeps, in (0, 1]; 1 keeps everything.
        stretch: largest factor by which a crop's aspect ratio changes, at least 1.
        colour: largest relative change of brightness, contrast and saturation, in [0, 1).
        background: lay transparent pictures over a random light colour instead of white.
        rotate: largest rotation in degrees, either way.
    """

    flip: Annotated[float, AtLeast(0), AtMost(1), Example("0.5")] = 0.0
    crop: Annotated[float, Above(0), AtMost(1), Example("0.6")] = 1.0
    stretch: Annotated[float, AtLeast(1), Example("1.3")] = 1.0
    colour: Annotated[float, AtLeast(0), Below(1), Example("0.2")] = 0.0
    background: bool = False
    rotate: Annotated[float, AtLeast(0), AtMost(180), Example("10")] = 0.0

    def __call__(self, image: Image, rng: np.random.Generator) -> PILImage.Image:
        """Decode and vary; the same ``rng`` state gives the same picture."""
        fill = (255, 255, 255)
        if self.background:
            red, green, blue = rng.integers(96, 256, 3).tolist()
            fill = (red, green, blue)
        picture = decode(image, fill)
        if self.rotate:
            angle = float(rng.uniform(-self.rotate, self.rotate))
            picture = picture.rotate(angle, PILImage.Resampling.BICUBIC, fillcolor=fill)
        if self.crop < 1.0 or self.stretch > 1.0:
            picture = self._crop(picture, rng)
        if rng.random() < self.flip:
            picture = ImageOps.mirror(picture)
        if self.colour:
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = enhancer(picture).enhance(float(rng.uniform(1 - self.colour, 1 + self.colour)))
        return picture

    def _crop(self, picture: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
        width, height = picture.size
        share = float(rng.uniform(self.crop, 1.0))
        ratio = float(np.exp(rng.uniform(-1, 1) * np.log(self.stretch)))
        w = max(1, min(width, round(width * (share * ratio) ** 0.5)))
        h = max(1, min(height, round(height * (share / ratio) ** 0.5)))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        return picture.crop((x, y, x + w, y + h))


def blank_like(picture: PILImage.Image) -> PILImage.Image:
    """A uniform grey picture of the same size: what the blank-image score shows the model."""
    return PILImage.new("RGB", picture.size, GREY)
