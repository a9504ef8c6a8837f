"""beni against TRL's SFTTrainer: samples a second at equal weights, data, precision and loss."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

from harness import write_result
from harness.compared import COLUMNS, OURS, RECOMPILED, Comparison, arguments, loss_difference, notes, row


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name), options)
        about = comparison.about()
        others = {"trl": {"program": "trl"}, "again": {"program": "trl", "arguments": {"gradient_checkpointing": True}}}
        arms = comparison.arms(OURS | others, options.rounds)
    beni, compiled, trl, again = arms.values()
    samples, apart = comparison.samples, loss_difference(beni, trl)
    ratio, default = (beni.rate(samples) / arm.rate(samples) for arm in (trl, again))
    write_result(
        "vs_trl",
        f"beni is {ratio:.1f}x as fast as TRL's SFTTrainer, {default:.1f}x as it comes (layers are computed again).",
        COLUMNS,
        [
            row(f"SFTTrainer of trl {version('trl')}", trl, samples, trl, f"{apart:.0e}"),
            row("its default, gradient_checkpointing=True", again, samples, trl, f"{loss_difference(beni, again):.0e}"),
            row("beni, packed", beni, samples, trl, ""),
            row("beni, packed, compute.compile=true", compiled, samples, trl, f"{loss_difference(beni, compiled):.0e}"),
        ],
        [
            *notes(about, comparison, beni),
            "losses are compared step by step, relative",
            RECOMPILED,
        ],
        ratio=ratio,
        ratio_to_default=default,
        loss_difference=apart,
        data=about,
        losses={name: arm.losses for name, arm in arms.items()},
    )


if __name__ == "__main__":
    main()
