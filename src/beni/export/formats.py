"""The formats of ``python -m beni.export``, all of them. Each is the file of its name, with one function ``write``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beni.trained import Trained

PROGRAMS = (
    "each component (vision, resampler, connector, llm, whole) as a program, and parity.json with its difference from "
    "eager"
)


@dataclass(frozen=True)
class Format:
    """What a format gives.

    Attributes:
        what: it writes.
        needs_adapters: whether only a run with adapters can be written so.
        shards: whether weights can be cut into several files.
        prompts: whether it holds how the model is asked: a tokenizer with its template.
    """

    what: str
    needs_adapters: bool = False
    shards: bool = False
    prompts: bool = True


FORMATS = {
    "pretrained": Format("a save_pretrained folder with its tokenizer"),
    "merged": Format("the same with the adapters added to the weights, so that it needs no peft", needs_adapters=True),
    "native": Format(
        "a folder of a class of transformers (LLaVA, Idefics3 ...), compared with the run, that needs no beni",
        shards=True,
    ),
    "gguf": Format("llm.gguf and mmproj.gguf for llama.cpp (LLaVA and Idefics3), read back"),
    "adapters": Format("all but frozen backbones, a few MB", prompts=False),
    "torch_export": Format(PROGRAMS, prompts=False),
    "torchscript": Format(PROGRAMS, prompts=False),
}


@dataclass
class Findings:
    """What a format has found out, for the card of the folder.

    Attributes:
        architecture: class of transformers that reads the folder; None where it is no such class.
        compared: what was compared with the run, and the result.
        notes: what a user must know.
    """

    architecture: str | None = None
    compared: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Export:
    """What a format is told.

    Attributes:
        trained: the model, on the CPU, with its processor and run; a format may change it.
        average: whether its weights are the average of the weights.
        text: tokens of text in the examples of programs.
        out: the folder to write; it is there, and empty.
        findings: filled in by the format.
        shard_size: largest file of weights, as transformers takes it (``5GB``); None leaves it to transformers.
        show: prints lines and tables of rich.
    """

    trained: Trained
    average: bool
    text: int
    out: Path
    show: Callable[..., None]
    shard_size: str | None = None
    findings: Findings = field(default_factory=Findings)


def writer(name: str) -> Callable[[Export], None]:
    """``write`` of a format's file, which is loaded now: the list itself needs no torch."""
    return import_module(f"beni.export.{name}").write
