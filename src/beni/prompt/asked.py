"""What is asked about each image as one vector, from the source that the run names.

The answer is never seen: what is asked is the text of the sample that is neither supervised nor an image.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from beni.errors import ConfigError
from beni.prompt.text_encoder import TextEncoder
from beni.stage import Reads
from beni.types import Prompt

Source = Literal["embeddings", "hidden", "text_encoder"]

READS: dict[Source, Reads] = {"embeddings": "prompt", "hidden": "prompt_hidden", "text_encoder": "prompt_text"}


class Asked:
    """What is asked about each row -> ``(i, dim)``.

    Args:
        source: the mean of the llm's ``embeddings`` of it; the llm's ``hidden`` state at its last position (one more
            pass through the llm, without a gradient); or what a frozen ``text_encoder`` makes of it.
        dim_text: width of the llm.
        text_encoder: hub id or folder of that encoder; None for another source.
        group: config group that asks, for messages.

    Raises:
        ConfigError: when an encoder is named and not read, or read and not named.
        WeightsError: when it cannot be had on this machine.

    Attributes:
        dim: width of the vector.
        reads: what a stage must declare that it reads.
    """

    def __init__(self, source: Source, dim_text: int, text_encoder: str | None, group: str) -> None:
        if (source == "text_encoder") != (text_encoder is not None):
            name = "null" if text_encoder is None else text_encoder
            raise ConfigError(
                f"{group}.source={source} with {group}.text_encoder={name}\n  fix: "
                + (
                    f"set {group}.text_encoder=openai/clip-vit-base-patch32, or a folder"
                    if text_encoder is None
                    else f"set {group}.source=text_encoder, or {group}.text_encoder=null"
                )
            )
        self.source = source
        self.encoder = None if text_encoder is None else TextEncoder(text_encoder, group)
        self.dim = dim_text if self.encoder is None else self.encoder.dim
        self.reads: frozenset[Reads] = frozenset({READS[source]})

    def __call__(
        self, like: Float[Tensor, "i n d"], prompt: Prompt | None
    ) -> tuple[Float[Tensor, "i t"], Bool[Tensor, "i"]]:
        """The vectors, and True at rows about which something is asked; the others' say nothing.

        Args:
            like: features of the rows, for their number and type.
        """
        if prompt is None:
            return like.new_zeros(len(like), self.dim), torch.zeros(len(like), dtype=torch.bool, device=like.device)
        real = prompt.mask
        return self._read(prompt, like.device).to(like.dtype), real.any(1)

    def _read(self, prompt: Prompt, device: torch.device) -> Float[Tensor, "i t"]:
        real = prompt.mask
        if self.encoder is not None:
            return self.encoder(prompt.texts, device)
        if self.source == "embeddings":
            embeds = prompt.embeds.masked_fill(~real[..., None], 0)
            return embeds.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        if prompt.hidden is None:
            raise ValueError("the prompt came without hidden states")
        last = real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)
        hidden = prompt.hidden * real[..., None]
        return hidden.gather(1, last.argmax(1)[:, None, None].expand(-1, -1, hidden.shape[2]))[:, 0]
