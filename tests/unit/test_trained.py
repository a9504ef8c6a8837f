"""``Trained`` reads a run at any checkpoint or a saved folder, and answers several conversations as each alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields

import pytest
import torch
import yaml
from PIL import Image as PILImage

from beni.data.render.template import Renderer
from beni.errors import CompositionError, ConfigError, DataError, ResourceError, ResumeError
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.model.processing import BeniProcessor
from beni.model.saving import save
from beni.model.speaking import Row, Sampling
from beni.run import train
from beni.trained import Trained
from support.evaluations import vary

SETTINGS = (
    "checkpoint.export=true",
    "checkpoint.every=1",
    "checkpoint.keep_best=eval/loss",
    "eval.every=1",
    "optim.lr=1e-2",
)
RED = PILImage.new("RGB", (24, 24), "red")
BLUE = PILImage.new("RGB", (24, 24), "blue")


def asking(*parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": "user", "content": content}


TALKS = [
    [asking(RED, "what colour is it?")],
    [asking("no image, is there?")],
    [asking(RED, BLUE, "which?"), {"role": "assistant", "content": "the first"}, asking("are you sure about that?")],
]


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    run = tiny_once(*SETTINGS)
    run["paths"]["runs"] = str(tmp_path_factory.mktemp("runs"))
    return train(run)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


@pytest.fixture(scope="module")
def talkative(folder):
    """The trained model with weights so large that its answers vary."""
    trained = Trained.load(folder)
    vary(trained)
    return trained


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def test_a_run_is_read_at_its_last_its_best_and_any_step(folder):
    last, first = Trained.load(folder), Trained.load(folder, 1)
    assert (last.step, first.step) == (2, 1)
    assert not weights(last).equal(weights(first))
    best = json.loads((folder / "checkpoints" / "best.json").read_text())["step"]
    assert weights(Trained.load(folder, "best")).equal(weights({1: first, 2: last}[best]))
    assert last.run["train"]["steps"] == 2


def test_a_saved_folder_is_the_run_at_its_end(folder):
    saved, run = Trained.load(folder / "model"), Trained.load(folder)
    assert saved.run is None
    assert saved.step is None
    assert weights(saved).equal(weights(run))
    assert saved.say(TALKS) == run.say(TALKS)


def test_a_run_whose_checkpoints_are_gone_is_read_from_its_saved_model(copied):
    before = weights(Trained.load(copied))
    shutil.rmtree(copied / "checkpoints")
    assert weights(Trained.load(copied)).equal(before)
    with pytest.raises(ResumeError, match="has no checkpoint"):
        Trained.load(copied, "best")


def test_what_cannot_be_read_is_named(folder, tmp_path):
    with pytest.raises(ResumeError, match="neither a run"):
        Trained.load(tmp_path)
    with pytest.raises(ResumeError, match="nowhere does not exist"):
        Trained.load(tmp_path / "nowhere")
    with pytest.raises(ResumeError, match=r"config.yaml is a file"):
        Trained.load(folder / "config.yaml")
    with pytest.raises(ResumeError, match="checkpoint first, expected last, best"):
        Trained.load(folder, "first")
    with pytest.raises(ResumeError, match="is a saved model and has no checkpoint best"):
        Trained.load(folder / "model", "best")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "tpu"}, "--device tpu, expected one of auto, cpu, cuda"),
        ({"device": "cuda:1"}, "--device cuda:1, expected one of auto, cpu, cuda; CUDA_VISIBLE_DEVICES"),
        ({"precision": "fp16"}, "precision=fp16, expected one of fp32, bf16"),
    ],
)
def test_a_device_or_precision_that_is_not_there_is_refused(options, error, folder):
    with pytest.raises(ConfigError) as refused:
        Trained.load(folder, **options)
    assert error in str(refused.value)


def test_a_device_that_this_machine_lacks_is_named_as_it_was_asked_for(folder, copied, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    for load in (lambda: Trained.load(folder, device="cuda"), lambda: Trained.load(copied)):
        with pytest.raises(ResourceError, match=r"--device cuda, but torch sees no CUDA.*\n.*set --device auto"):
            load()
    assert Trained.load(copied, device="auto").device.type == "cpu"


def test_a_saved_model_has_one_kind_of_weights(folder, copied):
    shutil.rmtree(copied / "checkpoints")
    for place, average in ((folder / "model", True), (folder / "model", False), (copied, True)):
        with pytest.raises(ConfigError, match=f"average={average}: .* is a saved model"):
            Trained.load(place, average=average)


def test_several_conversations_are_answered_as_each_alone(talkative):
    for sampling in (Sampling(max_new_tokens=8), Sampling(0.9, 0.8, 8, seed=3)):
        together = talkative.say(TALKS, sampling)
        assert together == [talkative.say([talk], sampling)[0] for talk in TALKS]
        assert len({answer.text for answer in together}) == len(TALKS)


def test_each_conversation_has_a_sampling_of_its_own(talkative):
    greedy, drawn = Sampling(max_new_tokens=3), Sampling(2.0, 1.0, 6, seed=1)
    first, second = talkative.say([TALKS[0]] * 2, [greedy, drawn])
    assert (first.tokens, second.tokens) == (3, 6)
    assert first.finish == second.finish == "length"
    assert not second.text.startswith(first.text)
    assert talkative.say([TALKS[0]], drawn) == [second]
    assert talkative.say([TALKS[0]], Sampling(2.0, 1.0, 6, seed=2)) != [second]
    assert talkative.say([TALKS[0]], Sampling(2.0, 1e-6, 3, seed=2)) == [first]  # only the most likely is left


def test_drawn_tokens_have_the_probabilities_of_the_model(talkative):
    """A χ² of the first tokens of 600 answers with their softmax at that temperature."""
    from scipy.stats import chisquare

    batch = talkative.processor.apply_chat_template(TALKS[1], add_generation_prompt=True, tokenize=True)
    with torch.no_grad():
        expected = (talkative.model(**batch).logits[0, -1].double() / 0.6).softmax(-1)
    drawn = torch.zeros_like(expected)
    seen: list[int] = []
    generate = talkative.model.generate
    talkative.model.generate = lambda **options: seen.extend(generate(**options)[:, -1].tolist())
    try:
        talkative.say([TALKS[1]] * 600, [Sampling(0.6, 1.0, 1, seed=seed) for seed in range(600)])
    finally:
        del talkative.model.generate
    for token in seen:
        drawn[token] += 1
    likely = expected > 0.01
    counts = [*drawn[likely].tolist(), drawn[~likely].sum().item()]
    shares = [*expected[likely].tolist(), expected[~likely].sum().item()]
    assert len(counts) > 3
    assert chisquare(counts, [600 * share / sum(shares) for share in shares]).pvalue > 1e-3


def test_the_pieces_that_are_heard_make_up_the_answer(talkative):
    heard = [""] * len(TALKS)

    def hear(row, text):
        heard[row] += text

    answers = talkative.say(TALKS, Sampling(max_new_tokens=12), hear)
    assert heard == [answer.text for answer in answers]
    pieces = list(talkative.stream(TALKS, Sampling(max_new_tokens=12)))
    assert [piece.answer for piece in pieces if piece.answer is not None] == answers
    assert ["".join(p.text for p in pieces if p.row == row) for row in range(len(TALKS))] == heard


def test_a_stop_text_ends_an_answer_and_no_part_of_it_is_heard(talkative):
    sampling = Sampling(max_new_tokens=12)
    whole = talkative.say([TALKS[0]], sampling)[0]
    stop, heard = whole.text[3:7], []
    assert len(stop) == 4
    cut = talkative.say(
        [TALKS[0]], Sampling(max_new_tokens=12, stop=("never said", stop)), lambda _, t: heard.append(t)
    )
    assert cut[0].text == whole.text[: whole.text.index(stop)] == "".join(heard)
    assert cut[0].finish == "stop"
    assert cut[0].tokens < whole.tokens


def test_an_answer_that_nobody_wants_ends_and_the_others_go_on(talkative):
    sampling = Sampling(max_new_tokens=8)
    kept = talkative.say(TALKS, sampling, gone=lambda row: row == 0)
    assert (kept[0].finish, kept[0].tokens) == ("cancelled", 1)
    assert kept[1:] == talkative.say(TALKS, sampling)[1:]


def test_a_stream_that_is_closed_ends_the_answer(talkative):
    stream = talkative.stream([TALKS[0]], Sampling(max_new_tokens=200))
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_an_end_token_ends_an_answer(talkative):
    first = []
    generate = talkative.model.generate
    talkative.model.generate = lambda **options: first.extend(generate(**options)[0, -1:].tolist())
    talkative.say([TALKS[0]], Sampling(max_new_tokens=1))
    del talkative.model.generate
    tokens = talkative.renderer.tokens
    talkative.renderer.tokens = type(tokens)(tokens.image, tokens.bos, tokens.pad, (*tokens.eos, first[0]))
    try:
        answer = talkative.say([TALKS[0]])[0]
        assert (answer.finish, answer.text, answer.tokens) == ("stop", "", 1)
    finally:
        talkative.renderer.tokens = tokens


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"top_p": None}, "top_p=None"),
        ({"stop": ("",)}, "stop="),
        ({"stop": "abc"}, "stop='abc'"),
        ({"stop": (3,)}, "stop="),
        ({"stop": None}, "stop=None"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_sampling_out_of_range_is_refused(values, name):
    sampling = object.__new__(Sampling)  # whose __init__ the tests check the types of, before it can
    for field in fields(Sampling):
        object.__setattr__(sampling, field.name, values.get(field.name, field.default))
    with pytest.raises(ConfigError, match=f"{name}.*expected"):
        sampling.__post_init__()


def test_whole_numbers_are_numbers(talkative):
    exact = talkative.say([TALKS[1]], Sampling(1.0, 1.0, 6, seed=3))
    assert talkative.say([TALKS[1]], Sampling(1, 1, 6, seed=3)) == exact


@pytest.mark.parametrize(
    ("stop", "text", "taken"),
    [
        ("\n\n", "a b", 5),
        ("\n", "a b", 4),
        (" ", "a", 2),
        ("b\n", "a", 4),
        ("\n\n\n", "a b\n\nc", 7),
    ],
)
def test_a_stop_text_of_white_space_ends_an_answer_at_once(talkative, stop, text, taken):
    renderer, end = talkative.renderer, talkative.renderer.tokens.eos[0]
    ids = [int(renderer._text_ids(piece)[0]) for piece in ("a", " ", "b", "\n", "\n", "c")]
    assert renderer.written(ids) == "a b\n\nc"
    row, heard = Row(renderer, Sampling(stop=(stop,)), 100), []
    while row.finish is None:
        heard.append(row.take([*ids, end][len(row.ids)]))
    assert (row.finish, len(row.ids)) == ("stop", taken)
    assert "".join(heard) == row.shown == text


def test_line_breaks_in_front_of_an_answer_are_no_text_and_may_be_a_stop(talkative):
    renderer, end = talkative.renderer, talkative.renderer.tokens.eos[0]
    ids = [renderer._text_ids(piece)[0] for piece in ("\n", "\n", "c")]
    for stop, text, taken in (((), "c", 4), (("\n\n",), "", 2)):
        row = Row(renderer, Sampling(stop=stop), 100)
        for token in [*ids, end]:
            row.take(int(token))
            if row.finish is not None:
                break
        assert (row.shown, row.finish, len(row.ids)) == (text, "stop", taken)


def test_a_conversation_that_is_too_long_is_refused(talkative):
    with pytest.raises(DataError, match="the llm has"):
        talkative.say([[asking("word " * 5000)]])


def test_a_short_and_a_nearly_full_prompt_are_answered_to_their_ends(tiny_run):
    """GPT-2 has an embedding for each of its positions, and none beyond."""
    run = tiny_run(
        *("llm.architecture.model_type=gpt2", "llm.architecture.n_embd=32", "llm.architecture.n_layer=2"),
        *("llm.architecture.n_head=4", "llm.architecture.n_positions=64", "template.max_length=64"),
        "checkpoint.export=true",
    )
    trained = Trained.load(train(run))
    talks = [[asking("what?")], [asking("what is it, " + "red or blue, " * 9)]]
    answers = trained.say(talks, Sampling(max_new_tokens=40))
    assert answers == [trained.say([talk], Sampling(max_new_tokens=40))[0] for talk in talks]
    assert answers[0].prompt_tokens + 40 <= 64 < answers[1].prompt_tokens + 40
    assert answers[1].tokens <= 64 - answers[1].prompt_tokens


def test_no_conversation_gets_no_answer(talkative):
    assert talkative.say([]) == []


def test_another_template_is_refused_and_both_prompts_are_shown(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["template"]["jinja"] = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as refused:
        Trained.load(copied)
    said = str(refused.value)
    assert "the model was trained with" in said
    assert "  +[user]" in said
    assert "  -" in said.split("the prompt as given")[1]
    assert Trained.load(copied / "model").say(TALKS)


def test_another_tokenizer_of_a_saved_folder_is_refused_and_its_tokens_are_shown(copied):
    path = copied / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="the prompt as trained"):
        Trained.load(copied / "model")


def test_an_edited_chat_template_of_a_saved_folder_is_refused(copied):
    path = copied / "model" / "chat_template.jinja"
    path.write_text(path.read_text() + "Now:")
    for read in (Trained.load, BeniProcessor.from_pretrained):
        with pytest.raises(ConfigError, match="makes other prompts"):
            read(copied / "model")
    assert Trained.load(copied / "model", other_prompt=True)


def test_another_template_is_used_where_it_is_allowed(folder):
    other = Trained.load(folder).run["template"] | {"name": "mine", "jinja": "{% for m in messages %}{{ m.role }}:"}
    other["jinja"] += "{{ m.content }}{{ eos_token }}{% endfor %}"
    for one in (folder, folder / "model"):
        with pytest.raises(ConfigError, match="--other-prompt"):
            Trained.load(one, template=other)
        trained = Trained.load(one, template=other, other_prompt=True)
        text = trained.processor.apply_chat_template([asking("what?")], add_generation_prompt=True)
        assert text == f"user:what?{trained.processor.tokenizer.eos_token}assistant:"


@pytest.mark.parametrize("template", ["chat", "chatml", "llava_v1", "plain"])
def test_a_folder_as_it_was_saved_is_taken(template, tiny_once, tmp_path):
    run = tiny_once(f"template={template}", "llm.architecture.max_position_embeddings=2048")
    save(build(run).eval(), Renderer(load_tokenizer(run["llm"]), run["template"]), tmp_path / "saved")
    kept = Trained.load(tmp_path / "saved").model.config.template["specimen"]
    assert "Sure?" in kept["text"]
    assert kept["tokens"]


def test_an_llm_that_takes_ids_only_is_named(talkative, monkeypatch):
    monkeypatch.setattr(type(talkative.model.llm.capabilities), "generates", False)
    with pytest.raises(CompositionError, match="E-GENERATE"):
        talkative.say([TALKS[0]])
