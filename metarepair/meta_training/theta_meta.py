"""Reads the result of meta-training for a target, or of joint training, as the start of a repair (line 16)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from metarepair.adaptation.meta_test import Start
from metarepair.config.repair import AnyConfig
from metarepair.models.build import read_tensors
from metarepair.runs.layout import RATES, START
from tasks.errors import WeightsError
from tasks.storage.manifest import require_manifest, verify_checksums
from tasks.storage.paths import Place


def load_start(folder: Place, module: nn.Module, config: AnyConfig, *, remedy: str) -> Start:
    """θ_meta from a run's meta/<target>/, with its learned rates, if there are any. Raises as `read_start` does."""
    start = read_start(folder, module, remedy=remedy)
    if not config.inner.learned_rates:
        return start
    rates = {k: v.to(start.parameters[k]) for k, v in read_tensors(folder / RATES).items()}
    return replace(start, factors=rates)


def read_start(folder: Place, module: nn.Module, *, remedy: str) -> Start:
    """The weights of a training from its folder in a run, with the devices and dtypes of `module`.

    Raises StageError with the remedy if the folder is not complete, DataError if it is damaged, and WeightsError if
    its tensors belong to another DNN.
    """
    manifest = require_manifest(folder, remedy)
    verify_checksums(folder, manifest)
    # Joint training makes a model; θ_meta of an older run has that name, too.
    tensors = read_tensors(folder / (START if START in manifest.files else "model.safetensors"))
    wanted = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    differ = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    if differ or len(tensors) != len(wanted):
        raise WeightsError(
            f"{folder} holds {len(tensors)} tensors and the given DNN has {len(wanted)}: {len(differ)} of the DNN's "
            f"are missing there or have another shape (first: {(differ or ['none'])[0]}). Give the DNN that the run "
            "deployed."
        )
    return Start(
        parameters={k: tensors[k].to(v) for k, v in module.named_parameters()},
        buffers={k: tensors[k].to(v) for k, v in module.named_buffers()},
    )
