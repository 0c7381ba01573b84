"""Check how the FID Inception's file is found: the places, their order, and a download from a local server."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metarepair.features import inception_weights
from metarepair.features.inception import load_fid_inception
from metarepair.features.inception_weights import (
    FILE_NAMES,
    MB,
    PUBLISHED,
    SHA256,
    download_fid_inception,
    find_fid_inception,
    obtain_fid_inception,
)
from tasks.errors import WeightsError

CONTENT = bytes(range(256)) * 10_000  # 2.56 MB


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and an environment without weights and without a reachable server."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("METAREPAIR_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(inception_weights, "PUBLISHED", {"nobody": "http://127.0.0.1:9/" + FILE_NAMES[0]})
    return tmp_path / "home"


@dataclass
class Server:
    """A local server of the two published files. `sent`: the bytes sent for each; `announced`: their stated length."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=lambda: [CONTENT, CONTENT])
    announced: int = len(CONTENT)

    def left(self) -> list[str]:
        """Names of the files in the user's cache."""
        return sorted(file.name for file in self.folder.iterdir())


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server(home / ".cache" / "metarepair")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            content = state.sent[FILE_NAMES.index(self.path.removeprefix("/"))]
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(state.announced if content else 0))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    urls = {name: f"http://127.0.0.1:{listening.server_port}/{name}" for name in FILE_NAMES[:2]}
    monkeypatch.setattr(inception_weights, "PUBLISHED", urls)
    monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    yield state
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_the_names_of_both_published_files_have_the_checksum() -> None:
    assert [Path(url).name for url in PUBLISHED.values()] == list(FILE_NAMES[:2])
    assert all(f"-{SHA256[:8]}." in name for name in FILE_NAMES)
    assert len(bytes.fromhex(SHA256)) == 32


def test_weights_are_found_by_path_environment_and_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given" / FILE_NAMES[3]
    hub = tmp_path / "torch" / "hub" / "checkpoints" / FILE_NAMES[1]
    cache = home / ".cache" / "metarepair" / FILE_NAMES[1]
    xdg = tmp_path / "xdg" / "metarepair" / FILE_NAMES[0]
    for file in (given, hub, cache, xdg):
        file.parent.mkdir(parents=True)
    hub.touch()
    assert find_fid_inception(None) == hub
    cache.touch()
    assert find_fid_inception(None) == cache  # our own cache takes precedence
    xdg.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find_fid_inception(None) == xdg
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(given.parent))  # a folder that does not have them yet
    assert find_fid_inception(None) == xdg
    given.touch()
    for place in (given, given.parent):
        monkeypatch.setenv("METAREPAIR_WEIGHTS", str(place))
        assert find_fid_inception(None) == given
        assert find_fid_inception(hub) == hub
        assert find_fid_inception(cache.parent) == cache


@pytest.mark.parametrize("by", ["path", "environment"])
def test_a_named_file_that_is_missing_is_not_replaced_by_the_cache(
    by: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = home / ".cache" / "metarepair" / FILE_NAMES[0]
    cache.parent.mkdir(parents=True)
    cache.touch()
    mistyped = tmp_path / "mistyped.pth"
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(mistyped) if by == "environment" else "")
    with pytest.raises(WeightsError, match=r"in \S*mistyped\.pth\. Get"):
        obtain_fid_inception(mistyped if by == "path" else None)


def test_without_weights_and_network_the_error_names_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {f"project {i}": f"http://127.0.0.1:9/{name}" for i, name in enumerate(FILE_NAMES[:2])}
    monkeypatch.setattr(inception_weights, "PUBLISHED", urls)
    with pytest.raises(WeightsError) as error:
        load_fid_inception(None)
    told = str(error.value)
    for part in (*urls.values(), SHA256, "METAREPAIR_WEIGHTS", str(home / ".cache" / "metarepair")):
        assert part in told
    assert told.count("Connection refused") == 2
    assert list((home / ".cache" / "metarepair").iterdir()) == []


def test_missing_weights_are_downloaded_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    file = obtain_fid_inception(None)
    assert file == server.folder / FILE_NAMES[0]
    assert file.read_bytes() == CONTENT
    assert caplog.messages[-1].startswith("FID Inception weights: 3 of 3 MB, ")
    assert obtain_fid_inception(None) == file
    assert server.asked == ["/" + FILE_NAMES[0]]
    with pytest.raises(
        WeightsError, match=f"{FILE_NAMES[0]} is neither a safetensors file nor one of torch.save"
    ):
        load_fid_inception(None)  # the network is loaded from the downloaded file
    assert server.left() == [FILE_NAMES[0]]


@pytest.mark.parametrize("by", ["path", "environment"])
def test_nothing_is_downloaded_if_a_place_was_named(
    by: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(tmp_path) if by == "environment" else "")
    with pytest.raises(WeightsError, match="no FID Inception weights in"):
        obtain_fid_inception(tmp_path if by == "path" else None)
    assert server.asked == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "HTTP Error 404"),
        (CONTENT[: MB + 7], "ended after 1,000,007 of 2,560,000 bytes"),
        (CONTENT[::-1], "other bytes"),
    ],
)
def test_a_download_that_is_missing_truncated_or_wrong_leaves_no_file(
    server: Server, bad: bytes, reason: str
) -> None:
    server.sent = [bad, bad]
    with pytest.raises(WeightsError, match="could not be downloaded") as error:
        download_fid_inception()
    assert str(error.value).count(reason) == 2
    assert server.left() == []
    server.sent[1] = CONTENT  # the second server has the right file
    assert download_fid_inception() == server.folder / FILE_NAMES[1]
    assert server.left() == [FILE_NAMES[1]]


def test_an_interrupted_download_leaves_no_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def interrupt(self: object, count: int) -> None:
        seen.append(server.left())
        raise KeyboardInterrupt

    monkeypatch.setattr(inception_weights.Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        obtain_fid_inception(None)
    assert len(seen[0]) == 1  # the download had started
    assert not set(seen[0]) & set(FILE_NAMES)
    assert server.left() == []


def test_a_partial_file_of_a_killed_download_is_not_used(server: Server) -> None:
    server.folder.mkdir(parents=True)
    (server.folder / ".download-0.tmp").write_bytes(CONTENT[:100])
    with pytest.raises(WeightsError):
        find_fid_inception(None)
    assert obtain_fid_inception(None).read_bytes() == CONTENT


def test_a_download_goes_into_the_given_folder(server: Server, tmp_path: Path) -> None:
    assert download_fid_inception(tmp_path / "shared") == tmp_path / "shared" / FILE_NAMES[0]
    assert not server.folder.exists()
