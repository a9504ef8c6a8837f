"""Several encoders that look at one picture, each through its own image transform.

``channels``: features side by side at the same place, on a common grid (Prismatic, arXiv 2402.07865, with DINOv2 and
SigLIP; Eagle, arXiv 2408.15998). ``interleave``: token by token in turn (Mixture of Features, arXiv 2401.06209, which
has an MLP for each encoder before; here the connector is shared, so the widths must be equal). ``sequence``: one after
the other. ``sources``: the first encoder's tokens go on, and those of all come along for parts that read them
(``resampler=sva``, Cambrian-1, arXiv 2406.16860).

Features are brought to a grid by bilinear interpolation between patch centres, antialiased where the grid gets coarser;
Eagle aligns the corners of the grids instead, which moves every token but the middle one. ``norm`` standardises each
token of each encoder first (LayerNorm without weights): else the encoder with the larger features dominates.

The pixels of all encoders travel as one tensor, stacked on a canvas of zeros, so that nothing else in beni has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL.Image import Image as Picture
from PIL.Image import new as new_picture
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError, ConfigError
from beni.nn.pixels import PictureTransform
from beni.nn.streams import torch_stream
from beni.types import TokenSpec, VisualTokens
from beni.vision.base import Service, VisionEncoder, no_service, refuse_keep


@dataclass(frozen=True)
class StackedTransform(PictureTransform):
    """The pixels of several encoders below one another, left-aligned, zeros to the right of the narrower ones."""

    parts: tuple[PictureTransform, ...]

    @property
    def shape(self) -> tuple[int, int]:
        heights, widths = zip(*(part.shape for part in self.parts), strict=True)
        return sum(heights), max(widths)

    @property
    def tile(self) -> tuple[int, int]:
        """The tile of the encoder with the largest pictures: the others scale it down."""
        return max((part.tile for part in self.parts), key=lambda tile: tile[0] * tile[1])

    def at(self, size: tuple[int, int]) -> PictureTransform:
        raise CompositionError(
            "E-RES",
            f"several encoders see images of their own sizes, not of {size[0]}x{size[1]} pixels",
            groups=("vision", "views"),
            fix="set views=single, anyres or another that cuts tiles of one size",
        )

    def __call__(self, picture: Picture) -> Float[Tensor, "3 height width"]:
        canvas = torch.zeros(3, *self.shape)
        for place, part in zip(self.split(canvas), self.parts, strict=True):
            place.copy_(part(picture))
        return canvas

    def shown(self, pixels: Float[Tensor, "3 height width"]) -> Picture:
        height, width = self.shape
        page = new_picture("RGB", (width, height))
        top = 0
        for part, mine in zip(self.parts, self.split(pixels), strict=True):
            page.paste(part.shown(mine), (0, top))
            top += part.shape[0]
        return page

    def split(self, canvas: Float[Tensor, "*i 3 height width"]) -> Iterator[Float[Tensor, "*i 3 h w"]]:
        """Each encoder's part of the canvas, as views of it."""
        top = 0
        for height, width in (part.shape for part in self.parts):
            yield canvas[..., top : top + height, :width]
            top += height


class MultiVision(VisionEncoder):
    """``(i, 3, height, width) -> (i, n, d)``, each encoder's pixels below the one's before.

    Args:
        encoders: name -> a whole vision node with ``_partial_: true``, which leaves the building to this class.
        weights: ``pretrained`` as each encoder's own ``weights`` says, or ``random`` for all.
        combine: ``channels``, ``interleave``, ``sequence`` or ``sources``.
        grid: [rows, columns] to bring the features of all encoders to, or one for each encoder by name; ``auto`` is the
            first encoder's for ``channels`` and ``interleave``, and each encoder's own else.
        norm: standardise the features of each encoder first.

    Raises:
        ConfigError: without encoders, or with a grid for one that is none.
        CompositionError: E-DIM when tokens of different widths would stand in one sequence; E-GRID when one has no grid
            and needs it; E-LEVELS when encoders give further layers and their tokens end up in one sequence.
    """

    def __init__(
        self,
        *,
        encoders: dict[str, partial[VisionEncoder]],
        weights: Literal["pretrained", "random"],
        combine: Literal["channels", "interleave", "sequence", "sources"],
        grid: Literal["auto"] | list[Annotated[int, AtLeast(1)]] | dict[str, list[Annotated[int, AtLeast(1)]]],
        norm: bool,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ConfigError("vision.encoders is empty, expected at least one\n  fix: choose another option of vision")
        self.combine, self.norm, self._nodes = combine, norm, encoders
        self.model = nn.ModuleDict(
            {name: build_encoder(name, node, force_random=weights == "random") for name, node in encoders.items()}
        )
        self._transform = StackedTransform(tuple(encoder.transform for encoder in self._encoders()))
        specs = {name: encoder.spec() for name, encoder in zip(self.model, self._encoders(), strict=True)}
        self._grids = target_grids(specs, combine, grid)
        self._spec = self._combined()

    @property
    def transform(self) -> StackedTransform:
        return self._transform

    def spec(self, size: tuple[int, int] | None = None) -> TokenSpec:
        if size not in (None, self._transform.tile):
            self._transform.at(size)
        return self._spec

    @property
    def patches(self) -> tuple[int, int]:
        return self._encoders()[0].patches

    def serve(self, services: frozenset[Service]) -> None:
        if "keep" in services:
            raise no_service("keep", "vision.encoders", "each of several encoders has patches of its own")
        for encoder in self._encoders():
            encoder.serve(services)
        self._spec = self._combined()

    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], keep: Bool[Tensor, "i n"] | None = None
    ) -> VisualTokens:
        refuse_keep(keep, "vision.encoders")
        tokens = []
        for encoder, own, grid in zip(
            self._encoders(), self._transform.split(pixels), self._grids.values(), strict=True
        ):
            # each casts: frozen encoders may be stored in bf16 beside one that trains in fp32
            seen = encoder(own.to(next(encoder.parameters()).dtype))
            if self.norm:
                seen = replace(seen, x=F.layer_norm(seen.x, seen.x.shape[-1:]))
            tokens.append(resize_tokens(seen, grid))
        return combined(tokens, self.combine)

    @contextmanager
    def dry_run(self) -> Iterator[None]:
        with ExitStack() as contexts:
            for encoder in self._encoders():
                contexts.enter_context(encoder.dry_run())
            yield

    def blocks(self) -> list[nn.Module]:
        return [block for encoder in self._encoders() for block in encoder.blocks()]

    def load_pretrained(self) -> None:
        for (_, encoder), node in zip(self.model.items(), self._nodes.values(), strict=True):
            if node.keywords.get("weights") == "pretrained":
                assert isinstance(encoder, VisionEncoder)
                encoder.load_pretrained()

    def resolved(self) -> dict[str, Any]:
        nodes = {}
        for (name, node), encoder in zip(self._nodes.items(), self._encoders(), strict=True):
            target = f"{node.func.__module__}.{node.func.__qualname__}"
            values = node.keywords | encoder.resolved() | ({"weights": "random"} if "weights" in node.keywords else {})
            nodes[name] = {"_target_": target, "_partial_": True, **values}
        return {"encoders": nodes}

    def _combined(self) -> TokenSpec:
        """What comes of all encoders, each brought to its grid."""
        own = zip(self._encoders(), self._grids.values(), strict=True)
        return combined_spec(tuple(regridded(encoder.spec(), grid) for encoder, grid in own), self.combine)

    def _encoders(self) -> list[VisionEncoder]:
        return [encoder for encoder in self.model.values() if isinstance(encoder, VisionEncoder)]


def build_encoder(name: str, node: partial[VisionEncoder], force_random: bool) -> VisionEncoder:
    """One of the encoders, its weights drawn from a stream of its own: adding another leaves them as they are.

    Raises:
        CompositionError: what the encoder raises, with the keys of its own node in the fix.
    """
    changed = {"weights": "random"} if force_random and "weights" in node.keywords else {}
    try:
        with torch_stream(torch.initial_seed(), name):
            return node(**changed)
    except CompositionError as error:
        message = str(error).partition(": ")[2].partition("\n")[0]
        path = f"vision.encoders.{name}."
        raise CompositionError(
            error.code,
            message.replace("vision.", path),
            groups=error.groups,
            fix=error.fix.replace("vision.", path),
        ) from error


def target_grids(
    specs: dict[str, TokenSpec], combine: str, grid: Literal["auto"] | list[int] | dict[str, list[int]]
) -> dict[str, tuple[int, int] | None]:
    """The grid each encoder's tokens are brought to; None where they have none and stay so.

    Raises:
        ConfigError: when a grid is not two numbers, or is for an encoder that does not exist.
    """
    own = {name: spec.grid for name, spec in specs.items()}
    if grid == "auto":
        first = next(iter(own.values()))
        return dict.fromkeys(own, first) if combine in ("channels", "interleave") else own
    wanted = grid if isinstance(grid, dict) else dict.fromkeys(own, grid)
    if strange := [name for name in wanted if name not in own]:
        raise ConfigError(f"vision.grid.{strange[0]} is for no encoder\n  fix: name one of {', '.join(own)}")
    if wrong := [values for values in wanted.values() if len(values) != 2 or min(values) < 1]:
        raise ConfigError(f"vision.grid={wrong[0]}, expected [rows, columns]\n  fix: set 'vision.grid=[24, 24]'")
    return own | {name: (rows, columns) for name, (rows, columns) in wanted.items()}


def regridded(spec: TokenSpec, grid: tuple[int, int] | None) -> TokenSpec:
    """The spec of one encoder's tokens on another grid.

    Raises:
        CompositionError: E-GRID when they have none.
    """
    if grid is None or grid == spec.grid:
        return spec
    if spec.grid is None:
        raise CompositionError(
            "E-GRID",
            f"the tokens of an encoder have no grid, and are to be brought to {grid[0]}x{grid[1]}",
            groups=("vision",),
            fix="set keep_cls=false in every node of vision.encoders, or vision.grid=auto vision.combine=sources",
        )
    return replace(spec, n=grid[0] * grid[1], grid=grid, sources=())


def combined_spec(specs: tuple[TokenSpec, ...], combine: str) -> TokenSpec:
    """What ``combined`` makes of tokens with these specs.

    Raises:
        CompositionError: E-GRID, E-DIM or E-LEVELS, as the class says; E-SIDE when keys of different widths would stand
            in one sequence.
    """
    if combine == "sources":
        return replace(specs[0], sources=specs)
    if combine != "sequence" and len({(spec.n, spec.grid) for spec in specs}) > 1:
        raise CompositionError(
            "E-GRID",
            f"vision.combine={combine} needs one grid, the encoders have {[spec.grid for spec in specs]}",
            groups=("vision",),
            fix="set vision.grid=auto",
        )
    if combine == "channels":
        dim, levels, keys = (sum(getattr(spec, name) for spec in specs) for name in ("dim", "levels", "keys"))
        return replace(specs[0], dim=dim, levels=levels, keys=keys, sources=())
    if len({spec.dim for spec in specs}) > 1:
        raise CompositionError(
            "E-DIM",
            f"vision.combine={combine} puts tokens of widths {[spec.dim for spec in specs]} into one sequence",
            groups=("vision",),
            fix="set vision.combine=channels, or choose encoders of one width",
        )
    if any(spec.levels for spec in specs):
        raise CompositionError(
            "E-LEVELS",
            f"vision.combine={combine} has no place for further layers of an encoder",
            groups=("vision",),
            fix="set levels=[] in every node of vision.encoders, or vision.combine=channels",
        )
    if len({spec.keys for spec in specs}) > 1:
        raise no_service("keys", "vision.encoders", f"they are {[spec.keys for spec in specs]} wide in one sequence")
    n, grid = sum(spec.n for spec in specs), specs[0].grid if len(specs) == 1 else None
    return replace(specs[0], n=n, grid=grid, sources=())


def resize_tokens(tokens: VisualTokens, grid: tuple[int, int] | None) -> VisualTokens:
    """``(i, n, d) -> (i, rows * columns, d)``, bilinear; the same object where nothing changes.

    Attention is shared out anew, so that the tokens of a picture are paid as much together as before.

    Raises:
        ValueError: when the tokens have no grid.
    """
    if grid is None or grid == tokens.grid:
        return tokens
    dense = VisualTokens.dense(resize_features(tokens.x, tokens.grid, grid), grid)
    if tokens.levels is not None:
        dense = replace(dense, levels=resize_features(tokens.levels, tokens.grid, grid))
    if tokens.keys is not None:
        dense = replace(dense, keys=resize_features(tokens.keys, tokens.grid, grid))
    if tokens.attn is not None:
        attn = resize_features(tokens.attn[..., None], tokens.grid, grid)[..., 0]
        share = tokens.attn.sum(1, keepdim=True) / attn.sum(1, keepdim=True)
        dense = replace(dense, attn=attn * share)
    return dense


def resize_features(
    x: Float[Tensor, "i n d"], old: tuple[int, int] | None, new: tuple[int, int]
) -> Float[Tensor, "i m d"]:
    """Between patch centres, in fp32 or better, antialiased where the new grid is coarser.

    Raises:
        ValueError: when there is no old grid.
    """
    if old is None:
        raise ValueError("tokens without a grid cannot be brought to another grid")
    features = x.transpose(1, 2).unflatten(2, old)
    wide = features if x.dtype == torch.float64 else features.float()
    out = F.interpolate(wide, new, mode="bilinear", align_corners=False, antialias=True)
    return out.flatten(2).transpose(1, 2).to(x.dtype)


def combined(tokens: list[VisualTokens], combine: str) -> VisualTokens:
    """The tokens of all encoders as one, as ``combined_spec`` says.

    Side by side, a token is paid the mean of what the encoders pay to it, and has their keys side by side; in one
    sequence, each has what its own encoder says.
    """
    if combine == "sources":
        return replace(tokens[0], sources=tuple(tokens))
    if combine == "channels":
        wide = {name: [getattr(one, name) for one in tokens] for name in ("x", "levels", "keys")}
        given = {name: [tensor for tensor in own if tensor is not None] for name, own in wide.items()}
        beside = {name: torch.cat(own, -1) if own else None for name, own in given.items()}
        attn = [one.attn for one in tokens if one.attn is not None]
        first = tokens[0]
        made = VisualTokens.fresh(first.x, first.mask, first.yx, first.size, first.grid)
        return replace(made, **beside, attn=torch.stack(attn).mean(0) if attn else None)
    if len(tokens) == 1:
        return replace(tokens[0], sources=())

    images, n = tokens[0].mask.shape
    joined = VisualTokens.cat(tokens)
    if combine == "sequence":
        return joined
    turns = torch.arange(len(tokens) * n, device=joined.x.device).view(len(tokens), n).T.flatten()
    return joined.gather(turns.expand(images, -1))
