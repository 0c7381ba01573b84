"""Settings in, `deployed/model.safetensors` of a run out: pretraining as a resumable stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from metarepair.config import Config
from metarepair.deploy import pick_device
from metarepair.layout import open_run
from metarepair.models.build import save_weights
from metarepair.pretrain import Epoch, pretrain
from metarepair.progress import Progress
from tasks.datasets import dataset_info, load_dataset
from tasks.manifest import check_done, discard, write_manifest, write_text


def pretrain_stage(config: Config, say: Callable[[str], None], *, restart: bool) -> None:
    """Trains the configured DNN on the clean training split and states its accuracy on the test split."""
    folder = open_run(config).root / "deployed"
    if restart:
        load_dataset(
            config.data.name, "train", root=config.data.root
        )  # a wrong setting must not cost the old one
        discard(folder)
    settings = config.model_dump(mode="json", include={"seed", "pretrain"}) | {
        "model": config.model.name,
        "data": config.data.model_dump(mode="json", exclude={"root"}),
    }
    if check_done(folder, stage="pretrain", config=settings, inputs={}) is not None:
        say(f"pretrain: done before, see {folder}")
        return
    data = load_dataset(config.data.name, "train", root=config.data.root)
    if config.data.max_train_images is not None:
        data = data.head(config.data.max_train_images)
    progress = Progress("pretrain", config.pretrain.epochs, "epochs")
    epochs: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        note = f"loss {epoch.loss:.3f}, validation {epoch.validation_accuracy:.1%}"
        progress.advance(epoch.epoch - progress.done, note)

    deployed = pretrain(
        config.model.name,
        data,
        dataset_info(config.data.name),
        config.pretrain,
        seed=config.seed,
        device=pick_device(config.device),
        folder=folder,
        on_epoch=on_epoch,
    )
    test = load_dataset(config.data.name, "test", root=config.data.root)
    predicted = deployed.logits(test.images(slice(None))).argmax(1).numpy()
    accuracy = float((predicted == test.labels_N).mean())
    save_weights(folder / "model.safetensors", deployed.module.state_dict(), {"model": config.model.name})
    write_text(folder / "epochs.json", json.dumps([asdict(e) for e in epochs]))
    write_manifest(
        folder,
        stage="pretrain",
        config=settings,
        inputs={},
        files=["model.safetensors", "epochs.json"],
        facts={"clean_test_accuracy": accuracy},
    )
    say(f"clean test accuracy {accuracy:.2%}; weights: {folder / 'model.safetensors'}")
