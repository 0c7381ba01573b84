"""The repair methods: one file or package each, with one interface and one registry.

base.py        the interface of a method, and the context of a repair
registry.py    the methods by name, also those of other packages
repaired.py    the result of a repair
budget.py      the limit of a repair, and what it has spent
examples.py    training batches of failures and clean images
training.py    the training loop that several methods share
"""

from metarepair.methods import bn_adapt, eata, finetune, joint, merged, metarepair, none, roid, sar, sgd, tent
from metarepair.methods.apricot import method as apricot
from metarepair.methods.arachne import method as arachne
from metarepair.methods.archrepair import method as archrepair
from metarepair.methods.augmix import method as augmix
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.budget import Budget, Limit, parse_limit
from metarepair.methods.deeprepair import method as deeprepair
from metarepair.methods.registry import (
    METHODS,
    all_methods,
    check_method_settings,
    check_steps,
    get_method,
    method_settings,
    settings_of,
)
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.methods.sensei import method as sensei

__all__ = [
    "METHODS",
    "Budget",
    "Limit",
    "Method",
    "MethodContext",
    "RepairedModel",
    "all_methods",
    "apricot",
    "arachne",
    "archrepair",
    "augmix",
    "bn_adapt",
    "check_method_settings",
    "check_steps",
    "deeprepair",
    "eata",
    "finetune",
    "get_method",
    "joint",
    "merged",
    "metarepair",
    "method_settings",
    "none",
    "parse_limit",
    "repaired_from",
    "roid",
    "sar",
    "sensei",
    "settings_of",
    "sgd",
    "tent",
]
