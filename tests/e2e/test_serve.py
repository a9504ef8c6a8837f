"""``beni.serve`` as its users meet it: OpenAI's own client, several workers of which one fails, and the commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import httpx
import openai
import pytest

from beni.run import train
from beni.serve.__main__ import main, parser
from beni.serve.settings import Limits
from support.hostile import HostileServer, encoded, noise
from support.serving import asking, data_url, require_shape, serving, value_of

pytestmark = pytest.mark.slow

MODEL = "tiny"
PICTURE, OTHER = encoded(noise(1)), encoded(noise(2))
# near zero, since a model that has learned nothing gives all tokens almost the same probability, whatever it is asked
SEEDED = {"model": MODEL, "max_tokens": 24, "temperature": 0.05}


@pytest.fixture(scope="module")
def run(tiny_once, tmp_path_factory):
    """The folder of a run of two steps, whose model says what nobody understands, at length."""
    values = tiny_once("checkpoint.export=true")
    values["paths"]["runs"] = str(tmp_path_factory.mktemp("serve") / "runs")
    return train(values)


@pytest.fixture(scope="module")
def served(run):
    """A gateway that may fetch from loopback, and its worker."""
    with serving(run, of_gateway=("--private-addresses", "--rate", "0")) as (gateway, workers):
        yield gateway, workers[0]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[0].url}/v1", api_key="none", max_retries=0) as made:
        yield made


def said_by(client, messages, **options):
    answer = client.chat.completions.create(messages=messages, **(SEEDED | {"seed": 7} | options))
    return answer.choices[0].message.content


def test_a_text_is_answered_with_usage_and_a_reason_for_its_end(client):
    answer = client.chat.completions.create(messages=asking("how many?"), **SEEDED, seed=1)
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_answer_is_that_of_the_loaded_model(client, run):
    from beni.model.speaking import Sampling
    from beni.trained import Trained

    talk = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is it?"}]}]
    for options, how in (
        ({"temperature": 0.0}, {}),
        ({"temperature": 1.3, "top_p": 0.9}, {"temperature": 1.3, "top_p": 0.9}),
    ):
        (own,) = Trained.load(run).say([talk], Sampling(max_new_tokens=24, seed=7, **how))
        asked = client.chat.completions.create(
            messages=asking("what is it?", data_url(PICTURE)), **(SEEDED | options), seed=7
        )
        assert asked.choices[0].message.content == own.text
        assert (asked.usage.prompt_tokens, asked.usage.completion_tokens) == (own.prompt_tokens, own.tokens)
        assert asked.choices[0].finish_reason == own.finish


def test_an_image_takes_positions_and_a_url_gives_what_its_content_gives(client):
    with HostileServer() as server:
        by_url = client.chat.completions.create(messages=asking("what?", server.url("plain.png")), **SEEDED, seed=3)
    by_content = client.chat.completions.create(messages=asking("what?", data_url(PICTURE)), **SEEDED, seed=3)
    without = client.chat.completions.create(messages=asking("what?"), **SEEDED, seed=3)
    assert by_url.choices[0].message.content == by_content.choices[0].message.content
    assert by_content.usage.prompt_tokens > without.usage.prompt_tokens


def test_a_stream_is_the_whole_answer_in_pieces(client):
    whole = said_by(client, asking("tell me", data_url(PICTURE)))
    with client.chat.completions.create(
        messages=asking("tell me", data_url(PICTURE)),
        stream=True,
        stream_options={"include_usage": True},
        seed=7,
        **SEEDED,
    ) as events:
        chunks = list(events)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:] if chunk.choices] == ["length"]
    assert chunks[-1].usage.completion_tokens == 24


def test_a_talk_goes_on_with_images_in_several_messages_and_a_system_message(client):
    first = asking("and this?", data_url(PICTURE))
    said = said_by(client, first)
    talk = [
        *first,
        {"role": "assistant", "content": said},
        *asking("which is larger?", data_url(OTHER), data_url(PICTURE)),
    ]
    assert said_by(client, talk) != said_by(client, talk[-1:])
    assert said_by(client, [{"role": "system", "content": "be brief"}, *talk]) != said_by(client, talk)
    assert said_by(client, [{"role": "developer", "content": "be brief"}, *talk]) == said_by(
        client, [{"role": "system", "content": "be brief"}, *talk]
    )


def test_stop_texts_limits_and_seeds_are_followed(client):
    whole = said_by(client, asking("go on"))
    stop = whole[6:8]
    cut = client.chat.completions.create(messages=asking("go on"), **SEEDED, seed=7, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)].rstrip() or whole.startswith(
        cut.choices[0].message.content
    )
    assert stop not in cut.choices[0].message.content
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(messages=asking("go on"), **(SEEDED | {"max_tokens": 3}), seed=7)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    assert said_by(client, asking("go on"), seed=8) != whole


def test_errors_are_the_clients_own_kinds(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=asking("hello"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(messages=asking("hello"), **(SEEDED | {"temperature": -1}))
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match=r"Invalid value of 'logit_bias'.*Nothing here reads it"):
        client.chat.completions.create(messages=asking("hello"), **SEEDED, logit_bias={"1": 2})
    with pytest.raises(openai.BadRequestError, match="positions, the llm has"):
        client.chat.completions.create(messages=asking("word " * 3000), **SEEDED)


def test_parameters_that_ask_for_nothing_change_nothing_and_an_answer_can_be_sent_back_whole(client):
    plain = client.chat.completions.create(messages=asking("go on"), **SEEDED, seed=7)
    again = client.chat.completions.create(
        messages=asking("go on"),
        **SEEDED,
        seed=7,
        **{"store": False, "user": "ann", "tool_choice": "none", "logit_bias": {}, "service_tier": "auto"},
        extra_body={"top_logprobs": None, "tools": None, "metadata": {}},
        stream=True,
        stream_options={"include_obfuscation": False},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in again) == plain.choices[0].message.content
    message = plain.choices[0].message
    talk = [*asking("go on"), message, *asking("and?")]
    filled = [*asking("go on"), message.to_dict(exclude_unset=False), *asking("and?")]
    assert said_by(client, filled) == said_by(client, talk)


def test_models_are_listed_by_name(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_conversations_that_come_together_are_answered_together_and_each_as_if_alone(client, served):
    alone = [said_by(client, asking(f"number {i}", data_url(PICTURE)), seed=i) for i in range(12)]
    before = httpx.get(f"{served[1].url}/metrics").text
    with ThreadPoolExecutor(12) as pool:
        together = list(
            pool.map(lambda i: said_by(client, asking(f"number {i}", data_url(PICTURE)), seed=i), range(12))
        )
    after = httpx.get(f"{served[1].url}/metrics").text
    assert together == alone
    name = "beni_worker_batch_rows"
    batches = value_of(after, f"{name}_count") - value_of(before, f"{name}_count")
    assert value_of(after, f"{name}_sum") - value_of(before, f"{name}_sum") == 12
    assert batches <= 6


def test_one_that_cannot_be_answered_spoils_none_that_comes_with_it(client):
    def ask(i):
        try:
            return said_by(client, asking("x" * 9000 if i % 3 == 0 else "fine"), seed=1)
        except openai.BadRequestError as error:
            return error.code

    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(ask, range(9)))
    assert [one == "invalid_conversation" for one in found] == [i % 3 == 0 for i in range(9)]
    assert len(set(found)) == 2


def test_a_client_that_goes_away_ends_its_answer(client, served):
    def ended():
        text = httpx.get(f"{served[1].url}/metrics").text
        return value_of(text, 'beni_worker_answers_total{finish="cancelled"}')

    before = ended()
    stream = client.chat.completions.create(
        messages=asking("at length"), model=MODEL, max_tokens=1000, temperature=0.05, seed=5, stream=True
    )
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while ended() == before:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_the_model_saw_is_drawn_over_each_image(served):
    body = {"model": MODEL, "messages": asking("what?", data_url(PICTURE), data_url(OTHER)), "answer": "two shapes"}
    answer = httpx.post(f"{served[0].url}/v1/look", json=body, timeout=60)
    images = answer.json()["images"]
    assert {one["image"] for one in images} == {0, 1}
    assert all(one["url"].startswith("data:image/png;base64,") for one in images)
    assert {one["name"] for one in images} >= {"attention"}
    without = httpx.post(f"{served[0].url}/v1/look", json=body | {"messages": asking("what?")}, timeout=60)
    assert without.status_code == 400
    assert require_shape(without)["code"] == "no_image"


LONG = {
    "an answer beyond the positions": ("what?", "x " * 10_000, "answer", "positions for it"),
    "an answer beyond what is looked at": ("what?", "x " * 1000, "answer", "at most 1024 are looked at"),
    "a conversation beyond the positions": ("word " * 16_000, "two", None, "positions, the llm has"),
    "texts beyond the characters": ("x" * 60_000, "y" * 60_000, "answer", "at most 100000"),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_look_at_more_than_can_be_looked_at_is_refused_at_once_and_the_worker_stays(served, kind):
    question, said, param, says = LONG[kind]
    body = {"model": MODEL, "messages": asking(question, data_url(PICTURE)), "answer": said}
    answer = httpx.post(f"{served[0].url}/v1/look", json=body, timeout=20)
    assert answer.status_code == 400
    error = require_shape(answer)
    assert says in error["message"]
    assert error["param"] == param
    assert value_of(httpx.get(f"{served[0].url}/metrics").text, "beni_gateway_worker_up") == 1


def test_metrics_health_and_the_document_are_there_and_the_log_holds_no_text(served, client):
    said_by(client, asking("a secret question", data_url(PICTURE)))
    text = httpx.get(f"{served[0].url}/metrics").text
    assert value_of(text, "beni_gateway_requests_total") > 0
    assert value_of(text, "beni_gateway_tokens_total") > 0
    assert value_of(text, "beni_gateway_worker_up") == 1
    assert httpx.get(f"{served[0].url}/healthz").json() == {"status": "ok", "workers": {"up": 1, "all": 1}}
    assert "/v1/chat/completions" in httpx.get(f"{served[0].url}/openapi.json").json()["paths"]
    assert "secret question" not in served[0].said + served[1].said
    assert data_url(PICTURE)[30:60] not in served[0].said + served[1].said
    assert '"route": "/v1/chat/completions", "status": 200' in served[0].said
    assert "/healthz" not in served[0].said
    assert "Loading weights" not in served[1].said


def test_a_worker_that_is_killed_loses_no_request_and_makes_no_answer_wrong(run):
    with serving(run, workers=2, of_gateway=("--rate", "0")) as (gateway, workers):
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120)
        right = {seed: said_by(client, asking(f"question {seed}", data_url(PICTURE)), seed=seed) for seed in range(8)}
        found, go_on = [], threading.Event()

        def load(number):
            turn = 0
            while not go_on.is_set():
                seed, turn = (number + turn) % 8, turn + 1
                messages = asking(f"question {seed}", data_url(PICTURE))
                try:
                    if turn % 2:
                        found.append((seed, said_by(client, messages, seed=seed)))
                    else:
                        stream = client.chat.completions.create(messages=messages, **SEEDED, seed=seed, stream=True)
                        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
                        found.append((seed, "".join(texts)))
                except Exception as error:
                    found.append((seed, repr(error)))

        with ThreadPoolExecutor(12) as pool:
            for number in range(12):
                pool.submit(load, number)
            time.sleep(3)
            workers[0].kill()
            time.sleep(4)
            go_on.set()
        client.close()
        assert len(found) > 50
        assert [(seed, said) for seed, said in found if said != right[seed]] == []
        text = httpx.get(f"{gateway.url}/metrics").text
        assert value_of(text, "beni_gateway_retries_total") > 0
        assert value_of(text, "beni_gateway_worker_up") == 1
        workers[1].kill()
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions", json={"model": MODEL, "messages": asking("hello")}, timeout=60
        )
        assert answer.status_code == 503
        assert require_shape(answer)["code"] in ("no_worker", "worker_failed")
        assert httpx.get(f"{gateway.url}/healthz").status_code == 503


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"


def test_the_commands_of_the_pages_are_commands():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = [line.split(" #")[0] for line in re.findall(r"^python -m beni\.serve (.*)$", text, re.M)]
    assert {parser().parse_args(shlex.split(line)).service for line in lines} == {"demo", "worker", "gateway", "app"}


def test_the_options_of_the_page_are_those_of_the_gateway():
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| option of the gateway") : text.index("Images of URLs are fetched")]
    named = set(re.findall(r"--([a-z][a-z-]+)", table)) - {"open"}
    assert named == {one.name.replace("_", "-") for one in fields(Limits)} - {"min-side", "private-addresses"} | {
        "keys"
    }
    asked = parser().parse_args(["gateway", "--workers", "http://a"])
    for name in named - {"keys", "max-pixels"}:
        value = getattr(asked, name.replace("-", "_"))
        row = next(line for line in table.splitlines() if f"--{name}" in line)
        assert f"{value:g}" in row or f"{value}" in row


def test_the_program_of_the_page_asks(served, tmp_path):
    program = re.search(r'```python title="ask.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.S)
    assert program
    (tmp_path / "image.png").write_bytes(PICTURE)
    text = program[1].replace("http://127.0.0.1:8000", served[0].url).replace('"shapes"', f'"{MODEL}"')
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("beni.serve.worker, beni.serve.transformers_engine", ("flask", "waitress", "gradio", "openai")),
        ("beni.serve.gateway", ("torch", "transformers", "datasets", "gradio", "openai")),
        ("beni.serve.app", ("torch", "transformers", "datasets", "flask", "waitress", "openai")),
    ],
)
def test_a_service_needs_only_what_its_container_has(modules, absent):
    program = f"import sys\nsys.modules |= dict.fromkeys({absent!r})\nimport beni.serve.__main__, {modules}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_worker_refuses_a_run_whose_template_is_another_one_now(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps(identity | {"template_hash": "0123456789ab"}))
    assert main(["worker", str(folder), "--port", "0"]) == 2
    assert "0123456789ab" in capsys.readouterr().err


def test_a_worker_with_a_key_answers_the_gateway_that_has_it_and_nobody_else(run):
    with serving(run, BENI_WORKER_KEY="of-the-worker") as (gateway, (worker,)):
        body = {"model": MODEL, "messages": asking("hello"), "max_tokens": 2}
        answers = {
            url: httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60) for url in (gateway.url, worker.url)
        }
        assert answers[gateway.url].status_code == 200
        assert answers[worker.url].status_code == 401
        assert require_shape(answers[worker.url])["code"] == "invalid_api_key"
        assert httpx.get(f"{worker.url}/healthz").status_code == 200
        assert "of-the-worker" not in gateway.said + worker.said


def test_fifty_clients_at_once_get_the_right_answers_while_a_worker_is_killed(run):
    program = ROOT / "benchmarks" / "serving.py"
    words = ("--run", str(run), "--seconds", "6", "--clients", "50", "--workers", "2", "--kill", "--json")
    done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert (found["failed"], found["wrong"]) == ({}, 0)
    assert found["answers"] >= 50
    assert found["rows_per_batch"] > 2
    assert found["taken_over"] > 0
    assert 0 < found["seconds"]["0.5"] <= found["seconds"]["0.99"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("worker", "nowhere"), "nowhere does not exist"),
        (("worker", "nowhere", "--batch", "0"), "--batch=0, expected at least 1"),
        (("gateway", "--workers", "ftp://x"), "'ftp://x', expected a URL"),
        (("gateway", "--workers", ","), "names no worker"),
        (("gateway", "--workers", "http://127.0.0.1:9", "--host", "0.0.0.0"), "lets in everybody"),
        (("gateway", "--workers", "http://127.0.0.1:9", "--keys", "nowhere"), "--keys=nowhere cannot be read"),
        (("gateway", "--workers", "http://127.0.0.1:9", "--max-images", "0"), "--max-images=0, expected"),
        (("app", "--examples", "nowhere"), "--examples=nowhere is no folder"),
        (("demo", "nowhere", "--workers", "0"), "--workers=0, expected at least 1"),
    ],
)
def test_a_service_that_cannot_begin_says_why_with_exit_code_2(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
