"""The loop: resuming goes on with the digits of a run that was never interrupted; what should not change does not."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image as PILImage

from beni.errors import DataError, ResumeError

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
SIX = ("train.steps=6", "checkpoint.every=3", "optim.lr=1e-2", "connector.dropout=0.2", *PERCEIVER)
DROPOUT = ("resampler.attention_dropout=0.1",)


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_has_the_digits_of_an_uninterrupted_one(tiny_run, fit, tmp_path, stop):
    run = tiny_run(*SIX, *DROPOUT)
    whole, expected = fit(run, tmp_path / "whole")
    _, before = fit(run, tmp_path / "cut", stop=stop)
    resumed, after = fit(run, tmp_path / "cut")
    assert before.began == 0
    assert after.began == 3 * (stop // 3)
    assert before.losses | after.losses == expected.losses
    assert len(set(expected.losses.values())) == 6
    ours = resumed.state_dict()
    for name, tensor in whole.state_dict().items():
        assert ours[name].equal(tensor), name


@pytest.mark.parametrize("kind", ["dora", "pissa", "olora"])
def test_adapters_that_depend_on_the_weights_resume_with_the_same_digits(tiny_run, fit, tmp_path, kind):
    run = tiny_run(*SIX, f"adapter={kind}", "adapter.dropout=0.1", "train.plan.llm=lora", "train.plan.vision=lora")
    whole, expected = fit(run, tmp_path / "whole")
    _, before = fit(run, tmp_path / "cut", stop=4)
    resumed, after = fit(run, tmp_path / "cut")
    assert before.losses | after.losses == expected.losses
    assert all(tensor.equal(resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_dropout_in_the_connector_is_active_in_training(tiny_run, fit, tmp_path):
    _, with_dropout = fit(tiny_run(*SIX), tmp_path / "a")
    _, without = fit(tiny_run(*SIX, "connector.dropout=0.0"), tmp_path / "b")
    assert with_dropout.losses[1] != without.losses[1]


def test_evaluating_in_between_changes_no_later_loss(tiny_run, fit, tmp_path):
    plain = tiny_run(*SIX)
    _, expected = fit(plain, tmp_path / "plain")
    seen = []

    def evaluate(step):
        seen.append(step)
        model.eval()
        torch.rand(3)
        return {"eval/accuracy": 1.0}

    from beni.model.build import build

    run = tiny_run(*SIX, "eval.every=2")
    model = build(run)
    _, log = fit(run, tmp_path / "evaluated", model=model, evaluate=evaluate)
    assert log.losses == expected.losses
    assert seen == [2, 4, 6]


def test_a_loss_in_pieces_trains_as_the_whole_does(tiny_run, fit, tmp_path, monkeypatch):
    from beni.model import loss

    _, expected = fit(tiny_run(*SIX, "compute.loss=full"), tmp_path / "whole")
    monkeypatch.setattr(loss, "chunk_rows", lambda vocabulary: 3)
    monkeypatch.setattr(loss, "predict", None)  # nobody wants logits
    _, ours = fit(tiny_run(*SIX, "compute.loss=chunked"), tmp_path / "pieces")
    assert ours.losses == pytest.approx(expected.losses, rel=1e-5)


def test_a_checkpoint_of_another_run_is_refused(tiny_run, fit, tmp_path):
    fit(tiny_run(), tmp_path, signature="aaaa")
    with pytest.raises(ResumeError, match=r"belongs to run aaaa, this is bbbb[^$]*checkpoint.resume=never"):
        fit(tiny_run(), tmp_path, signature="bbbb")


def test_a_checkpoint_of_another_model_is_refused(tiny_run, fit, tmp_path):
    fit(tiny_run(*PERCEIVER), tmp_path)
    with pytest.raises(ResumeError, match=r"of another model[^$]*resampler"):
        fit(tiny_run("train.steps=3"), tmp_path)


def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tiny_run, fit, tmp_path):
    run = tiny_run(*SIX)
    fit(run, tmp_path, stop=5)
    fit(run, tmp_path)
    (newest,) = (tmp_path / "step_00000006").glob("*.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    _, log = fit(run, tmp_path)
    assert log.began == 3
    assert log.notices == [
        f"checkpoint skipped: step_00000006: {newest.name} does not have the checksum it was saved with"
    ]


def test_a_finished_run_trains_no_further_step(tiny_run, fit, tmp_path):
    fit(tiny_run(), tmp_path)
    seen = []
    _, log = fit(tiny_run(), tmp_path, evaluate=lambda step: seen.append(step) or {})
    assert log.losses == {}
    assert seen == [2]


def test_a_run_trains_its_loss_down(tiny_run, fit, tmp_path):
    _, log = fit(tiny_run("train.steps=12", "optim.lr=1e-2", "train.batch_size=4", "data.size=4"), tmp_path)
    assert log.losses[12] < log.losses[1] - 1


@pytest.fixture
def album(tiny_values, tmp_path):
    """album(bad, *overrides) -> a run on 24 records; the pictures of the first ``bad`` are no longer there."""
    from beni.config.compose import compose

    def make(bad, *overrides):
        records = []
        for i in range(24):
            if i >= bad:
                PILImage.new("RGB", (24, 24), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
            turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"number {i}"}]
            records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
        (tmp_path / "album.json").write_text(json.dumps(records))
        kept = [value for value in tiny_values if not value.startswith("data.")]
        data = ("data=llava_instruct", f"data.path={tmp_path}/album.json", "data.heldout=0", "template=chatml")
        return compose([*kept, *data, "train.steps=6", *overrides])

    return make


def told(log):
    """What data_errors.jsonl would say."""
    return [(row["step"], row["sample"], row["by"]) for row in log.faults]


def test_a_resumed_run_counts_and_tells_what_an_uninterrupted_one_does(album, fit, tmp_path):
    run = album(6, "checkpoint.every=3", "log.every=4", "images.max_bad=1")
    _, expected = fit(run, tmp_path / "whole")
    _, before = fit(run, tmp_path / "cut", stop=4)  # steps 2 and 3 were told with the checkpoint, not by a log line
    _, after = fit(run, tmp_path / "cut")
    assert after.began == 3
    assert told(before) + told(after) == told(expected)
    assert {step for step, *_ in told(expected)} == set(range(1, 7))
    assert after.counts[6] == expected.counts[6]
    assert expected.counts[6]["data/bad"] == len(expected.faults) > 6
    assert expected.counts[6]["data/samples"] == 48


def test_too_large_a_share_of_bad_pictures_ends_the_run(album, fit, tmp_path):
    with pytest.raises(DataError, match=r"(?s)\d+ of \d+ images are bad, images.max_bad=0.05 .*No such file.*fix:"):
        fit(album(12, "log.every=2"), tmp_path)


def test_what_trains_is_checked_in_the_first_step_with_a_picture(tiny_run, fit, tmp_path):
    run = tiny_run("train.batch_size=1", "data.text_share=0.8", "data.pictures_share=0", "train.steps=12")
    _, log = fit(run, tmp_path)
    images = [log.counts[step]["data/images"] for step in range(1, 13)]
    assert images[0] == 0 < images[-1]
    assert len(log.losses) == 12
