"""Options by which ``transformers``' processors are called: how a batch is given is obeyed, what asks for nothing is
accepted, and all else is refused by name, since prompts are those of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from beni.errors import DataError

NESTED = ("processor_kwargs", "common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
"""Options that hold others."""
LONGEST, ALIKE, FIXED = (True, "longest"), (False, None, "do_not_pad"), ("max_length",)
"""Values of ``padding``: as long as the longest row, no padding, and as long as ``max_length``."""
NOT_CUT = (False, None, "do_not_truncate")
CUT = (True, "longest_first", "only_first")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "padding_side": ("left",),
    "tools": ([], ()),
    "documents": ([], ()),
    "videos": ([], ()),
    "audio": ([], ()),
    "return_attention_mask": (True,),
    "return_token_type_ids": (False,),
    "return_mm_token_type_ids": (False,),
    "return_special_tokens_mask": (False,),
    "return_offsets_mapping": (False,),
    "return_overflowing_tokens": (False,),
    "return_length": (False,),
    "return_assistant_tokens_mask": (False,),
    "is_split_into_words": (False,),
    "load_audio_from_video": (False,),
    "sanitize_control_tokens": (False, True),  # what spells a control token in a message is always text
    "stride": (0,),
    "verbose": (False, True),
}
"""Options at values that change nothing; None never does."""
FIXES = {
    "padding_side": "leave it out: what is generated follows the last position of a row",
    "chat_template": "leave it out; another template is one of training (template=..., template.jinja=...)",
}
LEAVE_OUT = "leave it out: texts and images are read as in training"


@dataclass(frozen=True)
class Form:
    """How a batch is given.

    Attributes:
        tensors: ``pt``, ``np`` or None (lists).
        padding, truncation, max_length, pad_to_multiple_of: as ``transformers``' tokenizers mean them, except that no
            row is ever cut.
        add_special_tokens: False of texts that begin with the bos token that training had in front.

    Raises:
        DataError: when a value is unknown.
    """

    tensors: str | None = "pt"
    padding: bool | str | None = True
    truncation: bool | str | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool | None = None

    def __post_init__(self) -> None:
        length = self.max_length
        checks = (
            ("return_tensors", self.tensors, self.tensors in ("pt", "np", None), "'pt', 'np' or None"),
            ("padding", self.padding, self.padding in (*LONGEST, *ALIKE, *FIXED), "True, False or 'max_length'"),
            ("truncation", self.truncation, self.truncation in (*NOT_CUT, *CUT), "True or False"),
            ("max_length", length, _counts(length), "a whole number of at least 1"),
            ("pad_to_multiple_of", self.pad_to_multiple_of, _counts(self.pad_to_multiple_of), "a whole number"),
            ("max_length", length, self.padding not in FIXED or length is not None, "a number beside this padding"),
        )
        for name, value, right, expected in checks:
            if not right:
                raise DataError(
                    f"{name}={value!r:.80}, expected {expected}\n  fix: set another {name}, or leave it out"
                )

    def width(self, lengths: Sequence[int], longest: int) -> int:
        """Positions of a row of the batch.

        Args:
            lengths: of its rows.
            longest: what ``truncation`` alone holds rows to.

        Raises:
            DataError: when rows are to be left as they are and differ, or one would have to be cut.
        """
        width = max(lengths)
        most = longest if self.max_length is None else self.max_length
        held = self.truncation in CUT or (self.max_length is not None and self.padding not in FIXED)
        if held and width > most:
            raise DataError(
                f"a row has {width} tokens, max_length={most}, and no prompt is cut: it would lose its end\n"
                f"  fix: set max_length={width}, leave it out, or shorten the prompt"
            )
        if self.padding in ALIKE and len(set(lengths)) > 1:
            raise DataError(
                f"padding={self.padding!r} for rows of {min(lengths)} to {width} tokens, expected True: rows of a "
                "batch end together\n  fix: leave it out"
            )
        if self.padding in FIXED and self.max_length is not None:
            width = max(width, self.max_length)
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple

    def given(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as arrays or lists, where these are asked for."""
        if self.tensors == "pt":
            return batch
        return {name: self._given(name, value) for name, value in batch.items()}

    def _given(self, name: str, value: Any) -> Any:
        if name == "pixels":
            arrays = [view.numpy() for view in value]
            return value.numpy() if self.tensors == "np" and isinstance(value, Tensor) else arrays
        if not isinstance(value, Tensor):
            return value
        return value.numpy() if self.tensors == "np" else value.tolist()


def form_of(tensors: Any, given: Mapping[str, Any]) -> Form:
    """The form that options ask for.

    Args:
        tensors: ``return_tensors``.
        given: all other options.

    Raises:
        DataError: when one of them asks for what no processor of beni does.
    """
    flat = {"return_tensors": tensors} | _flat(given)
    tensors = flat.pop("return_tensors")
    form = {name: flat.pop(name) for name in set(flat) & set(Form.__dataclass_fields__)}
    require_neutral(flat)
    return Form(tensors="pt" if tensors in ("pt", "auto") else tensors, **form)


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= _flat(value or {}) if name in NESTED else {name: value}
    return flat


def require_neutral(given: Mapping[str, Any]) -> None:
    """Return when options ask for nothing.

    Raises:
        DataError: when one does.
    """
    for name, value in given.items():
        if value is not None and not any(type(value) is type(one) and value == one for one in NEUTRAL.get(name, ())):
            raise DataError(
                f"{name}={value!r:.80}, which the processor of a beni model does not do\n"
                f"  fix: {FIXES.get(name, LEAVE_OUT)}"
            )


def _counts(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
