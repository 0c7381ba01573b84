"""Arachne: a search for better values of the few weights that are most to blame."""

from metarepair.methods.arachne.method import Arachne, ArachneSettings

__all__ = ["Arachne", "ArachneSettings"]
