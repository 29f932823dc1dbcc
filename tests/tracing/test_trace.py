"""The graph of a real forward: the same however the network is written, and nothing changed by looking."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_training.tracing.graph import first_operand
from lit_training.tracing.trace import Tracer, trace


class Written(nn.Module):
    """One network, its rectifier written in the way that is asked for."""

    def __init__(self, rectify) -> None:
        super().__init__()
        self.first, self.last, self.rectify = nn.Linear(3, 4), nn.Linear(4, 2), rectify

    def forward(self, x):
        return self.last(self.rectify(self.first(x)))


@pytest.mark.parametrize(
    "rectify",
    [F.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True), torch.relu_, lambda x: x.clamp(min=0), lambda x: x.clamp_min(0)],
)
def test_a_rectifier_is_a_rectifier_however_it_is_written(rectify) -> None:
    graph, _ = trace(Written(rectify), torch.randn(5, 3))
    first, last = graph.layers()
    assert (first.weight, last.weight) == ("first.weight", "last.weight")
    assert graph.follows(first.index) == ("relu",)
    assert graph.follows(last.index) == ()
    assert first.index in graph.ancestors(last.index)
    assert graph.reaches_layer(first.index)
    assert not graph.reaches_layer(last.index)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.SELU(), "selu"), (nn.ELU(), "elu"), (nn.ReLU6(), "relu6"), (nn.GELU(), "gelu"), (nn.SiLU(), "silu"), (nn.Mish(), "mish"),
     (nn.Tanh(), "tanh"), (nn.Sigmoid(), "sigmoid"), (nn.PReLU(), "prelu"), (nn.LeakyReLU(), "leaky_relu"),
     (nn.Softplus(), "softplus"), (nn.GLU(), "glu"), (nn.Softmax(-1), "softmax"), (nn.LogSoftmax(-1), "log_softmax"),
     (nn.Hardswish(), "hardswish")],
)  # fmt: skip
def test_every_activation_has_its_name(layer: nn.Module, name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), layer)
    graph, _ = trace(net, torch.randn(2, 3))
    assert graph.follows(graph.layers()[0].index) == (name,)


def test_what_is_between_is_looked_through() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    )
    graph, _ = trace(net, torch.randn(2, 1, 8, 8))
    conv = graph.layers()[0]
    assert graph.follows(conv.index) == ("relu",)
    assert graph.follows(conv.index, through_normalisation=False) == ("normalisation",)


def test_a_gate_a_branch_and_a_loss_have_their_names() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x, y):
            hidden = self.a(x)
            return F.mse_loss(hidden * self.b(x) + hidden.tanh(), y)

    graph, _ = trace(Net(), torch.randn(2, 3), torch.randn(2, 3))
    first, second = graph.layers()
    assert set(graph.follows(first.index)) == {"product", "tanh"}
    assert graph.follows(second.index) == ("product",)
    assert graph.nodes[-1].op == "mse_loss"


def test_shared_weights_are_a_layer_for_each_call_and_scopes_are_named() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    graph, _ = trace(net, torch.randn(2, 3))
    assert [node.weight for node in graph.layers()] == ["0.weight", "0.weight"]
    assert [node.scope for node in graph.layers()] == ["0", "0"]


def test_a_tensor_that_no_module_owns_is_found() -> None:
    loose = torch.randn(3, 3, requires_grad=True)

    class Net(nn.Module):
        def forward(self, x):
            return x @ loose

    net = Net()
    with Tracer(net) as tracer:
        net(torch.randn(2, 3))
    ((node, tensor),) = tracer.unregistered()
    assert tensor is loose
    assert node.shape == (3, 3)


def test_no_grad_and_constants_are_told_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("table", torch.ones(3))

        def forward(self, x):
            with torch.no_grad():
                target = self.layer(x)
            return self.layer(x) - target + self.table * 2

    graph, _ = trace(Net(), torch.randn(2, 3))
    assert [node.grad_mode for node in graph.layers()] == [False, True]
    assert {node.origin for node in graph.nodes if node.op == "mul"} == {"constant"}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from([nn.ReLU(), nn.Tanh(), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.GELU()]), max_size=6
    ),
    st.integers(0, 10),
)
def test_looking_changes_nothing(layers: list[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 6), *(copy.deepcopy(layer) for layer in layers))
    twin, x = copy.deepcopy(net), torch.randn(4, 6)
    torch.manual_seed(seed)
    _, seen = trace(net, x)
    seen.sum().backward()
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    plain = twin(x)
    plain.sum().backward()
    assert torch.equal(seen, plain)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_an_error_inside_the_network_is_the_users_and_leaves_no_mode_behind() -> None:
    class Net(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trace(Net(), torch.zeros(1))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_first_operand() -> None:
    assert (first_operand("addmm"), first_operand("mm"), first_operand("convolution")) == (1, 0, 0)


def test_what_happens_in_a_pause_is_not_seen_and_a_pause_after_the_end_is_none() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with Tracer(layer) as tracer:
        tracer.pause()
        layer(x).relu()
        tracer.resume()
        layer(x).tanh()
    ops = [node.op for node in tracer.graph.nodes]
    assert "tanh" in ops
    assert "relu" not in ops
    tracer.pause()
    tracer.resume()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
