"""The images of the documentation, made anew: ``make screenshots``, or for some of them

    python tests/support/screenshots.py runs/default/RUN study.png report.png

They show what is there: pages that beni has written, a page that it serves, and what a terminal has shown. Needs a
Chromium of the system (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.browser import browser, program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images"
STUDY = ROOT / "experiments" / "resampler_zoo.html"
LARGEST = 200_000
"""Bytes of an image."""
MARGIN = 12
PATIENCE = 300.0
"""Seconds for a model to be there, or an answer."""
ASKED = 2
"""Images that the terminal is shown."""
COLUMNS = 96
TERMINAL = """<body style="margin: 0">
<style>
pre {{margin: 0; padding: 16px 20px; background: #f6f8fa; font: 14px/1.45 monospace; display: inline-block}}
</style>
<pre>{code}</pre>
</body>"""


@dataclass(frozen=True)
class Maker:
    """What an image is made of.

    Attributes:
        browser: that draws.
        run: folder of a finished run.
        scratch: a folder for files that are thrown away.
    """

    browser: Browser
    run: Path
    scratch: Path

    def page(self, width: int, height: int) -> Page:
        """An empty page in light colours."""
        return self.browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce"
        )

    def opened(self, file: Path, width: int) -> Page:
        """A file as a page."""
        page = self.page(width, 800)
        page.goto(file.resolve().as_uri())
        return page


def report(maker: Maker) -> bytes:
    """The head of a run's report: scores and losses."""
    page = maker.opened(maker.run / "report.html", 1000)
    return _section(page, "Loss", from_top=True)


def examples(maker: Maker) -> bytes:
    """The first row of answers that a run's report shows."""
    page = maker.opened(maker.run / "report.html", 1000)
    section = page.locator("section", has=page.get_by_role("heading", name="Examples", exact=True))
    top = _box(section)["y"]
    cards = [_box(card) for card in section.locator("article").all()]
    first = [card for card in cards if card["y"] == cards[0]["y"]]
    return _section(page, "Examples", int(max(card["y"] + card["height"] for card in first) - top + 2 * MARGIN))


def study(maker: Maker) -> bytes:
    """The head of the report of a study: what it supports, and all arms."""
    return _section(maker.opened(STUDY, 1060), "Arms", from_top=True)


def arms(maker: Maker) -> bytes:
    """The arms of a study alone."""
    return _section(maker.opened(STUDY, 1060), "Arms")


def look(maker: Maker) -> bytes:
    """The first packs as the model of a run gets them."""
    from beni.look import main

    words = "data=shapes schedule=packs schedule.tokens=1024 train.batch_size=2"
    out = maker.scratch / "look.html"
    assert main([*words.split(), "--out", str(out)]) == 0
    return _section(maker.opened(out, 1000), "Legend", 524)


def demo(maker: Maker) -> bytes:
    """The page of ``beni.serve demo`` after an answer to one of its examples."""
    with demonstrated(maker.run, maker.scratch / "demo.log") as address:
        page = maker.page(1100, 640)
        page.goto(address)
        page.wait_for_function("document.querySelector('#model input')?.value == 'shapes'", timeout=60_000)
        page.locator("button.example").first.click()
        page.wait_for_selector("#ask .thumbnails, #ask img", timeout=20_000)
        page.locator("#ask textarea").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#seen img", timeout=60_000)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        page.wait_for_timeout(1500)  # the page unfolds slowly
        return page.screenshot()


def chat(maker: Maker) -> bytes:
    """A terminal in which ``beni.chat`` was asked about held-out images of the run."""
    from rich.console import Console
    from rich.text import Text

    from beni.serve.examples import read_examples, write_examples

    write_examples(maker.run, maker.scratch, ASKED)
    samples = read_examples(maker.scratch, ASKED)
    (maker.scratch / "runs").mkdir()
    (maker.scratch / "runs" / maker.run.name).symlink_to(maker.run.resolve())
    command = ["python", "-m", "beni.chat", f"runs/{maker.run.name}", "--image", samples[0].image.name]
    typed = [samples[0].question]
    for one in samples[1:]:
        typed += [f"/image {one.image.name}", one.question]
    shown = f"$ {' '.join(command)}\n" + terminal([sys.executable, *command[1:]], [*typed, "/help"], maker.scratch)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(shown), soft_wrap=True)
    page = maker.page(1000, 600)
    page.set_content(console.export_html(code_format=TERMINAL, inline_styles=True))
    return page.locator("pre").screenshot()


IMAGES: dict[str, Callable[[Maker], bytes]] = {
    "report.png": report,
    "examples.png": examples,
    "study.png": study,
    "arms.png": arms,
    "look.png": look,
    "demo.png": demo,
    "chat.png": chat,
}
"""Name in the folder -> what makes it."""


@contextmanager
def demonstrated(run: Path, log: Path) -> Iterator[str]:
    """The address of the page of a demo, for the time of a block."""
    words = ("demo", str(run), "--name", "shapes", "--port", "0", "--gateway-port", "0")
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "beni.serve", *words], stdout=file, stderr=file)
    try:
        until = time.monotonic() + PATIENCE
        while "the page: " not in (said := log.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the demo did not start: {said}")
            time.sleep(0.2)
        yield said.partition("the page: ")[2].split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def terminal(command: Sequence[str], lines: Sequence[str], folder: Path) -> str:
    """What a terminal shows while lines are typed at the prompts of a command, and until it waits for the next one.

    Raises:
        RuntimeError: when the command ends, or no prompt comes in time.
    """
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "INPUTRC": os.devnull, "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown = ""
    try:
        for line in [*lines, ""]:
            shown += _until_prompt(ours, process)
            os.write(ours, f"{line}\n".encode())
        return shown.removesuffix("> ").rstrip().replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until_prompt(descriptor: int, process: subprocess.Popen[bytes]) -> str:
    shown, until = "", time.monotonic() + PATIENCE
    while not shown.endswith("\n> "):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"no prompt came: {shown}")
        if select.select([descriptor], [], [], 0.2)[0]:
            shown += os.read(descriptor, 4096).decode()
    return shown


def _section(page: Page, heading: str, height: int | None = None, from_top: bool = False) -> bytes:
    """A section of a report by its heading.

    Args:
        height: pixels of the page that are shown; None goes to the section's end.
        from_top: begin with the page instead of the section.
    """
    box = _box(page.locator("section", has=page.get_by_role("heading", name=heading, exact=True)).first)
    assert page.viewport_size is not None
    top = 0 if from_top else max(0, box["y"] - MARGIN)
    tall = height or box["y"] + box["height"] + MARGIN - top
    clip: FloatRect = {"x": 0, "y": top, "width": page.viewport_size["width"], "height": tall}
    return page.screenshot(full_page=True, clip=clip)


def _box(element: Locator) -> FloatRect:
    """Where an element lies on its page.

    Raises:
        RuntimeError: when it is not shown.
    """
    box = element.bounding_box()
    if box is None:
        raise RuntimeError(f"{element} is not shown")
    return box


def small(content: bytes) -> bytes:
    """A PNG with a palette.

    Raises:
        ValueError: when it is too large for a page that shows several.
    """
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    if out.tell() > LARGEST:
        raise ValueError(f"{out.tell()} bytes, expected at most {LARGEST}: show less of the page")
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the images; the exit code is 2 where that cannot be."""
    command = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    command.add_argument("run", type=Path, help="folder of a finished run of the default job")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(IMAGES)} (default: all)")
    command.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (docs/images)")
    arguments = command.parse_args(argv)
    if unknown := sorted(set(arguments.names) - set(IMAGES)):
        command.error(f"{', '.join(unknown)}: expected some of {', '.join(IMAGES)}")
    if not (arguments.run / "report.html").is_file():
        command.error(f"{arguments.run} has no report.html: name the folder of a finished run")
    path = program()
    if path is None:
        command.error("there is no Chromium: apt-get install chromium")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with browser(path) as opened:
        for name in arguments.names or IMAGES:
            with tempfile.TemporaryDirectory() as scratch:
                content = small(IMAGES[name](Maker(opened, arguments.run, Path(scratch))))
            (arguments.out / name).write_bytes(content)
            print(f"{arguments.out / name}: {len(content) // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
