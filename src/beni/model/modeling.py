"""``BeniForConditionalGeneration``: encode, view, select, resample, connect, fuse, predict.

Parts are built in that order, each from the spec of what the one before it gives, so sizes are never written twice.
Each draws its initial weights from a stream of its own name: swapping one leaves the weights of all others
bit-identical.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from beni.adapter.base import Adapter
from beni.components import BACKBONES
from beni.config.build import build, build_stage
from beni.data.batch.collate import pixel_key, stack_views
from beni.errors import CompositionError, ConfigError
from beni.fusion.base import Fusion
from beni.llm.base import Llm
from beni.model import adapters, auxiliary, channels, pictures, quantized
from beni.model.answering import Answering
from beni.model.configuration import BeniConfig
from beni.model.context import context_of, embedded
from beni.model.foreign_calls import FixedTable, called_as_others
from beni.model.inputs import BeniOutput, CallCounts, StepInputs, on_device
from beni.model.loss import token_loss
from beni.model.mixed_sizes import encoded, on_each_grid
from beni.model.predict import predict
from beni.model.viewer import Viewer, placeholders, require_read, require_room
from beni.nn.recompute import recomputed
from beni.nn.streams import torch_stream
from beni.pruner.base import Pruner
from beni.quantization.base import Quantization
from beni.stage import PROMPTS, Reads, Stage, StageContext, require_gates_kept
from beni.types import (
    Batch,
    ImageInputs,
    ImageLayout,
    Nested,
    Pixels,
    SampleInputs,
    Sequence,
    TokenSpec,
    VisualTokens,
    to_device,
)
from beni.views.base import Views
from beni.vision.base import VisionEncoder
from beni.vision.feature_bank import FeatureBank

KNOWN_LAYOUTS = 4096
"""Layouts of images of which a model remembers what its stages make of them."""

UNPACKED = {"_target_": "beni.quantization.none.NoQuantization"}
UNPRUNED = {"_target_": "beni.pruner.none.NoPruner"}
"""What models saved before there was quantization, or a pruner, have."""


class BeniForConditionalGeneration(Answering, FixedTable, PreTrainedModel, GenerationMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A vision-language model made of the parts of its config.

    Args:
        config: parts, plan and placeholder.
        pretrained: load the backbones' pretrained weights where their node says ``weights: pretrained``; without it
            such backbones stay on the meta device until a state dict fills them.

    Attributes:
        feature_bank: where the features of a frozen vision encoder are kept; None encodes every view anew.

    Raises:
        CompositionError: when a part cannot follow the one before it.
    """

    config: BeniConfig
    config_class = BeniConfig
    base_model_prefix = "beni"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # transformers' Trainer hands over num_items_in_batch, and then divides no loss itself
    _supports_sdpa = True

    def __init__(self, config: BeniConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        parts, seed = config.parts, config.seed
        self.feature_bank: FeatureBank | None = None
        self.kept_processor = None
        self._recomputing: dict[nn.Module, Callable[..., Any]] = {}
        self._row_specs: dict[ImageLayout, dict[str, list[TokenSpec]]] = {}

        with torch_stream(seed, "init", "vision"):
            self.vision: VisionEncoder = build(parts["vision"])
        with torch_stream(seed, "init", "llm"):
            self.llm: Llm = build(parts["llm"])
        config.vocab_size = self.llm.vocab_size  # transformers reads it: compute_transition_scores, a watermark
        self.specs: dict[str, TokenSpec] = {"vision": self.vision.spec()}
        tile, patches = self.vision.transform.tile, self.vision.patches
        self.views = cast(Views, self._stage("views", self.specs["vision"], tile=tile, patches=patches))
        self.selector: Stage = self._stage("selector", self.specs["views"])
        self.resampler: Stage = self._stage("resampler", self.specs["selector"])
        self.connector: Stage = self._stage("connector", self.specs["resampler"])
        self.specs = channels.serve(self.vision, self.stages)
        self.specs["llm"] = self.views.finished(self.specs["connector"])
        if self.specs["llm"].dim != self.llm.hidden_size:
            raise CompositionError(
                "E-SPACE",
                f"visual tokens arrive {self.specs['llm'].dim} wide, the llm is {self.llm.hidden_size} wide",
                groups=("connector", "llm"),
                fix="set connector=auto",
            )
        with torch_stream(seed, "init", "fusion"):
            self.fusion: Fusion = build(parts["fusion"], self.specs["llm"], self.llm.hidden_size)
            self.fusion.install(self.llm)
            self.fusion.init_weights()
        self.pruner: Pruner = build(parts.get("pruner", UNPRUNED))
        self.pruner.install(lambda: len(self.llm.layers()), placeholders(self.fusion.markup((64,))) == 64)
        require_read(self.viewer, self.specs["llm"])
        require_room(self.viewer, self.llm.max_positions)

        if pretrained:
            for name in BACKBONES:
                if parts[name].get("weights") == "pretrained":
                    getattr(self, name).load_pretrained()
        self.post_init()  # before the adapters: transformers would draw their weights anew, zeros included
        self.all_tied_weights_keys |= self.llm.tied_keys("llm.")
        self.quantization: Quantization = build(parts.get("quantization", UNPACKED))
        quantized.quantize(self)
        self.adapter: Adapter = build(parts["adapter"])
        adapters.inject(self)

    @called_as_others
    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        pixels: Pixels | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        images: ImageInputs = ImageInputs(),
        samples: SampleInputs = SampleInputs(),
        how: StepInputs = StepInputs(),
        num_items_in_batch: int | Tensor | None = None,
    ) -> BeniOutput:
        """One micro-batch to its loss: encode, view, select, resample, connect, fuse, predict.

        Args:
            input_ids: with a placeholder for each position of an image.
            pixels: all views, stacked, or a list of them where their sizes differ.
            labels: ``labels[t]`` is the token *at* t; ``IGNORE`` where nothing is supervised.
            attention_mask: 1 at real positions of padded rows.
            position_ids: counted from 0 at the first real position of each row when None.
            images: how the images became views, and whose they are.
            samples: borders of the samples in a packed row.
            how: the optimizer step that this is part of.
            num_items_in_batch: labels of the whole step, by the name that transformers' Trainer has for
                ``how.num_items``. It says nothing of auxiliary losses, so those of a micro-batch count by its share of
                the labels.

        Raises:
            DataError: E-COUNT when placeholders and visual tokens differ in number.
        """
        if num_items_in_batch is not None:
            how = replace(how, num_items=num_items_in_batch, auxiliary_by_labels=True)
        images, samples = on_device(images, samples, input_ids.device)
        text = embedded(self, input_ids, labels, attention_mask, position_ids, samples)
        context = context_of(self, text, pixels, images, samples, how)
        visual = images.visual if pixels is None else self.encode_images(pixels, context, images.keys, how.calls)
        sequence = self.pruner(self.fusion(text, visual, images.owners))
        if visual is None and how.calls is not None and how.calls.stages:
            sequence = self.fusion.blank(sequence, self._blank_image(text.embeds.device, how.calls))
        if labels is None:
            return BeniOutput(logits=predict(self.llm, sequence), sink=context.sink)
        return self._with_loss(text, sequence, context, images, how)

    def _with_loss(
        self, text: Sequence, sequence: Sequence, context: StageContext, images: ImageInputs, how: StepInputs
    ) -> BeniOutput:
        """The loss of ``sequence``, which fusion has made of ``text``, and what was computed on the way to it."""
        places, targets = sequence.predicted()
        total, logits = token_loss(self.llm, sequence, places, targets, how.loss)
        token_mean = total / (len(targets) if how.num_items is None else how.num_items)
        losses = auxiliary.means(context.sink, self.auxiliary_counts(images.layouts), how.auxiliary)
        if how.auxiliary_by_labels and how.num_items is not None:
            losses = {name: loss * len(targets) / how.num_items for name, loss in losses.items()}
        return BeniOutput(
            loss=sum(losses.values(), token_mean),
            logits=logits,
            token_loss=token_mean,
            auxiliary=losses,
            targets=targets,
            rows=places[0],
            columns=places[1] + 1,
            samples=sequence.samples(places),
            lengths=None if sequence.images.shape == text.images.shape else sequence.lengths(),
            sink=context.sink,
        )

    @property
    def stages(self) -> dict[str, Stage]:
        """Name -> stage, in the order of the data's way."""
        return {
            "views": self.views,
            "selector": self.selector,
            "resampler": self.resampler,
            "connector": self.connector,
        }

    @property
    def prompt_reads(self) -> frozenset[Reads]:
        """Forms in which stages read what is asked."""
        return PROMPTS & {name for stage in self.stages.values() for name in stage.reads}

    @property
    def uses_prompt(self) -> bool:
        """Whether what an image becomes depends on what is asked about it."""
        return bool(self.prompt_reads)

    @property
    def nested(self) -> Nested | None:
        """The several numbers of visual tokens that training draws from, where a stage has them."""
        return next((stage.nested for stage in self.stages.values() if stage.nested), None)

    @property
    def viewer(self) -> Viewer:
        """What turns a decoded picture into this model's pixels and placeholders."""
        return Viewer(self.views, self.vision.transform, self.row_specs, self.fusion, self.nested)

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Lets the fusion measure the size of visual tokens and of text on a first batch that has both."""
        text = embedded(self, batch.input_ids)
        if batch.pixels is not None:
            context = StageContext(layouts=batch.layouts)
            self.fusion.calibrate(text.embeds[~text.is_image], self.encode_images(batch.pixels, context))

    def row_specs(self, layout: ImageLayout) -> dict[str, list[TokenSpec]]:
        """What is known of the visual tokens of such an image behind each stage: one spec a view behind ``vision``, one
        a row from ``views`` on.

        Raises:
            CompositionError: when a stage cannot work on them.
        """
        if (known := self._row_specs.get(layout)) is not None:  # asked of every image of every step
            return known
        specs = {"vision": [replace(self.vision.spec(size), scale=layout.scale) for size in layout.views]}
        specs["views"] = self.views.rows(layout, specs["vision"])
        for before, stage in pairwise(("views", "selector", "resampler", "connector")):
            specs[stage] = [getattr(self, stage).spec(row) for row in specs[before]]
        if len(self._row_specs) >= KNOWN_LAYOUTS:
            self._row_specs.clear()
        self._row_specs[layout] = specs
        return specs

    def encode_images(
        self,
        pixels: Pixels,
        context: StageContext = StageContext(),
        keys: abc.Sequence[str] = (),
        calls: CallCounts | None = None,
    ) -> VisualTokens:
        """Pixels of all views to visual tokens of the llm's width, one row an image.

        Args:
            pixels: all views, stacked, or a list of them where their sizes differ.
            context: what the stages may know: how the images became views, and, of the rows that views make of them,
                whose they are and what is asked about them.
            keys: hash of each view's pixels, for the feature bank; without it they are hashed here.
            calls: that every rank of a sharded model makes now.
        """
        calls = calls or CallCounts()
        tokens = encoded(self._encode_views, self.views, pixels, keys, context.at("views"), calls.encoder)
        tokens = self.views(tokens, context.at("views"))
        tokens = on_each_grid(self._to_llm, tokens, context, calls.stages)
        return self.views.finish(tokens, context.at("views"))

    def save_pretrained(self, save_directory: str | PathLike[str], *positional: Any, **arguments: Any) -> None:
        """Saves weights under the names of ``state_dict``, not under those of the backbones' published files."""
        super().save_pretrained(save_directory, *positional, **{"save_original_format": False, **arguments})

    def merge_adapters(self) -> None:
        """Adds the adapters to the weights they stand beside, in place: what is saved then needs no peft."""
        adapters.merge(self)

    def save_adapters(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Writes all but frozen backbones, see ``model/adapters.py``; ``state`` is for a sharded model."""
        adapters.save(self, Path(folder), state)

    def load_adapters(self, folder: str | Path) -> None:
        """Reads what ``save_adapters`` has written into a model of the same parts and plan.

        Raises:
            ResumeError: when it does not fit.
        """
        adapters.load(self, Path(folder))

    def sharding_units(self) -> list[nn.Module]:
        """The modules that FSDP shards one by one, bottom-up."""
        return [*self.llm.layers(), *self.fusion.layers(), *self.vision.blocks(), self.resampler]

    def layers_with_gradient(self) -> list[nn.Module]:
        """The repeated layers whose activations the backward pass wants: of the llm and fusion, and of a vision encoder
        that trains.
        """
        return [*self.llm.layers(), *self.fusion.layers(), *(self.vision.blocks() if self._trains_vision() else ())]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, every_n_layers: int = 1
    ) -> None:
        """``gradient_checkpointing_enable`` of transformers: layers with a gradient compute their activations again."""
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ConfigError(
                "gradient checkpointing with use_reentrant=True loses the gradient of what layers are given by name\n"
                "  fix: set gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        for block in self.layers_with_gradient():
            if (before := self._recomputing.pop(block, None)) is not None:
                block.forward = before
        for block in self.layers_with_gradient()[::every_n_layers] if enable else ():
            self._recomputing[block] = block.forward
            block.forward = recomputed(block.forward, gradient_checkpointing_func)

    @property
    def dtype(self) -> torch.dtype:
        """The widest parameter's: transformers loads a saved model in it, and frozen bf16 parts must not round all."""
        return max((p.dtype for p in self.parameters()), key=lambda dtype: dtype.itemsize)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Initial weights are drawn from named streams while building; nothing is left for transformers to draw."""

    def auxiliary_counts(self, layouts: tuple[ImageLayout, ...]) -> dict[str, int]:
        """``<stage>/<name>`` -> rows or tokens that an auxiliary loss is summed over for such images."""
        return auxiliary.counts(self.stages, (self.row_specs(layout) for layout in layouts))

    def calls_of(self, layouts: tuple[ImageLayout, ...]) -> CallCounts:
        """The calls that a micro-batch of such images makes of what ranks share."""
        if not layouts:
            return CallCounts()
        rows = {row.grid for layout in layouts for row in self.row_specs(layout)["views"]}
        sizes = {size for layout in layouts for size in layout.views}
        shared = self._trains_vision() or any(isinstance(p, DTensor) for p in self.vision.parameters())
        return CallCounts(len(sizes) if shared else 0, len(rows))

    def _trains_vision(self) -> bool:
        return any(p.requires_grad for p in self.vision.parameters())

    def _encode_views(
        self,
        pixels: Float[Tensor, "i 3 height width"],
        keys: abc.Sequence[str],
        keep: Bool[Tensor, "i n"] | None = None,
    ) -> VisualTokens:
        """Views of one size through the encoder, or from the bank, which has no views of which patches are left out."""
        inputs = pixels.to(next(self.vision.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_vision()):
            if self.feature_bank is None or keep is not None:
                return self.vision(inputs, keep)
            return self.feature_bank.encode(self.vision, inputs, keys or [pixel_key(view) for view in pixels.cpu()])

    def _to_llm(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """Select, resample, connect."""
        tokens = pictures.kept(self.selector, tokens, context.at("selector"))
        tokens = self.resampler(tokens, context.at("resampler"))
        return self.connector(tokens, context.at("connector"))

    def _blank_image(self, device: torch.device, calls: CallCounts) -> VisualTokens:
        """A blank image that takes the way of any other."""
        height, width = self.vision.transform.tile
        blank = self.viewer(PILImage.new("RGB", (width, height)))
        context = StageContext(layouts=(blank.layout,))
        return self.encode_images(to_device(stack_views(blank.pixels), device), context, calls=calls)

    def _stage(self, group: str, tokens: TokenSpec, **known: Any) -> Stage:
        with torch_stream(self.config.seed, "init", group):
            stage: Stage = build_stage(self.config.parts[group], tokens=tokens, dim_out=self.llm.hidden_size, **known)
            stage.init_weights()
        self.specs[group] = stage.spec(tokens)
        require_gates_kept(stage, tokens, self.specs[group], group, type(stage).__name__)
        return stage


AutoModel.register(BeniConfig, BeniForConditionalGeneration)
AutoModelForImageTextToText.register(BeniConfig, BeniForConditionalGeneration)
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[BeniConfig.model_type] = BeniForConditionalGeneration.__name__  # pipelines
