"""A run as two files for llama.cpp, by way of its class of transformers, which is compared with the run before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from beni.data.render.tokens import SpecialTokens, leading_bos
from beni.errors import CompositionError
from beni.export.formats import Export
from beni.export.gguf import mmproj
from beni.export.gguf.content import Content, differences, library, write_file
from beni.export.gguf.llm import llm_content
from beni.export.gguf.vocabulary import vocabulary_fields
from beni.export.native.writing import native_of, report

LLM, MMPROJ = "llm.gguf", "mmproj.gguf"


@dataclass(frozen=True)
class Projector:
    """How a class becomes a file.

    Attributes:
        content: of encoder and projector.
        decoder: what stands before the names of the decoder's tensors.
        spoken: tokens that llama.cpp writes around an image.
    """

    content: Callable[[Any, Mapping[str, Tensor], Mapping[str, Any]], Content]
    decoder: str
    spoken: tuple[str, ...] = ()


PROJECTORS = {
    "LlavaForConditionalGeneration": Projector(mmproj.llava, "model.language_model."),
    "Idefics3ForConditionalGeneration": Projector(
        mmproj.idefics3, "model.text_model.", ("\n", "\n\n", "<fake_token_around_image>", "<global-img>")
    ),
}


def write(export: Export) -> None:
    """Writes ``llm.gguf`` and ``mmproj.gguf`` into ``export.out`` and reads them back.

    Raises:
        CompositionError: E-NATIVE when the run is no class of transformers, E-GGUF when llama.cpp would compute
            something else.
        WeightsError: when the package ``gguf`` is not installed.
    """
    library()
    native, processor, found, family = native_of(export.trained)
    name = family.architecture.__name__
    if name not in PROJECTORS:
        raise CompositionError(
            "E-GGUF",
            f"{name} cannot be written for llama.cpp: beni writes {' and '.join(PROJECTORS)}",
            fix="set --format native, and convert that with llama.cpp's convert_hf_to_gguf.py",
        )
    require_spoken(processor, PROJECTORS[name])
    report(family, found, processor, export)
    for file, content in contents(native, processor, PROJECTORS[name], export).items():
        write_file(export.out / file, content)
        if wrong := differences(export.out / file, content):
            raise RuntimeError(f"{file} does not hold what was written: {'; '.join(wrong[:3])}")
        result = f"{len(content.tensors)} tensors and {len(content.fields)} fields, read back equal"
        export.findings.compared.append((file, result))
        export.show(f"{file}: {result}", highlight=False)


def contents(
    native: PreTrainedModel, processor: ProcessorMixin, projector: Projector, export: Export
) -> dict[str, Content]:
    """File -> what it holds."""
    told: Any = processor
    state = native.state_dict()
    inner = {
        name.replace(projector.decoder, "model.", 1): tensor
        for name, tensor in state.items()
        if name.startswith((projector.decoder, "lm_head."))
    }
    llm = llm_content(native.config.get_text_config(), inner)
    size = native.config.get_text_config().vocab_size
    llm.fields |= {"general.name": export.trained.folder.name, "general.type": "model"}
    generation: Any = native.generation_config
    ends = SpecialTokens(
        image=cast(Any, native.config).image_token_id,
        bos=leading_bos(told.tokenizer),
        pad=generation.pad_token_id,
        eos=tuple(generation.eos_token_id),
    )
    llm.fields |= vocabulary_fields(told.tokenizer, ends, size, told.chat_template)
    images = told.image_processor
    seen = {"image_mean": images.image_mean, "image_std": images.image_std, "longest": images.size.get("longest_edge")}
    return {LLM: llm, MMPROJ: projector.content(native.config, state, seen)}


def require_spoken(processor: ProcessorMixin, projector: Projector) -> None:
    """Return when the tokenizer has the tokens that llama.cpp looks up by their text; it fails where it finds none.

    Raises:
        CompositionError: E-GGUF when it has not.
    """
    tokenizer: Any = cast(Any, processor).tokenizer
    texts = {tokenizer.convert_tokens_to_string([token]) for token in tokenizer.get_vocab()}
    if missing := [token for token in projector.spoken if token not in texts]:
        raise CompositionError(
            "E-GGUF",
            f"llama.cpp writes {', '.join(map(repr, missing))} around an image, which the tokenizer does not have",
            groups=("llm", "views"),
            fix="train with an llm.tokenizer that has these tokens, or set --format native",
        )
