"""What an answer looks at: the attention of the positions that its tokens are predicted at, on visual tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from beni.data.images import decode
from beni.evals.drawings import HEAT
from beni.evals.gallery import draw_gallery
from beni.evals.subject import Asked
from support.cross_fusion import CrossFusion
from support.families import LLMS

FOUR = ("vision.architecture.patch_size=6",)
SIXTY = ("template.max_length=2048", "llm.architecture.max_position_embeddings=2048")
SAID = [5, 9, 1]
CASES = {
    "plain": (),
    "random in place": ("selector=random", "selector.keep=5", "selector.positions=preserve"),
    "random gathered": ("selector=random", "selector.keep=5", "selector.positions=compact"),
    "newlines": ("views.newline=true",),
    "tiles": (*SIXTY, "views=anyres", "views.canvases=[[1,2],[2,1]]"),
}


def asked(sample):
    return Asked(sample, [decode(image) for image in sample.images])


def by_hand(subject, one, said):
    """Eager attention of transformers, the mean over heads and the last layer: (answer positions, all positions), and
    where the visual tokens stand.
    """
    model = subject.model
    looked = []
    fusion = model.fusion.register_forward_hook(lambda stage, arguments, out: looked.append(out))
    subject.look(one, said, 1)
    fusion.remove()
    sequence = looked[-1]
    model.llm.model.set_attn_implementation("eager")
    out = model.llm.model(
        inputs_embeds=sequence.embeds,
        attention_mask=sequence.mask,
        position_ids=sequence.position_ids,
        use_cache=False,
        output_attentions=True,
    )
    rows = out.attentions[-1][0].mean(0)[-1 - len(said) : -1]
    return rows.detach(), sequence.is_image[0]


@pytest.mark.parametrize("case", CASES)
def test_the_attention_of_an_answer_is_that_of_the_positions_before_its_tokens(subject_of, make_sample, case):
    subject = subject_of(*FOUR, *CASES[case])
    one = asked(make_sample(2, [(24, 48), (48, 24)]))
    attention = subject.look(one, SAID, 1).attention
    rows, is_image = by_hand(subject, one, SAID)
    assert rows.sum(1).allclose(torch.ones(3), atol=1e-5)
    share = float(rows[:, is_image].sum(1).mean())
    assert attention.shares == {0: pytest.approx(share, abs=1e-5)}
    assert 0 < attention.shares[0] < 1
    values = torch.cat([attention.images[image].values for image in (0, 1)])
    if case in ("newlines", "tiles"):  # a learned token stands for no patch: it counts in the share, and has no place
        assert len(values) < int(is_image.sum())
        assert values.sum() < share
    else:
        torch.testing.assert_close(values, rows[:, is_image].mean(0), atol=1e-5, rtol=0)


def test_several_layers_are_averaged(subject_of, make_sample):
    subject, one = subject_of(*FOUR), asked(make_sample(0, [(24, 24)]))
    last, both, more = (subject.look(one, SAID, layers).attention.shares[0] for layers in (1, 2, 9))
    assert both == more
    assert last != both


def test_tokens_of_tiles_lie_in_the_whole_picture(subject_of, make_sample):
    subject = subject_of(*FOUR, *CASES["tiles"])
    values = subject.look(asked(make_sample(0, [(24, 48)])), SAID, 1).attention.images[0]
    base, tiles = values.yx[:16], values.yx[16:]
    assert base.unique(dim=0).tolist() == [[y / 8, x / 8] for y in (1, 3, 5, 7) for x in (1, 3, 5, 7)]
    assert tiles.unique(dim=0).tolist() == [[y / 8, x / 16] for y in (1, 3, 5, 7) for x in range(1, 16, 2)]


def test_the_brightest_patch_is_the_one_that_is_attended_to_most(subject_of, make_sample):
    subject, sample = subject_of(*FOUR), make_sample(0, [(24, 24)])
    (item,) = draw_gallery(subject, [sample], [], attention=2)
    (line,) = item.line["drawings"]
    assert (line["name"], line["image"]) == ("attention", 0)
    said = subject.say([asked(sample)])[0]
    attention = subject.look(asked(sample), said, 2).attention
    assert item.line["attention"] == attention.shares[0]
    most = attention.images[0].values
    assert line["note"] == f"brightest token: {float(most.max()):.2%}"
    cells = np.asarray(item.overlays[line["file"]].convert("RGBA"))[24::48, 24::48, :3].reshape(16, 3)
    assert tuple(cells[int(most.argmax())]) == HEAT[-1]
    levels = np.asarray(item.overlays[line["file"]])[24::48, 24::48].reshape(16)
    assert levels.tolist() == (1 + (254 * (most / most.max()).sqrt()).round().int()).tolist()


@pytest.mark.parametrize("resampler", ["pixel_shuffle", "avg_pool"])
def test_a_token_of_several_patches_is_drawn_as_large_as_they_are(subject_of, make_sample, resampler):
    subject = subject_of(*FOUR, f"resampler={resampler}", *(["resampler.r=2"] if resampler == "pixel_shuffle" else []))
    (item,) = draw_gallery(subject, [make_sample(0, [(24, 24)])], [], attention=1)
    levels = np.asarray(*item.overlays.values())
    cells = levels.reshape(2, 96, 2, 96) if resampler == "pixel_shuffle" else levels[:, None]
    assert levels.min() > 0
    assert resampler != "pixel_shuffle" or (cells == cells[:, :1, :, :1]).all()


def test_tokens_without_places_have_a_share_and_no_drawing(subject_of, make_sample):
    told = []
    subject = subject_of(*FOUR, "resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2")
    (item,) = draw_gallery(subject, [make_sample(0, [(24, 24)])], [], attention=1, tell=told.append)
    assert (item.line["drawings"], told) == ([], [])
    assert 0 < item.line["attention"] < 1


def test_a_sample_without_a_picture_looks_at_none(subject_of, make_sample):
    looked = subject_of().look(Asked(make_sample(1), []), SAID, 1)
    assert (looked.pictures, looked.attention.images, looked.attention.shares) == ({}, {}, {})


def test_a_family_that_keeps_its_attention_to_itself_is_told_once(subject_of, make_sample):
    told = []
    subject = subject_of("selector=random", llm={"model_type": "gptj", **LLMS["gptj"], "n_embd": 32})
    items = draw_gallery(subject, [make_sample(i, [(24, 24)]) for i in range(3)], [], attention=1, tell=told.append)
    assert told == ["no attention overlay: gptj does not pass beni's attention on"]
    assert [item.line["attention"] for item in items] == [None] * 3
    assert [[line["name"] for line in item.line["drawings"]] for item in items] == [["selector/kept"]] * 3


def test_visual_tokens_that_do_not_stand_in_the_text_are_told_too(subject_of, make_sample, monkeypatch):
    subject = subject_of()
    fusion = CrossFusion(subject.model.specs["llm"], subject.model.llm.hidden_size)
    fusion.install(subject.model.llm)
    fusion.init_weights()
    subject.model.fusion = fusion
    subject = replace(subject, viewer=subject.model.viewer)
    told = []
    draw_gallery(subject, [make_sample(0, [(24, 24)])], [], attention=1, tell=told.append)
    assert told == ["no attention overlay: with this fusion visual tokens have no positions in the text"]


def test_nothing_is_read_where_nothing_is_asked_for(subject_of, make_sample, monkeypatch):
    subject = subject_of()
    monkeypatch.setattr(subject.model.llm, "attended", None)
    looked = subject.look(Asked(make_sample(0), [PILImage.new("RGB", (24, 24))]), SAID, 0)
    assert looked.attention.shares == {}


def test_a_pruned_llm_is_told_of_and_not_looked_at_as_though_it_were_whole(subject_of, make_sample):
    subject = subject_of("pruner=fastv", "pruner.layer=1", "pruner.keep=0.5")
    told = []
    draw_gallery(subject, [make_sample(0, [(24, 24)])], [], attention=1, tell=told.append)
    assert told == ["no attention overlay: a pruner takes image tokens out of the llm between its layers"]
