"""``BeniConfig``: the resolved parts of a run as plain dicts, so that a saved model can be rebuilt without the run."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from beni.auto_classes import register_model


class BeniConfig(PreTrainedConfig):
    """Everything ``BeniForConditionalGeneration`` is built from, and the template that it was trained with.

    Args:
        parts: config group -> resolved node (``_target_`` and values) for vision, views, selector, resampler,
            connector, fusion, llm, pruner, adapter and quantization.
        plan: component -> ``frozen``, ``full`` or ``lora``; decides where adapters are.
        image_token_id: placeholder that visual tokens replace.
        seed: of the named streams that draw initial weights.
        bases: backbone -> ``source`` and ``digest`` of other weights that ``train.init_from`` brought.
        template: the run's ``template`` section with its Jinja source in full, and ``hash``, which changes with
            anything that changes what the model is shown (``Renderer.hash``). None for a model that no run has saved.
    """

    model_type = "beni"

    def __init__(
        self,
        parts: dict[str, Any] | None = None,
        plan: dict[str, str] | None = None,
        image_token_id: int = 0,
        seed: int = 0,
        bases: dict[str, dict[str, str]] | None = None,
        template: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts = parts or {}
        self.plan = plan or {}
        self.image_token_id = image_token_id
        self.seed = seed
        self.bases = bases or {}
        self.template = template
        super().__init__(**kwargs)
        register_model()


AutoConfig.register(BeniConfig.model_type, BeniConfig)
