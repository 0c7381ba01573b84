"""Test the results of a search: its table, its figures and the configuration of its best trial."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metarepair.config.load import load_config, parse_config
from metarepair.config.run import Config
from metarepair.search.figures import _surface, parallel
from metarepair.search.importance import FEWEST, importance_of
from metarepair.search.results import Trial, best_trial, results_table, write_results
from metarepair.search.scale import number_scale, scale_of
from metarepair.search.space import Dimension, dimensions, trial_config
from tasks.keys import keyed_generator

MINED = ["snow", "fog", "shot_noise", "contrast"]
SPACE: dict[str, Any] = {
    "experiences.alpha": {"log_uniform": [1e-3, 1]},
    "experiences.beta": {"uniform": [10, 100]},
    "inner.steps": {"integers": [1, 5]},
    "inner.parts": {"choice": [["*"], ["head"]]},
    "inner.dropout": {"choice": [True, False]},
    "train.outer_rate": {"choice": [1e-3, 1]},
    "train.clip_norm": {"choice": [None, 1.0]},
}


def searched(search: dict[str, Any]) -> Config:
    return parse_config({"name": "a", "mining": {"experiences": MINED}, "search": search})


def trial(name: str = "trial-0001", objective: float | None = 0.5, **changes: Any) -> Trial:
    found = Trial(
        name=name, state="finished", objective=objective, rounds=6, seconds=61.5, drawn={}, error=None
    )
    return replace(found, **changes)


def drawn(number: int) -> dict[str, Any]:
    """Return the values of SPACE for trial `number`."""
    generator = keyed_generator("test", number)
    return {
        "experiences.alpha": float(10 ** generator.uniform(-3, 0)),
        "experiences.beta": float(generator.uniform(10, 100)),
        "inner.steps": int(generator.integers(1, 6)),
        "inner.parts": [["*"], ["head"]][number % 2],
        "inner.dropout": bool(generator.integers(2)),
        "train.outer_rate": [1e-3, 1][int(generator.integers(2))],
        "train.clip_norm": [None, 1.0][int(generator.integers(2))],
    }


def trials(count: int) -> list[Trial]:
    """Return trials that are better with smaller α; every fifth one fails."""
    found = []
    for number in range(count):
        values = drawn(number)
        finished = trial(f"trial-{number:04d}", -math.log10(values["experiences.alpha"]) / 4, drawn=values)
        failed = replace(
            finished, state="failed", objective=None, rounds=1, error="DivergedError: it\nbecame nan"
        )
        found.append(failed if number % 5 == 4 else finished)
    return found


def png(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    assert image.format == "PNG"
    return image


def test_the_best_trial_has_the_highest_objective_then_fewest_rounds_then_the_first_name() -> None:
    a, b, c = (trial(name, objective) for name, objective in (("a", 0.5), ("b", 0.6), ("c", 0.6)))
    assert best_trial([a, c, b]) == b
    assert best_trial([a, b, replace(c, rounds=5)]) == replace(c, rounds=5)


def test_a_trial_stopped_early_is_the_best_only_if_none_finished() -> None:
    stopped, finished = trial("a", 0.9, state="stopped early"), trial("b", 0.1)
    assert best_trial([stopped, finished]) == finished
    assert best_trial([stopped, trial("c", 0.8, state="stopped early")]) == stopped


def test_trials_that_failed_or_are_unfinished_or_never_trained_are_never_the_best() -> None:
    none = [
        trial(state="failed"),
        trial(state="unfinished"),
        trial(objective=None),
        trial(objective=math.nan),
        trial(objective=0.0, rounds=0),
    ]
    assert best_trial(none) is None
    assert best_trial([]) is None
    assert best_trial([*none, trial("z", 0.0)]) == trial("z", 0.0)


def test_the_table_has_a_column_of_its_own_type_for_each_dimension(tmp_path: Path) -> None:
    found = trials(6)
    assert write_results(tmp_path, found, searched({"space": SPACE}))[:2] == ["trials.parquet", "trials.csv"]
    table = pq.read_table(tmp_path / "trials.parquet")
    kinds = {
        "trial": pa.string(),
        "state": pa.string(),
        "objective": pa.float64(),
        "rounds": pa.int64(),
        "seconds": pa.float64(),
        "experiences.alpha": pa.float64(),
        "experiences.beta": pa.float64(),
        "inner.steps": pa.int64(),
        "inner.parts": pa.string(),
        "inner.dropout": pa.bool_(),
        "train.outer_rate": pa.float64(),
        "train.clip_norm": pa.float64(),
        "error": pa.string(),
    }
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == kinds
    by_name = {t.name: t for t in found}
    for row in table.to_pylist():
        mine = by_name[row["trial"]]
        assert {k: row[k] for k in ("state", "objective", "rounds", "seconds", "error")} == {
            k: v for k, v in asdict(mine).items() if k not in ("name", "drawn")
        }
        assert {k: json.loads(row[k]) if k == "inner.parts" else row[k] for k in SPACE} == mine.drawn
    known = sorted((t.objective for t in found if t.objective is not None), reverse=True)
    assert table["objective"].to_pylist() == [*known, None]
    csv = pyarrow.csv.read_csv(tmp_path / "trials.csv")
    assert csv.column_names == table.column_names
    assert csv["objective"].to_pylist() == table["objective"].to_pylist()


def test_sets_and_free_subsets_have_columns_of_their_own_type(tmp_path: Path) -> None:
    for given, values, kind in (
        ({"top_k": [1, 2]}, {"experience set": 2}, pa.int64()),
        ({"categories": ["noise", "target"]}, {"experience set": "noise"}, pa.string()),
        ({"free": ["fog", "snow"]}, {"experience fog": True, "experience snow": False}, pa.bool_()),
    ):
        config = searched({"experience_sets": given})
        write_results(
            tmp_path, [trial(drawn=values), trial("failed", None, drawn={}, state="failed")], config
        )
        table = pq.read_table(tmp_path / "trials.parquet")
        assert {name: table.schema.field(name).type for name in values} == dict.fromkeys(values, kind)
        assert [{name: row[name] for name in values} for row in table.to_pylist()] == [
            values,
            dict.fromkeys(values),
        ]


def test_the_best_configuration_is_the_best_trials_and_can_be_run(tmp_path: Path) -> None:
    config, found = searched({"space": SPACE, "searcher": "optuna", "scheduler": "asha"}), trials(9)
    best = best_trial(found)
    assert best is not None
    assert "best.yaml" in write_results(tmp_path, found, config)
    assert load_config(tmp_path / "best.yaml", []) == trial_config(config, best.drawn)
    text = (tmp_path / "best.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for words in (
        best.name,
        f"{100 * (best.objective or 0):.1f} %",
        "9 trials: 8 finished, 1 failed",
        "metarepair tune",
        "optuna",
        "asha",
        f"metarepair run --config {tmp_path / 'best.yaml'}",
        "gaussian_noise",
    ):
        assert words in header


def test_a_subset_that_leaves_nothing_to_learn_from_is_no_configuration(tmp_path: Path) -> None:
    config = searched({"experience_sets": {"free": ["fog", "snow"]}, "objective": "pseudo_targets"})
    alone = trial("a", 0.9, drawn={"experience fog": True, "experience snow": False})
    both = trial("b", 0.1, drawn={"experience fog": True, "experience snow": True})
    assert "best.yaml" not in write_results(tmp_path, [alone], config)
    assert "best.yaml" in write_results(tmp_path, [alone, both], config)
    assert load_config(tmp_path / "best.yaml", []).experiences.names == ("snow", "fog")


def test_nothing_is_drawn_of_trials_without_an_objective(tmp_path: Path) -> None:
    config, failed = searched({"space": SPACE}), trial(objective=None, state="failed", error="it broke")
    nowhere = replace(failed, drawn=dict.fromkeys(SPACE))
    for given in ([], [nowhere]):
        assert write_results(tmp_path, given, config) == ["trials.parquet", "trials.csv"]
        assert pq.read_table(tmp_path / "trials.parquet").num_rows == len(given)
        assert "left out: 0 trials" in results_table(given, config)


def test_figures_are_drawn_if_their_data_exist(tmp_path: Path) -> None:
    every = ["trials.parquet", "trials.csv", "best.yaml", "parallel.png", "alpha_beta.png", "importance.png"]
    assert write_results(tmp_path, trials(30), searched({"space": SPACE})) == every
    sizes = [png(tmp_path / name).size for name in every[3:]]
    assert min(min(size) for size in sizes) > 200
    assert write_results(tmp_path, trials(4), searched({"space": SPACE})) == every[:5]
    steps = searched({"space": {"inner.steps": SPACE["inner.steps"]}})
    assert write_results(tmp_path, trials(4), steps) == every[:4]


@pytest.mark.parametrize("count", [1, 3])
def test_equal_objectives_and_a_single_trial_can_be_drawn(tmp_path: Path, count: int) -> None:
    same = [trial(f"trial-{n}", 0.25, drawn=drawn(n)) for n in range(count)]
    names = write_results(tmp_path, same, searched({"space": SPACE}))
    assert names[3:] == ["parallel.png", "alpha_beta.png"]


def test_trials_with_a_default_setting_are_left_out_of_the_map(tmp_path: Path) -> None:
    space = {"experiences.alpha": {"choice": [None, 0.1]}, "experiences.beta": {"uniform": [1, 9]}}
    config = searched({"space": space})
    default = trial(drawn={"experiences.alpha": None, "experiences.beta": 2.0})
    assert "alpha_beta.png" not in write_results(tmp_path, [default], config)
    other = trial("b", drawn={"experiences.alpha": 0.1, "experiences.beta": 2.0})
    assert "alpha_beta.png" in write_results(tmp_path, [default, other], config)


def test_the_best_trial_is_drawn_in_a_colour_of_its_own() -> None:
    found = [t for t in trials(8) if t.objective is not None]
    config = searched({"space": SPACE})

    def orange(best: Trial | None) -> int:
        pixels = np.asarray(
            Image.open(io.BytesIO(parallel(found, dimensions(config), best, 8))).convert("RGB")
        )
        return int((np.abs(pixels.astype(int) - (0xD5, 0x5E, 0x00)).max(axis=2) < 8).sum())

    assert orange(None) == 0
    assert orange(best_trial(found)) > 500


def test_a_logarithmic_axis_is_even_in_the_logarithm() -> None:
    scale = scale_of(Dimension(name="x", kind="log_uniform", values=(1e-4, 1.0)), [0.01])
    assert [scale.place(v) for v in (1e-4, 1e-2, 1.0)] == pytest.approx([0, 0.5, 1])
    assert [words for _, words in scale.ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert [height for height, _ in scale.ticks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks() -> None:
    ticks = number_scale(0.02, 0.07, log=True).ticks
    assert len(ticks) >= 2
    assert all(0 <= height <= 1 for height, _ in ticks)


def test_whole_numbers_have_whole_ticks_and_real_ones_even_ones() -> None:
    whole = number_scale(1, 4, whole=True)
    assert [words for _, words in whole.ticks] == ["1", "2", "3", "4"]
    assert number_scale(-0.5, 0.5).place(0.0) == 0.5
    assert ("−0.4" in [words for _, words in number_scale(-0.4, 0.4).ticks]) is True


def test_choices_stand_evenly_numbers_in_order_and_words_as_given() -> None:
    numbers = scale_of(Dimension(name="x", kind="choice", values=(10, 1, 5)), [])
    assert [words for _, words in numbers.ticks] == ["1", "5", "10"]
    assert [numbers.place(v) for v in (1, 5, 10)] == [0, 0.5, 1]
    words = scale_of(Dimension(name="x", kind="choice", values=("z", None, ["a", "b"])), [])
    assert [w for _, w in words.ticks] == ["z", "null", "a, b"]
    assert scale_of(Dimension(name="x", kind="choice", values=(3,)), []).place(3) == 0.5


def test_the_map_is_interpolated_only_between_enough_points_of_a_plane() -> None:
    points = keyed_generator("points").uniform(size=(12, 2))
    values = points.sum(axis=1)
    surface = _surface(np.concatenate([points, points]), np.concatenate([values - 1, values + 1]))
    assert surface is not None
    mesh, means = surface
    assert np.allclose(means, mesh.x + mesh.y)  # the mean of equal points
    assert _surface(points[:9], values[:9]) is None
    assert _surface(np.stack([points[:, 0], 2 * points[:, 0]], axis=1), values) is None


def test_the_setting_that_determines_the_objective_is_the_most_important() -> None:
    found = importance_of(trials(60), dimensions(searched({"space": SPACE})))
    assert (found.trials, found.why_none) == (48, None)
    assert set(found.shares) == set(SPACE)
    assert next(iter(found.shares)) == "experiences.alpha"
    assert found.shares["experiences.alpha"] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1)


def test_importance_is_left_out_with_a_reason_if_it_cannot_be_estimated() -> None:
    found = dimensions(searched({"space": SPACE}))
    enough = [trial(str(n), n / 100, drawn=drawn(n)) for n in range(FEWEST)]
    few = importance_of(enough[1:], found)
    assert few.why_none == "19 trials have an objective, and 20 are needed"
    assert importance_of(enough, found).why_none is None
    same = [replace(t, objective=0.3) for t in enough]
    assert importance_of(same, found).why_none == "the 20 trials do not differ enough"
    assert importance_of([replace(t, drawn=drawn(0)) for t in enough], found).shares == {}


def test_a_value_beyond_its_range_does_not_stop_the_results(tmp_path: Path) -> None:
    found = [replace(t, drawn=t.drawn | {"experiences.beta": 120.0}) for t in trials(30)]
    assert "importance.png" in write_results(tmp_path, found, searched({"space": SPACE}))


def test_the_printed_table_shows_the_ten_best_in_percent() -> None:
    config, found = searched({"space": SPACE}), trials(30)
    lines = results_table(found, config).splitlines()
    assert lines[0] == "30 trials: 24 finished, 6 failed."
    assert "held-out examples of the D_collect of gaussian_noise" in lines[1]
    start = next(i for i, line in enumerate(lines) if line.startswith("trial "))
    header, rows = lines[start].split(), [line.split() for line in lines[start + 1 : start + 11]]
    assert header[:2] == ["trial", "objective"]
    assert "experiences.alpha" in header
    best = sorted((t for t in found if t.objective is not None), key=lambda t: -(t.objective or 0))[:10]
    assert [row[0] for row in rows] == [t.name for t in best]
    assert rows[0][1] == "*"
    assert [row[1] for row in rows[1:]] == [f"{100 * (t.objective or 0):.1f}" for t in best[1:]]
    assert "* the best, written to best.yaml" in lines
    assert "trial-0004: DivergedError: it became nan" in lines
    assert "… and 3 more errors, in trials.csv." in lines
    assert lines[-1].startswith(
        "Importance for being among the best (PED-ANOVA, 24 trials): experiences.alpha "
    )


def test_the_printed_table_names_the_experiences_of_a_free_subset() -> None:
    config = searched({"experience_sets": {"free": True}, "objective": "pseudo_targets"})
    taken = {f"experience {name}": name in ("fog", "snow") for name in MINED}
    text = results_table(
        [trial(drawn=taken), trial("b", 0.0, rounds=0, drawn=dict.fromkeys(taken, False))], config
    )
    assert "snow, fog" in text
    assert "mean over the experiences left out in turn: snow, fog, shot_noise, contrast" in text
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("b ")] == ["none"]


def test_trials_come_back_from_json_and_draw_the_same(tmp_path: Path) -> None:
    config, found = searched({"space": SPACE}), trials(6)
    again = [Trial(**t) for t in json.loads(json.dumps([asdict(t) for t in found]))]
    write_results(tmp_path / "a", found, config)
    write_results(tmp_path / "b", again, config)
    for name in ("trials.csv", "parallel.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
