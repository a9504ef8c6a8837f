"""A run as a folder of a class of transformers, which loads without beni. Nothing is written that was not compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging

from beni.data.render.tokens import SpecialTokens
from beni.errors import CompositionError
from beni.export.formats import Export
from beni.export.native.base import Family, Vocabulary
from beni.export.native.comparing import Agreement, compare_models, compare_processors, prompts
from beni.export.native.families import family_of
from beni.export.native.tensors import with_rows
from beni.model.chat_template import STRIPPED, chat_template
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.saving import generation_defaults
from beni.trained import Trained

UNREAD = (".pooler.", ".head.")
"""Parts of encoders that no class of a family reads; a run that did not build them has no weights for them."""


def write(export: Export) -> None:
    """Writes model, processor, tokenizer and generation config into ``export.out``.

    Raises:
        CompositionError: E-NATIVE when no class is this composition, or one says something else than the run.
    """
    native, processor, found, family = native_of(export.trained)
    shards: dict[str, Any] = {} if export.shard_size is None else {"max_shard_size": export.shard_size}
    with unannounced():
        native.save_pretrained(export.out, **shards)
    processor.save_pretrained(export.out)
    export.findings.architecture = family.architecture.__name__
    report(family, found, processor, export)


def native_of(trained: Trained) -> tuple[PreTrainedModel, ProcessorMixin, Agreement, Family]:
    """The run as a class of transformers, compared with it.

    Raises:
        CompositionError: E-NATIVE as ``write``.
    """
    model, renderer = trained.model.float(), trained.renderer
    model.merge_adapters()
    family = family_of(model)
    template = chat_template(renderer.jinja, renderer.settings["system"], STRIPPED)
    processor = family.processor(model, own_tokenizer(renderer.tokenizer, template), template)
    vocabulary = vocabulary_of(model, cast(Any, processor).tokenizer)
    native = built(family, model, vocabulary)
    native.generation_config = generation(renderer.tokens, vocabulary)
    asked = prompts(model, trained.processor, family)
    found = compare_models(model, native, family, asked, vocabulary.trained)
    require_equal(family, found)
    processor = reloaded(processor, native)
    compare_processors(found, native, processor, family, asked)
    require_same_prompts(family, found, processor)
    return native, processor, found, family


def vocabulary_of(model: BeniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """One row of embeddings for each id of the tokenizer: classes of transformers look the placeholder up, too."""
    image = cast(int, model.config.image_token_id)
    return Vocabulary(image, max(len(tokenizer), image + 1, model.llm.vocab_size), model.llm.vocab_size)


def generation(tokens: SpecialTokens, vocabulary: Vocabulary) -> GenerationConfig:
    """Greedy up to the run's end tokens, and never an id that the llm of the run does not have."""
    config = generation_defaults(tokens)
    if vocabulary.size > vocabulary.trained:
        config.suppress_tokens = list(range(vocabulary.trained, vocabulary.size))
    return config


def built(family: Family, model: BeniForConditionalGeneration, vocabulary: Vocabulary) -> PreTrainedModel:
    """The class with the weights of the run.

    Raises:
        CompositionError: E-NATIVE when names or shapes of tensors do not agree.
    """
    config = family.config(model, vocabulary)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in family.architecture(config).state_dict().items()}
    state = with_rows(family.weights(model), expected)
    for name in expected.keys() - state.keys():
        if any(part in name for part in UNREAD):
            state[name] = torch.zeros(expected[name])
    wrong = [f"{name} is not written" for name in sorted(expected.keys() - state.keys())]
    wrong += [f"{name} has no place" for name in sorted(state.keys() - expected.keys())]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in sorted(expected.items())
        if name in state and state[name].shape != shape
    ]
    if wrong:
        raise refusal(family, f"tensors do not agree: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
    return _loaded(family, config, state).eval()


def _loaded(family: Family, config: PreTrainedConfig, state: dict[str, Tensor]) -> PreTrainedModel:
    with unannounced():
        return family.architecture.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)


@contextmanager
def unannounced() -> Iterator[None]:
    """Inside the block transformers draws no progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def own_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """The run's tokenizer with another template, for the exported folder alone."""
    own = deepcopy(tokenizer)
    own.padding_side = "left"
    own.chat_template = template
    return own


def reloaded(processor: ProcessorMixin, native: PreTrainedModel) -> ProcessorMixin:
    """The processor as ``AutoProcessor`` reads it from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        native.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        return cast(ProcessorMixin, AutoProcessor.from_pretrained(folder))


def require_equal(family: Family, found: Agreement) -> None:
    """Logits and greedy text are those of the run.

    Raises:
        CompositionError: E-NATIVE when they are not.
    """
    if found.logits > found.bound:
        raise refusal(
            family,
            f"its logits differ by {found.logits:.3g} from those of the run on {found.prompts} prompts; allowed are "
            f"{found.bound:.3g} (1e-5 of the largest logit, {found.largest:.3g})",
        )
    if found.same_text < found.prompts:
        raise refusal(
            family,
            f"it answers {found.prompts - found.same_text} of {found.prompts} prompts with another text, though logits "
            f"differ by {found.logits:.3g} only",
        )


def require_same_prompts(family: Family, found: Agreement, processor: ProcessorMixin) -> None:
    """Prompts have the ids of the run.

    Raises:
        CompositionError: E-NATIVE when they do not.
    """
    if found.same_ids < found.prompts:
        raise refusal(
            family,
            f"{type(processor).__name__} gives other ids in {found.prompts - found.same_ids} of {found.prompts} "
            f"prompts: {found.remarks[0]}",
        )


def refusal(family: Family, why: str) -> CompositionError:
    """The error of a class that is not the run."""
    return CompositionError(
        "E-NATIVE", f"{family.architecture.__name__} is not this run: {why}", fix="set --format pretrained"
    )


def report(family: Family, found: Agreement, processor: ProcessorMixin, export: Export) -> None:
    """Shows what was compared, and keeps it for the card."""
    image_processor = type(getattr(processor, "image_processor", None)).__name__
    export.findings.compared += [
        ("largest difference of a logit", f"{found.logits:.2g} (largest logit {found.largest:.3g})"),
        ("greedy answers that are equal", f"{found.same_text} of {found.prompts}"),
        (f"prompts with equal ids by {type(processor).__name__}", f"{found.same_ids} of {found.prompts}"),
        (f"prompts with equal pixels by {image_processor}", pixels(found)),
    ]
    export.findings.notes += family.notes
    shown = Table("compared with the run", "result", box=box.SIMPLE, title=family.architecture.__name__)
    for row in export.findings.compared:
        shown.add_row(*row)
    export.show(shown)
    for note in family.notes:
        export.show(note, highlight=False)


def pixels(found: Agreement) -> str:
    """How near the image processor comes, in words."""
    equal = f"{found.same_pixels} of {found.images}"
    if found.pixels is None:
        return f"{equal}; others have another shape"
    if found.same_pixels == found.images:
        return equal
    moved = "" if found.own_logits is None else f", which moves logits by up to {found.own_logits:.2g}"
    return f"{equal}; others differ by up to {found.pixels:.2g} in normalised units{moved}"
