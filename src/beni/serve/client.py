"""The page's side of the API: conversations to requests, and streams to text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(150.0, connect=5.0)


class Failed(Exception):
    """What the gateway says in place of an answer."""


class Client:
    """Asks a gateway.

    Args:
        gateway: its URL.
        key: API key; None for none.
    """

    def __init__(self, gateway: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=gateway, headers=headers, timeout=TIMEOUT, trust_env=False)

    def models(self) -> list[str]:
        """Names of the models that are served.

        Raises:
            Failed: when the gateway does not tell.
        """
        return [one["id"] for one in self._json("GET", "/v1/models", None)["data"]]

    def answer(self, model: str, messages: Sequence[Any], **options: Any) -> Iterator[str]:
        """The pieces of an answer.

        Raises:
            Failed: when there is none, or it breaks off.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _failed(answer)
                yield from _texts(answer.iter_lines())
        except httpx.HTTPError as error:
            raise Failed(f"The gateway does not answer ({type(error).__name__})") from None

    def look(self, model: str, messages: Sequence[Any], answer: str) -> list[dict[str, Any]]:
        """What the model saw of the images in front of an answer.

        Raises:
            Failed: when nothing can be shown.
        """
        return self._json("POST", "/v1/look", {"model": model, "messages": list(messages), "answer": answer})["images"]

    def _json(self, method: str, path: str, body: Any) -> Any:
        try:
            answer = self._client.request(method, path, json=body)
            if answer.status_code != 200:
                raise _failed(answer)
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Failed(f"The gateway does not answer ({type(error).__name__})") from None


def message(role: str, text: str, images: Sequence[str | Path]) -> dict[str, Any]:
    """A message of the API; images stand in front of the text."""
    if not images:
        return {"role": role, "content": text}
    parts = [{"type": "image_url", "image_url": {"url": _data_url(Path(path))}} for path in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def messages_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a page has shown of a talk, as messages: one that follows another of its role is part of it."""
    talk: list[tuple[str, list[str], list[str]]] = []
    for shown in history:
        content = shown["content"]
        parts = content if isinstance(content, list) else [content]
        if not talk or talk[-1][0] != shown["role"]:
            talk.append((shown["role"], [], []))
        for part in parts:
            if isinstance(part, str):
                talk[-1][1].append(part)
            elif part.get("type") == "text":
                talk[-1][1].append(part["text"])
            else:
                talk[-1][2].append(part["file"]["path"] if "file" in part else part["path"])
    return [message(role, "\n".join(texts), images) for role, texts, images in talk]


def _texts(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if not data:
            continue
        told = json.loads(data)
        if "error" in told:
            raise Failed(told["error"]["message"])
        for choice in told["choices"]:
            if text := choice["delta"].get("content"):
                yield text
    raise Failed("The answer breaks off")


def _failed(answer: httpx.Response) -> Failed:
    try:
        return Failed(str(answer.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return Failed(f"The gateway answers with status {answer.status_code}")


def _data_url(path: Path) -> str:
    return "data:image/any;base64," + base64.b64encode(path.read_bytes()).decode()
