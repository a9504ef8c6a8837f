"""Images with questions to begin a talk with: held-out samples of the run, or a folder of the user's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from beni.errors import ConfigError

INDEX = "examples.jsonl"
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
QUESTION = "What is in the image?"
SMALLEST = 256
"""Pixels of a shown image's longer side; drawn scenes have fewer, and are enlarged without a filter."""


@dataclass(frozen=True)
class Sample:
    """Something to ask."""

    image: Path
    question: str


def write_examples(run: Path, folder: Path, count: int) -> None:
    """Writes held-out images of a run with their questions, of different kinds first.

    Raises:
        BeniError: when the run's data cannot be had here.
    """
    from beni.config.build import build
    from beni.data.images import BadImage, decode
    from beni.runs.frozen import load_frozen

    frozen = load_frozen(run)
    heldout = build(frozen["data"], frozen["train"]["seed"]).heldout()
    pictured = (
        sample for sample in islice(heldout, 50 * count) if len(sample.images) == 1 and sample.images[0].url is None
    )
    kinds: dict[str, list[int]] = {}
    samples = list(pictured)
    for place, sample in enumerate(samples):
        kinds.setdefault(sample.kind, []).append(place)
    turns = sorted((turn, place) for places in kinds.values() for turn, place in enumerate(places))
    lines = []
    for number, (_, place) in enumerate(turns[:count]):
        try:
            picture = decode(samples[place].images[0])
        except BadImage:
            continue
        times = -(-SMALLEST // max(picture.size))
        picture.resize((picture.width * times, picture.height * times), 0).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": samples[place].question}, ensure_ascii=False))
    (folder / INDEX).write_text("\n".join(lines), encoding="utf-8")


def read_examples(folder: Path | None, count: int) -> list[Sample]:
    """The examples of a folder: those of its index, or its images in the order of their names.

    Raises:
        ConfigError: when there is no such folder, or its index is none.
    """
    if folder is None:
        return []
    if not folder.is_dir():
        raise ConfigError(f"--examples={folder} is no folder\n  fix: name a folder with images, or leave it out")
    if not (folder / INDEX).is_file():
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
        return [Sample(path, QUESTION) for path in images[:count]]
    try:
        rows = [json.loads(line) for line in (folder / INDEX).read_text(encoding="utf-8").splitlines() if line]
        return [Sample(folder / row["image"], row["question"]) for row in rows[:count]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--examples={folder}: {INDEX} cannot be read: {error}\n"
            '  fix: write {"image": "name.png", "question": "..."} on each line, or remove it'
        ) from None
