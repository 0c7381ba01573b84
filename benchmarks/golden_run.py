"""Record what a checkout of MetaRepair computes on small fixed cases, and compare two recordings bit for bit.

A refactoring must not change any computed result. Record the commit before it and the commit after it on one machine,
then compare:

    python benchmarks/golden_run.py record --checkout OLD_CHECKOUT --out golden/old
    python benchmarks/golden_run.py record --checkout NEW_CHECKOUT --out golden/new
    python benchmarks/golden_run.py compare golden/old golden/new

`record` runs the checkout's command line (`python -m metarepair`, one thread) in separate processes and keeps their
runs, outputs and exit codes. This file imports nothing from MetaRepair, so it can record any commit. `compare` exits
with 1 and lists the differences if there are any. A recording takes about five minutes on two cores.

The tables at the top list what may differ without being reported: TEXT_RULES, DROPPED_LINES, IGNORED_KEYS,
IGNORED_DIGESTS, HIDDEN_DEFAULTS, LEFT_OUT and LOOSE. Everything else is compared exactly: tensors, failures, arrays
and images by their bytes; JSON, YAML, Parquet, CSV and TensorBoard events by value; Markdown and HTML by line;
standard output and error as a multiset of lines.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import html
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# --- What may differ ------------------------------------------------------------------------------------------------

# (pattern, replacement, why), for text and for strings inside JSON, YAML, Parquet and CSV. Before these rules, the
# folders of the recording and the checkout are replaced, then the digests of stages' results (see `Recording.results`).
TEXT_RULES: tuple[tuple[str, str, str], ...] = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:[+-]\d\d:\d\d|Z)?", "<time>", "a point in time"),
    (r"\b(?:\d+ h \d+ min|(?:\d+ min )?\d+(?:\.\d+)? s)\b", "<duration>", "a measured duration"),
    (r"\b[\d.]+(?:e[+-]?\d+)? ([\w-]+)/s\b", r"<rate> \1/s", "a measured rate"),
    (r"\b[\d,]+ MiB are free", "<size> are free", "the free memory of the machine"),
    (r"\b[\d.,]+ (?:B|KiB|MiB|GiB)(?=[;,]|\s*$|  )", "<size>", "sizes of folders that hold seconds as text"),
    (r"\bprocess \d+ on host [\w.-]+", "process <pid> on host <host>", "the process and the machine"),
    (
        r"\bdigest [0-9a-f]{24}\b",
        "digest <of settings>",
        "settings with hidden defaults (see HIDDEN_DEFAULTS) in them",
    ),
    (r"\bmetarepair \d+\.\d+\.\d+\w*", "metarepair <version>", "the version of the source"),
)
# Lines of standard output and error that are dropped, because they come from Ray itself or depend on its timing.
DROPPED_LINES = (r"^\S*\([^)]*(?:pid|ip)=", r"^<time>\s+(?:INFO|WARNING)\b")
# A progress line appears every ten seconds, so the number and content of these lines depend on the speed.
PROGRESS = re.compile(r"^([^:]+): \d+ of \d+ ([\w-]+), .*<rate> .*$")

# Keys of JSON objects and columns of tables whose values are not compared, with the reason.
IGNORED_KEYS: dict[str, str] = {
    r"seconds(_.*)?|.*_seconds|.*, s": "measured time",
    r".*_per_s": "measured rates",
    r"memory_bytes|memory, .*|peak_memory.*": "measured peak memory",
    r"opened|written|since|last_sign_s": "points in time",
    r"host|pid": "the process and the machine",
    r"size_bytes|promised_bytes": "sizes of files that hold seconds as text; the files themselves are compared",
    r"stack_trace|nn_module_stack": "files, lines and modules of the source, in exported programs",
}

# Keys of digests that are not compared, because what they digest includes settings with hidden defaults, or seconds.
IGNORED_DIGESTS = r"checksum|identity|settings"

# Settings that old commits did not record while at these defaults: absent means the same as present.
_PREPARATION = {"stem": "imagenet", "input_size": None, "normalisation": "dataset", "mean": None, "std": None}
HIDDEN_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"entry": None, **_PREPARATION},
    "preparation": _PREPARATION,
    "task": {"clean_support": 0},
    "repair": {"interpolate": [1.0], "clean_weight": 0.0},
    "train": {"clean_corrupted": 0.0},
}

# Files that are not compared, with the reason.
LEFT_OUT: dict[str, str] = {
    r"recording\.json": "the folders, commit and speed of the recording",
    r"runs/[^/]+/search/tune/.*": "Ray Tune's own state: pickles, points in time and process numbers",
    r"runs/[^/]+/.*/ray/.*": "Ray Train's own state",
    r"runs/[^/]+/search/trials/.*/tensorboard/.*": "a trial stopped early may end before its events are copied",
    r"runs/[^/]+/lock(\.json)?": "the process that writes to a run",
}

# Compared only by their accuracies, in percentage points, because Arachne's search may be rewritten.
LOOSE = r"runs/arachne/compare/.*|said/arachne(-[^/]+)?/std(out|err)\.txt"
LOOSE_POINTS = 10.0

# A manifest's digests of these files are compared; other files may hold seconds and are compared by value.
EXACT = (".safetensors", ".arrow", ".npy", ".png")

# --- What is recorded -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command. In `words`, RUNS and OUT stand for the folder of runs and the folder of the recording."""

    name: str
    words: tuple[str, ...]
    exit_code: int = 0
    copies: tuple[str, str] | None = None  # (from, to): a run that is copied first, under another name
    damages: str | None = None  # a file of the runs in which one bit is flipped first


def settings(name: str, **changes: Any) -> tuple[str, ...]:
    """Return options for a small run on the shipped sample; `a__b=1` sets a.b."""
    small = {
        "name": name,
        "workers": 0,
        "device": "cpu",
        "data.max_train_images": 200,
        "data.max_test_images": 200,
        "mining.experiences": ["shot_noise", "fog", "contrast"],
        "mining.severities": [3, 5],
        "mining.collect": 20,
        "mining.shard_images": 100,
        "experiences.alpha": 0.5,
        "task.shots": 1,
        "task.query_size": 10,
        "inner.steps": 2,
        "train.episodes": 2,
        "train.round_episodes": 1,
        "train.tasks": 2,
        "repair.episodes": 1,
        "repair.tasks": 2,
        "repair.rates": [0.03, 0.1],
        "repair.methods": ["none", "finetune", "bn_adapt", "tent", "metarepair"],
        "evaluate.others": ["fog", "jpeg_compression"],
        "evaluate.others_images": 20,
    }
    given = small | {key.replace("__", "."): value for key, value in changes.items()}
    sets = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ("--config", "tune_configs/sample.yaml", "--storage", "RUNS", *sets)


COMPARED = ["none", "finetune", "bn_adapt", "tent", "apricot", "augmix", "sensei", "deeprepair", "archrepair"]
METHODS = {
    "apricot": {"reduced": {"models": 2, "per_class": 8, "epochs": 1, "rate": 0.002, "batch_size": 16}},
    "archrepair": {"correct": 40},
    "augmix": {"rate": 0.01, "batch_size": 16, "collected_share": 0.5},
    "deeprepair": {"rate": 0.01, "batch_size": 16, "patience": None},
    "sensei": {"batch_size": 16, "variants": 3, "keep": 2, "rate": 0.01, "rotation": 10.0},
    "tent": {"batch_size": 16},
}
PAIRS = ["contrast", "fog", "shot_noise", "speckle_noise"]
SEARCH = {
    "space": {"inner.rate": {"log_uniform": [0.01, 0.3]}, "task.shots": {"choice": [1, 2]}},
    "experience_sets": {"top_k": [1, 2]},
    "searcher": "optuna",
    "scheduler": "asha",
    "reduction": 2.0,
    "trials": 3,
    "max_concurrent": 1,
}
PRETRAIN = {
    "epochs": 2,
    "batch_size": 40,
    "accumulation": 2,
    "ema_decay": 0.8,
    "validation_fraction": 0.2,
    "randaugment": 6,
    "mixup": 0.2,
    "cutmix": 0.5,
}
FIRST = "RUNS/first"
REPAIRED = f"{FIRST}/repaired/gaussian_noise/metarepair/0/model.safetensors"
TRAINED = f"{FIRST}/compare/gaussian_noise/augmix/0/model.safetensors"


def compare_words(name: str, methods: Sequence[str], more: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = settings(name, compare__seeds=[0, 1], compare__methods=list(methods), methods=dict(more))
    return ("compare", *chosen, "--budget", "6steps")


def varied() -> tuple[str, ...]:
    """Return options for a run with another DNN, two targets, and non-default settings for every stage."""
    return settings(
        "varied",
        targets=["gaussian_noise", "snow"],
        model={"name": "convnext_cifar", "weights": "shipped:convnext_cifar10"},
        mining__pixels="recomputed",
        mining__collect_rule="stratified",
        features__bootstrap=40,
        features__extrapolate=True,
        experiences={"choice": "top_k", "top_k": 2, "rule": "softmax", "alpha": 0.02},
        task__clean_support=4,
        inner__momentum=0.5,
        inner__weight_decay=0.001,
        inner__learned_rates=True,
        train__episodes=3,
        train__memory="recompute",
        train__outer_optimizer="AdamW",
        train__warmup_episodes=1,
        train__outer_decay="cosine",
        train__clip_norm=5.0,
        train__first_order_episodes=1,
        train__multi_step_episodes=2,
        train__clean_weight=0.5,
        train__clean_corrupted=0.5,
        repair__update="separate",
        repair__interpolate=[0.5, 1.0],
        repair__clean_weight=0.5,
        repair__seeds=[1],
        repair__methods=["finetune", "metarepair"],
        repair__export=["torch"],
    )


def shown(run: str, *verbs: str) -> list[Case]:
    """Return cases that show a run by `inspect` and `status`, as text and as JSON."""
    return [
        Case(name=f"{verb}{'-json' if flags else ''}-{run}", words=(verb, f"RUNS/{run}", *flags))
        for verb in verbs or ("inspect", "status")
        for flags in ((), ("--json",))
    ]


def refused(name: str, *words: str) -> Case:
    """Return a case with wrong input, which must exit with code 2."""
    return Case(name=f"refused-{name}", words=words, exit_code=2)


def export(name: str, what: str, kind: str, file: str) -> Case:
    return Case(name=name, words=("export", what, "--format", kind, "--out", f"OUT/exported/{file}"))


COMPARE = compare_words("first", [*COMPARED, "metarepair"], METHODS)
ARACHNE = {"arachne": {"last_layers": 1, "population": 20, "generations": 6}}
STUDY = settings("study", targets=PAIRS, mining__experiences=PAIRS, repair__seeds=[0, 1])
RESTARTED = settings("restarted", experiences__rule="uniform")
ANY = settings("refused")

CASES: tuple[Case, ...] = (
    Case(name="help", words=("--help",)),
    Case(name="corruptions", words=("corruptions", "--list")),
    Case(name="first", words=("run", *settings("first"))),
    Case(name="first-again", words=("run", *settings("first"))),
    Case(name="restart", words=("score", *RESTARTED, "--restart"), copies=("first", "restarted")),
    *shown("restarted"),
    Case(
        name="damage",
        words=("inspect", "RUNS/damaged"),
        exit_code=2,
        copies=("first", "damaged"),
        damages="damaged/experiences/fog/collect.arrow",
    ),
    Case(name="mend", words=("mine", *settings("damaged"))),
    *shown("damaged", "inspect"),
    Case(name="on-ray", words=("run", *settings("on_ray", workers=1))),
    *shown("on_ray"),
    Case(name="varied", words=("run", *varied())),
    *shown("varied"),
    Case(name="compare", words=COMPARE),
    Case(name="compare-pair", words=(*COMPARE, "--pair", "metarepair", "augmix")),
    *shown("first"),
    Case(name="arachne", words=compare_words("arachne", ["none", "arachne"], ARACHNE)),
    *shown("arachne"),
    Case(name="tune", words=("tune", *settings("searched", search=SEARCH))),
    *shown("searched"),
    Case(name="hypothesis", words=("hypothesis", *STUDY)),
    *shown("study"),
    Case(name="pretrain", words=("pretrain", *settings("pretrained", pretrain=PRETRAIN))),
    *shown("pretrained"),
    export("export-torch", REPAIRED, "torch", "first.pt2"),
    export("export-original", FIRST, "original", "first.safetensors"),
    export("export-compared", TRAINED, "original", "augmix.safetensors"),
    Case(
        name="sheet",
        words=("inspect", f"{FIRST}/targets/gaussian_noise", "--sheet", "OUT/exported/sheet.png"),
    ),
    refused("misspelt-key", "run", *ANY, "--set", "train.episods=1"),
    refused("no-value", "run", *ANY, "--set", "train.episodes"),
    refused("wrong-value", "run", *ANY, "--set", "train.episodes=many"),
    refused("missing-configuration", "run", "--config", "absent.yaml", "--storage", "RUNS"),
    refused("missing-weights", "run", *settings("refused", model__weights="absent.safetensors")),
    refused("unknown-corruption", "run", *settings("refused", targets=["gausian_noise"])),
    refused("unknown-method", "run", *settings("refused", repair__methods=["metarepiar"])),
    refused("unknown-verb", "mien", *ANY),
    refused("search-of-a-seed", "tune", *settings("refused", search={"space": {"seed": {"choice": [0, 1]}}})),
    refused("too-few-failures", "mine", *settings("too_few", mining__collect=100_000)),
    refused("stage-before-its-input", "repair", *ANY),
    refused("other-settings", "mine", *settings("first", mining__collect=30)),
    refused(
        "nothing-to-export", "export", "RUNS/absent", "--format", "torch", "--out", "OUT/exported/absent.pt2"
    ),
    refused("nothing-to-inspect", "inspect", "RUNS/absent"),
    refused("nothing-to-tell-of", "status", "RUNS/absent"),
)


def record(checkout: Path, out: Path, python: str, only: Sequence[str] = ()) -> int:
    """Run every case, and keep its files and output. Return how many ended with an unexpected exit code."""
    checkout, out = checkout.resolve(), out.resolve()
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty. Name a new folder.")
    for folder in ("runs", "said", "exported"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    environment = environment_of(checkout)
    check_imports(checkout, python, environment)
    seconds, unexpected = {}, 0
    for case in CASES:
        if only and case.name not in only:
            continue
        began = time.monotonic()
        code = record_case(case, checkout, out, python, environment)
        seconds[case.name] = round(time.monotonic() - began, 1)
        wrong = "" if code == case.exit_code else f": exit code {code}, expected {case.exit_code}"
        unexpected += bool(wrong)
        print(f"{seconds[case.name]:6.1f} s  {case.name}{wrong}", flush=True)
    facts = {"checkout": str(checkout), "out": str(out), "commit": commit_of(checkout), "seconds": seconds}
    (out / "recording.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(seconds.values()):6.1f} s  in total; commit {facts['commit']}; written to {out}")
    return unexpected


def environment_of(checkout: Path) -> dict[str, str]:
    """Return every command's environment: the checkout's code, one thread, no MetaRepair variables."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("METAREPAIR_", "RAY_"))}
    fixed = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "RAY_DEDUP_LOGS": "0"}
    return own | fixed


def check_imports(checkout: Path, python: str, environment: Mapping[str, str]) -> None:
    """Refuse a Python that would import MetaRepair from anywhere but the checkout."""
    code = "import metarepair, tasks, distributed as d; print(metarepair.__path__[0], tasks.__path__[0], d.__path__[0])"
    told = subprocess.run(
        [python, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    wrong = [found for found in told.stdout.split() if Path(found).resolve().parent != checkout]
    if wrong:
        raise SystemExit(f"{python} imports {', '.join(wrong)} instead of the packages in {checkout}.")


def commit_of(checkout: Path) -> str:
    """Return the checkout's commit, with `+changes` if tracked files are modified."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", checkout, *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")


def record_case(case: Case, checkout: Path, out: Path, python: str, environment: Mapping[str, str]) -> int:
    """Run one command, and return its exit code."""
    runs, said = out / "runs", out / "said" / case.name
    if case.copies:
        shutil.copytree(runs / case.copies[0], runs / case.copies[1])
    if case.damages:
        flip_a_bit(runs / case.damages)
    words = [re.sub(r"^OUT\b", str(out), re.sub(r"^RUNS\b", str(runs), word)) for word in case.words]
    ended = subprocess.run(
        [python, "-m", "metarepair", *words],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    said.mkdir()
    (said / f"stdout.{'json' if '--json' in words else 'txt'}").write_bytes(ended.stdout)
    (said / "stderr.txt").write_bytes(ended.stderr)
    (said / "exit_code.txt").write_text(f"{ended.returncode}\n", encoding="utf-8")
    return ended.returncode


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- How two recordings are compared --------------------------------------------------------------------------------

SHOWN = 5  # differences of one file that are listed
WIDTH = 180  # characters of a difference


class Recording:
    """A recording's folder: its files, and how their content is normalised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        facts = self.folder / "recording.json"
        if not facts.is_file():
            raise SystemExit(f"{folder} has no recording.json, so it holds no finished recording.")
        told = json.loads(facts.read_text(encoding="utf-8"))
        self.folders = {told["out"]: "<recording>", told["checkout"]: "<checkout>"}

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """All compared files by name. TensorBoard files' names are stripped of their time and host."""
        found: dict[str, list[Path]] = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if not any(re.fullmatch(pattern, name) for pattern in LEFT_OUT):
                found.setdefault(re.sub(r"(events\.out\.tfevents)\..*", r"\1", name), []).append(path)
        return found

    @cached_property
    def results(self) -> dict[str, str]:
        """Map the digest of each stage's result to the stage, from the output of `inspect --json`.

        These digests include settings, and so hidden defaults; later stages record them as their inputs.
        """
        found: dict[str, str] = {}
        for path in sorted(self.folder.glob("said/inspect-json-*/stdout.json")):
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            for stage in told.get("stages", []):
                if stage.get("result"):
                    run = Path(told["path"]).name
                    found.setdefault(stage["result"], f"<result of {run}/{stage['path']}>")
        return found

    def text(self, text: str) -> str:
        """Return `text` with what may differ replaced."""
        for folder, name in sorted(self.folders.items(), key=lambda item: -len(item[0])):
            text = text.replace(folder, name)
        text = re.sub(r"\b[0-9a-f]{24}\b", lambda match: self.results.get(match[0], match[0]), text)
        for pattern, replacement, _ in TEXT_RULES:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        return text

    def value(self, value: Any, section: str = "") -> Any:
        """Return JSON or YAML content without what may differ. `section`: the key that it is stored under."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            return value
        hidden = HIDDEN_DEFAULTS.get(section, {})
        kept = {
            self.text(str(key)): self.value(item, str(key))
            for key, item in value.items()
            if not is_ignored(str(key), item) and not (key in hidden and item == hidden[key])
        }
        if section == "files":  # a manifest's [size, digest], a checkpoint's digest
            kept = {key: item if key.endswith(EXACT) else "<compared itself>" for key, item in kept.items()}
        if kept.get("preparation") == {}:
            del kept["preparation"]
        if section == "versions":
            kept.pop("metarepair", None)
        return kept


def is_ignored(key: str, value: Any = None) -> bool:
    """Whether the value at a key, or the column of that name, is not compared."""
    if isinstance(value, str) and re.fullmatch(IGNORED_DIGESTS, key):
        return True
    return any(re.fullmatch(pattern, key) for pattern in IGNORED_KEYS)


Reader = Callable[[Recording, Sequence[Path]], Any]


def read_json(recording: Recording, paths: Sequence[Path]) -> Any:
    return recording.value(json.loads(paths[0].read_text(encoding="utf-8")))


def read_json_lines(recording: Recording, paths: Sequence[Path]) -> Any:
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    return [recording.value(json.loads(line)) for line in lines]


def read_seal(recording: Recording, paths: Sequence[Path]) -> Any:
    """Read a part's seal, with the file's digest only if nothing in the file may differ."""
    sealed = json.loads(paths[0].read_text(encoding="utf-8"))
    if not paths[0].name.endswith((".safetensors.seal", ".npy.seal")):
        sealed.pop("digest", None)
    return recording.value(sealed)


def read_safetensors(recording: Recording, paths: Sequence[Path]) -> Any:
    """Read tensors as digests of their bytes, and the metadata, whose order in the file is random.

    The state of an interrupted repair stores its duration as a tensor named `seconds`, which is ignored.
    """
    content = paths[0].read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    found = {"metadata": recording.value(header.pop("__metadata__", {}))}
    for name, tensor in header.items():
        if not is_ignored(name.rpartition(".")[2]):
            begin, end = tensor["data_offsets"]
            found[name] = f"{tensor['dtype']} {tensor['shape']}, digest {digest(data[begin:end])}"
    return found


def read_part(recording: Recording, paths: Sequence[Path]) -> Any:
    """Read a shard of an unfinished environment: its columns as digests of their bytes; its metadata holds seconds."""
    with pa.ipc.open_file(paths[0]) as reader:
        table = reader.read_all()
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    facts = json.loads(metadata.pop("facts", "null"))
    columns = {
        name: [digest(buffer) for chunk in table[name].chunks for buffer in chunk.buffers() if buffer]
        for name in table.schema.names
    }
    types = [f"{field.name}: {field.type}" for field in table.schema]
    return {"types": types, "metadata": metadata, "facts": recording.value(facts), "columns": columns}


def read_yaml(recording: Recording, paths: Sequence[Path]) -> Any:
    return recording.value(yaml.safe_load(paths[0].read_text(encoding="utf-8")))


def read_parquet(recording: Recording, paths: Sequence[Path]) -> Any:
    table = pq.read_table(paths[0])
    columns = [name for name in table.schema.names if not is_ignored(name)]
    return {
        f"{name} ({table.schema.field(name).type})": recording.value(table[name].to_pylist())
        for name in columns
    }


def read_csv(recording: Recording, paths: Sequence[Path]) -> Any:
    with paths[0].open(encoding="utf-8", newline="") as stream:
        return recording.value(list(csv.DictReader(stream)))


def read_events(_: Recording, paths: Sequence[Path]) -> Any:
    """Read the scalars of TensorBoard's record files, sorted: [step, tag, value]."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in paths:
        content, at = path.read_bytes(), 0
        while at < len(content):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found += [[event.step, value.tag, value.simple_value] for value in event.summary.value]
            at += length + 16
    return sorted(row for row in found if not is_ignored(row[1].rpartition("/")[2]))


def read_program(recording: Recording, paths: Sequence[Path]) -> Any:
    """Read the parts of an exported program: its graph by value, its weights as digests of their bytes.

    Its serialization_id is dropped: it digests all parts, including the names of source files in the graph.
    """
    with zipfile.ZipFile(paths[0]) as program:
        parts = {name.partition("/")[2]: program.read(name) for name in program.namelist()}
    parts.pop(".data/serialization_id", None)
    return {
        name: recording.value(json.loads(content)) if name.endswith(".json") else digest(content)
        for name, content in parts.items()
    }


def read_markdown(recording: Recording, paths: Sequence[Path]) -> list[str]:
    return plain_lines(recording, paths[0].read_text(encoding="utf-8", errors="replace"))


def plain_lines(recording: Recording, text: str) -> list[str]:
    """Return lines without what may differ, also in tables of Markdown and of aligned columns; padding is ignored."""
    lines: list[str] = []
    headers: list[str] = []
    for line in text.splitlines():
        in_markdown = line.startswith("|")
        cells = line.strip()[1:-1].split("|") if in_markdown else re.split(" {2,}", line.strip())
        cells = [cell.strip() for cell in cells]
        if not (in_markdown or headers or any(map(is_ignored, cells))):
            lines.append(re.sub(" {2,}", "  ", recording.text(line)))
        elif line:
            headers = headers or cells
            lines.append(table_row(recording, headers, cells))
        else:
            headers = []
            lines.append("")
    return lines


def table_row(recording: Recording, headers: Sequence[str], cells: Sequence[str]) -> str:
    """Return one row without the ignored columns."""
    if len(headers) != len(cells):
        return " | ".join(map(recording.text, cells))
    return " | ".join(
        recording.text(cell) for name, cell in zip(headers, cells, strict=True) if not is_ignored(name)
    )


def read_html(recording: Recording, paths: Sequence[Path]) -> list[str]:
    """Read the lines of a page, with its tables row by row, its settings by value and its images by their digests."""

    def rows(table: re.Match[str]) -> str:
        headers = re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)
        found = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)
        cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in found]
        return "\n".join(
            [table_row(recording, headers, headers)]
            + [table_row(recording, headers, row) for row in cells if row]
        )

    def configuration(block: re.Match[str]) -> str:
        content = yaml.safe_load(html.unescape(block[1]))
        plain = isinstance(content, dict)
        return json.dumps(recording.value(content), sort_keys=True) if plain else block[0]

    text = paths[0].read_text(encoding="utf-8")
    text = re.sub(r"base64,([^\"]*)", lambda match: f"image {digest(match[1].encode())}", text)
    text = re.sub(r"<pre>(name: .*?)</pre>", configuration, text, flags=re.DOTALL)
    text = re.sub(r"<table>.*?</table>", rows, text, flags=re.DOTALL)
    return recording.text(text).splitlines()


def read_said(recording: Recording, paths: Sequence[Path]) -> Counter[str]:
    """Count the lines of an output. Their order is ignored, since threads may print in another order."""
    counted: Counter[str] = Counter()
    for line in read_markdown(recording, paths):
        if PROGRESS.match(line):
            counted[PROGRESS.sub(r"\1: progress in \2", line)] = 1
        elif not any(re.match(pattern, line) for pattern in DROPPED_LINES):
            counted[line] += 1
    return counted


def digest(content: bytes | pa.Buffer) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_bytes(_: Recording, paths: Sequence[Path]) -> str:
    content = paths[0].read_bytes()
    return f"{len(content)} bytes, digest {digest(content)}"


READERS: tuple[tuple[str, Reader], ...] = (
    (r".*\.json", read_json),
    (r".*\.jsonl", read_json_lines),
    (r".*\.seal", read_seal),
    (r".*\.safetensors", read_safetensors),
    (r".*/parts/.*\.arrow", read_part),
    (r".*\.ya?ml", read_yaml),
    (r".*\.parquet", read_parquet),
    (r".*\.csv", read_csv),
    (r".*events\.out\.tfevents", read_events),
    (r".*\.pt2", read_program),
    (r".*\.md", read_markdown),
    (r".*\.html", read_html),
    (r"said/.*\.txt", read_said),
    (r".*", read_bytes),
)


def compare(old: Path, new: Path) -> list[str]:
    """Return every difference between two recordings, as `FILE: difference`."""
    before, after = Recording(old), Recording(new)
    found = []
    for name in sorted(before.files.keys() | after.files.keys()):
        if name not in after.files or name not in before.files:
            found.append(f"{name}: only in {'the old' if name in before.files else 'the new'} recording")
            continue
        lines = list(file_differences(name, before, after))
        found += [f"{name}: {line[:WIDTH]}" for line in lines[:SHOWN]]
        if len(lines) > SHOWN:
            found.append(f"{name}: and {len(lines) - SHOWN} more differences")
    return found


def file_differences(name: str, before: Recording, after: Recording) -> Iterator[str]:
    reader = next(reader for pattern, reader in READERS if re.fullmatch(pattern, name))
    loose = re.fullmatch(LOOSE, name) is not None
    if loose and not name.endswith("/judged.json"):
        return
    try:
        old, new = reader(before, before.files[name]), reader(after, after.files[name])
    except (ValueError, KeyError, OSError, struct.error, zipfile.BadZipFile, yaml.YAMLError) as error:
        old, new = read_bytes(before, before.files[name]), read_bytes(after, after.files[name])
        if old != new:
            yield f"cannot be read ({error}), and the bytes differ"
        return
    if loose:
        yield from accuracy_differences(old, new)
    elif isinstance(old, Counter):
        yield from (f"only in the old: {line}" for line in (old - new).elements())
        yield from (f"only in the new: {line}" for line in (new - old).elements())
    elif reader in (read_markdown, read_html):
        yield from (
            line
            for line in difflib.unified_diff(old, new, n=0, lineterm="")
            if not re.match(r"---|\+\+\+|@@", line)
        )
    else:
        yield from value_differences(old, new)


def value_differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield `key.key: old -> new` for each difference of two plain values; 1 and 1.0 differ, NaN and NaN do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            where = f"{at}.{key}" if at else str(key)
            if key not in old or key not in new:
                yield f"{where}: only in the {'old' if key in old else 'new'}: {(old | new)[key]!r}"
            else:
                yield from value_differences(old[key], new[key], where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from value_differences(one, other, f"{at}[{number}]")
    elif repr(old) != repr(new):
        yield f"{at}: {old!r} -> {new!r}" if at else f"{old} -> {new}"


def accuracy_differences(old: Any, new: Any) -> Iterator[str]:
    """Yield accuracies (fractions from 0 to 1) that differ by more than LOOSE_POINTS."""
    for line in accuracy_pairs(old, new):
        at, one, other = line
        if abs(one - other) * 100 > LOOSE_POINTS:
            yield f"{at}: {one:.3f} -> {other:.3f}, more than {LOOSE_POINTS:g} points"


def accuracy_pairs(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, float, float]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() & new.keys()):
            yield from accuracy_pairs(old[key], new[key], f"{at}.{key}".lstrip("."))
    elif isinstance(old, float) and isinstance(new, float) and 0 <= old <= 1 and 0 <= new <= 1:
        yield at, old, new


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Record what a checkout computes, and compare two recordings."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    recorder = verbs.add_parser("record", help="run all cases with a checkout and keep their output")
    recorder.add_argument("--checkout", type=Path, required=True, metavar="FOLDER")
    recorder.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    recorder.add_argument(
        "--python", default=sys.executable, help="the Python that runs the checkout (this one)"
    )
    recorder.add_argument(
        "--only", nargs="+", default=[], metavar="CASE", help="run only these cases, to try them"
    )
    comparer = verbs.add_parser("compare", help="list the differences of two recordings")
    comparer.add_argument("old", type=Path, metavar="OLD")
    comparer.add_argument("new", type=Path, metavar="NEW")
    given = parser.parse_args(arguments)
    if given.verb == "record":
        return 1 if record(given.checkout, given.out, given.python, given.only) else 0
    found = compare(given.old, given.new)
    print("\n".join(found) if found else "no difference")
    if found:
        files = len({line.partition(":")[0] for line in found})
        print(f"{files} files differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
