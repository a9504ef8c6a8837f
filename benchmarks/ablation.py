"""Each speed feature of beni's step switched off, one at a time: samples a second and memory at equal loss."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import write_result
from harness.compared import COLUMNS, RECOMPILED, Comparison, arguments, loss_difference, notes, row

ARMS: dict[str, dict[str, Any]] = {
    "beni": {},
    "rows padded, not packed": {"overrides": ("compute.layout=padded",)},
    "a dense mask, not segments": {"without": ("segments",)},
    "logits everywhere, not at labels": {"without": ("label rows",)},
    "padded and logits everywhere": {"overrides": ("compute.layout=padded",), "without": ("label rows",)},
    "freed memory given back": {"without": ("kept memory",)},
    "layers compiled": {"overrides": ("compute.compile=true",)},
    "loss in pieces": {"overrides": ("compute.loss=chunked",)},
    "every layer computed again": {"overrides": ("compute.activation_checkpointing=full",)},
    "all but attention and products again": {"overrides": ("compute.activation_checkpointing=selective",)},
}


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name), options)
        about = comparison.about()
        other = "fp32" if options.precision == "bf16" else "bf16"
        chosen = ARMS | {f"{other} instead": {"overrides": (f"compute.precision={other}",)}}
        arms = comparison.arms(chosen, options.rounds)
    beni, samples = arms["beni"], comparison.samples
    ratios = {name: arm.rate(samples) / beni.rate(samples) for name, arm in arms.items()}
    apart = {name: loss_difference(beni, arm) for name, arm in arms.items()}
    write_result(
        "ablation",
        f"Without packing and label rows beni has {ratios['padded and logits everywhere']:.2f} times its speed.",
        COLUMNS,
        [row(name, arm, samples, beni, f"{apart[name]:.0e}") for name, arm in arms.items()],
        [
            *notes(about, comparison, beni)[:-1],
            "losses are compared step by step with the first line's, relative",
            RECOMPILED,
        ],
        ratios=ratios,
        loss_differences=apart,
        data=about,
    )


if __name__ == "__main__":
    main()
