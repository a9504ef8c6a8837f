"""What a model is told of a micro-batch beside its tensors: of the images, and of the samples."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from beni.types.images import ImageLayout, Pixels
from beni.types.visual import VisualTokens


@dataclass(frozen=True)
class ImageInputs:
    """The images of a micro-batch, in reading order.

    Attributes:
        layouts: how each image became views; empty when each image is one view.
        owners: the sample (segment or row) that each image belongs to; None when every sample has as many.
        keys: a hash of the pixels of each view, for a feature bank; empty when the bank is to hash them itself.
        visual: visual tokens already encoded, instead of pixels, one row an image.
        pixels: of all views of a prompt, the same that the model is given beside this. transformers' pipeline joins
            tensors of several prompts by their first rows, and leaves this as it is.
    """

    layouts: tuple[ImageLayout, ...] = ()
    owners: Int[Tensor, "k"] | None = None
    keys: tuple[str, ...] = ()
    visual: VisualTokens | None = None
    pixels: Pixels | None = None


@dataclass(frozen=True)
class SampleInputs:
    """The samples of a micro-batch, in order.

    Attributes:
        cu_seqlens: borders of the samples in one packed row; None when every row is a sample of its own.
        longest: at least as long as any segment of a packed row; None for the whole row.
        ids: of each sample, which noise is drawn for; empty when their numbers are to do.
        prompts: what the user says in each sample, for stages that read the text itself (``Stage.reads``).
    """

    cu_seqlens: Int[Tensor, "s_plus_1"] | None = None
    longest: int | None = None
    ids: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
