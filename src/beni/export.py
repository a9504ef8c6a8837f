"""``python -m beni.export runs/<study>/<run>``: a run's model as a folder for transformers, or as programs.

``pretrained`` writes a ``save_pretrained`` folder with its tokenizer, ``merged`` the same with the adapters added to
the weights, so that it needs no peft; ``adapters`` all but frozen backbones, a few MB; ``torch_export`` and
``torchscript`` write each component (vision, resampler, connector, llm, whole) as a program, and parity.json with its
difference from eager.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beni.errors import BeniError

if TYPE_CHECKING:
    from rich.table import Table

    from beni.model.programs import Parity

WIDTH_OF_A_FILE = 160  # columns, where the output is a pipe or a log and has no width of its own


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.export", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("run", type=Path, help="run folder, for instance runs/default/tiny_vit-...-s0-1a2b3c4d")
    command.add_argument("--checkpoint", default="newest", help="newest, best or the number of a step (%(default)s)")
    command.add_argument(
        "--average",
        action=argparse.BooleanOptionalAction,
        help="the average of the weights, or the weights themselves (default: what the run scores, see train.ema)",
    )
    formats = ("pretrained", "merged", "adapters", "torch_export", "torchscript")
    command.add_argument("--format", choices=formats, default="pretrained", help="%(choices)s (%(default)s)")
    command.add_argument("--text", type=int, default=16, help="tokens of text in the programs' example (%(default)s)")
    command.add_argument("--out", type=Path, help="folder to write (default: <run>/export/<format>-<step>)")
    return command


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

    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_FILE)
    try:
        if arguments.text < 3:
            raise ConfigError(f"--text={arguments.text}, expected at least 3 tokens")
        out = export(arguments, console.print)
    except BeniError as error:
        report(error)
        return 2
    console.print(f"written: {out}", soft_wrap=True, highlight=False)
    return 0


def export(arguments: argparse.Namespace, show) -> Path:
    """Writes what the arguments ask for; ``show`` prints tables and lines.

    Raises:
        BeniError: when the run or its checkpoint cannot be had, or the folder is not empty.
    """
    import json

    from beni.errors import ConfigError
    from beni.llm.tokenizer import load_tokenizer
    from beni.model.programs import write_programs
    from beni.runs.backlog import room_for
    from beni.runs.frozen import load_frozen
    from beni.training.checkpoint.restore import restore

    run = load_frozen(arguments.run)
    averaged = run["train"]["ema"] > 0
    average = averaged if arguments.average is None else arguments.average
    if arguments.format == "merged" and "lora" not in run["train"]["plan"].values():
        raise ConfigError("--format merged, but this run has no adapters\n  fix: set --format pretrained")
    if arguments.out is not None:
        _require_empty(arguments.out)
    model, step = restore(arguments.run, run, arguments.checkpoint, average)
    kind = "average of the weights" if average else "weights"
    name = f"{arguments.format}-{step}" + ("-weights" if averaged and not average else "")
    out: Path = arguments.out or arguments.run / "export" / name
    with room_for(out):
        out.mkdir(parents=True, exist_ok=True)
    _require_empty(out)
    show(f"{kind} after step {step}", highlight=False)
    if arguments.format == "adapters":
        model.save_adapters(out)
        return out
    if arguments.format == "merged":
        model.merge_adapters()
    if arguments.format in ("pretrained", "merged"):
        model.save_pretrained(out)
        load_tokenizer(run["llm"]).save_pretrained(out)
        return out
    found = write_programs(model, arguments.format, out, arguments.text, lambda name: show(f"[dim]{name} ...[/dim]"))
    told = {"run": arguments.run.name, "step": step, "average": average, "format": arguments.format}
    (out / "parity.json").write_text(json.dumps(told | {"components": [one.to_dict() for one in found]}, indent=1))
    show(parity_table(found))
    for one in found:
        if one.reason is not None:
            show(f"{one.component}: {one.reason}", highlight=False, markup=False, soft_wrap=True)
    return out


def _require_empty(out: Path) -> None:
    from beni.errors import ConfigError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is no folder"
        raise ConfigError(f"{out} {what}\n  fix: remove it, or choose another folder with --out")


def parity_table(found: Sequence[Parity]) -> Table:
    """How near each program is to eager."""
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("component", "program", "shape", "max abs", "max rel", "second shape", "max abs", "max rel"):
        out.add_column(name, justify="right" if "max" in name else "left", no_wrap=True)
    for one in found:
        first, second = (" ".join("x".join(map(str, s)) for s in shapes) for shapes in (one.shapes, one.second_shapes))
        numbers = [
            "-" if value is None else f"{value:.1e}"
            for value in (one.max_abs, one.max_rel, one.second_abs, one.second_rel)
        ]
        out.add_row(one.component, one.file or "none", first, *numbers[:2], second, *numbers[2:])
    return out


if __name__ == "__main__":
    raise SystemExit(main())
