"""Reads θ_meta, the result of meta-training for a target, as the start of a repair (Algorithm 1, line 16)."""

from __future__ import annotations

from torch import nn

from metarepair.adaptation.meta_test import Start
from metarepair.config.repair import AnyConfig
from metarepair.models.build import read_tensors
from metarepair.runs.layout import RATES
from tasks.errors import WeightsError
from tasks.storage.manifest import require_manifest, verify_checksums
from tasks.storage.paths import Place


def load_start(folder: Place, module: nn.Module, config: AnyConfig, *, remedy: str) -> Start:
    """θ_meta from a run's meta/<target>/, with the devices and dtypes of `module`.

    Raises StageError with the remedy if the folder is not complete, DataError if it is damaged, and WeightsError if
    its tensors belong to another DNN.
    """
    verify_checksums(folder, require_manifest(folder, remedy))
    tensors = read_tensors(folder / "model.safetensors")
    wanted = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    differ = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    if differ or len(tensors) != len(wanted):
        raise WeightsError(
            f"{folder} holds {len(tensors)} tensors and the given DNN has {len(wanted)}: {len(differ)} of the DNN's "
            f"are missing there or have another shape (first: {(differ or ['none'])[0]}). Give the DNN that the run "
            "deployed."
        )
    rates = read_tensors(folder / RATES) if config.inner.learned_rates else {}
    return Start(
        parameters={k: tensors[k].to(v) for k, v in module.named_parameters()},
        buffers={k: tensors[k].to(v) for k, v in module.named_buffers()},
        factors={k: v.to(wanted[k]) for k, v in rates.items()},
    )
