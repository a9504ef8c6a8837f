"""The containers of beni.serve: pinned, without root, on read-only file systems, with health checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from beni.serve.__main__ import parser
from beni.serve.settings import PACKAGES

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
STAGES = {
    stage.split("\n", 1)[0].rpartition(" AS ")[2]: stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
}


def test_there_is_a_container_and_an_image_for_each_service():
    assert set(SERVICES) == {"worker", "gateway", "app"}
    assert set(STAGES) == {"wheel", "base", *SERVICES}
    assert all(service["build"]["target"] == name for name, service in SERVICES.items())
    assert all((ROOT / "docker" / service["build"]["context"]).resolve() == ROOT for service in SERVICES.values())
    assert all((ROOT / service["build"]["dockerfile"]).is_file() for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_cannot_do_more_than_it_must(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert int(service["user"].split(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert re.search(r"^USER [1-9]\d*$", STAGES[name], re.M)
    assert "HEALTHCHECK" in STAGES[name]


def test_only_gateway_and_page_are_reached_from_outside():
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert SERVICES["worker"]["networks"] == ["inside"]
    assert "ports" not in SERVICES["worker"]
    assert SERVICES["worker"]["volumes"][0]["read_only"] is True
    assert SERVICES["gateway"]["depends_on"]["worker"]["condition"] == "service_healthy"
    assert SERVICES["app"]["depends_on"]["gateway"]["condition"] == "service_healthy"


def test_bases_are_pinned_and_so_is_every_package():
    before, *_ = DOCKERFILE.partition("\nFROM ")
    default = re.search(r"^ARG BASE=(python:3\.\d+\.\d+-slim-\w+)$", before, re.M)  # outside of a stage: FROM reads it
    assert default
    bases = {stage.split()[0] for stage in STAGES.values()}
    assert bases == {"${BASE}", "base"}
    given = [service["build"]["args"] for service in SERVICES.values()]
    assert given == [{"BASE": f"${{BENI_BASE:-{default[1]}}}"}] * len(SERVICES)
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"python:3[\w.-]+", page)) == {default[1]}  # where the page says how to have its digest
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    for name in ("gateway", "app"):
        lines = (ROOT / "docker" / f"{name}.txt").read_text().splitlines()
        packages = {line for line in lines if line and not line.startswith("#")}
        assert packages <= pinned
        assert {package.replace("_", "-") for package in PACKAGES[name]} <= packages
    installs = re.findall(r"pip install (?!--no-deps)[^&\n]*", DOCKERFILE)
    assert installs
    assert all("-c constraints.txt" in install for install in installs)


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_of_a_container_is_one_that_the_service_takes(name):
    command = re.search(r"^CMD (\[.*\])$", STAGES[name], re.M)
    assert command
    words = yaml.safe_load(command[1])
    assert parser().parse_args([name, *words]).host == "0.0.0.0"
    assert parser().parse_args([name, *SERVICES[name].get("command", words)]).host == "0.0.0.0"
    ports = set(re.findall(r"(?:EXPOSE |127\.0\.0\.1:)(\d+)", STAGES[name]))
    assert ports == {str(parser().parse_args([name, *words]).port)}


def test_everything_that_is_copied_reaches_the_build():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    for name in {word for line in copied for word in line.split()} - {"."}:
        assert name in kept
    assert all((ROOT / name).exists() for name in kept)
    assert {"src", "conf", "experiments", "launchers", "pyproject.toml", "README.md", "LICENSE"} <= kept
