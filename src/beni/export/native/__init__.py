"""A run as a class of transformers: one file a family, all listed in families.py; writing.py is the format."""

from beni.export.native.writing import write

__all__ = ["write"]
