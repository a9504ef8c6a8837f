"""Q-Former that reads what is asked (InstructBLIP, arXiv 2305.06500): the prompt joins the queries' self-attention.

Reference: ``transformers`` ``InstructBlipQFormerModel``, equal to 1e-5 in fp32 and 1e-10 in fp64 with its weights when
its word embeddings are those of the prompt.
Deviations: the reference has BERT's word embeddings and tokenizer; here the llm's own embeddings of the question are
mapped to the queries' width, so there is one tokenizer. Queries start as in ``resampler=qformer``. The feed-forward of
the text in the last layer, whose result nothing reads, is left out.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from beni.config.ranges import AtLeast, AtMost, Below, Example
from beni.nn.qformer import QFormerEncoder
from beni.nn.queries import draw_layers, head_dim_of, queried, queried_spec
from beni.stage import Reads, Stage, StageContext
from beni.types import Prompt, TokenSpec, VisualTokens


class QFormerInstruct(Stage):
    """``(i, n, d) -> (i, num_queries, dim_out)``, with the prompt of each image and without.

    Args:
        tokens: spec of the incoming visual tokens.
        dim_out: width of the llm.
        hidden_size: width of the queries.
        depth: layers.
        num_queries: visual tokens going out (tokens).
        num_heads: heads of both attentions.
        intermediate_size: hidden width of the feed-forward layers.
        cross_attention_every: layers from one look at the visual tokens to the next; the first layer looks.
        max_prompt: positions of the prompt that are read (tokens); the rest of a longer one is left out.
        dropout: probability in [0, 1), on attention weights and on each branch.

    Raises:
        CompositionError: E-HEADS when ``num_heads`` does not divide ``hidden_size``, E-PLACE when
            ``cross_attention_every`` is below 1.
    """

    reads: frozenset[Reads] = frozenset({"prompt", "log_gate"})

    def __init__(
        self,
        tokens: TokenSpec,
        dim_out: int,
        *,
        hidden_size: Annotated[int, AtLeast(1)],
        depth: Annotated[int, AtLeast(1), AtMost(1000)],
        num_queries: Annotated[int, AtLeast(1)],
        num_heads: Annotated[int, AtLeast(1)],
        intermediate_size: Annotated[int, AtLeast(1)],
        cross_attention_every: int,
        max_prompt: Annotated[int, AtLeast(1)],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.1")],
    ) -> None:
        super().__init__()
        head_dim_of(hidden_size, num_heads, "resampler=qformer_instruct")
        self.queries = nn.Parameter(torch.empty(num_queries, hidden_size))
        self.prompt_proj = nn.Linear(dim_out, hidden_size)
        self.prompt_positions = nn.Parameter(torch.empty(max_prompt, hidden_size))
        self.encoder = QFormerEncoder(
            hidden_size,
            tokens.dim,
            depth=depth,
            num_heads=num_heads,
            dim_hidden=intermediate_size,
            cross_attention_every=cross_attention_every,
            reads_text=True,
            dropout=dropout,
        )
        self.proj = nn.Linear(hidden_size, dim_out)

    def spec(self, tokens: TokenSpec) -> TokenSpec:
        return queried_spec(tokens, len(self.queries), self.proj.out_features, "llm")

    def forward(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        x = tokens.x
        # without a prompt the text has no position, not no existence: every rank then has the same gradients to reduce
        prompt = context.prompt or Prompt(
            x.new_zeros(len(x), 0, self.prompt_proj.in_features), tokens.mask.new_zeros(len(x), 0)
        )
        place = prompt.mask.cumsum(1)  # counts real positions, so that padding moves none
        mask = prompt.mask & (place <= len(self.prompt_positions))
        positions = self.prompt_positions[(place - 1).clamp(0, len(self.prompt_positions) - 1)]
        text = self.prompt_proj(prompt.embeds.to(x.dtype)) + positions
        queries = self.queries.to(x.dtype).expand(len(x), -1, -1)
        read = self.encoder(queries, x, tokens.mask, text=text, text_mask=mask, log_gate=tokens.log_gate)
        return queried(self.proj(read), tokens)

    def init_weights(self) -> None:
        nn.init.normal_(self.queries, std=0.02)
        nn.init.normal_(self.prompt_positions, std=0.02)
        draw_layers(self, lambda weight: nn.init.normal_(weight, std=0.02))
