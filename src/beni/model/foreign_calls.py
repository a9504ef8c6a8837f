"""Calls that other models of ``transformers`` take: obeyed where a model of parts can, else refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor, nn

from beni.errors import ConfigError

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "output_hidden_states": (False,),
    "output_attentions": (False,),
    "use_cache": (False,),
    "logits_to_keep": (0,),
}
"""Arguments of ``forward`` at values that change nothing; None never does."""
OF_FORWARD = {
    "inputs_embeds": "give input_ids and pixels; model.llm takes the sequence of embeddings that model.prompt gives",
    "output_hidden_states": "leave it out; model.llm.hidden(model.prompt(...)) gives the last ones",
    "output_attentions": "leave it out; model.look(..., layers=2) reads what an answer looks at",
    "past_key_values": "leave it out; generate has a cache of its own",
    "use_cache": "leave it out; generate has a cache of its own",
}
OF_GENERATE = {
    "inputs_embeds": "give input_ids and pixels; model.llm.generate goes on after what model.prompt gives",
    "position_ids": "leave it out: positions are counted from attention_mask",
    "past_key_values": "leave it out: a prompt is read as a whole",
    "assistant_model": "leave it out: no other model reads these visual tokens",
    "assistant_tokenizer": "leave it out: no other model reads these visual tokens",
    "guidance_scale": "leave it out: there is no prompt without the images to be guided by",
    "negative_prompt_ids": "leave it out: there is no prompt without the images to be guided by",
    "negative_prompt_attention_mask": "leave it out: there is no prompt without the images to be guided by",
}
"""Options of ``generate`` that cannot be obeyed -> what to do instead."""


def called_as_others(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` with ``return_dict``, and with a refusal of what it does not take.

    Raises:
        ConfigError: by the call, when an argument asks for what it does not do.
    """
    known = set(inspect.signature(forward).parameters)

    @wraps(forward)
    def call(self: Any, *args: Any, return_dict: bool | None = None, **given: Any) -> Any:
        if not given.keys() <= known:
            given = _own(given, known)
        out = forward(self, *args, **given)
        return out.to_tuple() if return_dict is False else out

    return call


def _own(given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    for name, value in given.items():
        if (
            name in known
            or value is None
            or any(type(value) is type(one) and value == one for one in NEUTRAL.get(name, ()))
        ):
            continue
        raise ConfigError(
            f"the model was called with {name}={_shown(value)}, expected {', '.join(sorted(known - {'self'}))}\n"
            f"  fix: {OF_FORWARD.get(name, 'leave it out')}"
        )
    return {name: value for name, value in given.items() if name in known}


def require_obeyed(asked: Mapping[str, Any]) -> None:
    """Return when ``generate`` can do what options ask for.

    Raises:
        ConfigError: when it cannot.
    """
    for name, fix in OF_GENERATE.items():
        value = asked.get(name)
        if value is not None and not (name == "guidance_scale" and value == 1):
            raise ConfigError(
                f"generate was given {name}={_shown(value)}, which a beni model does not do\n  fix: {fix}"
            )


class FixedTable:
    """``resize_token_embeddings`` of a model whose table of embeddings is that of its llm."""

    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """The table, as it is.

        Raises:
            ConfigError: when it would get another number of rows; nothing has changed then.
        """
        table = self.get_input_embeddings()
        have = len(table.weight)
        want = have if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            want = -(-want // pad_to_multiple_of) * pad_to_multiple_of
        if want != have:
            raise ConfigError(
                f"resize_token_embeddings to {want} rows: a saved model is read with the {have} of its llm\n"
                "  fix: leave it out: <image> needs no row; for new tokens train with an llm that has rows for them "
                f"(llm.architecture.vocab_size={want}, or a folder with such weights as llm.name)"
            )
        return table


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)}"
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else f"{value!r:.40}"
