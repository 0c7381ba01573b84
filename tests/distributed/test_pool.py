"""The actor pool on a real local Ray gives the same results as one process, keeps errors, and survives deaths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import ray

from distributed.on_ray.pool import map_items
from distributed.stages.executor import executor_for
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.stages.pipeline import Pipeline
from tasks.errors import DataError, WorkerError

pytestmark = pytest.mark.distributed
Tiny = Callable[..., Config]
# Actors cannot import a test module by its name.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def squares() -> Callable[[int], int]:
    return lambda x: x * x


def failing() -> Callable[[int], int]:
    def work(x: int) -> int:
        if x == 3:
            raise DataError("item 3 is broken")
        return x

    return work


def dying_once(marker: Path) -> Callable[[int], int]:
    """Return a function whose process ends at item 2, the first time only."""

    def work(x: int) -> int:
        if x == 2 and not marker.exists():
            marker.touch()
            os._exit(1)
        return x

    return work


def mapped(
    build: Callable[[], Callable[[int], int]], items: Sequence[int], workers: int
) -> Iterator[tuple[int, int]]:
    """Map `items` on `workers` actors; with 0, in this process."""
    config = parse_config({"name": "pool", "workers": workers, "mining": {"experiences": ["fog"]}})
    return executor_for(config).map(build, items, one_cpu=True)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_item_is_done_once(cluster: None, workers: int) -> None:
    found = dict(mapped(squares, list(range(17)), workers))
    assert found == {x: x * x for x in range(17)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_user_error_keeps_its_type_and_message(cluster: None, workers: int) -> None:
    with pytest.raises(DataError, match="item 3 is broken"):
        list(mapped(failing, list(range(6)), workers))


def unbuildable() -> Callable[[int], int]:
    raise DataError("the worker cannot be built")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_user_error_in_building_the_worker_keeps_its_type_and_message(cluster: None, workers: int) -> None:
    with pytest.raises(DataError, match="cannot be built"):
        list(mapped(unbuildable, list(range(3)), workers))


def test_an_actor_that_dies_is_restarted_and_its_item_done_again(cluster: None, tmp_path: Path) -> None:
    build = partial(dying_once, tmp_path / "died")
    found = [item for item, _ in map_items(build, list(range(8)), workers=2)]
    assert (tmp_path / "died").exists()
    assert sorted(found) == list(range(8))


class Unloadable:
    """A builder whose import fails in the actor, as when a module is missing on a node."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("a_module_that_is_missing",)

    def __call__(self) -> Callable[[int], int]:
        raise AssertionError("it never gets there")


def test_an_actor_that_cannot_be_started_is_reported_with_rays_error_and_no_guess(cluster: None) -> None:
    with pytest.raises(WorkerError) as failed:
        list(map_items(Unloadable(), [1, 2], workers=1))
    said = str(failed.value)
    assert said.startswith(
        "A worker could not be started. Ray says: The actor died because of an error raised in"
    )
    assert "ModuleNotFoundError: No module named 'a_module_that_is_missing'" in said
    assert "\n" not in said


@pytest.mark.slow
def test_actors_mine_and_score_the_same_bytes_as_one_process(
    cluster: None, tiny: Tiny, scored: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(tiny(tmp_path, workers=2), executor_for)
    pipeline.mine()
    pipeline.score()
    ours, theirs = tmp_path / "tiny", scored / "tiny"
    names = [p.relative_to(theirs) for p in theirs.rglob("*.arrow")]
    names += [Path("score/matrix.parquet"), Path("score/confidence.parquet")]
    assert len(names) == 10
    assert all((ours / n).read_bytes() == (theirs / n).read_bytes() for n in names)


def test_mining_resumes_with_the_missing_shards(tiny: Tiny, scored: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny(tmp_path), executor_for)
    kept = stopped_after(pipeline, parts=5)
    # An environment has four shards: the first environment is finished, and the second has one shard.
    assert [p.name for p in kept] == ["collect.arrow", "fail.arrow", "part-00000.arrow"]
    pipeline = Pipeline(tiny(tmp_path), executor_for)
    seen = stopped_after(pipeline, parts=2)
    assert len(seen) == 5
    assert {p: m for p, m in seen.items() if p in kept} == kept  # no shard was mined again
    pipeline.mine()
    for path in (scored / "tiny").rglob("*.arrow"):
        assert (tmp_path / "tiny" / path.relative_to(scored / "tiny")).read_bytes() == path.read_bytes()


def stopped_after(pipeline: Pipeline, parts: int) -> dict[Path, int]:
    """Interrupt mining after `parts` shards; return the Arrow files that exist then, with their times."""
    from metarepair.stages import mining

    root, write, written = pipeline.run.root, mining.write_part, []

    def counting(path: Path, mined: object) -> None:
        if len(written) == parts:
            raise KeyboardInterrupt
        written.append(path)
        write(path, mined)  # type: ignore[arg-type]  # passed through

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "write_part", counting)
        with pytest.raises(KeyboardInterrupt):
            pipeline.mine()
    return {p: p.stat().st_mtime_ns for p in sorted(root.rglob("*.arrow"))}
