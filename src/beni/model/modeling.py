"""``BeniForConditionalGeneration``: encode, view, select, resample, connect, fuse, predict.

Parts are built in that order, each from the spec of what the one before it gives, so sizes are never written twice.
Each draws its initial weights from a stream of its own name: swapping one leaves the weights of all others
bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils.generic import ModelOutput

from beni.adapter.base import Adapter
from beni.config.build import build, build_stage
from beni.data.batch.collate import pixel_key, stack_views
from beni.errors import CompositionError
from beni.fusion.base import Fusion
from beni.llm.base import Llm
from beni.model import adapters, quantized
from beni.model.configuration import BeniConfig
from beni.model.loss import Loss, token_loss
from beni.model.predict import Sequences, image_numbers, predict
from beni.model.prompts import prompts
from beni.model.ragged import Calls, on_each_grid, on_each_size
from beni.model.viewer import Viewer, placeholders
from beni.nn.streams import torch_stream
from beni.quantization.base import Quantization
from beni.stage import Nested, Stage, StageContext, TokenSpec
from beni.types import Batch, ImageLayout, Pixels, VisualTokens, to_device
from beni.views.base import Views
from beni.vision.base import VisionEncoder
from beni.vision.feature_bank import FeatureBank

IGNORE = -100
UNPACKED = {"_target_": "beni.quantization.none.NoQuantization"}
"""What models saved before there was quantization have."""


@dataclass
class BeniOutput(ModelOutput):
    """What ``forward`` returns.

    Attributes:
        loss: summed token losses divided by ``num_items``, auxiliary losses added; None without labels.
        logits: ``(k, v)`` at the positions that predict a label, or ``(b, t, v)`` without labels; None where the loss
            was computed without keeping them.
        targets: ``(k,)`` label ids.
        rows: ``(k,)`` batch row of each label.
        columns: ``(k,)`` position of each label in its row.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None


class BeniForConditionalGeneration(PreTrainedModel):
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

    config_class = BeniConfig
    base_model_prefix = "beni"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _supports_sdpa = True

    def __init__(self, config: BeniConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        parts, seed = config.parts, config.seed
        self.feature_bank: FeatureBank | None = None

        with torch_stream(seed, "init", "vision"):
            self.vision: VisionEncoder = build(parts["vision"])
        with torch_stream(seed, "init", "llm"):
            self.llm: Llm = build(parts["llm"])
        self.specs: dict[str, TokenSpec] = {"vision": self.vision.spec()}
        tile, patches = self.vision.transform.tile, self.vision.patches
        self.views: Views = self._stage("views", self.specs["vision"], tile=tile, patches=patches)
        self.selector: Stage = self._stage("selector", self.specs["views"])
        self.resampler: Stage = self._stage("resampler", self.specs["selector"])
        self.connector: Stage = self._stage("connector", self.specs["resampler"])
        self.specs["llm"] = self.specs["connector"]
        if self.specs["llm"].dim != self.llm.hidden_size:
            raise CompositionError(
                "E-SPACE",
                f"visual tokens arrive {self.specs['llm'].dim} wide, the llm is {self.llm.hidden_size} wide",
                groups=("connector", "llm"),
                fix="set connector=auto",
            )
        with torch_stream(seed, "init", "fusion"):
            self.fusion: Fusion = build(parts["fusion"], self.specs["llm"], self.llm.hidden_size)
            self.fusion.init_weights()
        self._check_views()

        if pretrained:
            for name in ("vision", "llm"):
                if parts[name].get("weights") == "pretrained":
                    getattr(self, name).load_pretrained()
        self.post_init()  # before the adapters: transformers would draw their weights anew, zeros included
        self.all_tied_weights_keys |= self.llm.tied_keys("llm.")
        self.quantization: Quantization = build(parts.get("quantization", UNPACKED))
        quantized.quantize(self)
        self.adapter: Adapter = build(parts["adapter"])
        adapters.inject(self)

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        pixels: Pixels | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        cu_seqlens: Int[Tensor, "s_plus_1"] | None = None,
        longest: int | None = None,
        layouts: tuple[ImageLayout, ...] = (),
        owners: Int[Tensor, "k"] | None = None,
        pixel_keys: Sequence[str] = (),
        visual: VisualTokens | None = None,
        num_items: int | Tensor | None = None,
        step: int = 0,
        calls: Calls | None = None,
        loss: Loss = "full",
        **_: Any,
    ) -> BeniOutput:
        """One micro-batch to its loss.

        Args:
            pixels: all views, stacked, or a list of them where their sizes differ.
            cu_seqlens: borders of the segments of one packed row; without it every row is a sample of its own.
            longest: at least as long as any segment; the row when None.
            layouts: how each image became views; none when each image is one view.
            owners: the sample (segment or row) of each image; without it every sample has as many.
            pixel_keys: hash of each view's pixels, for the feature bank; without it they are hashed here.
            visual: visual tokens already encoded, instead of ``pixels``, one row an image.
            num_items: what the summed loss is divided by; the labels of this micro-batch when None.
            step: optimizer step, for stages with a schedule.
            calls: that every rank of a sharded model makes now; one without images encodes a blank one, which counts
                for nothing.
            loss: how head and loss are computed (model/loss.py); only ``full`` is sure to return logits.

        Raises:
            DataError: E-COUNT when placeholders and visual tokens differ in number.
        """
        context = StageContext(step=step)
        embeds, is_image = self._embed(input_ids)
        if visual is None and pixels is not None:
            if self.uses_prompt:
                asked = ~is_image if labels is None else ~is_image & (labels == IGNORE)
                asked = asked if attention_mask is None else asked & attention_mask.bool()
                context.prompt = prompts(embeds, asked, cu_seqlens, owners, len(layouts) or len(pixels))
            visual = self.encode_images(pixels, layouts, context, pixel_keys, calls)
        embeds = self.fusion(embeds, is_image, visual)
        if visual is None and calls is not None and calls.stages:
            embeds = embeds + self._blank(embeds.device, calls)
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask)
        if cu_seqlens is None and attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        supervised = None if labels is None else labels != IGNORE
        images = image_numbers(is_image, visual if self.fusion.sees_ahead else None)
        sequences = Sequences(embeds, images, supervised, position_ids, attention_mask, cu_seqlens, longest)
        if labels is None:
            return BeniOutput(logits=predict(self.llm, self.fusion, sequences))

        rows, before = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)  # label at t is predicted at t - 1
        targets = labels[rows, before + 1]
        total, logits = token_loss(self.llm, self.fusion, sequences, (rows, before), targets, loss)
        whole = total / (len(targets) if num_items is None else num_items)
        for auxiliary in context.aux.values():
            whole = whole + auxiliary
        return BeniOutput(loss=whole, logits=logits, targets=targets, rows=rows, columns=before + 1)

    @property
    def uses_prompt(self) -> bool:
        """Whether what an image becomes depends on what is asked about it."""
        return any(stage.uses_prompt for stage in (self.views, self.selector, self.resampler, self.connector))

    @property
    def nested(self) -> Nested | None:
        """The several numbers of visual tokens that training draws from, where a stage has them."""
        return next((stage.nested for stage in (self.selector, self.resampler, self.connector) if stage.nested), None)

    @property
    def viewer(self) -> Viewer:
        """What turns a decoded picture into this model's pixels and placeholders."""
        return Viewer(self.views, self.vision.transform, self.row_specs, self.fusion, self.nested)

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Lets the fusion measure the size of visual tokens and of text on a first batch that has both."""
        embeds, is_image = self._embed(batch.input_ids)
        if batch.pixels is not None:
            self.fusion.calibrate(embeds[~is_image], self.encode_images(batch.pixels, batch.layouts))

    def row_specs(self, layout: ImageLayout) -> dict[str, list[TokenSpec]]:
        """What is known of the visual tokens of such an image behind each stage: one spec a view behind ``vision``, one
        a row from ``views`` on.

        Raises:
            CompositionError: when a stage cannot work on them.
        """
        specs = {"vision": [replace(self.vision.spec(size), scale=layout.scale) for size in layout.views]}
        specs["views"] = self.views.rows(layout, specs["vision"])
        for before, stage in pairwise(("views", "selector", "resampler", "connector")):
            specs[stage] = [getattr(self, stage).spec(row) for row in specs[before]]
        return specs

    def encode_images(
        self,
        pixels: Pixels,
        layouts: tuple[ImageLayout, ...] = (),
        context: StageContext | None = None,
        pixel_keys: Sequence[str] = (),
        calls: Calls | None = None,
    ) -> VisualTokens:
        """Pixels of all views to visual tokens of the llm's width, one row an image.

        Args:
            pixels: all views, stacked, or a list of them where their sizes differ.
            layouts: how each image became views; none when each image is one view.
            context: what the stages may know; its prompt has one row an image.
            pixel_keys: as in ``forward``.
            calls: as in ``forward``.
        """
        calls = calls or Calls()
        context = context or StageContext()
        context.layouts = layouts
        if layouts and (context.prompt is not None or self.nested is not None):
            rows = [i for i, one in enumerate(layouts) for _ in self.row_specs(one)["views"]]
            context.scales = tuple(layouts[i].scale for i in rows)
            if context.prompt is not None:
                context.prompt = context.prompt.select(torch.tensor(rows, device=context.prompt.embeds.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_vision()):
            tokens = on_each_size(self._encode_views, pixels, pixel_keys, calls.encoder)
        tokens = self.views(tokens, context)
        tokens = on_each_grid(self._to_llm, tokens, context, calls.stages)
        return self.views.finish(tokens, context)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "b t"],
        pixels: Pixels | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        layouts: tuple[ImageLayout, ...] = (),
        owners: Int[Tensor, "k"] | None = None,
        visual: VisualTokens | None = None,
        **options: Any,
    ) -> Int[Tensor, "b new"]:
        """New token ids after left-padded prompts, with a key/value cache.

        ``options`` go to ``transformers``' ``generate`` (``max_new_tokens``, ``do_sample``, ``eos_token_id`` ...).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeds, is_image = self._embed(input_ids)
        if visual is None and pixels is not None:
            context = StageContext()
            if self.uses_prompt:
                context.prompt = prompts(embeds, ~is_image & mask.bool(), None, owners, len(layouts) or len(pixels))
            visual = self.encode_images(pixels, layouts, context)
        embeds, blocks = self.fusion(embeds, is_image, visual), None
        if self.fusion.sees_ahead:
            borders = torch.arange(len(mask) + 1, device=mask.device) * mask.shape[1]
            images = image_numbers(is_image, visual).flatten()
            blocks = self.fusion.blocks(images, mask.flatten().bool(), borders).view_as(mask)
        return self.llm.generate(embeds, mask, blocks, **options)

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
        return [*self.llm.layers(), *self.vision.blocks(), self.resampler]

    def layers_with_gradient(self) -> list[nn.Module]:
        """The repeated layers whose activations the backward pass wants: of the llm, and of a vision encoder that
        trains.
        """
        return [*self.llm.layers(), *(self.vision.blocks() if self._trains_vision() else ())]

    @property
    def dtype(self) -> torch.dtype:
        """Of the widest parameter: transformers loads a saved model in it, and frozen bf16 parts must not round all."""
        return max((p.dtype for p in self.parameters()), key=lambda dtype: dtype.itemsize)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.model.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Initial weights are drawn from named streams while building; nothing is left for transformers to draw."""

    def _embed(self, input_ids: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """Text embeddings, and where the placeholders are."""
        is_image = input_ids == self.config.image_token_id
        # the placeholder's id may lie beyond the embedding table; its position is overwritten anyway
        return self.llm.embed(input_ids.masked_fill(is_image, 0)), is_image

    def calls_of(self, layouts: tuple[ImageLayout, ...]) -> Calls:
        """The calls that a micro-batch of such images makes of what ranks share."""
        if not layouts:
            return Calls()
        rows = {row.grid for layout in layouts for row in self.row_specs(layout)["views"]}
        sizes = {size for layout in layouts for size in layout.views}
        shared = self._trains_vision() or any(isinstance(p, DTensor) for p in self.vision.parameters())
        return Calls(len(sizes) if shared else 0, len(rows))

    def _trains_vision(self) -> bool:
        return any(p.requires_grad for p in self.vision.parameters())

    def _encode_views(self, pixels: Float[Tensor, "i 3 height width"], keys: Sequence[str]) -> VisualTokens:
        """Views of one size through the encoder, or from the bank."""
        inputs = pixels.to(next(self.vision.parameters()).dtype)
        if self.feature_bank is None:
            return self.vision(inputs)
        return self.feature_bank.encode(self.vision, inputs, keys or [pixel_key(view) for view in pixels.cpu()])

    def _to_llm(self, tokens: VisualTokens, context: StageContext) -> VisualTokens:
        """Select, resample, connect."""
        return self.connector(self.resampler(self.selector(tokens, context), context), context)

    def _blank(self, device: torch.device, calls: Calls) -> Tensor:
        """Zero, made of a blank image that takes the way of any other."""
        height, width = self.vision.transform.tile
        blank = self.viewer(PILImage.new("RGB", (width, height)))
        visual = self.encode_images(to_device(stack_views(blank.pixels), device), (blank.layout,), calls=calls)
        places = torch.ones(1, int(visual.mask.sum()), dtype=torch.bool, device=device)
        return self.fusion(visual.x.new_zeros(*places.shape, visual.x.shape[-1]), places, visual).sum() * 0.0

    def _stage(self, group: str, tokens: TokenSpec, **known: Any) -> Stage:
        with torch_stream(self.config.seed, "init", group):
            stage: Stage = build_stage(self.config.parts[group], tokens=tokens, dim_out=self.llm.hidden_size, **known)
            stage.init_weights()
        self.specs[group] = stage.spec(tokens)
        return stage

    def _check_views(self) -> None:
        """Every kind of image must pass all stages, and leave the llm a position for text."""
        viewer, limit = self.viewer, self.llm.max_positions
        scales = range(1 + (self.nested.drawn if self.nested else 0))
        layouts = [replace(layout, scale=scale) for layout in self.views.extremes() for scale in scales]
        taken = max(placeholders(viewer.markup(layout)) for layout in layouts)
        if limit is not None and taken >= limit:
            raise CompositionError(
                "E-TOKENS",
                f"one image takes up to {taken} positions, the llm has {limit}",
                groups=("resampler", "llm"),
                fix="use resampler=perceiver, a smaller vision.image_size or fewer views",
            )


def _positions(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


AutoConfig.register("beni", BeniConfig)
AutoModel.register(BeniConfig, BeniForConditionalGeneration)
AutoModelForImageTextToText.register(BeniConfig, BeniForConditionalGeneration)
