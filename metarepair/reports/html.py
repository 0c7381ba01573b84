"""A run with its results in, report/index.html out: one file that opens offline; tables, figures beside it.

Pictures are inside the page as base64; there is no script. What came from settings or data is escaped.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet
import yaml

from metarepair.layout import Run
from metarepair.reports import figures
from metarepair.reports.examples import example_figure
from metarepair.reports.paper import DIFFERENCES, nearest_experiences, table_for
from metarepair.reports.table import (
    LEGEND,
    Result,
    by_method,
    method_words,
    paper_measure,
    percent,
    preparation,
    results_table,
    spread,
    table_cells,
    target_of,
    verdict,
    write_tables,
)
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import DATASETS, Dataset
from tasks.errors import StageError
from tasks.manifest import read_manifest
from tasks.storage import Place, find, inside, local, write_text

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --strong: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --strong: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 3px solid var(--strong); padding-top: .6rem; margin-top: 3rem; }
.verdict { background: var(--soft); border-left: 5px solid var(--strong); padding: .7rem 1rem .7rem 2.2rem; }
.verdict li:first-child { font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } figcaption, .small { font-size: .85rem; opacity: .85; }
img { max-width: 100%; background: white; border-radius: 4px; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; } a { color: var(--strong); }
@media print { body { max-width: none; font-size: 11pt; } figure, tr, .verdict { break-inside: avoid; }
  .wide { overflow: visible; } td, th { padding: .15rem .3rem; font-size: .72rem; white-space: normal; }
  pre { white-space: pre-wrap; } }
"""

BUDGET = ("seed", "images_seen", "gradient_steps")


def write_report(
    run: Run, results: Sequence[Mapping[str, Any]], test: Callable[[], Dataset] | None = None
) -> Place:
    """Everything about the results under report/; the page last. Raises StageError when there are none.

    `test` gives the test split, which is asked for where the store keeps no pixels.
    """
    if not results:
        raise StageError(
            f"{run.root} has no results to report. Repair a target first: metarepair repair --config FILE."
        )
    sections = [_target_section(run, result, test) for result in results]
    overview = _overview(run, results)
    write_tables(run.report, results)
    write_text(run.report / "table.md", "\n".join(results_table(result) for result in results))
    title = f"Repair of {', '.join(_words(target_of(r)) for r in results)}"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{_e(title)}</h1>\n{overview}\n{''.join(sections)}\n</body></html>\n"
    )
    write_text(run.report / "index.html", page)
    return run.report / "index.html"


def _e(content: object) -> str:
    return html.escape(str(content))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)


def _list(lines: Iterable[object], kind: str = "") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{_e(line)}</li>" for line in lines) + "</ul>\n"


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{_e(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _picture(run: Run, name: str, png: bytes, caption: str) -> str:
    """Saves the picture in report/ and shows it in the page."""
    figures.save(run.report / name, png)
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_e(caption)}">'
        f"<figcaption>{_e(caption)} ({_e(name)})</figcaption></figure>\n"
    )


def _overview(run: Run, results: Sequence[Result]) -> str:
    links = "".join(
        f'<li><a href="#{_e(_file_name(target))}">{_e(_words(target))}</a>: {_e(verdict(result)[0])}</li>\n'
        for target, result in ((target_of(r), r) for r in results)
    )
    files = "<p>Tables for programs: results.csv, results.parquet; for people: table.md.</p>"
    return f"<ul>{links}</ul>\n{files}\n{_heat_map(run, results[0])}"


def _heat_map(run: Run, result: Result) -> str:
    path = run.score / "fid.parquet"
    if not path.is_file():
        return f"<p>No distances are shown: {_e(inside(path, run.root))} is missing.</p>\n"
    rows = pyarrow.parquet.read_table(local(path)).to_pylist()
    scores = {(row["experience"], row["target"]): row["distance"] for row in rows}
    found = {name for pair in scores for name in pair}
    names = [n for n in CORRUPTIONS if n in found] + sorted(found - CORRUPTIONS.keys())
    label = str(result["distance_name"])
    png = figures.heat_map(scores, names, _category, "Distance between environments", label)
    caption = f"{label} between environments, by category; small is alike (as the paper's Fig. 4)."
    return _picture(run, "heatmap.png", png, caption)


def _category(name: str) -> str:
    return CORRUPTIONS[name].category if name in CORRUPTIONS else "other"


def _target_section(run: Run, result: Result, test: Callable[[], Dataset] | None) -> str:
    target = target_of(result)
    parts = (
        f'<section id="{_e(_file_name(target))}"><h2>{_e(_words(target))}</h2>\n',
        _list(verdict(result), "verdict"),
        _table(*table_cells(result)),
        _list(paper_measure(result)),
        f"<p>{_e(preparation(result))}</p>\n<details open><summary>What the columns say</summary>",
        _list(LEGEND, "small"),
        "</details>\n",
        _pictures(run, result, target, test),
        "<h3>Experiences and their confidence</h3>\n",
        _experiences(run, result, target),
        "<h3>How it was obtained</h3>\n",
        _obtained(run, result, target),
        "<h3>Beside the paper</h3>\n",
        _beside_paper(result, target),
        "<h3>Files</h3>\n",
        _files(run, result, target),
        "</section>\n",
    )
    return "".join(parts)


def _pictures(run: Run, result: Result, target: str, test: Callable[[], Dataset] | None) -> str:
    name, words = _file_name(target), _words(target)
    bars = figures.method_bars(result, f"Accuracy by method: {words}")
    page = _picture(run, f"{name}_methods.png", bars, "Accuracy by method; error bars: sd over seeds.")
    if any(row["corrupted_by_severity"] for row in result["methods"]):
        png = figures.severity_curve(result, f"Accuracy by severity: {words}")
        page += _picture(
            run, f"{name}_severity.png", png, "Accuracy on all corrupted test images by severity."
        )
    metrics = run.meta(target) / "metrics.json"
    if metrics.is_file():
        png = figures.training_curve(
            json.loads(metrics.read_text(encoding="utf-8")), f"Meta-training for {words}"
        )
        page += _picture(run, f"{name}_training.png", png, "Meta-training by episode.")
    else:
        page += f"<p>No training curve: {_e(inside(metrics, run.root))} is missing.</p>\n"
    found = example_figure(run, result, target, _classes(run, result, target), test)
    if isinstance(found, str):
        return page + f"<p>No examples are shown: {_e(found)}.</p>\n"
    return page + _picture(run, f"{name}_examples.png", found.png, found.caption)


def _data(result: Result) -> str:
    return str((result["config"].get("data") or {}).get("name"))


def _classes(run: Run, result: Result, target: str) -> tuple[str, ...]:
    """As known here, or as mining recorded them."""
    name = _data(result)
    if name in DATASETS:
        return DATASETS[name].classes
    manifest = read_manifest(run.target(target))
    return tuple(manifest.facts.get("class_names", ())) if manifest is not None else ()


def _experiences(run: Run, result: Result, target: str) -> str:
    experiences = sorted(result["experiences"], key=lambda e: float(e["fid"]))
    if not experiences:
        return "<p>No experiences were used.</p>\n"
    used, label = result.get("confidence") or {}, str(result["distance_name"])
    rule = ", ".join(f"{_words(key)} {value}" for key, value in used.items())
    rows = [[e["name"], f"{float(e['fid']):.4g}", percent(float(e["p"]))] for e in experiences]
    page = f"<p>Confidence: {_e(rule)}.</p>\n" + _table(["experience", label, "confidence %"], rows)
    order = nearest_experiences(_data(result), target)
    if order:
        ours = [str(e["name"]) for e in experiences[: len(order)]]
        same = "the same" if tuple(ours) == order else "another"
        shared = len(set(ours) & set(order))
        page += (
            f"<p>The paper's nearest (Fig. 5): {_e(', '.join(order))}. Here: {_e(', '.join(ours))}; {same} "
            f"order, {shared} of {len(order)} in common.</p>\n"
        )
    png = figures.confidence_bars(experiences, f"Confidence of experiences for {_words(target)}", label)
    return page + _picture(run, f"{_file_name(target)}_confidence.png", png, "Confidence of each experience.")


def _obtained(run: Run, result: Result, target: str) -> str:
    config, sizes = result["config"], result.get("d_collect") or {}
    without = sizes.get("classes_without_failures") or []
    seeds = sorted({int(row["seed"]) for row in result["methods"]})
    log = run.d_fail_log.read_text(encoding="utf-8") if run.d_fail_log.is_file() else ""
    opened = sum(json.loads(line)["target"] == target for line in log.splitlines())
    lines = [
        f"Protocol: {sizes.get('validation', '?')} of the {sizes.get('collect', '?')} examples of D_collect "
        "only select (settings, episodes, checkpoints), the same for every method; the rest are learned "
        f"from. Nothing of D_fail ({sizes.get('fail', '?')} examples) chooses anything; the paper is laxer.",
        f"By its log, the evaluator opened D_fail {opened} time(s). This report reads it for pictures.",
        f"Classes without a collected failure: {', '.join(map(str, without)) or 'none'}.",
        f"Seeds: {', '.join(map(str, seeds))}. Feature extractor of the distance: {result['features']}.",
        f"Versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
    ]
    budget = [
        [method_words(str(row["method"])), *(row.get(key, "—") for key in BUDGET)]
        for row in result["methods"]
    ]
    for cells, row in zip(budget, result["methods"], strict=True):
        cells += [f"{row['seconds']:.1f}", "; ".join(row.get("notes") or ())]
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return (
        f"{_list(lines)}<p>Budget of every repair:</p>\n"
        f"{_table(['method', *map(_words, BUDGET), 'seconds', 'notes'], budget)}"
        f"<details><summary>Settings</summary><pre>{_e(text)}</pre></details>\n"
    )


def _beside_paper(result: Result, target: str) -> str:
    data = _data(result)
    table = table_for(data)
    column = table.column(target) if table else {}
    if table is None or not column:
        return f"<p>The paper has no number for {_e(_words(target))} on {_e(data)}.</p>\n"
    ours = {method_words(m): rows for m, rows in by_method(result).items()}
    rows = []
    for method in [*column, *(m for m in ours if m not in column)]:
        found = [spread(row.get(k) for row in ours.get(method, [])) for k in ("d_fail_paper", "d_fail")]
        number = f"{column[method]:.2f}" if method in column else "—"
        rows.append([method, number, *("—" if f is None else percent(f.mean) for f in found)])
    model = str((result["config"].get("model") or {}).get("name"))
    theirs = f"paper, {table.name}: {table.dnn}, {table.data} %"
    header = ["method", theirs, f"here: {model}, mean acc_s %", "here: all of D_fail %"]
    return f"<p>{_e(DIFFERENCES)}</p>\n" + _table(header, rows)


def _files(run: Run, result: Result, target: str) -> str:
    folder = inside(run.repaired(target), run.root)
    weights = [str(row["weights"]) for row in result["methods"] if row.get("weights")]
    others = [f"{folder}/result.json", f"{folder}/samples.parquet", "report/results.csv"]
    pictures = [p.name for p in find(run.report, f"{_file_name(target)}_*.png")]
    everything = [*weights, *others, *(f"report/{name}" for name in pictures)]
    return "<p>Relative to the run's folder:</p>\n" + _list(everything, "small")
