import logging
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from beni.tracker.wandb import WandbTracker, resolve_mode, run_id

RUN = {"study": {"name": "resamplers"}, "train": {"seed": 3}, "llm": {"depth": 2}}
IDENTITY = {"name": "tiny_vit-perceiver-tiny_llama-s3-0a1b2c3d", "signature": "0a1b2c3d"}
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC")
HOST = "https://api.wandb.ai"

TWICE = """
import sys
from pathlib import Path
from beni.tracker.wandb import WandbTracker

for step, state in ((0, "preempted"), (2, "finished")):
    tracker = WandbTracker(project="beni", entity=None, mode="auto", tags=["test"])
    tracker.start(Path(sys.argv[1]), %r, %r, step)
    assert tracker._run is not None and tracker._run.id == %r, tracker._run
    tracker.log(step + 1, {"loss": float("nan")})
    tracker.log(step + 2, {"loss": 1.0, "eval/accuracy": 0.5})
    tracker.finish(state)
"""


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def tracker(mode="auto"):
    return WandbTracker(project="beni", entity=None, mode=mode, tags=[])


@pytest.fixture
def fake(monkeypatch):
    """A wandb that notes what it is told."""
    calls = []
    run = SimpleNamespace(
        starting_step=0,
        url="https://wandb.test/run",
        log=lambda values, step: calls.append(("log", step, values)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
        mark_preempting=lambda: calls.append(("mark_preempting",)),
    )

    def init(**arguments):
        calls.append(("init", arguments))
        return run

    module = SimpleNamespace(
        calls=calls,
        run=run,
        init=init,
        Settings=dict,
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(base_url=HOST)),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_without_a_key_a_run_is_written_offline_and_resumed_under_its_id_with_no_secret_and_no_network(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        proxies = {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        environment = {**kept, **proxies, "WANDB_BASE_URL": address, "SECRET_TOKEN": "xyz123"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
        program = TWICE % (RUN, IDENTITY, run_id(RUN, IDENTITY))
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        called, _, _ = select.select([server], [], [], 0)
        assert not called

    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 2, done.stderr
    records = [(part / f"run-{run_id(RUN, IDENTITY)}.wandb").read_bytes() for part in parts]
    assert all(b"eval/accuracy" in record and b"resamplers" in record for record in records)

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert [path for path in files if b"xyz123" in path.read_bytes()] == []
    assert [path.name for path in files if path.name in ("requirements.txt", "output.log", "wandb-metadata.json")] == []


def test_a_broken_wandb_warns_once_and_costs_no_run(tmp_path, monkeypatch, fake, caplog):
    def broken(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fake, "init", broken)
    mirror = tracker("offline")
    with caplog.at_level(logging.WARNING):
        mirror.start(tmp_path, RUN, IDENTITY, 0)
        mirror.log(1, {"loss": 1.0})
        mirror.finish("finished")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no route to host" in caplog.text


def test_a_wandb_that_cannot_be_imported_warns_once_and_costs_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = tracker("offline")
    with caplog.at_level(logging.WARNING):
        mirror.start(tmp_path, RUN, IDENTITY, 0)
        mirror.log(1, {"loss": 1.0})
        mirror.finish("finished")
    assert len(caplog.records) == 1


def test_a_wandb_that_breaks_on_the_way_warns_once_and_is_left_alone(tmp_path, monkeypatch, fake, caplog):
    def broken(*_, **__):
        raise BrokenPipeError("the service is gone")

    mirror = tracker("offline")
    mirror.start(tmp_path, RUN, IDENTITY, 0)
    monkeypatch.setattr(fake.run, "log", broken)
    with caplog.at_level(logging.WARNING):
        mirror.log(1, {"loss": 1.0})
        mirror.log(2, {"loss": 1.0})
        mirror.finish("finished")
    assert len(caplog.records) == 1
    assert [call[0] for call in fake.calls] == ["init"]


def test_a_resumed_run_continues_its_wandb_run_and_repeats_no_step(tmp_path, fake):
    fake.run.starting_step = 31
    mirror = tracker("offline")
    mirror.start(tmp_path, RUN | {"launcher": {"setup": ["export KEY=s3cret"]}}, IDENTITY, 20)
    for step in (21, 30, 31):
        mirror.log(step, {"loss": 1.0})
    mirror.finish("finished")
    arguments = fake.calls[0][1]
    assert (arguments["id"], arguments["resume"]) == (run_id(RUN, IDENTITY), "allow")
    assert (arguments["group"], arguments["name"], arguments["config"]) == ("resamplers", IDENTITY["name"], RUN)
    assert fake.calls[1:] == [("log", 31, {"loss": 1.0}), ("finish", 0)]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("finished", [("finish", 0)]),
        ("failed", [("finish", 1)]),
        ("preempted", [("mark_preempting",), ("finish", 1)]),
    ],
)
def test_wandb_is_told_how_a_run_ended(tmp_path, fake, state, expected):
    mirror = tracker("offline")
    mirror.start(tmp_path, RUN, IDENTITY, 0)
    mirror.finish(state)
    assert fake.calls[1:] == expected


def test_disabled_does_not_even_import_wandb(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = tracker("disabled")
    mirror.start(tmp_path, RUN, IDENTITY, 0)
    mirror.log(1, {"loss": 1.0})
    mirror.finish("finished")
    assert caplog.records == []


def test_online_without_a_key_is_written_offline_and_says_how_to_send_it(tmp_path, fake, caplog):
    tracker("online").start(tmp_path, RUN, IDENTITY, 0)
    assert fake.calls[0][1]["mode"] == "offline"
    assert "wandb login" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_run_is_online_only_with_a_key(mode, tmp_path, monkeypatch):
    assert resolve_mode(mode, HOST) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    assert resolve_mode(mode, HOST) == "online"


def test_a_netrc_entry_counts_for_its_own_host_only(tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password not-a-key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert resolve_mode("auto", HOST) == "online"
    assert resolve_mode("auto", "https://api.forge.coreweave.com") == "online"
    assert resolve_mode("auto", "https://wandb.example.org") == "offline"


def test_an_unreadable_netrc_is_no_key(tmp_path):
    (tmp_path / ".netrc").write_text("machine\n")
    assert resolve_mode("auto", HOST) == "offline"


@pytest.mark.parametrize("wanted", ["offline", "disabled"])
def test_wandb_mode_of_the_environment_counts_for_auto(wanted, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    monkeypatch.setenv("WANDB_MODE", wanted)
    assert resolve_mode("auto", HOST) == wanted
    assert resolve_mode("online", HOST) == "online"


def test_the_run_id_tells_studies_apart_and_is_short():
    other = {**RUN, "study": {"name": "connectors"}}
    assert run_id(RUN, IDENTITY) == run_id(dict(RUN), dict(IDENTITY))
    assert run_id(RUN, IDENTITY) != run_id(other, IDENTITY)
    assert len(run_id(RUN, {**IDENTITY, "name": "x" * 200})) <= 64
