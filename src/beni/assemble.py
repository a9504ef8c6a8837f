"""What a run learns from, before it has weights: its tokenizer, renderer, source, schedule, and the steps they make.

Training, looking, benchmarks and tests put the same things together in the same way; they do it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from beni.config.build import build
from beni.data.batch.check import Check
from beni.data.batch.loader import Steps
from beni.data.batch.probe import Probe, probe_samples
from beni.data.fetch.ahead import LookAhead
from beni.data.fetch.fetcher import Fetcher
from beni.data.order.index import Index
from beni.data.order.lengths import RunLengths
from beni.data.order.schedule import Schedule, needs_lengths
from beni.data.render.template import Renderer
from beni.data.sample import Bind, at_hand
from beni.data.source import Source
from beni.errors import DataError
from beni.evals.heldout import HeldOut, evenly
from beni.llm.layout import Layout
from beni.llm.tokenizer import load_tokenizer
from beni.model.viewer import Viewer
from beni.tracker.progress import index_progress


@dataclass(frozen=True)
class DataPipeline:
    """The way of a run's samples, from their source to micro-batches.

    Attributes:
        run: the frozen run.
        viewer: how the model sees pictures; without weights, since loader processes may have to copy it.
        fetcher: of pictures that lie elsewhere; whoever assembles closes it.
        lengths: what samples cost; known to the schedule only where it needs it.
    """

    run: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    source: Source
    viewer: Viewer
    fetcher: Fetcher
    schedule: Schedule
    lengths: RunLengths

    def probe(self) -> Probe:
        """What a few samples are like, for planning memory and costs."""
        skip = self.run["records"]["on_bad"] == "skip"
        return probe_samples(self.source, self.renderer, self.viewer, self.fetcher.bind, skip)

    def check(self, places: Sequence[int]) -> tuple[dict[int, str], list[str]]:
        """Looks at the held-out samples at ``places``, and at training samples as ``records.check`` says.

        Returns:
            Why held-out samples cannot be read, by place, and what a person should know.

        Raises:
            DataError: when samples cannot be used.
        """
        most, check = max_bad(self.run), self.run["records"]["check"]
        looked = Check(self.renderer, self.viewer, self.fetcher.bind, most)
        told = []
        if check == "all":
            self.lengths.loads(0)
        elif check == "sample" and self.schedule.lengths is None:
            bad = looked.training(self.source)
            told += [f"{len(bad)} of the checked training records are bad and are replaced: {bad[0]}"] if bad else []
        bad = looked.heldout(self.source.heldout(), places, self.source.metric)
        told += [f"{len(bad)} held-out records are bad and left out: {next(iter(bad.values()))}"] if bad else []
        return bad, told

    def steps(self, layout: Layout | None = None, rank: int = 0, world: int = 1, look_ahead: bool = False) -> Steps:
        """Optimizer step -> the micro-batches of one rank.

        Args:
            layout: None takes ``compute.layout``, which not every llm allows (place.py).
            look_ahead: ask for pictures before their step is drawn.
        """
        run = self.run
        return Steps(
            self.source,
            self.renderer,
            self.viewer,
            self.schedule,
            run["train"]["accumulation"],
            layout or run["compute"]["layout"],
            rank,
            world,
            pixel_keys=run["compute"]["feature_bank"] is not None,
            on_bad=run["images"]["on_bad"],
            on_bad_record=run["records"]["on_bad"],
            look_ahead=LookAhead(self.fetcher, run["images"]["ahead"], run["train"]["steps"]) if look_ahead else None,
            bind=self.fetcher.bind,
        )


def assemble(
    run: Mapping[str, Any], viewer: Viewer, progress: bool = False, tell: Callable[[str], None] | None = None
) -> DataPipeline:
    """The data pipeline of a frozen run.

    Args:
        viewer: of the run's model; the one on the meta device will do (model/costing/table.py).
        progress: show on stderr how far an index that has to be built is.
        tell: called with each notice of the source.

    Raises:
        DataError: when nothing is held out, samples cannot be used, or do not fit into a pack.
    """
    tokenizer = load_tokenizer(run["llm"])
    renderer = Renderer(tokenizer, run["template"])
    fetcher = Fetcher(run["images"])
    source: Source = build(run["data"], run["train"]["seed"])
    if len(source.heldout()) == 0:
        raise DataError(
            "data.heldout=0 holds no records out, so nothing could be scored\n"
            "  fix: set data.heldout=100, or fewer of a small set"
        )
    if tell is not None:
        for text in source.notices:
            tell(text)
    lengths, schedule = _schedule(run, source, renderer, viewer, progress, fetcher.bind)
    return DataPipeline(run, tokenizer, renderer, source, viewer, fetcher, schedule, lengths)


def held_out(data: DataPipeline, examples: int | None = None) -> tuple[HeldOut, list[str]]:
    """The held-out samples that a run scores, and what a person should know of them.

    Args:
        examples: how many; None takes ``eval.examples``.

    Raises:
        DataError: when samples cannot be used.
    """
    wanted, count = data.run["eval"]["examples"], len(data.source.heldout())
    most = data.schedule.samples(data.run["train"]["steps"]) if wanted == "auto" else wanted or count
    places = evenly(most if examples is None else examples, count)
    bad, told = data.check(places)
    return HeldOut([place for place in places if place not in bad], bad), told


def max_bad(run: Mapping[str, Any]) -> float | None:
    """The share of bad records that a run puts up with; None where it puts up with none."""
    return run["records"]["max_bad"] if run["records"]["on_bad"] == "skip" else None


def make_schedule(
    run: Mapping[str, Any],
    source: Source,
    renderer: Renderer,
    viewer: Viewer,
    progress: bool = False,
    bind: Bind = at_hand,
) -> Schedule:
    """The run's schedule, with an index where it needs one; that is built now or found in the cache.

    Args:
        progress: show how far the build is.
        bind: how pictures of the source can be opened.

    Raises:
        DataError: when samples cannot be used, or do not fit into a pack.
    """
    return _schedule(run, source, renderer, viewer, progress, bind)[1]


def _schedule(
    run: Mapping[str, Any], source: Source, renderer: Renderer, viewer: Viewer, progress: bool, bind: Bind
) -> tuple[RunLengths, Schedule]:
    settings, train, most = run["schedule"], run["train"], max_bad(run)
    each = settings["tokens_per_image"]
    needed = needs_lengths(settings)
    with index_progress(progress) as told:
        index = Index(source, renderer, viewer.sized, run["compute"]["workers"] or 1, told, bind, most)
        source.measure(index.mean_tokens)
        lengths = RunLengths(index, viewer, run["template"], None if each == "auto" else each, most)
        if needed or run["records"]["check"] == "all":
            lengths.loads(0)
    schedule = Schedule(train["seed"], len(source), train["batch_size"], settings, lengths if needed else None)
    return lengths, schedule
