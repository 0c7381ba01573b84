"""Format the tables and draw the figure of docs/scaling.md from the model's cases and a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.scaling_model import (
    Link,
    Processor,
    Training,
    doubling,
    efficiency,
    episode,
    overlapped,
    streamed,
    takeover,
)
from benchmarks.scaling_plan import (
    Bytes,
    Campaign,
    NetCosts,
    Row,
    compute_rows,
    network_rows,
    storage_rows,
)
from benchmarks.scaling_rates import ImageRates

Case = tuple[str, str]  # a net, and the processor of its tasks: core or GPU
SHOWN = (16, 128, 1024)
NODES, CORES_OF_NODE, GPUS_OF_NODE, GPU_MEMORY_BYTES = 64, 16, 1, 80e9  # assumed


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first `left` columns are words, the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def number(value: float) -> str:
    """Return a number with three significant digits and thousands separators; below 0.01, `< 0.01`."""
    if value >= 100:
        digits = max(len(str(int(value))) - 3, 0)
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}" if value >= 0.01 else "< 0.01"


def efficiency_pages(cases: Mapping[Case, Training], links: Sequence[Link]) -> str:
    """Return efficiency by workers and link for every case, then where the all-reduce dominates."""
    names = [link.name for link in links]
    rows = [
        [
            f"{net}, {kind}",
            f"{w:,}",
            number(episode(training, w, links[0]).compute_s),
            *(f"{efficiency(training, w, link):.1%}" for link in links),
        ]
        for (net, kind), training in cases.items()
        for w in SHOWN
    ]
    tasks = next(iter(cases.values())).tasks
    table = markdown([f"{tasks:,} tasks per episode", "workers", "tasks only, s", *names], rows)
    over = [
        [f"{net}, {kind}", *(_workers(takeover(training, link)) for link in links)]
        for (net, kind), training in cases.items()
    ]
    heads = ["number of workers from which the all-reduce takes longer than the tasks", *names]
    return "\n\n".join([table, markdown(heads, over)])


def _workers(count: int | None) -> str:
    return "never" if count is None else f"{count:,}"


def overlap_page(cases: Mapping[Case, Training], links: Sequence[Link], shares: Mapping[str, float]) -> str:
    """Return what reducing in advance loses, and what reducing layer by layer could gain, at 256 workers."""
    workers = 256
    rows = []
    for (net, kind), training in cases.items():
        for name, seconds in (
            ("in advance", lambda t, link: overlapped(t, workers, link)),
            ("layer by layer, at best", lambda t, link, s=shares[net]: streamed(t, workers, link, s)),
        ):
            plain = [episode(training, workers, link).seconds for link in links]
            ratios = [f"{seconds(training, link) / p:.3f}" for link, p in zip(links, plain, strict=True)]
            rows.append([f"{net}, {kind}", name, *ratios])
    heads = [
        f"{workers} workers: episode time over that with one all-reduce at the end",
        "",
        *(link.name for link in links),
    ]
    return markdown(heads, rows, left=2)


def plan_pages(
    campaign: Campaign,
    rates: ImageRates,
    nets: Sequence[NetCosts],
    gpu: Processor,
    graph_bytes: Mapping[str, float],
) -> str:
    """Return the hours of each net's campaign, memory limits, and the storage and network of the last net's."""
    pages = []
    for net in nets:
        pages.append(f"**{net.net}**\n\n{_hours_table(compute_rows(campaign, rates, net, gpu))}")
        room = int(GPU_MEMORY_BYTES / graph_bytes[net.net])
        pages.append(
            f"In an inner step of {net.net}, the graph of {campaign.classes:,} support images takes "
            f"{campaign.classes * graph_bytes[net.net] / 1e9:,.0f} GB (measured on two and three images); a GPU with "
            f"{GPU_MEMORY_BYTES / 1e9:.0f} GB has room for {room} images."
        )
    net = nets[-1]
    pages.append(_bytes_table(f"stored ({net.net})", storage_rows(campaign, rates, net)))
    pages.append(_bytes_table(f"sent ({net.net})", network_rows(campaign, rates, net, nodes=NODES)))
    slowest = sorted(rates.corrupt_s.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in (*slowest[:4], *slowest[-2:]))
    pages.append(
        f"Corrupting an image of 224 px, ms on one core: {1e3 * rates.mean_corrupt_s:.1f} on average; {shown}."
    )
    return "\n\n".join(pages)


def _hours_table(rows: Sequence[Row]) -> str:
    cores, gpus = NODES * CORES_OF_NODE, NODES * GPUS_OF_NODE

    def cells(row: Row) -> list[str]:
        gpu_h = "" if row.gpu_h is None else number(row.gpu_h)
        alone, both = row.wall_h(cores=cores, gpus=0), row.wall_h(cores=cores, gpus=gpus)
        count = f"{number(row.amount)} {row.unit}"
        return [row.stage, count, number(row.core_h), gpu_h, number(alone), number(both), row.basis]

    heads = [
        "stage",
        "",
        "core-hours",
        "or GPU-hours",
        f"hours on {cores:,} cores",
        f"with {gpus} GPUs",
        "basis",
    ]
    return markdown(heads, map(cells, rows))


def _bytes_table(title: str, rows: Sequence[Bytes]) -> str:
    return markdown([title, "GB", "basis"], [[r.what, number(r.size_bytes / 1e9), r.basis] for r in rows])


def efficiencies(cases: Mapping[Case, Training], links: Sequence[Link]) -> dict[str, dict[str, float]]:
    """Return efficiency by case, link and workers, for JSON."""
    return {
        f"{net} {kind} {link.name}": {str(w): efficiency(training, w, link) for w in doubling(1024)}
        for (net, kind), training in cases.items()
        for link in links
    }


def plan_figures(
    campaign: Campaign, rates: ImageRates, nets: Sequence[NetCosts], gpu: Processor
) -> dict[str, dict[str, float | None]]:
    """Return hours by net and stage, for JSON."""
    found: dict[str, dict[str, float | None]] = {}
    for net in nets:
        for row in compute_rows(campaign, rates, net, gpu):
            found[f"{net.net} {row.stage}"] = {"core_h": row.core_h, "gpu_h": row.gpu_h}
    return found


def draw(cases: Mapping[Case, Training], links: Sequence[Link], path: Path) -> None:
    """Draw efficiency by workers: a panel for each case, a line for each link."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from metarepair.reports.figures import COLOURS, MARKS

    figure = Figure(figsize=(11, 6.5), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(cases) // 2, sharex=True, sharey=True)
    for axes, ((net, kind), training) in zip(panels.flat, cases.items(), strict=True):
        for link, colour, mark in zip(links, COLOURS[1:], MARKS, strict=False):
            workers = doubling(1024)
            values = [efficiency(training, w, link) for w in workers]
            axes.plot(workers, values, color=colour, marker=mark, markersize=4, label=link.name)
        axes.set_title(f"{net}, one {kind} per worker")
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, loc="lower left")
    figure.supxlabel("workers (1,024 tasks per episode)")
    figure.supylabel("efficiency, modelled")
    figure.savefig(path)
