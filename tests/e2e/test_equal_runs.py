"""Equal settings give equal files, except for what is measured."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from equal_runs import comparable
from metarepair.cli import main
from tasks.records import MEASURED

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def two_runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two runs with the same settings."""
    storage = tmp_path_factory.mktemp("again")
    assert main(["run", "--config", str(finished_run / "tiny.yaml"), "--storage", str(storage)]) == 0
    return finished_run / "runs" / "tiny", storage / "tiny"


def test_equal_runs_differ_in_nothing_but_measured_values(two_runs: tuple[Path, Path]) -> None:
    one, other = map(comparable, two_runs)
    assert {"report/results.parquet", "report/results.csv", "score/manifest.json"} <= one.keys()
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_the_results_table_differs_in_measured_columns_alone(two_runs: tuple[Path, Path]) -> None:
    one, other = (pq.read_table(run / "report" / "results.parquet").to_pydict() for run in two_runs)
    differ = {name for name in one | other if one.get(name) != other.get(name)}
    assert "seconds" in differ
    assert differ <= set(MEASURED)
    assert {"clean", "corrupted", "d_fail", "images_seen"} <= one.keys() - set(MEASURED)


def test_the_protocol_names_every_measured_column() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    paragraph = text[text.index("**Equal runs**") :].partition("\n\n")[0]
    assert [name for name in MEASURED if f"`{name}`" not in paragraph] == []
