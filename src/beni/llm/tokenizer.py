"""The llm's tokenizer: its own, one from a folder or hub id, or a small one that beni carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from beni.errors import ConfigError
from beni.hub import package_file, require
from beni.llm.gguf import dequantised
from beni.paths import PACKAGE

CARRIED = {"embedded": PACKAGE / "llm" / "embedded_tokenizer", "bytes": PACKAGE / "llm" / "byte_tokenizer"}
"""``llm.tokenizer`` -> folder of a tokenizer that comes with beni (llm/make_tokenizer.py)."""


def load_tokenizer(node: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that an ``llm`` node asks for with ``tokenizer``: ``auto``, ``embedded``, ``bytes``, a hub id or a
    folder.

    Raises:
        ConfigError: when it has more ids than the llm has embeddings.
        WeightsError: when it cannot be had on this machine.
    """
    wanted = node["tokenizer"]
    if wanted == "auto":
        wanted = node["name"] if node["weights"] == "pretrained" else "embedded"
    if wanted in CARRIED:
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(CARRIED[wanted])
    elif wanted.startswith("package:"):
        tokenizer = AutoTokenizer.from_pretrained(dequantised(package_file(wanted)))
    else:
        require(wanted, "llm", "weights" if node["tokenizer"] == "auto" else "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(wanted, trust_remote_code=False)
    embeddings = (node["architecture"] or {}).get("vocab_size")
    if embeddings is not None and len(tokenizer) > embeddings:
        raise ConfigError(
            f"llm.tokenizer={wanted} has {len(tokenizer)} ids, but the llm has {embeddings} embeddings\n"
            "  fix: set llm.tokenizer=embedded, or a larger llm.architecture.vocab_size"
        )
    return tokenizer
