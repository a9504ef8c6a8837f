"""Crops beside the whole picture: where they lie, what is in them, and whose boxes they are."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from beni.config.build import build_stage
from beni.config.compose import compose
from beni.errors import BeniError, CompositionError, ConfigError, WeightsError
from beni.model.costing.table import propagate
from beni.nn.pixels import ImageTransform
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens
from beni.views import detector
from beni.views.base import WHOLE
from beni.views.detector import Detector, detector_config
from beni.views.spectral_residual import SIDE, spectral_residual
from support.options import node
from support.shrink import DETECTOR

TRANSFORM = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = TokenSpec(n=4, dim=3, grid=(2, 2))


def views_of(option, **values):
    own = node("views", option) | (DETECTOR if option == "regions_detector" else {}) | values
    return build_stage(own, tokens=SPEC, tile=(32, 32), patches=(2, 2), dim_out=8)


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def with_a_mark(top, left, height=96, width=128, side=24):
    """Stripes everywhere, and a checked square that stands out of them."""
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    pixels[::8] = 110
    square = np.indices((side, side)).sum(0) // 4 % 2 * 255
    pixels[top : top + side, left : left + side] = square[..., None]
    return Image.fromarray(pixels)


def settled(views, picture):
    return views.settled(picture, views.plan((picture.height, picture.width)))


@pytest.mark.parametrize("size", [(64, 64), (50, 120)])
def test_views_are_the_whole_picture_and_then_the_crops_of_its_boxes(size):
    views, picture = views_of("regions_grid", regions=4), noise(*size)
    layout = settled(views, picture)
    assert layout.boxes == (WHOLE, (0, 0, 0.5, 0.5), (0, 0.5, 0.5, 1), (0.5, 0, 1, 0.5), (0.5, 0.5, 1, 1))
    whole, *crops = views.split(picture, layout, TRANSFORM)
    assert whole.equal(TRANSFORM(picture))
    height, width = size
    for (top, left, bottom, right), crop in zip(layout.boxes[1:], crops, strict=True):
        edges = (int(left * width), int(top * height), int(right * width), int(bottom * height))
        own = picture.resize((32, 32), Image.Resampling.BICUBIC, box=edges)  # of the original pixels
        assert crop.equal(TRANSFORM(own))


def test_a_crop_of_a_picture_of_its_size_is_its_pixels():
    views, picture = views_of("regions_grid", regions=4), noise(64, 64)
    _, first, *_ = views.split(picture, settled(views, picture), TRANSFORM)
    assert first.equal(TRANSFORM(picture.crop((0, 0, 32, 32))))


@pytest.mark.parametrize("join", [False, True])
def test_tokens_of_a_crop_have_their_places_in_the_picture(join):
    views, picture = views_of("regions_saliency", regions=1, join=join), with_a_mark(60, 90)
    if join:
        torch.nn.init.zeros_(views.view)
    layout = settled(views, picture)
    top, left, bottom, right = layout.boxes[1]
    tokens, context = VisualTokens.dense(torch.randn(2, 4, 3), (2, 2)), StageContext(layouts=(layout,))
    out = views.finish(views(tokens, context), context)
    expected = [(top + y * (bottom - top), left + x * (right - left)) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    assert torch.allclose(out.yx[0, 4:], torch.tensor(expected))
    assert out.yx[0, :4].tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert views.places(layout) == ([WHOLE] if join else layout.boxes)


@pytest.mark.parametrize(("top", "left"), [(8, 8), (8, 96), (64, 8), (64, 96), (36, 52)])
def test_what_stands_out_is_in_the_first_crop(top, left):
    picture = with_a_mark(top, left)
    y, x = (top + 12) / 96, (left + 12) / 128
    first = settled(views_of("regions_saliency", regions=2, sizes=[0.4]), picture).boxes[1]
    assert first[0] < y < first[2]
    assert first[1] < x < first[3]
    heat = spectral_residual(picture)
    inside = heat[int((y - 0.1) * SIDE) : int((y + 0.1) * SIDE), int((x - 0.1) * SIDE) : int((x + 0.1) * SIDE)]
    assert inside.mean() > 3 * heat.mean()


def test_the_spectral_residual_is_the_published_one():
    """Frequency by frequency, in numpy."""
    picture = with_a_mark(30, 40)
    grey = np.array(picture.convert("L").resize((64, 64), Image.Resampling.BICUBIC)) / 255
    spectrum = np.fft.fft2(grey)
    log = np.log(np.abs(spectrum) + 1e-9 * np.abs(spectrum).max())
    mean = sum(np.roll(log, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    back = np.abs(np.fft.ifft2(np.exp(log - mean + 1j * np.angle(spectrum)))) ** 2
    line = np.exp(-(np.arange(-7, 8) ** 2) / (2 * 2.5**2))
    padded = np.pad(back, 7, mode="edge")
    smooth = np.array(
        [[(padded[i : i + 15, j : j + 15] * np.outer(line, line)).sum() for j in range(64)] for i in range(64)]
    )
    assert np.allclose(spectral_residual(picture).numpy(), smooth / line.sum() ** 2, rtol=1e-8)


def test_a_picture_of_one_colour_is_cropped_at_even_distances():
    plain = Image.new("RGB", (40, 30), (90, 10, 200))
    assert settled(views_of("regions_saliency"), plain).boxes == settled(views_of("regions_grid"), plain).boxes
    assert not spectral_residual(plain).any()


def test_random_crops_belong_to_the_pixels_and_the_seed():
    views, picture = views_of("regions_random", regions=3, sizes=[0.5, 0.25]), noise(30, 40)
    boxes = settled(views, picture).boxes
    assert boxes == settled(views_of("regions_random", regions=3, sizes=[0.5, 0.25]), noise(30, 40)).boxes
    assert boxes != settled(views, noise(30, 40, 1)).boxes
    assert boxes != settled(views_of("regions_random", regions=3, sizes=[0.5, 0.25], seed=1), picture).boxes
    turned = Image.frombytes("RGB", (30, 40), picture.tobytes())  # the same bytes in another shape
    assert boxes != settled(views, turned).boxes
    sides = [(bottom - top, right - left) for top, left, bottom, right in boxes[1:]]
    assert sides == [(pytest.approx(side), pytest.approx(side)) for side in (0.5, 0.5, 0.25)]


def found(views, boxes, scores):
    return views.chosen(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores))


def test_detections_are_the_surest_that_overlap_little_and_grow_to_the_picture_s_shape():
    views = views_of("regions_detector", regions=2, threshold=0.3, overlap=0.5, margin=0.25, least=0.1)
    boxes = [[0.4, 0.4, 0.6, 0.5], [0.41, 0.4, 0.6, 0.5], [0.0, 0.8, 0.2, 1.0], [0.5, 0.0, 0.52, 0.02]]
    first, second = found(views, boxes, [0.9, 0.8, 0.5, 0.4])
    assert first == pytest.approx((0.35, 0.3, 0.65, 0.6))  # 0.2 and a margin of 0.05 on every side, about its middle
    assert second == pytest.approx((0.0, 0.7, 0.3, 1.0))  # moved into the picture
    (small,) = found(views_of("regions_detector", regions=1, margin=0.0, least=0.5), boxes[3:], [0.9])
    assert small == pytest.approx((0.26, 0.0, 0.76, 0.5))
    (large,) = found(views_of("regions_detector", regions=1, margin=0.5), [[0.0, 0.1, 0.9, 1.0]], [0.9])
    assert large == WHOLE


@pytest.mark.parametrize("scores", [[0.9, 0.2, 0.2], [0.9, 0.8, 0.2], [0.1, 0.1, 0.1]])
def test_even_windows_take_the_places_of_missing_detections(scores):
    views = views_of("regions_detector", regions=4, threshold=0.3, margin=0.0, least=0.0)
    boxes = [[0.0, 0.0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6], [0.8, 0.8, 0.9, 0.9]]
    sure = sum(score > 0.3 for score in scores)
    crops = found(views, boxes, scores)
    assert [tuple(crop) for crop in crops[:sure]] == [pytest.approx(tuple(box)) for box in boxes[:sure]]
    assert crops[sure:] == list(settled(views_of("regions_grid", regions=4), noise(9, 9)).boxes[1 + sure :])


def test_boxes_without_an_area_are_no_detections():
    views = views_of("regions_detector", regions=1, threshold=0.0)
    assert found(views, [[0.5, 0.5, 0.5, 0.9]], [0.9]) == [(0.25, 0.25, 0.75, 0.75)]


YOLOS = {
    "model_type": "yolos",
    "num_labels": 5,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_detection_tokens": 7,
    "image_size": [64, 64],
    "patch_size": 16,
}
RT_DETR = {
    "model_type": "rt_detr",
    "num_labels": 5,
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [16, 16, 32],
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_in_channels": [16, 16, 16],
    "num_queries": 12,
}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OWL = {
    "model_type": "owlv2",
    "vision_config": {**TOWER, "image_size": 64, "patch_size": 16},
    "text_config": {**TOWER, "vocab_size": 50},
    "projection_dim": 16,
}


@pytest.mark.parametrize("architecture", [DETECTOR["architecture"], YOLOS, RT_DETR, OWL], ids=lambda a: a["model_type"])
def test_a_detector_is_asked_whatever_its_kind(architecture):
    views = views_of("regions_detector", architecture=architecture, regions=3)
    boxes, scores = views.detector(noise(60, 90))
    assert boxes.shape == (len(scores), 4)
    assert len(scores) == {"detr": 12, "yolos": 7, "rt_detr": 12, "owlv2": 16}[architecture["model_type"]]
    assert bool((boxes[:, :2] <= boxes[:, 2:]).all())
    assert bool(((scores > 0) & (scores < 1)).all())
    assert views.loading_flops() > 0
    assert settled(views, noise(60, 90)).boxes == settled(views, noise(60, 90)).boxes


def test_a_box_of_a_detector_is_centre_and_size_and_its_score_the_best_class(monkeypatch):
    """A model that finds two boxes, (x, y, width, height): the sides must not change places."""

    class Found(torch.nn.Module):
        config = detector_config(None, DETECTOR["architecture"])

        def forward(self, pixel_values):
            self.pred_boxes = torch.tensor([[[0.2, 0.6, 0.2, 0.4], [0.9, 0.5, 0.4, 0.1]]])
            self.logits = torch.tensor([[[1.0, 2, 0, 0, 0, 3], [0, 0, 0, 0, 5.0, 0]]])
            return self

    boxes, scores = detector._boxes(Found(), torch.zeros(1, 3, 8, 8))
    assert torch.allclose(boxes, torch.tensor([[0.4, 0.1, 0.8, 0.3], [0.45, 0.7, 0.55, 1.0]]))
    exact = torch.tensor([[1.0, 2, 0, 0, 0, 3], [0, 0, 0, 0, 5, 0]]).softmax(1)
    assert torch.allclose(scores, torch.stack([exact[0, 1], exact[1, 4]]))  # DETR's last class is nothing
    judged = detector._best_class(torch.tensor([[1.0, -1.0]]), 2)
    assert torch.allclose(judged, torch.tensor([1.0]).sigmoid())


@pytest.fixture
def saved(tmp_path):
    """A detector with weights of its own in a folder."""
    from transformers import AutoModelForObjectDetection

    config = detector_config(None, DETECTOR["architecture"])
    torch.manual_seed(7)
    model = AutoModelForObjectDetection.from_config(config)
    for parameter in model.bbox_predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "detector")
    return tmp_path / "detector", model.eval()


def test_a_saved_detector_is_read_by_folder_with_its_weights(saved):
    folder, model = saved
    views = views_of("regions_detector", name=str(folder), weights="pretrained", architecture=None, regions=2)
    picture = noise(60, 90)
    boxes, _ = views.detector(picture)
    with torch.no_grad():
        x, y, width, height = model(pixel_values=views.detector.transform(picture)[None]).pred_boxes[0].unbind(1)
    expected = torch.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], 1).clamp(0, 1)
    assert torch.allclose(boxes, expected, atol=1e-6)
    assert views.fingerprint() != views_of("regions_detector").fingerprint()
    assert (
        views.fingerprint()
        == views_of(
            "regions_detector", name=str(folder), weights="pretrained", architecture=DETECTOR["architecture"]
        ).fingerprint()
    )


def test_a_detector_is_no_part_of_the_model_and_travels_without_weights(saved):
    views = views_of("regions_detector", name=str(saved[0]), weights="pretrained", architecture=None)
    assert not list(views.parameters())
    assert not views.state_dict()
    views.detector(noise(9, 9))
    assert len(pickle.dumps(views.detector)) < 5000
    other = pickle.loads(pickle.dumps(views.detector))
    assert isinstance(other, Detector)
    assert other == views.detector


def test_it_is_built_once_in_a_process(monkeypatch):
    detector.loaded.cache_clear()
    views = views_of("regions_detector")
    for seed in range(3):
        settled(views, noise(20, 30, seed))
    assert detector.loaded.cache_info().misses == 1


def test_what_is_no_detector_or_cannot_be_had_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"views.architecture.model_type=llama is no detector.*\n  fix: "):
        views_of("regions_detector", architecture={"model_type": "llama"})
    with pytest.raises(ConfigError, match=r"views.architecture needs a model_type .* rt_detrx\n  fix: .*=rt_detr"):
        views_of("regions_detector", architecture={"model_type": "rt_detrx"})
    with pytest.raises(ConfigError, match="both null"):
        views_of("regions_detector", architecture=None)
    with pytest.raises(ConfigError, match=r"views.architecture.num_querys: .*\n  fix: did you mean .*num_queries"):
        propagate(compose(["views=regions_detector", "+views.architecture.num_querys=3"]))
    with pytest.raises(WeightsError, match=r"is a folder without config\.json"):
        views_of("regions_detector", name=str(tmp_path), weights="pretrained", architecture=None)
    from beni.hub import require_weights

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"needs PekingU/.*\n  fix: set views.weights=random"):
        require_weights(compose(["views=regions_detector"]))


def test_weights_that_are_not_there_are_no_detector(saved):
    folder, _ = saved
    deeper = DETECTOR["architecture"] | {"decoder_layers": 2}
    views = views_of("regions_detector", name=str(folder), weights="pretrained", architecture=deeper)
    with pytest.raises(WeightsError, match=r"has no weights for .*decoder.layers.1.*\n  fix: "):
        views.detector(noise(9, 9))


@pytest.mark.parametrize("option", ["regions_grid", "regions_random", "regions_saliency"])
def test_no_sizes_are_refused(option):
    with pytest.raises(BeniError, match=r"views.sizes=\[\]"):
        views_of(option, sizes=[])


def test_encoders_that_stay_apart_cannot_be_joined():
    with pytest.raises(CompositionError, match=r"^E-STACK"):
        build_stage(
            node("views", "regions_grid") | {"join": True},
            tokens=replace(SPEC, sources=(SPEC, SPEC)),
            tile=(32, 32),
            patches=(2, 2),
            dim_out=8,
        )
