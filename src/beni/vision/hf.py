"""Any Hugging Face vision model as an encoder: ViT families, hierarchical transformers and CNNs.

The architecture is data (a dict in the YAML, or the hub's ``config.json``), so a known model can be built at its real
size without a network. Token count, grid and prefix are read off a dry run on the meta device. ``layer=-1`` is the
model's ``last_hidden_state`` (after a final norm where it has one); ``layer=-k`` is the output of the k-th last block,
before that norm, and the blocks above are not built at all.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from beni.data.images import ImageTransform, as_triple
from beni.errors import CompositionError, WeightsError
from beni.measure.flops import count_flops
from beni.nn.architecture import known_attention, read_architecture
from beni.stage import TokenSpec
from beni.types import VisualTokens
from beni.vision.base import VisionEncoder


class HFVision(VisionEncoder):
    """``(i, 3, size, size) -> (i, n, d)``.

    Args:
        name: hub id or local folder of the pretrained model; ``null`` when there is none.
        weights: ``pretrained`` or ``random``.
        architecture: fields of the Hugging Face config, ``model_type`` among them; ``null`` reads those of ``name``.
        image_size: side of the square input in pixels; must be one the model accepts.
        layer: which hidden state to take, -1 (last, after the final norm) or -k (k-th last block).
        mean: per-channel mean of pixel values in [0, 1].
        std: per-channel standard deviation.
        resize: ``squash``, ``pad`` or ``crop`` to the square.
        attn_implementation: ``sdpa``, ``eager`` or another name that transformers knows.

    Raises:
        ConfigError: no architecture and no name, or a ``model_type`` that transformers does not have.
        CompositionError: E-RES when the model does not accept ``image_size``; E-LEVELS when ``layer`` does not exist.
    """

    def __init__(
        self,
        *,
        name: str | None,
        weights: Literal["pretrained", "random"],
        architecture: dict[str, Any] | None,
        image_size: int,
        layer: int,
        mean: list[float],
        std: list[float],
        resize: Literal["squash", "pad", "crop"],
        attn_implementation: str,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.layer, self.image_size = name, weights, layer, image_size
        self._transform = ImageTransform(image_size, as_triple(mean), as_triple(std), resize)
        self._config = read_architecture(name, architecture, group="vision")
        self.config = truncated(self._config, layer)
        self._attn = attn_implementation
        with torch.device("meta"):
            self._spec = self._probe(build_encoder(self.config, attn_implementation))
        assert self._spec.grid is not None  # a probe that finds no grid raises
        self._grid = self._spec.grid
        # weights that load_pretrained() will bring are not drawn first
        device = torch.device("meta") if weights == "pretrained" else torch.get_default_device()
        with device:
            self.model = build_encoder(self.config, attn_implementation)

    @property
    def transform(self) -> ImageTransform:
        return self._transform

    def spec(self) -> TokenSpec:
        return self._spec

    def forward(self, pixels: Float[Tensor, "i 3 height width"]) -> VisualTokens:
        rows, columns = self._grid
        x = hidden_state(self.model, pixels, self.layer)
        return VisualTokens.dense(x[:, x.shape[1] - rows * columns :], self._grid)

    def flops(self) -> int:
        with torch.device("meta"):
            model = build_encoder(self.config, "eager")
            pixels = torch.empty(1, 3, self.image_size, self.image_size)
        return count_flops(lambda: hidden_state(model, pixels, self.layer))

    def blocks(self) -> list[nn.Module]:
        return repeated_blocks(self.model)

    def load_pretrained(self) -> None:
        if self.name is None:
            raise WeightsError(
                "vision.weights=pretrained, but this vision encoder has no pretrained weights (vision.name is null)\n"
                "  fix: set vision.weights=random, or vision.name to a hub id or folder"
            )
        self.model = AutoModel.from_pretrained(
            self.name, config=self.config, attn_implementation=self._attn, dtype=torch.float32, trust_remote_code=False
        )

    def resolved(self) -> dict[str, Any]:
        return {"architecture": self._config.to_diff_dict() | {"model_type": self._config.model_type}}

    def _probe(self, model: PreTrainedModel) -> TokenSpec:
        try:
            x = hidden_state(model, torch.empty(1, 3, self.image_size, self.image_size), self.layer)
        except (ValueError, RuntimeError) as error:
            raise CompositionError(
                "E-RES",
                f"{self.name or self.config.model_type} does not accept {self.image_size}x{self.image_size} pixels: "
                f"{str(error).splitlines()[0]}",
                groups=("vision",),
                fix=f"set vision.image_size={self.config.to_dict().get('image_size', 'the size it was trained at')}",
            ) from error
        tokens, dim = x.shape[1:]
        patch = self.config.to_dict().get("patch_size")
        side = self.image_size // patch if isinstance(patch, int) else int(tokens**0.5)
        if side * side > tokens:
            raise CompositionError(
                "E-GRID",
                f"{self.name or self.config.model_type} gives {tokens} tokens, fewer than a {side}x{side} grid",
                groups=("vision",),
            )
        return TokenSpec(n=side * side, dim=dim, grid=(side, side))


def hidden_state(model: nn.Module, pixels: Tensor, layer: int) -> Float[Tensor, "i n d"]:
    """The chosen hidden state of a Hugging Face vision model, prefix tokens included."""
    if layer == -1:
        x = model(pixel_values=pixels).last_hidden_state
    else:  # the blocks above the chosen one were not built: the last hidden state is the one
        x = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def truncated(config: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """The config without the blocks above hidden state ``layer``."""
    depth = config.to_dict().get("num_hidden_layers")
    if layer >= 0 or (depth is not None and -layer > depth):
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer}, expected -1 (last hidden state) to {-(depth or 1)}",
            groups=("vision",),
            fix="set vision.layer=-1 or -2",
        )
    if layer == -1:
        return config
    if depth is None:
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer}, but {config.model_type} has no num_hidden_layers to count back from",
            groups=("vision",),
            fix="set vision.layer=-1",
        )
    # backbones name their stages by number; derived names of the whole model would not fit the shorter one
    fields = {k: v for k, v in config.to_dict().items() if k not in ("stage_names", "out_features", "out_indices")}
    return type(config).from_dict(fields | {"num_hidden_layers": depth + layer + 1})


def build_encoder(config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """The bare model of ``config`` on torch's current default device, in fp32."""
    with known_attention("vision", attn_implementation):
        return AutoModel.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The longest ``ModuleList`` of ``model``: its repeated layers (the first one found among equals)."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=nn.ModuleList()))
