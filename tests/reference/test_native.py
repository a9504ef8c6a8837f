"""Recipes as classes of transformers: each is written, loaded and compared, and docs/export.md has its row."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from beni.errors import CompositionError
from beni.export.formats import Export
from beni.export.native import writing
from beni.export.native.tensors import sized_anew
from beni.paths import PACKAGE, conf_dir
from support.native_runs import RECIPES, Recipe, as_trained, native_run, scrambled_model, tagged_tokenizer

pytestmark = pytest.mark.slow

PAGE = PACKAGE.parent.parent / "docs" / "export.md"


@pytest.fixture(scope="session")
def tagged(tmp_path_factory):
    return tagged_tokenizer(tmp_path_factory.mktemp("tagged"))


def exported(run, out, model=None):
    """(native, processor, agreement, family) of what is written."""
    out.mkdir()
    trained = as_trained(model or scrambled_model(run), run, out.parent)
    told = Export(trained, False, 16, out, lambda *_, **__: None)
    found = []

    def kept(*given):
        found.append(native_of(*given))
        return found[0]

    native_of = writing.native_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "native_of", kept)
        writing.write(told)
    return found[0]


def rows():
    """Recipe -> cells of its row in the table of the page."""
    if not PAGE.is_file():
        pytest.skip("not a source checkout: there is no docs/")
    table = PAGE.read_text(encoding="utf-8").partition("| recipe |")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {line[0].strip("`"): line[1:] for line in lines}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_class_that_the_page_names_with_the_difference_that_it_tells(name, tagged, tmp_path):
    run = native_run(name, tagged)
    native, processor, found, family = exported(run, tmp_path / "out")
    assert family.architecture.__name__ == RECIPES[name].model
    assert type(processor).__name__ == RECIPES[name].processor
    assert found.logits <= found.bound <= 1e-4
    assert found.same_text == found.same_ids == found.prompts >= 5
    assert found.images >= 5
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == RECIPES[name].model
    assert all(torch.equal(tensor, native.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")).__name__ == RECIPES[name].processor
    told = rows()[name]
    assert told[:2] == [f"`{RECIPES[name].model}`", f"`{RECIPES[name].processor}`"]
    assert found.logits <= 10 * max(float(told[2]), 1e-6)  # another processor adds in another order
    assert told[4] == f"{found.same_pixels} of {found.images}"


def test_the_page_has_a_row_for_every_recipe_and_a_reason_where_there_is_no_class():
    told = rows()
    assert set(told) == {path.stem for path in (conf_dir() / "recipe").glob("*.yaml")}
    for name, cells in told.items():
        assert (name in RECIPES) == (cells[0] != "none"), name
    assert len(RECIPES) >= 10


OTHERS = {
    "cambrian": Recipe("none", ""),
    "deco": Recipe("none", "", side=6),
    "dragonfly": Recipe("none", "", side=4),
    "honeybee_c": Recipe("none", "", side=4),
    "minigpt_v2": Recipe("none", "", side=4),
    "mobilevlm": Recipe("none", "", side=4),
    "mobilevlm_v2": Recipe("none", "", side=4),
    "molmo": Recipe("none", "", ("vision.levels=[1]",), side=4),
    "qwen2_vl": Recipe("none", "", side=4),
    "tokenpacker": Recipe("none", "", ("vision.levels=[0,1,2,3]",), side=6),
}
"""Recipes that no class is, at tiny sizes."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_without_a_class_is_refused_with_what_differs_and_what_works(name, tagged, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, name, OTHERS[name])
    run = native_run(name, tagged)
    with pytest.raises(CompositionError) as refused:
        exported(run, tmp_path / "out", scrambled_model(run))
    said = str(refused.value)
    assert "no class of transformers is this composition" in said
    assert re.search(r"ForConditionalGeneration: .*expected", said)
    assert "--format pretrained" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_positions_that_the_run_interpolates_are_written_at_its_size(tagged, tmp_path):
    run = native_run("gemma3", tagged)
    model = scrambled_model(run)
    assert sized_anew(model)
    native, *_ = exported(run, tmp_path / "out", model)
    assert native.config.vision_config.image_size == run["vision"]["image_size"]
    assert native.config.vision_config.image_size != run["vision"]["architecture"]["image_size"]


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.tagged])
def test_a_tokenizer_that_spells_the_tags_around_images_is_refused(name, tagged, tmp_path):
    run = native_run(name, tagged)
    run["llm"]["tokenizer"] = "embedded"
    with pytest.raises(CompositionError, match=r"the tokenizer has no token <(fake_token_around_image|img)>"):
        exported(run, tmp_path / "out")
