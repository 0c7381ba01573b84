"""One file per repair method, behind one Protocol and one registry."""

from metarepair.methods import bn_adapt, finetune, metarepair, none
from metarepair.methods.base import METHODS, Method, MethodContext, RepairedModel, get_method

__all__ = [
    "METHODS",
    "Method",
    "MethodContext",
    "RepairedModel",
    "bn_adapt",
    "finetune",
    "get_method",
    "metarepair",
    "none",
]
