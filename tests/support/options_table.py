"""The table of options in the README, made from ``conf/``: ``python tests/support/options_table.py`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from beni.paths import conf_dir

README = Path(__file__).parents[2] / "README.md"
BORDERS = "<!-- options -->\n", "<!-- end of options -->"


def options_table() -> str:
    """Groups of more than one option and their options, as Markdown."""
    groups = {path.name: sorted(option.stem for option in path.glob("*.yaml")) for path in sorted(conf_dir().iterdir())}
    rows = [f"- **{group}**: {', '.join(names)}\n" for group, names in groups.items() if names and group != "local"]
    return "".join(rows)


def with_table(text: str) -> str:
    """The README with the table between its borders."""
    first, last = map(re.escape, BORDERS)
    return re.sub(f"({first}).*?({last})", lambda m: f"{m[1]}\n{options_table()}\n{m[2]}", text, flags=re.S)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
