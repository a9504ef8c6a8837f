"""beni against transformers.Trainer: samples a second at equal weights, data, precision and loss."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import write_result
from harness.compared import COLUMNS, OURS, RECOMPILED, Comparison, arguments, loss_difference, notes, row


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name), options)
        about, alike = comparison.about(), comparison.grouped()
        padding = comparison.about(alike)["padding"]
        others = {"hf": {"program": "hf"}, "hf_grouped": {"program": "hf", "order": alike}}
        arms = comparison.arms(OURS | others, options.rounds)
        same = comparison.arms({"beni": {"order": alike}}, 1)["beni"]
    beni, compiled, padded, grouped = arms.values()
    samples = comparison.samples
    apart = {
        "hf": loss_difference(beni, padded),
        "hf_grouped": loss_difference(same, grouped),
        "compiled": loss_difference(beni, compiled),
    }
    ratios = {name: beni.rate(samples) / arms[name].rate(samples) for name in apart}
    write_result(
        "vs_hf_trainer",
        f"beni is {ratios['hf']:.1f}x as fast as transformers.Trainer as it comes, and {ratios['hf_grouped']:.1f}x as "
        "fast as with batches of like length.",
        COLUMNS,
        [
            row("transformers.Trainer, padded", padded, samples, padded, f"{apart['hf']:.0e}"),
            row("transformers.Trainer, grouped by length", grouped, samples, padded, f"{apart['hf_grouped']:.0e}"),
            row("beni, packed", beni, samples, padded, ""),
            row("beni, packed, compute.compile=true", compiled, samples, padded, f"{apart['compiled']:.0e}"),
        ],
        [
            *notes(about, comparison, beni),
            f"grouped by length: the timed samples sorted into batches, of which {padding:.0%} is padding; "
            "transformers sorts 50 batches at a time",
            "losses are compared step by step with beni's on the same samples, relative",
            RECOMPILED,
        ],
        ratios=ratios,
        loss_differences=apart,
        data=about,
        losses={name: arm.losses for name, arm in arms.items()},
    )


if __name__ == "__main__":
    main()
