"""Rules of a search that a trial's `Config` cannot check.

They say which settings may be searched, which distributions suit them, and which settings change no trial's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from metarepair.config.load import known_keys
from metarepair.config.run import Config
from metarepair.search.space import Dimension, experiences_of, learners
from tasks.errors import ConfigError, near_names

SECTIONS = ("experiences", "task", "inner", "train")  # the groups of settings that meta-training depends on

_WHERE = "no objective depends on it: it sets where, how fast or how safely a run is done"
_BEFORE = (
    "experiences and distances are made once, before the first trial, and all trials learn from the same ones"
)
REASONS = {
    "name": "it is the name of the run that all trials belong to",
    "storage_path": "all trials are kept in the run that they belong to",
    "seed": f"mining depends on it ({_BEFORE}), and the best of several seeds is only the luckiest",
    "targets": "it sets what is repaired, and trials are compared on the same targets",
    "preparation_budget": "trials are compared round by round, whatever time they take",
    "data": _BEFORE,
    "model": _BEFORE,
    "mining": _BEFORE,
    "environments": _BEFORE,
    "features": _BEFORE,
    "kit": _BEFORE,
    "refine": "it continues the meta-training of a kit",
    "limits": "they decide what is taken of a repair, after meta-training",
    "device": _WHERE,
    "workers": _WHERE,
    "ray": _WHERE,
    "trackers": "they show results and change none",
    "train.start": "joint training is made once, before the search",
    "train.shared": "a trial trains for each environment that judges it",
    "train.threads": _WHERE,
    "train.memory": _WHERE,
    "train.theta_on_host": _WHERE,
    "train.kept_checkpoints": _WHERE,
    "train.max_skipped": _WHERE,
    "train.round_episodes": "it sets how often a trial is judged, and trials are compared round by round",
    "repair": "it sets how all trials are judged, and comes after meta-training; a repair chooses its rate itself",
    "methods": "a search is for MetaRepair, not for other methods",
    "joint": "joint training is not meta-training; compare trainings with `metarepair compare`",
    "compare": "it comes after the search",
    "evaluate": "it comes after the search, on D_fail, which no trial may see",
    "pretrain": "the deployed DNN is trained before the search",
    "search": "a search does not search itself",
}

# Settings that have an effect only if another setting has one of the listed values.
NEEDS = {
    "experiences.alpha": ("experiences.rule", ("softmax", "hinge", "cutoff")),
    "experiences.beta": ("experiences.rule", ("hinge", "cutoff")),
    "experiences.top_k": ("experiences.choice", ("top_k",)),
    "experiences.names": ("experiences.choice", ("list",)),
    "inner.batch_norm_momentum": ("inner.batch_norm", ("adapt", "batch")),
}
WEIGHING = ("experiences.alpha", "experiences.beta", "experiences.rule")
CANCELS = (
    "That is Eq. 8 as printed, in which β cancels: exp(αβ) is a common factor of all experiences, which "
    "normalisation removes"
)

# Settings that pbt cannot change in a half-trained trial, which takes over the weights and state of another trial.
FIXED_IN_TRAINING = {
    "train.episodes": "all trials of a population train equally long",
    "train.precision": "the weights would have another type",
    "train.outer_optimizer": "the state would be that of another optimizer",
    "train.outer_options": "the optimizer's state would be that of other options",
    "inner.parts": "other parameters would have been learned",
    "inner.learned_rates": "some trials would have factors of the rates, and others not",
}


def refuse(name: str, text: str) -> NoReturn:
    """Raise ConfigError with one paragraph on the dimension `name`."""
    raise ConfigError(f"search.space {name}: {text}")


def can_be_searched() -> list[str]:
    """Return the dotted names of the settings that may be searched."""
    return [k for k in known_keys() if k.partition(".")[0] in SECTIONS and k not in REASONS]


def check_setting(name: str) -> None:
    """Raise ConfigError for an unknown setting, or for one that may not be searched, with the reason."""
    allowed, known = can_be_searched(), [*known_keys(), *Config.model_fields]
    if name in allowed:
        return
    reason = REASONS.get(name) or REASONS.get(name.partition(".")[0])
    if name in known and reason:
        refuse(
            name,
            f"this setting cannot be searched; {reason}. Set it to one value outside of search, and search only "
            f"settings of {', '.join(SECTIONS)}.",
        )
    if name in ("train.clean_weight", "train.clean_corrupted"):
        refuse(
            name, "this is now a share of train.query; search train.query.clean or train.query.environment."
        )
    same = [k for k in allowed if k.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = f"; did you mean {same[0]!r}?" if same else near_names(name, allowed) or "."
    raise ConfigError(f"no setting {name!r} (in search.space){hint} There are: {', '.join(allowed)}")


def check_kind(dimension: Dimension) -> None:
    """Raise ConfigError for a range that does not suit the type of a setting: real, whole, or not a number."""
    name, kind = dimension.name, dimension.kind
    numbers = number_types(name)
    ways = (["integers"] if int in numbers else []) + (["uniform", "log_uniform"] if float in numbers else [])
    if kind == "choice" or kind in ways:
        return
    if not numbers:
        refuse(name, f"{kind} is for numbers, and this setting is not a number; use choice: [value, value].")
    what = "a whole number" if int in numbers else "a real number"
    refuse(name, f"{kind} does not suit {what}, as this setting is; use {' or '.join(ways)}, or choice.")


def number_types(name: str) -> set[type]:
    """Return the type of numbers that a setting takes, {int}, {float} or empty, by setting it to 0.5 and to 1."""
    *sections, field = name.split(".")
    group: Any = Config
    for section in sections:
        group = group.model_fields[section].annotation
    assert isinstance(group, type)
    assert issubclass(group, BaseModel)
    if _takes(group, field, 0.5):
        return {float}
    return {int} if _takes(group, field, 1) else set()


def _takes(group: type[BaseModel], field: str, value: float) -> bool:
    """Whether a field accepts a value, regardless of rules that relate it to other fields."""
    try:
        group.model_validate({field: value})
    except ValidationError as error:
        return all(e["loc"][:1] != (field,) for e in error.errors())
    return True


def check_effects(config: Config, trials: Sequence[Config], searched: Sequence[str]) -> None:
    """Raise ConfigError for a searched setting that has no effect in some trial (for confidence: in all trials)."""
    for name, (other, wanted) in NEEDS.items():
        without = [value for trial in trials if (value := _setting(trial, other)) not in wanted]
        if name in searched and without:
            _refuse_without_effect(name, other, without[0], wanted, searched=other in searched)
    weighing = [name for name in WEIGHING if name in searched]
    settings = [trial.experiences for trial in trials]
    hinge = any(found.rule == "hinge" for found in settings)
    if "experiences.beta" in searched and hinge and all(found.alpha == 0 for found in settings):
        refuse(
            "experiences.beta",
            "experiences.alpha is 0, so under hinge all experiences count alike, whatever β is. Search alpha too, "
            "leave it out, or set rule: cutoff.",
        )
    if weighing and all(len(experiences_of(t, e)) < 2 for t in trials for e in learners(config)):
        refuse(
            weighing[0],
            "every target and judged environment has one experience to learn from, which gets all the confidence, "
            "whatever the rule, α and β are. Mine or choose more experiences.",
        )


def _setting(config: Config, name: str) -> Any:
    """Return the value of a dotted setting."""
    return attrgetter(name)(config)


def _refuse_without_effect(
    name: str, other: str, value: Any, wanted: tuple[str, ...], *, searched: bool
) -> NoReturn:
    why = f"With {value} it has no effect, so trials would differ only in this number"
    if name == "experiences.beta" and value == "softmax":
        why = CANCELS
    came = f"{other} is searched and can be {value}" if searched else f"{other} is {value}"
    remedy = f"Leave {name} out of the space, or set {other} to {' or '.join(wanted)} only"
    refuse(name, f"{came}. {why}. {remedy}.")


def check_change(config: Config, searched: Sequence[str]) -> None:
    """Raise ConfigError for a searched setting that pbt cannot change in a half-trained trial."""
    fixed = FIXED_IN_TRAINING
    if config.inner.learned_rates:
        fixed = fixed | {"inner.steps": "with inner.learned_rates every step has factors of its own"}
    for name in (name for name in searched if name in fixed):
        refuse(
            name,
            f"scheduler: pbt changes settings in mid-training, and this one cannot be changed: {fixed[name]}. Search "
            "it with scheduler: asha or none.",
        )
