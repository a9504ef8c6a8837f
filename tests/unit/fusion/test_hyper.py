"""Hyper attention: derived anew in float64, in the families that hand their queries over, and refused by the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.llm.layout import layout_of
from beni.training.blocks import recompute
from beni.types import LayerVisitor, Sequence
from support.families import LLMS
from support.fusions import family, fusion_of, images_of, rows_of

MUTE = ("stablelm", "falcon", "gptj", "bloom", "mamba")
"""Families whose attention nobody can read along with."""
LENDING = [name for name in LLMS if name not in MUTE]
ROWS = (".#..", "#..#..", "...", "##.")
COUNT = 5
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}


@pytest.mark.parametrize("name", LLMS)
def test_a_probe_finds_the_families_that_lend_their_queries(name):
    llm = family(name)
    assert llm.capabilities.lends_queries == (frozenset() if name in MUTE else {0, 1})


@pytest.mark.parametrize("name", MUTE)
def test_the_others_are_refused(name):
    llm = family(name)

    def compose():
        along = fusion_of("hyper", llm).reads_along  # an llm without attention is refused at once
        layout_of(llm, "packed", looks_ahead=False, gated=False, reads_along=along)

    with pytest.raises(CompositionError, match=rf"^E-ATTN \[fusion x llm\]: {name} .*\n  fix: .*fusion=flamingo"):
        compose()


@pytest.mark.parametrize("name", LENDING)
@torch.no_grad()
def test_a_closed_gate_leaves_every_family_as_it_is(name):
    llm = family(name)
    fusion = fusion_of("hyper", llm)
    for gate in (-1e4, 0.0):
        for block in fusion.layers():
            block.gate.fill_(gate)
        packed = fusion(rows_of(llm, fusion, *ROWS), images_of(COUNT)).end_to_end()[0]
        assert llm(packed).equal(llm(replace(packed, visitors={}))) == (gate < 0)


@pytest.mark.parametrize("name", LENDING)
@torch.no_grad()
def test_cached_generation_says_what_whole_passes_say(name):
    llm = family(name)
    fusion, visual = fusion_of("hyper", llm, gate_init=1.0), images_of(COUNT)
    text = rows_of(llm, fusion, *ROWS)
    said = llm.generate(fusion(text, visual), **GREEDY)
    assert not said.equal(llm.generate(fusion(text, images_of(COUNT, seed=9)), **GREEDY))
    first = 0
    for row, tokens in zip(range(len(ROWS)), said, strict=True):
        count = ROWS[row].count("#")
        shown = visual.select(torch.arange(first, first + count)) if count else None
        own, images = (x[row, text.real[row]][None] for x in (text.embeds, text.images))
        for token in tokens:
            assert llm(fusion(replace(Sequence.plain(own), images=images), shown))[0, -1].argmax() == token
            own = torch.cat([own, llm.embed(token[None, None])], 1)
            images = torch.cat([images, torch.full((1, 1), -1)], 1)
        first += count


@pytest.mark.parametrize("positions", ["image", "none"])
@pytest.mark.parametrize("sees", ["latest", "all"])
@torch.no_grad()
def test_it_equals_the_formula_one_position_and_head_after_another(sees, positions):
    llm = family("llama").double()
    fusion = fusion_of("hyper", llm, gate_init=0.5, sees=sees, positions=positions).double()
    visual = images_of(COUNT)
    visual = replace(visual.with_features(visual.x.double()), log_gate=-torch.rand(COUNT, 4).double())
    text = rows_of(llm, fusion, *ROWS)
    fused = fusion(replace(text, embeds=text.embeds.double()), visual).end_to_end()[0]
    found = []

    def noted(within):
        def read(query, before, scaling):
            found.append((query, before, scaling, within(query, before, scaling)))
            return found[-1][-1]

        return read

    visitors = {i: LayerVisitor(v.before, within=noted(v.within)) for i, v in fused.visitors.items()}
    llm(replace(fused, visitors=visitors))
    samples, columns = (x[0].tolist() for x in fused.numbered())
    stands = [(s, c) for s, row in enumerate(ROWS) for c, one in enumerate(row) if one == "#"]
    for block, (query, before, scaling, out) in zip(fusion.layers(), found, strict=True):
        assert scaling == 8**-0.5
        share = torch.sigmoid(block.gate).view(4, 8)
        for place, (sample, column) in enumerate(zip(samples, columns, strict=True)):
            shown = [i for i, (s, c) in enumerate(stands) if s == sample and c <= column]
            shown = shown[-1:] if sees == "latest" else shown
            for head in range(4):
                text_read = before[0, place, head]
                if not shown:
                    assert out[0, place, head].equal(text_read)
                    continue
                logits, values = [], []
                for image in shown:
                    for token in range(4):
                        x = visual.x[image, token]
                        x = x / (x.square().mean() + 1e-6).sqrt() * block.norm.weight
                        key, value = (m.weight @ x + m.bias for m in (block.xk, block.xv))
                        key = key.view(2, 8)[head // 2]
                        if positions == "image":
                            key = rotated(key, stands[image][1])
                        logits.append(scaling * (query[0, head, place] @ key) + visual.log_gate[image, token])
                        values.append(value.view(2, 8)[head // 2])
                seen = torch.stack(logits).softmax(0) @ torch.stack(values)
                expected = (1 - share[head]) * text_read + share[head] * seen
                torch.testing.assert_close(out[0, place, head], expected, rtol=1e-6, atol=1e-6)


def rotated(key, position):
    """A key of eight channels at a rotary position: channel j and j + 4 are a complex number."""
    angle = position * 10000.0 ** (-torch.arange(4, dtype=torch.double) / 4)
    turned = torch.complex(key[:4], key[4:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("packed", [True, False])
def test_computing_layers_again_changes_no_bit(mode, packed):
    gradients = []
    for saving in (False, True):
        llm = family("llama")
        fusion, visual = fusion_of("hyper", llm, gate_init=0.0), images_of(COUNT)
        if saving:
            recompute([*llm.layers(), *fusion.layers()], mode)
        x = visual.x.requires_grad_()
        fused = fusion(rows_of(llm, fusion, *ROWS), visual.with_features(x))
        fused = fused.end_to_end()[0] if packed else fused
        llm(fused)[fused.real].square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in (*fusion.parameters(), *llm.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None and theirs is None) or ours.equal(theirs)
    assert gradients[0][0].abs().min() > 0
