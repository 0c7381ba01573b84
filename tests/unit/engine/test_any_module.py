"""Test the meta-gradient of unusual modules (shared weights, in-place writes, dropout), and refused arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision.ops import DeformConv2d

from metarepair.engine.adapted import adapted_names
from metarepair.engine.inner import FunctionalNet, adapt
from metarepair.engine.meta_gradient import OuterLoss, TaskGradient, task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import State, flatten, unflatten
from tasks.errors import ConfigError, DataError, UserError

DOUBLE: Any = {"dtype": torch.float64}


def batch(seed: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 4, 4, generator=generator, **DOUBLE)
    return Batch(images_BCHW=images, labels_B=torch.randint(0, 3, (size,), generator=generator), seed=seed)


TASK = TaskBatch(support=batch(1), query=batch(2))


def functional(module: nn.Module, **rule: Any) -> FunctionalNet:
    return FunctionalNet(module, InnerRule(**{"steps": 2, "rate": 0.2, "batch_norm": "frozen"} | rule))


def gradient(net: FunctionalNet, **options: Any) -> TaskGradient:
    return task_gradient(net, net.parameters(), net.buffers(), options.pop("task", TASK), **options)


class Shared(nn.Module):
    """Registers one activation and one norm under two names each, and ties one weight between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.tied = nn.Linear(48, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.norm, self.last = nn.PReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.same_act, self.same_norm, self.tied.weight = self.act, self.norm, self.middle.weight

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BD = self.norm(torch.tanh(self.first(x_BCHW.flatten(1))))
        x_BD = self.same_norm(self.same_act(self.act(self.middle(x_BD))))
        return self.last(torch.tanh(self.tied(x_BD)))  # type: ignore[no-any-return]


class Writing(nn.Module):
    """Updates a running mean and a call counter, in place and by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(48, 3)
        self.register_buffer("mean", torch.zeros(48))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("assigned", torch.tensor(0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BD = x_BCHW.flatten(1)
        self.mean.mul_(0.5).add_(0.5 * x_BD.detach().mean(0))
        self.calls += 1
        self.assigned = self.assigned + 1
        return torch.tanh(self.last(x_BD - self.mean))


class AlwaysDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 12), nn.Linear(12, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        dropped = F.dropout(self.first(x_BCHW.flatten(1)), 0.5, training=True)
        return self.last(torch.tanh(dropped))  # type: ignore[no-any-return]


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def on(last: nn.Module, *between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *between, last)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "shared": Shared,
    "writing": Writing,
    "always dropping": AlwaysDropping,
    "instance norm": instance_norm,
    "weight norm": lambda: on(parametrizations.weight_norm(nn.Linear(48, 3))),
    "old spectral norm": lambda: on(nn.utils.spectral_norm(nn.Linear(48, 3))),
    "hardsigmoid": lambda: on(nn.Linear(12, 3), nn.Linear(48, 12), nn.Hardsigmoid(), nn.Tanh()),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name]().double()


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("mode", ["frozen", "adapt"])
def test_a_task_leaves_any_module_as_it_was_and_modes_agree(name: str, dropout: bool, mode: str) -> None:
    module = made(name)
    net = functional(module, dropout=dropout, batch_norm=mode)
    kinds = {k: type(v) for k, v in module.named_parameters(remove_duplicate=False)}
    before = {k: v.clone() for k, v in module.state_dict().items()}
    found = [flatten(gradient(net, memory=memory).gradient) for memory in ("graph", "recompute", 1, "graph")]
    adapt(net, net.parameters(), net.buffers(), TASK.support)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert {k: type(v) for k, v in module.named_parameters(remove_duplicate=False)} == kinds
    assert set(kinds.values()) == {nn.Parameter}
    assert not any(m.training for m in module.modules())
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-12


@pytest.mark.parametrize("name", MODULES)
def test_any_modules_gradient_agrees_with_finite_differences(name: str) -> None:
    net = functional(made(name))
    start = net.parameters()
    middle, step = flatten(start), 1e-5

    def loss(vector_P: Tensor) -> float:
        state: State = unflatten(vector_P, start)
        return task_gradient(net, state, net.buffers(), TASK, order="first").loss

    axes = torch.randn(6, len(middle), generator=torch.Generator().manual_seed(5), **DOUBLE)
    axes /= axes.norm(dim=1, keepdim=True)
    slopes = [(loss(middle + step * d) - loss(middle - step * d)) / (2 * step) for d in axes]
    truth, found = torch.tensor(slopes, **DOUBLE), axes @ flatten(gradient(net).gradient)
    assert float((found - truth).norm() / truth.norm()) < 1e-6


def test_the_old_weight_norm_leaves_its_plain_attribute() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(48, 3).double())
    weight, net = layer.weight, functional(on(layer))
    again = functional(on(parametrizations.weight_norm(nn.Linear(48, 3).double())))
    names = {"weight_g": "weight.original0", "weight_v": "weight.original1"}
    start = net.parameters()
    moved = {f"1.parametrizations.{new}": start[f"1.{old}"] for old, new in names.items()}
    other = task_gradient(again, moved | {"1.bias": start["1.bias"]}, {}, TASK).gradient
    found = gradient(net).gradient
    assert layer.weight is weight
    assert torch.allclose(found["1.weight_v"], other["1.parametrizations.weight.original1"], atol=1e-12)


def test_replaced_functions_have_the_values_of_torchs() -> None:
    module, x_BCHW = made("hardsigmoid"), batch(1).images_BCHW
    net = functional(module)
    with net.query(net.parameters(), net.buffers(), batch(1)) as found:
        loss = found.loss
    with torch.no_grad():
        expected = F.cross_entropy(module(x_BCHW), batch(1).labels_B)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-14)


class Doubled(torch.autograd.Function):
    """Computes 2x; the test chooses the function that the backward pass uses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Any) -> Tensor:
        ctx.through = backward
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return ctx.through(grad[0]), None


class Failing(torch.autograd.Function):
    """Doubles the gradient; its backward pass raises `error`."""

    error: Exception

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:  # noqa: ARG004
        raise Failing.error


class OddLayer(nn.Linear):
    through: Any

    def forward(self, input: Tensor) -> Tensor:
        return Doubled.apply(super().forward(input), self.through)  # type: ignore[no-any-return, no-untyped-call]


def odd(through: Any) -> nn.Module:
    layer = OddLayer(48, 3).double()
    layer.through = through
    return on(layer)


ERRORS = [
    RuntimeError("derivative for aten::odd_backward is not implemented"),
    RuntimeError("double backwards on deform_conv2d not supported"),
    RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable"),
    NotImplementedError("no such thing"),
    ValueError("whatever a layer raises"),
]


@pytest.mark.parametrize("memory", ["graph", "recompute", 1, "auto"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
def test_a_layer_without_second_derivative_is_refused_whatever_its_error_says(
    memory: Any, error: Exception
) -> None:
    Failing.error = error
    net = functional(odd(Failing.apply))
    with pytest.raises(ConfigError, match=r"Sequential has a first derivative.*order: first") as refused:
        gradient(net, memory=memory)
    assert str(error) in str(refused.value)
    assert gradient(net, order="first").loss > 0


@pytest.mark.parametrize("order", ["first", "second", "reptile"])
def test_a_layer_without_any_derivative_is_refused_without_a_remedy_that_does_not_help(order: Any) -> None:
    def raises(_: Tensor) -> Tensor:
        raise TypeError("odd")

    with pytest.raises(ConfigError, match=r"cannot differentiate Sequential .*TypeError: odd") as refused:
        gradient(functional(odd(raises)), order=order)
    assert "order: first" not in str(refused.value)


def test_a_deformable_convolution_is_refused_in_second_order_alone() -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.last = nn.Conv2d(3, 18, 3, padding=1), nn.Linear(48, 3)
            self.deformed = DeformConv2d(3, 3, 3, padding=1)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return self.last(self.deformed(x_BCHW, self.offset(x_BCHW)).flatten(1))  # type: ignore[no-any-return]

    net = functional(Deformed().double())
    with pytest.raises(ConfigError, match=r"deform_conv2d.*order: first"):
        gradient(net)
    assert float(gradient(net, order="first").gradient["offset.weight"].norm()) > 0


class Detached(nn.Linear):
    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


@pytest.mark.parametrize("order", ["first", "second", "reptile"])
def test_a_forward_pass_without_gradients_is_refused(order: Any) -> None:
    net = functional(on(Detached(48, 3).double()))
    with pytest.raises(ConfigError, match=r"no path from the logits of Sequential to any of the 2 tensors"):
        gradient(net, order=order)
    with pytest.raises(ConfigError, match="no path from the logits"):
        adapt(net, net.parameters(), net.buffers(), TASK.support)


class Permuted(nn.Module):
    """Holds the order of its classes as an integer parameter, and a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 48), requires_grad=False)
        self.last = nn.Linear(48, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.last(x_BCHW.flatten(1) * self.scale)[:, self.order]  # type: ignore[no-any-return]


@pytest.mark.parametrize("memory", ["graph", "recompute", 1])
@pytest.mark.parametrize("rule", [{}, {"momentum": 0.5, "weight_decay": 0.1}, {"learned_rates": True}])
def test_frozen_and_integer_parameters_are_used_and_stay(memory: Any, rule: dict[str, Any]) -> None:
    frozen = functional(Permuted().double(), **rule)
    factors = frozen.rate_factors() if rule.get("learned_rates") else None
    found = gradient(frozen, memory=memory, factors=factors)
    assert frozen.trainable == frozen.adapted == tuple(found.gradient) == ("last.weight", "last.bias")
    moved, _ = adapt(frozen, frozen.parameters(), {}, TASK.support, factors)
    for name in ("order", "scale"):
        assert torch.equal(moved[name], frozen.parameters()[name])
    assert not torch.equal(moved["last.bias"], frozen.parameters()["last.bias"])


def test_a_net_whose_chosen_parts_are_all_frozen_is_refused() -> None:
    for parts in (("*",), ("last",)):
        net = functional(Permuted().double().requires_grad_(False), parts=parts)
        for act in (
            lambda net=net: gradient(net),
            lambda net=net: adapt(net, net.parameters(), {}, TASK.support),
        ):
            with pytest.raises(
                ConfigError, match=r"parameters of Permuted .* requires_grad=False.*requires_grad_"
            ):
                act()


class Remembering(nn.Linear):
    """Stores its last input, as nets with feature hooks do."""

    seen: Tensor

    def forward(self, input: Tensor) -> Tensor:
        self.seen = super().forward(input)
        return self.seen


def test_tensors_that_a_forward_pass_stores_in_the_module_are_removed_afterwards() -> None:
    net = functional(on(Remembering(48, 3).double()))
    gradient(net)
    adapt(net, net.parameters(), {}, TASK.support)
    assert "seen" not in vars(net.module[1])  # type: ignore[index]
    copy.deepcopy(net.module)  # a tensor with a graph would not be copied


def plain(**rule: Any) -> FunctionalNet:
    torch.manual_seed(0)
    return functional(on(nn.Linear(6, 3), nn.Linear(48, 6), nn.Tanh()).double(), **rule)


@pytest.mark.parametrize(
    "rule",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"steps": True},
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1.0},
        {"batch_norm": "foo"},
        {"batch_norm": None},
        {"batch_norm_momentum": 5.0},
        {"parts": ()},
        {"parts": "head"},
        {"parts": (1,)},
    ],
)
def test_an_invalid_inner_rule_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(rule))}=.*must be"):
        plain(**rule)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"memory": "foo"}, "memory='foo'.*auto, graph, recompute"),
        ({"memory": None}, "memory=None.*auto, graph, recompute"),
        ({"memory": -1}, "memory=-1.*number of steps"),
        ({"memory": 2.5}, "memory=2.5.*number of steps"),
        ({"memory": True}, "memory=True"),
        ({"order": "third"}, "order='third'.*second, first, reptile"),
        ({"order": 2}, "order=2.*second, first, reptile"),
        ({"outer": OuterLoss(clean_weight=0.5)}, "clean_weight=0.5.*no clean batch"),
        ({"outer": OuterLoss(step_weights=(1.0,))}, "step_weights has 1 weights for 2 inner steps"),
        ({"factors": {"x": torch.ones(2)}}, "factors has no"),
        ({"task": TaskBatch(support=batch(1, 0), query=batch(2))}, "support batch has 0 images"),
        ({"task": TaskBatch(support=batch(1), query=batch(2, 0))}, "query batch has 0 images"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        gradient(plain(), **options)


def test_an_invalid_outer_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="clean_weight=2"):
        OuterLoss(clean_weight=2.0)
    with pytest.raises(ConfigError, match="step_weights=nan"):
        OuterLoss(step_weights=(float("nan"), 1.0))


def test_states_and_factors_must_match_the_net() -> None:
    net = plain(learned_rates=True)
    own, factors = net.parameters(), net.rate_factors()
    with pytest.raises(ConfigError, match=r"factors has no '1\.weight'"):
        task_gradient(net, own, {}, TASK)
    short = {k: v[:1] for k, v in factors.items()}
    with pytest.raises(ConfigError, match="one factor for each of 2 steps"):
        task_gradient(net, own, {}, TASK, factors=short)
    less = {k: v for k, v in own.items() if k != "3.bias"}
    with pytest.raises(ConfigError, match=r"parameters has no '3\.bias'"):
        task_gradient(net, less, {}, TASK, factors=factors)
    with pytest.raises(ConfigError, match=r"parameters has no '3\.bias'"):
        adapt(net, less, {}, TASK.support)
    with pytest.raises(ConfigError, match="buffers has 'other'"):
        task_gradient(net, own, {"other": torch.ones(1)}, TASK, factors=factors)


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_a_module_that_returns_no_tensor_is_refused(kind: Any) -> None:
    class Returning(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return kind([("logits", super().forward(input))])

    with pytest.raises(UserError, match=f"Sequential returned a {kind.__name__}"):
        gradient(functional(on(Returning(48, 3).double())))


def test_gradients_are_on_inside_and_inference_mode_is_refused() -> None:
    net = plain()
    expected = gradient(net).gradient["1.weight"]
    with torch.no_grad():
        assert torch.equal(gradient(net).gradient["1.weight"], expected)
        adapt(net, net.parameters(), net.buffers(), TASK.support)
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
        gradient(net)


def test_auto_picks_a_memory_mode_and_logs_it() -> None:
    net = plain()
    found = gradient(net, memory="auto")
    assert "of 2 inner steps" in found.memory
    assert "free" in found.memory
    assert torch.equal(found.gradient["1.weight"], gradient(net).gradient["1.weight"])


def test_the_last_steps_weight_may_be_zero() -> None:
    found = gradient(plain(), outer=OuterLoss(step_weights=(1.0, 0.0)))
    shorter = gradient(plain(steps=1))
    assert found.loss == pytest.approx(shorter.loss)
    assert torch.allclose(found.gradient["1.weight"], shorter.gradient["1.weight"])


class Headed(nn.Module):
    def __init__(self, *heads: nn.Module) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(48, 6), nn.ModuleList(heads)

    def get_classifier(self) -> Any:
        return tuple(self.heads) if len(self.heads) > 1 else self.heads[0]


def test_both_heads_of_a_distilled_net_are_its_head() -> None:
    module = Headed(nn.Linear(6, 3), nn.Linear(6, 3, bias=False))
    assert adapted_names(module, ("head",)) == ("heads.0.weight", "heads.0.bias", "heads.1.weight")


def test_a_head_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="its head, Identity, has no parameters"):
        adapted_names(Headed(nn.Identity()), ("head",))


def test_a_tied_parameter_is_found_by_its_other_names() -> None:
    assert adapted_names(Shared(), ("tied.weight",)) == ("middle.weight",)
    assert adapted_names(Shared(), ("same_act",)) == ("act.weight",)
