"""Writes docs/zoo.md: every mechanism of the visual path, what verifies it, and what it costs.

``make zoo`` writes the page; ``python tests/reference/zoo.py --check`` fails when it is not what the code says.
Measured differences vary with the machine in their last digits, so the check compares everything else.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from beni.analysis import formats  # noqa: E402 - the folder of the cases must be on the path first
from beni.config.build import build_stage  # noqa: E402
from beni.errors import CompositionError  # noqa: E402
from beni.paths import conf_dir  # noqa: E402
from beni.stage import Stage, TokenSpec  # noqa: E402
from reference.harness import ReferenceCase, all_cases, difference  # noqa: E402
from support.counting import flops_of  # noqa: E402

PAGE = ROOT / "docs" / "zoo.md"
GROUPS = ("connector", "resampler")
DIM_OUT = 2048
CLIP = TokenSpec(n=576, dim=1024, grid=(24, 24))
STANDARD = (
    CLIP,
    replace(CLIP, levels=4096),
    replace(CLIP, n=1024, grid=(32, 32)),
    TokenSpec(n=256, dim=1408, grid=(16, 16)),
)
"""What an option is measured on: CLIP ViT-L/14 at 336 pixels, with levels, at 448; the first that it accepts."""

HEAD = """# The zoo

Every way from vision features to visual tokens that beni has, made by `make zoo` from the code and the reference tests.

- **difference**: largest absolute difference of outputs, and of input gradients relative to the largest, between beni
  and the reference with the same random weights on all tensors, over at least three shapes; fp32 and fp64.
- **tokens, parameters, FLOPs**: for 24×24 tokens of 1024 (CLIP ViT-L/14 at 336 pixels) and an llm of width 2048;
  forward, one image, 2 × multiply-accumulates. † measured on another input, since this one does not fit.
- A resampler that ends in the llm's space includes its projection; one that stays in vision space is followed by a
  connector, whose cost is its own row.

| option | mechanism | paper | reference | difference fp32 | fp64 | tokens | ends in | parameters | FLOPs |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One option."""

    option: str
    mechanism: str
    cases: tuple[ReferenceCase, ...]
    stage: Stage
    tokens: TokenSpec

    def line(self) -> str:
        """The row as Markdown."""
        papers = sorted({case.paper for case in self.cases})
        references = sorted({case.reference for case in self.cases})
        runnable = [case for case in self.cases if not case.missing]
        worst = [
            max(
                (max(vars(difference(c, s, dtype, i)).values()) for c in runnable for i, s in enumerate(c.shapes)),
                default=None,
            )
            for dtype in (torch.float32, torch.float64)
        ]
        out = self.stage.spec(self.tokens)
        cells = [
            f"`{self.option}`",
            self.mechanism,
            ", ".join(papers) or "–",
            ", ".join(f"`{name}`" for name in references) or "–",
            *("–" if value is None else f"{value:.0e}" for value in worst),
            f"{out.n}{'' if self.tokens == CLIP else ' †'}",
            out.space,
            formats.count(sum(p.numel() for p in self.stage.parameters())),
            formats.count(flops_of(self.stage, self.tokens)),
        ]
        return "| " + " | ".join(cells) + " |"


def rows() -> list[Row]:
    """Every option of the groups, found by listing conf/."""
    cases = all_cases()
    found = []
    for group in GROUPS:
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            if path.stem in ("none", "auto", "identity"):
                continue
            option = f"{group}={path.stem}"
            mechanism = _mechanism(path.read_text())
            stage, tokens = _built(yaml.safe_load(path.read_text()), option)
            found.append(Row(option, mechanism, tuple(c for c in cases if c.option == option), stage, tokens))
    return found


def _mechanism(text: str) -> str:
    """The first sentence of an option's file, without the place of its class, which is no part of what it is."""
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    last = next((i for i, line in enumerate(lines) if line.endswith(".")), 0)
    return re.sub(r"^In beni/\S+: ", "", " ".join(lines[: last + 1])).rstrip(".")


def _built(node: dict, option: str) -> tuple[Stage, TokenSpec]:
    last: CompositionError | None = None
    for tokens in STANDARD:
        try:
            with torch.device("meta"):
                return build_stage(node, tokens=tokens, dim_out=DIM_OUT), tokens
        except CompositionError as error:
            last = error
    raise SystemExit(f"{option} accepts none of the standard inputs: {last}")


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(row.line() for row in rows()) + "\n"


def stable(text: str) -> str:
    """Without the measured differences."""
    return re.sub(r"\b\de[+-]\d\d\b", "x", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the page is not current")
    torch.set_num_threads(1)
    made = page()
    if not parser.parse_args().check:
        PAGE.write_text(made)
        print(f"{PAGE.relative_to(ROOT)}: {made.count(chr(10) + '| `')} mechanisms")
        return 0
    if not PAGE.is_file() or stable(PAGE.read_text()) != stable(made):
        print("docs/zoo.md is not what the code says\n  fix: make zoo, and commit it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
