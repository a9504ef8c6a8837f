"""``python -m beni.export runs/<study>/<run>``: a run's model as a folder for transformers, or as programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from beni.console import unfailing_output
from beni.errors import BeniError
from beni.export.formats import FORMATS

WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.export", description=description())
    command.add_argument("run", type=Path, help="run folder, for instance runs/default/tiny_vit-...-s0-1a2b3c4d")
    command.add_argument("--checkpoint", default="newest", help="newest, best or the number of a step (%(default)s)")
    command.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        help="export the EMA weights, or the last weights (default: those that the run scores, see train.ema)",
    )
    command.add_argument("--format", choices=tuple(FORMATS), default="pretrained", help="%(choices)s (%(default)s)")
    command.add_argument(
        "--text", type=int, default=16, help="text tokens of the example input of programs (%(default)s)"
    )
    command.add_argument("--shard-size", help="largest file of weights of --format native, for instance 5GB")
    command.add_argument("--other-prompt", action="store_true", help="allow prompts that differ from those of training")
    command.add_argument("--out", help="folder to write (default: <run>/export/<format>-<step>)")
    command.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the hub, as a private repository")
    command.add_argument("--public", action="store_true", help="make the repository of --push a public one")
    return command


@unfailing_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0, also where a component cannot be a program, which parity.json and the table say; 2 when the run or its
        checkpoint cannot be had.
    """
    arguments = parser().parse_args(argv)
    from rich.console import Console

    from beni.config.command import report
    from beni.errors import ConfigError
    from beni.export.push import push, require_pushable

    console = Console(markup=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    try:
        if arguments.text < 3:
            raise ConfigError(f"--text={arguments.text}, expected at least 3 tokens")
        if arguments.public and arguments.push is None:
            raise ConfigError("--public without --push, which nothing reads\n  fix: set --push <owner>/<name>")
        if arguments.push is not None:
            require_pushable(arguments.push)
        out = export(arguments, console.print)
        if arguments.push is not None:
            console.print(f"pushed: {push(out, arguments.push, arguments.public)}", soft_wrap=True, highlight=False)
    except BeniError as error:
        report(error)
        return 2
    console.print(f"written: {out}", soft_wrap=True, highlight=False)
    return 0


def description() -> str:
    """What each format writes."""
    wrote = {}
    for name, form in FORMATS.items():
        wrote.setdefault(form.what, []).append(name)
    lines = (f"{' and '.join(names)}: {what}" for what, names in wrote.items())
    return (
        "A run's model as a folder for transformers, or as programs (torch.export, TorchScript). "
        + "; ".join(lines)
        + "."
    )


def export(arguments: argparse.Namespace, show: Callable[..., None]) -> Path:
    """Writes what the arguments ask for; ``show`` prints tables and lines.

    Raises:
        BeniError: when the run or its checkpoint cannot be had, or the folder is not empty.
    """
    from beni.analysis.card import Exported, write_card
    from beni.export.formats import Export, writer
    from beni.runs import files
    from beni.runs.backlog import room_for
    from beni.runs.frozen import load_frozen
    from beni.trained import Trained

    run = load_frozen(arguments.run)
    averaged = run["train"]["ema"] > 0
    average = averaged if arguments.average is None else arguments.average
    _require_read(arguments, run)
    given = _given(arguments.out)
    if given is not None:
        _require_empty(given)
    trained = Trained.load(
        arguments.run,
        arguments.checkpoint,
        device="cpu",
        other_prompt=arguments.other_prompt or not FORMATS[arguments.format].prompts,
        average=average,
    )
    step = cast(int, trained.step)  # that of a checkpoint is known
    kind = "EMA weights" if average else "weights"
    name = f"{arguments.format}-{step}" + ("-weights" if averaged and not average else "")
    out = given or arguments.run / files.EXPORT / name
    with room_for(out):
        out.mkdir(parents=True, exist_ok=True)
    _require_empty(out)
    show(f"{kind} after step {step}", highlight=False)
    told = Export(trained, average, arguments.text, out, show, arguments.shard_size)
    writer(arguments.format)(told)
    write_card(
        arguments.run,
        out,
        Exported(
            form=arguments.format,
            what=FORMATS[arguments.format].what,
            step=step,
            kind=kind,
            scored=average == averaged,
            architecture=told.findings.architecture,
            compared=told.findings.compared,
            notes=told.findings.notes,
        ),
    )
    return out


def _require_read(arguments: argparse.Namespace, run: Mapping[str, Any]) -> None:
    """Return when the format has a use for what was asked of it.

    Raises:
        ConfigError: when it has not.
    """
    from beni.errors import ConfigError

    form = FORMATS[arguments.format]
    if form.needs_adapters and "lora" not in run["train"]["plan"].values():
        raise ConfigError(f"--format {arguments.format}, but this run has no adapters\n  fix: set --format pretrained")
    if arguments.shard_size is not None and not form.shards:
        able = " or ".join(name for name, other in FORMATS.items() if other.shards)
        raise ConfigError(
            f"--shard-size={arguments.shard_size} with --format {arguments.format}, which nothing reads there\n"
            f"  fix: leave it out, or set --format {able}"
        )
    if arguments.other_prompt and not form.prompts:
        raise ConfigError(
            f"--other-prompt with --format {arguments.format}, which holds no prompt\n  fix: leave it out"
        )


def _given(out: str | None) -> Path | None:
    from beni.errors import ConfigError

    if out is not None and not out.strip():
        raise ConfigError(f"--out={out!r} names no folder\n  fix: leave --out out, or set it to a folder")
    return None if out is None else Path(out)


def _require_empty(out: Path) -> None:
    from beni.errors import ConfigError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is no folder"
        raise ConfigError(f"--out={out} {what}\n  fix: set --out to a folder that is empty or not there yet")


if __name__ == "__main__":
    raise SystemExit(main())
