"""Each rule against its published form, written down anew for one sample of a Llama: by names, eager, with loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from beni.errors import CompositionError
from beni.pruner.base import cuts_before
from beni.pruner.dart import Dart
from beni.pruner.fastv import FastV
from beni.pruner.pyramiddrop import PyramidDrop
from beni.pruner.sparsevlm import SparseVlm, about_image, density_peaks
from beni.types import Cut, LayerVisitor
from support.image_rows import DEPTH, alone, make, rows

WORDS, IMAGES = 34, (3, 25)
"""A sample of 34 positions, 22 of them of images; 9 words follow."""


@pytest.fixture(scope="module")
def llama():
    return make("llama")


@pytest.fixture(scope="module")
def sample(llama):
    return alone(rows(llama, (WORDS,), (IMAGES,)), 0)


def installed(pruner):
    pruner.install(lambda: DEPTH, inline=True)
    return pruner


class Release:
    """A Llama whose layers are called one by one; ``cuts`` are functions of this object, by layer."""

    def __init__(self, llm, sequence, cuts, compact=False):
        self.model, self.cuts, self.compact = llm.model.model, cuts, compact
        self.embeds, self.hidden = sequence.embeds, sequence.embeds
        self.columns = list(range(WORDS))
        self.first = IMAGES[1] - IMAGES[0]
        self.image = range(*IMAGES)
        self.positions = torch.arange(WORDS)[None]
        llm.model.set_attn_implementation("eager")
        for index, layer in enumerate(self.model.layers):
            if index in cuts:
                self.layer = layer
                self.take(cuts[index](self))
            out, self.weights = self.attend(layer)
            self.hidden = self.hidden + out
            self.hidden = self.hidden + layer.mlp(layer.post_attention_layernorm(self.hidden))
        self.logits = llm.model.lm_head(self.model.norm(self.hidden))

    def attend(self, layer):
        size = self.hidden.shape[1]
        mask = torch.full((size, size), -torch.inf).triu(1)[None, None]
        around = self.model.rotary_emb(self.hidden, self.positions)
        return layer.self_attn(layer.input_layernorm(self.hidden), position_embeddings=around, attention_mask=mask)

    def take(self, kept):
        """Goes on with these of the image tokens."""
        stay = [i for i, column in enumerate(self.columns) if column not in self.image or column in kept]
        self.columns = [self.columns[i] for i in stay]
        self.hidden = self.hidden[:, stay]
        self.positions = self.positions[:, stay]
        if self.compact:
            self.positions = torch.arange(len(stay))[None]

    def visual(self):
        """Image tokens that are left: (places, columns)."""
        found = [(i, column) for i, column in enumerate(self.columns) if column in self.image]
        return [i for i, _ in found], [column for _, column in found]

    def best(self, scores, count):
        """The columns of the ``count`` image tokens with the highest scores of all places."""
        places, columns = self.visual()
        return {columns[i] for i in scores[places].topk(count).indices.tolist()}


def fastv(keep):
    def cut(release):
        return release.best(release.weights[0].mean(0)[-1], int(release.first * keep))

    return cut


def pyramid(keep):
    def cut(release):
        attention, hidden = release.layer.self_attn, release.layer.input_layernorm(release.hidden)
        heads, width = 4, attention.head_dim
        q = attention.q_proj(hidden).view(1, -1, heads, width).transpose(1, 2)
        k = attention.k_proj(hidden).view(1, -1, 2, width).transpose(1, 2).repeat_interleave(2, 1)
        cos, sin = (x[:, None] for x in release.model.rotary_emb(hidden, release.positions))
        q, k = (x * cos + torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1) * sin for x in (q, k))
        weights = (q[0, :, -1:] @ k[0].transpose(1, 2) / math.sqrt(width)).softmax(-1)
        return release.best(weights.mean(0)[0], int(release.first * keep))

    return cut


def dart(keep, image_pivots, text_pivots):
    def cut(release):
        places, _ = release.visual()
        total, k = int(release.first * keep), keys_before(release)
        norms = k.abs().sum(-1)
        words = range(places[-1] + 1, len(release.columns))
        pivots = [places[i] for i in norms[places].topk(image_pivots).indices.tolist()]
        pivots += [words[i] for i in norms[list(words)].topk(text_pivots).indices.tolist()]
        kept, left = set(pivots[:image_pivots]), total - image_pivots
        for number, pivot in enumerate(pivots):
            free = [place for place in places if place not in kept]
            likeness = F.cosine_similarity(release.hidden[0, pivot], release.hidden[0, free], dim=-1)
            share = left // len(pivots) + (number < left % len(pivots))
            kept |= {free[i] for i in likeness.topk(share, largest=False).indices.tolist()}
        return {release.columns[place] for place in kept}

    return cut


def keys_before(release):
    """Keys of the layer before the cut, as it has computed them: of the hidden states that it was given."""
    return release.keys


def sparse(keep, recycle, cluster):
    def cut(release):
        _, columns = release.visual()
        images, text = release.embeds[0, list(release.image)], release.embeds[0, IMAGES[1] :]
        given = (images @ text.T).softmax(-1).mean(0)
        raters = (given > given.mean()).nonzero()[:, 0] + (len(release.columns) - len(text))
        scores = release.weights[0].mean(0)[raters].mean(0)
        kept = release.best(scores, int(release.first * keep))
        leaving = sorted((c for c in columns if c not in kept), key=lambda c: -scores[release.columns.index(c)])
        some = leaving[: int(len(leaving) * recycle) + 1]
        at = [release.columns.index(column) for column in some]
        tokens = release.hidden[0, at]
        groups = peaks(tokens, min(len(some), len(some) // cluster + 1))
        hidden = release.hidden.clone()
        for centre, members in groups.items():
            hidden[0, at[centre]] = tokens[members].mean(0)
        release.hidden = hidden
        return kept | {some[centre] for centre in groups}

    return cut


def peaks(tokens, clusters):
    """Density peaks with loops: centre -> its members."""
    size = len(tokens)
    apart = [[float((a - b).norm()) / tokens.shape[1] ** 0.5 for b in tokens] for a in tokens]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in apart]
    farthest = max(map(max, apart))
    denser = [[apart[i][j] for j in range(size) if density[j] > density[i]] for i in range(size)]
    score = [density[i] * min(denser[i] or [farthest]) for i in range(size)]
    centres = sorted(range(size), key=lambda i: -score[i])[:clusters]
    groups = {centre: [centre] for centre in centres}
    for i in set(range(size)) - set(centres):
        groups[min(centres, key=lambda centre: apart[centre][i])].append(i)
    return groups


@pytest.fixture
def keyed(monkeypatch, llama):
    """Notes the rotated keys of each layer where a release reads them."""
    from transformers.models.llama import modeling_llama

    own, releases = modeling_llama.eager_attention_forward, []

    def forward(module, query, key, value, *arguments, **named):
        for release in releases:
            release.append(key)
        return own(module, query, key, value, *arguments, **named)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", forward)
    seen = []
    releases.append(seen)
    monkeypatch.setattr(Release, "keys", property(lambda _: seen[-1][0].transpose(0, 1).flatten(1)), raising=False)


THREE = [0.6, 0.4, 0.1]
RULES = {
    "fastv": (FastV(layer=2, keep=0.3, positions="preserve"), {2: fastv(0.3)}),
    "fastv at once": (FastV(layer=1, keep=0.5, positions="compact"), {1: fastv(0.5)}),
    "pyramiddrop": (
        PyramidDrop(layers="auto", keep=THREE, positions="preserve"),
        {i + 1: pyramid(keep) for i, keep in enumerate(THREE)},
    ),
    "pyramiddrop of the release": (
        PyramidDrop(layers=[1, 2, 3], keep=THREE, positions="compact"),
        {i + 1: pyramid(keep) for i, keep in enumerate(THREE)},
    ),
    "dart": (
        Dart(layer=2, keep=0.6, image_pivots=2, text_pivots=3, positions="preserve"),
        {2: dart(0.6, 2, 3)},
    ),
    "sparsevlm": (
        SparseVlm(layers=[1, 3], keep=[0.4, 0.2], recycle=0.5, cluster=3, positions="preserve"),
        {1: sparse(0.4, 0.5, 3), 3: sparse(0.2, 0.5, 3)},
    ),
    "sparsevlm of the release": (
        SparseVlm(layers=[1, 3], keep=[0.4, 0.2], recycle=0.5, cluster=3, positions="compact"),
        {1: sparse(0.4, 0.5, 3), 3: sparse(0.2, 0.5, 3)},
    ),
}


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_logits_are_those_of_the_published_rule(rule, llama, sample, keyed):
    pruner, cuts = RULES[rule]
    expected = Release(llama, sample, cuts, pruner.positions == "compact")
    found = llama(installed(pruner)(sample))
    assert len(expected.columns) < WORDS - 8
    torch.testing.assert_close(found[:, expected.columns], expected.logits, rtol=0, atol=1e-5)
    assert (llama(sample)[:, expected.columns] - expected.logits).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [1, 2, 3])
@torch.no_grad()
def test_fastv_keeps_what_transformers_own_attention_weights_rank_first(layer, llama, sample):
    llama.model.set_attn_implementation("eager")
    weights = llama.model(inputs_embeds=sample.embeds, output_attentions=True).attentions[layer - 1][0].mean(0)[-1]
    kept = weights[slice(*IMAGES)].topk(11).indices.sort().values + IMAGES[0]
    shown = []

    def look(hidden, call):
        shown.append(call.columns[0])
        return hidden

    with llama.around_layers({layer: LayerVisitor(before=look)}):
        llama(installed(FastV(layer=layer, keep=0.5, positions="preserve"))(sample))
    assert [c for c in shown[0].tolist() if c in range(*IMAGES)] == kept.tolist()


def test_clusters_are_those_of_density_peaks():
    tokens = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    centres, cluster = density_peaks(tokens, 5)
    expected = peaks(tokens, 5)
    assert {int(c): sorted((cluster == i).nonzero()[:, 0].tolist()) for i, c in enumerate(centres)} == {
        centre: sorted(members) for centre, members in expected.items()
    }
    same, alike = density_peaks(torch.ones(4, 3), 2)
    assert len(set(same.tolist())) == 2
    assert sorted(alike[same].tolist()) == [0, 1]


def test_words_that_the_image_is_about_are_above_the_mean():
    image, text = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])
    there, may = torch.tensor([[True, False]]), torch.tensor([[True, True, False]])
    assert about_image(image, there, text, may).tolist() == [[True, False, False]]


@torch.no_grad()
def test_an_image_without_a_word_behind_it_is_judged_by_its_end(llama):
    sequence = alone(rows(llama, (12,), ((2, 12),)), 0)
    pruner = installed(SparseVlm(layers=[2], keep=[0.4], recycle=0.0, cluster=1, positions="preserve"))
    other = installed(FastV(layer=2, keep=0.4, positions="preserve"))
    torch.testing.assert_close(llama(pruner(sequence)), llama(other(sequence)), rtol=0, atol=0)


def test_a_sample_keeps_one_image_token_at_least():
    cut = Cut(0.1, lambda candidates: candidates.hidden[..., 0], "before")
    assert [cut.keep(images, images) for images in (0, 1, 5, 30, 100)] == [0, 1, 1, 3, 10]


def test_a_pruner_that_keeps_all_leaves_the_sequence_as_it_is(sample):
    for pruner in (
        FastV(layer=9, keep=1.0, positions="compact"),
        PyramidDrop(layers="auto", keep=[1.0, 1.0], positions="preserve"),
    ):
        assert installed(pruner)(sample) is sample
    text = replace(sample, images=torch.full_like(sample.images, -1))
    assert installed(FastV(layer=1, keep=0.5, positions="preserve"))(text) is text


@pytest.mark.parametrize(
    ("layers", "keep", "said"),
    [
        ([4], [0.5], "before the layers [4] of an llm with the layers 0 to 3"),
        ([2, 1], [0.5, 0.2], "ascending"),
        ([1, 1], [0.5, 0.2], "ascending"),
        ([1, 2], [0.5], "2 layers have the shares [0.5]"),
        ([1, 2], [0.2, 0.5], "none above the one before"),
    ],
)
def test_layers_and_shares_that_do_not_fit_are_refused(layers, keep, said):
    with pytest.raises(CompositionError) as caught:
        cuts_before(layers, keep, 4, lambda share: Cut(share, None, "before"))
    assert caught.value.code == "E-PLACE"
    assert said in str(caught.value)
    assert "\n  fix: " in str(caught.value)
