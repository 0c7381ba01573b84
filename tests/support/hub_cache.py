"""Make folders in the layout of the Hugging Face Hub's cache, with small models in them, and use them offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models import save_for_hf

import metarepair.models  # noqa: F401  registers resnet8_cifar
from metarepair.weights import SHIPPED
from tasks.datasets import CIFAR10_CLASSES

COMMIT = "5d1f0a7c3b9e48266f7a1c0d2e3b4a59687f8091"
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "input_size": (3, 32, 32)}


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Use `cache` as the hub's cache of this process, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def put(
    cache: Path, repository: str, files: Mapping[str, bytes], *, commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Put a repository into the cache as huggingface_hub does, and return the folder of the snapshot."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit, encoding="utf-8")
    for name, content in files.items():
        large = name.endswith((".safetensors", ".bin"))  # such files are named by SHA-256, others as in git
        head = b"" if large else f"blob {len(content)}\0".encode()
        blob = root / "blobs" / (hashlib.sha256 if large else hashlib.sha1)(head + content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def timm_files(folder: Path, name: str = "test_resnet", **config: Any) -> dict[str, bytes]:
    """The files that timm itself pushes to the hub, of a small model with three classes. config: of config.json."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=3)
    save_for_hf(module, folder, {"label_names": ["cat", "dog", "fox"], **config}, safe_serialization=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cifar_files(**config: Any) -> dict[str, bytes]:
    """The files of the shipped ResNet-8 of CIFAR-10 as a model of timm. config: changes of config.json."""
    stated = {
        "architecture": "resnet8_cifar",
        "num_classes": 10,
        "label_names": CIFAR10_CLASSES,
        "pretrained_cfg": CIFAR,
    }
    weights = (SHIPPED / "resnet8_cifar10.safetensors").read_bytes()
    return {"config.json": json.dumps(stated | config).encode(), "model.safetensors": weights}


def transformers_files(folder: Path, kind: str = "vit", **processor: Any) -> dict[str, bytes]:
    """The files of a tiny classifier of transformers with three classes. processor: settings of its processor."""
    import transformers

    shape = {
        "vit": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }[kind]
    layers = {"num_hidden_layers": 2, "image_size": 32} if kind == "vit" else {}
    names = {"id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}
    config = transformers.AutoConfig.for_model(kind, **shape, **layers, **names)
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    prepared = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    transformers.ViTImageProcessor(**prepared | processor).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
