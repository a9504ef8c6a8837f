"""Where beni's own files lie: the config tree and the files shipped inside the package. Imports nothing heavy.

A source checkout holds ``conf/``, ``experiments/`` and ``launchers/`` at its root; a wheel carries copies inside the
package, with the symbolic links of ``conf/`` materialised.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder that holds ``train.yaml`` and one folder per config group."""
    checkout = PACKAGE.parent.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else PACKAGE / "conf"


def cache_dir() -> Path:
    """Folder for derived files that may be deleted at any time (``BENI_CACHE``, else the user's cache folder)."""
    root = os.environ.get("BENI_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "beni")
    return Path(root).expanduser()
