"""Any Hugging Face vision model as an encoder: ViT families, hierarchical transformers and CNNs.

The architecture is data (a dict in the YAML, or the hub's ``config.json``), so a known model can be built at its real
size without a network. Grid and prefix are read off a dry run on the meta device (``probe.py``).

``layer=-1`` is the model's ``last_hidden_state`` (after a final norm where it has one); ``layer=-k`` is the output of
the k-th last block, before that norm. ``levels`` are further hidden states at the same places, counted as in the
papers that use them: 0 the embeddings, k the output of block k, -1 that of the last block, never normed. Blocks above
the highest that is read are not built at all.

A model at another size than its own interpolates its positions. Where it does so only on request, the request is an
explicit argument of its ``forward``: others swallow it in ``**kwargs`` and ignore it, so the dry run decides.

``keep_cls`` keeps the first prefix token (CLS) in front of the patches, as BLIP-2's Q-Former and Dragonfly have it; the
tokens form no grid then. Registers always go.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from beni.data.images import ImageTransform, as_size, as_triple
from beni.errors import CompositionError, ConfigError, WeightsError
from beni.measure.flops import count_flops
from beni.nn.architecture import known_attention, read_architecture
from beni.nn.batch_norm import settle_statistics
from beni.stage import TokenSpec
from beni.types import VisualTokens
from beni.vision.base import VisionEncoder
from beni.vision.probe import Layout, dry_run, find_layout

SHUFFLES = {"vit_mae": "vit"}
"""Models that hide patches and shuffle the others, and the type that reads the same weights and does not."""

VISION_HALF = {r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": ""}
"""What stands before the names of an encoder's tensors in a whole vision-language model (LLaVA, Mistral 3)."""

OTHER = "choose another option of vision"


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
        attn_implementation: ``sdpa``, ``eager`` or another name that transformers knows.

    Raises:
        ConfigError: no architecture and no name, or a ``model_type`` that transformers does not have.
        CompositionError: E-RES when the model does not accept ``image_size``; E-GRID when its tokens form no grid;
            E-LEVELS when ``layer`` or one of ``levels`` does not exist; E-CLS when there is no CLS token to keep.
    """

    def __init__(
        self,
        *,
        name: str | None,
        weights: Literal["pretrained", "random"],
        architecture: dict[str, Any] | None,
        image_size: int | list[int],
        layer: int,
        levels: list[int],
        keep_cls: bool,
        mean: list[float],
        std: list[float],
        resize: Literal["squash", "pad", "crop"],
        attn_implementation: str,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.layer, self.levels, self.keep_cls = name, weights, layer, levels, keep_cls
        self._transform = ImageTransform(as_size(image_size), as_triple(mean), as_triple(std), resize)
        self._config = read_architecture(name, architecture, group="vision")
        self._read = [] if layer == -1 and not levels else state_indices(self._config, layer, levels)
        self.config = self._config if layer == -1 else truncated(self._config, max(i for i in self._read if i))
        self._attn = attn_implementation
        with torch.device("meta"):
            model = build_encoder(self.config, attn_implementation)
            self._arguments = forward_arguments(model, self._transform.shape)
            with dry_run(model):
                self._layout, self._spec = self._probe(model)
        # weights that load_pretrained() will bring are not drawn first
        device = torch.device("meta") if weights == "pretrained" else torch.get_default_device()
        with device:
            self.model = build_encoder(self.config, attn_implementation)
        settle_statistics(self.model, partial(self._states, self.model), self._transform.shape)

    @property
    def transform(self) -> ImageTransform:
        return self._transform

    def spec(self) -> TokenSpec:
        return self._spec

    def forward(self, pixels: Float[Tensor, "i 3 height width"]) -> VisualTokens:
        prefix = self._layout.prefix
        states = [self._layout.tokens(x, len(pixels)) for x in self._states(self.model, pixels)]
        patches, *levels = (x[:, prefix:] for x in states)
        tokens = VisualTokens.dense(patches, self._layout.grid)
        if levels:
            tokens = replace(tokens, levels=torch.cat(levels, -1))
        return with_cls(tokens, [x[:, :1] for x in states]) if self.keep_cls else tokens

    def flops(self) -> int:
        with torch.device("meta"):
            model = build_encoder(self.config, "eager")
            pixels = torch.empty(1, 3, *self._transform.shape)
            with dry_run(model):
                return count_flops(lambda: self._states(model, pixels))

    def blocks(self) -> list[nn.Module]:
        return repeated_blocks(self.model)

    def load_pretrained(self) -> None:
        if self.name is None:
            raise WeightsError(
                "vision.weights=pretrained, but this vision encoder has no pretrained weights (vision.name is null)\n"
                "  fix: set vision.weights=random, or vision.name to a hub id or folder"
            )
        self.model, report = AutoModel.from_pretrained(
            self.name,
            config=self.config,
            attn_implementation=self._attn,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            key_mapping=VISION_HALF,
            **pooling(self.config),
        )
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

    def _states(self, model: nn.Module, pixels: Tensor) -> list[Tensor]:
        """The hidden state of ``layer``, then those of ``levels``, as the model returns them."""
        if not self._read:
            return [model(pixel_values=pixels, **self._arguments).last_hidden_state]
        out = model(pixel_values=pixels, output_hidden_states=True, **self._arguments)
        return [out.last_hidden_state if i is None else out.hidden_states[i] for i in self._read]

    def _probe(self, model: PreTrainedModel) -> tuple[Layout, TokenSpec]:
        size, who = self._transform.shape, self.name or self.config.model_type
        pixels = torch.empty(2, 3, *size)  # two: a model that packs pictures would hide it with one
        try:
            out = model(pixel_values=pixels, output_hidden_states=True, **self._arguments)
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            own = own_size(self.config)
            raise CompositionError(
                "E-RES",
                f"{who} does not accept {size[0]}x{size[1]} pixels: {str(error).splitlines()[0]}",
                groups=("vision",),
                fix=f"set 'vision.image_size={list(own)}'" if own and own != size else OTHER,
            ) from error
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
        dims = [x.shape[-1] for x in (layout.tokens(s, len(pixels)) for s in self._states(model, pixels))]
        n = layout.rows * layout.columns + self.keep_cls
        return layout, TokenSpec(n, dims[0], None if self.keep_cls else layout.grid, levels=sum(dims[1:]))

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


def with_cls(tokens: VisualTokens, first: list[Float[Tensor, "i 1 d"]]) -> VisualTokens:
    """The patches with a CLS token in front, which stands in the middle and counts as one patch, and no grid.

    Args:
        first: that token in the hidden state of the features, then in each of the levels.
    """
    x = torch.cat([first[0], tokens.x], 1)
    one = torch.ones_like(tokens.size[:, :1])
    return VisualTokens(
        x=x,
        mask=torch.cat([one.bool(), tokens.mask], 1),
        yx=torch.cat([torch.full_like(tokens.yx[:, :1], 0.5), tokens.yx], 1),
        size=torch.cat([one, tokens.size], 1),
        levels=None if tokens.levels is None else torch.cat([torch.cat(first[1:], -1), tokens.levels], 1),
    )


def state_indices(config: PreTrainedConfig, layer: int, levels: list[int]) -> list[int | None]:
    """Which entries of ``hidden_states`` hold ``layer`` and then each of ``levels``; None for the last hidden state.

    Raises:
        CompositionError: E-LEVELS when one does not exist.
    """
    depth = config.to_dict().get("num_hidden_layers")
    if not isinstance(depth, int):
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer} and vision.levels={levels}, but {config.model_type} has no num_hidden_layers to "
            "count in",
            groups=("vision",),
            fix="set vision.layer=-1 'vision.levels=[]'",
        )
    if layer >= 0 or -layer > depth:
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer}, expected -1 (last hidden state) to {-depth}",
            groups=("vision",),
            fix="set vision.layer=-1 or -2",
        )
    if wrong := [level for level in levels if not -depth - 1 <= level <= depth]:
        raise CompositionError(
            "E-LEVELS",
            f"vision.levels={levels}: there is no hidden state {wrong[0]}, expected {-depth - 1} to {depth}",
            groups=("vision",),
            fix=f"set 'vision.levels={sorted({max(1, depth * k // 4) for k in (1, 2, 3, 4)})}'",
        )
    places = [level % (depth + 1) for level in levels]
    return [None if layer == -1 else depth + 1 + layer, *places]


def truncated(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """The config with the first ``depth`` blocks only."""
    # backbones name their stages by number; derived names of the whole model would not fit the shorter one
    fields = {k: v for k, v in config.to_dict().items() if k not in ("stage_names", "out_features", "out_indices")}
    return type(config).from_dict(fields | {"num_hidden_layers": depth})


def own_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """(height, width) in pixels that the model was trained at, where its config says."""
    size = config.to_dict().get("image_size")
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def forward_arguments(model: PreTrainedModel, size: tuple[int, int]) -> dict[str, Any]:
    """What a model must be told of an input of ``size``: to interpolate, where it asks and the size is not its own."""
    asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if asks and size != own_size(model.config) else {}


def pooling(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that leaves out a pooling head, which nobody reads, for models that have the choice."""
    known = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def build_encoder(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """The bare model of ``config`` on torch's current default device, in fp32.

    Raises:
        ConfigError: when transformers has no bare model of that type, or not that attention.
    """
    if type(config) not in MODEL_MAPPING:
        raise ConfigError(
            f"vision.architecture.model_type={config.model_type}: transformers has no model of it that stands alone\n"
            "  fix: set vision.architecture.model_type=clip_vision_model"
        )
    with known_attention("vision", attn_implementation):
        return AutoModel.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.float32, **pooling(config)
        )


def repeated_blocks(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.ModuleList,)) -> list[nn.Module]:
    """The longest list of modules in ``model`` and, where it repeats in every stage, its likes of the other stages."""
    lists = {name: list(module.children()) for name, module in model.named_modules() if isinstance(module, kinds)}
    longest = max(lists, key=lambda name: len(lists[name]), default="")
    alike = [module for name, module in lists.items() if _in_any_stage(name) == _in_any_stage(longest)]
    return [block for module in alike for block in module]


def _in_any_stage(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)
