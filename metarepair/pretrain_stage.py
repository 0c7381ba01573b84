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
from tasks.manifest import begin, check_done, discard, write_manifest
from tasks.storage import write_text


def pretrain_stage(config: Config, say: Callable[[str], None], *, restart: bool) -> None:
    """Trains the configured DNN on the clean training split and states its accuracy on the test split."""
    folder = open_run(config).root / "deployed"
    data = load_dataset(config.data.source(), "train")
    if config.data.max_train_images is not None:
        data = data.head(config.data.max_train_images)
    if restart:  # only now: a wrong setting must not cost the old one
        discard(folder)
    settings = config.model_dump(mode="json", include={"seed", "pretrain"}) | {
        "model": config.model.name,
        "data": config.data.model_dump(
            mode="json", exclude={"root", "train", "test", "max_test_images", "archive", "corruption_table"}
        ),
    }
    preparation = config.model.model_dump(mode="json", exclude={"name", "weights", "entry"})
    if preparation:  # what differs from the usual stem, size and normalisation
        settings["preparation"] = preparation
    inputs = {"train": data.digest()}
    if check_done(folder, stage="pretrain", config=settings, inputs=inputs) is not None:
        say(f"pretrain: done before, see {folder}")
        return
    begin(folder, config=settings, inputs=inputs)
    log = folder / "epochs.json"
    epochs: list[dict[str, float]] = json.loads(log.read_text(encoding="utf-8")) if log.exists() else []
    progress = Progress("pretrain", config.pretrain.epochs, "epochs", done=len(epochs))

    def on_epoch(epoch: Epoch) -> None:
        epochs[epoch.epoch - 1 :] = [asdict(epoch)]
        write_text(log, json.dumps(epochs))
        note = f"loss {epoch.loss:.3f}, validation {epoch.validation_accuracy:.1%}"
        progress.advance(epoch.epoch - progress.done, note)

    deployed = pretrain(
        config.model,
        data,
        dataset_info(config.data.source()),
        config.pretrain,
        seed=config.seed,
        device=pick_device(config.device),
        folder=folder,
        on_epoch=on_epoch,
    )
    test = load_dataset(config.data.source(), "test")
    predicted = deployed.logits(test.images(slice(None))).argmax(1).numpy()
    accuracy = float((predicted == test.labels_N).mean())
    save_weights(folder / "model.safetensors", deployed.module.state_dict(), {"model": config.model.name})
    write_manifest(
        folder,
        stage="pretrain",
        config=settings,
        inputs=inputs,
        files=["model.safetensors", "epochs.json"],
        facts={"clean_test_accuracy": accuracy},
    )
    say(f"clean test accuracy {accuracy:.2%}; weights: {folder / 'model.safetensors'}")
