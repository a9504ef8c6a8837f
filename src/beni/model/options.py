"""Options of ``generate``: those of the caller, as ``transformers`` means them, over those that a model was saved with.

``transformers`` generates from embeddings here and sees new ids alone. Lengths that count the prompt are counted before
it does; a caller's logits processors and stopping criteria are called with prompt and answer, and so is what it gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils.generic import ModelOutput

from beni.errors import ConfigError, DataError
from beni.model.foreign_calls import OF_GENERATE, require_obeyed

LENGTHS = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))
"""Bounds on prompt and answer together, each with that on the answer alone."""


def over_saved(
    saved: GenerationConfig, given: dict[str, Any], prompt: Int[Tensor, "b t"], taken: int, limit: int | None
) -> dict[str, Any]:
    """The options of one call: those given, over the model's own where a run has saved some.

    Args:
        prompt: ids, left-padded.
        taken: positions of the llm that the prompt takes.
        limit: of the llm's positions, where it has one.

    Raises:
        ConfigError: when the prompt is as long as ``max_length``, or an option cannot be obeyed.
        DataError: when the prompt takes more positions than the llm has.
    """
    theirs, rest = _counted(_told_of(prompt, given), prompt.shape[1])
    require_obeyed(({} if theirs is None else theirs.to_diff_dict()) | rest)
    rest = {name: value for name, value in rest.items() if name not in OF_GENERATE}
    room = None if limit is None else _room(taken, limit)
    if room is not None:
        _keep_within(room, theirs, rest)
    if saved.eos_token_id is None:
        return rest if theirs is None else rest | {"generation_config": theirs}
    config = deepcopy(saved)
    if theirs is not None:
        config.update(**theirs.to_diff_dict())
    if room is not None and config.max_new_tokens:
        config.max_new_tokens = min(config.max_new_tokens, room)
    rest = config.update(**rest)  # gives back what is no setting of generation: a streamer, say
    return rest | {"generation_config": config}


def _room(taken: int, limit: int) -> int:
    """New tokens behind a prompt; the first needs no further position, since the prompt's last one predicts it."""
    if taken > limit:
        raise DataError(
            f"the prompt takes {taken} positions with its images, the llm has {limit}\n"
            "  fix: shorten it, or leave out some of its images"
        )
    return max(1, limit - taken)


def _keep_within(room: int, theirs: GenerationConfig | None, rest: dict[str, Any]) -> None:
    """Lowers what the caller asks for to the positions that the llm has, and says so."""
    asked = rest.get("max_new_tokens") or (theirs is not None and theirs.max_new_tokens) or 0
    if asked <= room:
        return
    warnings.warn(
        f"max_new_tokens={asked} is more than the {room} for which the llm has positions behind this prompt; "
        f"an answer ends after {room}",
        stacklevel=1,
    )
    if "max_new_tokens" in rest:
        rest["max_new_tokens"] = room
    if theirs is not None and theirs.max_new_tokens:
        theirs.max_new_tokens = min(theirs.max_new_tokens, room)


def with_prompts(prompts: Int[Tensor, "b t"], out: Any) -> Any:
    """What ``transformers`` has generated from embeddings -> the same with the prompt in front of each answer.

    Args:
        prompts: ids; each has as many answers, which follow one another.
        out: the new ids, ``(rows, new)``, or an output that holds them.
    """
    if isinstance(out, ModelOutput):
        out["sequences"] = _behind(prompts, out["sequences"])
        return out
    return _behind(prompts, out)


def _behind(prompts: Int[Tensor, "b t"], new: Int[Tensor, "rows n"]) -> Int[Tensor, "rows t_and_n"]:
    return torch.cat([prompts.repeat_interleave(len(new) // len(prompts), 0).to(new.device), new], 1)


def _counted(given: dict[str, Any], prompt: int) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Configuration and options of the caller, in which lengths count new tokens; the model's own give way to them."""
    given = dict(given)
    theirs: GenerationConfig | None = deepcopy(given.pop("generation_config", None))
    asked = ({} if theirs is None else theirs.to_diff_dict()) | given
    for whole, new in LENGTHS:
        length = asked.get(whole)
        if length is None or asked.get(new) is not None:  # of both transformers takes the latter, with a warning
            continue
        if whole == "max_length" and length <= prompt:
            raise ConfigError(
                f"max_length={length} counts the prompt, which has {prompt} tokens with those of its images\n"
                f"  fix: set max_new_tokens, or max_length of at least {prompt + 1}"
            )
        given.pop(whole, None)
        given.pop(new, None)
        count = max(0, length - prompt)
        if theirs is None:
            given[new] = count
        else:
            setattr(theirs, whole, None)
            setattr(theirs, new, count)
    return theirs, given


def _told_of(prompt: Int[Tensor, "b t"], given: dict[str, Any]) -> dict[str, Any]:
    """Options whose functions are called with the ids of prompt and answer."""
    told = dict(given)
    if given.get("logits_processor"):
        told["logits_processor"] = LogitsProcessorList(_Processor(prompt, one) for one in given["logits_processor"])
    if criteria := given.get("stopping_criteria"):
        criteria = [criteria] if isinstance(criteria, StoppingCriteria) else criteria
        told["stopping_criteria"] = StoppingCriteriaList(
            one if isinstance(one, EosTokenCriteria) else _Criterion(prompt, one) for one in criteria
        )
    if (allowed := given.get("prefix_allowed_tokens_fn")) is not None:
        told["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row, torch.cat([prompt[row].to(ids.device), ids]))
    return told


class _Processor(LogitsProcessor):
    """``(rows, v) -> (rows, v)``: a logits processor of the caller."""

    def __init__(self, prompts: Int[Tensor, "b t"], own: Callable[..., Any]) -> None:
        self.prompts, self.own = prompts, own

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.own(_behind(self.prompts, input_ids), scores)


class _Criterion(StoppingCriteria):
    """``(rows, t) -> (rows,)``: a stopping criterion of the caller."""

    def __init__(self, prompts: Int[Tensor, "b t"], own: Callable[..., Any]) -> None:
        self.prompts, self.own = prompts, own

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return self.own(_behind(self.prompts, input_ids), scores, **kwargs)
