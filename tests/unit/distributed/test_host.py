"""Freed memory stays with the process, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = """
import resource
import sys
import torch
from beni.distributed.host import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del [torch.ones(2**20 if i % 2 else 2**24) for i in range(16)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
faults()
print(kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize("variables", [{}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}])
def test_blocks_that_were_freed_are_taken_again_without_a_page_fault(variables: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env=os.environ | variables
    )
    kept, faults = ended.stdout.split()
    pages = 8 * (2**26 + 2**22) // 4096
    assert kept == ("False" if variables else "True")
    assert (int(faults) > pages / 2) == bool(variables), f"{faults} of {pages} pages"
