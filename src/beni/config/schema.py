"""The sections of the composed run that hold plain values, as torch-free dataclasses.

Part groups (vision, resampler, ...) are not here: their schema is the signature of their ``_target_``
(``config/signature.py``). Every field below is read by exactly one file, named in its docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from beni.config.optim import Optim

PlanMode = Literal["frozen", "full", "lora"]

PART_GROUPS = (
    *("vision", "views", "selector", "resampler", "connector", "fusion", "llm", "adapter", "quantization"),
    *("data", "tracker"),
)
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
class Thaw:
    """Share of the steps, in [0, 1), for which a component that trains stays frozen at first (training/thaw.py)."""

    vision: float
    views: float
    selector: float
    resampler: float
    connector: float
    fusion: float
    llm: float


@dataclass(frozen=True)
class Guard:
    """What becomes of a step that would spoil the run (training/guard.py): ``halt`` ends the run, ``skip`` leaves the
    step's update out, ``rewind`` goes back to the newest checkpoint and leaves it out when the run comes by again.

    Attributes:
        nonfinite: for a loss or gradient that is not finite.
        spike: for a loss far above the median of those before it; ``accept`` does not look.
        threshold: how far: so many deviations, by the median deviation (at least 1 % of the median).
        window: losses that are looked back at, 8 at least.
        most: steps that may be left out; with one more the run ends.
    """

    nonfinite: Literal["halt", "skip", "rewind"]
    spike: Literal["accept", "halt", "skip", "rewind"]
    threshold: float
    window: int
    most: int


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
        activation_checkpointing: what the layers give up and compute again: ``none``, ``full`` (all but their inputs),
            ``selective`` (all but attention and every second matrix product) or ``memory_budget`` (the compiler's
            choice).
        memory_budget: share of the memory of all activations that ``memory_budget`` may keep, in [0, 1].
        compile: compile each layer of the llm and of the vision encoder.
        loss: how head and loss are computed (model/loss.py): ``full`` keeps the logits of all label rows, ``chunked``
            those of one piece at a time, ``fused`` is torch's ``linear_cross_entropy`` (torch 2.13 or newer, meant for
            GPUs), ``auto`` is ``chunked`` for micro-batches that have more than one piece, else ``full``.
        feature_bank: folder that keeps the features of a frozen vision encoder for later epochs and runs, else null.
        ema: decay of an average of the weights that train, in (0, 1), which is then scored and exported; 0 keeps none.
        watchdog_s: seconds after which a rank that does not move has hung, and the run ends; 0 waits for ever.
        plan: which components train.
        thaw: when.
        guard: against steps that would spoil the run.
        profile: steps that are profiled, ``first:last`` (from 1) or one step, else null (measure/profile.py).
        peak_tflops: rate in TFLOP/s that utilisation (MFU) is a share of; null takes the device's data sheet, and a
            measured matrix product where the device is not known.
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
    activation_checkpointing: Literal["none", "full", "selective", "memory_budget"]
    memory_budget: float
    compile: bool
    loss: Literal["auto", "full", "chunked", "fused"]
    feature_bank: str | None
    ema: float
    watchdog_s: float
    plan: Plan
    thaw: Thaw
    guard: Guard
    profile: str | int | None
    peak_tflops: float | None


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
    max_length: int
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
    tokens: int
    images: int
    window: int
    group: Literal["none", "length"]
    modality: Literal["mixed", "grouped"]
    cycle: list[Literal["image", "text"]]
    balance: bool
    tokens_per_image: int | Literal["auto"]


@dataclass(frozen=True)
class Fsdp:
    """How processes share a model (distributed/fsdp.py).

    Attributes:
        mode: ``none`` (whole replicas, gradients summed after the backward pass), ``ddp`` (the same, summed while it
            runs), ``full`` (FSDP2: each process keeps a part of what trains) or ``hybrid`` (so within a machine, and
            replicas of that on every machine).
        shard_size: processes that share one copy under ``hybrid``; null takes those of one machine.
        frozen: ``replicate`` frozen weights, or ``shard`` them too under ``full`` and ``hybrid``.
        reshard_after_forward: give the whole weights of a unit back after its forward pass, which saves memory and
            costs a second gathering.
        offload: keep what is sharded, its gradients and the optimizer's state in the CPU's memory; GPUs only, in any
            mode but ``none``, for a single process too.
    """

    mode: Literal["none", "ddp", "full", "hybrid"]
    shard_size: int | None
    frozen: Literal["replicate", "shard"]
    reshard_after_forward: bool
    offload: bool


@dataclass(frozen=True)
class Checkpoint:
    """Saving and resuming (training/checkpoint/saver.py).

    Attributes:
        every: steps between checkpoints; 0 saves none but the last.
        keep: newest checkpoints kept.
        keep_best: metric of the evaluation, for instance ``eval/accuracy``; the checkpoint of the best one is kept too.
        on_error: when a checkpoint cannot be written: ``continue`` (say so, train on) or ``halt``.
        resume: ``auto`` (the newest complete one of this run folder) or ``never`` (start over; the old folder is kept).
        export: write a ``save_pretrained`` folder at the end.
    """

    every: int
    keep: int
    keep_best: str | None
    on_error: Literal["continue", "halt"]
    resume: Literal["auto", "never"]
    export: bool


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

    concurrency: int
    per_host: int
    retries: int
    timeout: float
    idle_timeout: float
    max_mib: float
    max_pixels: int
    min_side: int
    redirects: int
    private_addresses: bool
    cache: str | None
    cache_gib: float
    ahead: int
    on_bad: Literal["replace", "skip_image", "fail"]
    max_bad: float


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
    """Where things go (runs/identity.py).

    Attributes:
        runs: root of the run folders.
    """

    runs: str


@dataclass(frozen=True)
class Study:
    """Which question the run belongs to (runs/identity.py, analysis/).

    Attributes:
        name: folder of the study under ``paths.runs``.
    """

    name: str


@dataclass(frozen=True)
class Launcher:
    """Which launcher carries a multirun (hydra_plugins/beni, hydra-submitit-launcher).

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
    "schedule": Schedule,
    "fsdp": Fsdp,
    "checkpoint": Checkpoint,
    "images": Images,
    "eval": Eval,
    "paths": Paths,
    "study": Study,
    "launcher": Launcher,
}
