"""An image classifier of transformers as a module from images to logits. The package is an extra.

Source: Wolf et al. 2020; https://huggingface.co/docs/transformers/model_doc/auto (AutoModelForImageClassification).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.core_model_loading import revert_weight_conversion

# B images, C H W pixels, K classes


class LogitsOfClassifier(nn.Module):
    """The classifier's submodules under their own names, and its forward pass, which returns logits [B, K].

    published: the name of each tensor of the state dict in the hub's files. transformers renames some as it reads them.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        for name, child in classifier.named_children():
            self.add_module(name, child)
        self._classifier = (classifier,)  # in a tuple, so that no name begins with its own
        self.published = published_names(classifier)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self._classifier[0](pixel_values=images_BCHW).logits
        return logits_BK

    def train(self, mode: bool = True) -> LogitsOfClassifier:
        self._classifier[0].train(mode)
        return super().train(mode)


def build_classifier(folder: Path) -> LogitsOfClassifier:
    """Build the classifier that the `config.json` in a folder describes, in float32 with new random weights.

    No code from the folder is run. Raises what transformers raises for a config of another kind.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Attention is written out: the fused kernels have no second derivative, and a config may name one on the hub.
    classifier = AutoModelForImageClassification.from_config(
        config, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
    )
    own = [
        name
        for name, _ in (*classifier.named_parameters(recurse=False), *classifier.named_buffers(recurse=False))
    ]
    if own:
        raise ValueError(f"{type(classifier).__name__} holds {own[0]} itself, not in a submodule")
    return LogitsOfClassifier(classifier)


def published_names(classifier: Any) -> dict[str, str]:
    """The name of each tensor in the hub's files, by its own; without those that are computed from the files'."""
    state = classifier.state_dict()
    published = {
        tensor.data_ptr(): name for name, tensor in revert_weight_conversion(classifier, dict(state)).items()
    }
    return {
        own: published[tensor.data_ptr()] for own, tensor in state.items() if tensor.data_ptr() in published
    }


def checkpoint_filter_fn(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of a published file to the module's names, as timm's functions of this name do."""
    assert isinstance(module, LogitsOfClassifier)
    own = {published: name for name, published in module.published.items()}
    return {own.get(name, name): tensor for name, tensor in tensors.items()}
