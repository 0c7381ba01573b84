"""Check that Ray's failures become a WorkerError in one line, without the causes that Ray guesses."""

from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RaySystemError, RayTaskError

from distributed.on_ray.failures import user_error
from distributed.on_ray.ray_words import raise_cause, raise_ray_failures, words_of
from tasks.errors import DataError, WorkerError

DIED = (
    "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. "
    "End of file."
)
CREATION = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::_Actor.__init__()\x1b[39m (pid=1)\n"
    "  At least one of the input arguments for this task could not be computed:\n"
    "traceback: Traceback (most recent call last):\n          ^^^^^\nModuleNotFoundError: No module named 'nets'"
)


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("work", "Traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "guess",
    [
        "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer",
        "Some common causes include: (1) the process was killed by the OOM killer",
    ],
)
def test_causes_that_ray_guesses_are_left_out(guess: str) -> None:
    assert words_of(Exception(f"{DIED} {guess}")) == DIED


def test_a_traceback_is_reduced_to_its_last_line_without_colours() -> None:
    said = words_of(Exception(CREATION))
    assert said.startswith("The actor died because of an error raised in its creation task, ray::_Actor")
    assert said.endswith("ModuleNotFoundError: No module named 'nets'")
    assert "\x1b" not in said


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert words_of(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("error", [RaySystemError("GCS is gone"), RayActorError(), OutOfMemoryError("OOM")])
def test_a_failure_of_ray_itself_becomes_a_worker_error(error: Exception) -> None:
    with pytest.raises(WorkerError, match=type(error).__name__), raise_ray_failures():
        raise error


def test_errors_of_our_own_code_pass_unchanged() -> None:
    with pytest.raises(RayTaskError), raise_ray_failures():
        raise task_error(ZeroDivisionError("in our own code"))
    with pytest.raises(DataError), raise_ray_failures():
        raise DataError("the user's")


def test_a_user_error_and_a_full_disk_of_a_worker_are_raised_as_themselves() -> None:
    with pytest.raises(DataError, match="broken"):
        raise_cause(task_error(DataError("broken")))
    with pytest.raises(OSError, match="No space left") as full:
        raise_cause(task_error(OSError(28, "No space left on device")))
    assert full.value.errno == 28
    with pytest.raises(RayTaskError):
        raise_cause(task_error(ZeroDivisionError()))


class TrainingFailedError(Exception):
    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.worker_failures = {0: failure}


class HealthCheckFailedError(Exception):
    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.health_check_failure = failure


def test_a_training_that_lost_its_workers_ends_with_the_message_of_ray() -> None:
    said = user_error(
        TrainingFailedError(
            HealthCheckFailedError(RaySystemError(f"{DIED} There are some potential root causes"))
        )
    )
    assert isinstance(said, WorkerError)
    assert f"{DIED} See Ray's logs" in str(said)
    assert "ray.max_failures" in str(said)


def test_a_training_that_failed_in_our_own_code_keeps_its_error() -> None:
    failed = TrainingFailedError(task_error(ZeroDivisionError()))
    assert user_error(failed) is failed
    own = DataError("the user's")
    assert user_error(TrainingFailedError(task_error(own))) is own
