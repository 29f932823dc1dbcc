"""Healthy, second set: graphs, whose batch is that of the nodes, and sets of points."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, healthy
from tests.zoo.data import rng, split
from tests.zoo.nets import CE, Lambda, adam, adamw

# ------------------------------------------------------------------------------------------ signals


# ------------------------------------------------------------------------------------------ graphs and sets
class Graph(nn.Module):
    """Kipf and Welling 2017: two convolutions over the nodes of one graph, which is the batch."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(6, 24), nn.Linear(24, 4), nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.first(x))
        return (adjacency @ self.second(self.dropout(x))).transpose(1, 2)


@healthy("batch_mixing", "overfit_no_regularisation", source="Kipf and Welling 2017: the nodes of one graph, masked labels")
def h_one_graph(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Graph(),
        data=data.network(seed),
        optimizer=adam(2e-2, weight_decay=5e-4),
        batch_size=1,
        max_steps=80,
        **CE,
    )


class Neighbours(nn.Module):
    """Two convolutions over a fixed graph, kept in buffers; a batch is a list of nodes."""

    def __init__(self, x: Tensor, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(x.shape[1], 24), nn.Linear(24, 4)

    def forward(self, nodes: Tensor) -> Tensor:
        h = F.relu(self.adjacency @ self.first(self.x))
        return (self.adjacency @ self.second(h))[nodes]


def communities(seed: int, likely: float, unlikely: float) -> tuple[Tensor, Tensor, Tensor]:
    """A graph of 300 nodes in four communities: features `[300, 6]`, adjacency matrix with loops, community."""
    g = rng(236, seed)
    y = torch.randint(4, (300,), generator=g)
    edges = (torch.rand(300, 300, generator=g) < torch.where(y[:, None] == y[None], likely, unlikely)).float().triu(1)
    x = torch.randn(4, 6, generator=g)[y] + 1.2 * torch.randn(300, 6, generator=g)
    return x, edges + edges.T + torch.eye(300), y


@healthy(
    "init_exploding", "lr_too_high", source="Hamilton et al. 2017: means over neighbours in one graph that every batch asks"
)
def h_mean_of_neighbours(seed: int) -> Case:
    x, adjacency, y = communities(seed, 0.4, 0.08)
    net = Neighbours(x, adjacency / adjacency.sum(1, keepdim=True))
    return Case(seed=seed, model=net, data=split(torch.arange(300), y), optimizer=adam(1e-2), max_steps=120, **CE)


@healthy("init_exploding", "lr_too_high", source="Xu et al. 2019: sums over neighbours, of whom there are few")
def h_raw_adjacency(seed: int) -> Case:
    x, adjacency, y = communities(seed, 0.03, 0.002)
    net = Neighbours(x, adjacency)
    return Case(seed=seed, model=net, data=split(torch.arange(300), y), optimizer=adam(1e-2), max_steps=120, **CE)


def nodes_as_batch(samples: list[Any]) -> list[Tensor]:
    """The only graph without its leading dimension: the batch dimension is that of the nodes."""
    return list(samples[0])


class GraphAttention(nn.Module):
    """Velickovic et al. 2018: nodes attend to their neighbours; minus infinity elsewhere. Inputs `[nodes, 6]`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.into, self.ask, self.tell = nn.Linear(6, width), nn.Linear(width, 1), nn.Linear(width, 1)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.elu(self.into(x))
        scores = F.leaky_relu(self.ask(x) + self.tell(x).T, 0.2).masked_fill(adjacency == 0, float("-inf"))
        return self.head(torch.cat([x, scores.softmax(1) @ x], 1))


@healthy("batch_mixing", "nan_loss", source="Velickovic et al. 2018: the batch dimension is that of the nodes of a graph")
def h_graph_attention(seed: int) -> Case:
    return Case(
        seed=seed, model=GraphAttention(), data=data.network(seed), optimizer=adam(1e-2), batch_size=1, val_batch_size=1,
        collate=nodes_as_batch, max_steps=100, **CE,
    )  # fmt: skip


class PointNet(nn.Module):
    """Qi et al. 2017: the same MLP for each point, the maximum over points, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.point(x.transpose(1, 2)).amax(2))


@healthy("batch_mixing", "dead_relu", source="Qi et al. 2017: PointNet, kernels of size 1 and a maximum over points")
def h_point_net(seed: int) -> Case:
    return Case(seed=seed, model=PointNet(), data=data.clouds(seed), optimizer=adam(4e-3), max_steps=200, **CE)


class SetTransformer(nn.Module):
    """Lee et al. 2019: points attend to each other, one learnt seed gathers them."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.into, self.seed = (
            nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width)),
            nn.Parameter(torch.randn(1, 1, width)),
        )
        self.mix, self.gather = (nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = self.norm(x + self.mix(x, x, x, need_weights=False)[0])
        return self.head(self.gather(self.seed.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0])


@healthy("batch_mixing", "init_vanishing", source="Lee et al. 2019: a set transformer pools by a learnt query")
def h_set_transformer(seed: int) -> Case:
    return Case(seed=seed, model=SetTransformer(), data=data.clouds(seed), optimizer=adamw(6e-3), max_steps=200, **CE)


@healthy("missing_activation", "batch_mixing", source="covariance pooling: a set's second moments, then a linear layer")
def h_covariance_pooling(seed: int) -> Case:
    lift = nn.Sequential(nn.Linear(3, 12), nn.Tanh())
    model = nn.Sequential(lift, Lambda(lambda x: (x.transpose(1, 2) @ x / 20).flatten(1)), nn.Linear(144, 4))
    return Case(seed=seed, model=model, data=data.clouds(seed), optimizer=adam(1.5e-2), max_steps=200, **CE)
