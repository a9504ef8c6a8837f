"""What a gateway lets through: sizes, numbers, rates and times. Every field is an option of the command."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields

from beni.errors import ConfigError, WeightsError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
EXAMPLES = 6
"""Examples of the page."""
SHARED = ("pydantic", "prometheus_client")
PACKAGES = {
    "worker": SHARED,
    "gateway": (*SHARED, "flask", "waitress", "httpx"),
    "app": ("gradio", "httpx"),
    "demo": (*SHARED, "flask", "waitress", "httpx", "gradio"),
}
"""What each service imports of the extra."""


@dataclass(frozen=True)
class Limits:
    """Limits of a gateway.

    Attributes:
        max_body_mib: of a request.
        max_image_mib: of an encoded image.
        max_pixels: of a decoded image.
        min_side: pixels of an image's shorter side.
        max_images: of a request.
        max_messages: of a request.
        max_characters: of all texts of a request.
        max_tokens: new ones of an answer.
        concurrency: requests that are being answered at once; more are refused with 429.
        rate: requests of a key (or of an address, without keys) in a minute; 0 sets no limit.
        timeout: seconds for an answer.
        idle_timeout: seconds that a worker may be silent.
        fetch_timeout: seconds for one attempt to fetch an image.
        receive_timeout: seconds in which a request must have arrived.
        private_addresses: fetch images also from addresses of private networks.
    """

    max_body_mib: float = 32.0
    max_image_mib: float = 10.0
    max_pixels: int = 40_000_000
    min_side: int = 2
    max_images: int = 8
    max_messages: int = 100
    max_characters: int = 100_000
    max_tokens: int = 1024
    concurrency: int = 128
    rate: int = 600
    timeout: float = 120.0
    idle_timeout: float = 60.0
    fetch_timeout: float = 8.0
    receive_timeout: float = 60.0
    private_addresses: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name in ("rate", "private_addresses") else 0.001
            if not least <= value < float("inf"):
                raise ConfigError(f"--{one.name.replace('_', '-')}={value}, expected a number above 0")


def packages(service: str) -> None:
    """Return when the packages of a service are there.

    Raises:
        WeightsError: when one is missing.
    """
    for name in PACKAGES[service]:
        if importlib.util.find_spec(name) is None:
            raise WeightsError(f"beni.serve {service} needs the package {name}\n  fix: pip install 'beni[serve]'")
