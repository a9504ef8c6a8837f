"""``beni.chat`` as a process of its own, through a pipe: questions, images, commands, and what goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image as PILImage

from beni.chat import ESCAPED
from beni.run import train
from beni.trained import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    """A saved model with weights so large that its answers vary."""
    run = tiny_once("checkpoint.export=true", "llm.architecture.max_position_embeddings=512")
    run["paths"]["runs"] = str(tmp_path_factory.mktemp("runs"))
    trained = Trained.load(train(run))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    saved = tmp_path_factory.mktemp("saved")
    trained.model.save_pretrained(saved)
    trained.processor.save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    made = tmp_path_factory.mktemp("images")
    for colour in ("red", "blue"):
        PILImage.new("RGB", (24, 24), colour).save(made / f"{colour} one.png")
    (made / "broken.png").write_text("no image")
    return made


def chat(folder, said, *options, code=0):
    """(standard output, standard error) of a conversation; ``said`` are its lines."""
    done = subprocess.run(
        [sys.executable, "-m", "beni.chat", str(folder), *options],
        input="".join(f"{line}\n" for line in said),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def expected(folder):
    """expected(turns, ...) -> what the model answers to each question of a conversation: (images, text) in turn."""
    from beni.model.speaking import Sampling

    trained = Trained.load(folder)

    def answers(*turns, parts=False, **sampling):
        messages, said = [], []
        for pictures, text in turns:
            messages.append(trained.processor.question([str(one) for one in pictures], text))
            said.append(trained.say([messages], Sampling(**{"max_new_tokens": 8} | sampling))[0].text)
            messages.append({"role": "assistant", "content": said[-1]})
        shown = [f"{one.translate(ESCAPED)}\n" for one in said]
        return shown if parts else "".join(shown)

    return answers


SHORT = "--max-new-tokens=8"


def test_questions_are_answered_in_the_light_of_what_was_said_and_shown(folder, images, expected):
    red, blue = images / "red one.png", images / "blue one.png"
    said, told = chat(
        folder, ["what is it?", f"/image {blue}", f"/image {red}", "and these?", "", "sure?"], SHORT, f"--image={red}"
    )
    assert said == expected(([red], "what is it?"), ([blue, red], "and these?"), ([], "sure?"))
    assert len(set(said.splitlines())) > 1
    assert "Error" not in told


def test_what_goes_wrong_is_told_and_the_talk_goes_on(folder, images, expected):
    lines = [
        "what?",
        f"/image {images / 'broken.png'}",
        "/image /nowhere.png",
        "/image",
        "/image http://example.org/x.png",
        "/dance",
        "/set temperature hot",
        "/set top_p 3",
        "/set colour red",
        "<image> here?",
        "word " * 2000,
        "really?",
    ]
    said, told = chat(folder, lines, SHORT, code=1)
    first, last = expected(([], "what?"), ([], "really?"), parts=True)
    assert said == f"{first}\n\n{last}"  # two questions between them were not answered
    for error in (
        "broken.png",
        "/nowhere.png",
        "no image is named",
        "http://example.org/x.png",
        "/dance is no command, expected one of /help",
        "/set temperature hot, expected a number",
        "top_p=3.0, expected",
        "/set colour, expected one of temperature",
        "the question holds <image> 1 times for 0 images",
        "the llm has 512",
    ):
        assert error in told, error
    assert "Traceback" not in told


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_bytes_that_are_no_text_are_one_failed_question(folder, expected, errors):
    done = subprocess.run(
        [sys.executable, "-m", "beni.chat", str(folder), SHORT],
        input=b"hi\xff\xfe\nwhat?\n",
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"},
    )
    assert done.returncode == 1
    assert done.stdout.decode() == "\n" + expected(([], "what?"))
    assert b"Traceback" not in done.stderr
    assert b"surrogate" in done.stderr


def test_commands_do_what_help_says(folder, images, expected):
    red = images / "red one.png"
    said, told = chat(folder, ["/help", "what?", "/undo", "why?", "/reset", f"/image {red}", "/images", "who?"], SHORT)
    assert said == expected(([], "what?")) + expected(([], "why?")) + expected(([red], "who?"))
    for name in ("/help", "/image PATH", "/images", "/system", "/set", "/undo", "/reset", "/quit"):
        assert name in told
    assert f"next question: {red}; before: 0" in told
    lines = ["/undo", "/set", "/set max_new_tokens 2", "what?", "/quit", "never asked"]
    said, told = chat(folder, lines, SHORT, code=1)
    assert said == expected(([], "what?"), max_new_tokens=2)
    assert "nothing was asked" in told
    assert "max_new_tokens=8" in told
    assert "has reached 2 tokens" in told
    assert chat(folder, ["//help me"], SHORT)[0] == expected(([], "/help me"))


def test_an_answer_that_is_drawn_repeats_with_its_seed(folder, expected):
    how = (SHORT, "--temperature=1.5", "--top-p=0.9")
    drawn = expected(([], "what?"), temperature=1.5, top_p=0.9, seed=7)
    assert chat(folder, ["what?"], *how, "--seed=7")[0] == drawn
    assert chat(folder, ["/set seed 7", "what?"], *how)[0] == drawn
    stop = next(word for word in re.findall("[a-z]+", drawn) if drawn.index(word))
    assert chat(folder, ["what?"], *how, "--seed=7", f"--stop={stop}")[0] == drawn[: drawn.index(stop)] + "\n"


def test_a_system_message_is_heard(folder, expected):
    plain = expected(([], "what?"))
    said = chat(folder, ["what?", "/system", "what?"], SHORT, "--system=Say nothing but numbers.")[0].splitlines()
    assert said[1:] == plain.splitlines()
    assert said[:1] != plain.splitlines()


def test_what_cannot_begin_ends_with_code_2(folder, images, tmp_path):
    for options, error in (
        ((f"--image={images / 'broken.png'}",), "broken.png"),
        (("--temperature=-1",), "temperature=-1.0"),
        (("--checkpoint=best",), "is a saved model"),
        (("llm=tiny_llama",), "llm=tiny_llama cannot be set here, expected template="),
        (("template=chatml",), "the prompt as given"),
    ):
        said, told = chat(folder, ["what?"], *options, code=2)
        assert error in told
        assert said == ""
    assert "neither a run" in chat(tmp_path, ["what?"], code=2)[1]
    assert chat(folder, ["what?"], SHORT, "template=chatml", "--other-prompt")[0].strip()


def test_ctrl_c_ends_an_answer_and_not_the_talk(folder):
    """An answer of thousands of tokens is broken off; the next question is answered."""
    import signal
    import time

    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "beni.chat", str(folder), "--max-new-tokens=400"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("what?\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    said, told = process.communicate("/set max_new_tokens 2\nand now?\n", timeout=300)
    assert process.returncode == 0, told
    assert len(said.splitlines()) >= 2
    assert "has reached 2 tokens" in told
    assert "has reached 400 tokens" not in told
