"""Turn a time budget into counts: which repairs are tried, and how long each of them trains.

The plan is made once, before the run, from measured speeds. Afterwards counts alone decide, so that the same settings
give the same weights on any machine, however fast it is. What is cheap and needs nothing comes first:

    1. keep the model, adapt batch norm     always
    2. fine-tuning                          LEAST_EPOCHS to SGD_EPOCHS passes
    3. joint training, then fine-tuning     LEAST_JOINT_STEPS to MOST_JOINT_STEPS steps
    4. MetaRepair                           if JOINT_STEPS steps, mining and LEAST_EPISODES episodes fit

With a kit, 3 and 4 are prepared, and only repairs and judging are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from metarepair.config.user_defaults import INNER_STEPS, RATES, TASKS, WALK_EPISODES
from metarepair.runs.progress import duration
from tasks.errors import ConfigError

START_S = 8.0  # load the model, check it, write tables and the report
RAY_START_S = 20.0
READ_S = 0.003  # per photograph of some hundred pixels: decode, resize and hash
USED = 0.9  # share of the budget that is planned; measured speeds vary by about a tenth
SGD_EPOCHS, LEAST_EPOCHS = 20, 4
SGD_BATCH, SGD_CLEAN = 200, 2000  # the defaults of methods.sgd
SGD_SHARE = 0.4  # of the time for trainings, at most, for fine-tuning, if joint training is affordable
CHECKS = 21  # evaluations during a fine-tuning
PATH_POINTS = 15  # evaluations on selecting images when a point of a repair is chosen inside the limits
LEAST_JOINT_STEPS, JOINT_STEPS, MOST_JOINT_STEPS = 60, 2800, 5600
JOINT_GROUPS = 4  # over which workers divide a step
MOST_ROUND_STEPS, MOST_ROUND_EPISODES = 100, 10
ROUND_S = 5.0  # a round of a training: its progress is logged, and its checkpoint is written
LEAST_EPISODES, MOST_EPISODES = 20, 200

CHEAP = ("sgd", "bn_adapt", "none")
JOINT = ("joint_sgd", "joint")
ALL_CANDIDATES = (*JOINT, "metarepair", *CHEAP)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds for each piece of work in one process.

    step_s: a step of joint training. image_s, learned_image_s: an image forward, and forward and backward.
    mined_image_s: an image corrupted and classified. task_s: a task of meta-training, of `support_images` images.
    """

    step_s: float
    image_s: float
    learned_image_s: float
    mined_image_s: float
    task_s: float
    support_images: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What there is to learn from, to select by and to judge by, in images.

    failures: those to learn from. choosing: those by which a point inside the limits is chosen. mined: clean images
    that experiences are made of. collected: failures of an experience, at most.
    """

    photographs: int
    failures: int
    selecting: int
    judging: int
    clean_learn: int
    clean_select: int
    choosing: int
    clean_judge: int
    experiences: int
    severities: int
    mined: int
    collected: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a budget buys. seconds: planned, by what they are spent on. lacking: why a candidate is left out."""

    methods: tuple[str, ...]
    sgd_epochs: int
    joint_rounds: int = 0
    round_steps: int = 1
    episodes: int = 0
    round_episodes: int = 1
    seconds: Mapping[str, float]
    lacking: str = ""

    @property
    def total_s(self) -> float:
        """The planned seconds of the whole run."""
        return sum(self.seconds.values())

    @property
    def words(self) -> str:
        """What the budget buys: `fine-tuning for 20 epochs, … Planned: 2 min 10 s (…).`"""
        bought = [f"fine-tuning for {self.sgd_epochs} epochs"]
        if self.joint_rounds:
            bought.append(f"joint training for {self.joint_rounds * self.round_steps:,} steps")
        if self.episodes:
            bought.append(f"meta-training for {self.episodes} episodes")
        parts = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items() if s >= 0.5)
        lacking = f" {self.lacking}" if self.lacking else ""
        return f"{', '.join(bought)}. Planned: {duration(self.total_s)} ({parts}).{lacking}"


def plan_fix(
    budget_s: float, speeds: Speeds, counts: Counts, *, workers: int = 0, kit: bool = False, refine: int = 0
) -> Plan:
    """Return what `budget_s` seconds buy.

    workers: Ray workers; 0 for this process. kit: whether joint training and meta-training are prepared. refine:
    episodes of meta-training on top of the kit's. Raises ConfigError, with the least budget, if the repairs that need
    no preparation do not fit.
    """
    costs = Costs(speeds=speeds, counts=counts, workers=workers)
    if kit:
        return _with_kit(budget_s, costs, refine)
    least_s = costs.cheap_s(LEAST_EPOCHS) / USED
    if budget_s < least_s:
        raise _too_small(budget_s, least_s)
    usable_s = USED * budget_s
    if usable_s >= costs.full_s(LEAST_EPISODES):
        episodes = (usable_s - costs.full_s(0)) / costs.episode_s
        return _full_plan(costs, _between(LEAST_EPISODES, episodes, MOST_EPISODES))
    if usable_s >= costs.joint_s(LEAST_EPOCHS, LEAST_JOINT_STEPS):
        return _joint_plan(usable_s, costs)
    epochs = (usable_s - costs.cheap_s(0)) / costs.epoch_s
    return _plan(
        costs,
        CHEAP,
        epochs=_between(LEAST_EPOCHS, epochs, SGD_EPOCHS),
        lacking=f"Joint training needs {_budget(costs.joint_s(LEAST_EPOCHS, LEAST_JOINT_STEPS))}.",
    )


def _joint_plan(usable_s: float, costs: Costs) -> Plan:
    """Fine-tuning and joint training."""
    trained_s = usable_s - costs.joint_s(0, 0)
    epochs = _between(LEAST_EPOCHS, SGD_SHARE * trained_s / (2 * costs.epoch_s), SGD_EPOCHS)
    steps = (trained_s - 2 * epochs * costs.epoch_s) / costs.step_s
    return _plan(
        costs,
        (*JOINT, *CHEAP),
        epochs=epochs,
        steps=_between(LEAST_JOINT_STEPS, steps, MOST_JOINT_STEPS),
        lacking=f"MetaRepair needs {_budget(costs.full_s(LEAST_EPISODES))}.",
    )


def _full_plan(costs: Costs, episodes: int) -> Plan:
    """Fine-tuning, joint training and MetaRepair."""
    return _plan(costs, ALL_CANDIDATES, epochs=SGD_EPOCHS, steps=JOINT_STEPS, episodes=episodes)


def _with_kit(budget_s: float, costs: Costs, refine: int) -> Plan:
    """Only repairs and judging are left; `refine` episodes of meta-training come first."""
    prepared_s = costs.joint_s(0, 0) + costs.walk_s + refine * costs.episode_s
    least_s = (prepared_s + 2 * LEAST_EPOCHS * costs.epoch_s) / USED
    if budget_s < least_s:
        raise _too_small(budget_s, least_s)
    epochs = (USED * budget_s - prepared_s) / (2 * costs.epoch_s)
    return _plan(
        costs, ALL_CANDIDATES, epochs=_between(LEAST_EPOCHS, epochs, SGD_EPOCHS), episodes=refine, kit=True
    )


def _plan(
    costs: Costs,
    methods: tuple[str, ...],
    *,
    epochs: int,
    steps: int = 0,
    episodes: int = 0,
    kit: bool = False,
    lacking: str = "",
) -> Plan:
    """The plan of these counts, with its trainings divided into rounds."""
    round_steps = min(_between(1, ROUND_S / costs.step_s, MOST_ROUND_STEPS), max(steps, 1))
    rounds = steps // round_steps
    meta_s = 0.0
    if "metarepair" in methods:
        meta_s = costs.walk_s + episodes * costs.episode_s + (0.0 if kit else costs.mining_s)
    seconds = {
        "start and reading": costs.start_s,
        "joint training": rounds * round_steps * costs.step_s,
        "MetaRepair": meta_s,
        "fine-tuning": costs.tuned_s(2 if "joint_sgd" in methods else 1, epochs),
        "choosing and judging": costs.judged_s(len(methods)),
    }
    return Plan(
        methods=methods,
        sgd_epochs=epochs,
        joint_rounds=rounds,
        round_steps=round_steps,
        episodes=episodes,
        round_episodes=_between(1, ROUND_S / costs.episode_s, MOST_ROUND_EPISODES),
        seconds=seconds,
        lacking=lacking,
    )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each piece of work, and of whole plans."""

    speeds: Speeds
    counts: Counts
    workers: int

    @property
    def start_s(self) -> float:
        """Start, read the photographs and classify them."""
        start = START_S + (RAY_START_S if self.workers else 0.0)
        return start + self.counts.photographs * (READ_S + self.speeds.image_s)

    @property
    def selecting(self) -> int:
        """Images of one evaluation that selects."""
        return self.counts.selecting + self.counts.clean_select

    @property
    def epoch_s(self) -> float:
        """An epoch of fine-tuning."""
        images = self.counts.failures + min(SGD_CLEAN, self.counts.clean_learn)
        return math.ceil(images / SGD_BATCH) * min(SGD_BATCH, images) * self.speeds.learned_image_s

    @property
    def checks_s(self) -> float:
        """The evaluations during a fine-tuning, as many for any number of epochs."""
        return CHECKS * self.selecting * self.speeds.image_s

    @property
    def step_s(self) -> float:
        """A step of joint training."""
        return self.speeds.step_s / self._spread(JOINT_GROUPS)

    @property
    def episode_s(self) -> float:
        """An episode of meta-training."""
        return TASKS * self.speeds.task_s / self._spread(TASKS)

    @property
    def walk_s(self) -> float:
        """MetaRepair's repair: a walk for each rate and another to choose by, evaluations, line 20's accuracies."""
        episodes = (len(RATES) + 1) * WALK_EPISODES
        learned = episodes * TASKS * INNER_STEPS * self.speeds.support_images * self.speeds.learned_image_s
        evaluated = episodes * self.selecting + WALK_EPISODES * TASKS * self.counts.judging
        return learned + evaluated * self.speeds.image_s

    @property
    def mining_s(self) -> float:
        """Mine all experiences, and extract features of what is collected."""
        c = self.counts
        mined = c.experiences * c.severities * c.mined * self.speeds.mined_image_s
        features = (c.experiences + 1) * c.collected * self.speeds.image_s
        return (mined + features) / self._spread(c.experiences)

    def judged_s(self, methods: int) -> float:
        """Choose the point of each repair within the limits, and judge it."""
        images = PATH_POINTS * self.counts.choosing + self.counts.judging + self.counts.clean_judge
        return methods * images * self.speeds.image_s

    def tuned_s(self, tunings: int, epochs: int) -> float:
        """Some fine-tunings of so many epochs each."""
        return tunings * (epochs * self.epoch_s + self.checks_s)

    def cheap_s(self, epochs: int) -> float:
        """The whole of a plan with fine-tuning alone."""
        return self.start_s + self.judged_s(len(CHEAP)) + self.tuned_s(1, epochs)

    def joint_s(self, epochs: int, steps: int) -> float:
        """The whole of a plan with joint training."""
        judged_s = self.judged_s(len(CHEAP) + len(JOINT))
        return self.start_s + judged_s + self.tuned_s(2, epochs) + steps * self.step_s

    def full_s(self, episodes: int) -> float:
        """The whole of a plan with everything."""
        meta_s = self.mining_s + episodes * self.episode_s + self.walk_s + self.judged_s(1)
        return self.joint_s(SGD_EPOCHS, JOINT_STEPS) + meta_s

    def _spread(self, pieces: int) -> int:
        """How many times faster Ray's workers are than this process."""
        return max(1, min(self.workers, pieces))


def _between(least: int, value: float, most: int) -> int:
    return max(least, min(most, int(value)))


def _budget(usable_s: float) -> str:
    """`--budget 95s` for what a plan costs."""
    return f"--budget {math.ceil(usable_s / USED)}s"


def _too_small(budget_s: float, least_s: float) -> ConfigError:
    return ConfigError(
        f"--budget {budget_s:.0f}s is too little: reading, {LEAST_EPOCHS} epochs of fine-tuning and judging "
        f"take about {math.ceil(least_s)} s here. Give --budget {math.ceil(least_s)}s or more, or fewer images."
    )
