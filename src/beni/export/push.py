"""An exported folder to the hub of Hugging Face, when asked. The token is the machine's own (``hf auth login``, or the
variable HF_TOKEN): no command of beni takes it, and nothing that is printed holds it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from beni.errors import ConfigError, ResourceError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def require_pushable(repository: str) -> None:
    """Return when there is a name and a token to push with; asks no server.

    Raises:
        ConfigError: when there is not.
    """
    from huggingface_hub import constants, get_token

    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--push {repository}, expected <owner>/<name>\n  fix: set --push to the repository's name")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push {repository} with HF_HUB_OFFLINE set\n  fix: unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise ConfigError(
            f"--push {repository}, and this machine has no token of the hub\n  fix: run hf auth login, or set HF_TOKEN"
        )


def push(folder: Path, repository: str, public: bool) -> str:
    """Makes the repository where it is not there yet, private unless ``public``, uploads the folder in one commit, and
    returns the repository's address.

    Raises:
        ConfigError: when the repository is public and was not to be.
        ResourceError: when the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise ConfigError(
                f"--push {repository}, which is public already\n  fix: set --public, or push to another repository"
            )
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Exported by beni: {folder.name}")
    except (HfHubHTTPError, OSError) as error:
        raise _failed(repository, error) from error
    return str(url)


def _failed(repository: str, error: Any) -> ResourceError:
    said = " ".join(str(error).split())[:300]
    return ResourceError(
        f"--push {repository}: {type(error).__name__}: {said}\n"
        "  fix: the folder is written; run the same upload with hf upload once the hub answers"
    )
