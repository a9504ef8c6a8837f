"""``data=stamps``: real photographs and drawings with captions, from Debian's package tuxpaint-stamps-default.

Beside every picture lies a text file whose first line is an English caption, followed by ``xx.utf8=`` lines in some
sixty languages. Held out are captions, not pictures: no text that is scored stands in training in any form, and near
duplicates (articles, case and punctuation aside) go to the same side. A held-out picture is scored by choosing its
caption among ten.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image as PILImage

from beni.config.ranges import AtLeast, Below, Example, FieldsOf
from beni.config.suggest import closest
from beni.data.images import Augment, Image
from beni.data.metric import BestChoice
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.nn.streams import numpy_stream

PACKAGE = "tuxpaint-stamps-default"
LEFT_OUT = ("symbols", "town/roadsigns", "town/flags")
"""Folders whose captions name a sign (letters, digits, flags) and say nothing of what is to be seen."""
ENGLISH = "en"
ARTICLES = ("a", "an", "the", "some", "our")


@dataclass(frozen=True)
class Stamp:
    """One picture with its caption, the key that decides on which side it stands, and the folders it lies in."""

    path: Path
    caption: str
    key: str
    kind: tuple[str, ...]


class Stamps(SingleSource):
    """Captions of real pictures.

    Args:
        seed: of the run; draws the phrasing of training samples.
        root: folder of the stamps, as Debian installs it or a copy.
        heldout: captions held out.
        split: number of the split; another number holds out other captions. With ``seed`` it is the run's seed, so that
            what several seeds tell holds for other captions too.
        choices: captions to choose from, the true one and others that are held out too.
        language: of the captions, as the files name it (``en``, ``de``, ``ja``, ``pt_BR``); whatever it is, the same
            pictures are held out, by their English captions. Pictures without a caption in it are left out.
        openings: first words a caption may have (others, "Gimel stands for", name nothing to be seen); empty for any.
        max_words: longest caption, in words without articles; longer ones tell more than the picture shows.
        prompts: what is said after the picture in training, one drawn each time; scoring uses the first.
        kinds: share of the training samples, in [0, 1), that ask for the names of the picture's folders ("animals,
            birds") instead of its caption; names that a held-out caption uses are left out.
        kind_prompt: what is said after the picture then.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when the folder is missing (with the command that installs it) or holds too few pictures.
    """

    metric = BestChoice()

    def __init__(
        self,
        seed: int,
        *,
        root: str,
        heldout: Annotated[int, AtLeast(2), Example("100")],
        split: Annotated[int, AtLeast(0)] | Literal["seed"],
        choices: Annotated[int, AtLeast(2), Example("10")],
        language: str,
        openings: list[str],
        max_words: Annotated[int, AtLeast(1), Example("5")],
        prompts: list[str],
        kinds: Annotated[float, AtLeast(0), Below(1), Example("0.2")],
        kind_prompt: str,
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        if not prompts:
            raise DataError("data.prompts is empty, expected at least one\n  fix: set 'data.prompts=[A photo of]'")
        self.seed, self.choices, self.prompts = seed, choices, prompts
        self.split = seed if split == "seed" else split
        self.kinds, self.kind_prompt = kinds, kind_prompt
        self.varies = len(prompts) > 1 or kinds > 0
        self.augment = Augment(**augment)
        folder = Path(root).expanduser()
        english = read_stamps(folder, openings, max_words)
        keys = sorted({stamp.key for stamp in english})
        if not choices <= heldout < len(keys):
            raise DataError(
                f"data.heldout={heldout} of {len(keys)} captions below {root}; "
                f"expected at least data.choices={choices} and fewer than there are\n"
                f"  fix: set data.heldout={max(2, len(keys) // 8)} data.choices={min(choices, max(2, len(keys) // 8))}"
            )
        drawn = numpy_stream(self.split, "data.heldout").permutation(len(keys))[:heldout]
        held = {keys[i] for i in drawn}
        stamps = english if language == ENGLISH else read_stamps(folder, openings, max_words, language)
        told = {_stem(word) for key in held for word in key.split()}
        # one picture a caption: a caption with six pictures would weigh six times
        self._held = list({stamp.key: stamp for stamp in stamps if stamp.key in held}.values())
        held_texts = {stamp.caption for stamp in self._held}  # two keys may have one name in another language
        self._train = [
            replace(stamp, kind=tuple(name for name in stamp.kind if not told & {_stem(w) for w in name.split()}))
            for stamp in stamps
            if stamp.key not in held and stamp.caption not in held_texts
        ]
        if len(held_texts) < choices:
            raise DataError(
                f"data.language={language} has {len(self._held)} of the held-out captions, expected at least "
                f"data.choices={choices}\n  fix: set data.choices=2 or choose another language"
            )

    def __len__(self) -> int:
        return len(self._train)

    def train(self, index: int, epoch: int) -> Sample:
        stamp = self._train[index]
        rng = numpy_stream(self.seed, "data.prompt", epoch, index)
        drawn, name = int(rng.integers(len(self.prompts))), f"{stamp.path.parent.name}/{stamp.path.stem}"
        if stamp.kind and rng.random() < self.kinds:
            sample = _sample(name, stamp.path, self.kind_prompt, ", ".join(stamp.kind) + ".")
        else:
            sample = _sample(name, stamp.path, self.prompts[drawn], stamp.caption)
        return replace(sample, augment=self.augment)

    def heldout(self) -> Sequence[Sample]:
        samples = []
        for i, stamp in enumerate(self._held):
            rng = numpy_stream(self.split, "data.choices", i)
            # of two animals with one name in some language, neither can be chosen against the other
            others = list(dict.fromkeys(other.caption for other in self._held if other.caption != stamp.caption))
            chosen = [others[k] for k in rng.permutation(len(others))[: self.choices - 1]]
            chosen.insert(int(rng.integers(self.choices)), stamp.caption)
            sample = _sample(f"heldout/{stamp.key}", stamp.path, self.prompts[0], stamp.caption)
            samples.append(replace(sample, choices=tuple(chosen)))
        return samples

    def fingerprint(self) -> str:
        lines = [f"{stamp.path.name} {stamp.path.stat().st_size} {stamp.caption}" for stamp in self._train + self._held]
        asked = [*self.prompts, f"{self.kinds} {self.kind_prompt}"]
        return hashlib.sha256("\n".join([*lines, *asked]).encode()).hexdigest()[:16]


def read_stamps(root: Path, openings: Sequence[str], max_words: int, language: str = ENGLISH) -> list[Stamp]:
    """All pictures below ``root`` with a caption in the language, in the order of their paths.

    Raises:
        DataError: when there are none.
    """
    stamps: list[Stamp] = []
    languages: set[str] = set()
    # one file a picture: of the 83 that come as pixels and as a drawing, the drawing (it has no pixels of its own)
    pictures = {path.with_suffix(""): path for ending in ("png", "svg") for path in root.rglob(f"*.{ending}")}
    for picture in sorted(pictures.values()):
        text = picture.with_suffix(".txt")
        if not text.is_file() or str(picture.relative_to(root)).startswith(LEFT_OUT):
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        caption = clean_caption(lines[0]) if lines else ""
        key = caption_key(caption)
        opening = caption.lower().split(" ")[0]
        if key and len(key.split()) <= max_words and (not openings or opening in openings):
            said = {ENGLISH: caption} | translations(lines[1:])
            languages.update(said)
            kind = tuple(name for name in picture.relative_to(root).parent.parts if name != "cartoon")
            if language in said:
                stamps.append(Stamp(picture, said[language], key, kind))
    if not stamps and languages:
        raise DataError(
            f"data.language={language}: the captions below {root} are in {', '.join(sorted(languages))}\n"
            f"  fix: set data.language={closest(language, languages) or ENGLISH}"
        )
    if not stamps:
        raise DataError(
            f"no captioned images below data.root={root}\n"
            f"  fix: apt-get install {PACKAGE}, or set data.root to a copy of its folder stamps/"
        )
    return stamps


def draw(path: Path) -> PILImage.Image:
    """An SVG file at its natural size, with transparency.

    Raises:
        DataError: without the package resvg-py, or when the file is no drawing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(f"{path} is an SVG drawing, which resvg-py reads\n  fix: pip install 'beni[stamps]'") from error
    try:
        return PILImage.open(
            BytesIO(resvg_py.svg_to_bytes(svg_path=str(path), dpi=96))
        )  # 0, the default, makes 1 pt nothing
    except ValueError as error:
        raise DataError(f"image {path}: {error}") from error


def translations(lines: Sequence[str]) -> dict[str, str]:
    """``de.utf8=Ein Hund.`` lines -> captions by language, without brackets and asides."""
    found = {}
    for line in lines:
        name, mark, text = line.partition(".utf8=")
        said = re.sub(r"\s*[(（][^)）]*[)）]", "", text).strip()
        if mark and said:
            found[name.strip()] = said
    return found


def clean_caption(line: str) -> str:
    """The first sentence, without brackets, quotes and asides: what the picture shows."""
    text = re.sub(r"\s*\([^)]*\)", "", line.replace("’", "'"))
    text = re.sub(r"[\"“”]", "", text)
    text = re.split(r"(?<=[.!?])\s+|—|,\s", text)[0].strip(" -–.!?…")
    first, _, rest = text.partition(" ")
    text = f"{first.lower()} {rest}" if first.lower() in ARTICLES else text  # it goes on after a prompt
    return f"{text}." if text else ""


def caption_key(caption: str) -> str:
    """Captions with one key say the same: lower case, letters and digits only, leading articles off."""
    text = unicodedata.normalize("NFKD", caption.lower()).replace("'", "")
    words = re.sub(r"[^a-z0-9 ]", " ", text).split()
    while words and words[0] in ARTICLES:
        words = words[1:]
    return " ".join(words)


def _stem(word: str) -> str:
    """Without a plural's ending, so that ``foxes`` is found where ``fox`` is held out."""
    return re.sub(r"(es|s)$", "", word)


def _sample(name: str, path: Path, prompt: str, answer: str) -> Sample:
    image = Image(partial(draw, path), str(path), path=str(path)) if path.suffix == ".svg" else Image.from_path(path)
    messages = (Message("user", (image, prompt)), Message("assistant", (answer,)))
    return Sample(name, messages, cluster=path.name)
