"""``python -m beni.plan recipe=llava15``: what a run would be, from its config alone, offline and without a weight.

Prints the spec table (tokens, parameters and FLOPs of each stage), trainable parameters, FLOPs per sample in training
and prefill, and memory per process. An invalid run ends with an error code and a fix. Of a sweep it prints a line for
each arm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beni.console import printing_command
from beni.errors import BeniError

if TYPE_CHECKING:
    from rich.table import Table

    from beni.model.costing.plan import Assumed, Plan
    from beni.model.costing.table import SpecTable


WIDTH_OF_A_FILE = 120  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.plan", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("overrides", nargs="*", help="as for beni.train: vision=siglip resampler.num_latents=32 ...")
    command.add_argument("--config-dir", help="an additional folder of options")
    command.add_argument("--image", default="768x1024", help="height x width of an image in pixels (%(default)s)")
    command.add_argument("--text", type=int, default=128, help="text tokens per sample (%(default)s)")
    command.add_argument("--labels", type=int, default=64, help="supervised tokens among them (%(default)s)")
    command.add_argument("--world", type=int, default=1, help="number of processes (%(default)s)")
    command.add_argument("--local-world", type=int, help="processes per machine (default: all)")
    command.add_argument("--json", action="store_true", help="print the table as JSON")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the run cannot be."""
    arguments = parser().parse_intermixed_args(argv)
    from beni.config.command import report
    from beni.config.explain import explained
    from beni.errors import ConfigError
    from beni.launch.sweep import named_arms, replaced
    from beni.model.costing.plan import Assumed

    try:
        with explained():
            arms = named_arms(arguments.overrides, arguments.config_dir)
            for line in replaced(arms):
                print(line, file=sys.stderr)
            try:
                height, width = (int(side) for side in arguments.image.split("x"))
            except ValueError:
                raise ConfigError(f"--image={arguments.image}, expected height x width as 768x1024") from None
            if not 0 < arguments.labels <= arguments.text:
                raise ConfigError(f"--labels={arguments.labels}, expected 1 to --text={arguments.text}")
            if min(height, width, arguments.world) < 1:
                raise ConfigError("--image and --world, expected numbers of at least 1")
            local = arguments.local_world or arguments.world
            if not 1 <= local <= arguments.world:
                raise ConfigError(f"--local-world={local}, expected 1 to --world={arguments.world}")
            sample = Assumed((height, width), arguments.text, arguments.labels, arguments.world, local)
            runs = composed(arms, arguments.config_dir)
            if len(arms) > 1:
                return show_arms(arms, runs, sample, arguments.json)
            if isinstance(runs[0], BeniError):
                raise runs[0]
            show(runs[0], sample, arguments.json)
    except BeniError as error:
        report(error)
        return 2
    return 0


def composed(arms: Sequence[Sequence[str]], config_dir: str | None) -> list[dict[str, Any] | BeniError]:
    """The frozen run of each arm, with what ``study.match`` chooses, or why there is none.

    Raises:
        ConfigError: when the arms do not have one budget.
    """
    from beni.config.compose import compose
    from beni.launch import match
    from beni.launch.job import judge
    from beni.launch.submit import ImpossibleArm

    made: list[dict[str, Any] | BeniError] = []
    for arm in arms:
        try:
            made.append(compose(arm, config_dir))
        except BeniError as error:
            made.append(error)
    runs = [run for run in made if not isinstance(run, BeniError)]
    if not any(map(match.is_matched, runs)) or len(runs) < len(made):
        return made
    found = judge(match.to_check(runs, arms))
    for line in match.told(runs, arms, found):
        print(line, file=sys.stderr)
    for number, (run, one) in enumerate(zip(runs, found, strict=True)):
        if one["problem"] is not None:
            made[number] = ImpossibleArm(one["problem"])
        else:
            own = [f"{key}={value}" for key, value in match.chosen(run, one).items()]
            made[number] = compose([*arms[number], *own], config_dir)
    return made


def show_arms(
    arms: Sequence[Sequence[str]], runs: Sequence[dict[str, Any] | BeniError], assumed: Assumed, as_json: bool
) -> int:
    """Prints a line for each arm of a sweep, and what is wrong with those that cannot be; the exit code is 2 then."""
    import json
    import shlex

    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from beni.analysis import formats
    from beni.model.costing.plan import plan_of

    shared = {word for word in arms[0] if all(word in arm for arm in arms)}
    plans: dict[str, Plan] = {}
    refused: dict[str, BeniError] = {}
    steps: dict[str, int] = {}
    for arm, run in zip(arms, runs, strict=True):
        name = shlex.join(word for word in arm if word not in shared)
        try:
            if isinstance(run, BeniError):
                raise run
            plans[name], steps[name] = plan_of(run, assumed), run["train"]["steps"]
        except BeniError as error:
            refused[name] = error
    if as_json:
        print(json.dumps({name: plan.to_dict() | {"steps": steps[name]} for name, plan in plans.items()}))
    else:
        out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("arm", "visual tokens", "trainable", "steps", "training FLOPs", "prefill FLOPs", "memory"):
            out.add_column(name, justify="left" if name == "arm" else "right")
        for name, plan in plans.items():
            table = plan.table
            trained, flops = sum(row.trained for row in table.rows), table.train_flops_per_sample
            costs = (formats.count(one) for one in (flops, table.prefill_flops))
            fused = table.row("fusion")
            tokens = formats.tokens(fused.tokens, fused.fixed, fused.mean)
            memory = f"{plan.need.peak / 2**30:.1f} GiB"
            out.add_row(escape(name), tokens, formats.count(trained), str(steps[name]), *costs, memory)
        (Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE)).print(out)
    for name, error in refused.items():
        print(f"{name}\n{type(error).__name__}: {error}", file=sys.stderr)
    return 2 if refused else 0


def show(run: dict[str, Any], assumed: Assumed, as_json: bool) -> None:
    """Prints the plan of a frozen run."""
    import json

    from rich.console import Console

    from beni.analysis import formats
    from beni.config.foreign import dropped_notices
    from beni.model.costing.plan import plan_of

    plan = plan_of(run, assumed)
    table, need, world = plan.table, plan.need, assumed.world
    if as_json:
        print(json.dumps(plan.to_dict() | {"steps": run["train"]["steps"]}))
        return
    for notice in dropped_notices(run):
        print(notice, file=sys.stderr)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE)
    console.print(spec_rich(table))
    train, fused = run["train"], table.row("fusion")
    bound = "" if fused.fixed else "at most "
    expected = "" if fused.mean is None else f" (mean {formats.count(round(fused.mean, 1))})"
    lines = {
        "image": f"{assumed.size[0]}x{assumed.size[1]} pixels, {plan.views} view{'s' if plan.views > 1 else ''}",
        "sample": f"{plan.length} positions: {bound}{fused.tokens} visual tokens{expected}, {assumed.text} of text "
        f"({assumed.labels} supervised)",
        "parameters": f"{formats.count(sum(r.trained for r in table.rows))} trainable, "
        f"{formats.count(sum(r.parameters - r.trained for r in table.rows))} frozen",
        "FLOPs per sample": f"{formats.count(table.train_flops_per_sample)} in training, "
        f"{formats.count(table.prefill_flops)} in prefill",
        **({"FLOPs to load": f"{formats.count(plan.loading)} per image, not in the others"} if plan.loading else {}),
        "memory per process": f"{need.peak / 2**30:.1f} GiB ({need.explain()}) at "
        f"train.batch_size={train['batch_size']} train.accumulation={train['accumulation']} "
        f"compute.precision={run['compute']['precision']}, {world} process{'es' if world > 1 else ''}, "
        f"fsdp={run['fsdp']['mode']}",
    }
    for name, line in lines.items():
        console.print(f"[dim]{name:>16}[/dim]  {line}", highlight=False, soft_wrap=True)


def spec_rich(table: SpecTable) -> Table:
    """The spec table for a terminal."""
    from rich import box
    from rich.table import Table

    from beni.analysis import formats

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "option", "tokens", "width", "grid", "parameters", "trainable", "FLOPs"):
        out.add_column(name, justify="left" if name in ("stage", "option", "grid") else "right", no_wrap=True)
    for row in table.rows:
        numbers = (formats.count(row.parameters), formats.count(row.trained), formats.count(row.flops))
        tokens = str(row.tokens) if row.fixed else formats.tokens(row.tokens, row.fixed, row.mean)
        out.add_row(row.stage, row.option, tokens, str(row.width), formats.grid(row.grid), *numbers)
    return out


if __name__ == "__main__":
    raise SystemExit(main())
