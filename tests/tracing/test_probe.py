"""What a probe measures, against the same figures taken by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_training.tracing.probe import Probe
from lit_training.tracing.tensor_stats import measure, read_together


def test_statistics_equal_those_taken_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    with Probe(net, batch_size=32) as probe:
        loss = F.cross_entropy(net(x), y)
        probe.differentiate(loss)
        loss.backward()
    hidden = F.linear(x, net[0].weight, net[0].bias).detach().requires_grad_()
    F.cross_entropy(net[2](hidden.tanh()), y).backward()
    first = probe.layers["0"]
    assert first.nonlinearity == "tanh"
    assert first.output.std == pytest.approx(float(hidden.std(correction=0)), rel=1e-5)
    assert first.output.signal == pytest.approx(float(hidden.std(0).mean()), rel=1e-5)
    assert first.activation.signal == pytest.approx(float(hidden.tanh().std(0).mean()), rel=1e-5)
    assert first.gradient.std == pytest.approx(float(hidden.grad.std(correction=0)), rel=1e-5)
    assert first.source.mean == pytest.approx(float(x.mean()), abs=1e-6)
    (call,) = probe.losses
    assert call.value == pytest.approx(float(loss.detach()))
    assert call.target_range == (0.0, 2.0)


def test_what_is_read_together_is_what_is_read_alone() -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(9, 4),
        5 + 1e-6 * torch.randn(7, 4),
        torch.randn(9, 3),
        torch.randn(1, 4),
        torch.full((5, 4), torch.nan),
    ]
    alone, together = ([measure(x, len(x)) for x in tensors] for _ in range(2))
    read_together(together)
    for one, other in zip(alone, together, strict=True):
        for name in ("rows", "mean", "std", "signal", "energy"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-12, nan_ok=True)


def test_the_signal_is_not_the_spread_of_the_biases() -> None:
    x = torch.tensor([0.0, 5.0, -5.0]) + 1e-3 * torch.randn(64, 3)
    stats = measure(x, 64)
    assert stats.std > 4
    assert stats.signal == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("cut", [1, 7, 31])
def test_two_parts_of_a_batch_merge_to_the_whole(cut: int) -> None:
    torch.manual_seed(1)
    x = 1e4 + 1e-2 * torch.randn(32, 5)
    whole = measure(x.double(), 32)
    merged = measure(x[:cut].double(), cut).merge(measure(x[cut:].double(), 32 - cut))
    assert merged.rows == 32
    assert merged.signal == pytest.approx(whole.signal, rel=1e-6)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12)
    assert merged.largest == whole.largest


def test_scaling_scales() -> None:
    stats = measure(torch.randn(16, 4), 16)
    assert stats.scaled(3).std == pytest.approx(3 * stats.std)
    assert stats.scaled(3).largest == pytest.approx(3 * stats.largest)


def test_dead_constant_and_broken_units_are_counted() -> None:
    x = torch.randn(16, 4).abs()
    x[:, 0] = 0
    stats = measure(x, 16)
    assert (stats.silent_units, stats.constant_units, stats.finite) == (0.25, 0.25, True)
    x[3, 1] = math.nan
    assert not measure(x, 16).finite


def test_saturation_is_near_the_bounds_of_the_activation() -> None:
    x = torch.tensor([[0.999, -0.999, 0.0, 0.5]]).repeat(8, 1)
    assert float(measure(x, 8, bounded_by="tanh").saturated) == 0.5


def test_one_row_has_no_signal() -> None:
    assert math.isnan(measure(torch.randn(1, 4), 1).signal)


def test_a_sequence_is_not_taken_for_the_batch() -> None:
    net = nn.Linear(4, 6)
    x = torch.randn(3, 1, 4).expand(3, 11, 4) + torch.arange(11.0)[:, None]
    with Probe(net, batch_size=3) as probe:
        net(x).sum().backward()
    (layer,) = probe.layers.values()
    assert layer.output.rows == 3
    assert layer.output.signal == pytest.approx(float(net(x).std(0).mean()), rel=1e-5)


def test_a_layer_called_twice_is_counted() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    with Probe(net, batch_size=8) as probe:
        net(torch.randn(8, 4)).sum().backward()
    assert sum(layer.calls for layer in probe.layers.values()) == 2
    assert not any(part._forward_hooks for part in net.modules())


class Fused(torch.autograd.Function):
    """Like a recurrent kernel of a GPU: of what it gives, an output that nobody reads has no gradient, not zeros."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x.clone(), x[:, -1].clone()

    @staticmethod
    def backward(ctx, outputs, state):
        gradient = torch.zeros(3, 5, 4)
        gradient[:, -1] = state
        return gradient


class OnlyState(nn.GRU):
    def forward(self, x):
        return Fused.apply(super().forward(x)[0])


def test_a_gradient_that_is_not_defined_leaves_the_backward_pass_alone() -> None:
    net = OnlyState(2, 4, batch_first=True)
    with Probe(net, batch_size=3) as probe:
        output, state = net(torch.randn(3, 5, 2))
        (state.sum() + 0 * output.detach().sum()).backward()
    assert probe.tracer.failure is None
    assert net.weight_ih_l0.grad is not None
    assert next(iter(probe.layers.values())).gradient is None


def test_extremes_are_those_of_all_elements_also_of_a_large_tensor() -> None:
    x = torch.randn(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    x[2, 5, 17, 3], x[:, 1] = 9.0, 0.0
    stats = measure(x, 4, unit_dim=1)
    assert stats.largest == 9.0
    assert stats.constant_units == 1 / 8
    assert stats.std == pytest.approx(float(x.std()), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_vanished_signal_does_not_underflow(dtype: torch.dtype) -> None:
    x = (1e-25 * torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert measure(x, 64).signal == pytest.approx(float(x.double().std(0).mean()), rel=1e-6)


def test_what_one_layer_gives_and_the_next_takes_is_measured_once() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with Probe(net, batch_size=16) as probe:
        net(torch.randn(16, 4)).sum().backward()
    assert probe.layers["2"].source is probe.layers["0"].activation


def test_the_root_of_a_mean_error_is_no_activation_of_a_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 1))
    with Probe(net, batch_size=4) as probe:
        net(torch.randn(4, 3)).square().mean().sqrt().backward()
    assert probe.tracer.failure is None
    assert probe.layers["0"].nonlinearity == "pow"


def test_the_floor_of_a_length_is_no_activation_of_what_has_it() -> None:
    class Unit(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.normalize(super().forward(x), dim=1)

    net = nn.Sequential(Unit(4, 3), nn.Linear(3, 2))
    with Probe(net, batch_size=8) as probe:
        net(torch.randn(8, 4)).sum().backward()
    assert probe.layers["0"].nonlinearity == ""
