"""Starting from another run's weights: the align stage's connector under the finetune stage's plan."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from beni.components import BACKBONES
from beni.errors import ResumeError
from beni.model import adapters
from beni.model.configuration import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.quantized import backbone, packed_layers
from beni.nn.packed import PREFIX
from beni.runs.files import COMPLETE, MODEL
from beni.runs.frozen import is_frozen, load_frozen
from beni.runs.lock import is_set_aside
from beni.training.saved_model import require_whole

MOST_LISTED = 20  # runs of a study that a message names


@dataclass(frozen=True)
class LoadReport:
    """What came of another run's weights.

    Attributes:
        folder: of the saved model that they came from.
        taken: tensors that came.
        kept: tensors of this model that kept their own values.
        left: tensors of the other one that have no place here.
        named: backbones that this run names otherwise, and that the other run had left as published.
    """

    folder: Path
    taken: int
    kept: list[str]
    left: list[str]
    named: list[str]

    def describe(self) -> str:
        """For the reader of the run."""
        lines = [f"train.init_from: {self.taken} tensors loaded from {self.folder}"]
        lines += [f"newly initialised: {_counted(self.kept)}"] if self.kept else []
        lines += [f"not loaded: {_counted(self.left)}"] if self.left else []
        lines += [f"own pretrained weights kept: {', '.join(self.named)}"] if self.named else []
        return "; ".join(lines)


def load_initial(model: BeniForConditionalGeneration, source: Path) -> LoadReport:
    """Copies every tensor that the saved model at ``source`` shares with ``model`` by name and shape.

    A component of another kind begins anew. A backbone that this run names otherwise stays as it names it, where the
    other run had left its own as published. Adapters of components that have none there begin anew beside the weights
    that came. Backbones that got other weights than they were built with are noted in the model's config: their
    adapters belong beside those.

    Args:
        source: run folder (its ``model/`` is taken), ``save_pretrained`` folder, or a study: its run with this seed.

    Raises:
        ResumeError: when there is no saved model, it shares nothing, a tensor has another shape, a component has more
            there than here, or it has adapters that this model lacks or that would compute something else here.
    """
    folder = saved_folder(source, model.config.seed)
    saved = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    theirs = BeniConfig.from_pretrained(folder)
    named = _named_otherwise(model, theirs, source)
    saved = {name: tensor for name, tensor in saved.items() if name.partition(".")[0] not in named}
    ours = model.state_dict()
    saved = {_place(name, ours): tensor for name, tensor in saved.items()}
    packed = _pack(model, saved)
    adapted = {name for name in saved if "lora_" in name}
    components = {name.partition(".")[0] for name in adapted}
    expected = {name for name in ours if "lora_" in name and name.partition(".")[0] in components}
    if adapted ^ expected:
        raise ResumeError(
            f"train.init_from={source} has adapters of another kind than this run, they differ in "
            f"{min(adapted ^ expected)}\n  fix: set adapter and train.plan as that run has them, or add them to its "
            "weights: python -m beni.export RUN --format merged"
        )
    if adapted:
        model.adapter.require_alike(theirs.parts["adapter"], f"train.init_from={source}")
    clash = [n for n in saved if n in ours and ours[n].shape != saved[n].shape]
    shared = {n: t for n, t in saved.items() if n in ours and n not in packed}
    if clash or not (shared or packed):
        what = f"{clash[0]} has shape {tuple(saved[clash[0]].shape)}" if clash else "no tensor has a name of this model"
        raise ResumeError(f"train.init_from={source} does not fit this run: {what}")
    left = sorted(
        name for name in saved if name not in ours and name not in packed and not _is_packed_here(name, packed)
    )
    _require_whole(left, {*shared, *packed}, source)
    for name in _changed(model, ours, shared, packed, components):
        base = {key: tensor for key, tensor in saved.items() if key.startswith(f"{name}.") and "lora_" not in key}
        model.config.bases[name] = {"source": str(source), "digest": _digest(base)}
    model.load_state_dict(shared, strict=False)
    came = {name.partition(".")[0] for name in (*shared, *packed) if ".base_layer." in name}
    for component in sorted(came - components):
        adapters.reset(model, component)
    kept = sorted(name for name in ours if name not in shared and name not in packed)
    kept = [name for name in kept if name.partition(".")[0] not in named]
    return LoadReport(folder, len(shared) + len(packed), kept, left, named)


def saved_folder(source: Path, seed: int) -> Path:
    """The folder of the saved model that ``train.init_from=<source>`` means.

    Args:
        source: as for ``load_initial``.
        seed: ``train.seed`` of the run that starts from it, which chooses among the runs of a study.

    Raises:
        ResumeError: when there is none, it is damaged, or ``seed`` does not say which run of a study is meant.
    """
    if not source.is_dir():
        raise ResumeError(
            f"train.init_from={source}: there is no such folder, seen from {Path.cwd()}\n"
            "  fix: run first what makes it, or name a run folder, a study or a saved model"
        )
    if (source / COMPLETE).is_file():
        raise ResumeError(
            f"train.init_from={source} is a checkpoint, which holds only what its run has trained\n  fix: python -m "
            f"beni.export {source.parent.parent} --checkpoint {source.name.rpartition('_')[2].lstrip('0')}, and set "
            "train.init_from to the folder that it names"
        )
    if (source / adapters.PARTS).is_file():
        raise ResumeError(
            f"train.init_from={source} holds adapters without the weights they stand beside\n"
            "  fix: set it to the model/ folder beside it, or to what python -m beni.export RUN writes"
        )
    folder = source / MODEL if (source / MODEL).is_dir() else source
    if not any(folder.glob("*.safetensors")):
        folder = _run_of_study(source, seed) / MODEL
    require_whole(
        folder,
        f"train.init_from={source}",
        "restore it from a copy, or export it from a checkpoint: python -m beni.export RUN, and set "
        "train.init_from to the folder that it names",
    )
    return folder


def _run_of_study(source: Path, seed: int) -> Path:
    """The only run of a study that has a saved model and this seed.

    Raises:
        ResumeError: when ``source`` is no study, or not exactly one of its runs is of this kind.
    """
    runs = [child for child in sorted(source.iterdir()) if is_frozen(child) and not is_set_aside(child)]
    if not runs:
        raise ResumeError(
            f"train.init_from={source} holds no saved model (*.safetensors)\n  fix: set it to a run folder that was "
            "finished with checkpoint.export=true, or to a save_pretrained folder"
        )
    whole = [run for run in runs if any((run / MODEL).glob("*.safetensors"))]
    alike = [run for run in whole if load_frozen(run)["train"]["seed"] == seed]
    if len(alike) == 1:
        return alike[0]
    listed = [f"    {run.name}{'' if run in whole else ' (has no model/)'}" for run in runs[:MOST_LISTED]]
    listed += [f"    and {len(runs) - MOST_LISTED} more"] if len(runs) > MOST_LISTED else []
    known = f"{len(alike)} runs with train.seed={seed} have" if alike else f"no run with train.seed={seed} has"
    fix = f"set train.init_from={(alike or whole)[0]}" if whole else "finish one of them with checkpoint.export=true"
    raise ResumeError(
        "\n".join([f"train.init_from={source} is a study, and {known} a saved model there:", *listed, f"  fix: {fix}"])
    )


def _named_otherwise(model: BeniForConditionalGeneration, theirs: BeniConfig, source: Path) -> list[str]:
    """Backbones of which the two runs name different ones, the other run's being as published: this run's stay.

    Raises:
        ResumeError: when the other run has changed its own.
    """
    found = []
    for name in BACKBONES:
        there, here = (config.parts[name].get("name") for config in (theirs, model.config))
        if there == here or not isinstance(there, str) or not isinstance(here, str):
            continue
        if theirs.plan.get(name) != "frozen" or name in theirs.bases:
            raise ResumeError(
                f"train.init_from={source} has trained {name} weights that began as {there}, and this run names {here}"
                f"\n  fix: set {name}.name={there}, or start from a run that had left its {name} alone"
            )
        found.append(name)
    return found


def _is_packed_here(name: str, packed: Collection[str]) -> bool:
    """Whether a saved weight has come into a layer that packs it."""
    layer = name.removesuffix(".weight")
    return any(f"{one}.{PREFIX}" in key for one in (layer, f"{layer}.base_layer") for key in packed)


def _require_whole(left: Collection[str], came: Collection[str], source: Path) -> None:
    """Raises ResumeError where a component has come in part only."""
    for component in sorted({name.partition(".")[0] for name in left}):
        mine = [name for name in left if name.startswith(f"{component}.")]
        if any(name.startswith(f"{component}.") for name in came):
            bits = any(f".{PREFIX}" in name for name in mine)
            fix = f"set {'quantization' if bits else component} as that run has it"
            raise ResumeError(
                f"train.init_from={source}: its {component} has {len(mine)} tensors that this run's lacks, such as "
                f"{mine[0]}\n  fix: {fix}"
            )


def _counted(names: Collection[str]) -> str:
    """``llm (28 adapter tensors), resampler (12 tensors)``."""
    kinds = Counter((name.partition(".")[0], "adapter " if "lora_" in name else "") for name in names)
    return ", ".join(f"{component} ({count} {kind}tensors)" for (component, kind), count in sorted(kinds.items()))


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
    """A hash of a strided sample of at most two thousand values a tensor."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.flatten()
        whole.update(name.encode())
        whole.update(flat[:: max(1, flat.numel() // 1000)].contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


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
