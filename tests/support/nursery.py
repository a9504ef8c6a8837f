"""A process that has imported what runs need, and forks them: it reads a request a line and answers with a line.

A request: program (a file, or the name of a module as behind ``python -m``), arguments, folder, seconds, and for each
rank the environment variables and the files of what it says. The answer: exit codes, null for a rank that was killed
when its time was over.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

KNOWN = (
    "beni.run",
    "transformers.models.llama.modeling_llama",
    "transformers.models.siglip.modeling_siglip",
)


def fork(request: dict[str, Any], rank: dict[str, Any]) -> int:
    """Process id of a child that runs the program."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code, program = 1, request["program"]
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "said"), (2, "told")):
            os.dup2(os.open(rank[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.environ.update(rank["variables"])
        os.chdir(request["folder"])
        sys.argv = [program, *request["arguments"]]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            sys.path[0] = request["folder"]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], seconds: float) -> list[int | None]:
    """Exit codes; ends what is left after so many seconds."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    codes[child] = None
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1]))  # tests have parts of their own, in ``support``
    for module in KNOWN:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        children = [fork(request, rank) for rank in request["ranks"]]
        print(json.dumps(wait(children, request["seconds"])), flush=True)


if __name__ == "__main__":
    main()
