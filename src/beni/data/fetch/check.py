"""Whether what a server gave is a picture: by decoding it, since neither a name nor a content type tells."""

from __future__ import annotations

from io import BytesIO

from PIL import Image as PILImage

from beni.data.images import BadImage, Image, decode, without_metadata
from beni.errors import DataError

RUNS_A_PROGRAM = ("EPS",)
"""Formats that Pillow hands to another program (Ghostscript), which strangers' files must not reach."""


class Again(Exception):
    """An attempt that failed in a way that may be better next time.

    Attributes:
        reason: in a few words.
        seconds: to wait, where the server says so.
    """

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


def check_picture(name: str, data: bytes, max_pixels: int, min_side: int) -> None:
    """Decodes a picture; its size is taken from the header, before there is memory for its pixels.

    Args:
        name: of the picture, fit for logs.

    Raises:
        BadImage: when it is no picture, or one that is not wanted.
        Again: when it ends too early, which another attempt may mend.
    """
    if not data:
        raise Again("empty")
    try:
        (width, height), form = _header(data)
    except PILImage.DecompressionBombError:
        raise BadImage(name, "too many pixels") from None
    except Exception:  # Pillow raises anything
        raise BadImage(name, "not an image") from None
    if form in RUNS_A_PROGRAM:
        raise BadImage(name, "not an image")
    if width * height > max_pixels:
        raise BadImage(name, "too many pixels")
    if min(width, height) < min_side:
        raise BadImage(name, "too small")
    try:
        decode(Image.from_bytes(data, name))
    except DataError:
        raise Again("truncated") from None


def _header(data: bytes) -> tuple[tuple[int, int], str | None]:
    """(width, height) in pixels, and the format; of a picture whose metadata Pillow refuses, without them."""
    try:
        with PILImage.open(BytesIO(data)) as picture:
            return picture.size, picture.format
    except PILImage.DecompressionBombError:
        raise
    except Exception:  # Pillow raises anything
        with PILImage.open(BytesIO(without_metadata(data) or data)) as picture:
            return picture.size, picture.format
