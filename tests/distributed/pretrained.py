"""One rank of a whole run, which counts how often it reads pretrained weights: ``pretrained.py SETTINGS.json``.

SETTINGS: run (a composed run), out (where each rank writes).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import transformers

from beni.run import train


def main(settings) -> None:
    reads = []
    for automatic in (transformers.AutoModel, transformers.AutoModelForCausalLM):

        def counted(name, *args, load=automatic.from_pretrained, **options):
            reads.append(str(name))
            return load(name, *args, **options)

        automatic.from_pretrained = counted
    folder = train(settings["run"])
    Path(f"{settings['out']}.{os.environ.get('RANK', '0')}").write_text(
        json.dumps({"reads": reads, "folder": str(folder)})
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
