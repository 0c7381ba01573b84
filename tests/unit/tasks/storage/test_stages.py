"""Check the table of stages: titles and folders identify a stage, and a stage follows those that it needs."""

from __future__ import annotations

import pytest

from tasks.storage.stages import (
    BEGUN,
    FEATURES,
    LISTED,
    STAGES,
    TARGET,
    Stage,
    stage_of_group,
    stage_of_title,
    stages_of,
)

NAMES = {0: [], 1: ["fog"], 3: ["fog", "metarepair", "0"]}


@pytest.mark.parametrize("stage", [s for s in LISTED if s is not FEATURES], ids=lambda s: s.folder)
def test_a_manifest_title_identifies_its_stage(stage: Stage) -> None:
    assert stage_of_title(stage.title(*NAMES[stage.depth])) == (stage, NAMES[stage.depth])


def test_the_title_of_features_identifies_their_folder() -> None:
    assert stage_of_title(FEATURES.title("target", "fog")) == (FEATURES, ["target-fog"])
    assert stage_of_title("features of fog") is None


@pytest.mark.parametrize("title", ["", "train", "train fog now", "mine fog", "mine target", "search", "run"])
def test_other_titles_identify_no_stage(title: str) -> None:
    assert stage_of_title(title) is None


def test_the_stages_that_a_stage_needs_come_before_it() -> None:
    for number, stage in enumerate(STAGES):
        assert set(stage.needs) <= {earlier.kind for earlier in STAGES[:number]}, stage.kind


def test_no_two_stages_share_a_folder() -> None:
    assert len({stage.group for stage in STAGES}) == len(STAGES)
    assert all(stage_of_group(stage.group) is stage for stage in LISTED)


def test_sealed_parts_are_among_the_traces_of_an_unfinished_stage() -> None:
    for stage in LISTED:
        assert stage.traces
        assert stage.parts in (None, "*", *stage.traces)


def test_a_remedy_is_a_command() -> None:
    assert TARGET.remedy == "Mine it first: metarepair mine --config …"
    assert [stage.group for stage in stages_of("score")] == ["features", "score"]
    assert BEGUN == "begun.json", "runs that were begun before would be taken for new ones"
