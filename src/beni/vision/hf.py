"""Any Hugging Face vision model as an encoder: ViT families, hierarchical transformers and CNNs.

The architecture is data (a dict in the YAML, or the hub's ``config.json``), so a known model can be built at its real
size without a network. Grid and prefix are read off a dry run on the meta device (``probe.py``).

``layer=-1`` is the model's ``last_hidden_state`` (after a final norm where it has one); ``layer=-k`` is the output of
the k-th last block, before that norm. ``levels`` are further hidden states at the same places, counted as in the
papers that use them: 0 the embeddings, k the output of block k, -1 that of the last block, never normed. Blocks above
the highest that is read are not built at all.

A model at another size than its own interpolates its positions. Where it does so only on request, the request is an
explicit argument of its ``forward``: others swallow it in ``**kwargs`` and ignore it, so the dry run decides.

Side channels and kept patches (``VisionEncoder.serve``) are those of ``visit.py``: any model can give and take them
whose last block, or all of whose blocks, compute attention through transformers' table of attention functions.

``keep_cls`` keeps the first prefix token (CLS) in front of the patches, as BLIP-2's Q-Former and Dragonfly have it; the
tokens form no grid then. Registers always go.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from beni.config.ranges import Above, AtLeast
from beni.errors import CompositionError, WeightsError, reason
from beni.nn.architecture import choose_attention, read_architecture
from beni.nn.batch_norm import settle_statistics
from beni.nn.pixels import ImageTransform, as_size, as_triple
from beni.types import TokenSpec, VisualTokens
from beni.vision.backbone import build_encoder, encoder_class, model_inputs, own_size, pooling, repeated_blocks
from beni.vision.base import Service, VisionEncoder, no_service, refuse_keep
from beni.vision.dry_visit import IMAGES, NotVisited, key_width, states_before
from beni.vision.hidden_states import state_indices, truncated
from beni.vision.probe import Layout, dry_run, find_layout
from beni.vision.visit import Reading, Visit, install, kept_places, side_channels, standing, visiting

SHUFFLES = {"vit_mae": "vit"}
"""Models that hide patches and shuffle the others, and the type that reads the same weights and does not."""

VISION_HALF = {r"^(?:model\.)?(?:vision_tower|vision_model)\.(?:vision_model\.)?": ""}
"""What stands before the names of an encoder's tensors in a whole vision-language model (LLaVA, Mistral 3, BLIP-2)."""

OTHER = "choose another option of vision"

UNACCEPTED = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, AssertionError, ImportError)
"""What models raise at pixels of a shape that they do not take."""


@dataclass(frozen=True)
class ProbeResult:
    """What a dry run at one size showed."""

    layout: Layout
    spec: TokenSpec


PROBED: dict[tuple[Any, ...], ProbeResult] = {}
"""What encoders of this process were seen to do: a run builds the same one for its plan, its costs and its training."""


class HFVision(VisionEncoder):
    """``(i, 3, height, width) -> (i, n, d)``.

    Args:
        name: hub id or local folder of the pretrained model; ``null`` when there is none.
        weights: ``pretrained`` or ``random``.
        architecture: fields of the Hugging Face config, ``model_type`` among them; ``null`` reads those of ``name``.
        image_size: side of the square input in pixels, or [height, width]; must be one the model accepts.
        layer: which hidden state to take, -1 (last, after the final norm) or -k (k-th last block).
        levels: further hidden states, for parts that read several layers; [] for none.
        keep_cls: keep the CLS token in front of the patches.
        mean: per-channel mean of pixel values in [0, 1].
        std: per-channel standard deviation.
        resize: ``squash``, ``pad`` or ``crop`` to the input's shape.
        attn_implementation: ``auto`` (``sdpa`` where transformers' class has it, else ``eager``) or a name that
            transformers knows.

    Raises:
        ConfigError: no architecture and no name, a ``model_type`` that transformers does not have, or an attention
            that its class does not have.
        CompositionError: E-RES when the model does not accept ``image_size``; E-GRID when its tokens form no grid;
            E-LEVELS when ``layer`` or one of ``levels`` does not exist; E-CLS when there is no CLS token to keep.
    """

    def __init__(
        self,
        *,
        name: str | None,
        weights: Literal["pretrained", "random"],
        architecture: dict[str, Any] | None,
        image_size: Annotated[int, AtLeast(1)] | list[Annotated[int, AtLeast(1)]],
        layer: int,
        levels: list[int],
        keep_cls: bool,
        mean: list[float],
        std: list[Annotated[float, Above(0)]],
        resize: Literal["squash", "pad", "crop"],
        attn_implementation: str,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.layer, self.levels, self.keep_cls = name, weights, layer, levels, keep_cls
        self._transform = ImageTransform(as_size(image_size), as_triple(mean), as_triple(std), resize)
        self._config = read_architecture(name, architecture, group="vision")
        self._read = [] if layer == -1 and not levels else state_indices(self._config, layer, levels)
        self.config = self._config if layer == -1 else truncated(self._config, max(i for i in self._read if i))
        self._attn = choose_attention(encoder_class(self.config), attn_implementation, "vision")
        self._probed: dict[tuple[int, int], ProbeResult] = {}
        self._services: frozenset[Service] = frozenset()
        self._key_width, self._before = 0, [False] * max(1, len(self._read))
        # weights that load_pretrained() will bring are not drawn first
        device = torch.device("meta") if weights == "pretrained" else torch.get_default_device()
        if device.type != "meta":
            self._at(self._transform.shape)  # what cannot be is refused before its weights are drawn
        with device:
            self.model = in_reading_order(build_encoder(self.config, self._attn))
        self._at(self._transform.shape, self.model)
        settle_statistics(self.model, partial(self._states, self.model), self._transform.shape)

    @property
    def transform(self) -> ImageTransform:
        return self._transform

    def spec(self, size: tuple[int, int] | None = None) -> TokenSpec:
        spec = self._at(size or self._transform.shape).spec
        keys = self._key_width if "keys" in self._services else 0
        return replace(spec, attn="attn" in self._services, keys=keys)

    @property
    def patches(self) -> tuple[int, int]:
        return self._at(self._transform.shape).layout.grid

    @property
    def layout(self) -> Layout:
        """Where patches and other tokens stand in the features of a view of the configured size."""
        return self._at(self._transform.shape).layout

    def serve(self, services: frozenset[Service]) -> None:
        if not services:
            return
        self._services = services
        with torch.device("meta"):
            model = self._visited(build_encoder(self.config, self._attn))
            with dry_run(model):
                for service in sorted(services):
                    self._try(model, service)
        self._visited(self.model)

    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], keep: Bool[Tensor, "i n"] | None = None
    ) -> VisualTokens:
        # of an exported program ``len`` would fix the number of views
        images, layout = pixels.shape[0], self._at((pixels.shape[2], pixels.shape[3])).layout
        visit = self._visit(layout, keep)
        with visiting(visit):
            states = [layout.tokens(x, images) for x in self._states(self.model, pixels)]
        if visit is not None and visit.places is not None:
            rows, places = torch.arange(images, device=pixels.device)[:, None], visit.places.to(pixels.device)
            states = [x[rows, places] if raw else x for x, raw in zip(states, self._before, strict=True)]
        x, *levels = states
        more = {"levels": torch.cat(levels, -1)} if levels else {}
        if visit is not None and visit.reading is not None:
            more |= side_channels(visit, layout, images, self._services)
        tokens = standing(x[:, layout.prefix :], layout, visit, keep)
        tokens = replace(tokens, **{name: tensor[:, layout.prefix :] for name, tensor in more.items()})
        return with_cls(tokens, x[:, :1], {k: tensor[:, :1] for k, tensor in more.items()}) if self.keep_cls else tokens

    def dry_run(self) -> AbstractContextManager[None]:
        return dry_run(self.model)

    def blocks(self) -> list[nn.Module]:
        return repeated_blocks(self.model)

    def load_pretrained(self) -> None:
        if self.name is None:
            raise WeightsError(
                "vision.weights=pretrained, but this vision encoder has no pretrained weights (vision.name is null)\n"
                "  fix: set vision.weights=random, or vision.name to a hub id or folder"
            )
        model, report = AutoModel.from_pretrained(
            self.name,
            config=self.config,
            attn_implementation=self._attn,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            key_mapping=VISION_HALF,
            **pooling(self.config),
        )
        self.model = in_reading_order(self._visited(model))
        # transformers draws at random what it does not find; the token for masked training is never read
        if missing := sorted(name for name in report["missing_keys"] if "mask_token" not in name):
            raise WeightsError(
                f"{self.name} has no weights for {missing[0]}"
                + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
                + f" of a {self.config.model_type}\n"
                "  fix: set vision.name to a model of that architecture, or vision.architecture=null to read its own"
            )

    def resolved(self) -> dict[str, Any]:
        return {"architecture": self._config.to_diff_dict() | {"model_type": self._config.model_type}}

    def _visited(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model, whose blocks can be visited where somebody asks for that."""
        if self._services:
            blocks = repeated_blocks(model)
            last = self._read[0] if self._read else None
            # a hidden state is the output of the block of its number; without one, the last block's
            install(blocks, blocks[(last or len(blocks)) - 1], self._attn)
        return model

    def _visit(self, layout: Layout, keep: Bool[Tensor, "i n"] | None) -> Visit | None:
        """What blocks are to be told of a pass; None where nothing was asked for."""
        if "keep" not in self._services:
            refuse_keep(keep, self.name or self.config.model_type)
        if not self._services:
            return None
        patches = layout.rows * layout.columns
        if keep is not None and keep.shape[1] != patches:
            raise ValueError(f"keep tells of {keep.shape[1]} patches, a view of this size has {patches}")
        reading = Reading(cls=layout.prefix > 0) if self._services & {"attn", "keys"} else None
        return Visit(reading=reading) if keep is None else Visit(*kept_places(keep, layout.prefix), reading)

    def _try(self, model: PreTrainedModel, service: Service) -> None:
        """Raises:
        CompositionError: E-SIDE or E-KEEP when a dry run shows that the model cannot do it.
        """
        shape = self._transform.shape
        layout, pixels = self._at(shape).layout, torch.empty(IMAGES, 3, *shape)

        def run(visit: Visit) -> list[Tensor]:
            with visiting(visit):
                return self._states(model, pixels)

        try:
            if service == "keep":
                self._before = states_before(run, layout, self._attn)
            else:
                self._key_width = key_width(run, layout)
        except NotVisited as reason:
            raise no_service(service, self.name or self.config.model_type, str(reason)) from reason

    def _states(self, model: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
        """The hidden state of ``layer``, then those of ``levels``, as the model returns them."""
        return self._of(model(**model_inputs(model, pixels), output_hidden_states=bool(self._read)))

    def _of(self, out: Mapping[str, Any]) -> list[Tensor]:
        states = [out["last_hidden_state"] if i is None else out["hidden_states"][i] for i in self._read]
        return states or [out["last_hidden_state"]]

    def _at(self, size: tuple[int, int], built: PreTrainedModel | None = None) -> ProbeResult:
        """What the model makes of views of (height, width) pixels; found out once for each size.

        Args:
            built: the model, where it has been built without weights and nothing else has been done to it.
        """
        if size not in self._probed:
            read = (self.name, self._attn, self.keep_cls, *self._read)
            key = (size, read, self.config.model_type, self.config.to_json_string())
            if key not in PROBED:
                with torch.device("meta"):
                    model = built or build_encoder(self.config, self._attn)
                    with dry_run(model):
                        PROBED[key] = self._probe(model, size)
            self._probed[size] = PROBED[key]
        return self._probed[size]

    def _probe(self, model: PreTrainedModel, size: tuple[int, int]) -> ProbeResult:
        who = self.name or self.config.model_type
        pixels = torch.empty(2, 3, *size)  # two: a model that packs pictures would hide it with one
        try:
            out = model(**model_inputs(model, pixels), output_hidden_states=True)
        except UNACCEPTED as error:
            own = own_size(self.config)
            raise CompositionError(
                "E-RES",
                f"{who} does not accept {size[0]}x{size[1]} pixels: {reason(error)}",
                groups=("vision",),
                fix=f"set 'vision.image_size={list(own)}'" if own and own != size else OTHER,
            ) from error
        if out.get("last_hidden_state") is None:
            raise CompositionError(
                "E-GRID",
                f"{who} of transformers returns {', '.join(out)} and no last_hidden_state",
                groups=("vision",),
                fix=OTHER,
            )
        layout, kind = find_layout(out, self.config.to_dict(), size, len(pixels)), self.config.model_type
        if layout is None or kind in SHUFFLES:
            raise CompositionError(
                "E-GRID",
                f"the {tuple(out.last_hidden_state.shape)} features that {who} makes of {size[0]}x{size[1]} pixels "
                "form no grid of patches in reading order",
                groups=("vision",),
                fix=f"set vision.architecture.model_type={SHUFFLES[kind]}" if kind in SHUFFLES else OTHER,
            )
        if self.keep_cls and not layout.prefix:
            raise CompositionError(
                "E-CLS", f"{who} has no CLS token to keep", groups=("vision",), fix="set vision.keep_cls=false"
            )
        if self._read:
            self._check_states(model, out.hidden_states, layout, len(pixels))
        dims = [x.shape[-1] for x in (layout.tokens(s, len(pixels)) for s in self._of(out))]
        n = layout.rows * layout.columns + self.keep_cls
        return ProbeResult(layout, TokenSpec(n, dims[0], None if self.keep_cls else layout.grid, levels=sum(dims[1:])))

    def _check_states(self, model: PreTrainedModel, states: tuple[Tensor, ...] | None, layout: Layout, i: int) -> None:
        """Hidden states must be the blocks' outputs, one each, at the places of the patches."""
        found = [layout.tokens(x, i).shape[1] for x in states or ()]
        if len(found) != model.config.to_dict()["num_hidden_layers"] + 1 or set(found) != {layout.n}:
            raise CompositionError(
                "E-LEVELS",
                f"the hidden states of {self.name or self.config.model_type} are not its blocks' outputs on the "
                f"{layout.rows}x{layout.columns} grid: they have {found} tokens",
                groups=("vision",),
                fix="set vision.layer=-1 'vision.levels=[]'",
            )


def in_reading_order(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose blocks are given patches that lie in memory one after another.

    Patches come out of a convolution channel by channel, and every sum and norm of a ViT without a CLS token keeps that
    order: each norm copied them, in 5 of 47 ms that a SigLIP-so400m took for 16 pictures on an H200.
    """
    for block in repeated_blocks(model)[:1]:
        block.register_forward_pre_hook(_contiguous)
    return model


def _contiguous(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) and x.ndim == 3 else x for x in arguments)


def with_cls(tokens: VisualTokens, first: Float[Tensor, "i 1 d"], more: Mapping[str, Tensor]) -> VisualTokens:
    """The patches with a CLS token in front, which stands in the middle and counts as one patch, and no grid.

    Args:
        first: that token.
        more: its other fields, the same that the patches have.
    """
    one = torch.ones_like(tokens.size[:, :1])
    cls = VisualTokens.fresh(first, one.bool(), torch.full_like(tokens.yx[:, :1], 0.5), one)
    return VisualTokens.cat([replace(cls, **more), tokens])
