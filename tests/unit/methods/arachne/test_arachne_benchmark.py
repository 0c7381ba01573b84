"""Test that the Arachne benchmark runs the same candidates both ways and prints its documented keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import arachne


@pytest.mark.soak
def test_the_benchmark_keeps_its_keys_and_both_ways_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    arachne.main(["--smoke", "--json", str(out)])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["smoke"]
    assert set(arachne.MEANING) <= set(figures)
    assert set(figures["ratios"]) == {*arachne.CASES, *arachne.FIRST_LAYER}
    assert figures["ratio"] == min(figures["ratios"][name] for name in arachne.CASES)
    assert figures["fitness_rel_diff"] < 1e-3
    assert "\nratio " in capsys.readouterr().out


def test_quick_repeats_less_and_measures_the_same() -> None:
    quick, whole = (arachne.sizes(quick=quick, smoke=False) for quick in (True, False))
    assert (quick.candidates, quick.images, quick.looped) == (whole.candidates, whole.images, whole.looped)
    assert quick.rounds < whole.rounds
