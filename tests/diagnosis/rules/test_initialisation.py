"""How weights and biases were drawn."""

import math
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.looking import adam, alarms, findings, mlp, notes, numbers, vectors


def fill(model: nn.Module, draw: Callable[[Tensor], object]) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def he(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


DEEP = [16] + [64] * 10 + [4]


# ------------------------------------------------------------------------------------------ vanishing
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU])
def test_a_small_std_in_a_deep_net_vanishes(act: Callable[[], nn.Module]) -> None:
    found = findings(fill(mlp(*DEEP, act=act), lambda w: nn.init.normal_(w, std=0.01)))
    assert [f.rule for f in found if f.severity != "note"] == ["init_vanishing"]
    assert found[0].where == "0"


def test_he_keeps_the_signal_in_thirty_layers() -> None:
    assert alarms(fill(mlp(16, *[64] * 30, 4), he), optimizer=adam) == []


@pytest.mark.parametrize(("depth", "vanishes"), [(4, False), (12, True)])
def test_default_initialisation_vanishes_in_deep_nets_only(depth: int, vanishes: bool) -> None:
    assert alarms(mlp(16, *[64] * depth, 4)) == (["init_vanishing"] if vanishes else [])


def test_adam_takes_what_sgd_does_not() -> None:
    assert alarms(mlp(16, *[64] * 8, 4)) == ["init_vanishing"]
    assert alarms(mlp(16, *[64] * 8, 4), optimizer=adam) == []


class Residual(nn.Module):
    """Blocks with a skip connection, whose last layers start at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.blocks = nn.ModuleList(mlp(64, 64, 64, seed=i) for i in range(5))
        for block in self.blocks:
            nn.init.zeros_(block[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_that_start_at_zero_are_silent() -> None:
    assert alarms(Residual()) == []


def test_a_head_that_starts_at_zero_is_silent() -> None:
    model = mlp(16, 64, 64, 4)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    assert alarms(model) == []


# ------------------------------------------------------------------------------------------ exploding
@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.uniform_, lambda w: nn.init.orthogonal_(w, gain=6)])
def test_weights_that_are_too_large_explode(draw: Callable[[Tensor], object]) -> None:
    assert alarms(fill(mlp(*DEEP), draw))[0] == "init_exploding"


def test_normalisation_forgives_large_weights() -> None:
    layers = [[nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()] for _ in range(4)]
    model = nn.Sequential(nn.Linear(16, 64), *(m for block in layers for m in block), nn.Linear(64, 4))
    for block in layers:
        nn.init.normal_(block[0].weight, std=5)
    assert alarms(model) == []


def test_a_head_that_is_drawn_too_large_is_found_and_explains_the_loss() -> None:
    model = mlp(16, 64, 64, 4)
    with torch.no_grad():
        model[-1].weight.mul_(200)
    found = findings(model, steps=1)
    assert (found[0].rule, found[0].where) == ("init_exploding", "4")
    assert "bad_initial_loss" in [f.rule for f in found if f.caused_by is found[0]]


def test_targets_in_physical_units_are_no_explosion() -> None:
    x, y = numbers()
    model = nn.Sequential(mlp(16, 64, 64, 1), nn.Linear(1, 1))
    assert "init_exploding" not in alarms(model, (x, 1000 * y), F.mse_loss, optimizer=adam)


# ------------------------------------------------------------------------------------------ symmetry
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_units_stay_equal(value: float) -> None:
    assert alarms(fill(mlp(16, 64, 64, 4), lambda w: nn.init.constant_(w, value)))[0] == "init_symmetry"


# ------------------------------------------------------------------------------------------ gain
@pytest.mark.parametrize(("draw", "said"), [(None, ["bad_gain"]), ("linear", [])])
def test_selu_needs_a_gain_of_one(draw: str | None, said: list[str]) -> None:
    model = mlp(*[16] + [64] * 12 + [4], act=nn.SELU)
    if draw:
        fill(model, lambda w: nn.init.kaiming_normal_(w, nonlinearity=draw))
    assert alarms(model, steps=1) == said


def test_shallow_selu_nets_are_silent() -> None:
    assert alarms(mlp(16, 64, 64, 4, act=nn.SELU)) == []


class Ratings(nn.Module):
    """The product of two tables' rows, as recommenders have it; the last two inputs are codes."""

    def __init__(self, fill: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(8, 6), nn.Embedding(8, 6)
        fill(self.users.weight)
        fill(self.items.weight)

    def forward(self, x: Tensor) -> Tensor:
        codes = (x[:, :2] * 2 + 4).long().clamp(0, 7)
        return (self.users(codes[:, 0]) * self.items(codes[:, 1])).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("fill", "rules"),
    [
        (lambda w: nn.init.constant_(w, 0.3), ["init_symmetry"]),
        (lambda w: nn.init.normal_(w, std=0.3), []),
        (lambda w: w.data.copy_(torch.linspace(0.1, 0.6, 6).expand(8, 6)), []),  # rows start equal, factors do not
    ],
)
def test_factors_that_start_equal_stay_equal(fill: Callable[[Tensor], object], rules: list[str]) -> None:
    assert [rule for rule in alarms(Ratings(fill), numbers(), F.mse_loss) if rule == "init_symmetry"] == rules


class Unrolled(nn.Module):
    """A recurrent net, called step by step: a cell of torch's, one of plain layers, or one of bare matrices."""

    def __init__(self, gain: float, *, by_hand: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.by_hand = nn.Linear(32, 4), by_hand
        if by_hand:
            self.read, self.step = nn.Linear(2, 32), nn.Linear(32, 32, bias=False)
        else:
            self.cell = nn.RNNCell(2, 32)
        nn.init.orthogonal_(self.step.weight if by_hand else self.cell.weight_hh, gain)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 32)
        for part in x.view(len(x), 8, 2).unbind(1):
            if self.by_hand == "matrices":
                state = torch.tanh(part @ self.read.weight.t() + state @ self.step.weight + self.read.bias)
            else:
                state = (self.read(part) + self.step(state)).tanh() if self.by_hand else self.cell(part, state)
        return self.head(state)


@pytest.mark.parametrize("by_hand", ["", "layers", "matrices"])
@pytest.mark.parametrize(("gain", "rules"), [(6.0, ["bad_gain"]), (1.0, [])])
def test_a_recurrent_gain_that_saturates_the_state_is_found(gain: float, rules: list[str], by_hand: str) -> None:
    assert [rule for rule in alarms(Unrolled(gain, by_hand=by_hand)) if rule == "bad_gain"] == rules


# ------------------------------------------------------------------------------------------ biases
def test_biases_that_silence_a_layer_are_the_cause() -> None:
    model = mlp(16, 64, 64, 4)
    nn.init.constant_(model[0].bias, -5.0)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("bad_bias_init", "0.bias")
    assert {f.rule for f in found if f.caused_by is found[0]} >= {"dead_relu"}


def test_a_shifted_batch_norm_is_the_cause() -> None:
    model = nn.Sequential(nn.Linear(16, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.constant_(model[1].bias, -6.0)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("bad_bias_init", "1.bias")


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 4).float())])
def test_a_head_that_is_certain_is_found(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = mlp(16, 64, 4)
    model[-1].bias.data = torch.tensor([0.0, 40.0, -40.0, 20.0])
    assert alarms(model, loss=loss, steps=1)[0] == "bad_bias_init"


def poisson(output: Tensor, target: Tensor) -> Tensor:
    return (output.exp() - target * output).mean()


@pytest.mark.parametrize(("bias", "rules"), [(14.0, ["bad_bias_init"]), (math.log(14.0), [])])
def test_a_mean_in_the_bias_in_front_of_an_exponential_is_found(bias: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 16)
    model = mlp(16, 64, 1)
    nn.init.constant_(model[-1].bias, bias)
    found = findings(model, (x, torch.poisson(14 * (0.3 * x[:, :1]).exp())), poisson)
    assert [f.rule for f in found if f.severity != "note"][:1] == rules


@pytest.mark.parametrize(("bias", "said"), [(4.6, ["bad_bias_init"]), (-4.6, []), (1.0, [])])
def test_a_prior_with_its_sign_turned_is_found(bias: float, said: list[str]) -> None:
    """Focal loss of rare positives, as detectors have it."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 16), (torch.rand(32, 40) < 0.03).float()
    model = mlp(16, 64, 40)
    nn.init.normal_(model[-1].weight, std=0.01)
    nn.init.constant_(model[-1].bias, bias)

    def focal(output: Tensor, target: Tensor) -> Tensor:
        p = output.sigmoid().clamp(1e-6, 1 - 1e-6)
        return -(target * (1 - p) ** 2 * p.log() + (1 - target) * p**2 * (1 - p).log()).mean()

    assert [rule for rule in alarms(model, (x, y), focal, optimizer=adam) if rule == "bad_bias_init"] == said


def test_a_prior_in_the_bias_is_silent() -> None:
    x, _ = vectors()
    y = (torch.arange(32) == 0).long()
    model = mlp(16, 64, 2)
    model[-1].bias.data = torch.tensor([0.97, 0.03]).log()
    assert alarms(model, (x, y)) == []


class Recurrent(nn.Module):
    def __init__(self, forget: float, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(4, 32, batch_first=True), nn.Linear(32, 4)
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            bias.data[32:64] = forget / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unflatten(1, (4, 4)))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("forget", "said"), [(-12.0, ["bad_bias_init"]), (-1.9, ["bad_bias_init"]), (1.0, []), (-1.0, [])])
def test_closed_gates_of_the_memory_are_found(forget: float, said: list[str], kind: type[nn.RNNBase]) -> None:
    assert alarms(Recurrent(forget, kind)) == said


def grown(trained: bool) -> nn.Sequential:
    """Layers that make values some 3 times larger each, as drawn, or with a direction in them that training leaves."""
    model = mlp(16, 64, 64, 64, 4)
    with torch.no_grad():
        for layer in model[:-1:2]:
            nn.init.normal_(layer.weight, std=3 * (2 / layer.weight.shape[1]) ** 0.5)
            if trained:
                u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
                layer.weight.copy_(u @ torch.diag(torch.cat([2 * s[:4], 0.6 * s[4:]])) @ v)
    return model


def test_values_that_grow_along_drawn_weights_are_found_and_along_trained_ones_not() -> None:
    assert "init_exploding" in alarms(grown(trained=False))
    assert "init_exploding" not in alarms(grown(trained=True))


def test_frozen_layers_are_not_accused_of_how_they_were_drawn_if_declared() -> None:
    model = grown(trained=False)
    for layer in model[:-1]:
        layer.requires_grad_(False)
    x, y = vectors()
    frozen = ["model.0", "model.2", "model.4"]
    watch = Diagnostics(verbose=False, expect_frozen=frozen, select=["init_*"])
    module = LitModule(model, loss="cross_entropy", lr=1e-3, metrics=[])
    trainer = pl.Trainer(max_steps=1, barebones=True, accelerator="cpu", callbacks=[watch])
    trainer.fit(module, DataLoader(TensorDataset(x, y), 32))
    assert watch.findings == []


# ------------------------------------------------------------------------------------------ dead, saturated
def test_negative_weights_on_positive_inputs_are_dead() -> None:
    x, y = vectors()
    model = mlp(16, 64, 64, 4)
    with torch.no_grad():
        model[0].weight.abs_().neg_()
        model[0].bias.zero_()
    found = findings(model, (x.abs(), y))
    assert (found[0].rule, found[0].where) == ("dead_relu", "0")
    assert "100% of the 64 units" in found[0].message


def test_some_dead_units_small_layers_and_single_samples_are_silent() -> None:
    model = mlp(16, 64, 64, 4)
    model[0].bias.data[:30] = -20.0
    assert alarms(model) == []
    small = mlp(16, 64, 4, 64, 4)
    assert alarms(small) == []
    x, y = vectors(1)
    assert alarms(mlp(16, 64, 4), (x, y)) == []


def test_saturated_units_are_found() -> None:
    model = mlp(16, 64, 64, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight.mul_(15)
    found = findings(model)
    assert (found[0].rule, found[0].where) == ("saturation", "0")


class Speaker(nn.Module):
    """Words through a recurrent layer."""

    def __init__(self, kind: Callable[..., nn.Module], factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn, self.head = nn.Embedding(50, 24), kind(24, 32, 2, batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            for name, weight in self.rnn.named_parameters():
                if "weight" in name:
                    weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(x))[0][:, -1])


def spoken() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(50, (32, 12), generator=g), torch.randint(4, (32,), generator=g)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("factor", "said"), [(1.0, []), (10.0, ["saturation"])])
def test_gates_that_are_stuck_are_found(kind: Callable[..., nn.Module], factor: float, said: list[str]) -> None:
    found = [f for f in findings(Speaker(kind, factor), spoken()) if f.severity != "note"]
    assert [f.rule for f in found] == said
    assert all(f.where == "rnn" for f in found)


def test_a_trained_recurrent_layer_decides() -> None:
    model = Speaker(nn.LSTM, 10.0)
    with torch.no_grad():
        for weight in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0):
            weight.add_(5 * torch.ones(len(weight), 1) @ torch.ones(1, weight.shape[1]) / weight.shape[1] ** 0.5)
    assert "saturation" not in alarms(model, spoken())


@pytest.mark.parametrize("gain", [1.0, 5 / 3, 2.0])
def test_tanh_nets_that_are_scaled_right_are_silent(gain: float) -> None:
    assert alarms(fill(mlp(16, 64, 64, 64, 4, act=nn.Tanh), lambda w: nn.init.xavier_normal_(w, gain=gain))) == []


# ------------------------------------------------------------------------------------------ symptoms
def test_a_gradient_that_vanishes_without_a_cause_is_said() -> None:
    class Shrinking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return 1e-8 * gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = mlp(16, 64), mlp(64, 64), mlp(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(Shrinking.apply(self.a(x).relu())).relu())

    assert alarms(Net()) == ["vanishing_gradient"]


def test_a_long_gradient_is_a_note() -> None:
    x, y = numbers()
    assert "exploding_gradient" in notes(mlp(16, 64, 1), (x, 1e6 * y), F.mse_loss, optimizer=adam, steps=1)


class ZeroEnds(nn.Module):
    """A residual net as Fixup starts it: the last layer of each branch is zero, and so is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        for layer in (self.last, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.last(torch.relu(self.first(x))))


class Factors(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)
        for layer in (self.a, self.b):
            nn.init.normal_(layer.weight, std=value)

    def forward(self, x):
        return (self.a(x) * self.b(x)).sum(1, keepdim=True)


def test_zero_ends_are_silent_and_zeros_that_nothing_moves_are_not() -> None:
    assert alarms(ZeroEnds()) == []
    assert alarms(Factors(0.0), numbers(), torch.nn.functional.mse_loss)[0] == "init_symmetry"
    assert alarms(Factors(0.1), numbers(), torch.nn.functional.mse_loss) == []


def test_a_regressions_outputs_are_held_against_its_targets() -> None:
    wild, biased = mlp(16, 64, 64, 1), mlp(16, 64, 1)
    for layer in wild:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.0)
    nn.init.constant_(biased[-1].bias, 60.0)
    assert alarms(wild, numbers(), F.mse_loss, optimizer=adam)[0] == "init_exploding"
    assert alarms(biased, numbers(), F.mse_loss, optimizer=adam)[0] == "bad_bias_init"


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], value: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(4, 16, batch_first=True), nn.Linear(16, 4)
        for parameter in self.parameters():
            if value is not None:
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 4, 4))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_of_constant_weights_is_symmetric(kind: type[nn.RNNBase]) -> None:
    assert alarms(Tagger(kind, 0.1), steps=1)[0] == "init_symmetry"
    assert alarms(Tagger(kind, None), steps=1) == []
