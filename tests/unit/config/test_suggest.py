"""What was probably meant."""

import pytest

from beni.config.suggest import closest, unknown_key

TREE = {
    "train": {"steps": 600, "plan": {"llm": "full"}},
    "optim": {"lr": 1e-4},
    "resampler": {"_target_": "x"},
    "hydra": {"verbose": False},
    "choices": {"llm": "tiny"},
}
CHOICES = {"resampler": "none"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("train.stepz", "did you mean train.steps?"),
        ("train.plan.lm", "did you mean train.plan.llm?"),
        ("trian.steps", "did you mean train.steps?"),
        ("lr", "did you mean optim.lr?"),
        ("resampler.depthh", "did you mean resampler.depth with resampler=c_abstractor, "),
        ("resampler.num_latentss", "did you mean resampler.num_latents with resampler=perceiver, "),
        ("resampler.qqqqqq", "resampler=none has no keys"),
        ("train.qqqqqq", "train has the keys steps, plan"),
        ("train.steps.x", "train.steps=600 is a value, not a section"),
        ("qqqqqq.a.b", "leave out qqqqqq.a.b"),
        ("verbose", "leave out verbose"),
    ],
)
def test_an_unknown_key_is_answered_with_what_to_write(path: str, words: str) -> None:
    message = unknown_key(path, TREE, CHOICES)
    assert f"unknown key {path}" in message
    assert words in message
    assert len(message.splitlines()) == 2


def test_nothing_is_suggested_where_nothing_is_alike() -> None:
    assert closest("perciever", ["perceiver", "none"]) == "perceiver"
    assert closest("perceiver", ["none", "qformer"]) is None
    assert closest("x", []) is None
