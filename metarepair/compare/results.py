"""Write a comparison of judged repairs as Markdown, HTML, CSV, Parquet and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from metarepair.compare.figures import bars, radar
from metarepair.compare.judge import read_row
from metarepair.compare.parts import ReportPart, Result, parts_of, title_of
from metarepair.compare.units import ComparedRepair
from metarepair.config.run import Config
from metarepair.reports.page import bullets, heading, html_page, html_table, joined, picture
from metarepair.reports.table import aligned, rows_table
from metarepair.runs.layout import Run
from tasks.storage.paths import write_table, write_text


def write_results(
    run: Run, config: Config, units: Sequence[ComparedRepair], *, made_in: Mapping[int, Run] | None = None
) -> list[str]:
    """Write the report to compare/ and return the lines to log. Raises StageError if a repair is not judged.

    made_in: by seed, the run that holds its repairs; None if `run` holds all.
    """
    results = load_compared(made_in or dict.fromkeys((unit.seed for unit in units), run), units)
    title = title_of(config, results)
    parts = parts_of([run] if made_in is None else [*made_in.values()], config, results)
    text = "\n".join([f"# {title}", "", *(line for part in parts for line in _markdown(part))]) + "\n"
    write_text(run.compare / "table.md", text)
    for name in ("rows.csv", "rows.parquet"):
        write_table(run.compare / name, rows_table(results))
    write_text(run.compare / "index.html", html_page(title, *map(_html, parts), *_pictures(run, results)))
    return [text, f"Comparison: {run.compare / 'index.html'}"]


def _markdown(part: ReportPart) -> list[str]:
    lines = [f"## {part.title}", "", *(f"- {line}" for line in part.lines)]
    lines += [""] if part.lines else []
    return [*lines, *aligned(part.header, part.rows), ""] if part.header else lines


def _html(part: ReportPart) -> Markup:
    lines = [bullets(part.lines)] if part.lines else []
    table = [html_table(part.header, part.rows)] if part.header else []
    return joined([heading(part.title, 2), *lines, *table])


def _pictures(run: Run, results: Sequence[Result]) -> Iterator[Markup]:
    yield heading("figures", 2)
    words = "Accuracy by target and method; error bars: sd over seeds."
    yield picture(run.compare, "bars.png", bars(results), words)
    if any(row["other_corruptions"] for result in results for row in result["methods"]):
        words = "Accuracy on every corruption after a repair for the one in brackets; mean over seeds."
        yield picture(run.compare, "radar.png", radar(results), words)


def load_compared(made_in: Mapping[int, Run], units: Sequence[ComparedRepair]) -> list[Result]:
    """The rows of each target, in the order of the configuration and the form of a run's result.json."""
    targets = list(dict.fromkeys(unit.target for unit in units))
    rows = {target: [u for u in units if u.target == target] for target in targets}
    order = list(dict.fromkeys(unit.method for unit in units))
    return [
        {
            "target": target,
            "methods": [
                dict(read_row(made_in[unit.seed], unit))
                for unit in sorted(some, key=lambda u: order.index(u.method))
            ],
        }
        for target, some in rows.items()
    ]
