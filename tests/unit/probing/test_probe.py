"""Test that the probe finds DNNs whose gradients the engine would compute wrongly, and passes all others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metarepair import repair
from metarepair.config.load import parse_config
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.stateless import StatelessModule
from metarepair.engine.types import Batch, InnerRule
from metarepair.methods import METHODS
from metarepair.models.build import DeployedModel
from metarepair.probing.needs import probe_repair, probe_run
from metarepair.probing.probe import probe
from tasks.errors import ConfigError

IMAGES = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})


def deployed_of(module: nn.Module) -> DeployedModel:
    colour = (0.5, 0.5, 0.5)
    return DeployedModel(name="Unit", module=module.eval(), num_classes=3, mean=colour, std=colour)


def rule_of(**rule: Any) -> InnerRule:
    return InnerRule(**{"steps": 3, "rate": 0.1, "batch_norm": "adapt"} | rule)


class Net(nn.Module):
    """A convolution, batch norm, ReLU and max pooling: not smooth in several places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(96, 3)

    def middle(self, x_BCHW: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.norm(self.first(x_BCHW))), 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.last(self.drop(self.middle(x_BCHW).flatten(1)))  # type: ignore[no-any-return]


class Checkpointed(Net):
    def middle(self, x_BCHW: Tensor) -> Tensor:
        return checkpoint(super().middle, x_BCHW, use_reentrant=False)  # type: ignore[no-any-return]


class Single(Net):
    """Requires float32."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().forward(x_BCHW)


class SingleInside(Net):
    """Computes its softmax-like part in float32, whatever the type of its input."""

    def middle(self, x_BCHW: Tensor) -> Tensor:
        return torch.tanh(super().middle(x_BCHW).float()).to(x_BCHW.dtype)


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "net": Net,
    "checkpointed": Checkpointed,
    "float32 alone": Single,
    "float32 inside": SingleInside,
    "frozen layer": lambda: frozen(Net(), "first"),
    "hardsigmoid": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Hardsigmoid(), nn.Linear(8, 3)),
    "weights at kinks": lambda: zeroed(Net()),
}


def frozen(module: nn.Module, part: str) -> nn.Module:
    module.get_submodule(part).requires_grad_(False)
    return module


def zeroed(module: Net) -> nn.Module:
    nn.init.zeros_(module.first.weight)
    nn.init.zeros_(module.norm.weight)
    return module


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    "rule", [{}, {"batch_norm": "frozen"}, {"dropout": True, "momentum": 0.9, "learned_rates": True}]
)
def test_a_right_dnn_passes_and_stays_as_it_was(name: str, rule: dict[str, Any]) -> None:
    module = RIGHT[name]()
    before = copy.deepcopy(module.eval().state_dict())
    found = probe(deployed_of(module), IMAGES, rule_of(**rule), order="second")
    assert found.second is not None
    assert found.dtype == (torch.float32 if "float32" in name else torch.float64)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(m.training for m in module.modules())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_images_will_do(count: int) -> None:
    assert probe(deployed_of(Net()), IMAGES[:count], rule_of(), order="second").second is not None


class Rough(torch.autograd.Function):
    """x², with a backward pass that detaches the incoming gradient, so the second derivative is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad[0].detach() * 2 * x


class WrongSecond(Net):
    def middle(self, x_BCHW: Tensor) -> Tensor:
        return Rough.apply(super().middle(x_BCHW))  # type: ignore[no-any-return, no-untyped-call]


class Half(torch.autograd.Function):
    """tanh without a second derivative, which torch.autograd.grad silently leaves out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad[0] * (1 - y * y)


class NoSecond(Net):
    def middle(self, x_BCHW: Tensor) -> Tensor:
        return Half.apply(super().middle(x_BCHW))  # type: ignore[no-any-return, no-untyped-call]


class RootOfNothing(Net):
    """Takes the root of 0: the first derivative is masked, the second is NaN."""

    def middle(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = super().middle(x_BCHW)
        return (x_BCHW * 0).square().sum((2, 3), keepdim=True).sqrt() + x_BCHW


@pytest.mark.parametrize("module", [WrongSecond, NoSecond])
def test_a_wrong_or_missing_second_derivative_is_refused_and_the_first_order_passes(
    module: Callable[[], nn.Module],
) -> None:
    with pytest.raises(ConfigError, match=r"Unit.*differs.*order: first"):
        probe(deployed_of(module()), IMAGES, rule_of(), order="second")
    found = probe(deployed_of(module()), IMAGES, rule_of(), order="first")
    assert found.second is None
    assert found.first < 1e-5


def test_the_error_of_a_wrong_meta_gradient_is_reported() -> None:
    says = r"differs from a finite difference .* by \d+% of what second order adds.* derivative is right.*order: first"
    with pytest.raises(ConfigError, match=says):
        probe(deployed_of(WrongSecond()), IMAGES, rule_of(), order="second")


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gradient of Unit by first\.weight is not finite"):
        probe(deployed_of(RootOfNothing()), IMAGES, rule_of(), order="second")


class PartlyDetached(Net):
    def middle(self, x_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return super().middle(x_BCHW)


class ReentrantFirst(Net):
    """Checkpoints its first layer re-entrantly: torch gives it no gradient, as its input requires none."""

    def middle(self, x_BCHW: Tensor) -> Tensor:
        return checkpoint(super().middle, x_BCHW, use_reentrant=True)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("module", [PartlyDetached, ReentrantFirst])
@pytest.mark.parametrize("order", ["first", "second"])
def test_parameters_that_matter_and_get_no_gradient_are_named(
    module: Callable[[], nn.Module], order: Any
) -> None:
    with pytest.raises(
        ConfigError, match=r"depend on first\.weight, but autograd finds no gradient for it .3 such"
    ):
        probe(deployed_of(module()), IMAGES, rule_of(), order=order)
    passed = frozen(frozen(module(), "first"), "norm")
    probe(deployed_of(passed), IMAGES, rule_of(), order=order)


def test_an_unused_parameter_is_accepted() -> None:
    module = Net()
    module.unused = nn.Parameter(torch.ones(3))
    found = probe(deployed_of(module), IMAGES, rule_of(), order="second")
    assert found.first == probe(deployed_of(Net()), IMAGES, rule_of(), order="first").first
    assert found.second is not None
    assert found.second < 1e-2
    assert torch.equal(module.unused, torch.ones(3))


class Clamping(Net):
    """Changes its own weights in the forward pass, as weight clipping does."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            self.last.weight.clamp_(-0.01, 0.01)
        return super().forward(x_BCHW)


def test_a_dnn_that_changes_itself_is_refused_and_restored() -> None:
    module = Clamping()
    before = module.last.weight.detach().clone()
    with pytest.raises(ConfigError, match=r"changes its own last\.weight"):
        probe(deployed_of(module), IMAGES, rule_of(), order="first")
    assert torch.equal(module.last.weight, before)


class Rolling(Net):
    """Draws random numbers from numpy, which torch's seed does not control."""

    generator = np.random.default_rng(0)

    def middle(self, x_BCHW: Tensor) -> Tensor:
        return super().middle(x_BCHW) * float(self.generator.uniform(0.5, 1.5))


def test_a_dnn_that_draws_from_another_generator_is_refused() -> None:
    with pytest.raises(ConfigError, match="different gradients for the same weights"):
        probe(deployed_of(Rolling()), IMAGES, rule_of(), order="first")


def test_a_dnn_that_the_engine_computes_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulate an engine that leaves out one tensor, which a plain call reveals.
    put = StatelessModule.put

    def leaves_one_out(self: StatelessModule, state: dict[str, Tensor]) -> None:
        put(self, {k: v for k, v in state.items() if k != "last.weight"})

    monkeypatch.setattr(StatelessModule, "put", leaves_one_out)
    with pytest.raises(ConfigError, match=r"differs from that of the DNN itself"):
        probe(deployed_of(Net()), IMAGES, rule_of(), order="first")


def test_a_checkpoint_recomputed_with_the_modules_own_weights_would_be_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Simulate an earlier engine, which put the module's own weights back before the backward pass.
    def forward_alone(self: FunctionalNet, batch: Any) -> Tensor:
        logits_BK = self._stateless(batch.images_BCHW)
        self._stateless.put({k: v.detach() * 0.5 for k, v in self.module.named_parameters()})
        return logits_BK

    monkeypatch.setattr(FunctionalNet, "_logits", forward_alone)
    with pytest.raises(ConfigError, match=r"differs|CheckpointError"):
        probe(deployed_of(Checkpointed()), IMAGES, rule_of(), order="second")
    probe(deployed_of(Net()), IMAGES, rule_of(), order="second")  # a plain net is not affected


class Swish(torch.autograd.Function):
    """SiLU without a second derivative, which torch.autograd.grad silently leaves out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(x)
        return grad[0] * slope * (1 + x * (1 - slope))


class Activated(nn.Module):
    def __init__(self, seed: int, *, right: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.right = right
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(96, 3)

    def activation(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.right else Swish.apply(x)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.activation(self.second(self.activation(self.first(x_BCHW))))
        return self.last(x_BCHW.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(20))
def test_an_activation_without_second_derivative_is_found_with_any_weights(seed: int) -> None:
    images = np.random.default_rng(seed).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="differs from a finite difference"):
        probe(deployed_of(Activated(seed, right=False)), images, rule_of(), order="second")
    probe(deployed_of(Activated(seed, right=True)), images, rule_of(), order="second")


class Scaled(torch.autograd.Function):
    """The identity, with a wrong derivative of 1.3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad[0] * 1.3


class WrongFirst(Net):
    def middle(self, x_BCHW: Tensor) -> Tensor:
        return Scaled.apply(super().middle(x_BCHW))  # type: ignore[no-any-return, no-untyped-call]


def test_a_wrong_first_derivative_is_distinguished_from_a_wrong_second_one() -> None:
    with pytest.raises(ConfigError, match="PyTorch gives is not the derivative of the loss either"):
        probe(deployed_of(WrongFirst()), IMAGES, rule_of(), order="second")


class WritingToItsInput(Net):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.sub_(0.5).div_(2))


class MixedTypes(Net):
    """Has a first layer in half precision; the forward pass converts to it and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first.bfloat16()

    def middle(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.first(x_BCHW.bfloat16()).float()
        return F.max_pool2d(torch.relu(self.norm(h_BCHW)), 2)


def with_unused_nan(module: nn.Module) -> nn.Module:
    module.register_buffer("unused", torch.full((2,), torch.nan))
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_unused_nan(Net()),
        WritingToItsInput,
        MixedTypes,
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 3)),
    ],
    ids=["NaN that nothing uses", "writes to its input", "types of its own", "in-place first layer"],
)
def test_an_unusual_dnn_with_right_gradients_passes(make: Callable[[], nn.Module]) -> None:
    assert probe(deployed_of(make()), IMAGES, rule_of(), order="second").second is not None


def test_a_forward_pass_that_writes_to_its_input_leaves_the_images_of_a_task() -> None:
    net = FunctionalNet(WritingToItsInput().eval(), rule_of())
    images = torch.randn(4, 3, 8, 8)
    batch = Batch(images_BCHW=images.clone(), labels_B=torch.arange(4) % 3)
    adapt(net, net.parameters(), net.buffers(), batch)
    assert torch.equal(batch.images_BCHW, images)


class OfTwo(Net):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        if len(x_BCHW) != 1:
            raise ValueError("one image at a time")
        return super().forward(x_BCHW)


def test_a_dnn_whose_forward_pass_raises_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Unit raised ValueError on a batch of 8 images \(one image at a time\)"
    ):
        probe(deployed_of(OfTwo()), IMAGES, rule_of(), order="first")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_are_probed_for_what_they_need(name: str) -> None:
    found = probe_repair(METHODS[name], deployed_of(Net()), IMAGES, CONFIG)
    assert (found is None) == (METHODS[name].changes in ((), ("statistics",)))
    assert found is None or found.second is None


def test_a_run_is_probed_for_second_derivatives_only_where_it_trains_with_them() -> None:
    methods, first = [METHODS["finetune"]], {"train": {"order": "first"}}
    deployed, values = deployed_of(NoSecond()), CONFIG.model_dump(mode="json")
    with pytest.raises(ConfigError, match="order: first"):
        probe_run(methods, deployed, IMAGES, CONFIG, trains=True)
    assert probe_run(methods, deployed, IMAGES, CONFIG, trains=False) is not None
    config = parse_config(values | {"train": values["train"] | first["train"]})
    assert probe_run(methods, deployed, IMAGES, config, trains=True) is not None
    assert probe_run([METHODS["bn_adapt"]], deployed, IMAGES, CONFIG, trains=False) is None


def test_a_call_probes_before_it_repairs() -> None:
    labels = np.zeros(5, np.int64)
    module = PartlyDetached()
    with torch.no_grad():
        module.last.bias.copy_(torch.tensor([-5.0, 5.0, 0.0]))  # all are failures
    with pytest.raises(ConfigError, match="autograd finds no gradient"):
        repair(module, (IMAGES, labels), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (
        repair(module, (IMAGES, labels), mean=(0.5,) * 3, std=(0.5,) * 3, method="bn_adapt").module
        is not None
    )
