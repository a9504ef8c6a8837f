"""The page of ``beni.serve demo`` in a browser: an image is uploaded, asked about, and the answer comes in pieces."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from beni.run import train
from support import browser as chromium
from support.hostile import encoded, noise

pytestmark = pytest.mark.slow

STAMPS = Path("/usr/share/tuxpaint/stamps")
READY = "the page: "


@pytest.fixture(scope="module")
def browser(absent):
    """A Chromium of this machine."""
    pytest.importorskip("playwright.sync_api")
    path = chromium.program()
    if path is None:
        absent("no Chromium here")
    with chromium.browser(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def demo(tiny_once, tmp_path_factory):
    """(process, address of the page, log) of a demo of a model that says much."""
    folder = tmp_path_factory.mktemp("page")
    values = tiny_once("checkpoint.export=true")
    values["paths"]["runs"] = str(folder / "runs")
    run, log = train(values), folder / "log"
    words = ("demo", str(run), "--name", "tiny", "--port", "0", "--gateway-port", "0", "--threads", "1")
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "beni.serve", *words], stdout=file, stderr=file)
    end = time.monotonic() + 180
    while READY not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.2)
    yield process, said.partition(READY)[2].split()[0], log
    if process.poll() is None:
        process.terminate()  # a demo that is killed leaves its services
        process.wait(60)


@pytest.fixture
def picture(tmp_path):
    """A photograph of a stamp; a drawn one where there are none."""
    found = sorted(STAMPS.rglob("*.png"))
    if found:
        return found[3]
    (tmp_path / "noise.png").write_bytes(encoded(noise(1, (64, 48))))
    return tmp_path / "noise.png"


def asked(page, address, picture):
    """Lengths of the answer to a question about an image while it comes, drawn at a temperature that makes it long."""
    page.goto(address)
    page.wait_for_selector("#ask textarea", timeout=60_000)
    page.wait_for_selector("button.example", timeout=20_000)  # held-out images of the run
    page.wait_for_function("document.querySelector('#model input').value == 'tiny'", timeout=20_000)
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("number input for Temperature").fill("2")
    page.set_input_files("#ask input[type=file]", str(picture))
    page.wait_for_selector("#ask .thumbnails, #ask img", timeout=20_000)
    page.fill("#ask textarea", "What is in the image?")
    page.keyboard.press("Enter")
    lengths, end = [0], time.monotonic() + 60
    while not page.locator("#seen img").count():
        bots = page.locator("#talk .bot")
        lengths.append(len(bots.last.inner_text()) if bots.count() else 0)
        assert time.monotonic() < end, lengths
        time.sleep(0.03)
    return lengths


@pytest.mark.browser
def test_an_uploaded_image_is_answered_in_pieces_and_what_was_seen_is_drawn(demo, browser, picture, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    complaints, hosts = [], set()
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    for _ in range(10):  # an answer that is drawn may end at once
        lengths = asked(page, demo[1], picture)
        if lengths[-1] > 60:
            break
    page.screenshot(path=tmp_path / "page.png")
    assert len(set(lengths)) > 4, lengths
    assert page.locator("#talk .user img").count() == 1
    assert complaints == []
    assert hosts == {demo[1].removeprefix("http://").rstrip("/")}
    page.close()


@pytest.mark.browser
def test_a_file_that_is_no_image_is_told_and_the_talk_goes_on(demo, browser, tmp_path):
    page = browser.new_page()
    page.goto(demo[1])
    page.wait_for_selector("#ask textarea", timeout=60_000)
    page.wait_for_function("document.querySelector('#model input').value == 'tiny'", timeout=20_000)
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.set_input_files("#ask input[type=file]", str(tmp_path / "broken.png"))
    page.wait_for_selector("#ask .thumbnails, #ask img", timeout=20_000)
    page.fill("#ask textarea", "What is in the image?")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=cannot be used: not an image", timeout=30_000)
    page.reload()
    page.wait_for_selector("#ask textarea", timeout=60_000)
    page.wait_for_function("document.querySelector('#model input').value == 'tiny'", timeout=20_000)
    page.fill("#ask textarea", "hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .bot", timeout=30_000)
    page.close()


def test_ctrl_c_ends_all_services(demo):
    process, page, log = demo
    assert httpx.get(page).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    said = log.read_text().splitlines()
    assert [line for line in said if not line.startswith("20")] == []  # no bars, no tracebacks: all lines have a date
    assert any(line.endswith(" ending") for line in said)
    with pytest.raises(httpx.ConnectError):
        httpx.get(page)
