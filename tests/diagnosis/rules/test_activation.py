"""What stands between layers, at their end, and around batch norm; what losses receive."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.diagnosis.evidence import collect
from lit_training.diagnosis.plan import Plan
from lit_training.diagnosis.rules.activation import wrong_hidden_activation
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import adam, alarms, mlp, notes, numbers, vectors

Act = Callable[[], nn.Module]


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class StraightThrough(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (x.sign() - x).detach()


class Rows(nn.Softmax):
    def __init__(self) -> None:
        super().__init__(dim=1)


# ------------------------------------------------------------------------------------------ hidden
@pytest.mark.parametrize("act", [nn.Sigmoid, Rows, Sign])
def test_activations_that_choke_are_found(act: Act) -> None:
    assert alarms(mlp(16, 64, 64, 4, act=act))[0] == "wrong_hidden_activation"


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh().round()


def test_a_rounding_between_layers_cuts_the_gradient_off() -> None:
    assert alarms(mlp(16, 64, 64, 4, act=Rounded))[0] == "detached_subgraph"


@pytest.mark.parametrize(
    "act",
    [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.Softplus, nn.Hardswish, StraightThrough],
)
def test_activations_that_pass_gradients_are_silent(act: Act) -> None:
    assert alarms(mlp(16, 64, 64, 4, act=act)) == []


def test_one_layer_of_sigmoids_and_scaled_sigmoids_are_silent() -> None:
    assert alarms(mlp(16, 64, 4, act=nn.Sigmoid)) == []
    scaled = mlp(16, 64, 64, 4, act=nn.Sigmoid)
    for layer in (scaled[0], scaled[2]):
        nn.init.xavier_normal_(layer.weight, gain=4.0)
    assert alarms(scaled, optimizer=adam) == []


@pytest.mark.parametrize(("layers", "said"), [(3, []), (5, ["wrong_hidden_activation"])])
def test_adam_trains_three_layers_of_sigmoids_but_not_five(layers: int, said: list[str]) -> None:
    assert alarms(mlp(16, *(64 for _ in range(layers)), 4, act=nn.Sigmoid), optimizer=adam)[:1] == said


@pytest.mark.parametrize(("rate", "told"), [(1.0, False), (0.01, True)])
def test_a_rate_may_make_up_for_two_layers_of_sigmoids(rate: float, told: bool) -> None:
    x, y = vectors()
    model = mlp(16, 30, 30, 4, act=nn.Sigmoid)
    for layer in (model[0], model[2], model[4]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    held = torch.optim.SGD(model.parameters(), lr=rate)
    with Probe(model, len(x), (x, y)) as probe:
        value = F.cross_entropy(model(x), y)
        probe.differentiate(value)
        value.backward()
    seen = collect(probe, optimizers=[held], loss=value, stepping=held, plan=Plan(600))
    assert bool(list(wrong_hidden_activation(seen))) == told


class Attention(nn.Module):
    """Softmax times data, written out, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.gate = (nn.Linear(4, 16) for _ in range(4))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 4))
        mixed = (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)
        return self.head((self.gate(x).sigmoid() * mixed).mean(1))


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed before and after the softmax (Shazeer et al. 2020)."""

    def __init__(self, *, attends: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))
        self.before, self.after, self.attends = nn.Linear(4, 4), nn.Linear(4, 4), attends
        self.head = nn.Linear(16 if attends else 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = self.after(self.before((q @ k.mT).movedim(1, -1)).softmax(-2))
        if not self.attends:
            return self.head(weights.relu().mean((1, 2)))
        return self.head((weights.movedim(-1, 1) @ v).transpose(1, 2).flatten(2).mean(1))


def test_attention_and_gates_are_silent() -> None:
    assert alarms(Attention()) == []


@pytest.mark.parametrize(("attends", "said"), [(True, []), (False, ["wrong_hidden_activation"])])
def test_a_softmax_between_layers_that_mix_heads_is_silent(attends: bool, said: list[str]) -> None:
    x, y = vectors(32, 64 * 8)
    assert alarms(TalkingHeads(attends=attends), (x.view(32, 64, 8), y)) == said


# ------------------------------------------------------------------------------------------ last
@pytest.mark.parametrize("act", [lambda: nn.Softmax(1), nn.Sigmoid, nn.ReLU, nn.Tanh])
def test_cross_entropy_wants_logits(act: Act) -> None:
    assert alarms(nn.Sequential(*mlp(16, 64, 4), act()), steps=1)[0] == "wrong_last_activation"


def test_log_softmax_twice_changes_nothing() -> None:
    assert alarms(nn.Sequential(*mlp(16, 64, 4), nn.LogSoftmax(1))) == []


def test_a_bounded_output_must_reach_its_targets() -> None:
    x, y = numbers()
    assert alarms(nn.Sequential(*mlp(16, 64, 1), nn.Sigmoid()), (x, y), F.mse_loss, steps=1) == ["wrong_last_activation"]
    assert alarms(nn.Sequential(*mlp(16, 64, 1), nn.Sigmoid()), (x, y.sigmoid()), F.mse_loss, steps=1) == []


# ------------------------------------------------------------------------------------------ losses
def test_nll_of_logits_is_found() -> None:
    assert alarms(mlp(16, 64, 4), loss=F.nll_loss, steps=1)[0] == "wrong_loss"


def test_a_softmax_over_one_class_is_found() -> None:
    x, _ = vectors()
    model = nn.Sequential(*mlp(16, 64, 1), nn.Softmax(1))
    y = (torch.arange(32) % 2).float()[:, None]
    assert alarms(model, (x, y), F.binary_cross_entropy, steps=1)[0] == "wrong_last_activation"
    assert alarms(mlp(16, 64, 1), (x, torch.zeros(32, dtype=torch.long)), steps=1)[0] == "wrong_loss"


def test_cross_entropy_of_several_labels_is_found_and_soft_labels_are_not() -> None:
    x, y = vectors()
    several = torch.zeros(32, 4).bernoulli_(0.7, generator=torch.Generator().manual_seed(0))
    assert alarms(mlp(16, 64, 4), (x, several), steps=1) == ["wrong_loss"]
    assert alarms(mlp(16, 64, 4), (x, 0.9 * F.one_hot(y, 4) + 0.025), steps=1) == []


@pytest.mark.parametrize(("log", "said"), [(False, ["wrong_loss"]), (True, [])])
def test_kl_div_wants_log_probabilities(log: bool, said: list[str]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        p = output.log_softmax(1) if log else output.softmax(1)
        return F.kl_div(p, F.one_hot(target, 4).float(), reduction="batchmean")

    assert alarms(mlp(16, 64, 4), loss=loss, steps=1) == said


# ------------------------------------------------------------------------------------------ batch norm
def conv(bias: bool, norm: bool = True, late: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    act = [nn.ReLU(), nn.BatchNorm2d(8)] if late else [nn.BatchNorm2d(8), nn.ReLU()]
    middle = act if norm else [nn.ReLU()]
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, bias=bias), *middle, nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.parametrize(
    ("model", "noted"),
    [(conv(True), True), (conv(False), False), (conv(True, norm=False), False), (conv(True, late=True), False)],
)
def test_a_bias_before_batch_norm_is_noted(model: nn.Module, noted: bool) -> None:
    assert ("bias_before_bn" in notes(model)) == noted
    assert alarms(model) == []


@pytest.mark.parametrize(("rows", "noted"), [(2, True), (32, False)])
def test_batch_norm_of_a_few_values_is_noted(rows: int, noted: bool) -> None:
    x, y = vectors(rows)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    assert ("small_batch_norm" in notes(model, (x, y))) == noted


def test_idle_batch_norm_is_found() -> None:
    model = conv(False)
    assert alarms(model.eval()) == ["bn_eval_in_train"]


UNHEARD = {
    "one logit": lambda output, y: -output.gather(1, y[:, None]).mean(),
    "one logit, bounded": lambda output, y: F.softplus(-output.gather(1, y[:, None])).mean(),
    "means": lambda output, y: F.mse_loss(output.mean(0), F.one_hot(y, 4).float().mean(0)),
}


@pytest.mark.parametrize("name", UNHEARD)
def test_losses_that_leave_outputs_unheard_are_found(name: str) -> None:
    assert alarms(mlp(16, 64, 4), loss=UNHEARD[name], steps=1)[0] == "wrong_loss"


def test_a_hinge_wants_targets_of_minus_one_and_one() -> None:
    x, y = vectors()
    zero_one = (y % 2).float()[:, None]

    def hinge(output: Tensor, target: Tensor) -> Tensor:
        return F.relu(1 - target * output).mean()

    assert alarms(mlp(16, 64, 1), (x, zero_one), hinge, steps=1)[0] == "wrong_loss"
    assert alarms(mlp(16, 64, 1), (x, 2 * zero_one - 1), hinge, steps=1) == []


def test_policy_gradients_and_means_of_features_are_silent() -> None:
    x, y = vectors()
    reinforce = lambda output, target: -(output.log_softmax(1).gather(1, target[:, None]) * (x[:, :1] > 0)).mean()  # noqa: E731
    assert "wrong_loss" not in alarms(mlp(16, 64, 4), (x, y), reinforce, steps=1)
    assert "wrong_loss" not in alarms(
        mlp(16, 64, 4), (x, y), lambda output, _: F.mse_loss(output.mean(0), torch.zeros(4)), steps=1
    )


@pytest.mark.parametrize(("low", "high", "rules"), [(0.0, 1.0, ["wrong_last_activation"]), (-30.0, 30.0, [])])
def test_logits_may_be_clamped_far_out_only(low: float, high: float, rules: list[str]) -> None:
    assert alarms(mlp(16, 64, 4).append(nn.Hardtanh(low, high)), steps=1) == rules


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Linear(16, 96), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).view(-1, 32, 3).amax(2))


class Graph(nn.Module):
    """Two graph convolutions; the batch is the nodes of one graph."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(16, 64), nn.Linear(64, 4), act
        self.register_buffer("adjacency", torch.eye(32).roll(1, 0) + torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.adjacency @ self.second(self.act(self.adjacency @ self.first(x)))


class SpatialSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Linear(16, 80), nn.Linear(8, 4)
        self.register_buffer("places", torch.linspace(-1, 1, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.maps(x).view(-1, 8, 10).softmax(2) * self.places).sum(2))


def test_maxima_given_matrices_and_expectations_are_read_as_what_they_are() -> None:
    assert alarms(Maxout(), steps=1) == []
    assert alarms(Graph(nn.ReLU()), steps=1) == []
    assert alarms(Graph(nn.Identity()), steps=1) == ["missing_activation"]
    assert alarms(SpatialSoftmax(), steps=1) == []


def test_a_cosine_over_one_column_is_flat() -> None:
    x, y = numbers()
    assert (
        alarms(mlp(16, 8, 1), (x, y), lambda output, target: 1 - F.cosine_similarity(output, target).mean())[0] == "wrong_loss"
    )


def test_class_numbers_are_nothing_for_squared_errors() -> None:
    loss = lambda output, y: F.mse_loss(output, y.float()[:, None].expand_as(output))  # noqa: E731
    assert alarms(mlp(16, 64, 4), loss=loss, steps=1)[0] == "wrong_loss"
    x, y = numbers()
    assert alarms(mlp(16, 64, 4), (x, y), lambda output, target: F.mse_loss(output, target.expand_as(output)), steps=1) == []


class Accumulator(nn.Module):
    """A neural accumulator (Trask et al. 2018): linear on purpose, with weights near -1, 0 and 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w, self.m = (nn.Parameter(torch.randn(outputs, inputs)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w.tanh() * self.m.sigmoid())


class SoftTree(nn.Module):
    """Leaves that hold class probabilities, mixed by the probabilities of the paths to them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.leaf = nn.Linear(16, 6), nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x).softmax(1) @ self.leaf.softmax(1)).log()


class Coin(nn.Module):
    """Feeds back its own guess or not, by a coin a sample, also when it is evaluated: scheduled sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.second(torch.cat([h * (torch.rand(len(x), 1) < 0.5), x], 1))


def test_networks_that_are_linear_normalised_or_random_by_design_are_silent() -> None:
    x, y = numbers()
    assert alarms(nn.Sequential(Accumulator(16, 8), Accumulator(8, 1)), (x, y), F.mse_loss, steps=1) == []
    assert alarms(SoftTree(), loss=F.nll_loss, steps=1) == []
    assert alarms(Coin(), steps=1) == []


class Gaussians(nn.Module):
    """A generative classifier: log p(x | class), up to a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.centres = nn.Linear(16, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return -4 - (self.encode(x)[:, None] - self.centres).square().sum(2)


def test_likelihoods_of_generative_classifiers_may_go_into_nll() -> None:
    assert "wrong_loss" not in alarms(Gaussians(), loss=F.nll_loss, steps=1)


@pytest.mark.parametrize("dropout", [nn.Identity(), nn.Dropout(0.1)])
def test_softmax_between_layers_is_found_with_dropout_behind_it(dropout: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.Softmax(1), dropout, nn.Linear(64, 64), nn.Softmax(1), dropout, nn.Linear(64, 4))
    assert alarms(net)[0] == "wrong_hidden_activation"
