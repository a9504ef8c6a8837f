"""Whether a prompt is what a model was trained on: the hash of template and tokenizer, and what differs.

A run keeps, beside the hash, how a fixed conversation was rendered (a specimen). So whoever evaluates, talks to or
serves the model with another template or tokenizer is shown both prompts, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from beni.data.images import Image
from beni.data.render.template import Renderer
from beni.data.render.tokens import IMAGE
from beni.data.sample import Message, Sample
from beni.errors import ConfigError, DataError

ASKED = "Is it 20345,  or a caf\u00e9?\nSay why."
"""A question whose tokens tell most tokenizers apart."""
CONTEXT = 2
"""Equal lines shown around a difference."""


def _no_picture() -> Any:
    raise DataError("the specimen of a prompt has no picture; expected its place only\n  fix: this is a bug in beni")


TALK = (
    Message("user", (Image(_no_picture, "specimen"), ASKED)),
    Message("assistant", ("It is one.",)),
    Message("user", ("Sure?",)),
)
"""What a specimen is of; where the template takes no second question, of the first message alone."""


def specimen(renderer: Renderer) -> dict[str, Any]:
    """How a fixed conversation of two questions about an image is rendered, up to its second answer.

    Returns:
        ``text``, ``tokens`` (each as the vocabulary spells it), ``special`` (the ids of special tokens) and
        ``vocabulary`` (its size). Where the template takes no second question there is one.
    """
    try:
        text, ids = _rendered(renderer, TALK)
    except DataError:
        text, ids = _rendered(renderer, TALK[:1])
    special = renderer.tokens
    return {
        "text": text,
        "tokens": renderer.tokenizer.convert_ids_to_tokens(ids),
        "special": {"image": special.image, "bos": special.bos, "pad": special.pad, "eos": list(special.eos)},
        "vocabulary": len(renderer.tokenizer.get_vocab()),
    }


def require_trained(renderer: Renderer, trained: Mapping[str, Any], named: str, fix: str) -> None:
    """Return when a renderer makes the prompts that a model was trained on.

    Args:
        trained: ``hash`` of template and tokenizer in training, and the ``specimen`` of it where one was kept.
        named: what was asked for, as the user knows it.
        fix: what makes it right.

    Raises:
        ConfigError: when it does not; both prompts are shown where they differ.
    """
    if renderer.hash() == trained["hash"]:
        return
    kept = trained.get("specimen")
    shown = "".join(f"\n  {line}" for line in differences(kept, specimen(renderer))) if kept else ""
    raise ConfigError(
        f"{named}: template and tokenizer have the hash {renderer.hash()}, and the model was trained with "
        f"{trained['hash']}: it would be asked otherwise than it has learned{shown}\n  fix: {fix}"
    )


def require_own_chat_template(tokenizer: PreTrainedTokenizerBase, trained: Mapping[str, Any], named: str) -> None:
    """Return when the chat template of a saved tokenizer, which other programs read, renders what the model was trained
    on. beni itself renders by what config.json says, so a file that somebody has edited would go unnoticed.

    Args:
        trained: see ``require_trained``.
        named: the saved folder.

    Raises:
        ConfigError: when it does not; both prompts are shown where they differ.
    """
    if not (kept := trained.get("specimen")) or tokenizer.chat_template is None:
        return
    turns = [{"role": message.role, "content": _as_text(message)} for message in TALK]
    texts = []
    for talk in (turns, turns[:1]):
        try:
            rendered = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:  # of one that takes no second question
            rendered = f"{error}"
        texts.append(cast(str, rendered))
    if kept["text"] in texts:
        return
    shown = "".join(f"\n  {line}" for line in differing(kept["text"].split("\n"), texts[0].split("\n")))
    raise ConfigError(
        f"{named}: chat_template.jinja makes other prompts than the model was trained on{shown}\n"
        "  fix: restore the file; python -m beni.export <run folder> writes it"
    )


def differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Lines that show in what two specimens differ, ``-`` as trained and ``+`` as given."""
    if trained["text"] != given["text"]:
        return list(differing(trained["text"].split("\n"), given["text"].split("\n")))
    if trained["tokens"] != given["tokens"]:
        return list(differing(trained["tokens"], given["tokens"]))
    facts = [key for key in ("special", "vocabulary") if trained[key] != given[key]]
    if not facts:
        return [
            "both render the specimen alike; other texts differ, by the vocabulary, the system message or the turns"
        ]
    return [line for key in facts for line in (f"- {key}: {trained[key]}", f"+ {key}: {given[key]}")]


def differing(trained: Sequence[str], given: Sequence[str]) -> Iterator[str]:
    """A diff of two texts or lists of tokens, a line each: ``-`` as trained, ``+`` as given."""
    lines = unified_diff(trained, given, "the prompt as trained", "the prompt as given", lineterm="", n=CONTEXT)
    return (line for line in lines if not line.startswith("@@"))


def _rendered(renderer: Renderer, talk: tuple[Message, ...]) -> tuple[str, list[int]]:
    sample = Sample("specimen", (*talk, Message("assistant", ("",))))  # whose place is where a prompt ends
    return renderer.prompt_text(sample), renderer.prompt(sample, [(1,)]).ids.tolist()


def _as_text(message: Message) -> str:
    return "".join(IMAGE if isinstance(part, Image) else part for part in message.content)
