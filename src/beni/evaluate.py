"""``python -m beni.evaluate RUN task=vqa data=vqa data.heldout_path=val.json``: a trained model scored by a task.

Without ``task`` and ``data`` the run's own held-out samples are scored as training scored them. Every sample has a line
in scores.jsonl; an evaluation that is killed goes on where it was when the same command is given again. Started by
torchrun or srun, its processes share the batches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from beni.console import printing_command
from beni.errors import BeniError, ConfigError, DataError
from beni.evals.tasks.registry import TASKS, task_of

if TYPE_CHECKING:
    from rich.table import Table

    from beni.data.fetch.fetcher import Fetcher
    from beni.data.sample import Sample
    from beni.data.source import Source
    from beni.evals.sharing import Sharing
    from beni.evals.tasks.base import Row, Task
    from beni.trained import Trained

SECTIONS = ("data", "images", "records", "template")
"""Sections of a run that may be set; all else is as it was trained."""
WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m beni.evaluate",
        description=(__doc__ or "").split("\n\n")[1],
        epilog="tasks: " + "; ".join(f"{name}: {entry.what}" for name, entry in TASKS.items()),
    )
    command.add_argument("run", type=Path, help="run folder, or a saved model such as <run>/model")
    command.add_argument("overrides", nargs="*", help="task=..., and data=... where other data are scored")
    command.add_argument("--checkpoint", default="last", help="last, best or the number of a step (%(default)s)")
    command.add_argument(
        "--split", choices=("heldout", "all"), default="heldout", help="which samples of the data (%(default)s)"
    )
    command.add_argument("--examples", type=int, help="samples scored, spread over all (default: all, or as the run)")
    command.add_argument(
        "--ablations",
        help="further variants of the images, with commas between: blank, shuffled, swapped, noise, dropped; or none "
        "(default: blank, with task=run as the run)",
    )
    command.add_argument(
        "--attention", type=int, default=0, help="last layers whose attention to images is measured (%(default)s)"
    )
    command.add_argument("--batch-size", type=int, help="sequences of one forward pass (default: as the run)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="%(choices)s (default: as the run)")
    command.add_argument(
        "--threads", type=int, help="CPU threads of a process, on which last digits depend there (default: as the run)"
    )
    command.add_argument("--precision", choices=("fp32", "bf16"), help="default: as the run")
    command.add_argument("--other-prompt", action="store_true", help="allow prompts that differ from those of training")
    command.add_argument("--config-dir", help="an additional folder of options")
    command.add_argument("--out", type=Path, help="folder to write (default: <run>/evaluations/<task>-<settings>)")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the model, the data or the task cannot be had."""
    arguments = parser().parse_intermixed_args(argv)
    import json

    from rich.console import Console

    from beni.config.command import report
    from beni.console import to_stderr

    try:
        for name, least in (("examples", 1), ("batch_size", 1), ("threads", 1), ("attention", 0)):
            if (value := getattr(arguments, name)) is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')}={value}, expected at least {least}")
        folder, summary, shown = evaluate(arguments, to_stderr)
    except BeniError as error:
        report(error)
        return 2
    if not shown:
        return 0
    if arguments.json:
        print(json.dumps(summary | {"folder": str(folder)}))
    else:
        console = Console(markup=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
        console.print(table(summary), highlight=False)
        console.print(f"written: {folder}", soft_wrap=True, highlight=False)
    return 0


class Chosen(NamedTuple):
    """What is scored: the source, the places of its samples that can be read, and who fetches their images."""

    source: Source
    samples: Sequence[Sample]
    places: Sequence[int]
    fetcher: Fetcher


class Evaluated(NamedTuple):
    """What came of an evaluation: its folder, its summary, and whether this process is the one that shows it."""

    folder: Path
    summary: dict[str, Any]
    shown: bool


def evaluate(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Evaluated:
    """Scores what the arguments of the command ask for, together with the other processes that were started with it.

    Returns:
        The folder with scores.jsonl and summary.json, and the summary, on every process.

    Raises:
        BeniError: when the model, the data or the task cannot be had, or another process has ended.
    """
    from beni.config.partial import sections_of
    from beni.distributed.environment import process_group, read_environment
    from beni.distributed.host import use_host
    from beni.distributed.watchdog import Watchdog
    from beni.evals.sharing import Sharing
    from beni.trained import Trained, trained_with

    of_task = [one for one in arguments.overrides if one.partition("=")[0].partition(".")[0] == "task"]
    name, task = task_of(of_task)
    others = [one for one in arguments.overrides if one not in of_task]
    sections = sections_of(others, SECTIONS, arguments.config_dir, trained_with(arguments.run) if others else None)
    trained = Trained.load(
        arguments.run,
        arguments.checkpoint,
        device=arguments.device,
        precision=arguments.precision,
        template=sections.get("template"),
        other_prompt=arguments.other_prompt,
    )
    run = _run(trained, sections, others)
    environment = read_environment(trained.device.type)
    use_host(environment, arguments.threads or run["compute"]["threads"])
    if not environment.is_main:
        tell = _untold
    seconds = run["log"]["watchdog_s"] if environment.world > 1 else 0  # who is alone keeps nobody waiting
    with process_group(environment), Watchdog(seconds, environment.rank, environment.world) as watchdog:
        sharing = Sharing(watchdog.beat)
        if "data" in sections:
            chosen = _given(run, trained, arguments)
        else:
            chosen = _own(run, trained, arguments, environment.is_main, tell)
        with closing(chosen.fetcher):
            folder, summary = _scored(name, task, arguments, run, trained, chosen, sharing, tell)
    return Evaluated(folder, summary, environment.is_main)


def _untold(text: str) -> None:
    """Processes but the first say nothing that the first says."""


def _run(trained: Trained, sections: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The run with the sections that were set; of a saved model, with default values."""
    from beni.config.compose import compose

    if trained.run is None and not any(one.startswith("data=") for one in overrides):
        raise ConfigError(
            f"{trained.folder} is a saved model, which knows no data\n"
            "  fix: set data=..., or name the folder of its run"
        )
    base = compose() if trained.run is None else trained.run
    return {**base, **sections, "template": trained.renderer.settings}


def _own(
    run: Mapping[str, Any], trained: Trained, arguments: argparse.Namespace, shown: bool, tell: Callable[[str], None]
) -> Chosen:
    """The held-out samples that the run itself scores."""
    from beni.assemble import assemble, held_out

    if arguments.split != "heldout":
        raise ConfigError("--split=all asks for training samples of the run\n  fix: set data=... as well to score them")
    data = assemble(run, trained.viewer, progress=shown)
    held, told = held_out(data, arguments.examples)
    for notice in told:
        tell(notice)
    return Chosen(data.source, data.source.heldout(), held.places, data.fetcher)


def _given(run: Mapping[str, Any], trained: Trained, arguments: argparse.Namespace) -> Chosen:
    """The samples of data that were named."""
    from beni.assemble import max_bad
    from beni.config.build import build
    from beni.data.batch.check import Check
    from beni.data.fetch.fetcher import Fetcher
    from beni.evals.heldout import Everything, evenly

    node = _whole(run["data"]) if arguments.split == "all" else run["data"]
    source: Source = build(node, run["train"]["seed"])
    samples = Everything(source) if arguments.split == "all" else source.heldout()
    if not len(samples):
        raise DataError("the data hold out no records\n  fix: set data.heldout_path, or --split all")
    places = evenly(arguments.examples or len(samples), len(samples))
    fetcher = Fetcher(run["images"])
    check = Check(trained.renderer, trained.viewer, fetcher.bind, max_bad(run))
    bad = check.heldout(samples, places, source.metric)
    return Chosen(source, samples, [place for place in places if place not in bad], fetcher)


def _whole(data: Mapping[str, Any]) -> dict[str, Any]:
    """A data node whose records are not divided, however few they are: nothing is trained on what would be left."""
    node = dict(data)
    if "path" in node and isinstance(node.get("heldout"), int) and node.get("heldout_path") is None:
        node["heldout"] = 0
    return node


def _scored(
    name: str,
    task: Task,
    arguments: argparse.Namespace,
    run: Mapping[str, Any],
    trained: Trained,
    chosen: Chosen,
    sharing: Sharing,
    tell: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    from contextlib import ExitStack
    from dataclasses import replace

    from beni.evals.heldout import reachable
    from beni.evals.journal import Journal, finish, opened
    from beni.evals.running import Running
    from beni.runs import files
    from beni.runs.lock import lock_of
    from beni.tracker.progress import index_progress

    ablations = _ablations(name, arguments.ablations, run)
    settings: dict[str, Any] = _settings(name, task, arguments, run, trained, chosen) | {"ablations": ablations}
    sharing.require_alike(settings)
    folder = arguments.out or arguments.run / files.EVALUATIONS / f"{name}-{_short(settings)}"
    with ExitStack() as held, index_progress(sharing.rank == 0, "scoring") as told:
        known, before = sharing.from_main(lambda: opened(folder, settings, held))
        if known is not None:
            return folder, known
        if sharing.rank:
            held.enter_context(lock_of(folder / files.journal_name(sharing.rank)))
        samples = reachable(
            chosen.samples, chosen.places, chosen.fetcher, run["images"]["ahead"] or 1, sharing.moved, tell
        )
        running = Running(
            replace(trained.subject(settings["batch_size"]), between=sharing.moved),
            task,
            chosen.source.metric,
            samples,
            ablations,
            arguments.attention,
            trained.step,
            tell,
            told or _unheard,
        )
        rows = running.rows(Journal(folder, settings, sharing.rank, before), sharing)

        def summed_up() -> dict[str, Any]:
            summary = _summary(task, rows, settings, len(samples))
            finish(folder, rows, summary)
            return summary

        return folder, sharing.from_main(summed_up)


def _unheard(done: int, whole: int) -> None:
    """Only the first process shows how far they are."""


def _ablations(task: str, given: str | None, run: Mapping[str, Any]) -> list[str]:
    if given is None:
        return ["blank", *(run["eval"]["ablations"] if task == "run" else ())]
    return [] if given == "none" else list(dict.fromkeys(one.strip() for one in given.split(",")))


def _settings(
    name: str,
    task: Task,
    arguments: argparse.Namespace,
    run: Mapping[str, Any],
    trained: Trained,
    chosen: Chosen,
) -> dict[str, Any]:
    """All that decides the rows, as JSON gives it back."""
    import hashlib
    import importlib.metadata
    import json
    from dataclasses import asdict

    import torch

    from beni.runs.code import running_code

    on_cpu = trained.device.type == "cpu"
    settings = {
        "task": name,
        "fields": asdict(task),
        "model": {"folder": str(trained.folder.resolve()), "step": trained.step, "weights": trained.weights()},
        "template": trained.renderer.hash(),
        "data": run["data"],
        "fingerprint": chosen.source.fingerprint(),
        "split": arguments.split,
        "samples": hashlib.sha256(repr(list(chosen.places)).encode()).hexdigest()[:16],
        "attention": arguments.attention,
        "batch_size": arguments.batch_size or run["eval"]["batch_size"],
        "precision": trained.precision,
        "device": trained.device.type,
        "threads": torch.get_num_threads() if on_cpu else None,
        "code": running_code(),
        "versions": {package: importlib.metadata.version(package) for package in ("beni", "torch", "transformers")},
    }
    return json.loads(json.dumps(settings))


def _short(settings: Mapping[str, Any]) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _summary(task: Task, rows: Sequence[Row], settings: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Values, and the 95 % interval of each mean score over clusters of samples, within the bounds of the score."""
    import numpy as np

    from beni.analysis.inference import interval
    from beni.evals.ablations import Ablation
    from beni.evals.running import values_of

    intervals = {}
    for variant in dict.fromkeys(row["variant"] for row in rows) if task.averages else ():
        scored = [row for row in rows if row["variant"] == variant and row["score"] is not None]
        names = {name: i for i, name in enumerate(dict.fromkeys(row["cluster"] or row["id"] for row in scored))}
        sums, counts = np.zeros((2, 1, len(names)))
        for row in scored:
            place = names[row["cluster"] or row["id"]]
            sums[0, place] += row["score"]
            counts[0, place] += 1
        ends = interval(sums, counts) if len(names) > 1 else None
        if ends is not None and ends[0] < ends[1]:  # where all scores are equal nothing is known of their spread
            low, high = task.bounds  # limits that are stretched for few clusters may lie beyond
            intervals[f"{task.name}{Ablation(variant).suffix}"] = [max(ends[0], low), min(ends[1], high)]
    return {"values": values_of(task, rows), "intervals": intervals, "samples": samples, "settings": dict(settings)}


def table(summary: Mapping[str, Any]) -> Table:
    """The values of a summary for a terminal."""
    from rich import box
    from rich.table import Table

    settings = summary["settings"]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"task={settings['task']}, {summary['samples']} samples")
    out.title_justify = "left"
    out.add_column("")
    out.add_column("value", justify="right")
    out.add_column("95 % interval", justify="right")
    for key, value in summary["values"].items():
        ends = summary["intervals"].get(key)
        out.add_row(key, f"{value:.4f}", "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}")
    return out


if __name__ == "__main__":
    raise SystemExit(main())
