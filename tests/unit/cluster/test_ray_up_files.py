"""Check cluster/aws.yaml and cluster/gcp.yaml with the schema and the validator of the ray package.

`ray up` has no dry run. The ray package has what it checks before it reaches a cloud: a JSON schema, which is read
here as data, and a private validator. One test calls the validator all the same: a cluster that does not start is worse
than a test that a new Ray may break. The public interface to it is the command line. The AWS file goes through it,
against a mock server on loopback: `ray down` prepares and validates a file as `ray up` does, and waits for no machine.
GCP's library is not a dependency of ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[3]
CLOUDS = ("aws", "gcp")


def shipped(name: str) -> str:
    """The text of a data file in ray/autoscaler, read without importing Ray."""
    spec = find_spec("ray")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    return (Path(folder) / "autoscaler" / name).read_text(encoding="utf-8")


SCHEMA = Draft7Validator(json.loads(shipped("ray-schema.json")))


def load(cloud: str) -> dict[str, Any]:
    """The document of the file, with a separate copy for each use of an anchor."""
    found = yaml.safe_load((ROOT / "cluster" / f"{cloud}.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return dict(json.loads(json.dumps(found)))


def refusals(cloud: str, document: dict[str, Any]) -> list[str]:
    """The schema's errors on a document, with the provider's defaults filled in as `ray up` does."""
    defaults = yaml.safe_load(shipped(f"{cloud}/defaults.yaml"))
    return [error.message for error in SCHEMA.iter_errors(defaults | document)]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_schema_of_ray_accepts_the_file(cloud: str) -> None:
    assert refusals(cloud, load(cloud)) == []


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_schema_of_ray_refuses_a_wrong_entry(cloud: str) -> None:
    changes: list[dict[str, Any]] = [
        {"max_worker": 3},
        {"max_workers": "12"},
        {"setup_commands": "pip install"},
        {"provider": {}},
        {"auth": {"ssh_usr": "ubuntu"}},
        {"available_node_types": {"head": {"resources": {}}}},
        {"available_node_types": {"head": {"resources": {"CPU": -1}, "node_config": {}}}},
        {"available_node_types": {"head": {"resources": {}, "node_config": {}, "max_worker": 1}}},
    ]
    for change in changes:
        assert refusals(cloud, load(cloud) | change), change


@pytest.mark.parametrize("cloud", CLOUDS)
def test_file_has_a_head_and_cpu_and_gpu_workers_that_scale_from_zero(cloud: str) -> None:
    document = load(cloud)
    types = document["available_node_types"]
    assert document["head_node_type"] == "head"
    assert set(types) == {"head", "cpu", "gpu"}
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [types["cpu"], types["gpu"]]
    assert all(0 == kind["min_workers"] < kind["max_workers"] for kind in workers)
    assert document["max_workers"] == sum(kind["max_workers"] for kind in workers)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nodes_get_the_files_that_commands_use_and_every_ray_requires_the_token(cloud: str) -> None:
    document = load(cloud)
    mounts = document["file_mounts"]
    assert mounts["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert all(local.startswith("~") or (ROOT / local).is_file() for local in mounts.values())
    setup = " ".join(document["setup_commands"] + document["head_setup_commands"])
    made = {"metarepair/requirements.txt"}
    for named in re.findall(r"~/((?:metarepair|\.ray)/\S+)", setup):
        assert f"/home/ubuntu/{named}" in mounts or named in made
    starts = [
        c for key in ("head", "worker") for c in document[f"{key}_start_ray_commands"] if "ray start" in c
    ]
    assert len(starts) == 2
    assert all(re.search(r"(^|; )RAY_AUTH_MODE=token ray start ", command) for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in json.dumps(document)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_two_clouds_differ_only_in_their_machines(cloud: str) -> None:
    both = [load(name) for name in CLOUDS]
    same = (
        "file_mounts",
        "setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "max_workers",
    )
    for key in same:
        assert both[0][key] == both[1][key]
    assert not re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE KEY|aws_secret", json.dumps(load(cloud)))


@pytest.mark.slow
def test_the_validator_of_ray_accepts_the_files_and_refuses_more_than_the_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    for cloud in CLOUDS:
        validate_config(prepare_config(load(cloud)))
        few = load(cloud) | {"max_workers": 1}
        few["available_node_types"]["cpu"]["min_workers"] = 2
        assert refusals(cloud, few) == []
        with pytest.raises(ValueError, match="max_workers"):
            validate_config(prepare_config(few))


@pytest.mark.slow
def test_ray_accepts_the_aws_file_and_opens_only_ssh(tmp_path: Path) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    (tmp_path / "tmp").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))} | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "HOME": str(tmp_path),  # for the key pair that Ray creates
        "TMPDIR": str(tmp_path / "tmp"),  # for Ray's cache
    }
    readme = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?m)^    ray (down .*)$", readme)
    ray = str(Path(sys.executable).parent / "ray")
    try:
        done = subprocess.run(
            [ray, *command.split()], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, done.stdout
        assert "No nodes remaining" in done.stdout
        ec2 = boto3.client(
            "ec2",
            region_name=load("aws")["provider"]["region"],
            endpoint_url=endpoint,
            aws_access_key_id="none",
            aws_secret_access_key="none",
        )
        groups = ec2.describe_security_groups()["SecurityGroups"]
        (group,) = [g for g in groups if g["GroupName"] == "ray-autoscaler-metarepair"]
    finally:
        server.stop()
    outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]
    inside = [rule for rule in group["IpPermissions"] if not rule["IpRanges"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
