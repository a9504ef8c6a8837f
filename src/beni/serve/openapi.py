"""The OpenAPI document of the gateway, from the very models that requests are checked with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from beni import __version__
from beni.serve.protocol import ChatRequest, LookRequest
from beni.serve.settings import Limits

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason"],
                "properties": {
                    "index": {"type": "integer"},
                    "finish_reason": {"enum": ["stop", "length"]},
                    "message": {
                        "type": "object",
                        "required": ["role", "content"],
                        "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
                    },
                },
            },
        },
        "usage": USAGE,
    },
}
MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}},
}
LOOKED = {
    "type": "object",
    "required": ["object", "images"],
    "properties": {
        "object": {"const": "beni.look"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["image", "name", "note", "url"],
                "properties": {
                    "image": {"type": "integer", "description": "number of the image in the conversation"},
                    "name": {"type": "string", "description": "what is drawn over it"},
                    "note": {"type": "string"},
                    "url": {"type": "string", "description": "a PNG as data URL"},
                },
            },
        },
    },
}
HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
FAILURES = {"400": "A wrong request", "401": "No key, or an unknown one", "404": "An unknown model"}
BUSY = {"413": "Too large", "415": "No JSON", "429": "Too many requests"}
FAILED = {"501": "Not with this engine", "502": "A failed worker", "503": "No worker", "504": "Too late"}


def document(limits: Limits, models: Sequence[str]) -> dict[str, Any]:
    """The document of a gateway with these limits, and these models; any name is one where none are given."""
    kinds: list[tuple[type[BaseModel], Any]] = [(ChatRequest, "validation"), (LookRequest, "validation")]
    schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")[1]["$defs"]
    for kind, _ in kinds if models else ():
        schemas[kind.__name__]["properties"]["model"]["enum"] = sorted(models)
    chat, look, key = "ChatRequest", "LookRequest", [{"key": []}, {}]
    stream: dict[str, Any] = {"text/event-stream": {}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "beni",
            "version": __version__,
            "description": f"OpenAI's chat completions with images. At most {limits.max_images} images of "
            f"{limits.max_image_mib:g} MiB each and {limits.max_tokens} new tokens.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _post(chat, "An answer", COMPLETION, key, stream)},
            "/v1/look": {"post": _post(look, "What the model saw", LOOKED, key, {})},
            "/v1/models": {"get": _get("What is served", MODELS, key, "401")},
            "/v1/models/{model}": {
                "get": _get("A model", MODEL, key, "401", "404"),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            },
            "/healthz": {"get": _get("Whether a worker answers", HEALTH, []) | {"responses": _health()}},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _post(name: str, what: str, answer: dict[str, Any], key: list[Any], more: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    return _get(what, answer, key, *FAILURES, *BUSY, *FAILED, more=more) | {"requestBody": body}


def _get(what: str, answer: dict[str, Any], key: list[Any], *statuses: str, more: Any = None) -> dict[str, Any]:
    failures = {**FAILURES, **BUSY, **FAILED}
    good = {"description": what, "content": {"application/json": {"schema": answer}} | (more or {})}
    bad = {
        status: {"description": failures[status], "content": {"application/json": {"schema": ERROR}}}
        for status in ("400", *statuses)
    }
    return {"summary": what, "security": key, "responses": {"200": good} | bad}


def _health() -> dict[str, Any]:
    content = {"application/json": {"schema": HEALTH}}
    return {
        "200": {"description": "At least one worker answers", "content": content},
        "503": {"description": "None does", "content": content},
    }
