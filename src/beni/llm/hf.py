"""Any Hugging Face causal language model as beni's llm, as long as it can be counted without weights (``dry_run``).

Packed rows go through beni's segment attention when the model passes it on (most do); a probe decides, because a model
that ignores the registered name would leak between samples without a word. Logits are computed at label rows only,
through the model's own head, so logit scaling and soft-capping stay the model's business; a model whose head cannot be
asked for some of them computes all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from beni.errors import CompositionError, ConfigError, WeightsError, reason
from beni.hub import package_file
from beni.llm import attention_reads, row_attention, segment_attention
from beni.llm.attention_reads import Reads
from beni.llm.base import Attended, Description, Llm
from beni.llm.columns import needs_plan, plan_of, valued
from beni.llm.generation import generate
from beni.llm.gguf import load_gguf
from beni.llm.head import decoder_gives
from beni.llm.probes import Probed
from beni.llm.pruning import Passing, pruned
from beni.llm.readings import Readings, readings_of
from beni.llm.row_attention import RowPlan
from beni.llm.visits import Places, placed_each_pass, require_layers, visited
from beni.nn.architecture import buildable, choose_attention, read_architecture
from beni.types import Heads, LayerVisitor, Pruning, Sequence


class HFLlm(Llm):
    """Embeddings ``(b, t, d)`` to logits ``(b, t, v)``.

    Args:
        name: hub id, local folder, or ``package:<package>/<file>.gguf``; ``null`` when there is none.
        weights: ``pretrained`` or ``random``.
        architecture: fields of the Hugging Face config, ``model_type`` among them; ``null`` reads those of ``name``.
        attn_implementation: attention for the padded layout and for generation: ``auto`` (``sdpa`` where transformers'
            class has it, else ``eager``) or a name that transformers knows. The packed layout uses beni's segment
            attention, rows in which positions look ahead or have gates its row attention.
        tokenizer: ``auto`` (that of ``name`` with pretrained weights, else beni's embedded one), ``embedded``,
            ``bytes`` (a token a byte), or a hub id or folder.

    Raises:
        ConfigError: no architecture and no name, a ``model_type`` that transformers does not have, or an attention
            that its class does not have.
    """

    def __init__(
        self,
        *,
        name: str | None,
        weights: Literal["pretrained", "random"],
        architecture: dict[str, Any] | None,
        attn_implementation: str,
        tokenizer: str,
    ) -> None:
        super().__init__()
        self.name, self.tokenizer = name, tokenizer
        self.config = read_architecture(name, architecture, group="llm")
        self.attn_implementation = choose_attention(decoder_class(self.config), attn_implementation, "llm")
        # weights that load_pretrained() will bring are not drawn first
        device = torch.device("meta") if weights == "pretrained" else torch.get_default_device()
        with device:
            self.model = build_llm(self.config, self.attn_implementation)
        text = self.config.get_text_config()
        embeddings = cast(nn.Embedding, self.model.get_input_embeddings())
        self.hidden_size, self.vocab_size = embeddings.embedding_dim, embeddings.num_embeddings
        self.capabilities = Probed(self, self.model)
        self._masked: bool | None = None
        self._around: list[Mapping[int, LayerVisitor]] = []
        limit = "max_position_embeddings"  # GPT-2 and some others have a name of their own for it
        self.max_positions = text.to_dict().get(text.attribute_map.get(limit, limit))

    def describe(self) -> Description:
        text = self.config.get_text_config().to_dict()
        rope = text.get("rope_parameters") or {}
        width = text.get("intermediate_size") or 4 * self.hidden_size
        return Description(self.config.model_type, width, rope.get("rope_type"))

    def input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        embeds, factor = self.model.get_input_embeddings()(ids), FACTORS.get(self.config.model_type)
        return embeds if factor is None else embeds * getattr(self.config, factor)

    def forward(self, sequence: Sequence, keep: Int[Tensor, "k"] | None = None) -> Float[Tensor, "b k v"]:
        inputs = self._inputs(sequence)
        with self._visited(sequence):
            if keep is not None and chooses_positions(type(self.model)):
                return self.model(**inputs, logits_to_keep=keep).logits
            logits = self.model(**inputs).logits
        return logits if keep is None else logits[:, keep]

    def hidden(self, sequence: Sequence) -> Float[Tensor, "b t d"]:
        with self._visited(sequence):
            return self.model.get_decoder()(**self._inputs(sequence)).last_hidden_state

    @torch.no_grad()
    def attended(self, sequence: Sequence, places: tuple[Int[Tensor, "k"], Int[Tensor, "k"]], last: int) -> Attended:
        if sequence.packed:
            raise ValueError("attention is read of padded rows, and these samples are packed")
        reads = Reads(places, last)
        inputs = self._inputs(sequence) | {"rows": RowPlan.of(sequence, self._readings(sequence)), "reads": reads}
        self._attend(attention_reads.NAME)
        # compiled layers would be compiled once more
        with self._visited(sequence), torch.compiler.set_stance("force_eager"):
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
        return Attended(hidden, reads.mean())

    def head(self, hidden: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
        with decoder_gives(self.model.get_decoder(), hidden[None]):
            return self.model(inputs_embeds=hidden[None], use_cache=False).logits[0]

    def output_layer(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    @torch.no_grad()
    def generate(self, sequence: Sequence, **options: Any) -> Any:
        plan = self._rows(sequence)
        self._attend(self.attn_implementation if plan is None else row_attention.NAME)
        with self._visited(sequence):
            return generate(self.model, sequence, plan, **options)

    def layers(self) -> list[nn.Module]:
        depth = self.config.get_text_config().num_hidden_layers
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists:
            raise CompositionError(
                "E-LAYERS",
                f"{self.config.model_type} says num_hidden_layers={depth}, and has no list of as many layers",
                groups=("llm",),
                fix="choose another llm, for instance llm=qwen3",
            )
        return list(lists[0])

    @contextmanager
    def around_layers(self, visitors: Mapping[int, LayerVisitor]) -> Iterator[None]:
        require_layers(visitors, len(self.layers()))
        self._around.append(visitors)
        try:
            yield
        finally:
            self._around.pop()

    def heads(self) -> Heads:
        text = self.config.get_text_config()
        queries = getattr(text, "num_attention_heads", None)
        if not isinstance(queries, int):
            raise CompositionError(
                "E-ATTN",
                f"{self.config.model_type} has no attention whose queries could be read along with",
                groups=("fusion", "llm"),
                fix="choose another llm, for instance llm=qwen3, or fusion=flamingo",
            )
        width = getattr(text, "head_dim", None) or self.hidden_size // queries
        return Heads(queries, getattr(text, "num_key_value_heads", None) or queries, width)

    def tied_keys(self, prefix: str) -> dict[str, str]:
        tied = self.model.all_tied_weights_keys.items()
        return {f"{prefix}model.{key}": f"{prefix}model.{source}" for key, source in tied}

    def dry_run(
        self, embeds: Float[Tensor, "1 t d"], label_rows: int, images: int = 0, pruning: Pruning | None = None
    ) -> Callable[[], Float[Tensor, "1 k v"]]:
        if self._masked is None:
            self._masked = prepare_dry_run(self.model, self.hidden_size)
        sequence = Sequence.plain(embeds)
        if pruning is not None:
            sequence = valued(sequence, images, pruning)
        return partial(self._dry_run, sequence, label_rows, self._masked)

    def load_pretrained(self) -> None:
        if self.name is None:
            raise WeightsError(
                "llm.weights=pretrained, but this llm has no pretrained weights (llm.name is null)\n"
                "  fix: set llm.weights=random, or llm.name to a hub id or folder"
            )
        if self.name.startswith("package:"):
            self.model = load_gguf(package_file(self.name), self.attn_implementation)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                self.name, attn_implementation=self.attn_implementation, dtype=torch.float32, trust_remote_code=False
            )
        self.config = self.model.config  # what was loaded decides, should llm.architecture differ in a detail
        self.capabilities = Probed(self, self.model)  # of what was loaded: nothing is known of it yet

    def _dry_run(self, sequence: Sequence, label_rows: int, masked: bool) -> Float[Tensor, "1 k v"]:
        plan: dict[str, Any] = {}
        if sequence.pruning is not None:
            self._attend(row_attention.NAME)
            plan = dict([plan_of(sequence)])
        with self._visited(sequence):
            return dry_run(self.model, sequence.embeds, label_rows, masked, **plan)

    def resolved(self) -> dict[str, Any]:
        return {"architecture": self.config.to_diff_dict() | {"model_type": self.config.model_type}}

    def _inputs(self, sequence: Sequence) -> dict[str, Any]:
        """Keyword arguments of transformers' model for either layout."""
        inputs = {
            "inputs_embeds": sequence.embeds,
            "position_ids": sequence.position_ids,
            "attention_mask": sequence.mask,
            "use_cache": False,
        }
        readings = self._readings(sequence)
        if not sequence.packed and not needs_plan(sequence, readings):
            self._attend(self.attn_implementation)
            return inputs
        self._attend(segment_attention.NAME if sequence.packed else row_attention.NAME)
        name, plan = plan_of(sequence, readings=readings)
        return inputs | {name: plan}

    def _readings(self, sequence: Sequence) -> Readings:
        return readings_of((*self._around, sequence.visitors))

    def _rows(self, sequence: Sequence) -> RowPlan | None:
        """The plan of padded rows where they need one."""
        readings = self._readings(sequence)
        return RowPlan.of(sequence, readings) if needs_plan(sequence, readings) else None

    @contextmanager
    def _visited(self, sequence: Sequence) -> Iterator[None]:
        """Inside the block the layers have the visitors of this sequence around them, in generation in every pass, and
        what is to leave the sequence leaves it between them.
        """
        visitors = [mapping for mapping in (*self._around, sequence.visitors) if mapping]
        if not visitors and sequence.pruning is None:
            yield
            return
        layers = self.layers()
        require_layers(sequence.visitors, len(layers))
        own, places = [layer.forward for layer in layers], Places(*sequence.numbered())
        with visited(layers, visitors, places), placed_each_pass(self.model.get_decoder(), places):
            if sequence.pruning is None:
                yield
                return
            with pruned(layers, own, Passing(sequence, sequence.pruning, places)):
                yield

    def _attend(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that is a causal language model of ``config``.

    Raises:
        ConfigError: when there is none, or it reads in both directions.
    """
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"llm.architecture.model_type={kind}: transformers has no causal language model of it\n"
            "  fix: choose a decoder, for instance llm=qwen3 or llm.architecture.model_type=llama"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.to_dict().get("is_decoder"):
        raise ConfigError(
            f"llm.architecture.model_type={kind} reads in both directions, so it would see the answers it is to learn\n"
            "  fix: set llm.architecture.is_decoder=true, or choose a decoder such as llm=qwen3"
        )
    return cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def build_llm(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """The causal language model of ``config`` on torch's current default device, in its default dtype.

    Raises:
        ConfigError: when it cannot be built from these fields.
    """
    with buildable("llm", config.model_type, attn_implementation):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.get_default_dtype()
        )


FACTORS = {"falcon_h1": "embedding_multiplier"}
"""Model type -> field that text embeddings are multiplied by where, and only where, transformers embeds ids itself."""


@cache
def chooses_positions(kind: type[PreTrainedModel]) -> bool:
    """Whether its head can be asked for some positions only; others (xLSTM) swallow the question and give all."""
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def prepare_dry_run(model: PreTrainedModel, width: int) -> bool:
    """Makes a model on the meta device one that can be counted, and tells whether its dry run takes a 4-D mask.

    Raises:
        CompositionError: E-FLOPS, the model reads values to decide what it computes, or cannot run at all.
    """
    if hasattr(model, "set_experts_implementation"):  # a product for each expert that a position is sent to
        model.set_experts_implementation("batched_mm")
    embeds, said = torch.empty(1, 2, width, device="meta"), ""
    for masked in (True, False):  # BLOOM and Mamba want 2-D masks, or make one where they are given none
        try:
            with torch.no_grad():
                dry_run(model, embeds, 1, masked)
        except UNCOUNTABLE as error:
            said = said or reason(error, -1)
            continue
        return masked
    raise CompositionError(
        "E-FLOPS",
        f"{model.config.model_type} cannot be run without weights, as counting its FLOPs does: {said}",
        groups=("llm",),
        fix="correct the field of llm.architecture that this speaks of, or choose another llm, for instance llm=qwen3",
    )


def dry_run(
    model: PreTrainedModel, embeds: Float[Tensor, "1 t d"], label_rows: int, masked: bool, **plan: Any
) -> Float[Tensor, "1 k v"]:
    """Logits of one sequence on the meta device, at its first positions where they can be chosen."""
    length = embeds.shape[1]
    with torch.device("meta"):
        inputs: dict[str, Any] = {"use_cache": False, **plan}
        if chooses_positions(type(model)):
            inputs["logits_to_keep"] = torch.arange(label_rows)
        if masked:  # a 4-D mask is used as it is; building one would read values
            inputs["attention_mask"] = torch.empty(1, 1, length, length)
            inputs["position_ids"] = torch.arange(length)[None]
        return model(inputs_embeds=embeds, **inputs).logits


UNCOUNTABLE = (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError)
