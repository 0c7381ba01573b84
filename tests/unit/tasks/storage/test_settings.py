"""Check that a key missing from an older record counts as its default when settings are compared."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import Field

from metarepair.config.section import Section
from tasks.errors import DataError, StageError
from tasks.storage.manifest import as_recorded, begin, check_done, require_manifest, write_manifest
from tasks.storage.settings import Settings, changes, plain
from tasks.storage.stages import BEGUN


class Inner(Section):
    rate: float = Field(0.1)
    parts: tuple[str, ...] = Field(("*",))
    clip: float | None = Field(None)
    options: dict[str, float] = Field(default_factory=dict)


class Search(Section):
    trials: int
    seed: int = 0


class Whole(Section):
    name: str
    seed: int = 0
    inner: Inner = Inner()
    search: Search | None = None


WHOLE = Whole(name="a", seed=0)
FULL = {
    "name": "a",
    "seed": 0,
    "inner": {"rate": 0.1, "parts": ["*"], "clip": None, "options": {}},
    "search": None,
}


def without(values: dict[str, object], *names: str) -> dict[str, object]:
    """`values` without the keys `names`, such as `inner.rate`."""
    found = json.loads(json.dumps(values))
    for name in names:
        *groups, key = name.split(".")
        group = found
        for step in groups:
            group = group[step]
        del group[key]
    return dict(found)


def test_settings_are_written_in_full() -> None:
    assert WHOLE.settings() == WHOLE.model_dump(mode="json") == FULL
    assert json.loads(json.dumps(WHOLE.settings())) == FULL


@pytest.mark.parametrize(
    "names",
    [["seed"], ["inner.rate"], ["inner.parts"], ["inner.options", "inner.clip"], ["inner"], ["search"]],
)
def test_a_key_missing_from_the_record_counts_as_its_default(names: list[str]) -> None:
    assert changes(without(FULL, *names), WHOLE.settings()) == []


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["seed"], {"seed": 3}, ["seed: 0 -> 3"]),
        (["inner.rate"], {"inner": {"rate": 0.5}}, ["inner.rate: 0.1 -> 0.5"]),
        (["inner"], {"inner": {"rate": 0.5}}, ["inner.rate: 0.1 -> 0.5"]),
        (["inner.parts"], {"inner": {"parts": ["head"]}}, ["inner.parts: ['*'] -> ['head']"]),
        (["inner.clip"], {"inner": {"clip": 1.0}}, ["inner.clip: None -> 1.0"]),
        (["inner.options"], {"inner": {"options": {"decay": 0.5}}}, ["inner.options.decay: None -> 0.5"]),
        (["name"], {}, ["name: None -> a"]),  # name has no default
    ],
)
def test_a_value_other_than_the_default_differs_from_an_older_record(
    names: list[str], settings: dict[str, object], said: list[str]
) -> None:
    present = Whole.model_validate({"name": "a", **settings})
    assert changes(without(FULL, *names), present.settings()) == said


def test_a_recorded_value_other_than_the_default_differs_from_the_default() -> None:
    recorded = Whole.model_validate({"name": "a", "inner": {"rate": 0.5, "options": {"decay": 0.5}}})
    assert changes(plain(recorded.settings()), WHOLE.settings()) == [
        "inner.options.decay: 0.5 -> None",
        "inner.rate: 0.5 -> 0.1",
    ]


def test_a_key_that_no_longer_exists_is_a_change_if_it_was_set() -> None:
    assert changes(FULL | {"gone": 1}, WHOLE.settings()) == ["gone: 1 -> None"]
    assert changes(FULL | {"gone": None}, WHOLE.settings()) == []


def test_an_optional_group_that_is_added_or_removed_is_a_change() -> None:
    present = Whole.model_validate({"name": "a", "search": {"trials": 4}})
    assert changes(FULL, present.settings()) == ["search: None -> {'trials': 4, 'seed': 0}"]
    recorded = plain(present.settings())
    assert changes(recorded, WHOLE.settings()) == ["search: {'trials': 4, 'seed': 0} -> None"]
    assert changes(without(recorded, "search.seed"), present.settings()) == []


def test_keys_excluded_from_a_group_are_not_compared() -> None:
    settings = WHOLE.settings(include={"seed"}) | {
        "inner": WHOLE.inner.settings(exclude={"parts", "options"})
    }
    assert settings == {"seed": 0, "inner": {"rate": 0.1, "clip": None}}
    assert changes({}, settings) == []


def test_settings_keep_their_defaults_when_joined_or_pickled() -> None:
    settings = WHOLE.settings(include={"seed", "inner"}) | {"shards": 2}
    for one in (settings, pickle.loads(pickle.dumps(settings))):
        assert isinstance(one, Settings)
        assert changes({"shards": 2}, one) == []
        assert changes({"shards": 1}, one) == ["shards: 1 -> 2"]


def test_an_older_stage_counts_as_done_unless_a_value_changed(tmp_path: Path) -> None:
    write_manifest(tmp_path, stage="mine", config={"inner": {"rate": 0.1}}, inputs={}, files=[])
    before = require_manifest(tmp_path, "").digest
    done = check_done(tmp_path, stage="mine", config=WHOLE.settings(include={"inner"}), inputs={})
    assert done is not None
    assert done.digest == before
    other = Whole.model_validate({"name": "a", "inner": {"clip": 1.0}})
    with pytest.raises(
        StageError, match=r"'mine' with other settings: inner.clip: None -> 1.0\. Give this run"
    ):
        check_done(tmp_path, stage="mine", config=other.settings(include={"inner"}), inputs={})


def test_an_older_unfinished_stage_is_resumed_with_its_recorded_settings(tmp_path: Path) -> None:
    begin(tmp_path, config={"inner": {"rate": 0.1}}, inputs={"train": "1"})
    before = json.loads((tmp_path / BEGUN).read_text())
    begin(tmp_path, config=WHOLE.settings(include={"inner"}), inputs={"train": "1"})
    assert json.loads((tmp_path / BEGUN).read_text()) == before
    assert as_recorded(tmp_path, WHOLE.settings(include={"inner"})) == {"inner": {"rate": 0.1}}
    other = Whole.model_validate({"name": "a", "inner": {"rate": 0.5}}).settings(include={"inner"})
    assert as_recorded(tmp_path, other) == other
    with pytest.raises(
        StageError, match=r"started with other settings: inner.rate: 0.1 -> 0.5\. Set them back"
    ):
        begin(tmp_path, config=other, inputs={"train": "1"})
    with pytest.raises(StageError, match=r"started with other settings: inputs.train: 1 -> 2"):
        begin(tmp_path, config=WHOLE.settings(include={"inner"}), inputs={"train": "2"})


@pytest.mark.parametrize("text", ["{}", "[]", '{"config": 3, "inputs": {}}', "{"])
def test_a_begun_file_without_settings_is_damaged_rather_than_all_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / BEGUN).write_text(text)
    settings = WHOLE.settings(include={"inner"})
    assert as_recorded(tmp_path, settings) == settings
    with pytest.raises(DataError, match=r"begun.json .* Run the stage again with --restart"):
        begin(tmp_path, config=settings, inputs={})
    begin(tmp_path, config=settings, inputs={}, sealed=True)
    assert json.loads((tmp_path / BEGUN).read_text()) == {"config": settings, "inputs": {}}
