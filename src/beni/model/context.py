"""What stages are told of a micro-batch: whose image each row is, and what is asked about it (arXiv 2305.06500)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from beni.llm.base import Llm
from beni.model.configuration import BeniConfig
from beni.model.inputs import StepInputs
from beni.stage import Reads, Row, Sink, StageContext
from beni.types import IGNORE, ImageInputs, ImageLayout, Nested, Pixels, Prompt, SampleInputs, Sequence, TokenSpec


@runtime_checkable
class Reader(Protocol):
    """What is asked of a model here."""

    config: BeniConfig
    llm: Llm

    @property
    def nested(self) -> Nested | None:
        """The several numbers of visual tokens that training draws from."""
        ...

    @property
    def prompt_reads(self) -> frozenset[Reads]:
        """Forms in which stages read what is asked."""
        ...

    def row_specs(self, layout: ImageLayout) -> dict[str, list[TokenSpec]]:
        """What is known of the visual tokens of such an image behind each stage."""
        ...


def embedded(
    model: Reader,
    input_ids: Int[Tensor, "b t"],
    labels: Int[Tensor, "b t"] | None = None,
    attention_mask: Int[Tensor, "b t"] | None = None,
    position_ids: Int[Tensor, "b t"] | None = None,
    samples: SampleInputs = SampleInputs(),
) -> Sequence:
    """Text embeddings, and where the placeholders are; arguments as of the model's ``forward``."""
    is_image = input_ids == model.config.image_token_id
    if samples.cu_seqlens is None and attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if position_ids is None:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids = (real.cumsum(-1) - 1).clamp(min=0)
    return Sequence(
        # the placeholder's id may lie beyond the embedding table; its position is overwritten anyway
        embeds=model.llm.embed(input_ids.masked_fill(is_image, 0)),
        position_ids=position_ids,
        images=is_image.long() - 1,
        labels=labels,
        mask=attention_mask,
        cu_seqlens=samples.cu_seqlens,
        longest=samples.longest,
    )


def context_of(
    model: Reader,
    text: Sequence,
    pixels: Pixels | None,
    images: ImageInputs,
    samples: SampleInputs,
    how: StepInputs,
) -> StageContext:
    """What the stages may know of the rows that views make of the images."""
    sink = Sink(how.wants_pictures)
    context = StageContext(how.step, how.steps, images.layouts, seed=model.config.seed, sink=sink)
    if pixels is None:
        if "prompt_hidden" in model.prompt_reads and any(isinstance(p, DTensor) for p in model.llm.parameters()):
            # ranks that share the llm's weights gather them together, also for one without images
            prompt_states(model.llm, text, text.embeds[:1, :1], text.real[:1, :1])
        return context
    if torch.compiler.is_exporting():  # whose rows each has is a list, which would fix the number of images
        return context
    count = len(images.layouts) or len(pixels)
    owners = owners_of(images.owners, count, len(text.lengths()))
    rows = rows_of(images.layouts, owners, samples.ids, lambda layout: len(model.row_specs(layout)["views"]))
    scales = tuple(images.layouts[row.image].scale for row in rows) if images.layouts and model.nested else ()
    prompt = prompt_of(model, text, [row.sample for row in rows], samples) if model.prompt_reads else None
    return replace(context, rows=rows, scales=scales, prompt=prompt)


def owners_of(owners: Int[Tensor, "k"] | None, images: int, samples: int) -> list[int]:
    """Number of the sample of each image; without ``owners`` every sample has as many."""
    return [i * samples // images for i in range(images)] if owners is None else owners.tolist()


def rows_of(
    layouts: tuple[ImageLayout, ...], owners: list[int], ids: tuple[str, ...], count: Callable[[ImageLayout], int]
) -> tuple[Row, ...]:
    """The rows that views make of the images, in order.

    Args:
        layouts: of the images; without any each is one row.
        owners: the sample of each image.
        ids: of the samples; their numbers stand in where there are none.
        count: rows of an image with such a layout.
    """
    rows: list[Row] = []
    before: dict[tuple[int, int], int] = {}
    for image, sample in enumerate(owners):
        scale = layouts[image].scale if layouts else 0
        which = before[sample, scale] = before.get((sample, scale), -1) + 1
        name = f"{ids[sample] if ids else sample}/{scale}/{which}"
        rows += [Row(image, sample, f"{name}/{i}", i) for i in range(count(layouts[image]) if layouts else 1)]
    return tuple(rows)


def prompt_of(model: Reader, text: Sequence, owners: list[int], samples: SampleInputs) -> Prompt:
    """What is asked about each row, in the forms in which stages read it.

    Args:
        owners: the sample of each row.

    Raises:
        ValueError: when a stage reads the text itself, and it is not given.
    """
    asked, device = prompts(text), text.embeds.device
    if "prompt_text" in model.prompt_reads:
        asked = replace(asked, texts=texts_of(samples, len(asked.mask)))
    pictured = sorted(set(owners))  # what is asked without a picture is nothing to a stage
    asked = asked.select(torch.tensor(pictured, device=device))
    if "prompt_hidden" in model.prompt_reads:
        asked = replace(asked, hidden=prompt_states(model.llm, text, asked.embeds, asked.mask))
    return asked.select(torch.tensor([pictured.index(owner) for owner in owners], device=device))


def prompts(text: Sequence) -> Prompt:
    """One row a sample: the embeddings of its text that is real, no image, and not supervised.

    Args:
        text: with the placeholders of images.
    """
    asked = text.real & ~text.is_image
    if text.labels is not None:
        asked = asked & (text.labels == IGNORE)
    if text.cu_seqlens is None:
        texts = [row[wanted] for row, wanted in zip(text.embeds, asked, strict=True)]
    else:
        borders = text.cu_seqlens.tolist()
        texts = [text.embeds[0, a:b][asked[0, a:b]] for a, b in pairwise(borders)]
    lengths = torch.tensor([len(one) for one in texts], device=text.embeds.device)
    padded = pad_sequence(texts, batch_first=True)
    return Prompt(padded, torch.arange(padded.shape[1], device=text.embeds.device)[None] < lengths[:, None])


@torch.no_grad()
def prompt_states(
    llm: Llm, text: Sequence, embeds: Float[Tensor, "s t d"], mask: Bool[Tensor, "s t"]
) -> Float[Tensor, "s t d"]:
    """The llm's last hidden states of prompts, each read by itself; zeros where no position is real.

    No gradient: what a stage makes of them teaches the stage, not the llm. And no dropout, so that they are in training
    what they are in evaluation.

    Args:
        text: the sequence that the llm will read; the prompts are read in its layout.
    """
    longest = mask.shape[1]
    read = F.pad(embeds, (0, 0, 0, 1 if longest == 0 else 0))
    real = F.pad(mask, (0, read.shape[1] - longest))
    real[:, 0] = True  # a sample without a prompt must not be a row of padding alone
    rows = replace(Sequence.plain(read), mask=real.long())
    with evaluating(llm):
        if text.packed:
            packed, where = rows.end_to_end()
            states = llm.hidden(packed)[0][where]
        else:
            states = llm.hidden(rows)
    return states[:, :longest].masked_fill(~mask[..., None], 0)


def texts_of(samples: SampleInputs, count: int) -> tuple[str, ...]:
    """What the user says in each of so many samples.

    Raises:
        ValueError: when it is not said.
    """
    if len(samples.prompts) != count:
        raise ValueError(
            f"a stage reads prompt_text, and {len(samples.prompts)} texts were given for {count} samples\n"
            "  fix: give samples=SampleInputs(prompts=...), a text for each sample"
        )
    return samples.prompts


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block nothing of a module is in training mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
