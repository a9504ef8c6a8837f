"""Weights & Biases: mirrors metrics.jsonl to a W&B server, or to files that ``wandb sync`` sends later.

- The id of the W&B run follows from study, seed and signature: a resumed or requeued run goes on in the same W&B run.
- W&B is sent the frozen run without its launcher, the metrics and its own note of a few versions. Code, git state,
  installed packages, console, command line, host and environment variables stay here.
- Nothing W&B does may cost a run: a failure is said once, and the run goes on without the mirror.
"""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from beni.tracker.base import Tracker, settings

logger = logging.getLogger(__name__)

INIT_TIMEOUT = 30.0
"""Seconds a run waits for the server before it goes on without it (W&B's own: 90)."""

FINISH_TIMEOUT = 60.0
"""Seconds the end of a run waits for the upload (W&B's own: no limit). The rest stays on disk for ``wandb sync``."""


class WandbTracker(Tracker):
    """A W&B run for the run, in the group of its study; its files lie in ``<run>/wandb``.

    Args:
        project: W&B project.
        entity: user or team it belongs to, null for the key's own.
        mode: ``auto`` is ``online`` where this machine has a key (``WANDB_API_KEY`` or ``wandb login``), else
            ``offline``; ``WANDB_MODE`` in the environment, where set to offline or disabled, counts first.
        tags: of the W&B run.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        tags: list[str],
    ) -> None:
        self.project, self.entity, self.mode, self.tags = project, entity, mode, tags
        self._run: Any = None

    def start(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        if self.mode != "disabled":
            self._attempt(lambda: self._init(folder, run, identity, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # A resumed run repeats the steps since its checkpoint. W&B takes each step once and warns for every other.
        if self._run is not None and step >= self._run.starting_step:
            self._attempt(lambda: self._run.log(dict(values), step=step))

    def finish(self, state: str) -> None:
        if self._run is not None:
            self._attempt(lambda: self._finish(state))
            self._run = None

    def _attempt(self, action: Callable[[], None]) -> None:
        """``action``, and no W&B from now on if it fails. Broad, since W&B raises errors of all kinds."""
        try:
            action()
        except Exception as error:
            self._run = None
            logger.warning(
                "tracker=wandb stops (%s: %s); the run continues and metrics.jsonl has everything. "
                "Set tracker.mode=offline to do without the server, or tracker=jsonl to do without W&B.",
                type(error).__name__,
                error,
            )

    def _init(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        # Without this wandb 0.31 posts error reports and timings even offline, and waits 10 s where nothing answers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # here, because it takes a second and a broken one must cost no run

        mode = resolve_mode(self.mode, wandb.setup().settings.base_url)
        if mode == "disabled":
            return
        if mode == "offline" and self.mode == "online":
            logger.warning(
                "tracker.mode=online, but this machine has no W&B key and a run never asks for one; writing to %s.\n"
                "  fix: `wandb login` before the run, or `wandb sync` on that folder after it",
                folder / "wandb",
            )
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(folder),
            id=run_id(run, identity),
            name=identity["name"],
            group=run["study"]["name"],
            tags=self.tags,
            config=settings(run),
            allow_val_change=True,  # a run may be resumed with another number of workers
            mode=mode,
            # From step 0 the run starts over, and so does its W&B run: without `resume` W&B replaces what it has.
            resume="allow" if step > 0 else None,
            reinit="create_new",  # never join a W&B run that the calling program has open
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
                quiet=True,  # else the login asks for a user name first: 11 s more where the server is silent
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        if mode == "online":
            logger.info("W&B run: %s", self._run.url)

    def _finish(self, state: str) -> None:
        if state == "preempted":
            self._run.mark_preempting()  # W&B then shows "preempted" instead of "failed"
        self._run.finish(exit_code=0 if state == "finished" else 1)


def run_id(run: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Below W&B's limit of 64 characters, which the name of a run folder may exceed.

    The study is part of it: the same arm in two studies has one name, and would overwrite itself.
    """
    digest = hashlib.sha256(f"{run['study']['name']}/{identity['name']}".encode()).hexdigest()[:8]
    return f"s{run['train']['seed']}-{identity['signature']}-{digest}"


def resolve_mode(mode: str, base_url: str) -> Literal["online", "offline", "disabled"]:
    """What ``mode`` means on this machine; never ``online`` without a key, where W&B would ask for one and wait."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return "disabled"
    return "online" if mode != "offline" and _has_key(base_url) else "offline"


def _has_key(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    # W&B's address since 0.31 is a front of its old one, under which keys were filed before.
    hosts = (host, "api.wandb.ai") if host.endswith(".coreweave.com") else (host,)
    try:
        known = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(h in known for h in hosts)
