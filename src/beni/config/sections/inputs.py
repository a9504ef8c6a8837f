"""The sections about samples on their way into a step: ``template``, ``schedule``, ``images`` and ``records``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import Above, AtLeast, AtMost, Example


@dataclass(frozen=True)
class Template:
    """How a conversation becomes text (data/render/template.py).

    Attributes:
        name: of the template, for logs.
        jinja: chat template; null takes the llm's own.
        system: system message put first when a sample has none; null for none.
        max_length: longest sample in tokens, visual ones included.
        overlong: ``error``, or ``truncate`` (never an image placeholder, never the last label).
    """

    name: str
    jinja: str | None
    system: str | None
    max_length: Annotated[int, AtLeast(1)]
    overlong: Literal["error", "truncate"]


@dataclass(frozen=True)
class Schedule:
    """Which samples make up a step (data/order/schedule.py).

    Attributes:
        unit: what ``train.batch_size`` counts: ``sample`` or ``pack`` (samples end to end, isolated).
        tokens: capacity of a pack in positions, visual ones included.
        images: capacity of a pack in pictures.
        window: samples that are packed, or sorted by length, together.
        group: ``length`` makes steps of samples of like length.
        modality: ``grouped`` keeps samples with and without pictures apart, by steps or as ``cycle`` says.
        cycle: ``image`` or ``text`` for successive micro-batches, so that each step sees both.
        balance: deal the samples of a step so that processes see alike pixels and tokens. Needs an index of lengths.
        tokens_per_image: positions reckoned with for an image; ``auto`` takes its own, a number gives runs with other
            visual paths the same packs.
    """

    unit: Literal["sample", "pack"]
    tokens: Annotated[int, AtLeast(1)]
    images: Annotated[int, AtLeast(1)]
    window: Annotated[int, AtLeast(1)]
    group: Literal["none", "length"]
    modality: Literal["mixed", "grouped"]
    cycle: list[Literal["image", "text"]]
    balance: bool
    tokens_per_image: Annotated[int, AtLeast(0)] | Literal["auto"]


@dataclass(frozen=True)
class Images:
    """Pictures that are fetched while training runs, and what becomes of bad ones (data/fetch/, data/batch/usable.py).

    Attributes:
        concurrency: requests at once, of one process.
        per_host: of these, to one host.
        retries: further attempts after an answer that may be better next time.
        timeout: seconds of one attempt.
        idle_timeout: seconds without a byte.
        max_mib: largest body in MiB.
        max_pixels: largest picture, as its header says.
        min_side: shortest side in pixels; a picture of 1x1 is a tracking pixel.
        redirects: most that are followed.
        private_addresses: allow hosts whose address is private, loopback or link-local.
        cache: folder of fetched pictures, shared by processes and runs; null takes ``images`` in beni's cache folder.
        cache_gib: its size in GiB; beyond it those used least recently go.
        ahead: pictures asked for before their step is drawn.
        on_bad: ``replace`` the sample by another of its source, ``skip_image`` (train on what is left) or ``fail``.
        max_bad: share of bad pictures that ends the run.
    """

    concurrency: Annotated[int, AtLeast(1)]
    per_host: Annotated[int, AtLeast(1)]
    retries: Annotated[int, AtLeast(0)]
    timeout: Annotated[float, Above(0), Example("30")]
    idle_timeout: Annotated[float, Above(0), Example("10")]
    max_mib: Annotated[float, Above(0), Example("20")]
    max_pixels: Annotated[int, AtLeast(1), Example("80_000_000")]
    min_side: Annotated[int, AtLeast(1)]
    redirects: Annotated[int, AtLeast(0)]
    private_addresses: bool
    cache: str | None
    cache_gib: Annotated[float, Above(0), Example("50")]
    ahead: Annotated[int, AtLeast(0)]
    on_bad: Literal["replace", "skip_image", "fail"]
    max_bad: Annotated[float, AtLeast(0), AtMost(1), Example("0.05")]


@dataclass(frozen=True)
class Records:
    """Records that cannot be used: unreadable, without an answer, too long (data/batch/check.py, data/batch/usable.py).

    Attributes:
        check: which training records are rendered before the first step: ``all``, a ``sample`` of them, or ``none``;
            a schedule that needs lengths renders all. Held-out records always are.
        on_bad: ``fail``, or ``skip``: another record of the same source stands in, and a held-out one is left out.
        max_bad: share of bad records that ends a run that skips them.
    """

    check: Literal["all", "sample", "none"]
    on_bad: Literal["fail", "skip"]
    max_bad: Annotated[float, AtLeast(0), AtMost(1), Example("0.05")]


def schedule_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    schedule = run["schedule"]
    if schedule["cycle"] and schedule["modality"] != "grouped":
        yield (
            f"schedule.cycle={schedule['cycle']} keeps modalities apart, but schedule.modality={schedule['modality']}\n"
            "  fix: set schedule.modality=grouped or schedule.cycle=[]"
        )
    if schedule["unit"] == "pack" and schedule["group"] == "length":
        yield (
            "schedule.group=length sorts single samples, but schedule.unit=pack\n"
            "  fix: set schedule.group=none or schedule.unit=sample"
        )
