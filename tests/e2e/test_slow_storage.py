"""An object store that throttles and answers late in the middle of a run changes none of its results."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow.fs import S3FileSystem
from werkzeug.serving import make_server

from equal_runs import comparable
from metarepair.cli import main
from tasks.storage.paths import place
from tasks.storage.remote import CACHE_VARIABLE

THROTTLED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Faulty:
    """A WSGI application that fails every seventh request, is late with every eleventh, and counts both."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application, self.number = application, itertools.count(1)
        self.works, self.throttled, self.late = True, 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = next(self.number)
        if number % 11 == 0:
            self.late += 1
            time.sleep(0.3)
        if number % 7 == 0 or not self.works:
            self.throttled += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [THROTTLED]
        return self.application(environ, start_response)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Faulty]:
    """An S3 server with faults, and the environment to reach it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    options = {"access_key": "none", "secret_key": "none", "region": "us-east-1"}
    endpoint = f"http://127.0.0.1:{server.server_port}"
    S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True, **options).create_dir("slow")
    yield application
    server.shutdown()


@pytest.mark.slow
@pytest.mark.soak
def test_a_store_that_throttles_and_answers_late_changes_no_result(faulty: Faulty, tiny_run: Path) -> None:
    config = ["--config", str(tiny_run / "tiny.yaml"), "--storage", "s3://slow/runs"]
    assert main(["run", *config]) == 0
    assert faulty.throttled > 10
    assert faulty.late > 10
    there, here = comparable(place("s3://slow/runs/tiny")), comparable(tiny_run / "runs" / "tiny")
    assert there.keys() == here.keys()
    assert [name for name in here if there[name] != here[name]] == []


@pytest.mark.slow
def test_a_store_that_throttles_without_end_is_given_up_in_one_paragraph(
    faulty: Faulty, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    faulty.works = False
    assert main(["status", "s3://slow/runs/tiny"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "s3://slow" in printed
    assert "then run the same command again" in printed
