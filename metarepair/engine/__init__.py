"""The inner loop and its exact meta-gradient, for any PyTorch classifier.

To use it in a MAML loop of your own, import from here: build a `FunctionalNet` from a module and an `InnerRule`, call
`task_gradient` with parameters, buffers and a `TaskBatch`, and step any optimizer with the gradient that it returns.

types.py              the inner rule, and the batches of a task
inner.py              a module as a pure function, and the inner loop (Algorithm 1, lines 7 and 18)
meta_gradient.py      the gradient of a task's outer loss (lines 6-10)
memory.py             how many steps keep their graphs
adapted.py            which parameters are adapted
stateless.py          modules called with parameters and buffers from outside
vectors.py            parameters and buffers by name, and as flat vectors
finite_difference.py  gradients against central differences
checks.py             errors for wrong arguments
"""

from __future__ import annotations

from metarepair.engine.adapted import adapted_names
from metarepair.engine.inner import FunctionalNet, Pass, adapt
from metarepair.engine.memory import Memory, MemoryPlan, free_bytes, plan_for, plan_memory
from metarepair.engine.meta_gradient import Order, OuterLoss, TaskGradient, task_gradient
from metarepair.engine.types import Batch, BatchNormMode, InnerRule, TaskBatch
from metarepair.engine.vectors import State

__all__ = [
    "Batch",
    "BatchNormMode",
    "FunctionalNet",
    "InnerRule",
    "Memory",
    "MemoryPlan",
    "Order",
    "OuterLoss",
    "Pass",
    "State",
    "TaskBatch",
    "TaskGradient",
    "adapt",
    "adapted_names",
    "free_bytes",
    "plan_for",
    "plan_memory",
    "task_gradient",
]
