"""Images of a request, checked: of a data URL, or fetched from the public internet by the rules of training's fetcher.

What comes out is bytes that decode. A URL is asked for at most twice, within seconds; addresses of private networks,
other schemes, long ways round and contents beyond a size are refused before or while they are read.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from functools import partial

from beni.data.fetch.address import any_address, is_public
from beni.data.fetch.check import Again, check_picture
from beni.data.fetch.loop import FetchCounts, FetchLoop
from beni.data.images import BadImage
from beni.serve.protocol import ImageURL
from beni.serve.refused import Refused
from beni.serve.settings import Limits

DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
URL_LENGTH = 8192
"""Characters of a http(s) URL."""
FETCH = {"concurrency": 32, "per_host": 8, "retries": 1, "idle_timeout": 5.0, "redirects": 3}
"""Settings of the fetcher that no option changes."""


class Pictures:
    """URLs of a request -> encoded images.

    Args:
        limits: sizes, times, and whether private addresses may be asked.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.counts = limits, FetchCounts()
        allows = any_address if limits.private_addresses else is_public
        settings = FETCH | {
            "timeout": limits.fetch_timeout,
            "max_mib": limits.max_image_mib,
            "max_pixels": limits.max_pixels,
            "min_side": limits.min_side,
        }
        self._loop = FetchLoop(settings, allows, self.counts)

    def read(self, images: Sequence[ImageURL]) -> list[bytes]:
        """The content of each image.

        Raises:
            Refused: when there are too many, or one is bad.
        """
        if len(images) > self.limits.max_images:
            raise Refused(
                400, f"{len(images)} images, at most {self.limits.max_images} are taken", "too_many_images", "messages"
            )
        asked = [self._loop.submit(self._load(image.url)) for image in images]
        try:
            return [self._content(number, pending) for number, pending in enumerate(asked)]
        finally:
            for pending in asked:
                pending.cancel()

    def close(self) -> None:
        """Ends the thread that fetches."""
        self._loop.close()

    async def _load(self, url: str) -> bytes:
        if len(url) <= URL_LENGTH and url[:8].lower().startswith(("http://", "https://")):
            return await self._loop.fetch(url)
        return await self._loop.beside(partial(self._decoded, url))  # few at a time: one may take 100 MB

    def _content(self, number: int, pending: Future[bytes]) -> bytes:
        try:
            return pending.result(timeout=(FETCH["retries"] + 2) * self.limits.fetch_timeout)
        except (BadImage, Again) as error:
            reason = error.reason
        except Late:
            reason = "timeout"
        raise Refused(400, f"Image {number + 1} cannot be used: {reason}", "invalid_image", "messages")

    def _decoded(self, url: str) -> bytes:
        begin = DATA.match(url[:128])
        if begin is None:
            raise BadImage("", "not a http(s) URL, and not data:image/...;base64,...")
        most = int(self.limits.max_image_mib * 2**20)
        if (len(url) - begin.end()) * 3 // 4 > most + 2:
            raise BadImage("", "too large")
        try:
            data = base64.b64decode(url[begin.end() :].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise BadImage("", "not base64") from None
        check_picture("", data, self.limits.max_pixels, self.limits.min_side)
        return data


def data_url(data: bytes) -> str:
    """An image on its way to a worker, which looks at what it holds and not at its type."""
    return "data:image/any;base64," + base64.b64encode(data).decode()
