"""The request that gateway and workers take: the part of OpenAI's chat completions that a model here can honour.

A parameter that nothing here reads is refused, unless it has the value that asks for nothing, or is an identifier, by
which OpenAI groups requests. Each one that may be left out may be null, as some clients send it. Unknown ones are
refused.

Source: https://platform.openai.com/docs/api-reference/chat (fields and their ranges).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from beni.serve.refused import Refused

SEEDS = 2**63 - 1
"""The largest seed."""
STOPS = 4
"""Stop texts of a request."""
STOP_LENGTH = 256
"""Characters of a stop text."""
TEMPERATURE = 2.0
"""The highest one."""
NAME = 256
"""Characters of a model's name, or of an identifier."""
MISSING = ("missing", "union_tag_not_found")
"""Errors of pydantic's that say that a field is not there."""

StopText = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Nothing = Literal[0] | Annotated[float, Field(ge=0, le=0)] | None
NoList = Annotated[list[Any], Field(max_length=0)] | None
Identifier = Annotated[Annotated[str, Field(max_length=NAME)] | None, Field(description="not read")]

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of a request."""


class Strict(BaseModel):
    """Fields of exactly these types, none beyond them, and no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: None = None


class ImageURL(Strict):
    """Where an image is: ``data:image/...;base64,...``, or a http(s) URL."""

    url: Annotated[str, Field(min_length=1)]
    detail: Annotated[
        Literal["auto", "high"] | None,
        Field(description="images are always seen as finely as the model sees; low is refused"),
    ] = None


class ImagePart(Strict):
    """An image, at its place among the texts."""

    type: Literal["image_url"]
    image_url: ImageURL
    prompt_cache_breakpoint: None = None


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(Strict):
    """What the model is told before the conversation."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: None = None


class AssistantMessage(Strict):
    """What the model has said before; with all that a client sends back of an answer."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None
    refusal: None = None
    annotations: NoList = None
    audio: None = None
    function_call: None = None
    tool_calls: NoList = None


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Strict):
    """The only form of an answer."""

    type: Literal["text"]


class CacheOptions(Strict):
    """OpenAI's defaults: nothing here keeps a prompt, and an answer is the same with one that is kept."""

    mode: Literal["implicit"] | None = None
    ttl: Literal["30m"] | None = None


class Unread(Strict):
    """Parameters of OpenAI's that nothing here reads: each takes what asks for nothing, and null."""

    audio: None = None
    frequency_penalty: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    functions: NoList = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    moderation: None = None
    n: Literal[1] | None = None
    parallel_tool_calls: bool | None = None
    prediction: None = None
    presence_penalty: Nothing = None
    prompt_cache_key: Identifier = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: TextFormat | None = None
    safety_identifier: Identifier = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: NoList = None
    top_logprobs: Nothing = None
    user: Identifier = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


class ChatRequest(Unread):
    """A conversation, whose next message is asked for."""

    model: Annotated[str, Field(min_length=1, max_length=NAME, description="a name of /v1/models")]
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    temperature: Annotated[
        Annotated[float, Field(ge=0, le=TEMPERATURE)] | None, Field(description="0, the default: the likeliest token")
    ] = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, le=SEEDS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def longest(self) -> int | None:
        """New tokens at most, where the request says so; the smaller one, where it says so twice."""
        return min((most for most in (self.max_tokens, self.max_completion_tokens) if most is not None), default=None)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts in front of which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def images(self) -> list[ImageURL]:
        """All images in reading order."""
        return [
            part.image_url
            for message in self.messages
            for part in message.content
            if not isinstance(part, str | TextPart)
        ]

    @property
    def characters(self) -> int:
        """Length of all texts."""
        contents = [message.content for message in self.messages]
        return sum(
            len(content) if isinstance(content, str) else sum(len(p.text) for p in content if isinstance(p, TextPart))
            for content in contents
        )


class LookRequest(Strict):
    """A conversation with images and the answer to it, of which is asked what the model saw."""

    model: Annotated[str, Field(min_length=1, max_length=NAME, description="a name of /v1/models")]
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    answer: Annotated[str, Field(description="what the model has said")]

    @property
    def chat(self) -> ChatRequest:
        """The conversation by itself."""
        return ChatRequest(model=self.model, messages=self.messages)

    @property
    def characters(self) -> int:
        """Length of all texts, the answer among them."""
        return self.chat.characters + len(self.answer)


def parse(kind: type[M], body: bytes) -> M:
    """The request in a body.

    Raises:
        Refused: when it is no JSON, or another request.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, body) from None


def refusal(error: ValidationError, body: bytes) -> Refused:
    """What is wrong with a request, without what it holds: that may be an image, or long."""
    errors = error.errors(include_input=False, include_url=False)
    if errors[0]["type"] == "json_invalid":
        return Refused(400, f"The body is not valid JSON in UTF-8: {errors[0]['msg'][:200]}", "invalid_json")
    place, meant = _closest(errors, from_json(body))
    param = _spelled(place)[:200] or None
    named = f"'{param}'" if param else "the body"
    if meant[0]["type"] == "extra_forbidden":
        return Refused(
            400, f"Unknown parameter: '{param}'. Nothing here reads it; leave it out.", "unknown_parameter", param
        )
    if meant[0]["type"] in MISSING:
        return Refused(400, f"Missing parameter: '{param}'.", "missing_required_parameter", param)
    said = "; or: ".join(dict.fromkeys(one["msg"] for one in meant))[:300]
    if meant[0]["type"] == "none_required" or (place and place[0] in Unread.model_fields):
        said += ". Nothing here reads it; leave it out."
    return Refused(400, f"Invalid value of {named}: {said}", "invalid_value", param)


def _closest(errors: Sequence[ErrorDetails], request: Any) -> tuple[Place, list[ErrorDetails]]:
    """The place of the first mistake, and the errors there.

    Where a value may be of several kinds, pydantic has an error for each kind: those that lie deepest are meant, since
    their kind is the one which the value resembles.
    """
    places = [_place(error, request) for error in errors]
    below = [place for place in places if place[: len(places[0])] == places[0]]
    deepest = max(below, key=len)
    return deepest, [error for error, place in zip(errors, places, strict=True) if place == deepest]


def _place(error: ErrorDetails, request: Any) -> Place:
    """Keys and indices that lead to an error, without the names of kinds that pydantic puts between them."""
    place: list[str | int] = []
    for step in error["loc"]:
        within: Any = dict(enumerate(request)) if isinstance(request, list) else request
        if isinstance(within, dict) and step in within:
            place.append(step)
            request = within[step]
    if error["type"] == "missing":
        place.append(error["loc"][-1])
    elif error["type"] == "union_tag_not_found":
        place.append(error.get("ctx", {})["discriminator"].strip("'"))
    return tuple(place)


def _spelled(place: Place) -> str:
    """A place as OpenAI's API names it: ``messages[0].content[1].text``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")
