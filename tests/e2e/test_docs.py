"""What README and docs show is run here, so that it cannot rot."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from beni import compose
from support.options_table import options_table, with_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSED = {
    "beni.compare": "beni.compare",
    "beni.diff": "beni.diff",
    "beni.tradeoff": "beni.tradeoff",
    "beni.export": "beni.export.__main__",
    "beni.serve": "beni.serve.__main__",
    "beni.launch": "beni.launch.__main__",
    "beni.conformance": "beni.conformance.__main__",
}
"""Command -> the module of its parser: those whose command lines hold no run that could be composed."""


def _blocks(language: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), block)
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]


def _commands(module: str) -> list[tuple[str, str]]:
    """Page and command, without what starts it: an environment variable, srun, torchrun with its options."""
    asked = re.compile(
        rf"(?:\w+=\S+ )?(?:srun |\.venv-vllm/bin/)?(?:python|torchrun .+?) -m {re.escape(module)}(?: |$)(.*)"
    )
    found = [
        (page, asked.match(line))
        for page, block in [*_blocks("bash"), *_blocks("text")]
        for line in block.splitlines()
        if "--config-dir" not in line  # those are run, below
    ]
    return [(page, f"python -m {module} {re.split('#| [|][|] ', one[1])[0].strip()}") for page, one in found if one]


def test_the_pages_show_commands_and_code_at_all():
    assert len(_commands("beni.train")) >= 4
    assert all(map(_commands, ("beni.plan", "beni.look", "beni.evaluate", "beni.chat", *PARSED)))
    assert _blocks("python")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), _commands("beni.train"))
def test_every_training_command_of_the_pages_composes(page: str, command: str, monkeypatch):
    monkeypatch.setenv("DATA_TOKEN", "...")
    words = [word for word in shlex.split(command)[3:] if not word.startswith("-") and word != "job"]
    sweeps = " -m " in command.partition("beni.train")[2]
    for word in words:  # the values of a sweep one by one
        key, _, values = word.partition("=")
        for value in values.split(",") if sweeps else [values]:
            others = (other.split(",")[0] if sweeps else other for other in words if other != word)
            compose([f"{key}={value}", *others])


def _settings(code: str) -> list[str]:
    return [word for word in shlex.split(code) if "=" in word]


@pytest.mark.parametrize(
    "settings",
    [
        _settings(code)
        for line in (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
        for code in re.findall(r"`([^`]+)`", line.strip("| ").rpartition(" | ")[2])
        if _settings(code)
    ],
    ids=" ".join,
)
def test_what_llava_sets_is_set_here_by_what_the_walkthrough_says(settings: list[str]):
    assert compose(["recipe=llava15", *settings])


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), _commands("beni.plan"))
def test_every_plan_of_the_pages_composes(page: str, command: str):
    from beni.launch.sweep import named_arms
    from beni.plan import parser

    arguments = parser().parse_intermixed_args(shlex.split(command)[3:])
    assert all(compose(arm) for arm in named_arms(arguments.overrides))


@pytest.mark.parametrize(
    ("module", "page", "command"), [(home, *one) for name, home in PARSED.items() for one in _commands(name)]
)
def test_every_other_command_of_the_pages_is_one_that_its_program_takes(module: str, page: str, command: str):
    assert vars(importlib.import_module(module).parser().parse_args(shlex.split(command)[3:]))


@pytest.mark.parametrize(("page", "command"), _commands("beni.look"))
def test_every_command_of_the_pages_that_looks_at_data_runs(page: str, command: str, tmp_path: Path, monkeypatch):
    from beni.look import main

    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[3:]) == 0
    assert (tmp_path / "runs" / "look.html").is_file() or "--terminal" in command


@pytest.mark.parametrize(("page", "command"), _commands("beni.evaluate"))
def test_every_evaluation_of_the_pages_has_its_task_and_data(page: str, command: str):
    from beni.config.partial import sections_of
    from beni.evals.tasks.registry import task_of
    from beni.evaluate import SECTIONS, parser

    words = parser().parse_intermixed_args(shlex.split(command)[3:]).overrides
    own = [word for word in words if word.startswith("task")]
    assert task_of(own)
    assert set(sections_of([word for word in words if word not in own], SECTIONS)) <= set(SECTIONS)


@pytest.mark.parametrize(("page", "command"), _commands("beni.chat"))
def test_every_conversation_of_the_pages_is_a_command(page: str, command: str):
    from beni.chat import parser

    assert parser().parse_intermixed_args(shlex.split(command)[3:]).run


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), _blocks("python"))
def test_every_python_block_of_the_pages_runs(page: str, code: str, tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = tmp_path / done.stdout.strip().splitlines()[-1]
    assert "</html>" in report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_on_adding_a_part_works_as_it_stands(tmp_path: Path):
    page = (ROOT / "docs" / "add_a_part.md").read_text(encoding="utf-8")
    for name, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, re.S):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.S)).replace("python -m", f"{sys.executable} -m")
    script = f"set -e\n{commands}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every property holds" in done.stdout
    shown = re.search(r"    (pass  makes what its spec says .*)", page)
    assert shown
    assert " ".join(shown[1].split()) in " ".join(done.stdout.split())
    assert len(list((tmp_path / "runs").glob("*/*row_pool*/report.html"))) == 1


def test_the_readme_lists_every_option():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "- **resampler**: aria, " in options_table()
    assert text == with_table(text), "python tests/support/options_table.py"


def test_the_readme_can_be_read_at_a_glance():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert cells
    assert [cell for cell in cells if len(cell.split()) > 20] == []
    visible = text.replace("\n".join(re.findall(r"<details>.*?</details>", text, re.S)), "")
    assert len(visible.splitlines()) < 100
    assert "picture" not in text, "the word is image"


def test_the_way_of_an_image_is_drawn_alike_on_every_page():
    drawn = {page.name: re.findall(r"^ +image ─> .*\n.*$", page.read_text(encoding="utf-8"), re.M) for page in PAGES}
    found = {name: drawing for name, drawing in drawn.items() if drawing}
    assert set(found) == {"README.md", "index.md", "visual_path.md"}
    assert len({tuple(drawing) for drawing in found.values()}) == 1


def test_every_make_target_of_the_pages_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = {t for page in PAGES for t in re.findall(r"^make (\w+)", page.read_text(encoding="utf-8"), re.M)}
    assert named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)
