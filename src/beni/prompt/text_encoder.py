"""A frozen text encoder that is no part of the model: the text half of CLIP or SigLIP, or any encoder of transformers.

It is a function of a text, as a tokenizer is: the run names it, loads it where it is first needed, and saves nothing of
it. Each text is read once and by itself, and what came of it is remembered: read together, the last bits of one would
depend on the others, and a run that goes on would have other digits than one that was never stopped.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from beni.errors import ConfigError, reason
from beni.hub import require

KNOWN = 16384
"""Texts of which it is remembered what came of them; 48 MiB at a width of 768."""


class TextEncoder:
    """``(texts) -> (i, d)``: what the encoder pools, or the mean of its last hidden states where it pools nothing.

    Args:
        name: hub id or local folder, of a whole CLIP or SigLIP too.
        group: config group that asks, for messages.

    Raises:
        WeightsError: when it cannot be had on this machine.
        ConfigError: when it is no encoder of texts.

    Attributes:
        dim: width of what it gives.
    """

    def __init__(self, name: str, group: str) -> None:
        require(name, group, "text encoder")
        self.name, self.group = name, group
        self._config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            with torch.device("meta"), torch.no_grad():
                self._empty = self._text_half(AutoModel.from_config(self._config, trust_remote_code=False))
                self.dim = self._encode(self._empty, "a", torch.device("meta")).shape[0]
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"{group}.text_encoder={name} cannot read a text: {reason(error)}\n"
                f"  fix: name a CLIP or a SigLIP with its tokenizer, or set {group}.source=embeddings"
            ) from error
        self._model: nn.Module | None = None
        self._known: dict[str, Float[Tensor, "d"]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without weights: a copy, in a worker of the loader too, reads them where it needs them."""
        return vars(self) | {"_model": None, "_known": {}}

    @torch.no_grad()
    def __call__(self, texts: tuple[str, ...], device: torch.device) -> Float[Tensor, "i d"]:
        """In single precision, on ``device``."""
        if device.type == "meta":
            return torch.stack([self._encode(self._empty, text, device) for text in texts])
        for text in texts:
            if text not in self._known:
                if len(self._known) >= KNOWN:
                    self._known.clear()
                self._known[text] = self._encode(self._loaded(device), text, device)
        return torch.stack([self._known[text].to(device) for text in texts])

    def _loaded(self, device: torch.device) -> nn.Module:
        if self._model is None:
            whole = AutoModel.from_pretrained(self.name, dtype=torch.float32, trust_remote_code=False)
            self._model = self._text_half(whole).eval().requires_grad_(False)
        return self._model.to(device)

    def _text_half(self, model: nn.Module) -> nn.Module:
        """The encoder of texts in a model of texts and pictures, or the model itself."""
        return model.get_submodule("text_model") if "text_config" in self._config.to_dict() else model

    def _encode(self, model: nn.Module, text: str, device: torch.device) -> Float[Tensor, "d"]:
        fields = self._config.get_text_config().to_dict()
        # SigLIP was trained on texts that are all filled to one length, and pools the last position
        padding = "max_length" if "siglip" in fields["model_type"] else False
        given = self._tokenizer(text, truncation=True, max_length=fields["max_position_embeddings"], padding=padding)
        with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
            # all positions are read as real ones: a mask would say nothing
            out = model(input_ids=torch.tensor(given["input_ids"], device=device)[None])
        pooled = out.get("pooler_output")
        return (out["last_hidden_state"].mean(1) if pooled is None else pooled)[0]
