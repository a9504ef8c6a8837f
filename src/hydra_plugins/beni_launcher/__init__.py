"""Hydra finds launchers only in the namespace package ``hydra_plugins``; the work is done in ``beni.launch``."""
