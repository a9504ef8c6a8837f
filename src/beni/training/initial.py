"""Starting from another run's weights: the align stage's connector under the finetune stage's plan."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from beni.errors import ResumeError


def load_initial(model: nn.Module, source: Path) -> list[str]:
    """Copies every tensor that the saved model at ``source`` shares with ``model`` by name and shape.

    Args:
        source: run folder (its ``model/`` is taken) or ``save_pretrained`` folder.

    Returns:
        Names of the tensors of ``model`` that kept their own values.

    Raises:
        ResumeError: when there is no saved model, or it shares nothing, or a tensor has another shape.
    """
    folder = source / "model" if (source / "model").is_dir() else source
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ResumeError(
            f"train.init_from={source} holds no saved model (*.safetensors); set it to a run folder that was finished "
            "with checkpoint.export=true, or to a save_pretrained folder"
        )
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    ours = model.state_dict()
    clash = [n for n in saved if n in ours and ours[n].shape != saved[n].shape]
    shared = {n: t for n, t in saved.items() if n in ours}
    if clash or not shared:
        what = f"{clash[0]} has shape {tuple(saved[clash[0]].shape)}" if clash else "no tensor has a name of this model"
        raise ResumeError(f"train.init_from={source} does not fit this run: {what}")
    model.load_state_dict(shared, strict=False)
    return sorted(ours.keys() - shared.keys())
