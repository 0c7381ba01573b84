"""Joint training: go on training the deployed DNN on clean images and the images of past experiences, all together.

It is the plainest use of experiences, and the baseline that meta-training has to beat: one training for all targets.
A step's images are divided into a fixed number of groups. In each, some images are clean, and the others are of one
random experience at one random severity, whether or not the deployed DNN gets them right. A group is drawn by its
number and the step's, and has batch-norm statistics of its own, so any number of workers trains the same weights.
"""

# B images of a group, C channels, H W pixels, G groups

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from metarepair.config.joint import JointConfig
from metarepair.data.clean_images import CleanImages
from metarepair.data.learned_images import LearnedImages
from metarepair.meta_training.task_source import slots_of
from metarepair.models.build import DeployedModel
from metarepair.pretraining.augmentation import flipped_and_shifted, sample_draws
from metarepair.pretraining.batches import TrainingBatch
from metarepair.pretraining.checks import check_precision
from metarepair.pretraining.pretrain import Epoch, Pretrainer, train_to_the_end
from metarepair.runs.context import Context
from tasks.errors import ConfigError
from tasks.keys import keyed_generator
from tasks.storage.paths import Place


@dataclass(frozen=True, kw_only=True)
class JointSource:
    """The batches of worker `rank`: its groups of every step.

    probabilities: how often each experience is drawn, by name; empty for all alike.
    """

    deployed: DeployedModel
    clean: CleanImages
    experiences: Mapping[str, LearnedImages]
    config: JointConfig
    seed: int
    rank: int = 0
    world_size: int = 1
    probabilities: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of a round."""
        return self.config.round_steps

    def batch(self, key: tuple[int, int]) -> TrainingBatch:
        """Make this worker's groups of the step `key`, (round, step)."""
        groups = [self._group(key, g) for g in slots_of(self.rank, self.world_size, self.config.groups)]
        if not groups:
            nothing = torch.empty(0, dtype=torch.int64)
            return TrainingBatch(
                images_BCHW=torch.empty(0), labels_B=nothing, partner_labels_B=nothing, weight=1.0
            )
        images_BCHW, labels_B = (torch.cat(parts) for parts in zip(*groups, strict=True))
        return TrainingBatch(
            images_BCHW=images_BCHW, labels_B=labels_B, partner_labels_B=labels_B, weight=1.0
        )

    def following(self, key: tuple[int, int]) -> tuple[int, int] | None:
        """Return the step after `key`; the last one has one, too, as processor time may set the end."""
        round_, step = key
        return (round_, step + 1) if step + 1 < self.steps else (round_ + 1, 0)

    def _group(self, key: tuple[int, int], group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented images [B, C, H, W] and labels [B] of one group."""
        config, step = self.config, key[0] * self.steps + key[1]
        generator = keyed_generator("joint", self.seed, step, group)
        size = config.batch_size // config.groups
        num_clean = round(config.clean * size)
        clean = self.clean.sample(num_clean, generator)
        learned = self.experiences[self._drawn_name(generator)]
        severity = int(generator.choice(learned.source.severities))
        corrupted_BHWC, corrupted_B = learned.drawn(size - len(clean), severity, generator)
        images_BHWC = np.concatenate([clean.images_NHWC, corrupted_BHWC])
        labels_B = np.concatenate([clean.labels_N, corrupted_B])
        first = (step * config.groups + group) * size  # numbers of the images, by which augmentation is drawn
        draws = sample_draws(range(first, first + size), seed=self.seed, epoch=0, operations=0)
        images_BCHW = flipped_and_shifted(
            self.deployed.normalise(images_BHWC), draws, flip=config.flip, shift=config.shift
        )
        return images_BCHW, torch.from_numpy(labels_B).to(images_BCHW.device)

    def _drawn_name(self, generator: np.random.Generator) -> str:
        names = sorted(self.experiences)
        if not self.probabilities:
            return names[int(generator.integers(len(names)))]
        return str(generator.choice(names, p=[self.probabilities[name] for name in names]))


def train_jointly(
    deployed: DeployedModel,
    clean: CleanImages,
    experiences: Mapping[str, LearnedImages],
    config: JointConfig,
    *,
    seed: int,
    context: Context,
    folder: Place,
    on_round: Callable[[Epoch], None],
    probabilities: Mapping[str, float] | None = None,
    core_seconds: float | None = None,
) -> DeployedModel:
    """Train the deployed DNN in place, and return it.

    probabilities: how often each experience is drawn; None for all alike. core_seconds: the processor time that the
    training takes over all workers, in place of `rounds`; None for all rounds.

    Writes a checkpoint into `folder` after each round, and resumes from it. Raises ConfigError for settings that do not
    suit the images or the device, DivergedError if the loss is not finite.
    """
    check_joint(config, clean, experiences, pixels=deployed.input_size)
    if config.rounds == 0 and core_seconds is None:
        return deployed
    settings = config.as_pretraining()
    check_precision(settings, context.device)
    source = JointSource(
        deployed=deployed,
        clean=clean,
        experiences=experiences,
        config=config,
        seed=seed,
        rank=context.rank,
        world_size=context.world_size,
        probabilities=probabilities or {},
    )
    pretrainer = Pretrainer(
        deployed,
        source,
        settings,
        context,
        seed=seed,
        groups=config.groups,
        section="joint",
        core_seconds=core_seconds,
    )
    train_to_the_end(pretrainer, folder, on_round)
    return deployed


def check_joint(
    config: JointConfig,
    clean: CleanImages,
    experiences: Mapping[str, LearnedImages],
    *,
    pixels: int | None,
) -> None:
    """Raise ConfigError if there is nothing to learn from, or a setting does not suit the images."""
    if not experiences:
        raise ConfigError(
            "joint training learns from the experiences that are no targets, and there are none. Add some to "
            "mining.experiences."
        )
    empty = [name for name, learned in experiences.items() if not len(learned.rows_N)]
    if empty:
        raise ConfigError(
            f"joint training: no image of {empty[0]} may be learned from. Leave it out of mining.experiences."
        )
    side = pixels or min(clean.images_NHWC.shape[1:3])
    if config.shift >= side:
        raise ConfigError(
            f"joint.shift={config.shift} is not less than the {side} pixels of an image's side. Lower it."
        )
    needed = round(config.clean * (config.batch_size // config.groups))
    left = len(clean) - len(clean.held_out_rows)
    if needed > left:
        raise ConfigError(
            f"joint training takes {needed} clean images for each group (joint.clean, batch_size, groups), and there "
            f"are {left}. Lower joint.batch_size, or give more clean images."
        )
