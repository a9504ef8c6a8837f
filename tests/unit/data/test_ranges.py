"""Every number of a data option has its range, and is judged when the run is composed."""

import pytest

from beni.assemble import assemble
from beni.config.build import build
from beni.config.compose import compose
from beni.errors import BeniError, ConfigError, DataError

FILES = ("captions", "cauldron", "chat", "llava_instruct", "text_rows", "vqa")
OUT = [
    *((option, override) for option in FILES for override in ("heldout=-1", "rows=0", "rows=-3")),
    *(("shapes", f"{key}={value}") for key in ("size", "image_size", "questions") for value in ("0", "-3")),
    *(
        ("shapes", f"{key}={value}")
        for key in ("pictures_share", "text_share", "described_share")
        for value in ("-0.1", "1.5", "nan")
    ),
    ("shapes", "heldout=-1"),
    *(("stamps", f"{key}={value}") for key, value in (("choices", 1), ("max_words", 0), ("split", -1), ("heldout", 0))),
    *(("stamps", f"kinds={value}") for value in ("-0.1", "1.0", "nan")),
    *(("text", f"{key}={value}") for key, value in (("piece", 0), ("piece", -5), ("heldout", 0.0), ("heldout", 1.0))),
    ("text", "heldout=nan"),
    *(("mixture", f"{key}={value}") for key, value in (("temperature", 0.0), ("most_epochs", "nan"), ("size", 0))),
]


@pytest.mark.parametrize(("option", "override"), OUT)
def test_a_number_out_of_its_range_is_refused_at_composition_with_a_value_that_is_not(option, override):
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError) as raised:
        compose([f"data={option}", f"data.{override}"])
    said = str(raised.value)
    assert f"data.{key}={value}, expected " in said
    proposed = said.partition("fix: set ")[2].split()[0]
    compose([f"data={option}", proposed])


@pytest.mark.parametrize(
    "name", ["flip=-0.1", "flip=nan", "crop=0.0", "stretch=0.5", "colour=1.0", "rotate=-1", "flip=x"]
)
def test_a_value_of_augment_out_of_its_range_is_refused_with_one_that_is_not(tmp_path, name, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d.jsonl").write_text('{"image": "a.png", "text": "a"}\n' * 2)
    values = ["data=captions", f"data.path={tmp_path}/d.jsonl", "data.heldout=1"]
    with pytest.raises(ConfigError, match=rf"data\.augment\.{name}, expected .*\n  fix: set ") as raised:
        build(compose([*values, f"+data.augment.{name}"])["data"], 0)
    build(compose([*values, "+" + str(raised.value).partition("fix: set ")[2].split()[0]])["data"], 0)


def test_shares_of_shapes_are_no_more_than_one_together():
    with pytest.raises(DataError, match="exceed 1 together"):
        build(compose(["data=shapes", "data.pictures_share=0.6", "data.text_share=0.6"])["data"], 0)


def test_a_run_that_holds_nothing_out_is_refused_before_it_trains():
    with pytest.raises(DataError, match=r"data\.heldout=0 holds no records out.*\n  fix: set data\.heldout=100"):
        assemble(compose(["data=shapes", "data.heldout=0"]), None)


def test_a_source_that_is_scored_and_holds_nothing_out_is_refused():
    values = ["data=mixture", "data.sources.shapes.heldout=0"]
    with pytest.raises(
        BeniError, match=r"data\.sources\.shapes holds out no records.*\n  fix: set data\.sources\.shapes"
    ):
        build(compose(values)["data"], 0)
    build(compose(["data=mixture", "data.sources.texts.heldout=0"])["data"], 0)  # data.score names shapes only
