"""The sections of the composed run that hold plain values, as torch-free dataclasses.

Part groups (vision, resampler, ...) are not here: their schema is the signature of their ``_target_``
(``config/signature.py``). Every field below is read by exactly one file, named in its docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PlanMode = Literal["frozen", "full", "lora"]

PART_GROUPS = ("vision", "views", "selector", "resampler", "connector", "fusion", "llm", "adapter", "data", "tracker")
"""Groups whose options carry a ``_target_``, in the order of the data's way."""

COMPONENTS = ("vision", "views", "selector", "resampler", "connector", "fusion", "llm")
"""Part groups that are modules of the model, in the order of the forward pass."""


@dataclass(frozen=True)
class Plan:
    """What trains (training/trainable.py). ``auto``: frozen where pretrained weights exist by name, else full."""

    vision: Literal["auto", "frozen", "full", "lora"]
    views: PlanMode
    selector: PlanMode
    resampler: PlanMode
    connector: PlanMode
    fusion: PlanMode
    llm: Literal["auto", "frozen", "full", "lora"]


@dataclass(frozen=True)
class Train:
    """The training loop (run.py, training/loop.py).

    Attributes:
        steps: optimizer steps.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        accumulation: micro-batches into which each rank divides its share of a step.
        seed: of every named random stream.
        precision: ``bf16`` (autocast; frozen parts stored in bf16) or ``fp32``.
        layout: ``packed`` (one row, samples isolated) or ``padded`` (one row a sample).
        device: ``auto`` (cuda if there is one), ``cpu`` or ``cuda``.
        threads: CPU threads of the main process; 0 takes all cores. CPU runs repeat bit for bit at one value only.
        workers: loader processes.
        log_every: steps between lines of metrics.jsonl.
        init_from: run folder or ``save_pretrained`` folder whose weights this run starts from, else null.
        feature_bank: folder that keeps the features of a frozen vision encoder for later epochs and runs, else null.
        plan: which components train.
    """

    _target_: str
    steps: int
    batch_size: int
    accumulation: int
    seed: int
    precision: Literal["bf16", "fp32"]
    layout: Literal["packed", "padded"]
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    workers: int
    log_every: int
    init_from: str | None
    feature_bank: str | None
    plan: Plan


@dataclass(frozen=True)
class LrScale:
    """Learning rate of each component as a multiple of ``optim.lr`` (training/optim.py)."""

    vision: float
    views: float
    selector: float
    resampler: float
    connector: float
    fusion: float
    llm: float


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule (training/optim.py).

    Attributes:
        lr: peak learning rate.
        lr_scale: what the rate of each component is multiplied by; adapters belong to their component.
        min_lr: learning rate at the last step.
        warmup_ratio: share of the steps that warm up linearly, in [0, 1).
        weight_decay: decoupled, on matrices only (no norms, biases or embeddings).
        betas: decay rates of the moments.
        eps: term in the denominator.
        clip: largest global gradient norm; 0 switches clipping off.
    """

    lr: float
    lr_scale: LrScale
    min_lr: float
    warmup_ratio: float
    weight_decay: float
    betas: list[float]
    eps: float
    clip: float


@dataclass(frozen=True)
class Template:
    """How a conversation becomes text (data/template.py).

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
    max_length: int
    overlong: Literal["error", "truncate"]


@dataclass(frozen=True)
class Fsdp:
    """Sharding (distributed/fsdp.py).

    Attributes:
        mode: ``none`` (one process, or plain replicas averaged by hand) or ``full`` (FSDP2).
    """

    mode: Literal["none", "full"]


@dataclass(frozen=True)
class Checkpoint:
    """Saving and resuming (training/checkpoint.py).

    Attributes:
        every: steps between checkpoints; 0 saves none but the last.
        keep: newest checkpoints kept.
        resume: ``auto`` (the newest complete one of this run folder) or ``never`` (start over; the old folder is kept).
        export: write a ``save_pretrained`` folder at the end.
    """

    every: int
    keep: int
    resume: Literal["auto", "never"]
    export: bool


@dataclass(frozen=True)
class Eval:
    """Held-out evaluation (evals/).

    Attributes:
        every: steps between evaluations during training; 0 evaluates only at the end.
        examples: held-out examples scored; 0 takes all, ``auto`` all but no more than the run trains on.
        batch_size: examples of one forward pass.
        gallery: held-out pictures shown in the report with the model's answers.
    """

    every: int
    examples: int | Literal["auto"]
    batch_size: int
    gallery: int


@dataclass(frozen=True)
class Paths:
    """Where things go (config/identity.py).

    Attributes:
        runs: root of the run folders.
    """

    runs: str


@dataclass(frozen=True)
class Study:
    """Which question the run belongs to (config/identity.py, analysis/).

    Attributes:
        name: folder of the study under ``paths.runs``.
    """

    name: str


@dataclass(frozen=True)
class Launcher:
    """Which launcher carries a multirun (hydra_plugins/beni_launcher, hydra-submitit-launcher).

    Attributes:
        name: of the cluster shape.
    """

    name: str


@dataclass(frozen=True)
class Model:
    """Who assembles the parts.

    Attributes:
        _target_: called with the resolved run; returns a ``BeniForConditionalGeneration``.
    """

    _target_: str


SECTIONS: dict[str, type[Any]] = {
    "model": Model,
    "train": Train,
    "optim": Optim,
    "template": Template,
    "fsdp": Fsdp,
    "checkpoint": Checkpoint,
    "eval": Eval,
    "paths": Paths,
    "study": Study,
    "launcher": Launcher,
}
