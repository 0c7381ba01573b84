"""Names in, DNNs out: the models, their weights, and the feature networks."""

from metarepair.models.build import DeployedModel, build_model, load_deployed, save_weights

__all__ = ["DeployedModel", "build_model", "load_deployed", "save_weights"]
