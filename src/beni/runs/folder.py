"""The run folder: what a run is, how it is doing, and the lock that keeps a second process out of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from beni.errors import ResumeError
from beni.runs import shape
from beni.runs.backlog import Backlog, room_for
from beni.runs.code import snapshot_of, take_snapshot
from beni.runs.files import (
    CHECKPOINTS,
    COMPLETE,
    CONFIG,
    DATA_ERRORS,
    GALLERY,
    IDENTITY,
    METRICS,
    NOTICES,
    ORIGIN,
    REPORT,
    SCORES,
    SPEC,
    STATUS,
    checkpoints_in,
    read_json,
    remove_partials,
    replace,
    to_json,
)
from beni.runs.frozen import is_frozen, load_frozen, save_frozen
from beni.runs.identity import difference, now, provenance, relevant, run_folder, signature
from beni.runs.lock import lock_of, set_aside
from beni.runs.status import ending, hang, is_finished, read_status, read_status_or_why, write_status

A_GLANCE = 1.0
"""Seconds for which who only asks whether a folder is in use may hold its lock."""
STARTED_WITH = ("created", "command", "hypothesis", "git", "code", "versions")
"""Keys of identity.json that stay those of the first start."""


class RunFolder:
    """``runs/<study>/<choices>-s<seed>-<signature>/`` of one run, written by rank 0 only.

    Args:
        run: the frozen run.
        writes: whether this process is the one that writes.

    Attributes:
        backlog: what the disk has not taken yet.
    """

    def __init__(self, run: Mapping[str, Any], writes: bool) -> None:
        self.run, self.writes = dict(run), writes
        self.path = run_folder(self.run)
        self.identity = provenance(self.run)
        self.status: dict[str, Any] = {}
        self.backlog = Backlog()
        self._started_with: list[str] = []

    @contextmanager
    def opened(self) -> Iterator[RunFolder]:
        """Locks the folder and keeps ``status.json`` true until the block ends, also when it ends badly.

        Raises:
            ResumeError: when another process works in it, or it holds another run.
            ResourceError: when it cannot be written: at the beginning at all, or at the end all of it.
        """
        if not self.writes:
            yield self
            return
        with room_for(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(self.path)
        try:
            lock.acquire(timeout=A_GLANCE)
        except Timeout:
            raise ResumeError(f"{self.path} is in use by another process; wait for it or stop it") from None
        except OSError as error:  # which a Timeout is as well
            with room_for(self.path):
                raise error
        try:
            with room_for(self.path):
                self._prepare()
            yield self
            self.backlog.end()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            lock.release()

    def require_same(self, exact: Collection[str]) -> list[str]:
        """Compares ``identity`` with that of the checkpoints here, and takes over what it says of changed data.

        Args:
            exact: components whose first weights are in no checkpoint, and must be those that they were.

        Returns:
            What else differs, for the reader: weights that a checkpoint replaces, or that are computed from others;
            data, where ``checkpoint.resume=changed_data``, and code, which ``identity`` notes too.

        Raises:
            ResumeError: when the data, the template or the weights of ``exact`` are others, or nothing says what they
                were.
        """
        if not (saved := self._saved()):
            return self._started_with
        before, problem = read_json(self.path / IDENTITY, shape.OF_PROOF)
        if problem:
            raise ResumeError(
                f"{self.path}: {problem}; it proves that a resumed run has the data, template and weights it "
                f"started with\n  fix: restore {IDENTITY} from a copy, or set checkpoint.resume=never to start "
                "over (the old folder is kept)"
            )
        samples = {"data_samples": before.get("data_samples", self.identity.get("data_samples"))}
        lines = difference(_proof(before | samples), _proof(self.identity))
        weights = [line for line in lines if line.startswith("weights.")]
        data = [line for line in lines if line.startswith("data.")]
        goes_on = data if self.run["checkpoint"]["resume"] == "changed_data" else []
        fine = [line for line in weights if line.split(":")[0].removeprefix("weights.") not in exact] + goes_on
        if bad := [line for line in lines if line not in fine]:
            how = "set checkpoint.resume=changed_data to resume with the changed data, " if bad == data else ""
            raise ResumeError(
                "\n  ".join([f"{self.path} was started with other data or weights:", *bad])
                + f"\n  fix: restore them, {how}or set checkpoint.resume=never to start over "
                "(the old folder is kept)"
            )
        notices = self._keep_origin(before, saved[-1])
        history = before.get("changed_data", [])
        if goes_on:
            history = [*history, {"time": now(), "after_step": saved[-1], "changes": goes_on}]
        if history:
            self.identity["changed_data"] = history
        return (
            notices
            + [f"resumes after step {saved[-1]} with changed data ({line})" for line in goes_on]
            + [f"initial weights differ from those the run started with ({line})" for line in weights]
        )

    def _keep_origin(self, before: Mapping[str, Any], step: int) -> list[str]:
        """Leaves in ``identity`` what the run was started with; where it goes on with other code, it says so too."""
        own = {key: self.identity[key] for key in STARTED_WITH}
        first = {key: before[key] for key in STARTED_WITH if key in before}
        others = list(before.get("other_code", []))
        current = others[-1] if others else first
        self.identity |= first
        changed = difference(
            {key: current[key] for key in ("code", "versions") if key in current},
            {key: own[key] for key in ("code", "versions") if key in current},
        )
        if changed:
            told = {key: own[key] for key in ("code", "versions", "git")}
            others.append({"time": now(), "after_step": step, **told})
        if others:
            self.identity["other_code"] = others
        return [f"resumes after step {step} with other code ({line})" for line in changed]

    def update(self, **values: Any) -> None:
        """Merges ``values`` into status.json, which the disk has as soon as it takes it."""
        if self.writes:
            self.status |= values
            said = dict(self.status)
            self.backlog.write(self.path / STATUS, lambda: write_status(self.path, **said))

    def hung(self, message: str, stack: str) -> None:
        """Notes that the run hangs. Any rank may call it, from any thread: rank 0 may be the one that hangs."""
        with suppress(OSError):  # the process is to end, also on a full disk
            write_status(self.path, **(read_status(self.path) or self.status) | hang(message, stack))

    def write_json(self, name: str, value: Any) -> None:
        """Replaces a JSON file of the folder in one piece, as soon as the disk takes it."""
        self.write(name, to_json(value))

    def write(self, name: str, text: str) -> None:
        """Replaces a file of the folder in one piece, as soon as the disk takes it."""
        if self.writes:
            self.backlog.write(self.path / name, lambda: replace(self.path / name, text))

    def finished(self) -> bool:
        """Whether an earlier call of the same run came to its end.

        Raises:
            ResumeError: when a run did, and it is not proven to be this one.
        """
        if not is_finished(self.path):
            return False
        require_own(self.path, self.run)
        return True

    def _prepare(self) -> None:
        if self.run["checkpoint"]["resume"] == "never":
            set_aside(self.path)
        require_own(self.path, self.run)
        self.path.mkdir(parents=True, exist_ok=True)
        _require_files(self.path)
        remove_partials(self.path)
        save_frozen(self.path, self.run)
        self.status, problem = read_status_or_why(self.path)
        if problem and (self.path / STATUS).exists():
            self.backlog.tell(f"{self.path}: {problem}; a new one is started, without the time spent before")
        self.status = self.status or {"started": now()}
        self._note_code()
        self.update(state="running", steps=self.run["train"]["steps"], step=self.status.get("step", 0), error=None)

    def _note_code(self) -> None:
        """Keeps a copy of the code that runs, and takes over from ``origin.json`` what only who froze the run knows.
        A run that begins with other code than it was frozen with says so, and is started with that.
        """
        code, study = self.identity["code"], self.path.parent
        if not snapshot_of(study, code).is_dir() and take_snapshot(study).name != code:
            self._started_with.append(f"code {code} was edited since this process began; no copy of it is kept")
        known = read_json(self.path / ORIGIN, shape.OF_ORIGIN)[0]
        if (frozen := known.get("code", code)) != code:
            self._started_with.append(f"starts with code {code}, not {frozen}, which it was frozen with")
            known = {key: value for key, value in known.items() if key not in ("code", "git")}
        self.identity |= known
        own = {key: self.identity[key] for key in shape.OF_ORIGIN if key in self.identity}
        if own != known and not self._saved():
            replace(self.path / ORIGIN, to_json(own))

    def _saved(self) -> list[int]:
        """Steps of the checkpoints that are complete."""
        found = checkpoints_in(self.path / CHECKPOINTS)
        return [step for step, path in found.items() if (path / COMPLETE).is_file()]

    def _failed(self, error: BaseException) -> None:
        if not self.path.exists():
            return
        self.update(**ending(error))
        if self.backlog.waiting:
            self.backlog.tell(f"the run ends; these files are not written: {self.backlog.waiting}")


def require_own(folder: Path, run: Mapping[str, Any]) -> None:
    """What stands in a run folder must be this run, as far as it stands there: its frozen config, and its identity.

    Raises:
        ResumeError: when it is that of another run, or damaged.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ResumeError(f"{folder} is not a folder\n  fix: move it away, or set paths.runs or study.name")
        return
    fix = (
        f"\n  fix: move {folder} away, or set checkpoint.resume=never, which keeps it as {folder.name}.old1 and starts "
        "over"
    )
    if is_frozen(folder) and (changed := difference(relevant(load_frozen(folder)), relevant(dict(run)))):
        raise ResumeError(f"{folder} holds another run; its config.yaml differs in\n  " + "\n  ".join(changed) + fix)
    identity, problem = read_json(folder / IDENTITY, shape.OF_IDENTITY)
    if problem and (folder / IDENTITY).exists():
        raise ResumeError(
            f"{folder}: {problem}\n  fix: restore {IDENTITY} from a copy, or set checkpoint.resume=never, which "
            f"keeps the folder as {folder.name}.old1 and starts over"
        )
    if identity and identity["signature"] != (own := signature(dict(run))):
        raise ResumeError(
            f"{folder} holds another run: {IDENTITY} has signature {identity['signature']}, not {own}{fix}"
        )
    if not identity and not is_frozen(folder) and is_finished(folder):
        raise ResumeError(f"{folder} is marked as finished, but has no {CONFIG} and no {IDENTITY} to prove it{fix}")


def _require_files(folder: Path) -> None:
    """Raises ResumeError where a folder stands in the place of a file that the run writes."""
    for name in (CONFIG, IDENTITY, ORIGIN, STATUS, SPEC, METRICS, NOTICES, DATA_ERRORS, SCORES, GALLERY, REPORT):
        if (folder / name).is_dir():
            raise ResumeError(f"{folder / name} is a folder; the run writes a file there\n  fix: move it away")


def _proof(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must not change between two calls."""
    return {
        "data": {
            "fingerprint": identity["data_fingerprint"],
            "order": identity["hashes"]["data_order"].rpartition("-")[2],
            "samples": identity.get("data_samples"),
        },
        "template": identity["template_hash"],
        "views": identity.get("views"),
        "weights": identity["hashes"]["init"],
    }
