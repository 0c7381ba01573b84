"""Format an inspection as text: a summary line, then each stage."""

from __future__ import annotations

from collections.abc import Sequence

from metarepair.inspection.damage import WORDS
from metarepair.inspection.facts import (
    BAD,
    DeployedFacts,
    EnvironmentFacts,
    FeatureFacts,
    Inspection,
    KitFacts,
    LoneFile,
    RepairFacts,
    ScoreFacts,
    StageFacts,
    TrainingFacts,
)
from metarepair.inspection.tables import (
    METHOD_HEAD,
    classes_table,
    compared_table,
    count,
    d_fail_reads,
    environments_table,
    feature_parts,
    features_table,
    method_cells,
    percent,
    severity_table,
    size,
    table,
    tally,
)
from metarepair.runs.progress import duration

FILES_SHOWN = 20  # if there are more, only the damaged files are shown


def describe(inspection: Inspection) -> str:
    """Return the whole inspection as text."""
    if inspection.file is not None:
        return "\n".join([f"{inspection.path}: {size(inspection.size_bytes)}", *_file(inspection.file)])
    lines = [f"{inspection.path}: {_headline(inspection)}"]
    if len(inspection.stages) == 1:
        return "\n".join([*lines, *_stage(inspection.stages[0])])
    own = [stage for stage in inspection.stages if stage.seed_run is None]
    broken = [line for stage in inspection.stages for line in _broken(stage)]
    damaged = ["", "Damaged:", *broken] if broken else []
    return "\n".join([*lines, *_run(inspection, own), *_seeds(inspection), *damaged])


def _seeds(inspection: Inspection) -> list[str]:
    """Return a line for the run of each seed of a comparison, with the command that shows it."""
    runs: dict[str, list[StageFacts]] = {}
    for stage in inspection.stages:
        if stage.seed_run is not None:
            runs.setdefault(stage.seed_run, []).append(stage)
    if not runs:
        return []
    lines = ["", "Each seed of the comparison has a run of its own:"]
    for folder, stages in runs.items():
        done = sum(stage.finished for stage in stages)
        states = tally(file.state for stage in stages for file in stage.files)
        lines += [
            f"  metarepair inspect {inspection.path}/{folder}",
            f"    {done} of {len(stages)} started stages finished; checksums: {states}",
        ]
    return lines


def _run(inspection: Inspection, stages: Sequence[StageFacts]) -> list[str]:
    """Describe the stages of a run or a folder of one."""
    lines = _common(stages)
    lines += d_fail_reads(inspection.d_fail_reads)
    environments = [stage for stage in stages if stage.kind == "environment"]
    if environments:
        lines += ["", *environments_table(environments), "", *classes_table(environments)]
    features = [stage for stage in stages if stage.kind == "features"]
    if features:
        lines += ["", *features_table(features)]
    for stage in stages:
        if stage.kind not in ("environment", "features", "compared"):
            lines += ["", f"{stage.path}: {_state(stage)}", *_details(stage)]
    compared = [stage for stage in stages if stage.kind == "compared"]
    return lines + (["", *compared_table(compared)] if compared else [])


def _headline(inspection: Inspection) -> str:
    done = sum(stage.finished for stage in inspection.stages)
    if len(inspection.stages) == 1:
        stage = inspection.stages[0]
        return f"{title(stage)}, {_state(stage)}"
    kind = "a run" if inspection.kind == "run" else "a folder of a run"
    unfinished = f", {len(inspection.stages) - done} not" if done < len(inspection.stages) else ""
    files = [file for stage in inspection.stages for file in stage.files]
    return (
        f"{kind} with {len(inspection.stages)} stages, {done} finished{unfinished}{_span(inspection.stages)}; "
        f"{size(inspection.size_bytes)}; checksums: {tally(file.state for file in files)}"
    )


def _span(stages: Sequence[StageFacts]) -> str:
    """Return the times at which the first and the last stage finished."""
    moments = sorted(_moment(stage.written) for stage in stages if stage.written)
    return f", written {moments[0]} to {moments[-1]}" if moments else ""


def _moment(written: str) -> str:
    return written[:19].replace("T", " ")


def title(stage: StageFacts) -> str:
    """Return a stage's title."""
    named = f" {stage.name}" if stage.name else ""
    words = {
        "images": f"images of{named}",
        "environment": f"{stage.role or 'environment'}{named}",
        "features": f"features of {stage.role or 'an environment'}{named}",
        "score": "distances and confidence",
        "meta": f"meta-training for{named}",
        "repaired": f"repairs for{named}",
        "joint": "joint training for all targets",
        "merged": f"a repair of the experience{named}, to be merged",
        "deployed": "a pretrained DNN",
        "hypothesis": "the study of the hypothesis",
        "prepared": f"preparation of{named} for all targets",
        "compared": f"a repair of a comparison,{named}",
        "kit": "the pack of a repair kit",
    }
    return words[stage.kind]


def _state(stage: StageFacts) -> str:
    if stage.manifest == "damaged":
        return f"its manifest is damaged; {size(stage.size_bytes)}"
    if not stage.finished:
        return f"unfinished (no manifest yet); {size(stage.size_bytes)}"
    when = f", written {_moment(stage.written)}" if stage.written else ""
    return f"finished{when}; {size(stage.size_bytes)}; checksums: {tally(file.state for file in stage.files)}"


def _stage(stage: StageFacts) -> list[str]:
    """Describe one stage in full."""
    lines = [*_common([stage]), *_details(stage)]
    if isinstance(stage.details, EnvironmentFacts):
        lines += ["", *severity_table(stage.details)]
        if stage.details.collected_per_class:
            lines += ["", *classes_table([stage])]
    shown = [f for f in stage.files if f.state in BAD] if len(stage.files) > FILES_SHOWN else stage.files
    left = len(stage.files) - len(shown)
    rows = [[f.name, size(f.size_bytes), WORDS[f.state]] for f in shown]
    lines += ["", *table(["file", "size", "state"], rows), *([f"and {left} more"] if left else [])]
    return lines


def _common(stages: Sequence[StageFacts]) -> list[str]:
    """Describe the stages' settings and versions, with a line for each different set of versions."""
    lines = [f"Settings: {line}" for line in _settings(stages)]
    having: dict[str, list[str]] = {}
    for stage in stages:
        if stage.versions:
            text = ", ".join(f"{name} {version}" for name, version in stage.versions.items())
            having.setdefault(text, []).append(stage.path)
    for text, paths in having.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"Versions{f' of {paths[0]}{more}' if len(having) > 1 else ''}: {text}")
    return lines


def _settings(stages: Sequence[StageFacts]) -> list[str]:
    for stage in stages:
        data, model = stage.config.get("data"), stage.config.get("model")
        words = []
        if isinstance(data, dict):
            words.append(f"data {data.get('name')}")
        if isinstance(model, dict):
            words.append(f"DNN {model.get('name')} ({model.get('weights')})")
        if words:
            seed = stage.config.get("seed")
            digest = f", digest {stage.settings}" if len(stages) == 1 else ""
            return [f"{', '.join(words)}, seed {seed}{digest}"]
    return [f"digest {stages[0].settings}"] if len(stages) == 1 and stages[0].settings else []


def _details(stage: StageFacts) -> list[str]:
    match stage.details:
        case EnvironmentFacts() as facts:
            return _environment(stage, facts)
        case FeatureFacts() as facts:
            rows = count(stage.rows.get("features"))
            held = f"{rows} rows of {facts.dim or '?'} features ({facts.extractor})"
            return [f"  {held}, in {feature_parts(stage)} parts"]
        case ScoreFacts() as facts:
            return [line for target in facts.confidence for line in _confidence(facts, target)]
        case TrainingFacts() as facts:
            return _training(facts)
        case RepairFacts() as facts:
            return compared_table([stage]) if stage.kind == "compared" else _repair(facts)
        case DeployedFacts() as facts:
            return [f"  {facts.epochs or 0} epochs, clean test accuracy {percent(facts.clean_test_accuracy)}"]
        case KitFacts() as facts:
            named = ", ".join(facts.experiences[:5]) + (", …" if len(facts.experiences) > 5 else "")
            clean = f"{facts.clean_images:,} clean images" if facts.clean_images else "no clean images"
            failures = "failures held" if facts.failures else "failures left out"
            return [
                f"  {len(facts.experiences)} experiences ({named}), {failures}; {clean}; learned from "
                f"{facts.learned or 0:,} images"
            ]
        case _:
            return []


def _environment(stage: StageFacts, facts: EnvironmentFacts) -> list[str]:
    if facts.parts is not None:
        return [f"  {facts.parts} shards are mined; D_collect is split off when all are mined."]
    rows = [f"{count(stage.rows.get(key))} {words}" for key, words in ROWS.items()]
    return [f"  Failures: {', '.join(rows)}; pixels {facts.pixels or 'unknown'}"]


ROWS = {
    "collect": "in D_collect",
    "fail": "in D_fail",
    "unused": "unused (not drawn into D_collect, or of an image that it has)",
}


def _confidence(facts: ScoreFacts, target: str) -> list[str]:
    ranked = sorted(facts.confidence[target].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {p:.3f}" for name, p in ranked[:5]) + (", …" if len(ranked) > 5 else "")
    return [
        f"  {target} learns from {shown}",
        f"    effective number of experiences {facts.effective_number[target]:.2f} of {len(ranked)}",
    ]


def _training(facts: TrainingFacts) -> list[str]:
    wanted = f" of {facts.episodes_wanted}" if facts.episodes_wanted is not None else ""
    skipped = f", {facts.skipped_episodes} skipped" if facts.skipped_episodes is not None else ""
    took = f", took {duration(facts.seconds)}" if facts.seconds is not None else ""
    lines = [f"  {facts.episodes or 0}{wanted} episodes{skipped}{took}"]
    if facts.validation_accuracy is not None:
        lines.append(f"  last validation accuracy {percent(facts.validation_accuracy)}")
    good = [str(c.episode) for c in facts.checkpoints if c.whole]
    plural = "" if len(good) == 1 else "s"
    at_episodes = f", at episode{plural} {', '.join(good)}" if good else ""
    lines.append(f"  {len(good) or 'no'} checkpoint{plural}{at_episodes}")
    lines += [f"  checkpoint {c.path} is incomplete: it is ignored" for c in facts.checkpoints if not c.whole]
    return lines


def _repair(facts: RepairFacts) -> list[str]:
    if not facts.methods:
        return [f"  weights: {', '.join(facts.weights) or 'none yet'}; not evaluated yet, or unreadable"]
    return [f"  {line}" for line in table(METHOD_HEAD, [method_cells(m) for m in facts.methods])]


def _broken(stage: StageFacts) -> list[str]:
    lines = [f"  {stage.path}/manifest.json is damaged"] if stage.manifest == "damaged" else []
    for file in (f for f in stage.files if f.state in BAD):
        lines.append(f"  {stage.path}/{file.name} {WORDS[file.state]}")
    return lines


def _file(file: LoneFile) -> list[str]:
    promise = f", matches {file.promised_by}" if file.state == "ok" and file.promised_by else ""
    lines = [f"  {file.format}: {WORDS[file.state]}{promise}"]
    for key, value in file.header.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        lines.append(f"  {key.replace('_', ' ')}: {shown}")
    for label, counts in (("severity", file.collected_per_severity), ("class", file.collected_per_class)):
        if counts:
            shown = ", ".join(f"{label} {key}: {number}" for key, number in counts.items() if number)
            lines.append(f"  collected: {shown}")
    return lines
