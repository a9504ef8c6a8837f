"""What ``beni.serve demo`` refuses before it starts anything."""

from __future__ import annotations

import socket
import subprocess

import pytest

from beni.serve.__main__ import main


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """Fails where a service is begun."""

    def begun(*given, **named):
        raise AssertionError(given)

    monkeypatch.setattr(subprocess, "Popen", begun)


def test_a_folder_that_is_not_there_is_named_at_once(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert "nowhere is no folder" in " ".join(said.split())
    assert "fix: name the folder of a run" in said


def test_a_port_that_is_taken_is_named_with_what_to_set(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", str(tmp_path), "--port", str(port), "--gateway-port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"port {port} cannot be had" in said
    assert "--port" in said


def test_no_worker_is_refused(tmp_path, capsys):
    assert main(["demo", str(tmp_path), "--workers", "0"]) == 2
    assert "--workers=0, expected at least 1" in capsys.readouterr().err
