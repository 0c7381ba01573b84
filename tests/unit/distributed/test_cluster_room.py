"""Check that a request beyond the resources of the cluster is refused at once, in one paragraph."""

from __future__ import annotations

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from distributed.on_ray import cluster
from distributed.on_ray.cluster import (
    _check_listening,
    _fitting,
    _lacking,
    _log_options,
    connected,
    worker_resources,
)
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from tasks.errors import ConfigError, UserError


def asked(**settings: Any) -> Config:
    return parse_config({"name": "unit", "mining": {"experiences": ["fog"]}, **settings})


@pytest.mark.parametrize(
    ("settings", "nodes", "words"),
    [
        (
            {"workers": 4},
            [{"CPU": 2}],
            "workers=4 needs 4 CPUs, the cluster has 2 CPUs. Set workers=2 or less",
        ),
        (
            {"workers": 4, "device": "cuda"},
            [{"CPU": 16, "GPU": 1}],
            "needs 4 CPUs and 4 GPUs, the cluster has 16 CPUs and 1 GPUs. Set workers=1 or less",
        ),
        (
            {"workers": 1, "device": "cuda"},
            [{"CPU": 2}],
            "1 GPUs, the cluster has 2 CPUs and 0 GPUs. Set workers=0",
        ),
        (
            {"workers": 2, "ray": {"cpus_per_worker": 3.0}},
            [{"CPU": 4}, {"CPU": 4}, {"CPU": 1}],
            None,  # fits: one worker on each of the large nodes
        ),
        (
            {"workers": 3, "ray": {"cpus_per_worker": 3.0}},
            [{"CPU": 5}, {"CPU": 5}],
            "but only 2 workers fit on its 2 nodes",
        ),
        ({"workers": 3, "ray": {"min_workers": 1}}, [{"CPU": 1}], None),
        ({"workers": 2, "device": "cuda", "ray": {"gpus_per_worker": 0.5}}, [{"CPU": 2, "GPU": 1}], None),
        ({"workers": 4, "ray": {"cpus_per_worker": 0.5}}, [{"CPU": 2}], None),
        ({"workers": 10, "ray": {"cpus_per_worker": 0.1}}, [{"CPU": 1}], None),
        ({"workers": 1}, [], "the cluster has 0 CPUs"),
    ],
)
def test_workers_that_do_not_fit_are_reported_with_the_resources(
    settings: dict[str, Any], nodes: list[dict[str, float]], words: str | None
) -> None:
    said = _lacking(asked(**settings), nodes)
    if words is None:
        assert said is None
    else:
        assert said is not None
        assert words in said
        assert "ray.wait_s" in said


def test_a_worker_needs_all_its_resources_on_one_node() -> None:
    worker = worker_resources(asked(workers=1, ray={"cpus_per_worker": 2.0}))
    assert _fitting(worker, [{"CPU": 3}, {"CPU": 5}, {"GPU": 8}]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 2, "ray": {"min_workers": 3}}, "ray.min_workers=3 is more than workers=2"),
        ({"ray": {"min_workers": 1}}, "more than workers=0"),
        ({"ray": {"gpus_per_worker": 0}}, "ray.gpus_per_worker"),
        ({"ray": {"cpus_per_worker": "one"}}, "ray.cpus_per_worker"),
        ({"ray": {"max_failures": -2}}, "ray.max_failures"),
        ({"ray": {"wait_s": -1}}, "ray.wait_s"),
        ({"ray": {"timeout_s": 0}}, "ray.timeout_s"),
        ({"ray": {"workers": 2}}, "no setting 'ray.workers'"),
        ({"ray": {"max_failure": 2}}, "did you mean 'ray.max_failures'"),
        ({"train": {"kept_checkpoints": 0}}, "train.kept_checkpoints"),
    ],
)
def test_invalid_settings_of_ray_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(**settings)
    assert message in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_an_address_without_a_listener_is_detected_at_once(address: str) -> None:
    with pytest.raises(OSError, match=r"refused|assign requested address|unreachable"):
        _check_listening(address)


def test_what_accepts_and_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="does not answer as Ray does"):
            _check_listening(address)
        with pytest.raises(UserError, match=rf"Cannot join the Ray cluster at {address} .*does not answer"):
            cluster._join(address, {})


def answers(address: str) -> bool:
    try:
        _check_listening(address)
    except TimeoutError:
        return False
    return True


def test_a_server_that_speaks_the_protocol_of_ray_is_told_from_a_silent_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert answers(f"127.0.0.1:{port}")
        assert answers(f"ray://127.0.0.1:{port}")
    finally:
        server.stop(grace=None)
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not answers(f"ray://127.0.0.1:{silent.getsockname()[1]}")


def test_only_an_address_with_host_and_port_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    knocked: list[tuple[str, int]] = []

    def connection(address: tuple[str, int], **options: Any) -> socket.socket:
        knocked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connection)
    monkeypatch.setenv("RAY_USE_TLS", "1")  # nothing is asked then
    _check_listening("auto")
    _check_listening("local")
    assert knocked == []
    _check_listening("ray://head:10001")
    assert knocked == [("head", 10001)]


def test_an_address_without_workers_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="workers=0 runs without Ray"), connected(asked(), "10.0.0.1:6379"):
        pass
    with connected(asked(), None):
        pass


def test_lines_of_ray_are_shown_if_our_debug_lines_are(caplog: pytest.LogCaptureFixture) -> None:
    assert _log_options() == {"logging_level": "warning", "log_to_driver": False}
    caplog.set_level(logging.DEBUG, "distributed")
    assert _log_options() == {"logging_level": "info", "log_to_driver": True}
