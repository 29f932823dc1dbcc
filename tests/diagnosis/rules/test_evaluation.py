"""What depends on a sample's neighbours in the batch, and how much dropout drops; and what only looks so."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.diagnosis.experiments import Call, Calls, try_in_eval
from tests.diagnosis.rules.looking import alarms


def mixed(net: nn.Module, *shape: int) -> float | None:
    return try_in_eval([Call("", net, (torch.randn(*shape),), {})])[0].mixed


# ------------------------------------------------------------------------------------------ batch mixing
class Recurrent(nn.Module):
    """Classifies by the last output of a recurrent layer that wants `[time, batch]`."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 24), nn.Linear(24, 4)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        b, t, f = x.shape
        return self.head(self.rnn(x.view(t, b, f) if self.view else x.transpose(0, 1))[0][-1])


@pytest.mark.parametrize("length", [16, 20])
@pytest.mark.parametrize("view", [True, False])
def test_a_view_in_place_of_a_transpose_mixes_samples_even_where_what_is_read_first_is_forgotten(
    length: int, view: bool
) -> None:
    torch.manual_seed(0)
    found = mixed(Recurrent(view), 32, length, 3)
    assert found is not None
    assert (found > 1e-3) == view


class LastFrame(nn.Module):
    """Reads along the batch, and gives as many classes as there are frames, of which it takes the last."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def test_classes_as_many_as_frames_are_no_samples_along_the_second_dimension() -> None:
    torch.manual_seed(0)
    found = mixed(LastFrame(), 16, 4, 3)
    assert found is not None
    assert found > 1e-3


def test_a_copy_that_is_made_while_calls_are_watched_is_no_call_of_the_original() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with Calls(net) as calls:
        copy.deepcopy(net)(torch.zeros(5, 4))
        net[1](torch.zeros(2, 3))
    assert [(call.name, call.args[0].shape) for call in calls.seen] == [("1", (2, 3))]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_two_samples_can_be_compared() -> None:
    torch.manual_seed(0)
    assert (mixed(nn.Sequential(nn.Linear(3, 4), nn.Softmax(0)), 2, 3) or 0) > 1e-3


class ClassToken(nn.Module):
    """A transformer of which only the class token is read."""

    def __init__(self, batch_first: bool, swap: bool = False) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.head = nn.Linear(16, 4)
        self.swap = swap

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.layer(x.transpose(0, 1)).transpose(0, 1) if self.swap else self.layer(x)
        return self.head(x[:, 0])


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 8, 16), torch.arange(32) % 4


@pytest.mark.parametrize("words", [8, 12, 16, 64])
def test_attention_over_the_batch_is_seen_though_the_class_token_is_the_same_for_all(words: int) -> None:
    torch.manual_seed(0)
    call = Call("", ClassToken(batch_first=False), (torch.randn(32, words, 16),), {})
    assert try_in_eval([call])[0].attending == "layer.self_attn"


@pytest.mark.parametrize("net", [ClassToken(batch_first=True), ClassToken(batch_first=False, swap=True)])
def test_attention_over_positions_is_silent(net: nn.Module) -> None:
    assert try_in_eval([Call("", net, (tokens()[0],), {})])[0].attending == ""


class Series(nn.Module):
    """A recurrent layer over `[time, features]`, or over `[samples, time, features]` as if time came first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0] if x.ndim == 2 else self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(
    ("shape", "in_order", "told"), [((32, 3), True, False), ((32, 3), False, True), ((32, 7, 3), True, True)]
)
def test_a_batch_may_be_a_stretch_of_a_series_only_in_its_order(shape: tuple[int, ...], in_order: bool, told: bool) -> None:
    torch.manual_seed(0)
    found = try_in_eval([Call("", Series(), (torch.randn(shape),), {})], in_order=in_order)[0].mixed
    assert ((found or 0) > 1e-3) == told


class Graph(nn.Module):
    """A layer over the neighbours of each row, all rows being the nodes of one graph; or over a square that is none."""

    def __init__(self, adjacency: Tensor, edges: bool = False) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency.nonzero().T if edges else adjacency)
        self.layer, self.edges = nn.Linear(3, 4), edges

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.edges:
            return torch.zeros_like(x).index_add(0, self.adjacency[0], x[self.adjacency[1]])
        return x.softmax(0) if len(self.adjacency) < 32 else self.adjacency @ x


@pytest.mark.parametrize(("nodes", "edges", "told"), [(32, False, False), (32, True, False), (8, False, True)])
def test_rows_that_are_nodes_of_a_graph_of_the_network_may_meet(nodes: int, edges: bool, told: bool) -> None:
    torch.manual_seed(0)
    adjacency = (torch.rand(nodes, nodes) < 0.3).float() + torch.eye(nodes)
    assert ((mixed(Graph(adjacency, edges), 32, 3) or 0) > 1e-3) == told


class Between(nn.Module):
    """Attention that reads `[1, samples, features]`, or `[samples, 1, features]` without being told what comes first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention, self.batch_first = nn.MultiheadAttention(8, 2, batch_first=batch_first), batch_first

    def forward(self, x: Tensor) -> Tensor:
        row = x[None] if self.batch_first else x[:, None]
        return self.attention(row, row, row)[0].view_as(x)


@pytest.mark.parametrize("batch_first", [True, False])
def test_samples_may_openly_be_the_positions_of_one_sequence(batch_first: bool) -> None:
    torch.manual_seed(0)
    assert ((mixed(Between(batch_first), 32, 8) or 0) > 1e-3) != batch_first


# ------------------------------------------------------------------------------------------ chance in eval mode
class Chance(nn.Module):
    """Draws in eval mode as well, in one of several ways, and learns a token that begins at zero."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.way = nn.Parameter(torch.zeros(16)), way
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "code":
            p = self.first(x).sigmoid()
            return self.last(torch.bernoulli(p) + p - p)
        if self.way == "compared":
            return self.last((torch.rand(x.shape) < self.first(x).sigmoid()).float())
        if self.way == "alike":
            return self.last(2 * self.first(x) * torch.bernoulli(torch.full_like(x, 0.5)))
        mask = torch.rand(x.shape) < 0.4
        if self.way == "both":
            weight = mask.float()
            x = x * (1 - weight) + self.token * weight
        elif self.way == "put":
            x = x.clone()
            x[mask] = 1.0
        else:
            x = torch.where(mask, self.token if self.way == "token" else torch.zeros_like(x), x)
        return self.last(self.first(x).relu())


@pytest.mark.parametrize(
    ("way", "told"),
    [("code", False), ("compared", False), ("both", False), ("put", False), ("token", False), ("zeros", True), ("alike", True)],
)
def test_masks_that_replace_and_samples_of_a_code_are_no_dropout(way: str, told: bool) -> None:
    assert try_in_eval([Call("", Chance(way), (torch.randn(32, 16),), {})])[0].dropped == told


# ------------------------------------------------------------------------------------------ dropout
def stack(p: float, layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [part for _ in range(layers) for part in (nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p))]
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), *hidden, nn.Linear(64, 4))


@pytest.mark.parametrize(("p", "layers", "told"), [(0.9, 1, True), (0.7, 3, True), (0.7, 2, False), (0.5, 5, False)])
def test_one_layer_may_drop_more_than_each_of_many(p: float, layers: int, told: bool) -> None:
    assert ("dropout_too_high" in alarms(stack(p, layers))) == told


class Functional(nn.Module):
    """Drops in its own forward: units, or with them masks them without scaling up what is left."""

    def __init__(self, p: float, *, mask: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.p, self.mask = nn.Linear(16, 64), nn.Linear(64, 4), p, mask

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x * torch.bernoulli(torch.full_like(x, 1 - self.p)) if self.mask else F.dropout(x, self.p, self.training)
        return self.last(x)


@pytest.mark.parametrize(
    ("net", "told"), [(Functional(0.9), True), (Functional(0.5), False), (Functional(0.9, mask=True), False)]
)
def test_functional_dropout_counts_as_layers_do(net: nn.Module, told: bool) -> None:
    assert ("dropout_too_high" in alarms(net)) == told


class Narrow(nn.Module):
    """Convolutions of a few channels, each with functional channel dropout behind it; or one of them ten times."""

    def __init__(self, p: float, width: int, layers: int, *, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv1d(1, width, 3), nn.Linear(14 * width, 4)
        self.convs = nn.ModuleList([nn.Conv1d(width, width, 3, padding=1)] * 10 if again else self.blocks(width, layers))
        self.p = p

    @staticmethod
    def blocks(width: int, layers: int) -> list[nn.Module]:
        return [nn.Conv1d(width, width, 3, padding=1) for _ in range(layers)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, None])
        for conv in self.convs:
            x = F.dropout1d(conv(x).relu(), self.p, self.training)
        return self.head(x.flatten(1))


def units(one: int, other: int) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Linear(16, one), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*first, nn.Linear(one, other), nn.ReLU(), nn.Dropout(0.5), nn.Linear(other, 4))


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Narrow(0.7, 8, 2), True),
        (Narrow(0.5, 8, 3), True),
        (Narrow(0.7, 8, 1), False),
        (Narrow(0.5, 8, 2), False),
        (Narrow(0.5, 16, 8), False),
        (Narrow(0.3, 8, 8), False),
        (Narrow(0.5, 8, 1, again=True), False),
        (units(6, 5), True),
        (units(64, 8), False),
    ],
)
def test_few_units_can_spare_few(net: nn.Module, told: bool) -> None:
    assert ("dropout_too_high" in alarms(net)) == told
