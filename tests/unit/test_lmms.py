"""The model ``beni`` of lmms-eval, asked as that package asks; tests/e2e/test_lmms.py runs it in the package itself."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image as PILImage

import beni.lmms
from beni.data.metric import LossOnly, Reading
from beni.errors import ConfigError, DataError
from beni.evals.ablations import TRUE
from beni.evals.scores import read
from beni.lmms import _classes
from beni.model.messages import as_sample
from beni.model.speaking import Sampling
from beni.run import train

RED, BLUE = (PILImage.new("RGB", (24, 24), colour) for colour in ("red", "blue"))
DOCS = [
    {"image": RED, "question": "what colour is it?", "choices": ["red", "blue", "a triangle"]},
    {"image": BLUE, "question": "and this one, what is it?", "choices": ["no", "a green circle", "blue"]},
    {"image": None, "question": "what is two and two?", "choices": ["four", "five", "none of these"]},
]


class _lmms(ABC):
    """What of lmms-eval's class is abstract or called."""

    def __init__(self):
        self.task_dict, self.cleaned = {}, False

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...

    def generate_visual_cot(self, requests):
        raise NotImplementedError

    def clean(self):
        self.cleaned = True


@dataclass
class _Counts:
    input_tokens: int
    output_tokens: int


@dataclass
class _Result:
    text: str | tuple
    token_counts: _Counts | None = None


@dataclass
class _Manifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """Stands for the package, which has an environment of its own."""
    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": _lmms},
        "lmms_eval.api.instance": {"GenerationResult": _Result, "TokenCounts": _Counts},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": _Manifest},
    }
    for name, values in modules.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    _classes.cache_clear()
    yield
    _classes.cache_clear()


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    run = tiny_once("llm.architecture.max_position_embeddings=512")
    run["paths"]["runs"] = str(tmp_path_factory.mktemp("runs"))
    return train(run)


@pytest.fixture
def made(folder):
    """Makes a model of a kind, with weights so large that its answers vary."""

    def make(kind, **arguments):
        model = getattr(beni.lmms, kind)(run=str(folder), **arguments)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.trained.model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.task_dict = {"seen": {"test": DOCS}}
        return model

    return make


def request(*arguments):
    return SimpleNamespace(args=arguments, task_name="seen")


def messages(doc):
    parts = [{"type": "image", "url": doc["image"]}] if doc["image"] else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]


def visuals(doc):
    return [doc["image"]] if doc["image"] else None


def chats(settings=None, of=messages):
    return [request("", of, settings or {}, number, "seen", "test") for number in range(len(DOCS))]


def contexts(settings=None):
    return [request(doc["question"], settings or {}, visuals, i, "seen", "test") for i, doc in enumerate(DOCS)]


def pairs(model, requests):
    return [result.text for result in model.loglikelihood(requests)]


def talks(trained):
    return [[trained.processor.question(doc["image"], doc["question"])] for doc in DOCS]


def test_the_registry_is_told_of_both_kinds(made):
    told = beni.lmms.manifest()
    assert (told.model_id, told.simple_class_path, told.chat_class_path) == (
        "beni",
        "beni.lmms.Simple",
        "beni.lmms.Chat",
    )
    assert not made("Chat").is_simple
    assert made("Simple").is_simple
    assert isinstance(made("Simple"), _lmms)
    with pytest.raises(AttributeError, match="no attribute Other"):
        beni.lmms.Other  # noqa: B018


@pytest.mark.parametrize("size", [1, 2, "8"])
def test_both_kinds_answer_as_the_trained_model_does(made, size):
    chat = made("Chat", batch_size=size)
    how = Sampling(max_new_tokens=8)
    expected = chat.trained.say(talks(chat.trained), how)
    assert len({answer.text for answer in expected}) == len(DOCS)
    for model, requests in ((chat, chats), (made("Simple", batch_size=size), contexts)):
        results = model.generate_until(requests({"max_new_tokens": 8, "until": None}))
        assert [result.text for result in results] == [answer.text for answer in expected]
        counted = [(one.token_counts.input_tokens, one.token_counts.output_tokens) for one in results]
        assert counted == [(answer.prompt_tokens, answer.tokens) for answer in expected]


def test_images_stand_where_the_messages_have_them(made):
    def of(doc):
        parts = [{"type": "text", "text": "is"}, {"type": "image", "url": RED}, {"type": "text", "text": "red?"}]
        return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]

    model = made("Chat", other_prompt=True)
    asked, settings = model.asked(chats({"max_new_tokens": 4}, of)[0])
    assert settings == {"max_new_tokens": 4}
    assert [part.get("text") for part in asked[1]["content"]] == ["is", None, "red?"]
    assert asked[1]["content"][1]["image"] is RED
    assert asked[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    simple = made("Simple")
    (placed,), _ = simple.asked(request("is <image> red?", {}, visuals, 0, "seen", "test"))
    assert [part.get("text") for part in placed["content"]] == ["is ", None, " red?"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Sampling()),
        ({"until": "\n\n", "do_sample": False}, Sampling(stop=("\n\n",))),
        ({"until": ["a", "b"], "max_new_tokens": 3, "num_beams": 1}, Sampling(max_new_tokens=3, stop=("a", "b"))),
        ({"temperature": 0, "top_p": 0, "top_k": 1, "do_sample": True}, Sampling()),
        ({"temperature": 0.2, "do_sample": False, "repetition_penalty": 1.0}, Sampling()),
        ({"temperature": 0.7, "top_p": 0.9, "seed": 3, "until": []}, Sampling(0.7, 0.9, seed=3)),
        ({"do_sample": True, "seed": 0, "top_p": None}, Sampling(1.0, 1.0, seed=0)),
    ],
)
def test_what_a_task_sets_decides_the_answer(made, settings, expected):
    assert made("Chat")._sampling(settings) == expected


def test_answers_are_drawn_by_the_seed_that_lmms_eval_has_set(made):
    model = made("Chat", batch_size=8)
    said = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results = model.generate_until([*chats({"temperature": 1.0, "max_new_tokens": 8})[:1] * 2])
        said.append([result.text for result in results])
    assert said[0] == said[1] != said[2]
    assert said[0][0] != said[0][1]  # a repeat is another draw
    first = made("Chat").generate_until(chats({"until": "e", "max_new_tokens": 8}))
    assert all("e" not in result.text for result in first)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_beams": 5}, "num_beams=5"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"top_k": 50, "temperature": 1.0}, "top_k=50"),
        ({"max_gen_toks": 5}, "max_gen_toks=5"),
    ],
)
def test_a_setting_that_cannot_be_obeyed_is_refused(made, settings, key):
    with pytest.raises(ConfigError, match=f"{key}, and the model beni obeys until, max_new_tokens"):
        made("Chat").generate_until(chats(settings))


def test_a_setting_of_other_models_is_told_once(made, capsys):
    made("Chat").generate_until(chats({"image_aspect_ratio": "pad", "max_new_tokens": 1}))
    assert capsys.readouterr().err.count("image_aspect_ratio=pad is not obeyed") == 1


@pytest.mark.parametrize("size", [1, 4, 16])
def test_likelihoods_are_those_that_beni_reads(made, size):
    model = made("Simple", batch_size=size)
    asked = [(i, doc, choice) for i, doc in enumerate(DOCS) for choice in doc["choices"]]
    requests = [request(doc["question"], f" {choice}", visuals, i, "seen", "test") for i, doc, choice in asked]
    found = pairs(model, requests)
    conversations = [[*talks(model.trained)[i], {"role": "assistant", "content": choice}] for i, _, choice in asked]
    samples = [as_sample(talk, True) for talk in conversations]
    readings = [own for _, one in read(model.trained.subject(1), LossOnly(), samples, TRUE) for own in one.values()]
    assert [loss for loss, _ in found] == pytest.approx([-reading.loglik for reading in readings], abs=1e-5)
    assert [greedy for _, greedy in found] == [reading.exact for reading in readings]
    assert len({round(loss, 3) for loss, _ in found}) == len(found)


def test_a_loss_comes_with_whether_the_model_would_say_so(made, monkeypatch):
    given = [Reading(-0.5, True, "red"), Reading(-1.5, False, "red")]
    monkeypatch.setattr("beni.evals.scores.read", lambda *_: [("sample", {"text": one}) for one in given])
    requests = [request("what?", text, visuals, 0, "seen", "test") for text in ("red", "blue")]
    assert pairs(made("Simple", batch_size=2), requests) == [(0.5, True), (1.5, False)]


def test_an_answer_without_a_question_has_a_likelihood(made):
    model = made("Simple")
    ((loss, _),) = pairs(model, [request("", "red")])
    ((asked, _),) = pairs(model, [request("what?", "red", visuals, 0, "seen", "test")])
    assert 0 < loss != asked


def test_an_image_that_cannot_be_read_says_why(made, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    model = made("Simple", batch_size=2)
    broken = request("what?", "red", lambda doc: [str(tmp_path / "broken.png")], 0, "seen", "test")
    with pytest.raises(DataError, match=r"broken\.png"):
        model.loglikelihood([request("what?", "red", visuals, 0, "seen", "test"), broken])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("clip.mp4", "clip.mp4"),
        ({"array": [0.0], "sampling_rate": 16000}, "dict"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_a_text_cannot_come_with_videos_or_sounds(made, given, said):
    asked = request("what?", {}, lambda doc: [given], 1, "seen", "test")
    with pytest.raises(DataError, match=f"task seen, document 1 shows {said}, and the model reads texts and images"):
        made("Simple").generate_until([asked])


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_nor_can_a_conversation(made, kind):
    asked = chats({}, lambda doc: [{"role": "user", "content": [{"type": kind, "url": "x"}]}])
    with pytest.raises(DataError, match=f"task seen, document 0 has a part of type {kind}"):
        made("Chat").generate_until(asked)


def test_what_the_model_cannot_is_refused_by_task(made):
    chat = made("Chat")
    with pytest.raises(ConfigError, match="task seen asks in rounds"):
        chat.generate_until_multi_round(chats())
    with pytest.raises(ConfigError, match="task seen wants an image to be drawn"):
        chat.generate_visual_cot(chats())
    with pytest.raises(ConfigError, match=r"asks for likelihoods in conversations.*\n  fix: set --force_simple"):
        chat.loglikelihood(chats())
    with pytest.raises(ConfigError, match="--apply_chat_template, and the model beni always renders"):
        _ = chat.chat_template


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"run": None}, "--model beni has no run"),
        ({"pretrained": "x", "dtype": "auto"}, "pretrained=x, dtype=auto, and the model beni has run, checkpoint"),
        ({"precision": "fp16"}, "precision=fp16, expected one of fp32, bf16"),
        ({"device": "cuda:1"}, "device=cuda:1, expected one of auto, cpu, cuda; CUDA_VISIBLE_DEVICES"),
        ({"other_prompt": "yes"}, "other_prompt=yes, expected one of true, false"),
        ({"batch_size": "auto"}, "--batch_size=auto, expected a number"),
        ({"batch_size": 0}, "--batch_size=0, expected a number of at least 1"),
        ({"max_batch_size": 8}, "max_batch_size=8, and the model beni has run"),
    ],
)
def test_an_argument_that_nothing_reads_is_refused(folder, arguments, error):
    with pytest.raises(ConfigError, match=error):
        beni.lmms.Chat(**{"run": str(folder)} | arguments)


def test_processes_that_lmms_eval_does_not_know_of_are_refused(folder, monkeypatch):
    for name, value in (("PROCID", "0"), ("NTASKS", "2"), ("LOCALID", "0"), ("JOB_ID", "1"), ("STEP_ID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="2 processes of SLURM"):
        beni.lmms.Chat(run=str(folder), device="cpu")


def test_the_model_goes_when_all_is_asked(made):
    model = made("Chat")
    assert model.device == torch.device("cpu")
    model.clean()
    assert model.cleaned
    assert not hasattr(model, "trained")
