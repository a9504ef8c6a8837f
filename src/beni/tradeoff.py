"""``python -m beni.tradeoff runs/<study>/<run>``: what a run's selector and pruner save, and what they change.

The trained model and the same weights with all visual tokens are scored on the same held-out samples, asked the same
questions, and timed in turn: tokens and FLOPs, seconds of prefill and of each decoded token, accuracy, changed answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from beni.console import printing_command
from beni.errors import BeniError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from beni.assemble import DataPipeline
    from beni.evals.subject import Subject
    from beni.evals.tradeoff import Tradeoff
    from beni.model.costing.table import SpecTable
    from beni.trained import Trained

WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.tradeoff", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("run", type=Path, help="run folder, for instance runs/selectors/swin-...-s0-1a2b3c4d")
    command.add_argument("--examples", type=int, default=200, help="held-out samples scored and asked (%(default)s)")
    command.add_argument("--rounds", type=int, default=25, help="samples that are timed (%(default)s)")
    command.add_argument("--new-tokens", type=int, default=16, help="decoded tokens that are timed (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the run has nothing to compare."""
    arguments = parser().parse_args(argv)
    import json

    from rich.console import Console

    from beni.config.command import report

    try:
        for name in ("examples", "rounds", "new_tokens"):
            if (value := getattr(arguments, name)) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}={value}, expected at least 1")
        result = tradeoff(arguments.run, arguments.examples, arguments.rounds, arguments.new_tokens)
    except BeniError as error:
        report(error)
        return 2
    if arguments.json:
        print(json.dumps(result.to_dict()))
    else:
        console = Console(markup=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
        console.print(result.rich(), highlight=False)
    return 0


class Result:
    """What was measured of a run, and what was counted.

    Attributes:
        taken_out: group -> option.
        measured: see ``Tradeoff``.
        plans: spec tables of the model and of all tokens.
    """

    def __init__(self, taken_out: dict[str, str], measured: Tradeoff, plans: tuple[SpecTable, SpecTable]) -> None:
        self.taken_out, self.measured, self.plans = taken_out, measured, plans

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a program."""
        from dataclasses import asdict

        keys = ("visual_tokens", "prefill_flops", "train_flops_per_sample")
        counted = {key: [getattr(plan, key) for plan in self.plans] for key in keys}
        return {"taken_out": self.taken_out, **counted, **asdict(self.measured)}

    def rich(self) -> Table:
        """The table for a terminal."""
        from statistics import median

        from rich import box
        from rich.table import Table

        from beni.analysis import formats
        from beni.measure.latency import Ratio

        measured, (reduced, whole) = self.measured, self.plans
        out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        out.add_column("")
        for name in (" ".join(f"{group}={option}" for group, option in self.taken_out.items()), "all tokens", "ratio"):
            out.add_column(name, justify="right")

        def counted(name: str, ours: int, theirs: int, bound: bool) -> None:
            out.add_row(
                name, f"{'≤ ' if bound else ''}{formats.count(ours)}", formats.count(theirs), f"{ours / theirs:.2f}"
            )

        def timed(name: str, pair: tuple[list[float], list[float]], took: Ratio) -> None:
            ours, theirs = (f"{1000 * median(one):.1f} ms" for one in pair)
            out.add_row(name, ours, theirs, f"{took.median:.2f} ({took.low:.2f} to {took.high:.2f})")

        row = reduced.row("fusion")
        unknown = not row.fixed and row.mean is None
        counted("visual tokens", reduced.visual_tokens, whole.visual_tokens, unknown)
        counted("prefill FLOPs", reduced.prefill_flops, whole.prefill_flops, unknown)
        timed("prefill", measured.prefill, measured.prefill_ratio)
        timed("decoding, a token", measured.decoding, measured.decoding_ratio)
        for key in ("eval/accuracy", "eval/loss"):
            if key in measured.scores[0]:
                ours, theirs = (f"{values[key]:.3f}" for values in measured.scores)
                out.add_row(key.removeprefix("eval/"), ours, theirs, "")
        low, high = measured.changed_interval
        share = f"{measured.changed / measured.examples:.1%} ({low:.1%} to {high:.1%})"
        out.add_row("changed answers", f"{measured.changed} of {measured.examples}", "", share)
        return out


def tradeoff(folder: Path, examples: int, rounds: int, new_tokens: int) -> Result:
    """Compares the model of a run with the same weights without its selector and pruner.

    Args:
        folder: of a run that has a checkpoint; its newest weights are compared.
        examples: held-out samples with pictures that are scored and asked, spread over all.
        rounds: samples that are timed.
        new_tokens: decoded tokens that are timed.

    Raises:
        BeniError: when the run takes nothing out, has no checkpoint, was trained on other prompts than it makes now, or
            its llm cannot generate.
    """
    from contextlib import ExitStack, closing

    from beni.distributed.environment import read_environment
    from beni.distributed.host import use_host
    from beni.evals.heldout import evenly, reachable
    from beni.evals.tradeoff import given_all_tokens, measure, taken_out, with_all_tokens
    from beni.runs.frozen import load_frozen
    from beni.trained import Trained

    run = load_frozen(folder)
    _require_comparable(run, folder)
    use_host(read_environment(run["compute"]["device"]), run["compute"]["threads"])
    trained = Trained.load(folder)
    model, unreduced = given_all_tokens(trained.model, str(folder)), with_all_tokens(run)
    whole = Trained.of(folder, model, trained.renderer, unreduced, trained.step, trained.device, trained.precision)
    with ExitStack() as opened:
        sides = [_side(*pair) for pair in ((run, trained), (unreduced, whole))]
        for side in sides:
            opened.enter_context(closing(side.data.fetcher))
        source, fetcher = sides[0].data.source, sides[0].data.fetcher
        heldout = source.heldout()
        places = [place for place in range(len(heldout)) if heldout[place].images]
        if not places:
            raise ConfigError(f"{folder}: no held-out sample has a picture\n  fix: choose a run whose data have some")
        chosen = [places[at] for at in evenly(examples, len(places))]
        asked = reachable(heldout, chosen, fetcher, run["images"]["ahead"] or 1, lambda: None, print)
        reduced, whole = sides
        measured = measure(reduced.subject, whole.subject, list(asked), source.metric, rounds, new_tokens)
    return Result(taken_out(run), measured, (reduced.plan, whole.plan))


class Side(NamedTuple):
    """A model, how it is called, what it reads, and what it costs by its plan."""

    plan: SpecTable
    data: DataPipeline
    subject: Subject


def _side(run: Mapping[str, Any], trained: Trained) -> Side:
    from beni.assemble import assemble
    from beni.model.costing.table import propagate, spec_table

    planned = propagate(run)
    data = assemble(run, planned.viewer, progress=True)
    probe = data.probe()
    plan = spec_table(planned, run, probe.length, probe.label_rows, probe.image)
    return Side(plan, data, trained.subject(run["eval"]["batch_size"]))


def _require_comparable(run: Mapping[str, Any], folder: Path) -> None:
    """Raises:
    ConfigError: when a run takes nothing out.
    """
    from beni.evals.tradeoff import taken_out

    if not taken_out(run):
        raise ConfigError(
            f"{folder} has selector=none and pruner=none: nothing is taken out\n"
            "  fix: name a run with a selector or a pruner"
        )


if __name__ == "__main__":
    raise SystemExit(main())
