"""Weights that are drawn too large."""

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from tests.diagnosis.rules.looking import adam, alarms, fill, findings, mlp, numbers, vectors

DEEP = [16] + [64] * 10 + [4]


@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.uniform_, lambda w: nn.init.orthogonal_(w, gain=6)])
def test_weights_that_are_too_large_explode(draw: Callable[[Tensor], object]) -> None:
    assert alarms(fill(mlp(*DEEP), draw))[0] == "init_exploding"


def test_normalisation_forgives_large_weights() -> None:
    layers = [[nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()] for _ in range(4)]
    model = nn.Sequential(nn.Linear(16, 64), *(m for block in layers for m in block), nn.Linear(64, 4))
    for block in layers:
        nn.init.normal_(block[0].weight, std=5)
    assert alarms(model) == []


class Weighed(nn.Module):
    """Weights of tokens, of unit length or as they are (Shaker et al. 2023, additive attention)."""

    def __init__(self, unit: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.score, self.head = nn.Linear(16, 32), nn.Linear(32, 1, bias=False), nn.Linear(32, 4)
        nn.init.normal_(self.score.weight, std=3)
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[:, None] * torch.linspace(-1, 1, 8)[:, None])
        weights = self.score(tokens)
        return self.head((tokens * (F.normalize(weights, dim=1) if self.unit else weights)).sum(1))


@pytest.mark.parametrize(("unit", "rules"), [(True, []), (False, ["init_exploding"])])
def test_a_layer_whose_outputs_are_brought_to_unit_length_may_have_any_scale(unit: bool, rules: list[str]) -> None:
    assert alarms(Weighed(unit), optimizer=adam) == rules


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


def grown(trained: bool) -> nn.Sequential:
    """Layers that make values some 3 times larger each, as drawn, or with directions in them that training leaves; a small head."""
    model = mlp(16, *[64] * 5, 4)
    with torch.no_grad():
        for layer in model[:-1:2]:
            nn.init.normal_(layer.weight, std=3 * (2 / layer.weight.shape[1]) ** 0.5)
            if trained:
                u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
                layer.weight.copy_(u @ torch.diag(torch.cat([2 * s[:4], 0.8 * s[4:]])) @ v)
        model[-1].weight.mul_(1e-3)
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_values_that_grow_along_drawn_weights_are_found_and_along_trained_ones_not(trained: bool) -> None:
    found = [f for f in findings(grown(trained), optimizer=adam) if f.rule == "init_exploding"]
    assert [(f.where, "Values grow" in f.message) for f in found] == ([] if trained else [("0", True)])


@pytest.mark.parametrize("declared", [False, True])
def test_frozen_layers_are_not_accused_of_how_they_were_drawn_if_declared(declared: bool) -> None:
    model = grown(trained=False)
    for layer in model[:-1]:
        layer.requires_grad_(False)
    frozen = [f"network.{i}" for i in range(0, 10, 2)] if declared else []
    watch = Diagnostics(verbose=False, expect_frozen=frozen, select=["init_exploding"])
    module = LitModule(model, loss="cross_entropy", lr=1e-3, metrics=[])
    pl.Trainer(max_steps=1, barebones=True, accelerator="cpu", callbacks=[watch]).fit(
        module, DataLoader(TensorDataset(*vectors()), 32)
    )
    assert watch.auditor.report is not None
    assert [finding.where for finding in watch.findings] == ([] if declared else ["network.0"])


def test_a_regressions_outputs_are_held_against_its_targets() -> None:
    wild, biased = mlp(16, 64, 64, 1), mlp(16, 64, 1)
    for layer in wild:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.0)
    nn.init.constant_(biased[-1].bias, 60.0)
    assert alarms(wild, numbers(), F.mse_loss, optimizer=adam)[0] == "init_exploding"
    assert alarms(biased, numbers(), F.mse_loss, optimizer=adam)[0] == "bad_bias_init"


class Tied(nn.Module):
    """The table that embeds a token also tells the next one."""

    def __init__(self, std: float, *, by_layer: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body, self.norm = nn.Embedding(40, 64), nn.Linear(64, 64), nn.LayerNorm(64)
        nn.init.normal_(self.table.weight, std=std)
        self.head = nn.Linear(64, 40, bias=False) if by_layer else None
        if self.head is not None:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        states = self.norm(x + F.gelu(self.body(x)))
        return self.head(states) if self.head is not None else states @ self.table.weight.T


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize(("std", "rules"), [(1.0, ["init_exploding"]), (0.02, []), (64**-0.5, [])])
def test_a_table_that_also_reads_out_is_a_head(std: float, by_layer: bool, rules: list[str]) -> None:
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(40, (2, 64), generator=g)
    assert alarms(Tied(std, by_layer=by_layer), (tokens[0], tokens[1]), optimizer=adam, steps=1) == rules


class Neighbours(nn.Module):
    """Three layers over a graph: what each gives is gathered from the neighbours, as a matrix does it or edge by edge."""

    def __init__(self, adjacency: Tensor, by_edge: bool) -> None:
        super().__init__()
        self.layers = mlp(16, 16, 16, 4)[::2]
        self.register_buffer("adjacency", adjacency)
        self.by_edge = by_edge

    def gather(self, h: Tensor) -> Tensor:
        if not self.by_edge:
            return self.adjacency @ h
        to, of = self.adjacency.nonzero(as_tuple=True)
        return torch.zeros_like(h).index_add(0, to, self.adjacency[to, of][:, None] * h[of])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.gather(layer(x)).relu()
        return self.gather(self.layers[-1](x))


@pytest.mark.parametrize("by_edge", [False, True])
def test_sums_over_neighbours_explode_and_means_do_not(by_edge: bool) -> None:
    adjacency = (torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    batch = vectors(rows=64)
    assert alarms(Neighbours(adjacency, by_edge), batch) == ["init_exploding"]
    assert alarms(Neighbours(adjacency / adjacency.sum(1, keepdim=True), by_edge), batch) == []
    trained = Neighbours(adjacency, by_edge)
    with torch.no_grad():
        trained.layers[-1].weight += torch.outer(torch.ones(4), torch.randn(16))
    assert "init_exploding" not in alarms(trained, batch)


class Weighing(nn.Module):
    """Sums up its tokens by how a layer of one unit scores them."""

    def __init__(self, scores: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score, self.net = nn.Linear(4, 1), mlp(4, 32, 4)
        nn.init.normal_(self.score.weight, std=scores)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (4, 4))
        return self.net((self.score(tokens).softmax(1) * tokens).sum(1))


def test_scores_of_attention_may_be_drawn_for_one_unit() -> None:
    assert "init_exploding" not in alarms(Weighing(20.0))
