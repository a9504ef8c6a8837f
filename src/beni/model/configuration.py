"""``BeniConfig``: the resolved parts of a run as plain dicts, so that a saved model can be rebuilt without the run."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class BeniConfig(PreTrainedConfig):
    """Everything ``BeniForConditionalGeneration`` is built from.

    Args:
        parts: config group -> resolved node (``_target_`` and values) for vision, views, selector, resampler,
            connector, fusion, llm, adapter and quantization.
        plan: component -> ``frozen``, ``full`` or ``lora``; decides where adapters are.
        image_token_id: placeholder that visual tokens replace.
        seed: of the named streams that draw initial weights.
        bases: backbone -> ``source`` and ``digest`` of other weights that ``train.init_from`` brought.
    """

    model_type = "beni"

    def __init__(
        self,
        parts: dict[str, Any] | None = None,
        plan: dict[str, str] | None = None,
        image_token_id: int = 0,
        seed: int = 0,
        bases: dict[str, dict[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts = parts or {}
        self.plan = plan or {}
        self.image_token_id = image_token_id
        self.seed = seed
        self.bases = bases or {}
        super().__init__(**kwargs)
