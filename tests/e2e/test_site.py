"""The documentation as a site: images made by a program, links that lead somewhere, a whole reference."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from PIL import Image

import beni
from beni.run import train
from support import screenshots
from support.browser import program

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FOLDERS = ("benchmarks", "conf", "docker", "experiments", "launchers", "src", "tests")
YOURS = {
    *("conf/local/default.yaml", "conf/resampler/mine.yaml", "src/beni/resampler/mine.py"),
    *("conf/optim/x.yaml", "launchers/x.yaml"),
}
"""Files that a reader writes."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
TEXTS = {page: re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S) for page in PAGES}


def links(images: bool) -> list[tuple[Path, str, str]]:
    """(page, text, target) of all links, or of all images."""
    return [
        (page, found[2], found[3])
        for page, text in TEXTS.items()
        for found in LINK.finditer(text)
        if bool(found[1]) == images
    ]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as the site and GitHub make them of plain words."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_the_images_of_the_pages_are_those_that_the_program_makes():
    named = {(page.parent / target).resolve() for page, _, target in links(images=True)}
    assert named == {screenshots.FOLDER / name for name in screenshots.IMAGES}
    there = {path for path in DOCS.rglob("*") if path.suffix not in (".md", "")}
    assert named == there


@pytest.mark.parametrize("name", screenshots.IMAGES)
def test_an_image_of_the_pages_is_small(name):
    path = screenshots.FOLDER / name
    assert path.stat().st_size <= screenshots.LARGEST
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width <= 1100


def test_every_image_says_in_words_what_it_shows():
    assert [text for _, text, _ in links(images=True) if len(text.split()) < 6] == []


def test_the_readme_shows_the_report_of_a_study():
    shown = [target for page, _, target in links(images=True) if page.name == "README.md"]
    assert shown == ["docs/images/arms.png"]
    assert screenshots.IMAGES["arms.png"] is screenshots.arms
    assert screenshots.STUDY.is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file_and_a_heading(page):
    for _, text, target in (one for one in links(images=False) if one[0] == page):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            assert parts.scheme == "https", f"{text}: {target}"
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), target
            assert not target.endswith((".", ",", ")")), target
            continue
        file = (page.parent / parts.path).resolve() if parts.path else page
        assert file.exists(), f"{text}: {target}"
        assert not parts.fragment or parts.fragment in anchors(file), f"{text}: {target}"


def test_a_file_of_the_repository_that_a_page_names_is_there():
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.name != "log.md"]  # which tells how it was
    named = {
        path
        for text in texts
        for path in re.findall(r"(?<![\w/.])((?:[a-z]+/)+[\w-]+\.(?:py|md|ya?ml|html|csv|json))\b", text)
        if path.partition("/")[0] in FOLDERS
    }
    assert len(named) > 20
    assert {path for path in named if not (ROOT / path).is_file()} == YOURS


def test_the_reference_has_every_public_name_and_none_that_is_not_there():
    named = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    assert set(beni.__all__) <= {name.rpartition(".")[2] for name in named}
    for name in named:
        module, _, attribute = name.rpartition(".")
        if importlib.util.find_spec(module) and hasattr(importlib.import_module(module), attribute):
            found = getattr(importlib.import_module(module), attribute)
            assert getattr(beni, attribute, found) is found
        else:
            importlib.import_module(name)


def test_the_reference_has_every_command():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    commands = {target.partition(":")[0].removesuffix(".__main__") for target in scripts}
    assert commands
    assert {name for name in commands if f"`python -m {name}`" not in text and f"`{name}`" not in text} == set()


def test_the_page_on_installing_has_every_extra_and_no_page_one_that_is_not_there():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    table = (DOCS / "install.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras
    asked = re.findall(r"(?:beni|\.)\[([\w,]+)\]", "".join(page.read_text(encoding="utf-8") for page in PAGES))
    assert asked
    assert {name for names in asked for name in names.split(",")} <= extras


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_not_with_a_link_that_leads_nowhere(absent, tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            absent(f"without {package}: pip install -c constraints.txt 'beni[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "paths: [src]" in settings
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [src]", f"paths: ['{ROOT / 'src'}']"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]

    def said() -> tuple[int, str]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    assert said()[0] == 0
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}' in reference for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.M))
    assert (tmp_path / "site" / "images" / "demo.png").is_file()
    with (tmp_path / "docs" / "index.md").open("a") as file:
        file.write("\n[a](missing.md) [b](faq.md#missing) [c](/faq/)\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# Unlisted\n")
    code, text = said()
    assert code != 0
    assert [word for word in ("missing.md", "#missing", "/faq/", "unlisted.md") if word not in text] == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_program_makes_every_image_of_any_run(absent, tiny_once, tmp_path, capsys):
    pytest.importorskip("playwright.sync_api")
    if program() is None:
        absent("no Chromium here")
    values = tiny_once("checkpoint.export=true", "eval.gallery=6")
    values["paths"]["runs"] = str(tmp_path / "runs")
    run = train(values)
    assert screenshots.main([str(run), "--out", str(tmp_path / "images")]) == 0
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(screenshots.IMAGES)
    for name in screenshots.IMAGES:
        with Image.open(tmp_path / "images" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 8, name


def test_the_program_names_what_it_lacks(tmp_path, capsys):
    for words, expected in (([str(tmp_path)], "no report.html"), ([str(tmp_path), "no.png"], "report.png")):
        with pytest.raises(SystemExit) as ended:
            screenshots.main(words)
        assert ended.value.code == 2
        assert expected in capsys.readouterr().err


def test_the_navigation_has_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/]+\.md", str(settings["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
