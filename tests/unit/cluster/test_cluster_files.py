"""Check the files of cluster/ for what Kubernetes and Docker would refuse, without either of them.

The fields of KubeRay are those of one release; tests/fixtures/kuberay_v1.7.0.yaml lists them with their sources.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from metarepair import cli
from metarepair.config.load import load_config

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
KUBERAY = Draft202012Validator(
    yaml.safe_load((ROOT / "tests/fixtures/kuberay_v1.7.0.yaml").read_text("utf-8"))
)
KUBERNETES = ("raycluster.yaml", "rayjob.yaml", "volume.yaml")
# Secrets and volume claims that cluster/README.md or a file of cluster/ creates.
MADE = {"metarepair-token", "metarepair-s3", "metarepair-shared"}


def load(name: str) -> dict[str, Any]:
    """The document of a file of cluster/, with a separate copy for each use of an anchor."""
    found = json.loads(json.dumps(yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))))
    assert isinstance(found, dict)
    return found


def changed(name: str, path: str, value: Any) -> dict[str, Any]:
    """`load(name)` with `value` at the dotted `path`, such as `a.b.0.c`; `...` removes the entry."""
    document = load(name)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place: Any = document
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def pods(document: Any) -> Iterator[dict[str, Any]]:
    """Yield the spec of each pod in a document."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for part in document.values():
            yield from pods(part)
    elif isinstance(document, list):
        for part in document:
            yield from pods(part)


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_files_conform_to_the_schema_of_kuberay(name: str) -> None:
    assert [error.message for error in KUBERAY.iter_errors(load(name))] == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("raycluster.yaml", "spec.headGroupSpecs", {}),  # an unknown field, at every level
        ("raycluster.yaml", "spec.headGroupSpec.replicas", 1),
        ("raycluster.yaml", "spec.headGroupSpec.template.spec.restartpolicy", "Never"),
        ("raycluster.yaml", "spec.workerGroupSpecs.1.template.spec.containers.0.command_", []),
        ("raycluster.yaml", "spec.headGroupSpec.template.spec.containers.0.securityContext.user", 1000),
        ("raycluster.yaml", "spec.rayVersion", 2.6),  # a wrong type
        ("raycluster.yaml", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("raycluster.yaml", "spec.workerGroupSpecs.0.maxReplicas", "8"),
        ("raycluster.yaml", "spec.authOptions.mode", "tokens"),
        ("raycluster.yaml", "spec.autoscalerOptions.resources.limits.memory", "1 GB"),
        ("raycluster.yaml", "spec.headGroupSpec", ...),  # a required field that is missing
        ("raycluster.yaml", "spec.workerGroupSpecs.0.groupName", ...),
        ("raycluster.yaml", "spec.workerGroupSpecs.1.template.spec.containers", ...),
        (
            "raycluster.yaml",
            "spec.headGroupSpec.template.spec.volumes.0.persistentVolumeClaim.claimName",
            ...,
        ),
        ("raycluster.yaml", "metadata.name", ...),
        ("raycluster.yaml", "apiVersion", "ray.io/v1alpha1"),
        ("rayjob.yaml", "spec.entryPoint", "python"),
        ("rayjob.yaml", "spec.backoffLimit", "2"),
        ("rayjob.yaml", "spec.submissionMode", "SshMode"),
        ("rayjob.yaml", "spec.rayClusterSpec.headGroupSpec.template", ...),
        ("volume.yaml", "spec.resources.requests.storage", "200 GB"),
        ("volume.yaml", "spec.accessModes", ["ReadWriteEverywhere"]),
    ],
)
def test_a_file_that_kuberay_would_refuse_is_detected(name: str, path: str, value: Any) -> None:
    assert list(KUBERAY.iter_errors(changed(name, path, value)))


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_refer_to_existing_volumes_and_secrets_and_have_no_privilege(name: str) -> None:
    found = list(pods(load(name)))
    assert len(found) == 3
    user = [text for kind, text in instructions() if kind == "USER"][-1]
    for pod in found:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {v["persistentVolumeClaim"]["claimName"] for v in volumes.values()} <= MADE
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert str(pod["securityContext"]["runAsUser"]) == user
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert {source["secretRef"]["name"] for source in container["envFrom"]} <= MADE
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            # Memory that is not requested may be taken by another pod when it is needed.
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            written = [
                v["name"] for v in container["env"] if re.search("TOKEN|SECRET|KEY|PASSWORD", v["name"])
            ]
            assert written == []


def test_kubernetes_cluster_autoscales_requires_a_token_and_is_not_exposed() -> None:
    spec = load("raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "metarepair-token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["enableIngress"] is False
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    asks = {n: next(pods(g))["containers"][0]["resources"]["limits"] for n, g in groups.items()}
    assert "nvidia.com/gpu" in asks["gpu"]
    assert "nvidia.com/gpu" not in asks["cpu"]
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_rayjob_uses_the_cluster_of_raycluster_and_runs_metarepair(monkeypatch: pytest.MonkeyPatch) -> None:
    job = load("rayjob.yaml")["spec"]
    assert job["rayClusterSpec"] == load("raycluster.yaml")["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == load("runtime_env.yaml")["env_vars"]
    python, flag, module, *arguments = shlex.split(job["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "metarepair")
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "_run", lambda namespace: given.append(namespace) or 0)
    assert cli.main(arguments) == 0
    assert given[0].verb == "run"
    config = load_config(ROOT / given[0].config, given[0].set, storage_path=given[0].storage)
    assert config.workers > 0
    assert config.ray.wait_s > 0  # the nodes have yet to start
    (mount,) = next(pods(job))["containers"][0]["volumeMounts"]
    assert given[0].storage.startswith(mount["mountPath"])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the Dockerfile: its base, and its instructions in order."""

    base: str
    steps: list[tuple[str, str]]


def instructions() -> list[tuple[str, str]]:
    """Names and arguments of the Dockerfile's instructions, continued lines joined."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(kind, rest) for kind, rest in (line.split(" ", 1) for line in joined.splitlines())]


def stages() -> dict[str, Stage]:
    """The stages by name; the last one is `image`."""
    found: dict[str, Stage] = {}
    for kind, rest in instructions():
        if kind == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name or "image"] = Stage(base=base, steps=[])
        elif found:
            current.steps.append((kind, rest))
    return found


def copied(stage: Stage) -> list[str]:
    """The paths that a stage copies from the checkout."""
    sources = [rest.split()[:-1] for kind, rest in stage.steps if kind == "COPY" and "--from" not in rest]
    return [source for group in sources for source in group]


def test_image_has_a_stage_for_each_device_and_does_not_run_as_root() -> None:
    found = stages()
    assert instructions()[0] == ("ARG", "DEVICE=cuda")
    assert found["image"].base == "torch-${DEVICE}"
    assert found["torch-cpu"].base == found["torch-cuda"].base == "base"
    assert re.fullmatch(r"python:3\.1[12]-slim", found["base"].base)
    assert [rest for kind, rest in found["image"].steps if kind == "USER"] == ["1000"]
    assert [kind for kind, _ in found["image"].steps][-1] == "CMD"
    assert "ENTRYPOINT" not in {kind for kind, _ in instructions()}


def test_image_keeps_its_dependencies_when_the_code_changes() -> None:
    found = stages()
    code = {"tasks", "metarepair", "distributed"}
    steps = found["image"].steps
    install = next(i for i, (_, rest) in enumerate(steps) if "--requirement requirements.txt" in rest)
    before = copied(Stage(base="", steps=steps[:install]))
    assert set(before) == {"pyproject.toml", "cluster/dependencies.py"}
    assert ("COPY", "--from=wheel /wheels /wheels") in steps[install:]
    assert code <= set(copied(found["wheel"]))
    assert "--constraint constraints.txt" in steps[install][1]
    assert copied(found["base"]) == ["constraints.txt"]


def test_build_context_has_the_copied_paths_and_no_others() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_in == {source for stage in stages().values() for source in copied(stage)}
    assert all((ROOT / path).exists() for path in let_in)
    held_back = [rule for rule in rules[1:] if not rule.startswith("!")]
    assert any(fnmatch.fnmatch("tasks/__pycache__", rule.replace("**", "*")) for rule in held_back)


def test_listed_dependencies_are_those_of_the_project_and_the_named_extras() -> None:
    def listed(*extras: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "cluster/dependencies.py", "pyproject.toml", *extras]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(done.stderr)  # shown if the test fails
        return done

    plain, more = listed().stdout.splitlines(), listed("onnx").stdout.splitlines()
    assert any(line.startswith("ray[") for line in plain)
    assert more[: len(plain)] == plain
    assert any(line.startswith("onnxruntime") for line in more[len(plain) :])
    wrong = listed("onnx", "gpu")
    assert wrong.returncode != 0
    assert "no extra gpu" in wrong.stderr
    assert "efficientnet-lite0" in wrong.stderr
