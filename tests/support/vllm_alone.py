"""What vLLM says of a folder of ``--format native``; runs in an environment of its own (``make vllm``), without beni.

Reads a JSON file: ``{"folder", "new", "asked": [{"images": [file, ...], "text"}]}``. Prints the ids of each question's
greedy answer.
"""

import base64
import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

from vllm import LLM, SamplingParams


def message(asked):
    """A question in OpenAI's form, its images as data URLs."""
    images = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file).decode()}}
        for file in (Path(name).read_bytes() for name in asked["images"])
    ]
    return [{"role": "user", "content": [*images, {"type": "text", "text": asked["text"]}]}]


def main():
    sys.modules["beni"] = None  # whoever imports it fails
    told = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(told["folder"], dtype="float32", enforce_eager=True, max_num_seqs=4, enable_prefix_caching=False)
    greedy = SamplingParams(temperature=0.0, max_tokens=told["new"])
    said = llm.chat([message(asked) for asked in told["asked"]], greedy, use_tqdm=False)
    print(json.dumps([list(one.outputs[0].token_ids) for one in said]))


if __name__ == "__main__":
    main()
