"""Describe what a run, a stage or one of its files holds, and check its checksums. Nothing is changed.

D_fail is not opened: its bytes are hashed, and its counts come from the manifest, but its pixels, labels and
predictions are not read. The same holds for samples.parquet, and for shards that are not split yet.

`metarepair inspect PATH --json` prints one object. Its keys are stable:

    schema_version   1
    path             the inspected path, absolute
    kind             run | folder (experiences, features, …) | file | environment | features | score | meta | joint |
                     merged | kit | repaired | deployed | hypothesis | prepared | compared
    finished         true if every stage has its manifest; null for a file
    size_bytes       of everything under the path
    d_fail_reads     how often the run's evaluator opened a D_fail; null unless PATH is a run that has the log
    damaged          list of {path, state, remedy}; the exit code is 2 unless it is empty
    stages           list of: path (relative), kind, role (experience | target | null), name (corruption, target,
                     method, TARGET/METHOD/SEED of a comparison, or null), finished, manifest (ok | missing | damaged),
                     written (ISO 8601, the manifest file's time), size_bytes, settings (digest of config), result
                     (digest that later stages depend on), config, inputs, rows, versions,
                     files: list of {name, size_bytes, promised_bytes, state}, state being
                         ok | differs | missing | unreadable | unchecked (no checksum is recorded),
                     details: null, or by kind
                         environment  pixels (stored | recomputed | null), parts (null when finished), severities
                                      ({"1": {examined, correct, accuracy, failures, collected}}),
                                      collected_per_class ({class: count}), classes_named
                         features     extractor, dim (length of an image's feature vector)
                         score        confidence ({target: {experience: p}}), effective_number ({target: number})
                         meta         episodes, episodes_wanted, skipped_episodes, seconds, validation_accuracy,
                                      checkpoints (list of {path, episode, whole})
                         repaired, compared  methods (list of {method, target, seed, d_fail, corrupted, clean}; a
                                      repair of a comparison has one entry, with null for what is not judged),
                                      weights (list)
                         deployed     clean_test_accuracy, epochs
                         kit          deployed (digest of the DNN), experiences (list), clean_images, failures (whether
                                      the kit holds them), learned (number of images)
    file             null, or {name, format (failures | parquet | safetensors), size_bytes, promised_bytes, state,
                     promised_by (a manifest or null), header ({key: value}), collected_per_severity,
                     collected_per_class} (counts only for a collect.arrow)

Unknown values are null. If each seed of a comparison has a run of its own, the stages of these runs are listed, too;
their paths start with seeds/SEED/.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from metarepair.inspection.checksums import Checksums, bytes_to_read, parts_of, promised_states, sealed_of
from metarepair.inspection.damage import damage_of, is_being_deleted
from metarepair.inspection.details import details_of
from metarepair.inspection.facts import Damage, FileFacts, FileState, Inspection, StageFacts
from metarepair.inspection.files import inspect_file
from metarepair.inspection.paths import READS, open_part
from metarepair.inspection.stored import StoredStage, count_lines, read_stage
from metarepair.inspection.walk import find_stages
from tasks.storage.manifest import MANIFEST, content_hash
from tasks.storage.paths import Place
from tasks.storage.stages import BEGUN


def inspect(path: str) -> Inspection:
    """Inspect `path`, which is local or on an object store. Raises DataError if it holds no part of a run.

    Damage raises nothing: the returned record lists it.
    """
    root = open_part(path)
    if root.is_file():
        return inspect_file(root)
    found = find_stages(root)
    checksums = Checksums(bytes_to_read(map(read_stage, found.stages)))
    stages: list[StageFacts] = []
    damaged: list[Damage] = []
    for folder in found.stages:
        stage = read_stage(folder)  # read again, since checking the earlier stages may have taken minutes
        stages.append(facts := _facts(stage, checksums))
        damaged += damage_of(stage, {file.name: file.state for file in facts.files})
    return Inspection(
        path=str(root),
        kind=stages[0].kind if found.kind == "stage" else found.kind,
        size_bytes=sum(file.size_bytes for file in found.files.values()),
        damaged=tuple(damaged),
        stages=tuple(stages),
        d_fail_reads=count_lines(root / READS) if found.kind == "run" and READS in found.files else None,
    )


def _facts(stage: StoredStage, checksums: Checksums) -> StageFacts:
    """Read and check one stage."""
    states: dict[str, FileState] = {
        name: checksums.sealed_state(stage.folder / name) for name in sealed_of(stage)
    }
    counts: list[dict[str, Any]] = []
    if stage.manifest is None:
        for name in parts_of(stage):
            states[name], counted = checksums.part_state(stage.folder / name)
            counts += [counted] if states[name] == "ok" else []
        names = [name for name in stage.matching(*stage.stage.traces) if not name.endswith(BEGUN)]
        unsealed: dict[str, FileState] = dict.fromkeys(names, "unchecked")
        states = unsealed | states
    else:
        states = promised_states(stage, checksums) | states
    if is_being_deleted(stage, states):
        mark = {"config": stage.config}
        stage, states = replace(stage, manifest=None, manifest_state="missing", begun_with=mark), {}
    manifest, config = stage.manifest, stage.config
    return StageFacts(
        path=stage.path,
        kind=stage.kind,
        role=stage.role,
        name=stage.name,
        finished=stage.manifest_state == "ok",
        manifest=stage.manifest_state,
        written=_written(stage.folder / MANIFEST),
        size_bytes=sum(file.size_bytes for file in stage.files.values()),
        settings=content_hash(config) if config else None,
        result=manifest.digest if manifest is not None else None,
        config=config,
        inputs=manifest.inputs if manifest is not None else {},
        rows=manifest.rows if manifest is not None else {},
        versions=manifest.versions if manifest is not None else {},
        files=tuple(
            FileFacts(
                name=name,
                size_bytes=stage.files[name].size_bytes if name in stage.files else None,
                promised_bytes=stage.promised[name][0] if name in stage.promised else None,
                state=state,
            )
            for name, state in states.items()
        ),
        details=details_of(stage, states, counts),
    )


def _written(path: Place) -> str | None:
    """Return the file's modification time; None on an object store, which records only the upload time."""
    if not isinstance(path, Path):
        return None
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    except OSError:
        return None
