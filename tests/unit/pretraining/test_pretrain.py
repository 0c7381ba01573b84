"""Test that pretraining uses the DNN as deployed, and gives the same result however it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crew import Crew, Rank, parameters, trained
from metarepair.config.load import parse_config
from metarepair.config.pretraining import PretrainConfig
from metarepair.config.run import Config
from metarepair.models.build import DeployedModel, build_model
from metarepair.pretraining import checks as pretrain_checks
from metarepair.pretraining.batches import BatchSource
from metarepair.pretraining.pretrain import Epoch, Pretrainer, on_clean_images, rate_factor
from metarepair.pretraining.state import load_checkpoint, save_checkpoint
from metarepair.runs.context import LocalContext
from metarepair.stages.pretrain import pretrain_stage, read_epochs
from tasks.datasets import ArrayDataset, DataSource, load_dataset
from tasks.errors import ConfigError, DivergedError
from tasks.storage.manifest import read_manifest
from tasks.storage.paths import place

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "randaugment": 9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "optimizer": "adamw",
    "rate": 0.01,
}


def config(folder: Path, **model: Any) -> Config:
    return parse_config(
        {
            "name": "a",
            "storage_path": str(folder),
            "device": "cpu",
            "data": {"max_train_images": 60},
            "model": model,
            "mining": {"experiences": ["snow"]},
            "pretrain": {"epochs": 1, "batch_size": 20},
        }
    )


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return load_dataset(DataSource(name="cifar10_sample"), "train").head(60)


def pretrainer(data: ArrayDataset, context: Any = None, *, classes: int = 10, **settings: Any) -> Pretrainer:
    """Return a trainer of a small DNN without batch norm: two epochs of two steps, with 24 of 54 images each."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 8, 3, 2), nn.GELU(), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Dropout(settings.pop("dropout", 0.0)), nn.Linear(72, classes))
    deployed = DeployedModel(name="a", module=module, num_classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3)
    given = {"epochs": 2, "batch_size": 24, "validation_fraction": 0.1, "ema_decay": 0.5} | settings
    context = context or LocalContext(folder=place("unused"), device=CPU)
    return on_clean_images(deployed, data, PretrainConfig(**given), context, seed=3)


def test_training_uses_the_image_size_of_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    normalise = DeployedModel.normalise

    def noting(self: DeployedModel, images: Any) -> Any:
        x = normalise(self, images)
        seen.add(x.shape[-1])
        return x

    monkeypatch.setattr(DeployedModel, "normalise", noting)
    pretrain_stage(config(tmp_path, input_size=16), restart=False)
    assert seen == {16}
    manifest = read_manifest(tmp_path / "a" / "deployed")
    assert manifest is not None
    others = {"stem": "imagenet", "normalisation": "dataset", "mean": None, "std": None}
    assert manifest.config["preparation"] == {"input_size": 16, **others}


def test_a_stem_that_the_dnn_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.stem=cifar is not known for resnet8_cifar"):
        pretrain_stage(config(tmp_path, stem="cifar"), restart=False)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("mix", [{"mixup": 0.2}, {"cutmix": 1.0, "randaugment": 9}, {"accumulation": 3}])
def test_any_number_of_workers_trains_the_same_dnn(
    data: ArrayDataset, workers: int, mix: dict[str, Any]
) -> None:
    settings = {"precision": "float64", **mix}
    alone = pretrainer(data, **settings)
    start, epochs = parameters(alone), trained(alone)
    ranks = Crew(workers).train(lambda rank: pretrainer(data, rank, **settings))
    for rank, seen in ranks:
        torch.testing.assert_close(parameters(rank), parameters(alone), rtol=0, atol=1e-12)
        assert [e.loss for e in seen] == pytest.approx([e.loss for e in epochs], rel=1e-12)
        assert [e.validation_accuracy for e in seen] == [e.validation_accuracy for e in epochs]
    assert (parameters(alone) - start).norm() > 0.1


def test_batch_norms_of_all_workers_keep_the_same_statistics(data: ArrayDataset) -> None:
    def with_norm(rank: Any) -> Pretrainer:
        torch.manual_seed(0)
        module = build_model("resnet8_cifar", 10)
        deployed = DeployedModel(name="a", module=module, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
        return on_clean_images(deployed, data, PretrainConfig(epochs=1, batch_size=24), rank, seed=0)

    (one, _), (two, _) = Crew(2).train(with_norm)
    assert all(
        torch.equal(x, y) for x, y in zip(one.weights.statistics(), two.weights.statistics(), strict=True)
    )
    assert one.weights.statistics()[0].abs().sum() > 0
    assert parameters(one).equal(parameters(two))


def test_parts_of_a_step_sum_to_the_step(data: ArrayDataset) -> None:
    whole, parts = (pretrainer(data, precision="float64", accumulation=n) for n in (1, 24))
    assert [e.loss for e in trained(whole)] == pytest.approx([e.loss for e in trained(parts)], rel=1e-12)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, EVERYTHING, {"dropout": 0.5, "keep": "last"}])
def test_a_killed_training_is_resumed_and_ends_with_the_same_bits(
    data: ArrayDataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"epochs": 3, **settings}
    whole = pretrainer(data, **settings)
    lines = trained(whole)
    killed = pretrainer(data, **settings)
    killed.run_epoch()
    save_checkpoint(place(str(tmp_path)), killed.weights)
    killed.run_epoch()  # this epoch is lost
    killed.close()
    resumed = pretrainer(data, **settings)
    load_checkpoint(place(str(tmp_path)), resumed.weights)
    assert [(e.epoch, e.loss) for e in trained(resumed)] == [(e.epoch, e.loss) for e in lines[1:]]
    kept = resumed.weights.kept()
    assert all(torch.equal(value, kept[key]) for key, value in whole.weights.kept().items())
    assert not parameters(whole).equal(parameters(killed))


def test_a_killed_stage_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace_pretrain(config(tmp_path), epochs=2, batch_size=50)
    folder = place(str(tmp_path)) / "a" / "deployed"
    run_epoch = Pretrainer.run_epoch

    def dies_in_the_second(self: Pretrainer) -> Epoch:
        if self.weights.epochs_done == 1:
            raise KeyboardInterrupt
        return run_epoch(self)

    monkeypatch.setattr(Pretrainer, "run_epoch", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        pretrain_stage(settings, restart=False)
    first = read_epochs(folder)
    monkeypatch.undo()
    pretrain_stage(settings, restart=False)
    assert [epoch["epoch"] for epoch in read_epochs(folder)] == [1, 2]
    assert read_epochs(folder)[:1] == first


def replace_pretrain(before: Config, **changes: Any) -> Config:
    values = before.model_dump(mode="json")
    return parse_config({**values, "pretrain": {**values["pretrain"], **changes}})


def test_the_epoch_that_is_best_on_validation_is_kept(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.9, 0.9, 0.7])
    averages: list[dict[str, Tensor]] = []

    def judge(self: Pretrainer) -> float:
        averages.append({k: v.clone() for k, v in self.weights.average.items()})
        return next(accuracies)

    monkeypatch.setattr(Pretrainer, "_validate", judge)
    made = pretrainer(data, epochs=4)
    trained(made)
    assert made.weights.best_epoch == 3  # of two equally good epochs, the later one
    assert all(value.equal(averages[2][key]) for key, value in made.weights.kept().items())
    assert not averages[2]["0.weight"].equal(averages[3]["0.weight"])


def test_the_held_out_images_are_never_trained_on(data: ArrayDataset) -> None:
    made = pretrainer(data)
    assert made.validation is not None
    assert isinstance(made.source, BatchSource)
    held_out = made.validation[1]
    assert len(held_out) == 6
    assert not set(held_out) & set(made.source.rows_N)
    assert sorted([*held_out, *made.source.rows_N]) == list(range(60))
    made.close()


def test_the_average_follows_the_weights(data: ArrayDataset) -> None:
    made = pretrainer(data, epochs=1, batch_size=54)
    before = made.weights.parameters["0.weight"].detach().clone()
    trained(made)
    after = made.weights.parameters["0.weight"].detach()
    torch.testing.assert_close(made.weights.average["0.weight"], (before + after) / 2)


def test_the_rate_rises_and_falls() -> None:
    assert [rate_factor(p, 0.2) for p in (0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert rate_factor(0, 0.0) == 1


def test_bfloat16_trains_float32_weights_about_as_float32_does(data: ArrayDataset) -> None:
    full, half = (pretrainer(data, precision=precision) for precision in ("float32", "bfloat16"))
    losses = [[e.loss for e in trained(made)] for made in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert parameters(half).dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_dnn_trains_the_same(data: ArrayDataset) -> None:
    plain, compiled = (pretrainer(data, compile=c, precision="float64") for c in (False, True))
    assert [e.loss for e in trained(plain)] == pytest.approx([e.loss for e in trained(compiled)], rel=1e-9)
    torch.testing.assert_close(parameters(compiled), parameters(plain), rtol=1e-9, atol=1e-9)


def test_weights_of_norms_do_not_decay_under_adamw(data: ArrayDataset) -> None:
    made = pretrainer(data, optimizer="adamw", weight_decay=0.3)
    decay = {
        p: group["weight_decay"] for group in made.weights.optimizer.param_groups for p in group["params"]
    }
    assert {k: decay[p] for k, p in made.weights.parameters.items() if k.startswith("0.")} == {
        "0.weight": 0.3,
        "0.bias": 0.0,
    }
    made.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 55}, r"pretrain\.batch_size=55 is more than the 54 images"),
        ({"validation_fraction": 0.001}, r"pretrain\.validation_fraction=0\.001 of 60 images is none"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    data: ArrayDataset, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        pretrainer(data, **settings)


def test_labels_of_one_class_are_not_mixed(data: ArrayDataset) -> None:
    one = replace(data, classes=("all",), labels_N=np.zeros_like(data.labels_N))
    with pytest.raises(ConfigError, match=r"pretrain\.mixup=0\.1 .* mix the labels .* has 1\. Set both to 0"):
        pretrainer(one, classes=1, mixup=0.1)


def test_settings_that_workers_would_refuse_are_refused_before_workers_start(tmp_path: Path) -> None:
    settings = parse_config(
        {**replace_pretrain(config(tmp_path), batch_size=3).model_dump(mode="json"), "workers": 4}
    )
    with pytest.raises(ConfigError, match=r"batch_size=3 cannot be shared by 4 workers in 1 parts"):
        pretrain_stage(settings, restart=False, train_elsewhere=lambda *_: pytest.fail("began"))


def test_a_shift_of_the_whole_image_is_refused(data: ArrayDataset) -> None:
    small = replace(data, images_NHWC=np.ascontiguousarray(data.images_NHWC[:, :12, :12]))
    with pytest.raises(ConfigError, match=r"pretrain\.shift=12 is not less than the 12 pixels"):
        pretrainer(small, shift=12)


def test_more_workers_than_a_step_has_images_are_refused(data: ArrayDataset) -> None:
    with pytest.raises(
        ConfigError, match=r"batch_size=24 cannot be shared by 5 workers in 5 parts each .* least 25"
    ):
        pretrainer(data, Rank(Crew(5), 0), accumulation=5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"accumulation": 21}, r"accumulation=21 is more than batch_size=20"),
        ({"validation_fraction": 0.0}, r"keep: best needs validation images"),
        ({"randaugment": 31}, r"pretrain\.randaugment=31"),
        ({"optimizer": "adam"}, r"pretrain\.optimizer='adam'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        replace_pretrain(config(tmp_path), **settings)


def test_compiling_without_a_compiler_is_refused_before_it_begins(
    data: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    made = pretrainer(data, compile=True)
    with pytest.raises(ConfigError, match=r"compile=true needs a C\+\+ compiler, and no no-such-compiler"):
        made.run_epoch()
    made.close()


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    settings = PretrainConfig(precision="bfloat16")
    with pytest.raises(ConfigError, match=r"Tesla T4 has no bfloat16"):
        pretrain_checks.check_precision(settings, torch.device("cuda"))
    pretrain_checks.check_precision(settings, CPU)


def test_a_loss_that_is_not_finite_ends_the_training(data: ArrayDataset) -> None:
    made = pretrainer(data)
    with torch.no_grad():
        made.weights.parameters["0.weight"].fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"loss became nan in epoch 1\. Lower pretrain\.rate"):
        made.run_epoch()
    made.close()
