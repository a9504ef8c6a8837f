"""The plan command: offline, from the config alone; errors are one screen with a code."""

from __future__ import annotations

import json

import pytest

from beni.plan import main


def planned(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_wished_run_is_planned_without_weights(capsys):
    table = planned(capsys, "vision=siglip", "llm=tinyllama", "resampler=perceiver")
    rows = {row["stage"]: row for row in table["rows"]}
    assert rows["resampler"]["parameters"] == 19_763_712
    assert rows["resampler"]["flops"] == pytest.approx(3.154e9, rel=1e-3)
    assert (rows["vision"]["tokens"], rows["resampler"]["tokens"], rows["llm"]["tokens"]) == (729, 64, 192)
    assert rows["vision"]["trained"] == rows["llm"]["trained"] == 0
    assert table["visual_tokens"] == 64


def test_sharding_divides_what_trains(capsys):
    whole = planned(capsys, "train.plan.llm=full", "llm=tinyllama", "train.batch_size=256", "train.accumulation=32")
    shared = planned(
        capsys,
        "train.plan.llm=full",
        "llm=tinyllama",
        "train.batch_size=256",
        "train.accumulation=32",
        "fsdp=full",
        "--world=8",
    )
    assert shared["memory_bytes"] < whole["memory_bytes"] / 2


def test_hybrid_divides_within_a_machine(capsys):
    sizes = (
        "train.plan.llm=full",
        "llm=tinyllama",
        "train.batch_size=256",
        "train.accumulation=16",
        "fsdp=hybrid",
        "--world=16",
    )
    one, two = planned(capsys, *sizes), planned(capsys, *sizes, "--local-world=8")
    assert two["memory_bytes"] > one["memory_bytes"]


def test_a_person_reads_stages_parameters_flops_and_memory(capsys):
    assert main(["resampler=perceiver"]) == 0
    shown = capsys.readouterr().out
    for word in ("tiny_vit", "perceiver", "FLOPs per sample", "memory per process", "visual tokens"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resampler=avg_pool", "resampler.side=9"], "E-DIV"),
        (["resampler=perciever"], "perceiver"),
        (["--image=big"], "768x1024"),
        (["--labels=0"], "--text=128"),
        (["--world=0"], "at least 1"),
        (["--local-world=2"], "1 to --world=1"),
    ],
)
def test_bad_input_is_answered_with_what_was_expected(capsys, arguments, expected):
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
