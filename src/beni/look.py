"""``python -m beni.look data=stamps llm=smollm2_gguf``: what the model of a run would see, before it is trained.

Writes a page with the first steps of the run: views in token order, the text with its loss mask, the boundaries of
samples in packs, positions, lengths, the shares of a mixture, and bad images with their replacements.
Crops whose places depend on the pixels are outlined; with ``--run FOLDER`` the weights of a run draw which patches are
kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beni.console import printing_command
from beni.errors import BeniError

if TYPE_CHECKING:
    from beni.data.batch.preview import Draws, Overlay
    from beni.data.order.schedule import Schedule
    from beni.model.modeling import BeniForConditionalGeneration
    from beni.types import Batch


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.look", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("overrides", nargs="*", help="as for beni.train: data=stamps template=chatml ...")
    command.add_argument(
        "--run", type=Path, help="folder of a run: its data, and what its weights keep of the pictures"
    )
    command.add_argument("--config-dir", help="an additional folder of options")
    command.add_argument("--steps", type=int, default=1, help="optimizer steps shown (%(default)s)")
    command.add_argument("--first", type=int, default=1, help="the first step shown (%(default)s)")
    command.add_argument("--world", type=int, default=1, help="number of processes (%(default)s)")
    command.add_argument("--rank", type=int, default=0, help="rank of the process shown (%(default)s)")
    command.add_argument("--out", type=Path, help="HTML file to write (default: <paths.runs>/look.html)")
    command.add_argument("--terminal", action="store_true", help="print to the terminal instead of writing a page")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the run cannot be."""
    arguments = parser().parse_intermixed_args(argv)
    from rich.console import Console

    from beni.analysis.look import terminal, write_page
    from beni.config.command import report
    from beni.config.explain import explained
    from beni.errors import ConfigError, ResourceError

    try:
        with explained():
            run = _asked(arguments)
            if min(arguments.steps, arguments.first, arguments.world) < 1:
                raise ConfigError("--steps, --first and --world, expected numbers of at least 1")
            if not 0 <= arguments.rank < arguments.world:
                raise ConfigError(f"--rank={arguments.rank}, expected 0 to {arguments.world - 1} (--world)")
            steps = range(arguments.first - 1, arguments.first - 1 + arguments.steps)
            seen = look(run, steps, arguments.rank, arguments.world, arguments.run)
    except BeniError as error:
        report(error)
        return 2
    console = Console(markup=False, highlight=False)
    if arguments.terminal:
        for line in terminal(seen):
            console.print(line)
        return 0
    path = arguments.out or Path(run["paths"]["runs"]) / "look.html"
    try:
        write_page(path, seen)
    except OSError as error:
        report(
            ResourceError(
                f"{path} could not be written: {error}\n  fix: set --out to a file that can be written, or --terminal"
            )
        )
        return 2
    console.print(f"written: {path}", soft_wrap=True)
    return 0


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The run to be shown: composed, or as it was frozen.

    Raises:
        BeniError: when it cannot be had, or both are asked for.
    """
    from beni.config.compose import compose
    from beni.errors import ConfigError
    from beni.runs.frozen import load_frozen

    if arguments.run is None:
        return compose(arguments.overrides, arguments.config_dir)
    if arguments.overrides or arguments.config_dir:
        raise ConfigError(
            f"--run={arguments.run} shows a run with the configuration that it was begun with\n"
            "  fix: leave out --run, or the overrides and --config-dir"
        )
    return load_frozen(arguments.run)


def look(
    run: Mapping[str, Any], numbers: Sequence[int], rank: int, world: int, folder: Path | None = None
) -> dict[str, Any]:
    """What rank ``rank`` of ``world`` sees in some steps of a frozen run.

    Args:
        folder: of the run, whose newest weights draw what they keep; None draws nothing.

    Raises:
        BeniError: as a run with the same configuration would.
    """
    from contextlib import closing

    from beni.assemble import assemble
    from beni.data.batch.preview import histogram, preview
    from beni.model.costing.table import propagate

    viewer, draws, weights = propagate(run).viewer, _outlines, {}
    if folder is not None:
        from beni.trained import Trained

        trained = Trained.load(folder, device="cpu")
        when = "at its end" if trained.step is None else f"after step {trained.step}"
        draws, weights = _draws(trained.model, run), {"weights": f"of {folder} {when}"}
    data = assemble(run, viewer, progress=True)
    schedule, source = data.schedule, data.source
    with closing(data.fetcher):
        seen = preview(
            data.steps(rank=rank, world=world),
            numbers,
            viewer.transform.shown,
            lambda layout: {stage: sum(spec.n for spec in specs) for stage, specs in viewer.specs(layout).items()},
            draws,
        )
    lengths = seen.pop("lengths")
    if schedule.lengths is not None:
        lengths = schedule.loads(0).tokens
    return seen | {
        "title": ", ".join(f"{group}={run['choices'].get(group, 'custom')}" for group in ("data", "llm", "template")),
        "facts": _facts(run, schedule, data.renderer.tokens, source.fingerprint(), len(source)) | weights,
        "notices": list(source.notices),
        "shares": source.shares(),
        "histogram": histogram(lengths),
        "histogram_of": (
            f"of the {len(lengths)} samples of the first epoch"
            if schedule.lengths is not None
            else f"of the {len(lengths)} samples shown; all lengths are read with schedule=packs and the like"
        ),
    }


def _outlines(batch: Batch) -> list[list[Overlay]]:
    """Where crops lie that depend on the pixels, over the view that is the whole picture."""
    from beni.data.batch.preview import Overlay
    from beni.evals.drawings import outlined
    from beni.views.base import WHOLE

    drawn: list[list[Overlay]] = []
    for layout in batch.layouts:
        view = layout.boxes.index(WHOLE) if layout.boxes else 0
        height, width = layout.views[view]
        crops = outlined(layout, (width, height))
        drawn.append([] if crops is None else [Overlay(view, f"{crops.name}, {crops.note}", crops.overlay)])
    return drawn


def _draws(model: BeniForConditionalGeneration, run: Mapping[str, Any]) -> Draws:
    """What the stages of a model leave to be drawn, in evaluation."""
    import torch

    from beni.data.batch.preview import Overlay
    from beni.evals.drawings import artist_of
    from beni.nn.precision import autocast

    artist = artist_of(model.eval())

    def draw(batch: Batch) -> list[list[Overlay]]:
        with autocast(torch.device("cpu"), run["compute"]["precision"]):
            looked = model.look(**batch.model_inputs())
        drawn = _outlines(batch)
        for name, pictures in looked.pictures.items():
            for image, values in pictures:
                view, drawing = artist.of_view(name, batch.layouts[image], values)
                drawn[image].append(Overlay(view, f"{name}, {drawing.note}", drawing.overlay))
        return drawn

    return draw


def _facts(run: Mapping[str, Any], schedule: Schedule, tokens: Any, fingerprint: str, size: int) -> dict[str, Any]:
    train, unit = run["train"], run["schedule"]["unit"]
    facts = {
        "samples": f"{size} in an epoch, fingerprint {fingerprint}",
        "step": f"{train['batch_size']} {unit}s in {train['accumulation']} micro-batches per process",
        "layout": run["compute"]["layout"],
        "special tokens": f"bos {tokens.bos}, pad {tokens.pad}, eos {list(tokens.eos)}, image {tokens.image}",
        "template": run["template"]["name"],
        "selector": f"{run['choices'].get('selector', 'custom')}",
    }
    if unit == "pack":
        facts["fill"] = f"{schedule.fill():.2%} of {run['schedule']['tokens']} positions per pack, first epoch"
    return facts


if __name__ == "__main__":
    raise SystemExit(main())
