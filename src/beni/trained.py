"""``Trained``: a model as somebody uses it who only has its folder, with its processor, its device and its run.

``Trained.load(folder)`` reads a run folder, at any of its checkpoints, or a folder that ``save_pretrained`` or
``beni.export`` has written. Chat, evaluation and serving ask it; none of them builds a model by itself.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from beni.data.render.identity import require_own_chat_template, require_trained
from beni.data.render.template import Renderer
from beni.distributed.environment import read_environment
from beni.errors import ConfigError, DataError, ResumeError
from beni.evals.subject import Subject
from beni.llm.tokenizer import load_tokenizer
from beni.model.configuration import BeniConfig
from beni.model.context import evaluating
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.padding import reads_padding
from beni.model.processing import BeniProcessor, Conversation, saved_template
from beni.model.saving import describe
from beni.model.speaking import Answer, Gone, Hear, Sampling, Speaker, require_generates
from beni.model.viewer import Viewer
from beni.nn.precision import PRECISIONS, autocast
from beni.place import layout_for
from beni.runs.files import CHECKPOINTS, IDENTITY, MODEL, checkpoints_in, read_json
from beni.runs.frozen import is_frozen, load_frozen
from beni.runs.identity import signature
from beni.runs.shape import OF_IDENTITY
from beni.training.checkpoint.restore import restore
from beni.training.saved_model import CONFIG, require_whole
from beni.types import Sequence

Precision = Literal["fp32", "bf16"]
GREEDY = Sampling()
NOTHING = f"holds neither a run (config.yaml) nor a saved model ({CONFIG})"
LEAVE_OUT = "leave out the template, or allow the other prompt (--other-prompt)"
RESTORE = "restore its tokenizer; python -m beni.export <run folder> writes both"


@dataclass(frozen=True)
class Piece:
    """What has come to one of several answers.

    Attributes:
        row: number of its conversation.
        text: the next part of its text; may be empty.
        answer: the whole answer with its last piece; None before.
    """

    row: int
    text: str
    answer: Answer | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, ready to be asked.

    Attributes:
        folder: that it was read from.
        model: in evaluation mode, on its device.
        processor: its tokenizer, template and images.
        run: the frozen run; None of a saved folder, which knows none.
        step: that the weights are of; None where that is not known.
        device: where it computes.
        precision: ``bf16`` computes matrix products in it, over weights of any kind.
    """

    folder: Path
    model: BeniForConditionalGeneration
    processor: BeniProcessor
    run: Mapping[str, Any] | None
    step: int | None
    device: torch.device
    precision: Precision

    @classmethod
    def load(
        cls,
        folder: str | Path,
        checkpoint: str | int = "last",
        *,
        device: str | None = None,
        precision: Precision | None = None,
        template: Mapping[str, Any] | None = None,
        other_prompt: bool = False,
        average: bool | None = None,
    ) -> Trained:
        """The model of a run folder, or of a saved folder.

        Args:
            checkpoint: ``last``, ``newest`` (as ``last``, but never ``model/``), ``best`` (by ``checkpoint.keep_best``)
                or a step; a saved folder has only its last.
            device: ``auto``, ``cpu`` or ``cuda``; None takes that of the run, else ``auto``.
            precision: None takes that of the run, or of the weights of a saved folder.
            template: the ``template`` section of a run, to be used in the place of its own.
            other_prompt: allow prompts that differ from those of training.
            average: of a run's checkpoint read the average of the weights, or the weights; None takes what the run
                scores: the average where it has one (``train.ema``).

        Raises:
            ResumeError: when there is no such folder, checkpoint or average, or it is damaged.
            ConfigError: when template or tokenizer are not those of training (both prompts are shown), or there is no
                such device or precision.
            ResourceError: when there is no such device here.
        """
        folder = Path(folder)
        if precision not in (None, *PRECISIONS):
            raise ConfigError(f"precision={precision}, expected one of {', '.join(PRECISIONS)}\n  fix: set one of them")
        where = None if device is None else read_environment(device, setting="--device ").device
        if is_frozen(folder):
            run: dict[str, Any] | None = load_frozen(folder)
            model, renderer, step = _of_run(folder, run, str(checkpoint), template, other_prompt, average)
        elif (folder / CONFIG).is_file():
            run, step = None, None
            _require_one_kind(folder, average)
            model, renderer = _of_saved(folder, str(checkpoint), template, other_prompt)
        else:
            why = NOTHING if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
            raise ResumeError(
                f"{folder} {why}\n"
                "  fix: name the folder of a run, its model/, or what python -m beni.export has written"
            )
        compute = {} if run is None else run["compute"]
        where = where or read_environment(compute.get("device", "auto"), setting="--device ").device
        model.quantization.require(where)
        return cls.of(folder, model, renderer, run, step, where, precision or compute.get("precision"))

    @classmethod
    def of(
        cls,
        folder: Path,
        model: BeniForConditionalGeneration,
        renderer: Renderer,
        run: Mapping[str, Any] | None,
        step: int | None,
        device: torch.device,
        precision: Precision | None = None,
    ) -> Trained:
        """A model that is at hand: put on its device, and told of its template and processor.

        Args:
            renderer: of the prompts that it is asked by.
            precision: None takes that of its weights.
        """
        torch.nn.Module.to(model.eval(), device)
        describe(model, renderer)
        model.processor = processor = BeniProcessor(renderer.tokenizer, model.config, model.viewer)
        return cls(folder, model, processor, run, step, device, precision or _own(model))

    @property
    def renderer(self) -> Renderer:
        """What turns conversations into token ids, and ids into text."""
        return self.processor.renderer

    @property
    def viewer(self) -> Viewer:
        """How the model sees images."""
        return self.model.viewer

    @cached_property
    def together(self) -> bool:
        """Whether prompts of different lengths can be answered in one batch: some recurrent llms read its padding."""
        return not reads_padding(self.model, self.renderer.tokens, self.device, self.precision)

    def weights(self) -> str:
        """What tells these weights from others: the run and its step, or the files of a saved folder."""
        if self.run is not None and self.step is not None:
            return f"{signature(dict(self.run))} after step {self.step}"
        there = self.folder / MODEL if (self.folder / MODEL).is_dir() else self.folder
        told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in there.glob("*.safetensors")]
        return hashlib.sha256(repr(sorted(told)).encode()).hexdigest()[:16]

    def subject(self, batch_size: int) -> Subject:
        """The model under evaluation."""
        layout = self.run["compute"]["layout"] if self.run else "padded"
        layout = layout_for(self.model, layout, lambda text: None)
        return Subject(self.model, self.renderer, self.viewer, layout, self.precision, batch_size, self.device)

    def say(
        self,
        conversations: Several[Conversation],
        sampling: Sampling | Several[Sampling] = GREEDY,
        hear: Hear = lambda row, text: None,
        gone: Gone = lambda row: False,
    ) -> list[Answer]:
        """What the model answers to several conversations, in one batch where its llm allows.

        Args:
            conversations: as ``BeniProcessor.apply_chat_template`` takes them, each with any number of images.
            sampling: of all, or one for each. With a seed an answer is the same in any batch.
            hear: told of every piece of text as it comes: number of the conversation, text.
            gone: asked after every token whether an answer is not wanted any more.

        Raises:
            DataError: when a conversation cannot be rendered, has an image that cannot be read, or leaves the llm no
                position for an answer.
            CompositionError: when transformers cannot generate with this llm.
        """
        if not conversations:
            return []
        samplings = [sampling] * len(conversations) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(conversations):
            raise ConfigError(
                f"{len(samplings)} samplings for {len(conversations)} conversations\n  fix: give one for each, or one"
            )
        require_generates(self.model.llm)
        if len(conversations) > 1 and not self.together:
            return self._one_by_one(conversations, samplings, hear, gone)
        batch = self.processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=True)
        lengths = batch["attention_mask"].sum(-1).tolist()
        rooms = [self.room(length) for length in lengths]
        if len(rooms) > 1 and max(how.max_new_tokens for how in samplings) > min(rooms):
            return self._one_by_one(conversations, samplings, hear, gone)  # a row goes on as long as its batch does
        speaker = Speaker(self.renderer, samplings, rooms, hear, gone)
        with torch.no_grad(), evaluating(self.model), autocast(self.device, self.precision):
            self.model.generate(**batch.to(self.device), **speaker.options())
        return speaker.answers(lengths)

    @torch.no_grad()
    def prompt(self, conversation: Conversation) -> Sequence:
        """(1, t): what the llm reads in front of the answer to a conversation.

        Raises:
            DataError: when it cannot be rendered, has an image that cannot be read, or leaves the llm no position.
        """
        batch = self.processor.apply_chat_template([conversation], add_generation_prompt=True, tokenize=True)
        self.room(batch["input_ids"].shape[1])
        with evaluating(self.model), autocast(self.device, self.precision):
            return self.model.prompt(**batch.to(self.device))

    def _one_by_one(
        self, conversations: Several[Conversation], samplings: Several[Sampling], hear: Hear, gone: Gone
    ) -> list[Answer]:
        return [
            self.say([one], how, lambda _, text, row=row: hear(row, text), lambda _, row=row: gone(row))[0]
            for row, (one, how) in enumerate(zip(conversations, samplings, strict=True))
        ]

    def stream(
        self, conversations: Several[Conversation], sampling: Sampling | Several[Sampling] = GREEDY
    ) -> Iterator[Piece]:
        """What ``say`` answers, piece by piece while it comes; an iterator that is closed ends the answers."""
        pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()

        def work() -> None:
            try:
                heard = self.say(
                    conversations, sampling, lambda row, text: pieces.put(Piece(row, text)), lambda row: closed.is_set()
                )
                for row, answer in enumerate(heard):
                    pieces.put(Piece(row, "", answer))
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        worker = threading.Thread(target=work, name="beni-stream", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            closed.set()
            worker.join()

    def room(self, taken: int) -> int:
        """New tokens that the llm has positions for behind a prompt of so many.

        Raises:
            DataError: when it has none.
        """
        limit = self.model.llm.max_positions
        if limit is None:
            return 2**31
        if taken >= limit:
            raise DataError(
                f"the conversation takes {taken} positions, the llm has {limit}\n"
                "  fix: shorten it, or leave out some of its images"
            )
        return limit - taken


def trained_with(folder: Path) -> dict[str, Any]:
    """The run of a folder; of a saved model, which knows no more, the ``template`` section; else nothing.

    Raises:
        ResumeError: when the run is damaged.
        ConfigError: when the model was saved without its template.
    """
    if is_frozen(folder):
        return load_frozen(folder)
    if not (folder / CONFIG).is_file():
        return {}
    own = saved_template(BeniConfig.from_pretrained(folder))
    return {"template": {key: value for key, value in own.items() if key not in ("hash", "specimen")}}


def _of_run(
    folder: Path,
    run: Mapping[str, Any],
    checkpoint: str,
    template: Mapping[str, Any] | None,
    other_prompt: bool,
    average: bool | None,
) -> tuple[BeniForConditionalGeneration, Renderer, int | None]:
    """A run's model at a checkpoint; its last one is that of ``model/`` where checkpoints were removed."""
    renderer = Renderer(load_tokenizer(run["llm"]), dict(template or run["template"]))
    identity, problem = read_json(folder / IDENTITY, OF_IDENTITY)
    if problem is not None:
        raise ResumeError(f"{folder}: {problem}\n  fix: restore {IDENTITY} from a copy, or name {folder / MODEL}")
    if "template_hash" in identity and not other_prompt:
        trained = {"hash": identity["template_hash"], "specimen": identity.get("specimen")}
        require_trained(renderer, trained, str(folder), _restored(folder) if template is None else LEAVE_OUT)
    if checkpoint == "last" and not checkpoints_in(folder / CHECKPOINTS) and (folder / MODEL).is_dir():
        if average != (run["train"]["ema"] > 0):  # else it asks for what is there
            _require_one_kind(folder / MODEL, average)
        return *_of_saved(folder / MODEL, checkpoint, template, other_prompt), None
    scored = run["train"]["ema"] > 0 if average is None else average
    model, step = restore(folder, run, checkpoint, scored)
    return model, renderer, step


def _require_one_kind(folder: Path, average: bool | None) -> None:
    """Return when nobody chooses among the weights of a saved model."""
    if average is not None:
        raise ConfigError(
            f"average={average}: {folder} is a saved model, which has the weights that its run scores and no others\n"
            "  fix: name the folder of a run with checkpoints, or leave out average"
        )


def _restored(folder: Path) -> str:
    """How the prompts of a run become again what they were."""
    own = f", or name {folder / MODEL}, which has its own, to talk to it or to evaluate it"
    return f"restore template and tokenizer as they were{own if (folder / MODEL).is_dir() else ''}"


def _of_saved(
    folder: Path, checkpoint: str, template: Mapping[str, Any] | None, other_prompt: bool
) -> tuple[BeniForConditionalGeneration, Renderer]:
    if checkpoint != "last":
        raise ResumeError(
            f"{folder} is a saved model and has no checkpoint {checkpoint}, expected last\n"
            "  fix: name the folder of the run, or leave out the checkpoint"
        )
    require_whole(folder, str(folder), "restore it from a copy, or write it again with python -m beni.export")
    own = saved_template(BeniConfig.from_pretrained(folder))
    settings = dict(own if template is None else template)
    # the tokenizer's own template is the run's, wrapped: what the run's was made of stands in the config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer, settings | {"jinja": settings["jinja"] or own["jinja"]})
    if not other_prompt:
        require_own_chat_template(tokenizer, own, str(folder))
        require_trained(renderer, own, str(folder), RESTORE if template is None else LEAVE_OUT)
    return BeniForConditionalGeneration.from_pretrained(folder).eval(), renderer


def _own(model: BeniForConditionalGeneration) -> Precision:
    """The precision that weights were stored for."""
    return "bf16" if any(p.dtype == torch.bfloat16 for p in model.parameters()) else "fp32"
