"""Test uploads: nothing is sent before the user has seen what and has agreed, and no secret is shown. No network."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from metarepair.cli import main
from metarepair.console.push import Push, push_wish
from tasks.errors import ConfigError, StorageError

TOKEN = "hf_abcdefghij1234567890"


class Terminal(io.StringIO):
    """Standard input of a user who answers."""

    def isatty(self) -> bool:
        return True


class FakeHub:
    """Records what would be sent; `private` is the repository's own, `error` what every upload raises."""

    def __init__(self, *, private: bool = True, error: Exception | None = None) -> None:
        self.private, self.error, self.calls = private, error, list[tuple[str, dict[str, Any]]]()

    def __call__(self, **_: Any) -> FakeHub:
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error
        return f"https://hub.example/{repo_id}"

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private, id=repo_id)

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def hub(monkeypatch: pytest.MonkeyPatch, *, answer: str | None = None, **options: Any) -> FakeHub:
    fake = FakeHub(**options)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
    return fake


def wish(**options: Any) -> Push:
    return Push(**{"repository": "me/night", "public": False, "confirmed": False} | options)


def test_the_files_are_shown_and_sent_after_a_yes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = hub(monkeypatch, answer="yes\n")
    wish().upload(str(folder))
    offer = caplog.messages[0]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert f"model.safetensors  7 bytes  sha256 {digest}" in offer
    assert "me/night on the Hub, a private repository" in offer
    assert "Nothing has been sent yet." in offer
    (_, made), (_, sent) = fake.calls
    assert made == {"repo_id": "me/night", "private": True, "exist_ok": True}
    assert sent["folder_path"] == folder
    assert sent["allow_patterns"] == ["config.json", "model.safetensors"]
    assert caplog.messages[-1] == "Uploaded to https://hub.example/me/night"


@pytest.mark.parametrize("answer", ["no\n", "y\n", "\n", ""])
def test_any_other_answer_sends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    fake = hub(monkeypatch, answer=answer)
    wish().upload(str(folder))
    assert fake.calls == []
    assert "Nothing was sent." in caplog.messages[-1]


def test_yes_in_a_script_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = hub(monkeypatch)
    wish(confirmed=True, public=True).upload(str(folder))
    assert [name for name, _ in fake.calls] == ["create", "upload"]
    assert fake.calls[0][1]["private"] is False


def test_a_public_repository_gets_nothing_that_was_to_be_private(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = hub(monkeypatch, private=False)
    with pytest.raises(ConfigError, match=r"exists and is public, so nothing was uploaded.*--public"):
        wish(confirmed=True).upload(str(folder))
    assert [name for name, _ in fake.calls] == ["create"]


def test_an_error_of_the_hub_is_one_paragraph_without_the_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub(monkeypatch, error=ValueError(f"Illegal header\n value 'Bearer {TOKEN}'"))
    with pytest.raises(StorageError) as caught:
        wish(confirmed=True).upload(str(folder))
    said = str(caught.value)
    assert "ValueError (Illegal header value 'Bearer …" in said
    assert "hf auth login" in said
    assert "\n" not in said
    assert caught.value.__suppress_context__
    assert TOKEN not in said + caplog.text


def ask(**options: Any) -> Push | None:
    usual = {"repository": "me/night", "public": False, "confirmed": False, "folder_format": True}
    return push_wish(**usual | options)


def test_without_a_terminal_and_without_yes_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch)
    with pytest.raises(ConfigError, match=r"asks on a terminal.*Add --yes"):
        ask()
    assert ask(confirmed=True) is not None
    assert ask(repository=None) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repository": None, "confirmed": True}, "belong to --push"),
        ({"repository": None, "public": True}, "belong to --push"),
        ({"folder_format": False}, "uploads the folder of --format hf"),
        ({"repository": "night"}, "is not a repository of the Hub"),
        ({"repository": "a/b/c"}, "is not a repository of the Hub"),
        ({"repository": "../x y"}, "is not a repository of the Hub"),
        ({"repository": "../b", "confirmed": True}, "is not a repository of the Hub"),
        ({"repository": "me/b.git", "confirmed": True}, "is not a repository of the Hub"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    hub(monkeypatch, answer="yes\n")
    with pytest.raises(ConfigError, match=words):
        ask(**options)


@pytest.mark.parametrize(
    ("options", "said"), [(["me/night"], "Add --yes"), (["../b", "--yes"], "'../b' is not a repository")]
)
def test_the_command_refuses_before_it_writes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    hub(monkeypatch)
    (tmp_path / "model.safetensors").write_bytes(b"")
    out = tmp_path / "hub"
    code = main(
        [
            "export",
            str(tmp_path / "model.safetensors"),
            "--format",
            "hf",
            "--out",
            str(out),
            "--push",
            *options,
        ]
    )
    assert code == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
