"""What the model sees, on one page or in a terminal: crops, loss mask, packs, lengths.

The values come from ``beni.data.batch.preview``; here they are only laid out. The page is a single file without outside
links or scripts. Everything a data set says is text to be escaped, never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from beni.analysis.pages import render

STYLES = {
    ("text", False): "dim",
    ("text", True): "bold green",
    ("special", False): "dim cyan",
    ("special", True): "bold cyan",
    ("image", False): "magenta",
    ("image", True): "bold red",  # never right: no image token is to be supervised
}


def write_page(path: Path, seen: Mapping[str, Any]) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("look.html.jinja", {"seen": seen}), encoding="utf-8")


def terminal(seen: Mapping[str, Any]) -> Iterator[Text | Table]:
    """What ``beni.look`` shows, for a terminal; pictures are told by their sizes."""
    for name, value in seen["facts"].items():
        yield Text.assemble((f"{name:>16}  ", "dim"), str(value))
    for notice in seen["notices"]:
        yield Text(f"\n{notice}", style="yellow")
    yield Text("\n«supervised»: only these tokens enter the loss\n")
    yield _bars(seen["histogram"])
    for step in seen["steps"]:
        for number, part in enumerate(step["parts"]):
            yield Text(
                f"step {step['step']}, micro-batch {number + 1}: {len(part['samples'])} samples, "
                f"{part['positions']} positions, {part['labels']} labels, {part['images']} images",
                style="bold",
            )
            for sample in part["samples"]:
                yield _sample(sample)
    for fault in seen["faults"]:
        yield Text(
            f"bad image {fault['image']} of {fault['sample']} ({fault['where']}): {fault['reason']}; "
            f"{fault['action']}; {fault['by']} is used instead",
            style="yellow",
        )


def _sample(sample: Mapping[str, Any]) -> Text:
    head = (
        f"\n{sample['id']}  {sample['where']}  positions {sample['start']} to {sample['start'] + sample['tokens'] - 1}"
    )
    if sample["stands_in_for"]:
        head += f", replaces {sample['stands_in_for']}"
    if sample["truncated"]:
        head += f", {sample['truncated']} tokens cut off"
    line = Text(head + "\n", style="underline")
    for run in sample["runs"]:
        text = f"[{run['count']} image tokens]" if run["kind"] == "image" else run["text"]
        text = f"«{text}»" if run["trained"] else text  # also where there is no colour
        line.append(Text(text, style=STYLES[run["kind"], run["trained"]]))
    for image in sample["images"]:
        views = ", ".join(f"{height}x{width}" for height, width in (view["size"] for view in image["views"]))
        tokens = " → ".join(f"{stage} {count}" for stage, count in image["stages"].items())
        line.append(Text(f"\n  image {image['size'][0]}x{image['size'][1]}: views {views}; tokens {tokens}", "magenta"))
        for drawing in image["drawings"]:
            line.append(Text(f"\n    view {drawing['view'] + 1}: {drawing['title']}", "magenta"))
    return line


def _bars(histogram: list[dict[str, int]]) -> Table:
    table = Table("tokens", "samples", "", box=None, pad_edge=False)
    most = max((bar["count"] for bar in histogram), default=1)
    for bar in histogram:
        table.add_row(f"{bar['from']}-{bar['to'] - 1}", str(bar["count"]), "█" * round(40 * bar["count"] / most))
    return table
