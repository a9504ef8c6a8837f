"""A run for llama.cpp: the llm as one file of GGUF, encoder and projector as another; writing.py is the format."""

from beni.export.gguf.writing import write

__all__ = ["write"]
