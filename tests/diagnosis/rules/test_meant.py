"""What looks like a slip and is meant, next to the slip that it looks like."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.diagnosis.experiments import Call, try_in_eval
from tests.diagnosis.rules.looking import adam, alarms, mlp, vectors


class Beside(nn.Module):
    """A network, and another one that is called as well: its output is added, or only compared with."""

    def __init__(self, other: nn.Module, added: bool) -> None:
        super().__init__()
        self.net, self.added = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)), added
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        if self.added:
            return self.net(x) + self.other(x)
        with torch.no_grad():
            self.compared = self.other(x)
        return self.net(x)


@pytest.mark.parametrize(("added", "said"), [(True, ["bn_eval_in_train"]), (False, [])])
def test_batch_norm_in_eval_mode_counts_where_a_gradient_flows_through_it(added: bool, said: list[str]) -> None:
    torch.manual_seed(0)
    model = Beside(mlp(16, 32, 4), added)
    model.other = copy.deepcopy(model.net).requires_grad_(added).eval()
    assert alarms(model, optimizer=adam) == said


@pytest.mark.parametrize(("name", "said"), [("prior", []), ("body", ["frozen_by_accident"])])
def test_a_name_declares_a_random_network(name: str, said: list[str]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(16, 32, 4)
            setattr(self, name, mlp(16, 32, 4, seed=1).requires_grad_(False))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + getattr(self, name)(x)

    assert alarms(Sum(), optimizer=adam) == said


@pytest.mark.parametrize("trained", [True, False])
def test_what_no_optimiser_holds_may_stay_if_it_was_trained(trained: bool) -> None:
    model = mlp(16, 64, 64, 4)
    if trained:
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight += 2 * torch.outer(torch.ones(64), layer.weight[0])
    said = alarms(model, optimizer=lambda m: torch.optim.SGD(m[4].parameters(), lr=0.01))
    assert ("not_in_optimizer" in said) != trained


class Masking(nn.Module):
    """Multiplies by a random mask, or adds uniform noise, whatever the mode."""

    def __init__(self, drops: bool) -> None:
        super().__init__()
        self.layer, self.drops = nn.Linear(6, 6), drops

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand_like(x)
        return self.layer(x * (drawn > 0.3) if self.drops else x + drawn)


@pytest.mark.parametrize("drops", [True, False])
def test_uniform_noise_is_a_mask_once_it_is_compared(drops: bool) -> None:
    assert try_in_eval([Call("", Masking(drops), (torch.randn(8, 6),), {})])[0].dropped == drops


class FusedDropout(nn.Module):
    """Drops in any mode, as F.dropout does on a GPU: by one kernel that gives the mask, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.native_dropout(x, 0.5, True)[0])


def test_dropout_of_one_kernel_is_a_mask() -> None:
    assert try_in_eval([Call("", FusedDropout(), (torch.randn(8, 6),), {})])[0].dropped


class WithDeviation(nn.Module):
    """A discriminator that sees how far its batch scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x, x.std(0).mean().expand(len(x), 1)], 1))


def test_statistics_of_the_batch_mix_samples_on_purpose() -> None:
    assert try_in_eval([Call("", WithDeviation(), (torch.randn(8, 6),), {})])[0].mixed is None


@pytest.mark.parametrize(("samples", "judged"), [(8, True), (1, False), (None, True)])
def test_rows_that_are_no_samples_may_be_mixed(samples: int | None, judged: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Softmax(0))
    assert (try_in_eval([Call("", net, (torch.randn(8, 6),), {})], samples)[0].mixed is not None) == judged


class Stepped(nn.Module):
    """Rounds between two layers, straight through or not, in front of a head of zeros."""

    def __init__(self, straight_through: bool) -> None:
        super().__init__()
        self.body, self.head, self.through = mlp(16, 32), nn.Linear(32, 4), straight_through
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x + (x.round() - x).detach() if self.through else x.round())


@pytest.mark.parametrize(("straight_through", "said"), [(True, []), (False, ["detached_subgraph"])])
def test_a_head_of_zeros_holds_no_gradient_back_for_long(straight_through: bool, said: list[str]) -> None:
    assert alarms(Stepped(straight_through), optimizer=adam) == said


def test_sparse_inputs_are_no_reason_for_a_large_gain() -> None:
    torch.manual_seed(0)
    model = mlp(3000, 64, 4)
    nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")
    batch = F.one_hot(torch.arange(32) % 20 * 100, 3000).float(), vectors()[1]
    assert alarms(model, batch, optimizer=adam) == []


class Repeated(nn.Module):
    """Linear layers: one and the same again and again, as in a linear system, or several."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        first = nn.Linear(16, 16)
        self.steps, self.out = nn.ModuleList(first if same else nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.out(x)


@pytest.mark.parametrize(("same", "said"), [(True, []), (False, ["missing_activation"])])
def test_a_linear_system_may_do_without_activations(same: bool, said: list[str]) -> None:
    torch.manual_seed(0)
    assert alarms(Repeated(same), optimizer=adam) == said


@pytest.mark.parametrize(("bias", "said"), [(-5.0, []), (-50.0, ["bad_bias_init"])])
def test_gates_may_start_nearly_shut(bias: float, said: list[str]) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.branch, self.head = nn.Linear(16, 16), mlp(16, 32, 16), nn.Linear(16, 4)
            nn.init.constant_(self.gate.bias, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.gate(x).sigmoid() * self.branch(x)).relu())

    torch.manual_seed(0)
    assert alarms(Gated(), optimizer=adam)[:1] == said


class NextToken(nn.Module):
    """Looks one place back, or one ahead; as many classes as places, along either dimension."""

    def __init__(self, ahead: bool, transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.conv, self.ahead, self.transposed = nn.Embedding(12, 12), nn.Conv1d(12, 12, 2), ahead, transposed

    def forward(self, tokens: Tensor) -> Tensor:
        seen = nn.functional.pad(self.embed(tokens).transpose(1, 2), (0, 1) if self.ahead else (1, 0))
        logits: Tensor = self.conv(seen)
        return logits.transpose(1, 2) if self.transposed else logits


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_classes_as_many_as_places_are_not_taken_for_them(ahead: bool, transposed: bool) -> None:
    tokens = torch.randint(12, (8, 12), generator=torch.Generator().manual_seed(1))
    assert try_in_eval([Call("", NextToken(ahead, transposed), (tokens,), {})], ahead=True)[0].foresees == ahead
