"""An exported folder is pushed to a hub that stands in for the real one: private, whole, and with no token in sight."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from beni.export.__main__ import main
from beni.run import train

pytestmark = pytest.mark.slow

TOKEN = "hf_" + "A" * 30


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that an upload of small files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.append(self.headers["Authorization"])
        if self.server.refuses:
            return self.say(403, {"error": "you may not"})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.say(200, {"url": f"{self.server.address}/me/model"})
        if self.path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self.say(200, {"files": [one | {"shouldIgnore": False} for one in files]})
        assert self.path.endswith("/commit/main"), self.path
        self.server.commits.append([json.loads(line) for line in body.splitlines()])
        answer = {"commitUrl": f"{self.server.address}/me/model/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
        return self.say(200, answer)

    def do_GET(self):
        if not self.path.startswith("/api/"):  # of a gateway, say, whose worker had this port in another test
            return self.say(404, {"error": "it is no address of the hub"})
        self.server.tokens.append(self.headers["Authorization"])
        self.say(200, {"id": "me/model", "modelId": "me/model", "private": self.server.private, "sha": "0" * 40})

    def say(self, code, answer):
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.commits, server.tokens = [], [], []
    server.private, server.refuses = True, False
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tiny_values, tmp_path_factory):
    from beni.config.compose import compose

    return train(compose([*tiny_values, f"paths.runs={tmp_path_factory.mktemp('push')}"]))


def pushed(hub, folder, out, *words):
    variables = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    command = [sys.executable, "-m", "beni.export", str(folder), "--out", str(out), "--push", "me/model", *words]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_a_folder_is_pushed_whole_to_a_private_repository_and_no_output_holds_the_token(hub, folder, tmp_path):
    done = pushed(hub, folder, tmp_path / "out", "--format", "pretrained")
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.address}/me/model" in done.stdout
    assert [one["visibility"] for one in hub.created] == ["private"]
    (commit,) = hub.commits
    sent = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in commit if one["key"] == "file"}
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sent == there
    assert "README.md" in sent
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert not [name for name, content in sent.items() if TOKEN.encode() in content]


def test_a_public_repository_is_made_when_asked_and_one_that_is_public_is_refused_otherwise(hub, folder, tmp_path):
    hub.private = False
    done = pushed(hub, folder, tmp_path / "out")
    assert done.returncode == 2
    assert "me/model, which is public already" in done.stderr
    assert hub.commits == []
    assert pushed(hub, folder, tmp_path / "other", "--public").returncode == 0
    assert hub.created[-1]["visibility"] == "public"
    assert len(hub.commits) == 1


def test_a_hub_that_refuses_is_told_and_the_folder_stays(hub, folder, tmp_path):
    hub.refuses = True
    done = pushed(hub, folder, tmp_path / "out")
    assert done.returncode == 2
    assert "HfHubHTTPError" in done.stderr or "Forbidden" in done.stderr
    assert "the folder is written" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--push", "model"], "--push model, expected <owner>/<name>"),
        (["--public"], "--public without --push"),
        (["--push", "me/model"], "with HF_HUB_OFFLINE set"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_written(folder, tmp_path, capsys, words, said):
    assert main([str(folder), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_token_where_one_comes_from_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([str(folder), "--out", str(tmp_path / "out"), "--push", "me/model"]) == 2
    assert "fix: run hf auth login, or set HF_TOKEN" in capsys.readouterr().err
