"""Pictures on the Hugging Face hub: ``hf://`` references, and the token that only the hub is given."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def hub_url(url: str) -> str:
    """``hf://datasets/owner/name/path`` -> where the hub serves it; other URLs as they are."""
    if not url.startswith("hf://"):
        return url
    from huggingface_hub import constants

    parts = url.removeprefix("hf://").split("/")
    depth = 3 if parts[0] in ("datasets", "spaces") else 2
    return "/".join([constants.ENDPOINT, *parts[:depth], "resolve/main", *parts[depth:]])


def hub_headers(url: str, hop: str) -> dict[str, str]:
    """Headers of one hop on the way to a picture.

    The hub redirects to storage of others; the token must not follow there, nor to the hub itself without encryption.
    """
    if not url.startswith("hf://") or _origin(urlsplit(hop)) != _origin(urlsplit(hub_url(url))):
        return {}
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port
