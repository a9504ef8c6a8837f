"""Any timm model as an encoder (https://github.com/huggingface/pytorch-image-models; optional: ``pip install timm``).

``layer=-1`` is ``forward_features`` (after a final norm where the model has one); ``layer=-k`` and ``levels`` come from
``forward_intermediates``: blocks of a ViT, stages of a CNN, before the norm. Of a CNN ``layer=-2`` is thus the features
at twice the resolution. ``levels`` count as in ``hf.py``: k is the output of block (or stage) k, -1 that of the last.
timm resamples positions while it loads weights, so a ViT takes any size that its patches divide.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import Above, AtLeast
from beni.errors import CompositionError, WeightsError, reason
from beni.nn.batch_norm import settle_statistics
from beni.nn.pixels import ImageTransform, as_size, as_triple
from beni.types import TokenSpec, VisualTokens
from beni.vision.backbone import repeated_blocks
from beni.vision.base import Service, VisionEncoder, refuse_keep, refuse_services
from beni.vision.probe import Layout, find_layout


class TimmVision(VisionEncoder):
    """``(i, 3, height, width) -> (i, n, d)``, prefix tokens removed.

    Args:
        name: timm's name of the model and its weights, ``timm/`` in front or not (with it, it is the hub id).
        weights: ``pretrained`` or ``random``.
        image_size: side of the square input in pixels, or [height, width].
        layer: -1 (last, after the final norm) or -k (k-th last block or stage).
        levels: further blocks at the same places, from 1 or negative; [] for none.
        mean: per-channel mean of pixel values in [0, 1]; null for the one the weights were trained with.
        std: per-channel standard deviation; null likewise.
        resize: ``squash``, ``pad`` or ``crop`` to the input's shape.

    Raises:
        WeightsError: when timm is not installed or has no model of that name.
        CompositionError: E-RES when the model does not accept ``image_size``; E-GRID when its tokens form no grid;
            E-LEVELS when ``layer`` or one of ``levels`` does not exist, or lies on another grid.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: Literal["pretrained", "random"],
        image_size: Annotated[int, AtLeast(1)] | list[Annotated[int, AtLeast(1)]],
        layer: int,
        levels: list[int],
        mean: list[float] | None,
        std: list[Annotated[float, Above(0)]] | None,
        resize: Literal["squash", "pad", "crop"],
    ) -> None:
        super().__init__()
        self.name, self.weights, self.layer = name, weights, layer
        known = self._known()
        self._transform = ImageTransform(
            as_size(image_size), as_triple(mean or known.mean), as_triple(std or known.std), resize
        )
        # only models with a table of positions have a size to be told
        self._size = {"img_size": self._transform.shape} if known.fixed_input_size else {}
        self._unread: list[str] = []
        with torch.device("meta"):
            model: Any = self._create(pretrained=False)
            self._indices = block_indices(name, len(model.feature_info), layer, levels)
            self._layout, self._spec = self._probe(model)
            self._unread = unread(model, lambda: self._features(model, torch.empty(2, 3, *self._transform.shape)))
        device = torch.device("meta") if weights == "pretrained" else torch.get_default_device()
        with device:
            self.model = self._create(pretrained=False)
        settle_statistics(self.model, partial(self._features, self.model), self._transform.shape)

    @property
    def transform(self) -> ImageTransform:
        return self._transform

    def spec(self, size: tuple[int, int] | None = None) -> TokenSpec:
        if size not in (None, self._transform.shape):
            raise CompositionError(
                "E-RES",
                f"{self.name} was made for {self._transform.shape}, it does not take views of {size} pixels",
                groups=("vision", "views"),
                fix="set views=single, anyres or another that cuts tiles of one size",
            )
        return self._spec

    @property
    def patches(self) -> tuple[int, int]:
        return self._layout.grid

    def serve(self, services: frozenset[Service]) -> None:
        refuse_services(services, self.name, "timm's attention can be neither seen nor masked from outside")

    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], keep: Bool[Tensor, "i n"] | None = None
    ) -> VisualTokens:
        refuse_keep(keep, self.name)
        x, *levels = (self._layout.tokens(f, pixels.shape[0]) for f in self._features(self.model, pixels))
        tokens = VisualTokens.dense(x[:, self._layout.prefix :], self._layout.grid)
        return replace(tokens, levels=torch.cat(levels, -1)) if levels else tokens

    def dry_run(self) -> AbstractContextManager[None]:
        return nullcontext()

    def blocks(self) -> list[nn.Module]:
        return repeated_blocks(self.model, (nn.ModuleList, nn.Sequential))

    def load_pretrained(self) -> None:
        try:
            self.model = self._create(pretrained=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"vision.name={self.name}: {reason(error)}\n  fix: set vision.weights=random") from error

    def resolved(self) -> dict[str, Any]:
        return {"mean": list(self._transform.mean), "std": list(self._transform.std)}

    def _known(self) -> Any:
        """timm's record of the weights: input size, mean, std."""
        timm, name = import_timm(), self.name.removeprefix("timm/")
        try:
            record = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
        except RuntimeError:  # the architecture is known, the tag of its weights is not
            record = None
        if record is None:
            architecture = name.partition(".")[0]
            known = timm.list_pretrained(f"{architecture}*") or timm.list_models(f"*{architecture.partition('_')[0]}*")
            raise WeightsError(
                f"vision.name={self.name} is no model of timm {timm.__version__}\n"
                f"  fix: set vision.name={(known or ['vit_base_patch16_224'])[0]}, or another of timm.list_pretrained()"
            )
        return record

    def _create(self, pretrained: bool) -> nn.Module:
        """The model without what features are not made with: classifier, pooling, blocks behind the last one read."""
        name = self.name.removeprefix("timm/")
        model = import_timm().create_model(name, pretrained=pretrained, num_classes=0, **self._size)
        model = model.to(torch.get_default_dtype())
        for part in self._unread:
            model.set_submodule(part, nn.Identity())
        return model

    def _features(self, model: Any, pixels: Tensor) -> list[Tensor]:
        """Features of ``layer``, then maps ``(i, d, h, w)`` of ``levels``."""
        first = [model.forward_features(pixels)] if self.layer == -1 else []
        if not self._indices:
            return first
        wanted = sorted(set(self._indices))  # they come back in the order of the blocks
        maps = model.forward_intermediates(
            pixels, indices=wanted, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return first + [maps[wanted.index(index)] for index in self._indices]

    def _probe(self, model: Any) -> tuple[Layout, TokenSpec]:
        height, width = size = self._transform.shape
        try:
            features, *levels = self._features(model, torch.empty(2, 3, *size))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise CompositionError(
                "E-RES",
                f"{self.name} does not accept {height}x{width} pixels: {reason(error)}",
                groups=("vision",),
                fix=f"set 'vision.image_size={list(self._known().input_size[1:])}'",
            ) from error
        prefix = 0 if features.ndim == 4 else int(getattr(model, "num_prefix_tokens", 0))  # LeViT, Hiera: no such name
        fields = {"patch_size": int(model.feature_info[-1]["reduction"]), "num_register_tokens": prefix}
        layout = find_layout({"last_hidden_state": features}, fields, size, 2)
        if layout is None or layout.prefix != prefix:
            raise CompositionError(
                "E-GRID",
                f"the {tuple(features.shape)} features that {self.name} makes of {height}x{width} pixels form no grid",
                groups=("vision",),
                fix="choose another vision.name",
            )
        if wrong := [tuple(x.shape[2:]) for x in levels if x.shape[2:] != layout.grid]:
            raise CompositionError(
                "E-LEVELS",
                f"vision.levels of {self.name} have grids {wrong}, vision.layer={self.layer} has {layout.grid}",
                groups=("vision",),
                fix="set 'vision.levels=[]'",
            )
        n, dim = layout.rows * layout.columns, layout.tokens(features, 2).shape[-1]
        return layout, TokenSpec(n, dim, layout.grid, levels=sum(x.shape[1] for x in levels))


def unread(model: nn.Module, features: Callable[[], list[Tensor]]) -> list[str]:
    """Names of the modules with parameters that ``features`` neither calls nor reads, the outermost ones."""
    called: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda module, _: called.add(module)) for m in model.modules()]
    with torch.enable_grad():
        torch.stack([x.sum() for x in features()]).sum().backward()
    for hook in hooks:
        hook.remove()

    def idle(module: nn.Module) -> bool:
        return called.isdisjoint(module.modules()) and all(p.grad is None for p in module.parameters())

    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and next(module.parameters(), None) is not None and idle(module):
            found.append(name)
    return found


def block_indices(name: str, depth: int, layer: int, levels: list[int]) -> list[int]:
    """What to ask ``forward_intermediates`` for: ``layer`` unless it is the last, then each of ``levels``.

    Raises:
        CompositionError: E-LEVELS when one does not exist.
    """
    if not -depth <= layer < 0:
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer} of {name}, expected -1 (last features) to {-depth}",
            groups=("vision",),
            fix="set vision.layer=-1",
        )
    if wrong := [level for level in levels if not (1 <= level <= depth or -depth <= level <= -1)]:
        raise CompositionError(
            "E-LEVELS",
            f"vision.levels={levels} of {name}: there is no block {wrong[0]}, expected 1 to {depth} or negative",
            groups=("vision",),
            fix="set 'vision.levels=[-1]'",
        )
    chosen = [level - 1 if level > 0 else level + depth for level in levels]
    return chosen if layer == -1 else [layer + depth, *chosen]


def import_timm() -> ModuleType:
    """The package, which beni does not install.

    Raises:
        WeightsError: when it is missing, or a package that it imports.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        missing = (error.name or "timm").partition(".")[0]  # timm is there and imports what is not: torchvision
        needs = "the package timm" if missing == "timm" else f"{missing}, which timm imports and pip did not install"
        raise WeightsError(f"vision=timm needs {needs} ({error})\n  fix: pip install {missing}") from error
