"""Run the SENSEI benchmark, and check that both ways score the same variants and that it reports its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sensei


@pytest.mark.slow
def test_the_benchmark_reports_its_figures_and_both_ways_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    sensei.main(["--smoke", "--json", str(out)])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    assert set(sensei.MEANING) <= set(figures)
    assert figures["ratio"] > 0
    assert figures["loss_diff"] < 1e-3
    assert set(figures["variants_per_s"]) == set(figures["rounds_s"])
    assert "\nratio " in capsys.readouterr().out


def test_quick_repeats_less_and_measures_the_same() -> None:
    quick, whole = (sensei.sizes(quick=quick, smoke=False) for quick in (True, False))
    assert (quick.batched, quick.alone, quick.variants) == (whole.batched, whole.alone, whole.variants)
    assert quick.rounds < whole.rounds
