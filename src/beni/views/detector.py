"""Any object detector of transformers, asked for boxes whatever their class: DETR, RT-DETR, D-FINE, YOLOS, OWLv2 ...

A detector gives each of its boxes a score for every class; the largest one is how much the box is an object at all.
OWLv2 (arXiv 2306.09683) has a head for just that, which needs no text. A detector works in the data loader, on the
pixels of one picture; each process of the loader builds it once. It is frozen, and no part of the model: a saved model
names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL.Image import Image as Picture
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    AutoModelForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
)

from beni.errors import ConfigError, WeightsError
from beni.measure.flops import count_flops
from beni.nn.architecture import buildable, read_architecture
from beni.nn.pixels import ImageTransform
from beni.nn.streams import torch_stream

KEPT = 4
"""Detectors that a process keeps."""


@dataclass(frozen=True)
class Detector:
    """``picture -> (q, 4), (q)``: boxes and how much each is an object. Pickled without weights.

    Attributes:
        name: hub id or local folder; None for weights at random.
        architecture: fields of the Hugging Face config as JSON; ``null`` reads those of ``name``.
        transform: a picture to what the detector sees; squashes, so that boxes are shares of the picture.
    """

    name: str | None
    architecture: str
    transform: ImageTransform

    def __call__(self, picture: Picture) -> tuple[Float[Tensor, "q 4"], Float[Tensor, "q"]]:
        """Boxes (top, left, bottom, right) within [0, 1] and their scores, as many as the detector has queries."""
        with torch.inference_mode():
            return _boxes(loaded(self.name, self.architecture), self.transform(picture)[None])

    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(loaded(self.name, self.architecture).state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def flops(self) -> int:
        """FLOPs on one picture."""
        return _flops(self.name, self.architecture, self.transform.shape)


def detector_config(name: str | None, architecture: Mapping[str, Any] | None) -> PreTrainedConfig:
    """The Hugging Face config of a detector.

    Raises:
        ConfigError: when nothing says which, or it is no detector.
        WeightsError: when ``name`` cannot be had on this machine.
    """
    config = read_architecture(name, None if architecture is None else dict(architecture), "views")
    if type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING and not isinstance(config, Owlv2Config):
        raise ConfigError(
            f"views.architecture.model_type={config.model_type} is no detector of transformers\n"
            "  fix: set views.architecture.model_type=rt_detr_v2, or views.name to a detector and "
            "views.architecture=null"
        )
    return config


@lru_cache(KEPT)
def loaded(name: str | None, architecture: str) -> PreTrainedModel:
    """The detector of this process, on the CPU.

    Raises:
        WeightsError: when its weights are not those of its architecture.
    """
    config = detector_config(name, json.loads(architecture))
    if name is None:
        return _at_random(config)
    kind: Any = Owlv2ForObjectDetection if isinstance(config, Owlv2Config) else AutoModelForObjectDetection
    with torch.device("cpu"):
        model, report = kind.from_pretrained(
            name, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{name} has no weights for {missing[0]} of a {config.model_type}\n"
            "  fix: set views.name to a detector of that architecture, or views.architecture=null to read its own"
        )
    return model.eval().requires_grad_(False)


def _at_random(config: PreTrainedConfig) -> PreTrainedModel:
    """Draws a detector whose weights are the same in every process."""
    with torch.device("cpu"), torch_stream(0, "detector"), buildable("views", config.model_type, "auto"):
        if isinstance(config, Owlv2Config):
            model: PreTrainedModel = Owlv2ForObjectDetection(config)
        else:
            model = AutoModelForObjectDetection.from_config(config)
    return model.eval().requires_grad_(False)


@lru_cache(KEPT)
def _flops(name: str | None, architecture: str, size: tuple[int, int]) -> int:
    """Counted on weights at random: detectors look at their own values, which there are none of on the meta device."""
    model = _at_random(detector_config(name, json.loads(architecture)))
    return count_flops(lambda: _boxes(model, torch.zeros(1, 3, *size)))


def _boxes(model: nn.Module, pixels: Float[Tensor, "1 3 height width"]) -> tuple[Tensor, Tensor]:
    if isinstance(model, Owlv2ForObjectDetection):
        features: Tensor = model.image_embedder(pixels, interpolate_pos_encoding=True)[0]
        tokens = features.flatten(1, 2)
        found = model.box_predictor(tokens, features, interpolate_pos_encoding=True)[0]
        scores = model.objectness_predictor(tokens)[0].sigmoid()
    else:
        out, config = model(pixel_values=pixels), cast("PreTrainedConfig", model.config)
        found, scores = out.pred_boxes[0], _best_class(out.logits[0], cast("int", config.num_labels))
    x, y, width, height = found.unbind(-1)
    boxes = torch.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    return boxes.clamp(0, 1), scores


def _best_class(logits: Float[Tensor, "q c"], classes: int) -> Float[Tensor, "q"]:
    """The highest probability of a class; those of DETR and YOLOS, which have one for nothing at the end, add up to 1,
    others' classes are judged one by one.
    """
    probabilities = logits.softmax(-1)[:, :-1] if logits.shape[-1] == classes + 1 else logits.sigmoid()
    return probabilities.amax(-1)
