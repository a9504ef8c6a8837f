"""What stages ask of the encoder: side channels, which are followed on their way, and to leave out patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Literal, get_args

from beni.errors import CompositionError
from beni.stage import Stage
from beni.types import TokenSpec
from beni.views.two_looks import TwoLooks
from beni.vision.base import Service, VisionEncoder

Channel = Literal["attn", "keys"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


def serve(vision: VisionEncoder, stages: Mapping[str, Stage]) -> dict[str, TokenSpec]:
    """Asks the encoder once for whatever stages read of it beside its features; gives the specs behind each part then.

    Args:
        stages: name -> stage, in the order of the data's way.

    Raises:
        CompositionError: E-SIDE when the encoder cannot give it, or a stage before the one that reads it loses it;
            E-KEEP when it cannot leave out patches that views do not choose.
    """
    services: set[Service] = {channel for stage in stages.values() for channel in _read(stage)}
    if isinstance(stages["views"], TwoLooks):
        services.add("keep")
    vision.serve(frozenset(services))
    specs = {"vision": vision.spec()}
    for name, stage in stages.items():
        specs[name] = stage.spec(specs[next(reversed(specs))])
    for before, name in pairwise(specs):
        for channel in _read(stages[name]):
            if not getattr(specs[before], channel):
                lost = next(part for part, spec in specs.items() if not getattr(spec, channel))
                raise CompositionError(
                    "E-SIDE",
                    f"the {name} reads {channel} of the encoder, which does not come through the {lost}",
                    groups=(lost, name),
                    fix=f"choose another option of {lost}, one that keeps its tokens apart, or of {name}",
                )
    return specs


def _read(stage: Stage) -> Iterator[Channel]:
    return (channel for channel in CHANNELS if channel in stage.reads)
