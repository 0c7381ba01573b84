"""A real local Ray starts although its port is taken at first, and next to another in a home without a token."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from waiting import output_at_end

pytestmark = pytest.mark.distributed
# Separate programs, because this process may be connected to the session's cluster.
START = """
import sys
from distributed.on_ray.local_ray import local_ray

def main(look=lambda: None):
    with local_ray({}):
        import ray  # only now, as in a command

        ray.get(ray.remote(lambda: 1).remote())
        print("started", flush=True)
        look()
"""
TAKEN = """
import logging, os, socket
from distributed.on_ray import local_ray as starting

starting.WAIT_S = (0.0, 0.1)
taken = socket.socket()
taken.bind(("0.0.0.0", 0))
taken.listen()
os.environ["RAY_GCS_SERVER_PORT"] = str(taken.getsockname()[1])

class Freed(logging.Handler):
    def emit(self, record):
        print(record.getMessage())
        taken.close()

logging.getLogger("distributed").addHandler(Freed())
main()
"""


# Prints every address on which a process of this Ray listens, and how the agent answers who asks it to run a command.
SEEN_FROM_OUTSIDE = """
import json, os, time, urllib.error, urllib.request
from pathlib import Path

def answer(port, token):
    body = json.dumps({"entrypoint": "true"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + token} if token else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/job_agent/jobs/", body, headers)
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code

def look():
    import psutil
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

    def listening(process):
        return [c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"]

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    token = os.environ["RAY_AUTH_TOKEN"]
    print("on a command line", any(token in " ".join(p.cmdline()) for p in processes))
    print("in a file", any(token.encode() in path.read_bytes() for path in Path(os.environ["RAY_TMPDIR"]).rglob("*")
                           if path.is_file()))
    agent = next(p for p in processes if "DashboardAgent" in p.name())
    stolen = (Path.home() / ".ray" / "auth_token").read_text()
    port = DEFAULT_DASHBOARD_AGENT_LISTEN_PORT  # of the job server
    for attempt in range(60):  # the agent opens it some time after Ray has started
        holders = {c.pid for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.laddr.port == port}
        if holders:
            break
        time.sleep(1)
    for process in processes:
        for address in listening(process):
            print("listens", address.ip)
    if holders == {agent.pid}:
        print("answers", *(answer(port, given) for given in (None, stolen, token)))
    else:
        print("held by another Ray", bool(holders))  # then the agent of this one has no job server

main(look)
"""


AFTERWARDS = """
from distributed.on_ray.cluster import connected
from metarepair.config.load import parse_config

config = parse_config({"name": "x", "workers": 1, "mining": {"experiences": ["fog"]}})
with connected(config, None):
    import ray  # only now, as in a command

    assert ray.get(ray.put(1)) == 1
try:
    ray.put(1)
except Exception as error:
    print(type(error).__name__, ray.is_initialized())
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user with an empty home; Ray gets only a short temporary folder and a timeout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield kept | {
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAY_TMPDIR": folder,
            "RAY_py_gcs_connect_timeout_s": "2",  # for each attempt at a port that does not answer
        }


def started(code: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START + code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ray_starts_once_its_occupied_port_is_free(environment: dict[str, str]) -> None:
    said = output_at_end(started(TAKEN, environment))
    first, last = said.strip().splitlines()
    assert first.startswith("Ray did not start (Failed to start GCS")
    assert last == "started"


@pytest.mark.slow
def test_two_concurrent_starts_in_a_home_without_a_token_write_none(environment: dict[str, str]) -> None:
    both = [started("main()", environment) for _ in range(2)]
    assert [output_at_end(process).splitlines()[-1:] for process in both] == [["started"]] * 2
    assert not (Path(environment["HOME"]) / ".ray").exists()


@pytest.mark.slow
def test_a_call_to_ray_after_its_shutdown_starts_no_other_ray(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", AFTERWARDS], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert output_at_end(process).splitlines()[-1:] == ["RaySystemError False"]


@pytest.mark.slow
def test_other_users_cannot_reach_a_ray_of_our_own(environment: dict[str, str]) -> None:
    stolen = Path(environment["HOME"]) / ".ray" / "auth_token"
    stolen.parent.mkdir()
    stolen.write_text("0" * 64, encoding="utf-8")
    said = output_at_end(started(SEEN_FROM_OUTSIDE, environment)).splitlines()
    listens = {line.removeprefix("listens ") for line in said if line.startswith("listens ")}
    assert listens
    assert listens <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert "on a command line False" in said
    assert "in a file False" in said
    assert "answers 401 403 200" in said or "held by another Ray True" in said, "\n".join(said)
    assert not list(Path(environment["RAY_TMPDIR"]).iterdir())


@pytest.mark.slow
def test_ray_starts_in_a_home_that_cannot_be_written(environment: dict[str, str]) -> None:
    said = output_at_end(started("main()", environment | {"HOME": "/proc/absent"}))
    assert said.splitlines()[-1:] == ["started"]
