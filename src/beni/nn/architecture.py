"""A Hugging Face architecture as data: from a YAML's own fields, or from a model's ``config.json``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)

from beni.components import DESCRIBED
from beni.config.architecture import described
from beni.config.suggest import closest
from beni.errors import ConfigError, WeightsError, reason
from beni.hub import require

TYPES: dict[str, tuple[Iterable[str], str]] = {
    "vision": (CONFIG_MAPPING, "siglip_vision_model"),
    "llm": (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "llama"),
    "views": (MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, "rt_detr_v2"),
}
"""Group -> types of models that it can be given, and a usual one."""


def read_architecture(name: str | None, architecture: dict[str, Any] | None, group: str) -> PreTrainedConfig:
    """The Hugging Face config a part describes, from its own dict or from ``name``.

    Raises:
        ConfigError: when neither is given or the ``model_type`` is unknown.
        WeightsError: when ``name`` cannot be had on this machine.
    """
    if architecture is None:
        if name is None:
            raise ConfigError(f"{group}.architecture and {group}.name are both null; set one of them")
        require(name, group, "architecture")
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:  # no such repository, or a model that brings code of its own
            raise WeightsError(
                f"{group}.name={name}: {reason(error)}\n"
                f"  fix: set {group}.name to a model whose type transformers knows, or to a local folder"
            ) from error
        return config.vision_config if group == "vision" and "vision_config" in config.sub_configs else config
    values = dict(architecture)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        types, usual = TYPES[group]
        near = get_close_matches(str(kind), list(types), n=3) or [usual]
        others = f" (or {', '.join(near[1:])})" if near[1:] else ""
        raise ConfigError(
            f"{group}.architecture needs a model_type that transformers knows; missing or unknown: {kind}\n"
            f"  fix: set {group}.architecture.model_type={near[0]}{others}, or another type of transformers"
        )
    try:
        return AutoConfig.for_model(kind, **values)
    except UNBUILDABLE as error:
        raise ConfigError(
            f"{group}.architecture: {reason(error, -1)}\n  fix: correct the fields of {group}.architecture"
        ) from error


def require_fields(run: Mapping[str, Any]) -> None:
    """Return when every field of every ``architecture`` of a run is one that its model knows: transformers keeps any
    other as an attribute that nobody reads, and a misspelt one trains the default.

    Raises:
        ConfigError: with every field that is unknown, and the one that was probably meant.
    """
    problems = []
    for group in DESCRIBED:
        for path, node, *_ in described(group, run[group]):
            given = node["architecture"] or {}
            kind = given.get("model_type")
            if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
                continue  # read_architecture says so
            known = fields_of(CONFIG_MAPPING[kind]) | ({"num_labels"} if group == "views" else set())
            for key in given.keys() - known:
                near = closest(key, [name for name in known if not name.startswith("_")])
                fix = f"did you mean {path}.architecture.{near}?" if near else f"leave out {path}.architecture.{key}"
                problems.append(f"{path}.architecture.{key}: a {kind} has no such field\n  fix: {fix}")
    if problems:
        raise ConfigError("\n".join(sorted(problems)))


def fields_of(kind: type[PreTrainedConfig]) -> set[str]:
    """Fields that a config class takes: its own, their other names, and those that older models have."""
    known = {field.name for field in fields(kind)} | set(kind.attribute_map) | set(vars(kind())) | {"model_type"}
    known |= set(signature(kind.__init__).parameters) | OLDER | UNDECLARED.get(kind.model_type, set())
    return known | ROPE if "rope_parameters" in known else known


OLDER = {"torch_dtype", "_attn_implementation", "attn_implementation", "transformers_version", "auto_map"}
"""Fields that every config takes though no class declares them."""
UNDECLARED = {kind: {"vision_use_head"} for kind in ("siglip_vision_model", "siglip2_vision_model")}
"""Fields that a model reads, and that its config declares only in newer versions of transformers."""
ROPE = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"}
"""Older names of what is in ``rope_parameters``, which transformers moves there."""


UNBUILDABLE = (
    *(ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError, KeyError, ImportError),
    StrictDataclassError,
)


AUTO = "auto"
"""Value of ``attn_implementation`` that leaves the choice to what the model has."""

OFFERED = {
    "sdpa": "_supports_sdpa",
    "eager": None,
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""Names of attention -> the flag of transformers' model classes that says whether they have it; None where each has."""


def choose_attention(kind: type[PreTrainedModel], asked: str, group: str) -> str:
    """The name of the attention that a model computes with: the one asked for, or of ``auto`` torch's where the class
    has it and ``eager``, which every class has, where not.

    Args:
        kind: model class of transformers.
        asked: value of ``attn_implementation``.
        group: ``vision`` or ``llm``, for the error.

    Raises:
        ConfigError: the class does not have the attention asked for, or nobody has one of that name.
    """
    if asked == AUTO:
        return "sdpa" if kind._supports_sdpa else "eager"
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if asked not in known and "/" not in asked:  # with a slash it is a kernel of the hub
        near = closest(asked, known) or AUTO
        raise ConfigError(
            f"{group}.attn_implementation={asked}: transformers has no attention of that name; expected {AUTO}, eager, "
            f"sdpa, flash_attention_2 or flex_attention\n  fix: set {group}.attn_implementation={near}"
        )
    flag = next((flag for name, flag in OFFERED.items() if name.partition("_")[0] in asked), None)
    if flag is None or getattr(kind, flag):
        return asked
    has = [name for name, flag in OFFERED.items() if flag is None or getattr(kind, flag)]
    raise ConfigError(
        f"{group}.attn_implementation={asked}: {kind.__name__} of transformers has {', '.join(has)} only\n"
        f"  fix: set {group}.attn_implementation={has[0]}, or {AUTO} for the best that it has"
    )


@contextmanager
def buildable(group: str, model_type: str, attention: str) -> Iterator[None]:
    """Around building a model: fields that do not fit each other, or an attention it lacks, are the user's to mend.

    Raises:
        ConfigError: instead of whatever transformers and torch raise.
    """
    try:
        yield
    except UNBUILDABLE as error:
        said = reason(error, -1)
        if "attn_implementation" in str(error) or "attention implementation" in said:
            raise ConfigError(
                f"{group}.attn_implementation={attention}: {said.split('. ')[0]}\n"
                f"  fix: set {group}.attn_implementation=eager"
            ) from error
        if isinstance(error, ImportError):  # one line of its text names the package, its first where there are several
            raise ConfigError(
                f"{group}.architecture.model_type={model_type} needs a package that is not installed: {reason(error)}\n"
                f"  fix: install it, or choose another {group}.architecture.model_type"
            ) from error
        raise ConfigError(
            f"{group}.architecture of model_type={model_type} cannot be built: {said}\n"
            f"  fix: correct the fields of {group}.architecture that this speaks of"
        ) from error
