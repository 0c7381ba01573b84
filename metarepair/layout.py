"""A run's folder in, the place of everything in it out.

<storage_path>/<name>/
    experiences/<corruption>/   collect.arrow fail.arrow manifest.json      from the training split
    targets/<corruption>/       the same, from the test split
    features/                   one Parquet file per environment
    score/                      fid.parquet matrix.parquet confidence.parquet heatmap.png
    meta/<target>/              model.safetensors metrics.json              θ_meta depends on the target
    repaired/<target>/          <method>/<seed>/model.safetensors result.json samples.parquet
    report/                     index.html table.md figures
    d_fail_reads.jsonl          each opening of a target's D_fail; outlives --restart
    deployed/                   of `metarepair pretrain`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metarepair.config import Config
from tasks.errors import ConfigError, UserError

RATES = "rates.safetensors"  # factors of learned rates, beside the model of a checkpoint or of θ_meta


@dataclass(frozen=True)
class Run:
    """Paths of one run."""

    root: Path

    def experience(self, corruption: str) -> Path:
        return self.root / "experiences" / corruption

    def target(self, corruption: str) -> Path:
        return self.root / "targets" / corruption

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def score(self) -> Path:
        return self.root / "score"

    def meta(self, target: str) -> Path:
        return self.root / "meta" / target

    def repaired(self, target: str) -> Path:
        return self.root / "repaired" / target

    @property
    def d_fail_log(self) -> Path:
        return self.root / "d_fail_reads.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report"


def open_run(config: Config) -> Run:
    """The run's folder, created. Raises ConfigError when the storage path is remote, UserError when unwritable."""
    if "://" in config.storage_path:
        raise ConfigError(
            f"storage_path={config.storage_path!r}: object storage is not supported yet; give a local or shared path."
        )
    try:
        root = Path(config.storage_path).expanduser().absolute() / config.name
        probe = root / ".writable.tmp"
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"storage_path={config.storage_path!r} cannot be written ({error}). Give another with --storage PATH."
        ) from error
    return Run(root)
