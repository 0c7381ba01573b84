"""The paths of everything in a run's folder.

<storage_path>/<name>/
    environments/<name>/        images.bin index.parquet                    a user's own images, decoded
    experiences/<name>/         collect.arrow fail.arrow manifest.json      of a corruption: from the training split
    targets/<name>/             the same; of a corruption: from the test split
    features/                   one Parquet file per environment
    score/                      fid.parquet matrix.parquet confidence.parquet heatmap.png
    joint/                      model.safetensors epochs.json, of joint training
    merged/<experience>/        model.safetensors, repaired for an experience, to be averaged
    meta/<target>/              start.safetensors metrics.json              θ_meta, where a repair of the target starts;
                                with train.shared meta/shared/, for all targets
    repaired/<target>/          <method>/<seed>/model.safetensors result.json samples.parquet; with the report, a card
                                beside each model: README.md card.json
    report/                     index.html table.md figures
    hypothesis/                 pairs.parquet pairs.csv summary.json scatter.png, gains/ by experience and seed
    prepared/<method>/          what a method prepares before any target is known
    compare/                    index.html table.md rows.csv rows.parquet figures, of `metarepair compare`;
                                comparison.json: the planned repairs, for `metarepair status`;
                                <target>/<method>/<seed>/: model.safetensors judged.json samples.parquet
    seeds/<seed>/               a run of its own for each seed, of a comparison with `compare.vary: everything`
    search/                     trials.parquet trials.csv best.yaml, figures; inputs/ and trials/ of `metarepair tune`
    d_fail_reads.jsonl          each opening of a target's D_fail; outlives --restart
    fix.yaml fix.json repaired.*    of `metarepair fix`: the settings that it planned, what they were planned from, and
                                the repaired weights in the form of the user's own file, with README.md card.json
    deployed/                   of `metarepair pretrain`
    pack/                       of `metarepair kit`: kit.json, the deployed weights, moments, digests, clean images

A run with a kit reads joint/ and meta/shared/ in the kit's folder; with `refine`, meta/<target>/ is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from metarepair.config.run import SHARED, Config
from metarepair.weights import kit_folder
from tasks.errors import StorageError, UserError
from tasks.storage.paths import Place, find, place

FIX_SETTINGS, FIX_RECORD = "fix.yaml", "fix.json"
SEEDS = "seeds"  # the folder of the runs of a comparison's seeds
START = "start.safetensors"  # θ_meta; not named as a model, since it is not one to deploy before a repair
RATES = "rates.safetensors"  # factors of learned rates, beside the model of a checkpoint or of θ_meta


@dataclass(frozen=True)
class Run:
    """Paths of one run. report_to: the report's folder, if it is not in the run. kit: the folder of its repair kit."""

    root: Place
    report_to: Place | None = None
    kit: Place | None = None

    @property
    def environments(self) -> Place:
        return self.root / "environments"

    def environment(self, name: str) -> Place:
        return self.environments / name

    def experience(self, name: str) -> Place:
        return self.root / "experiences" / name

    def target(self, name: str) -> Place:
        return self.root / "targets" / name

    @property
    def features(self) -> Place:
        return self.root / "features"

    @property
    def score(self) -> Place:
        return self.root / "score"

    def meta(self, target: str) -> Place:
        return (self.kit if self.kit is not None and target == SHARED else self.root) / "meta" / target

    @property
    def joint(self) -> Place:
        return (self.kit or self.root) / "joint"

    @property
    def pack(self) -> Place:
        return self.root / "pack"

    def merged(self, experience: str) -> Place:
        return self.root / "merged" / experience

    def repaired(self, target: str) -> Place:
        return self.root / "repaired" / target

    @property
    def d_fail_log(self) -> Place:
        return self.root / "d_fail_reads.jsonl"

    @property
    def hypothesis(self) -> Place:
        return self.root / "hypothesis"

    @property
    def search(self) -> Place:
        return self.root / "search"

    def prepared(self, method: str) -> Place:
        return self.root / "prepared" / method

    @property
    def compare(self) -> Place:
        return self.root / "compare"

    def compared(self, target: str, method: str, seed: int) -> Place:
        return self.compare / target / method / str(seed)

    @property
    def seeds(self) -> Place:
        return self.root / SEEDS

    def of_seed(self, seed: int) -> Run:
        """The run of one seed, of a comparison with `compare.vary: everything`."""
        return Run(self.seeds / str(seed))

    @property
    def beside(self) -> list[Run]:
        """All runs of the storage folder, and the runs of their seeds. This run is one of them."""
        outer = self.root.parent.parent
        of_seed = self.root.parent.name == SEEDS and Run(outer).compare.is_dir()
        folders = find(outer.parent if of_seed else self.root.parent, "*")
        return [Run(one) for folder in folders for one in (folder, *find(folder / SEEDS, "*"))]

    @property
    def report(self) -> Place:
        return self.report_to or self.root / "report"


def run_of(config: Config) -> Run:
    """The run of a configuration, whether or not its folder exists."""
    return run_at(place(config.storage_path) / config.name, config)


def run_at(root: Place, config: Config, *, report_to: Place | None = None) -> Run:
    """The run of a configuration in the folder `root`."""
    return Run(root, report_to, None if config.kit is None else kit_folder(config.kit))


def open_run(config: Config) -> Run:
    """Create the run's folder. Raises ConfigError for an unsupported kind of path, UserError if it is not writable."""
    with _writable(config):
        root = run_of(config).root
        probe = root / ".writable.tmp"
        _make(probe)
        probe.unlink(missing_ok=True)  # another command that starts at the same time may have removed it
    return run_at(root, config)


def _make(probe: Place) -> None:
    """Create the probe file; try a second time if another command has just removed the empty folder."""
    for last in (False, True):
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch()
            return
        except FileNotFoundError:
            if last:
                raise


@contextmanager
def without_empty_run(config: Config) -> Iterator[None]:
    """Remove the folders that the block created for the run if they are empty when it ends.

    A folder that existed before stays, and so does one in which another command has started to write.
    """
    with _writable(config):
        root = run_of(config).root
        missing = [p for p in (root, *root.parents) if not p.exists()] if isinstance(root, Path) else []
    try:
        yield
    finally:
        with suppress(OSError):  # stop at the first folder that is not empty or does not exist
            for folder in missing:
                folder.rmdir()


@contextmanager
def _writable(config: Config) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"storage_path={config.storage_path!r} cannot be written ({error}). Give another with --storage PATH."
        ) from error
