"""Provide an S3-compatible server on loopback, and local and S3 storage roots for the same tests."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import S3FileSystem

from tasks.storage.paths import Place, place
from tasks.storage.remote import CACHE_VARIABLE

BUCKET = "metarepair-tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the folders whose files take longest first, each in random order: short files fill the gaps at the end."""
    folders = ("tests/distributed/", "tests/e2e/", "tests/")
    items.sort(key=lambda item: [item.nodeid.startswith(folder) for folder in folders].index(True))


@pytest.fixture
def watched(request: pytest.FixtureRequest, record_property: Any) -> Iterator[None]:
    """Fail the test if it takes over 60 s or 2 GiB, and record what it took."""
    from _pytest.faulthandler import (
        fault_handler_stderr_fd_key,  # standard error that pytest does not capture
    )

    from watchdog import PROPERTY, Use
    from watchdog import watched as within_limits

    use = Use()
    try:
        with within_limits(stderr=request.config.stash.get(fault_handler_stderr_fd_key, 2)) as use:
            yield
    finally:
        record_property(PROPERTY, (use.seconds, use.grown_bytes))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the watched tests took."""
    from watchdog import summary

    found = [report for outcome in ("", "failed", "error") for report in terminalreporter.getreports(outcome)]
    if lines := summary([report for report in found if hasattr(report, "user_properties")]):
        terminalreporter.section("watched tests")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server for this process only, with an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    system = S3FileSystem(
        endpoint_override=endpoint,
        access_key="none",
        secret_key="none",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    system.create_dir(BUCKET)
    yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A separate storage path in the bucket for each test, with the environment variables to reach it."""
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(variable, s3_endpoint)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder, once local and once on the object store: tests must pass on both."""
    if request.param == "local":
        (tmp_path / "storage").mkdir()
        return tmp_path / "storage"
    found: str = request.getfixturevalue("s3")
    return place(found)
