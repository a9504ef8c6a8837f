"""Sections of a run that a command lets its user set: of another option, or the run's own with other values."""

from __future__ import annotations

import pytest

from beni.config.compose import compose
from beni.config.partial import sections_of
from beni.errors import ConfigError

ALLOWED = ("data", "images", "records", "template")
WEBSITE = ("data=vqa", "data.path=https://me:${oc.env:BENI_TEST_WORD}@host/a.jsonl", "data.columns.image=picture")


def sections(*overrides, trained):
    return sections_of(overrides, ALLOWED, trained=trained)


def test_a_value_alone_changes_the_section_of_the_run(tiny_once):
    run = tiny_once("template=plain", "template.max_length=999", "records.on_bad=skip", "images.max_bad=0.5")
    assert sections("data.heldout=3", trained=run) == {"data": run["data"] | {"heldout": 3}}
    assert sections("template.system=x", "records.max_bad=0.1", trained=run) == {
        "template": run["template"] | {"system": "x"},
        "records": run["records"] | {"max_bad": 0.1},
    }
    assert sections("images={max_bad: 0.2}", trained=run)["images"] == run["images"] | {"max_bad": 0.2}


def test_an_option_has_its_own_values_and_goes_with_the_template_of_the_run(tiny_once):
    named = ("data=llava_pretrain", "data.path=x.json")
    assert sections(*named, trained=tiny_once("template=plain"))["data"]["instructions"] == "drop"
    assert sections(*named, trained=tiny_once())["data"]["instructions"] == "keep"
    assert sections("data=shapes", trained=tiny_once())["data"]["size"] == compose()["data"]["size"] != 64
    assert sections("template=chatml", "template.system=x", trained=tiny_once())["template"]["name"] == "chatml"


def test_a_value_is_judged_beside_the_data_of_the_run(monkeypatch):
    monkeypatch.setenv("BENI_TEST_WORD", "hidden")
    fetching, drawn = compose(WEBSITE), compose()
    assert sections("images.timeout=3", trained=fetching)["images"]["timeout"] == 3
    found = sections("data.heldout=3", trained=fetching)["data"]
    assert found == fetching["data"] | {"heldout": 3}
    assert found["path"].source == WEBSITE[1].partition("=")[2]  # what is kept of it names the variable still
    with pytest.raises(ConfigError, match=r"images\.timeout is not read under data=shapes"):
        sections("images.timeout=3", trained=drawn)
    assert sections("images.timeout=3", *WEBSITE, trained=drawn)["images"]["timeout"] == 3


@pytest.mark.parametrize("text", ["a ${b}", "a \\${b}", "a \\\\${b} \\"])
def test_texts_stay_as_they_are(text, tiny_once):
    run = tiny_once()
    run["template"]["jinja"] = text
    assert sections("template.system=x", trained=run)["template"]["jinja"] == text


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("data.headout=3", "did you mean data.heldout"),
        ("data.heldout=-1", "data.heldout=-1, expected a whole number of at least 0"),
        ("data.heldout=1,2", "several values for one run"),
        ("~data.heldout", "data.heldout is missing"),
        ("template.name=chatml", "template.name=chatml is a label"),
        ("llm.x=1", "llm.x=1 cannot be set here"),
        ("images=3", "images=3 is not a section"),
    ],
)
def test_what_cannot_be_is_refused_as_in_a_run(override, error, tiny_once):
    with pytest.raises(ConfigError, match=error):
        sections(override, trained=tiny_once())
