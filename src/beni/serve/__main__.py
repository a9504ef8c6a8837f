"""``python -m beni.serve demo RUN``: a run's model behind OpenAI's API, and a page to talk with it.

Three services, which ``demo`` starts together on this machine: ``worker`` (the model), ``gateway`` (the API) and
``app`` (the page).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from beni.console import unfailing_output
from beni.errors import BeniError, ConfigError
from beni.serve.settings import LOOPBACK, Limits, packages
from beni.signals import handling

if TYPE_CHECKING:
    from beni.serve.engine import Engine
    from beni.trained import Trained

WORKER_PORT, GATEWAY_PORT, APP_PORT = 8001, 8000, 7860
ENGINES = ("transformers", "vllm")
LINGER = 0.01
LOG_FORMAT = "%(asctime)s %(name)s %(message)s"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.serve", description=(__doc__ or "").split("\n\n")[1])
    services = command.add_subparsers(dest="service", required=True)
    worker = services.add_parser("worker", help="answer with a run's model")
    _of_model(worker)
    _address(worker, WORKER_PORT)
    gateway = services.add_parser("gateway", help="OpenAI's API in front of workers")
    gateway.add_argument("--workers", required=True, help="URLs of workers, with commas between them")
    gateway.add_argument("--keys", type=Path, help="file with an API key, or a name and a key, on each line")
    gateway.add_argument("--open", action="store_true", help="let everybody in, also beyond this machine")
    _address(gateway, GATEWAY_PORT)
    _limits(gateway)
    app = services.add_parser("app", help="a page to talk with the models of a gateway")
    app.add_argument("--gateway", default=f"http://127.0.0.1:{GATEWAY_PORT}", help="its URL (%(default)s)")
    app.add_argument("--examples", type=Path, help="folder with images to begin with")
    _address(app, APP_PORT)
    demo = services.add_parser("demo", help="worker, gateway and page on this machine")
    _of_model(demo)
    demo.add_argument("--workers", type=int, default=1, help="number of workers (%(default)s)")
    demo.add_argument("--port", type=int, default=APP_PORT, help="of the page; 0 takes a free one (%(default)s)")
    demo.add_argument(
        "--gateway-port", type=int, default=GATEWAY_PORT, help="of the API; 0 takes a free one (%(default)s)"
    )
    demo.add_argument("--examples", type=Path, help="folder with images to begin with")
    return command


def _of_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="run folder, or a saved model/ folder")
    command.add_argument("--checkpoint", default="last", help="last, best or the number of a step (%(default)s)")
    command.add_argument("--name", help="under which the model is asked for (default: that of the folder)")
    command.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="%(choices)s (%(default)s)")
    command.add_argument("--gpus", type=int, default=1, help="GPUs that vllm splits the llm over (%(default)s)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="%(choices)s (default: the run's)")
    command.add_argument("--precision", choices=("fp32", "bf16"), help="%(choices)s (default: the run's)")
    command.add_argument("--threads", type=int, default=0, help="of the CPU; 0 takes all cores (%(default)s)")
    command.add_argument("--batch", type=int, default=16, help="conversations answered together (%(default)s)")
    command.add_argument(
        "--linger", type=float, help=f"seconds one waits for others ({LINGER:g}); vllm takes each as it comes"
    )
    command.add_argument("--waiting", type=int, default=512, help="conversations that may wait (%(default)s)")


def _address(command: argparse.ArgumentParser, port: int) -> None:
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    command.add_argument("--port", type=int, default=port, help="0 takes a free one (%(default)s)")


def _limits(command: argparse.ArgumentParser) -> None:
    said = dict(
        line.strip().split(": ", 1)
        for line in (Limits.__doc__ or "").splitlines()
        if line.startswith(" " * 8) and ": " in line
    )
    for one in fields(Limits):
        name, told = f"--{one.name.replace('_', '-')}", said[one.name].rstrip(".")
        if isinstance(one.default, bool):
            command.add_argument(name, action="store_true", help=told)
        else:
            command.add_argument(name, type=type(one.default), default=one.default, help=f"{told} (%(default)s)")


@unfailing_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a service until it is interrupted; the exit code is 2 when it cannot be begun."""
    arguments = parser().parse_args(argv)
    from beni.config.command import report

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    for name in ("httpx", "aiohttp.access"):  # which write a line for every request
        logging.getLogger(name).setLevel(logging.WARNING)
    service = {"worker": worker, "gateway": gateway, "app": app, "demo": demo}[arguments.service]
    try:
        packages(arguments.service)
        with handling([signal.SIGTERM], _interrupt):  # as process 1 of a container it would be ignored otherwise
            service(arguments)
    except BeniError as error:
        report(error)
        return 2
    except OSError as error:
        report(ConfigError(f"{arguments.service}: {error}\n  fix: set --host and --port to an address that is free"))
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def worker(arguments: argparse.Namespace) -> None:
    """Answers until it is ended.

    Raises:
        BeniError: when there is no such model.
        OSError: when the address cannot be had.
    """
    import asyncio

    from transformers.utils.logging import disable_progress_bar

    from beni.distributed.environment import read_environment
    from beni.distributed.host import use_host
    from beni.serve.worker import serve_worker
    from beni.trained import Trained

    for name, least in (("batch", 1), ("linger", 0.0), ("waiting", 1), ("threads", 0), ("gpus", 1)):
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise ConfigError(f"--{name}={value}, expected at least {least:g}")
    disable_progress_bar()
    trained = Trained.load(arguments.run, arguments.checkpoint, device=arguments.device, precision=arguments.precision)
    use_host(read_environment(trained.device.type), arguments.threads)
    made = partial(_engine, arguments, trained)
    asyncio.run(serve_worker(made, arguments.host, arguments.port, os.environ.get("BENI_WORKER_KEY")))


def _engine(arguments: argparse.Namespace, trained: Trained) -> Engine:
    """The engine that was asked for."""
    name, most, waiting = arguments.name or _name(arguments.run), arguments.batch, arguments.waiting
    if arguments.engine == "vllm":
        from beni.serve.vllm_engine import VllmEngine

        if arguments.linger is not None:
            raise ConfigError(f"--linger={arguments.linger:g}, which --engine vllm does not use\n  fix: leave it out")
        return VllmEngine(trained, name, most, waiting, arguments.gpus)
    from beni.serve.transformers_engine import TransformersEngine

    if arguments.gpus > 1:
        raise ConfigError(f"--gpus={arguments.gpus}, which --engine transformers does not use\n  fix: leave it out")
    linger = LINGER if arguments.linger is None else arguments.linger
    return TransformersEngine(trained, name, most, linger, waiting)


def gateway(arguments: argparse.Namespace) -> None:
    """Relays until it is ended.

    Raises:
        ConfigError: when everybody could come in, or an argument is wrong.
        OSError: when the address cannot be had.
    """
    from beni.serve.access import Keys
    from beni.serve.gateway import serve_gateway

    limits = Limits(**{one.name: getattr(arguments, one.name) for one in fields(Limits)})
    local = arguments.host in LOOPBACK
    if arguments.keys is None and not arguments.open and not local:
        raise ConfigError(
            f"--host={arguments.host} lets in everybody who can reach this machine\n"
            "  fix: set --keys to a file of API keys, or --open if that is meant"
        )
    keys = Keys({}) if arguments.keys is None else Keys.read(arguments.keys)
    urls = [url.strip() for url in arguments.workers.split(",") if url.strip()]
    serve_gateway(
        urls,
        keys,
        limits,
        arguments.host,
        arguments.port,
        local and not arguments.open,
        os.environ.get("BENI_WORKER_KEY"),
    )


def app(arguments: argparse.Namespace) -> None:
    """Shows the page until it is ended.

    Raises:
        ConfigError: when an argument is wrong.
        OSError: when the address cannot be had.
    """
    from beni.serve.app import serve_app

    serve_app(arguments.gateway, os.environ.get("BENI_API_KEY"), arguments.host, arguments.port, arguments.examples)


def demo(arguments: argparse.Namespace) -> None:
    """All services, until one of them ends or Ctrl-C is pressed.

    Raises:
        BeniError: when one cannot be begun.
    """
    from beni.serve.demo import run_demo

    run_demo(arguments)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _name(folder: Path) -> str:
    """A name for a model: that of the run's folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


if __name__ == "__main__":
    raise SystemExit(main())
