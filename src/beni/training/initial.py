"""Starting from another run's weights: the align stage's connector under the finetune stage's plan."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from beni.errors import ResumeError
from beni.model import adapters
from beni.model.configuration import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.quantized import BACKBONES, backbone, packed_layers
from beni.nn.packed import PREFIX


def load_initial(model: BeniForConditionalGeneration, source: Path) -> list[str]:
    """Copies every tensor that the saved model at ``source`` shares with ``model`` by name and shape.

    Adapters of components that have none there begin anew beside the weights that came. Backbones that got other
    weights than they were built with are noted in the model's config: their adapters belong beside those.

    Args:
        source: run folder (its ``model/`` is taken) or ``save_pretrained`` folder.

    Returns:
        Names of the tensors of ``model`` that kept their own values.

    Raises:
        ResumeError: when there is no saved model, it shares nothing, a tensor has another shape, or it has adapters
            that this model lacks or that would compute something else here.
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
    saved = {_place(name, ours): tensor for name, tensor in saved.items()}
    packed = _pack(model, saved)
    adapted = {name for name in saved if "lora_" in name}
    components = {name.partition(".")[0] for name in adapted}
    expected = {name for name in ours if "lora_" in name and name.partition(".")[0] in components}
    if adapted ^ expected:
        raise ResumeError(
            f"train.init_from={source} has adapters of another kind than this run, they differ in "
            f"{min(adapted ^ expected)}\n  fix: set adapter and train.plan as that run has them"
        )
    if adapted:
        model.adapter.require_alike(_adapter(folder), f"train.init_from={source}")
    clash = [n for n in saved if n in ours and ours[n].shape != saved[n].shape]
    shared = {n: t for n, t in saved.items() if n in ours and n not in packed}
    if clash or not (shared or packed):
        what = f"{clash[0]} has shape {tuple(saved[clash[0]].shape)}" if clash else "no tensor has a name of this model"
        raise ResumeError(f"train.init_from={source} does not fit this run: {what}")
    for name in _changed(model, ours, shared, packed, components):
        theirs = {key: tensor for key, tensor in saved.items() if key.startswith(f"{name}.") and "lora_" not in key}
        model.config.bases[name] = {"source": str(source), "digest": _digest(theirs)}
    model.load_state_dict(shared, strict=False)
    came = {name.partition(".")[0] for name in (*shared, *packed) if ".base_layer." in name}
    for component in sorted(came - components):
        adapters.reset(model, component)
    return sorted(ours.keys() - shared.keys() - packed)


def _changed(
    model: BeniForConditionalGeneration,
    ours: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    packed: Collection[str],
    adapted: Collection[str],
) -> list[str]:
    """Backbones for which other weights come than they were built with, beyond the rounding of what was saved.

    Args:
        ours: state of the model before anything came.
        shared: what comes.
        packed: what has come already.
        adapted: components whose adapters come too.
    """
    now = model.state_dict()
    came = {**shared, **{name: now[name] for name in packed}}
    return [
        name
        for name in BACKBONES
        if any(key in came and not _alike(own, came[key]) for key, own in _built_with(model, name, ours, adapted))
    ]


def _built_with(
    model: BeniForConditionalGeneration, name: str, ours: Mapping[str, Tensor], adapted: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a backbone, without adapters; where those that come have none, without what adapters took out."""
    bare = set()
    if model.config.plan[name] == "lora" and name not in adapted:
        for key, tensor in model.adapter.bare(backbone(model, name)):
            bare.add(f"{name}.model.{key}")
            yield f"{name}.model.{key}", tensor
    yield from ((k, t) for k, t in ours.items() if k.startswith(f"{name}.") and "lora_" not in k and k not in bare)


def _alike(own: Tensor, other: Tensor) -> bool:
    if not other.is_floating_point():
        return own.equal(other)
    return torch.allclose(own.float(), other.to(own.device).float(), rtol=torch.finfo(other.dtype).eps, atol=1e-6)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of a strided sample of at most two thousand values a tensor."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.flatten()
        whole.update(name.encode())
        whole.update(flat[:: max(1, flat.numel() // 1000)].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


def _adapter(folder: Path) -> Mapping[str, Any]:
    """The ``adapter`` node that the saved model was built with."""
    return BeniConfig.from_pretrained(folder).parts["adapter"]


def _pack(model: BeniForConditionalGeneration, saved: Mapping[str, Tensor]) -> set[str]:
    """Packs the saved weights of layers that are quantized here and were not there; the tensors of ours that have come.

    Raises:
        ResumeError: when such a layer was quantized there in another way.
    """
    packed: set[str] = set()
    for name, layer in packed_layers(model):
        names = {f"{name}.{PREFIX}{one}" for one in layer.packed()}
        weights = [
            saved[one] for one in (f"{name}.weight", f"{name.removesuffix('.base_layer')}.weight") if one in saved
        ]
        theirs = {one for one in saved if one.startswith(f"{name}.{PREFIX}")}
        if weights:
            layer.repack(weights[0])
            packed |= names
        elif theirs and theirs != names:
            raise ResumeError(
                f"train.init_from: {name} is quantized there in another way than here\n"
                "  fix: set quantization as that run has it"
            )
    return packed


def _place(name: str, ours: Mapping[str, Tensor]) -> str:
    """Where a saved tensor belongs here: adapters move the weights they stand beside into a ``base_layer``."""
    head, _, last = name.rpartition(".")
    wrapped = f"{head}.base_layer.{last}"
    return wrapped if name not in ours and wrapped in ours else name
