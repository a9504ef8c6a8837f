"""The head of a causal language model by itself: from hidden states of chosen positions to their logits.

What follows a decoder (head, bias, logit scaling, soft-capping, a transform of its own) differs from model to model and
is run as the model has it: its own forward, with a decoder that gives back the rows it is handed. Two probes
(llm/probes.py) decide which models allow that, and whose head is nothing but a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from beni.llm.forward import with_forward


@dataclass
class Decoded(ModelOutput):
    """What a decoder gives: the fields that heads of any family look at."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None


@contextmanager
def decoder_gives(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Inside the block ``decoder`` returns ``hidden`` (b, t, d), whatever it is called with."""
    with with_forward(decoder, lambda *_, **__: Decoded(last_hidden_state=hidden)):
        yield
