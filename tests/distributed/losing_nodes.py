"""Run mining or meta-training on a cluster whose nodes lose their raylets at random moments.

This is a separate program, because nodes can be added only from the main thread, and so that nothing
that it leaves behind affects the tests.
    python tests/distributed/losing_nodes.py CONFIG mine|train KILLS SEED
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from distributed.stages.executor import executor_for
from metarepair.config.load import load_config
from metarepair.runs.layout import Run
from metarepair.stages.pipeline import Pipeline

NODE = {"num_cpus": 1, "include_dashboard": False}


def main(config_path: str, stage: str, kills: int, seed: int) -> None:
    """Run `stage` on two nodes with one worker each; replace each killed node by a new one."""
    config, generator = load_config(Path(config_path), []), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        over, deaths = threading.Event(), 0
        pipeline = Pipeline(config, executor_for)
        failed: list[BaseException] = []
        worker = threading.Thread(target=_do, args=(getattr(pipeline, stage), over, failed))
        worker.start()
        seen = done(pipeline.run, stage)
        while deaths < kills and not over.wait(float(generator.uniform(0.05, 0.5))):
            if done(pipeline.run, stage) > seen:
                lost = nodes.pop(int(generator.integers(len(nodes))))
                os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)
                deaths += 1
                nodes.append(cluster.add_node(**NODE))
                seen = done(pipeline.run, stage)
        worker.join()
        ray.shutdown()
        cluster.shutdown()
    if failed:
        raise failed[0]
    print(json.dumps({"deaths": deaths}))


def done(run: Run, stage: str) -> int:
    """Return the number of Arrow files, or of episodes in the newest checkpoint."""
    if stage == "mine":
        return len(list(run.root.rglob("*.arrow")))
    names = [path.parent.name for path in run.root.rglob("checkpoint-*/state.json")]
    return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)


def _do(work: Callable[[], object], over: threading.Event, failed: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        failed.append(error)
    finally:
        over.set()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
