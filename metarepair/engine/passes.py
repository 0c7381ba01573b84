"""Count the images that pass through a DNN, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Passes:
    """Counts the images of every call of a watched module and of its copies, whoever calls them.

    Passes through a part of the module alone are not counted.

    Attributes:
        forward: Images that went through the module; an image counts once for each call.
        backward: Images whose logits were differentiated; an image counts once for each derivative, so twice where a
            gradient is differentiated again.
    """

    def __init__(self) -> None:
        self.forward, self.backward = 0, 0

    def watch(self, module: nn.Module) -> RemovableHandle:
        """Count the calls of a module until the handle is removed; copies made from it count here, too."""
        return module.register_forward_hook(self)

    def leave(self, module: nn.Module) -> None:
        """Stop counting the calls of a module and its parts: that of a copy, whose handle nobody has."""
        for part in module.modules():
            for key in [key for key, hook in part._forward_hooks.items() if hook is self]:
                del part._forward_hooks[key]

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count the passes of the block, such as those that only measure memory."""
        before = self.forward, self.backward
        try:
            yield
        finally:
            self.forward, self.backward = before

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.ndim:
            return
        count = len(output)
        self.forward += count
        if output.requires_grad:
            output.register_hook(lambda _: self._differentiated(count))  # type: ignore[no-untyped-call]

    def _differentiated(self, count: int) -> None:
        self.backward += count

    def __deepcopy__(self, _memo: object) -> Passes:
        return self  # a copied module counts here

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()  # in another process it counts for itself
