"""The head of a causal language model by itself: from hidden states of chosen positions to their logits.

What follows a decoder (head, bias, logit scaling, soft-capping, a transform of its own) differs from model to model and
is run as the model has it: its own forward, with a decoder that gives back the rows it is handed. Two probes decide
which models allow that, and whose head is nothing but a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from beni.llm.base import Llm
from beni.llm.forward import with_forward
from beni.types import Sequence


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


@torch.no_grad()
def splits_head(llm: Llm) -> bool:
    """Whether hidden states and then the head give the logits of the whole (difference at most 1e-5 of their range)."""
    sequence = _probe(llm)
    training = llm.training
    llm.eval()
    try:
        whole = llm(sequence)[0]
        split = llm.head(llm.hidden(sequence)[0])
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    finally:
        llm.train(training)
    return split.shape == whole.shape and bool((split - whole).abs().max() <= 1e-5 * whole.abs().max().clamp(min=1e-6))


@torch.no_grad()
def is_linear(llm: Llm) -> bool:
    """Whether the head is a plain ``nn.Linear`` and nothing follows it."""
    head = llm.output_layer()
    if type(head) is not nn.Linear:  # an adapted or quantised one computes something else
        return False
    rows = _probe(llm).embeds[0]
    plain, own = F.linear(rows, head.weight, head.bias), llm.head(rows)
    return bool((plain - own).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1e-6))


def _probe(llm: Llm) -> Sequence:
    """A row of eight tokens."""
    ids = torch.arange(8, device=next(llm.parameters()).device)[None] * 7919 % llm.vocab_size
    return Sequence.plain(llm.embed(ids))
