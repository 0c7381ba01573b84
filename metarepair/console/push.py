"""Upload an exported folder to a repository of Hugging Face's Hub, after the user has seen what would be sent.

The token is the user's own, as huggingface_hub finds it. It is not read, written, printed or logged here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarepair.runs.logs import RESULTS
from metarepair.weights.hub import is_repository
from tasks.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)
YES = "yes"
SECRETS = re.compile(r"hf_\w+|(?<=Bearer )\S+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Push:
    """A wish to upload. repository: ORG/NAME. confirmed: whether the user has agreed beforehand (`--yes`)."""

    repository: str
    public: bool
    confirmed: bool

    def check(self) -> None:
        """Raise ConfigError before any work if the repository is not ORG/NAME, or nobody can be asked."""
        if not is_repository(self.repository):
            raise ConfigError(
                f"--push {self.repository!r} is not a repository of the Hub. Give ORG/NAME, of letters, digits, single "
                "hyphens, underscores and single dots, which neither begin nor end with a hyphen or a dot."
            )
        if not self.confirmed and not sys.stdin.isatty():
            raise ConfigError(
                f"--push {self.repository} asks on a terminal before anything is sent, and there is none. Add --yes if "
                "the upload needs no question, or leave --push out."
            )

    def upload(self, out: str) -> None:
        """Show what would be sent, ask, and upload the files of the folder `out`.

        Raises StorageError if the Hub refuses or cannot be reached, ConfigError if the repository exists and is public
        without `public`.
        """
        folder = Path(out).expanduser()
        files = sorted(path for path in folder.iterdir() if path.is_file())
        logger.log(RESULTS, self._offer(files))
        if not self.confirmed and not _agreed():
            logger.log(RESULTS, f"Nothing was sent. The folder stays: {folder}")
            return
        address = self._send(folder, [path.name for path in files])
        logger.log(RESULTS, f"Uploaded to {address}")

    def _offer(self, files: list[Path]) -> str:
        kind = "public" if self.public else "private"
        rows = [f"  {path.name}  {path.stat().st_size:,} bytes  sha256 {_sha256(path)}" for path in files]
        return "\n".join(
            [
                f"To upload to {self.repository} on the Hub, a {kind} repository, which is made if there is none:",
                *rows,
                "Files of these names in the repository are replaced. Nothing has been sent yet.",
            ]
        )

    def _send(self, folder: Path, names: list[str]) -> str:
        from huggingface_hub import HfApi

        api = HfApi(library_name="metarepair")
        made = _asked(
            lambda: api.create_repo(self.repository, private=not self.public, exist_ok=True), self.repository
        )
        if not self.public and not _asked(lambda: api.repo_info(self.repository).private, self.repository):
            raise ConfigError(
                f"{self.repository} exists and is public, so nothing was uploaded. Add --public to upload there, or "
                "name another repository."
            )
        _asked(
            lambda: api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                allow_patterns=names,
                commit_message="Upload a repaired model (metarepair export)",
            ),
            self.repository,
        )
        return str(made)


def _asked(call: Callable[[], Any], repository: str) -> Any:
    """Call the Hub. Raises StorageError in one paragraph, without secrets, for whatever its client raises."""
    try:
        return call()
    except Exception as error:  # of the Hub, of its client, and of the HTTP library beneath
        said = SECRETS.sub("…", " ".join(str(error).split()))[:400]
        raise StorageError(
            f"{repository} was not uploaded: the Hub's client raised {type(error).__name__} ({said}). The exported "
            "folder stays; the same command tries again. An upload needs a token that may write (`hf auth login`, or "
            "HF_TOKEN) and a network."
        ) from None


def _agreed() -> bool:
    """Ask on the terminal."""
    print(f"Upload? Type {YES} to send: ", end="", flush=True)
    return sys.stdin.readline().strip().lower() == YES


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # as the Hub shows it


def push_wish(repository: str | None, *, public: bool, confirmed: bool, folder_format: bool) -> Push | None:
    """Return what `--push`, `--public` and `--yes` ask for, checked; None without `--push`.

    Raises ConfigError if they do not go together, or with the format.
    """
    if repository is None:
        if public or confirmed:
            raise ConfigError("--public and --yes belong to --push ORG/NAME. Add it, or leave them out.")
        return None
    if not folder_format:
        raise ConfigError("--push uploads the folder of --format hf. Give that format, or leave --push out.")
    wish = Push(repository=repository, public=public, confirmed=confirmed)
    wish.check()
    return wish
