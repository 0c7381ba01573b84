"""Names on the Hugging Face Hub, and files of its cache: found offline, checked, and refused with the remedy."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants, errors

from hub_cache import COMMIT, cifar_files, put, timm_files, use_cache
from metarepair.cli import main
from metarepair.weights import resolve_weights
from metarepair.weights.hub import blob_sha256, hub_file, hub_json, pinned, read_hub_name
from tasks.errors import ConfigError, WeightsError

NAME = "hf-hub:me/net"
OTHER = "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with me/net at COMMIT."""
    cache = use_cache(monkeypatch, tmp_path / "hub")
    put(cache, "me/net", cifar_files())
    return cache


def refusal(weights: str = NAME) -> str:
    with pytest.raises(WeightsError) as error:
        resolve_weights(weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_has_a_repository_and_a_revision() -> None:
    name = read_hub_name("hf:org/net.a1@refs/pr/1")
    assert (name.kind, name.repository, name.revision) == ("hf:", "org/net.a1", "refs/pr/1")
    assert str(name) == "hf:org/net.a1@refs/pr/1"
    assert read_hub_name(NAME).revision == "main"


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:",
        "hf-hub:net",
        "hf-hub:/me/net",
        "hf-hub:me/net/model",
        "hf-hub:../../etc/passwd",
        "hf-hub:me/..",
        "hf-hub:me/net@",
        "hf-hub:me/net@../../x",
        "hf-hub:me/net@a b",
        "hf-hub:me/net@main@main",
        "hf-hub:me/net\n",
        "hf-hub:me/<script>",
        "hf-hub:me/net-",
        "hf-hub:me/net.git",
        f"hf-hub:me/{'n' * 97}",
        "hf-hub:mé/net",
        "hf-hub:me--x/net",
        "hf:https://huggingface.co/me/net",
        f"hf:me/{'n' * 200}",
    ],
)
def test_a_malformed_name_is_refused_before_any_file_is_looked_for(name: str) -> None:
    with pytest.raises(ConfigError, match=r"ORG/NAME|not a revision"):
        read_hub_name(name)


def test_the_weights_are_those_of_the_revision_in_the_cache(cache: Path) -> None:
    newer = put(cache, "me/net", cifar_files() | {"model.safetensors": b"newer"}, commit=OTHER, ref="next")
    assert resolve_weights(f"{NAME}@next") == newer / "model.safetensors"
    assert resolve_weights(NAME).parent.name == COMMIT
    assert str(pinned(read_hub_name(NAME))) == f"{NAME}@{COMMIT}"
    assert resolve_weights(f"{NAME}@{OTHER}").read_bytes() == b"newer"
    assert blob_sha256(resolve_weights(NAME)) is not None


def test_a_damaged_blob_is_refused_with_both_digests(cache: Path) -> None:
    path = resolve_weights(NAME)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.resolve().write_bytes(damaged)
    said = refusal()
    assert "is damaged: its digest is " in said
    assert path.readlink().name in said
    assert "hf download me/net config.json model.safetensors --revision main" in said


def test_a_damaged_config_is_refused(cache: Path) -> None:
    config = hub_file(read_hub_name(NAME), "config.json")
    config.resolve().write_text("{}")
    with pytest.raises(WeightsError, match="is damaged"):
        hub_json(read_hub_name(NAME), "config.json")


def test_a_cache_that_was_copied_without_links_is_read(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, Path(shutil.copytree(cache, tmp_path / "copy")))
    (plain,) = (tmp_path / "copy").glob("models--*/snapshots/*/config.json")
    assert not plain.is_symlink()
    assert hub_json(read_hub_name(NAME), "config.json")["architecture"] == "resnet8_cifar"
    assert blob_sha256(resolve_weights(NAME)) is None


def test_a_missing_model_names_the_command_the_cache_and_the_variable(cache: Path) -> None:
    said = refusal("hf-hub:me/nett")
    assert f"({cache}), and HF_HUB_OFFLINE is set; did you mean 'me/net'? On a machine" in said
    assert "hf download me/nett config.json model.safetensors --revision main" in said
    assert "set HF_HUB_CACHE to that folder (on a cluster: on every node)" in said


def test_a_missing_revision_names_those_in_the_cache(cache: Path) -> None:
    assert "did you mean 'main'?" in refusal(f"{NAME}@mian")


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_what_was_asked_for_is_not_offered(cache: Path, revision: str) -> None:
    found = cache / "models--me--net" / "snapshots" / COMMIT / "model.safetensors"
    found.unlink()
    found.symlink_to("nowhere")
    assert "did you mean" not in refusal(f"{NAME}@{revision}")


def test_a_short_commit_is_offered_whole(cache: Path) -> None:
    assert f"did you mean '{COMMIT}'?" in refusal(f"{NAME}@{COMMIT[:7]}")
    assert "did you mean" not in refusal(f"{NAME}@{OTHER[:7]}")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_reference_is_refused_with_its_path(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    ref = cache / "models--me--net" / "refs" / "main"
    ref.write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError) as error:
        hub_file(read_hub_name(NAME), file)
    assert f"{NAME}@main: {ref} is damaged (" in str(error.value)
    assert "or delete it and download again: hf download me/net" in str(error.value)
    monkeypatch.setattr("metarepair.console.doctor.examine", lambda _: "")
    assert main(["doctor", "--model", NAME]) == 2
    assert str(ref) in capsys.readouterr().err


def test_a_cache_that_cannot_be_read_is_refused_with_its_path(cache: Path) -> None:
    snapshots = cache / "models--me--net" / "snapshots"
    shutil.rmtree(snapshots)
    snapshots.write_text("")
    assert f"{snapshots} cannot be read (Not a directory)" in refusal()


def test_a_failed_download_is_told_with_the_same_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("no route\nto host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    said = refusal("hf-hub:other/model")
    assert "the download failed (LocalEntryNotFoundError: no route to host)" in said
    assert "hf download other/model" in said


def test_the_client_is_silent_and_its_reason_is_not_cut(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client = logging.getLogger("huggingface_hub")
    handler = logging.StreamHandler()
    client.addHandler(handler)
    level = client.level

    def fail(*_: object, **__: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise errors.LocalEntryNotFoundError("Advice. " * 99) from OSError(
            "No route. " + "Long sentence " * 99
        )

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    try:
        said = refusal("hf-hub:other/model")
    finally:
        client.removeHandler(handler)
    assert "the download failed (OSError: No route.)" in said
    assert "Retrying" not in capfd.readouterr().err
    assert client.level == level


def test_a_missing_model_is_downloaded_into_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, *, revision: str) -> str:
        asked.append((repository, file, revision))
        return str(put(cache, repository, cifar_files()) / file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert resolve_weights("hf-hub:other/model").read_bytes() == cifar_files()["model.safetensors"]
    assert pinned(read_hub_name("hf-hub:other/model")).revision == COMMIT
    assert asked == [("other/model", "model.safetensors", "main")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            errors.RepositoryNotFoundError,
            "has no model me/nett, or it needs permission; did you mean 'me/net'?",
        ),
        (errors.RevisionNotFoundError, "has no revision 'main' of me/nett"),
        (errors.RemoteEntryNotFoundError, "has no model.safetensors. Only safetensors are read"),
    ],
)
def test_what_the_hub_does_not_have_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, kind: type[errors.HfHubHTTPError], said: str
) -> None:
    answer = httpx2.Response(404, request=httpx2.Request("HEAD", "https://example.org"))

    def refuse(*_: object, **__: object) -> str:
        raise kind("404", response=answer)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    assert said in refusal("hf-hub:me/nett")


def test_a_repository_with_only_pickles_is_refused(cache: Path) -> None:
    files = {"config.json": cifar_files()["config.json"], "pytorch_model.bin": b"\x80\x04."}
    put(cache, "me/pickled", files)
    said = refusal("hf-hub:me/pickled")
    assert "only a pickle, pytorch_model.bin" in said
    assert "loading a pickle can run code" in said


def test_weights_in_several_files_are_refused(cache: Path) -> None:
    put(cache, "me/large", {"config.json": b"{}", "model.safetensors.index.json": b"{}"})
    assert "several files" in refusal("hf-hub:me/large")


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(cache: Path, content: bytes) -> None:
    put(cache, "me/odd", {"config.json": content})
    with pytest.raises(WeightsError, match=r"config\.json (is not JSON|holds no settings)"):
        hub_json(read_hub_name("hf:me/odd"), "config.json")


def test_files_that_timm_writes_are_read(cache: Path, tmp_path: Path) -> None:
    put(cache, "me/small", timm_files(tmp_path / "saved"))
    assert hub_json(read_hub_name("hf-hub:me/small"), "config.json")["num_classes"] == 3
