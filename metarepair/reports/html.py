"""Write report/index.html, one file that opens offline, with tables and figures as separate files beside it.

Pictures are embedded in the page as base64; there is no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from metarepair.config.run import SHARED
from metarepair.evaluation.judging import readings
from metarepair.features.confidence_tables import SCORE_AGAIN
from metarepair.features.extractors import distance_name
from metarepair.reports import figures
from metarepair.reports.examples import SourceOf, example_figure
from metarepair.reports.headline import headline_of
from metarepair.reports.outcome import taken_inside
from metarepair.reports.page import (
    block,
    bullets,
    details,
    file_name,
    heading,
    headline,
    html_page,
    html_table,
    joined,
    links,
    paragraph,
    picture,
    section,
)
from metarepair.reports.paper import DIFFERENCES, nearest_experiences, table_for
from metarepair.reports.side_effects import Images, side_effects_section
from metarepair.reports.table import (
    LEGEND,
    Result,
    by_method,
    judged_by,
    paper_measure,
    preparation,
    results_table,
    spread,
    table_cells,
    target_of,
    verdict,
    write_tables,
)
from metarepair.reports.words import method_words, percent, plain_words
from metarepair.runs.layout import Run
from metarepair.runs.progress import times
from metarepair.weights.hub import is_hub
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import DATASETS
from tasks.environments import category_of
from tasks.errors import StageError
from tasks.storage.manifest import read_manifest
from tasks.storage.paths import Place, find, inside, read_json, read_json_lines, read_table, write_text

PATHS = (
    "storage_path",
    "root",
    "train",
    "test",
    "images",
    "table",
    "holdout",
    "archive",
    "weights",
    "left_out",
)  # settings, and names of photographs
LEFT_OUT = "left out"
BUDGET = ("seed", "images_seen", "gradient_steps")


def write_report(
    run: Run,
    results: Sequence[Mapping[str, Any]],
    images: Images | None = None,
    *,
    show_images: bool = True,
) -> Place:
    """Write the whole report under report/, the page last, and return the page. Raises StageError without results.

    `images` is called only for pixels that are shown and that the store does not hold. Without `show_images`, the
    report holds no image of a data set, no name of a photograph and no path of a machine.
    """
    if not results:
        raise StageError(
            f"{run.root} has no results to report. Repair a target first: metarepair repair --config FILE."
        )
    _remove_earlier(run, results)
    sections = [_target_section(run, result, images, show_images) for result in results]
    overview = _overview(run, results)
    write_tables(run.report, results)
    write_text(run.report / "table.md", "\n".join(results_table(result) for result in results))
    title = f"Repair of {', '.join(plain_words(target_of(r)) for r in results)}"
    write_text(run.report / "index.html", html_page(title, overview, *sections))
    return run.report / "index.html"


def _remove_earlier(run: Run, results: Sequence[Result]) -> None:
    """Delete what an earlier report wrote beside its page, which holds all its pictures itself."""
    beginnings = ("heatmap.", *(f"{file_name(target_of(result))}_" for result in results))
    for path in find(run.report, "*"):
        if path.name.startswith(beginnings) and path.suffix in (".png", ".svg", ".csv"):
            path.unlink(missing_ok=True)


def _overview(run: Run, results: Sequence[Result]) -> Markup:
    """Links to the targets, if there are several, and the distances between environments."""
    found = [(file_name(target_of(r)), plain_words(target_of(r)), verdict(r)[0]) for r in results]
    return joined([links(found), _heat_map(run)]) if len(results) > 1 else Markup("")


def _heat_map(run: Run) -> Markup:
    path = run.score / "fid.parquet"
    if not path.is_file():
        return paragraph(f"No distances are shown: {inside(path, run.root)} is missing.")
    rows = read_table(path, SCORE_AGAIN).to_pylist()
    scores = {(row["experience"], row["target"]): row["distance"] for row in rows}
    found = {name for pair in scores for name in pair}
    names = [n for n in CORRUPTIONS if n in found] + sorted(found - CORRUPTIONS.keys())
    label = distance_name(str(rows[0]["extractor"]))
    png = figures.heat_map(scores, names, category_of, "Distance between environments", label)
    caption = (
        f"{label} between environments, by category; smaller means more alike (as in the paper's Fig. 4)."
    )
    return picture(run.report, "heatmap.png", png, caption)


def _target_section(run: Run, result: Result, images: Images | None, show_images: bool) -> Markup:
    target, first = target_of(result), headline_of(run, result)
    source = None if images is None else images.environment
    parts = (
        headline(first.decision, first.kind, first.sentences, first.numbers),
        heading("Evidence"),
        bullets(verdict(result)),
        bullets(taken_inside(result)),
        bullets(judged_by(result)),
        html_table(*table_cells(result)),
        bullets(paper_measure(result)),
        paragraph(preparation(result)),
        details("What the columns mean", [bullets(LEGEND, "small")]),
        side_effects_section(run, result, images if show_images else None),
        *_pictures(run, result, target, source, show_images),
        heading("Experiences and their confidence"),
        *_experiences(run, result, target),
        heading("How the results were obtained"),
        *_obtained(run, result, target, show_images),
        heading("Comparison with the paper"),
        *_beside_paper(result, target),
        heading("Files"),
        *_files(run, result, target, show_images),
    )
    return section(file_name(target), plain_words(target), parts)


def _pictures(
    run: Run, result: Result, target: str, source: SourceOf | None, show_images: bool
) -> Iterator[Markup]:
    name, words = file_name(target), plain_words(target)
    bars = figures.method_bars(result, f"Accuracy by method: {words}")
    several = any(len(rows) > 1 for rows in by_method(result).values())
    spreads = "; error bars: standard deviation over seeds" if several else ""
    yield picture(run.report, f"{name}_methods.svg", bars, f"Accuracy by method{spreads}.")
    if any(set(row["corrupted_by_severity"]) - {"0"} for row in result["methods"]):
        curve = figures.severity_curve(result, f"Accuracy by severity: {words}")
        caption = "Accuracy on the images that judge, by severity."
        yield picture(run.report, f"{name}_severity.svg", curve, caption)
    if "metarepair" in by_method(result):
        yield _training(run, result, target)
    if not show_images:
        yield paragraph("No examples are shown (--no-images).")
        return
    found = example_figure(run, result, target, _classes(run, result, target), source)
    if isinstance(found, str):
        yield paragraph(f"No examples are shown: {found}.")
    else:
        yield picture(run.report, f"{name}_examples.png", found.png, found.caption)


def _training(run: Run, result: Result, target: str) -> Markup:
    shared = (result["config"].get("train") or {}).get("shared")
    metrics = run.meta(SHARED if shared else target) / "metrics.json"
    if not metrics.is_file():
        return paragraph(f"No training curve: {inside(metrics, run.root)} is missing.")
    curve = figures.training_curve(read_json(metrics), f"Meta-training for {plain_words(target)}")
    return picture(run.report, f"{file_name(target)}_training.svg", curve, "Meta-training by episode.")


def _data(result: Result) -> str:
    return str((result["config"].get("data") or {}).get("name"))


def _classes(run: Run, result: Result, target: str) -> tuple[str, ...]:
    """Return the class names: built in for a known data set, else as mining recorded them."""
    name = _data(result)
    if name in DATASETS:
        return DATASETS[name].classes
    manifest = read_manifest(run.target(target))
    return tuple(manifest.facts.get("class_names", ())) if manifest is not None else ()


def _experiences(run: Run, result: Result, target: str) -> Iterator[Markup]:
    experiences = sorted(result["experiences"], key=lambda e: float(e["fid"]))
    if not experiences:
        yield paragraph("No experiences were used: MetaRepair, which learns from them, was not run.")
        return
    used, label = result.get("confidence") or {}, str(result["distance_name"])
    rule = ", ".join(f"{plain_words(key)} {_number(value)}" for key, value in used.items())
    rows = [[e["name"], f"{float(e['fid']):.4g}", percent(float(e["p"]))] for e in experiences]
    yield paragraph(f"Confidence: {rule}.")
    yield html_table(["experience", label, "confidence %"], rows)
    order = nearest_experiences(_data(result), target)
    if order:
        ours = [str(e["name"]) for e in experiences[: len(order)]]
        same = "the same" if tuple(ours) == order else "different"
        shared = len(set(ours) & set(order))
        yield paragraph(
            f"Nearest experiences in the paper (Fig. 5): {', '.join(order)}. Here: {', '.join(ours)}. The order is "
            f"{same}; {shared} of {len(order)} are in both."
        )
    bars = figures.confidence_bars(experiences, f"Confidence of experiences for {plain_words(target)}", label)
    yield picture(run.report, f"{file_name(target)}_confidence.svg", bars, "Confidence of each experience.")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _protocol(result: Result) -> str:
    """Describe which data methods learned from, and which data selected settings."""
    sizes = result.get("d_collect") or {}
    collect, fail = sizes.get("collect", "?"), sizes.get("fail", "?")
    if set(by_method(result)) == {"none"}:
        return (
            f"Protocol: the deployed DNN was evaluated without repair. Nothing was learned from the {collect} examples "
            f"of D_collect, and D_fail ({fail} examples) was not used to choose anything."
        )
    return (
        f"Protocol: {sizes.get('validation', '?')} of the {collect} examples of D_collect are used only to choose "
        "settings, episodes and checkpoints. They are the same for every method, and methods may learn from the "
        f"rest. D_fail ({fail} examples) is not used to choose anything; the paper is less strict."
    )


def _obtained(run: Run, result: Result, target: str, show_paths: bool) -> Iterator[Markup]:
    config, sizes = result["config"], result.get("d_collect") or {}
    without = sizes.get("classes_without_failures") or []
    seeds = sorted({int(row["seed"]) for row in result["methods"]})
    log, damaged = read_json_lines(run.d_fail_log)
    opened = sum(line.get("target") == target for line in log)
    unread = f" {damaged} of its lines cannot be read, so there may be more." if damaged else ""
    # Without experiences the repairs used no distance.
    extractor = f" Feature extractor of the distance: {result['features']}." if result["experiences"] else ""
    lines = [
        _protocol(result),
        f"The log shows that the evaluator opened D_fail {times(opened)}.{unread} This report reads it only for "
        "pictures.",
        *readings(run, target),
        f"Classes without a collected failure: {', '.join(map(str, without)) or 'none'}.",
        f"Seeds: {', '.join(map(str, seeds))}.{extractor}",
        f"Versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
    ]
    budget = [
        [method_words(str(row["method"])), *(row.get(key, "—") for key in BUDGET)]
        for row in result["methods"]
    ]
    for cells, row in zip(budget, result["methods"], strict=True):
        cells += [f"{row['seconds']:.1f}", "; ".join(row.get("notes") or ())]
    shown = dict(config) if show_paths else without_paths(config)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    yield bullets(lines)
    yield paragraph("Budget that each repair used:")
    yield html_table(["method", *map(plain_words, BUDGET), "seconds", "notes"], budget)
    yield details("Settings", [block(text)])


def _beside_paper(result: Result, target: str) -> Iterator[Markup]:
    data = _data(result)
    table = table_for(data)
    column = table.column(target) if table else {}
    if table is None or not column:
        yield paragraph(f"The paper has no number for {plain_words(target)} on {data}.")
        return
    ours = {method_words(m): rows for m, rows in by_method(result).items()}
    rows = []
    for method in [*column, *(m for m in ours if m not in column)]:
        found = [spread(row.get(k) for row in ours.get(method, [])) for k in ("d_fail_paper", "d_fail")]
        number = f"{column[method]:.2f}" if method in column else "—"
        rows.append([method, number, *("—" if f is None else percent(f.mean) for f in found)])
    model = str((result["config"].get("model") or {}).get("name"))
    theirs = f"paper, {table.name}: {table.dnn}, {table.data} %"
    header = ["method", theirs, f"here: {model}, mean acc_s %", "here: all of D_fail %"]
    yield paragraph(DIFFERENCES)
    yield html_table(header, rows)


def without_paths(settings: Any) -> Any:
    """Return the settings without paths and names of photographs, in all groups."""
    if isinstance(settings, Mapping):
        return {
            key: LEFT_OUT if _is_path(key, value) else without_paths(value) for key, value in settings.items()
        }
    return [without_paths(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _is_path(key: str, value: Any) -> bool:
    named = key in PATHS and isinstance(value, str | list | tuple) and bool(value)
    return not is_hub(value) and (named or (isinstance(value, str) and bool({"/", "\\"} & set(value))))


def _files(run: Run, result: Result, target: str, show_paths: bool) -> Iterator[Markup]:
    folder = inside(run.repaired(target), run.root)
    weights = [str(row["weights"]) for row in result["methods"] if row.get("weights")]
    beside = ["results.csv", *(p.name for p in find(run.report, f"{file_name(target)}_*"))]
    report = "report" if run.report_to is None or not show_paths else run.report  # elsewhere: the whole path
    others = [f"{folder}/result.json", f"{folder}/samples.parquet"]
    everything = [*weights, *others, *(f"{report}/{name}" for name in beside)]
    yield paragraph("Paths are relative to the run's folder:")
    yield bullets(everything, "small")
