"""One arm of a training benchmark in a process of its own: ``python -m harness.arms NAME SETTINGS.json RESULT.json``.

A process each, so that the peak memory is the arm's and no arm inherits another's caches.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as HFDataset
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from beni.distributed import host
from beni.distributed.environment import Environment, process_group, read_environment
from beni.distributed.fsdp import shard
from beni.llm import segment_attention
from beni.measure.memory import peak_gib
from beni.model import loss
from beni.model.costing.table import propagate
from beni.training.blocks import prepare_blocks
from beni.training.loop import Trainer, TrainingJob
from beni.training.settings import TrainerSettings
from beni.training.trainable import store_frozen_in_bf16
from beni.types import Batch
from harness import llava

CPU = torch.device("cpu")


@dataclass
class Record:
    """What an arm saw: seconds at the end of each step, the loss of each."""

    stamps: list[float]
    losses: list[float]
    parameters: int = 0

    def write(self, path: Path, warmup: int) -> None:
        """``seconds`` are those of the steps after ``warmup``."""
        values = {
            "seconds": self.stamps[-1] - self.stamps[warmup - 1],
            "losses": self.losses,
            "trained": self.parameters,
            "peak_gib": peak_gib(CPU),
        }
        path.write_text(json.dumps(values))


class KeptInMemory:
    """The log of beni's loop: a time and a loss a step."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def train(self, step: int, values: Mapping[str, float]) -> None:
        self.record.losses.append(values["loss"])
        self.record.stamps.append(time.perf_counter())

    def begin(self, step: int) -> None: ...

    def data(self, step: int, values: Mapping[str, float], faults: Any) -> None: ...

    def saved(self, step: int, values: Mapping[str, float]) -> None: ...

    def best(self, step: int, metric: str, value: float) -> None: ...

    def notice(self, text: str) -> None:
        print(text, file=sys.stderr)


class Ordered(Dataset[list[Batch]]):
    """beni's micro-batches of given samples; drawn, decoded and rendered when asked for."""

    def __init__(self, samples: llava.Samples, order: list[list[int]], environment: Environment) -> None:
        self.steps, self.source = samples.steps, samples.steps.source
        self.order = [step[environment.rank :: environment.world] for step in order]

    def __getitem__(self, step: int) -> list[Batch]:
        return [self.steps.batch([(0, index) for index in self.order[step]])]


def beni(settings: Mapping[str, Any], record: Record) -> None:
    """beni's own loop; rendering and decoding of samples is part of it."""
    for feature in settings["without"]:
        WITHOUT[feature]()
    environment = read_environment("cpu")
    with process_group(environment):
        _beni(settings, record, environment)


def _beni(settings: Mapping[str, Any], record: Record, environment: Environment) -> None:
    run = settings["run"]
    host.use_host(environment, settings["threads"])
    samples = llava.Samples(run, propagate(run).viewer)
    model = llava.ours(run, samples.renderer.tokens.image)
    record.parameters = llava.trained(model)
    if run["compute"]["precision"] == "bf16":
        store_frozen_in_bf16(model, run["train"]["plan"])
    prepare_blocks(model, run["compute"])
    shard(model, model.sharding_units(), environment, run["fsdp"], run["compute"]["precision"])
    job = TrainingJob(
        model=model,
        steps=Ordered(samples, settings["order"], environment),  # pyright: ignore[reportArgumentType]
        environment=environment,
        checkpoints=Path(settings["folder"]) / "checkpoints",
        signature="benchmark",
        evaluate=lambda step: {},
        log=KeptInMemory(record),
    )
    trained = run | {"checkpoint": run["checkpoint"] | {"every": 0}, "eval": run["eval"] | {"every": 0}}
    Trainer(TrainerSettings.of(trained, run["compute"]["loss"])).fit(job)


def _dense_mask() -> None:
    """Packed samples are kept apart by a mask of the whole row."""

    def dense(q: Tensor, k: Tensor, v: Tensor, segments: Any, scaling: Any, *_: Any) -> Tensor:
        borders, place = segments.cu_seqlens, torch.arange(segments.length)
        own = torch.bucketize(place, borders, right=True)
        mask = (own[:, None] == own) & (place[:, None] >= place)
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=scaling, enable_gqa=True)
        return out[0].transpose(0, 1)

    segment_attention.in_rectangles = dense


def _all_logits() -> None:
    """The head is applied to every position, and the label rows are taken from its logits."""
    predict = loss.predict

    def everywhere(llm: Any, fusion: Any, sequences: Any, places: Any) -> Tensor:
        return predict(llm, fusion, sequences)[places]

    loss.predict = everywhere


def _freed_memory_given_back() -> None:
    """glibc gives the system what a step has freed, as without beni."""
    host.keep_freed_memory = lambda: None


WITHOUT: dict[str, Callable[[], None]] = {
    "segments": _dense_mask,
    "label rows": _all_logits,
    "kept memory": _freed_memory_given_back,
}
"""What an ablation does without."""


@dataclass
class Theirs:
    """Hugging Face's model, and samples that are ready before the clock starts."""

    model: Any
    data: HFDataset
    kept: dict[int, dict[str, Any]]
    tokenizer: Any

    def collate(self, rows: list[dict[str, int]]) -> dict[str, Tensor]:
        """Rows of ``data`` to a padded batch."""
        return llava.pad([self.kept[row["index"]] for row in rows], self.tokenizer.pad_token_id)


def _theirs(settings: Mapping[str, Any], record: Record) -> Theirs:
    run = settings["run"]
    torch.set_num_threads(settings["threads"])
    samples = llava.Samples(run, propagate(run).viewer)
    model = llava.theirs(run)
    record.parameters = llava.trained(model)
    order = [index for step in settings["order"] for index in step]
    kept = {index: samples.encoded(index) for index in set(order)}
    return Theirs(model, HFDataset.from_dict({"index": order}), kept, samples.renderer.tokenizer)


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    run = settings["run"]
    train, optim = run["train"], run["optim"]
    return {
        "output_dir": settings["folder"],
        "per_device_train_batch_size": train["batch_size"],
        "max_steps": train["steps"],
        "learning_rate": optim["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": optim["weight_decay"],
        "adam_beta1": optim["betas"][0],
        "adam_beta2": optim["betas"][1],
        "adam_epsilon": optim["eps"],
        "max_grad_norm": optim["clip"],
        "bf16": run["compute"]["precision"] == "bf16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": train["seed"],
        "gradient_checkpointing": False,
        **settings["arguments"],
    }


def _fit(trainer_class: Any, arguments: Any, settings: Mapping[str, Any], record: Record) -> None:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            record.stamps.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                record.losses.append(float(logs["loss"]))

    theirs = _theirs(settings, record)

    class Ours(trainer_class):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(theirs.data)

    trainer = Ours(
        model=theirs.model,
        args=arguments,
        train_dataset=theirs.data,
        data_collator=theirs.collate,
        processing_class=theirs.tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()


def hf(settings: Mapping[str, Any], record: Record) -> None:
    """transformers.Trainer on padded batches, in the order it is given, so that losses can be compared."""
    from transformers import Trainer, TrainingArguments

    _fit(Trainer, TrainingArguments(**_arguments(settings)), settings, record)


def trl(settings: Mapping[str, Any], record: Record) -> None:
    """TRL's SFTTrainer, given ready samples."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(**_arguments(settings), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    _fit(SFTTrainer, arguments, settings, record)


ARMS: dict[str, Callable[[Mapping[str, Any], Record], None]] = {
    "beni": beni,
    "hf": hf,
    "trl": trl,
}


def main() -> None:
    name, settings, result = sys.argv[1:]
    given, record = json.loads(Path(settings).read_text()), Record([], [])
    ARMS[name](given, record)
    if os.environ.get("RANK", "0") == "0":
        record.write(Path(result), given["warmup"])


if __name__ == "__main__":
    main()
