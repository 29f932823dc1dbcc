"""Graphs, sets and point clouds as dense tensors; matching and sorting."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.metrics import METRICS, r2
from tests.zoo.more_data import clouds, network
from tests.zoo.nets import CE, MSE, adam, adamw, mlp
from tests.zoo.opened.healthy_d1 import SharedStep, figure


# ------------------------------------------------------------------------------------------ graphs
def graphs(seed: int, n: int = 1500, nodes: int = 10) -> tuple[Tensor, Tensor]:
    """Random graphs of several densities: features `[n, nodes, 3]`, adjacency `[n, nodes, nodes]`."""
    g = rng(790, seed)
    density = 0.15 + 0.35 * torch.rand(n, 1, 1, generator=g)
    edges = (torch.rand(n, nodes, nodes, generator=g) < density).float().triu(1)
    return torch.randn(n, nodes, 3, generator=g), edges + edges.transpose(1, 2)


class Isomorphism(nn.Module):
    """GIN: the sum of the neighbours and `1 + eps` of oneself through an MLP, summed over nodes at each layer."""

    def __init__(self, width: int = 24, features: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp([a, width, width], last=nn.ReLU()) for a in (features, width))
        self.eps, self.norms = nn.Parameter(torch.zeros(2)), nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        total = 0.0
        for layer, eps, norm, head in zip(self.layers, self.eps, self.norms, self.heads, strict=True):
            x = norm(layer((1 + eps) * x + edges @ x).transpose(1, 2)).transpose(1, 2)
            total = total + head(x.mean(1))
        return total


@healthy("init_exploding", "unnormalised_input", source="Xu et al. 2019: sums over neighbours, a property of a small molecule")
def h_molecule_sums(seed: int) -> Case:
    x, edges = graphs(seed)
    y = F.relu(x[:, :, 0] + (edges @ x)[:, :, 0]).mean(1) + 0.4 * edges.sum(2).mean(1) + x[:, :, 1].abs().mean(1)
    return Case(
        seed=seed, model=Isomorphism(), data=split(x, edges, standardise(y)[:, None]), optimizer=adam(5e-3), max_steps=300,
        module=SharedStep, **MSE,
    )  # fmt: skip


class Convolved(nn.Module):
    """Two graph convolutions on a symmetric normalised adjacency with self loops, mean pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        edges = edges + torch.eye(edges.shape[1])
        scale = edges.sum(2).rsqrt()
        edges = scale[:, :, None] * edges * scale[:, None]
        x = F.relu(edges @ self.first(x))
        return self.head(F.relu(edges @ self.second(x)).mean(1))


@healthy(source="everyday: Kipf and Welling's convolutions to classify small graphs")
def h_small_graphs(seed: int) -> Case:
    x, edges = graphs(seed, n=2400)
    g = rng(795, seed)
    looped = edges + torch.eye(10)
    near = looped / looped.sum(2, keepdim=True)
    inner = F.relu(near @ x @ torch.randn(3, 8, generator=g))
    score = F.relu(near @ inner @ torch.randn(8, 4, generator=g)).mean(1) @ torch.tensor([1.0, -1.0, 1.0, -1.0])
    y = (score > score.median()).long()
    return Case(seed=seed, model=Convolved(), data=split(x, edges, y), optimizer=adam(1e-2), max_steps=350, batch_size=64, **CE)


class PersonalRank(nn.Module):
    """APPNP: an MLP per node, then ten steps of personalised PageRank without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = mlp([6, 32, 4], dropout=0.3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        start = z = self.predict(x)
        for _ in range(10):
            z = 0.85 * adjacency @ z + 0.15 * start
        return z.transpose(1, 2)


@healthy(
    "missing_activation", "overfit_no_regularisation", source="Gasteiger et al. 2019: one graph, propagation of predictions"
)
def h_personal_rank(seed: int) -> Case:
    optimizer = adam(1e-2, weight_decay=5e-3)
    return Case(seed=seed, model=PersonalRank(), data=network(seed), optimizer=optimizer, max_steps=120, batch_size=1, **CE)


class Links(LightningModule):
    """A graph autoencoder: inner products of embeddings against known links, as many non-links drawn anew each step."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 16)
        self.build = case.optimizer

    def forward(self, x: Tensor, adjacency: Tensor, pairs: Tensor) -> Tensor:
        z = self.second(adjacency @ F.relu(self.first(adjacency @ x)))
        return (z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, adjacency, pairs, label = (t[0] for t in batch)
        links = pairs[label > 0.5]
        drawn = torch.randint(len(x), links.shape)
        logits = self(x, adjacency, torch.cat([links, drawn]))
        return F.binary_cross_entropy_with_logits(logits, torch.cat([torch.ones(len(links)), torch.zeros(len(drawn))]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, adjacency, pairs, label = (t[0] for t in batch)
        logits = self(x, adjacency, pairs)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, label), batch_size=1)
        self.log("val_metric", ranked(logits, label), batch_size=1)

    def configure_optimizers(self) -> Any:
        return self.build(self)


def ranked(output: Tensor, target: Tensor) -> Tensor:
    """Area under the curve."""
    target = target.reshape(-1) > 0.5
    return (output[target][:, None] > output[~target][None]).float().mean()


@healthy("labels_broken", "class_imbalance", source="Kipf and Welling 2016: link prediction with drawn non-links on one graph")
def h_link_decoder(seed: int) -> Case:
    g, nodes = rng(791, seed), 200
    kind = torch.randint(5, (nodes,), generator=g)
    edges = (torch.rand(nodes, nodes, generator=g) < torch.where(kind[:, None] == kind[None], 0.35, 0.01)).triu(1)
    links = edges.nonzero()[torch.randperm(int(edges.sum()), generator=g)]
    none = (~edges).triu(1).nonzero()
    none = none[torch.randperm(len(none), generator=g)[: len(links)]]
    cut = len(links) * 3 // 4
    known = torch.eye(nodes)
    known[links[:cut, 0], links[:cut, 1]] = known[links[:cut, 1], links[:cut, 0]] = 1
    scale = known.sum(1).rsqrt()
    x = standardise(torch.randn(5, 6, generator=g)[kind] + 0.7 * torch.randn(nodes, 6, generator=g))
    graph = x, scale[:, None] * known * scale

    def part(where: slice) -> Any:
        label = torch.cat([torch.ones(len(links[where])), torch.zeros(len(none[where]))])
        return split(*(t[None] for t in (*graph, torch.cat([links[where], none[where]]), label)), val=0.0)[0]

    return Case(
        seed=seed, model=nn.Identity(), data=(part(slice(cut)), part(slice(cut, None))), module=Links, batch_size=1,
        max_steps=150,
        loss=F.binary_cross_entropy_with_logits, metric=figure("d_ranked", ranked, 0.5), optimizer=adam(1e-2),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ points
class PairEnergy(nn.Module):
    """SchNet in small: radial bases of the distances filter the messages between atoms; the energy is a mean."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.kind = nn.Embedding(3, width)
        self.register_buffer("centres", torch.linspace(0, 4, 12))
        self.filters = nn.ModuleList(mlp([12, width, width], nn.Softplus) for _ in range(2))
        self.updates = nn.ModuleList(mlp([width, width, width], nn.Softplus) for _ in range(2))
        self.read = mlp([width, width, 1], nn.Softplus)

    def forward(self, kind: Tensor, place: Tensor) -> Tensor:
        gap = (place[:, :, None] - place[:, None]).square().sum(-1).add(1e-8).sqrt()
        radial = (-4 * (gap[..., None] - self.centres).square()).exp() * (1 - torch.eye(place.shape[1]))[..., None]
        x = self.kind(kind)
        for weigh, update in zip(self.filters, self.updates, strict=True):
            x = x + update((weigh(radial) * x[:, None]).mean(2))
        return self.read(x).mean(1)


@healthy("wrong_hidden_activation", source="Schuett et al. 2017: a smooth potential of a few atoms from their distances")
def h_pair_energy(seed: int) -> Case:
    g = rng(792, seed)
    kind, place = torch.randint(3, (1800, 6), generator=g), 1.2 * torch.randn(1800, 6, 3, generator=g)
    gap = (place[:, :, None] - place[:, None]).norm(dim=-1) + 10 * torch.eye(6)
    charge = torch.tensor([1.0, -1.0, 0.5])[kind]
    energy = (charge[:, :, None] * charge[:, None] * (-gap).exp()).sum((1, 2)) + charge.sum(1) * 0.3
    return Case(
        seed=seed, model=PairEnergy(), data=split(kind, place, standardise(energy)[:, None]), optimizer=adam(5e-3),
        max_steps=300, **MSE,
    )  # fmt: skip


class EdgeConv(nn.Module):
    """DGCNN: the max over an MLP of a point and its differences to its nearest neighbours."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.edges = nn.ModuleList(mlp([2 * a, width], last=nn.LeakyReLU(0.2)) for a in (3, width))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        for edge in self.edges:
            near = torch.cdist(x, x).topk(6, largest=False).indices
            others = x[torch.arange(len(x))[:, None, None], near]
            own = x[:, :, None].expand_as(others)
            x = edge(torch.cat([own, others - own], 3)).amax(2)
        return self.head(torch.cat([x.amax(1), x.mean(1)], 1))


@healthy("detached_subgraph", source="Wang et al. 2019: dynamic graph of the nearest points")
def h_edge_conv(seed: int) -> Case:
    return Case(seed=seed, model=EdgeConv(), data=clouds(seed), optimizer=adamw(3e-3), max_steps=150, module=SharedStep, **CE)


# ------------------------------------------------------------------------------------------ sets out, order out
def things(seed: int, n: int = 1800, slots: int = 3) -> Split:
    """Two peaks on a line of sixteen cells; where they are, in no order."""
    g = rng(793, seed)
    place = 15 * torch.rand(n, slots, generator=g)
    x = (-(torch.arange(16) - place[:, :, None]).square()).exp().sum(1) + 0.03 * torch.randn(n, 16, generator=g)
    return split(standardise(x, None), (place - 7.5) / 7.5)


def matched(output: Tensor, target: Tensor) -> Tensor:
    """The target's columns, each put where the output is nearest."""
    cost = (output[:, :, None] - target[:, None]).abs().detach().numpy()
    return torch.stack([row[linear_sum_assignment(c)[1]] for c, row in zip(cost, target, strict=True)])


@healthy("wrong_loss", "labels_broken", source="DETR: a set of answers, matched by the Hungarian method before the loss")
def h_matched_peaks(seed: int) -> Case:
    def constant(target: Tensor) -> float:
        middle = target.sort(1).values.mean(0).expand_as(target)
        return r2(middle, matched(middle, target)).item()

    return Case(
        seed=seed, model=mlp([16, 64, 64, 3]), data=things(seed), optimizer=adam(3e-3), max_steps=350, batch_size=64,
        loss=lambda out, y: F.smooth_l1_loss(out, matched(out, y), beta=0.1),
        metric=figure("d_matched", lambda out, y: r2(out, matched(out, y)), constant),
    )  # fmt: skip


class Sinkhorn(nn.Module):
    """Scores of things to a soft permutation, by alternate normalisation of rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.score = mlp([4, 48, 48, 5], nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        log_share = self.score(x) / 0.5
        for _ in range(8):
            log_share = log_share.log_softmax(2).log_softmax(1)
        return log_share.transpose(1, 2)


@healthy("wrong_last_activation", source="Mena et al. 2018: Gumbel-free Sinkhorn layer that learns to sort by a hidden score")
def h_sorted_softly(seed: int) -> Case:
    g = rng(794, seed)
    x = torch.randn(1800, 5, 4, generator=g)
    rank = (x[:, :, 0] + x[:, :, 1] * x[:, :, 2]).argsort(1).argsort(1)
    metric = figure("d_rank", METRICS["accuracy"].score, METRICS["accuracy"].constant)
    return Case(
        seed=seed, model=Sinkhorn(), data=split(x, rank), loss=F.nll_loss, metric=metric, optimizer=adam(4e-3), max_steps=350,
        batch_size=64,
    )  # fmt: skip
