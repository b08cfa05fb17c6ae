"""How a release gets to the Hub."""

import json
import os
import shlex
import time
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers.utils import logging

from ..silence import is_connection_error, limited_silence
from .card import render_card
from .checks import EVAL_RESULTS, check_release
from .replacing import replace_text

logger = logging.get_logger(__name__)

_TRANSIENT = {408, 429, 500, 502, 503, 504}
# What an earlier release may have left in the repository and a loader would take for this one's.
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "*.bin", "adapter_config.json", "pretraining/*"]


class PushError(RuntimeError):
    """The upload failed. The message ends with the command that finishes it; the release is still on disk."""


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    response = getattr(error, "response", None)
    if isinstance(error, HfHubHTTPError) and response is not None:
        return response.status_code in _TRANSIENT
    if is_connection_error(error):
        return True
    # An upload of one of several files hides what happened behind an error of its own.
    return error.__cause__ is not None and _is_transient(error.__cause__)


def _push_error(
    error: Exception, folder: Path, repo_id: str, private: bool | None, revision: str | None, attempt: int
) -> PushError:
    command = f"hf upload {shlex.quote(repo_id)} {shlex.quote(str(folder))}"
    command += " --private" * bool(private) + (f" --revision {shlex.quote(revision)}" if revision else "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Request ID" not in line]
    reason = " ".join(lines[:2]) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = " after `hf auth login`" if status in (401, 403) else ""
    login = " online" if isinstance(error, OfflineModeIsEnabled) else login
    tries = "1 try" if attempt == 1 else f"{attempt} tries"
    return PushError(
        f"Could not upload to {repo_id} ({tries}): {reason} "
        f"The release is complete in {str(folder)!r}; finish{login} with: {command}"
    )


def _name_repository(folder: Path, repo_id: str) -> None:
    """Puts the repository's name into the card's snippets, unless somebody has edited the card."""
    results_file, card_file = folder / "results.json", folder / "README.md"
    results = json.loads(results_file.read_text(encoding="utf-8"))
    if card_file.read_text(encoding="utf-8") != render_card(results):
        return
    results["model"]["repo_id"] = repo_id
    replace_text(results_file, json.dumps(results, indent=2) + "\n")
    replace_text(card_file, render_card(results))


def push_release(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload release",
    attempts: int = 5,
    wait_seconds: float = 2.0,
    api: HfApi | None = None,
) -> str:
    """
    Uploads a release in one commit, which also removes weights and adapters that an earlier release has left there;
    with `hf_xet`, `huggingface_hub` divides over 250 files into several. The folder is checked first, and stays as it
    is whatever happens. Rate limits, server errors and five minutes of silence are retried, waiting twice as long each
    time.

    Args:
        folder (`str` or `PathLike`): the release, on disk.
        repo_id (`str`): `organisation/name`.
        private (`bool`, *optional*): for a repository that is created; `None` follows the organisation's default.
        revision (`str`, *optional*): the branch to upload to; made if it is new.
        commit_message (`str`): first line of the commit.
        attempts (`int`): tries in all, at least 1.
        wait_seconds (`float`): seconds before the second try.
        api (`HfApi`, *optional*): the client to use.

    Returns:
        The address of the commit or repository.

    Raises:
        `ValueError`: if the folder is not fit to be published; nothing was sent.
        `PushError`: if the upload failed; the message holds the command that finishes it.
    """
    folder = check_release(folder)
    if attempts < 1:
        raise ValueError(f"`attempts` must be at least 1, got {attempts}.")
    _name_repository(folder, repo_id)
    api = api or HfApi()
    # The Hub reads scores from a folder whose name starts with a dot; others are nobody else's business.
    names = [item.name for item in folder.iterdir() if item.name.startswith(".") and item.name != EVAL_RESULTS]
    hidden = [pattern for name in names for pattern in (name, f"{name}/*")]
    attempt = 0
    while True:
        attempt += 1
        try:
            with limited_silence():
                # The answer holds the full name where only a repository's own was given.
                full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if revision is not None and not revision.startswith("refs/"):
                    api.create_branch(full_name, branch=revision, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=full_name,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=revision,
                    ignore_patterns=["checkpoint-*", *hidden],
                    delete_patterns=_WEIGHTS,
                )
            return str(commit)
        except Exception as error:
            if attempt >= attempts or not _is_transient(error):
                raise _push_error(error, folder, repo_id, private, revision, attempt) from error
            wait = wait_seconds * 2 ** (attempt - 1)
            logger.warning(f"Upload failed ({type(error).__name__}); trying again in {wait:g} s.")
            time.sleep(wait)
