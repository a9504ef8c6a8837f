"""An llm from a GGUF file: dequantised once, kept as safetensors in beni's cache, loaded from there ever after."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from beni.errors import WeightsError
from beni.paths import cache_dir


def load_gguf(path: Path, attn_implementation: str) -> PreTrainedModel:
    """The dequantised model of a GGUF file in fp32."""
    return AutoModelForCausalLM.from_pretrained(
        dequantised(path), attn_implementation=attn_implementation, dtype=torch.float32
    )


def dequantised(path: Path) -> Path:
    """Folder with the model and tokenizer of ``path`` in Hugging Face's format, made on first use.

    Raises:
        WeightsError: when the package that reads GGUF is missing.
    """
    stat = path.stat()
    key = hashlib.sha256(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "gguf" / f"{path.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401  (transformers imports it lazily and then fails with a longer story)
    except ImportError as error:
        raise WeightsError(f"{path.name} needs the package gguf\n  fix: pip install gguf") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    options = {"gguf_file": path.name}
    quantised = AutoModelForCausalLM.from_pretrained(
        path.parent,
        quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
        dtype=torch.float32,
        **options,
    )
    fields = {k: v for k, v in quantised.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    plain = type(quantised)(type(quantised.config).from_dict(fields))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(partial)
    AutoTokenizer.from_pretrained(path.parent, **options).save_pretrained(partial)
    try:
        os.rename(partial, folder)
    except OSError:  # another process finished first; its folder is the same
        shutil.rmtree(partial)
    return folder
