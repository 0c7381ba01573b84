"""Build and load DNNs by name, with their weights and preprocessing."""

from metarepair.models.build import DeployedModel, build_model, load_deployed, save_weights

__all__ = ["DeployedModel", "build_model", "load_deployed", "save_weights"]
