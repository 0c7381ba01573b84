"""Call the command line with bad input, and check that it is refused in one paragraph and nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from metarepair.cli import main

WITHOUT_SETTINGS = {"inspect", "status", "export", "corruptions", "doctor"}  # verbs that need no --config
Files = dict[str, bytes]


def files_under(folder: Path) -> Files:
    """The path and bytes of every file under `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class Cli:
    """Calls the command line on one folder and captures its output."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "tiny"

    def run(self, verb: str, *arguments: str) -> tuple[int, str]:
        """Run a command; return its exit code and stderr."""
        code, _, err = self.answer(verb, *arguments)
        return code, err

    def answer(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        """Run a command; return its exit code, stdout and stderr."""
        config = [] if "--config" in arguments else ["--config", str(self.folder / "tiny.yaml")]
        storage = [] if "--storage" in arguments else ["--storage", str(self.folder / "runs")]
        if verb in WITHOUT_SETTINGS:
            config, storage = [], []
        self.capsys.readouterr()
        try:
            code = main([verb, *config, *storage, *arguments])
        except SystemExit as ended:  # of argparse
            code = int(ended.code or 0)
        found = self.capsys.readouterr()
        return code, found.out, found.err

    def assert_refused(self, verb: str, *arguments: str, says: list[str], unfinished: str = "") -> str:
        """Run a command that must be refused, check that it changed no existing file, and return its message.

        unfinished: folder of a stage that may gain files to resume from, but no manifest.
        """
        before = files_under(self.folder)
        code, stderr = self.run(verb, *arguments)
        assert code == 2, stderr
        assert "Traceback" not in stderr
        lines = [line for line in stderr.splitlines() if line.startswith("metarepair: ")]
        assert len(lines) == 1, stderr
        assert stderr.endswith(lines[0] + "\n"), "the message is the last line"
        for word in says:
            assert word in lines[0]
        after = files_under(self.folder)
        assert not [name for name in after if name.endswith(".tmp") or ".tmp/" in name]
        assert {name: after.get(name) for name in before} == before
        if unfinished:
            assert not (self.root / unfinished / "manifest.json").exists()
        else:
            assert after.keys() == before.keys()
        return lines[0]


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
