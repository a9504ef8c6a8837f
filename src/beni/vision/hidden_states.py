"""Which hidden states of a vision model its features come from."""

from __future__ import annotations

from transformers import PreTrainedConfig

from beni.errors import CompositionError


def state_indices(config: PreTrainedConfig, layer: int, levels: list[int]) -> list[int | None]:
    """Which entries of ``hidden_states`` hold ``layer`` and then each of ``levels``; None for the last hidden state.

    Raises:
        CompositionError: E-LEVELS when one does not exist.
    """
    depth = config.to_dict().get("num_hidden_layers")
    if not isinstance(depth, int):
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer} and vision.levels={levels}, but {config.model_type} has no num_hidden_layers to "
            "count in",
            groups=("vision",),
            fix="set vision.layer=-1 'vision.levels=[]'",
        )
    if layer >= 0 or -layer > depth:
        raise CompositionError(
            "E-LEVELS",
            f"vision.layer={layer}, expected -1 (last hidden state) to {-depth}",
            groups=("vision",),
            fix="set vision.layer=-1 or -2",
        )
    if wrong := [level for level in levels if not -depth - 1 <= level <= depth]:
        raise CompositionError(
            "E-LEVELS",
            f"vision.levels={levels}: there is no hidden state {wrong[0]}, expected {-depth - 1} to {depth}",
            groups=("vision",),
            fix=f"set 'vision.levels={sorted({max(1, depth * k // 4) for k in (1, 2, 3, 4)})}'",
        )
    places = [level % (depth + 1) for level in levels]
    return [None if layer == -1 else depth + 1 + layer, *places]


def truncated(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """The config with the first ``depth`` blocks only."""
    # backbones name their stages by number; derived names of the whole model would not fit the shorter one
    fields = {k: v for k, v in config.to_dict().items() if k not in ("stage_names", "out_features", "out_indices")}
    return type(config).from_dict(fields | {"num_hidden_layers": depth})
