"""How beni's speed goes with processes, the length of samples and pictures a sample."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import write_result
from harness.compared import Comparison, arguments, loss_difference, notes

PROCESSES: dict[str, dict[str, Any]] = {
    "1 process": {},
    "2 processes, fsdp=ddp": {"overrides": ("fsdp=ddp",), "world": 2},
    "2 processes, fsdp=full": {"overrides": ("fsdp=full",), "world": 2},
}
WORDS = (20, 80, 320)
IMAGES = (1, 2, 4)


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows, rates, differences, said = [], {}, {}, []
    with tempfile.TemporaryDirectory() as name:
        comparison = Comparison(Path(name) / "processes", options)
        arms = comparison.arms(PROCESSES, options.rounds)
        said = notes(comparison.about(), comparison, arms["1 process"])[:1]
        cases = [(comparison, label, arm) for label, arm in arms.items()]
        longer = comparison.longer_half()
        differences = {label: loss_difference(arms["1 process"], arm) for label, arm in arms.items()}
        for words in WORDS:
            one = Comparison(Path(name) / f"words-{words}", options, words=words)
            cases.append((one, f"{words} words a question", one.arms({"beni": {}}, options.rounds)["beni"]))
        for images in IMAGES:
            one = Comparison(Path(name) / f"images-{images}", options, images=images, words=40)
            cases.append((one, f"40 words, {images} pictures", one.arms({"beni": {}}, options.rounds)["beni"]))
        for one, label, arm in cases:
            samples, length = arm.rate(one.samples), one.about()["mean_length"]
            rates[label] = {"samples_per_s": samples, "tokens_per_s": samples * length, "mean_length": length}
            spread = f"-{1 - 1 / (1 + arm.timed.spread):.0%}"
            numbers = (f"{length:.0f}", f"{samples:.2f} ({spread})", f"{samples * length:.0f}", f"{arm.peak_gib:.1f}")
            rows.append((label, *numbers))
    ratio = {label: rates[label]["samples_per_s"] / rates["1 process"]["samples_per_s"] for label in PROCESSES}
    write_result(
        "scaling",
        f"Two processes on two cores have {max(list(ratio.values())[1:]):.2f} times the speed of one with two threads.",
        ("", "tokens a sample", "samples/s", "tokens/s", "peak GiB"),
        rows,
        [
            *said,
            f"best of {options.rounds} rounds of {options.steps - 1} steps after the longest, which is not timed, in "
            "brackets how much slower the slowest was; the peak is that of the first process",
            f"each of two processes takes every second sample: the one that has more tokens has {longer:.0%} of them, "
            "and the other waits; each updates all it keeps, with one thread",
            f"losses of two processes differ from those of one by at most {max(differences.values()):.0e}, relative",
        ],
        rates=rates,
        loss_differences=differences,
    )


if __name__ == "__main__":
    main()
