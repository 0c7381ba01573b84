"""Test VAN against its formulas, its published sizes and names, and the project's requirements for a DNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarepair.engine.inner import FunctionalNet
from metarepair.engine.meta_gradient import Memory, task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import State, flatten, unflatten
from metarepair.features.extractors import build_extractor
from metarepair.features.folding import fold_batch_norms
from metarepair.models.build import DeployedModel, build_model, load_deployed
from metarepair.models.van import VARIANTS, Van, checkpoint_filter_fn
from tasks.datasets import dataset_info

NARROW: Any = {"widths": (4, 4, 6, 8), "depths": (1, 1, 2, 1)}


def uneven(module: nn.Module) -> Any:
    """Return the module in evaluation mode, with random values for tensors that are usually one or near zero."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            low, high = (0.5, 1.5) if "running_var" in name or "weight" in name else (-0.5, 0.5)
            tensor.uniform_(low, high, generator=generator)
    return module.eval()


def narrow(**changes: Any) -> Van:
    torch.manual_seed(1)
    return Van(**{"num_classes": 3} | NARROW | changes)


def images(count: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(
        count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("van_b0", 4.1),
        ("van_b1", 13.9),
        ("van_b2", 26.6),
        ("van_b3", 44.8),
        ("van_b4", 60.3),
        ("van_b5", 90.0),
    ],
)
def test_sizes_are_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def logits_by_formula(state: State, x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """Compute the paper's Fig. 3 and Eq. 3-4 with plain functions, from a state dict with the published names."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = len(weight) if weight.shape[1] == 1 else 1
        return F.conv2d(x, weight, state[f"{name}.bias"], groups=groups, **options)

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    for stage, depth in enumerate(depths, start=1):
        embed = {"stride": 4, "padding": 3} if stage == 1 else {"stride": 2, "padding": 1}
        x = batch_norm(conv(x, f"patch_embed{stage}.proj", **embed), f"patch_embed{stage}.norm")
        for block in (f"block{stage}.{i}" for i in range(depth)):
            shortcut = h = batch_norm(x, f"{block}.norm1")
            h = F.gelu(conv(h, f"{block}.attn.proj_1"))
            gate = conv(h, f"{block}.attn.spatial_gating_unit.conv0", padding=2)
            gate = conv(gate, f"{block}.attn.spatial_gating_unit.conv_spatial", padding=9, dilation=3)
            h = conv(conv(gate, f"{block}.attn.spatial_gating_unit.conv1") * h, f"{block}.attn.proj_2")
            x = x + state[f"{block}.layer_scale_1"][:, None, None] * (h + shortcut)
            h = conv(batch_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
            h = conv(F.gelu(conv(h, f"{block}.mlp.dwconv.dwconv", padding=1)), f"{block}.mlp.fc2")
            x = x + state[f"{block}.layer_scale_2"][:, None, None] * h
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        x = x * state[f"norm{stage}.weight"][:, None, None] + state[f"norm{stage}.bias"][:, None, None]
    return x.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]


def test_logits_are_the_papers_formulas() -> None:
    model = uneven(timm.create_model("van_b0", num_classes=5).double())
    x = images(size=48)
    expected = logits_by_formula(model.state_dict(), x, VARIANTS["van_b0"][1])
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)
    assert expected.std() > 0.1


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes in the authors' file of VAN-B0 (`van_tiny_754.pth.tar`)."""

    def conv(name: str, out: int, into: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (out, into, kernel, kernel)), (f"{name}.bias", (out,)))

    def norm(name: str, width: int, *, batch: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        kinds = ("weight", "bias", *(("running_mean", "running_var") if batch else ()))
        yield from ((f"{name}.{kind}", (width,)) for kind in kinds)
        if batch:
            yield f"{name}.num_batches_tracked", ()

    before = 3
    for i, (width, depth, ratio) in enumerate(
        zip((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4), strict=True)
    ):
        yield from conv(f"patch_embed{i + 1}.proj", width, before, 3 if i else 7)
        yield from norm(f"patch_embed{i + 1}.norm", width)
        for block in (f"block{i + 1}.{j}" for j in range(depth)):
            yield from ((f"{block}.layer_scale_{n}", (width,)) for n in (1, 2))
            yield from (*norm(f"{block}.norm1", width), *norm(f"{block}.norm2", width))
            for name in ("proj_1", "proj_2", "spatial_gating_unit.conv1"):
                yield from conv(f"{block}.attn.{name}", width, width, 1)
            yield from conv(f"{block}.attn.spatial_gating_unit.conv0", width, 1, 5)
            yield from conv(f"{block}.attn.spatial_gating_unit.conv_spatial", width, 1, 7)
            yield from conv(f"{block}.mlp.fc1", ratio * width, width, 1)
            yield from conv(f"{block}.mlp.dwconv.dwconv", ratio * width, 1, 3)
            yield from conv(f"{block}.mlp.fc2", width, ratio * width, 1)
        yield from norm(f"norm{i + 1}", width, batch=False)
        before = width
    yield from (("head.weight", (1000, 256)), ("head.bias", (1000,)))


def published() -> State:
    generator = torch.Generator().manual_seed(2)
    return {
        k: torch.rand(s, generator=generator) if s or "tracked" not in k else torch.tensor(7)
        for k, s in published_shapes()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_checkpoint_loads_by_path(tmp_path: Path, prefix: str) -> None:
    state = published()
    file = tmp_path / "van_tiny_754.pth.tar"
    torch.save(
        {"epoch": 300, "arch": "van_tiny", "state_dict": {prefix + k: v for k, v in state.items()}}, file
    )
    model = timm.create_model("van_b0", checkpoint_path=str(file))
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def openmmlab_key(key: str) -> str:
    """Return the name of one of the authors' tensors in the files that OpenMMLab converted."""
    if key.startswith("head."):
        return key.replace("head.", "head.fc.")
    pairs = {"block": "blocks", ".proj.": ".projection.", ".dwconv.dwconv.": ".dwconv."}
    pairs |= {"conv0": "DW_conv", "conv_spatial": "DW_D_conv"}
    for ours, theirs in pairs.items():
        key = key.replace(ours, theirs)
    return f"backbone.{key}"


def test_openmmlabs_names_are_mapped_to_the_authors() -> None:
    state = published()
    theirs = {openmmlab_key(k): v for k, v in state.items()}
    assert not theirs.keys() & state.keys()
    found = checkpoint_filter_fn({"meta": {}, "state_dict": theirs}, nn.Identity())
    assert found.keys() == state.keys()
    assert all(found[k] is v for k, v in state.items())
    assert checkpoint_filter_fn(state, nn.Identity()) == state


@pytest.mark.parametrize("rename", [str, openmmlab_key])
def test_model_weights_takes_both(tmp_path: Path, rename: Callable[[str], str]) -> None:
    state = published()
    state |= {"head.weight": state["head.weight"][:10], "head.bias": state["head.bias"][:10]}
    file = tmp_path / "van.pth.tar"
    torch.save({"state_dict": {rename(k): v for k, v in state.items()}}, file)
    loaded = load_deployed("van_b0", str(file), dataset_info("cifar10")).module.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_weights_are_never_downloaded() -> None:
    with pytest.raises(ValueError, match=r"van_b2 has no weights in timm's hub.*checkpoint_path"):
        timm.create_model("van_b2", pretrained=True)


def test_the_head_has_timms_interface() -> None:
    model = uneven(timm.create_model("van_b0", num_classes=7, **NARROW).double())
    x = images()
    maps = model.forward_features(x)
    pooled = model.forward_head(maps, pre_logits=True)
    assert maps.shape == (2, 8, 1, 1)
    assert pooled.shape == (2, model.head_hidden_size) == (2, model.num_features)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    model.reset_classifier(4)
    assert model.num_classes == 4
    assert model.double()(x).shape == (2, 4)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.default_cfg["mean"] == model.default_cfg["std"] == (0.5, 0.5, 0.5)


def test_features_only_gives_the_maps_of_the_stages() -> None:
    whole = timm.create_model("van_b0", features_only=True, **NARROW).double().eval()
    assert whole.feature_info.channels() == [4, 4, 6, 8]
    assert whole.feature_info.reduction() == [4, 8, 16, 32]
    maps = whole(images(size=64))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (4, 8, 8), (6, 4, 4), (8, 2, 2)]
    middle = timm.create_model("van_b0", features_only=True, out_indices=(1, 2), **NARROW).double().eval()
    middle.load_state_dict(whole.state_dict())
    for found, expected in zip(middle(images(size=64)), maps[1:3], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(whole.model.forward_intermediates(images(size=64))[0], maps[-1])


def test_the_layout_in_memory_changes_nothing() -> None:
    model, x = uneven(narrow().double()), images()
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    maps = model.forward_features(x.to(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.forward_head(maps), expected, rtol=1e-12, atol=1e-12)


def test_batch_norms_of_the_patches_fold() -> None:
    model, x = uneven(narrow().double()), images()
    expected = model(x)
    assert fold_batch_norms(model) == 4
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


def test_deployed_features_are_the_input_of_the_head() -> None:
    model = uneven(build_model("van_b0", 10))
    deployed = DeployedModel(
        name="van_b0", module=model, num_classes=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), input_size=48
    )
    extractor = build_extractor(
        "deployed",
        weights=None,
        deployed=model,
        mean=deployed.mean,
        std=deployed.std,
        device=torch.device("cpu"),
        input_size=48,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        x = deployed.normalise(pixels)
        expected = model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    assert x.shape == (3, 3, 48, 48)
    assert extractor.dim == 256
    np.testing.assert_allclose(extractor(pixels), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.1


def batch(seed: int, size: int = 4, masks: int = 0) -> Batch:
    return Batch(images_BCHW=images(size, seed=seed), labels_B=torch.arange(size) % 3, seed=masks)


def test_drop_path_depends_only_on_the_key_of_the_task() -> None:
    model = uneven(narrow(drop_path_rate=0.9).double())
    net = FunctionalNet(model, InnerRule(steps=1, rate=0.1, batch_norm="frozen", dropout=True))

    def loss(masks: int) -> float:
        with net.support(net.parameters(), net.buffers(), batch(1, masks=masks)) as found:
            return float(found.loss)

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    whole = F.cross_entropy(model(batch(1).images_BCHW), batch(1).labels_B).detach()
    with net.query(net.parameters(), net.buffers(), batch(1)) as found:
        torch.testing.assert_close(found.loss, whole)
    assert loss(1) != float(whole)


def directional_error(model: nn.Module, memory: Memory, *, count: int) -> float:
    """Return the relative distance of the meta-gradient from central differences along random directions."""
    net = FunctionalNet(model, InnerRule(steps=2, rate=0.1, batch_norm="batch"))
    task = TaskBatch(support=batch(1), query=batch(2))
    start = net.parameters()

    def loss(vector_P: Tensor) -> float:
        return task_gradient(net, unflatten(vector_P, start), net.buffers(), task, order="first").loss

    middle, step = flatten(start), 2e-6  # the error is quadratic; 1 × 1 maps curve strongly
    along = torch.randn(count, len(middle), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    along /= along.norm(dim=1, keepdim=True)
    slopes = [(loss(middle + step * d) - loss(middle - step * d)) / (2 * step) for d in along]
    truth = torch.tensor(slopes, dtype=torch.float64)
    found = along @ flatten(task_gradient(net, start, net.buffers(), task, memory=memory).gradient)
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("memory", ["graph", "recompute"])
def test_the_meta_gradient_agrees_with_finite_differences(memory: Memory) -> None:
    assert directional_error(uneven(narrow().double()), memory, count=2) < 1e-6


@pytest.mark.slow
def test_the_meta_gradient_of_van_b0_agrees_with_finite_differences() -> None:
    assert (
        directional_error(uneven(timm.create_model("van_b0", num_classes=3).double()), "graph", count=3)
        < 1e-6
    )
