"""Graphs, sets, metric learning, autoencoders, and what goes wrong in them."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import digits, manifold, replace
from tests.zoo.more_data import clouds, judgements, network
from tests.zoo.nets import CE, MSE, Lambda, adam, mlp


class Citations(nn.Module):
    """Two graph convolutions over a dense normalised adjacency; logits `[1, classes, nodes]`."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = F.relu(adjacency @ self.first(x))
        return (adjacency @ self.second(hidden)).transpose(1, 2)


@healthy("overfit_no_regularisation", source="Kipf & Welling: GCN, one graph as the only batch, masked labels")
def h_citation_gcn(seed: int) -> Case:
    return Case(
        seed=seed, model=Citations(), data=network(seed, 300), optimizer=adam(1e-2, weight_decay=5e-4), batch_size=1,
        max_steps=150, **CE,
    )  # fmt: skip


@faulty(
    "labels_broken",
    "class_imbalance",
    twin="h_citation_gcn",
    source="fillna(0): nodes without a label become class 0",
    margin=0.08,
)
def f_citation_filled_labels(case: Case) -> None:
    def fill(y: Tensor) -> Tensor:
        return torch.where((y == -100) | (torch.arange(y.shape[1]) % 2 == 0), 0, y)

    case.data = replace(case.data, -1, fill, val=False)  # type: ignore[arg-type]


@faulty("bad_data", "labels_broken", twin="h_citation_gcn", source="feature rows in file order, adjacency in order of node ids")
def f_citation_row_order(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: x.flip(1))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ sets
class Sets(nn.Module):
    """Deep Sets: a network per point, the mean and maximum over points, a head."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, depth: int = 1) -> None:
        super().__init__()
        self.point = mlp([3, *[32] * depth, 32], act=act)
        self.head = mlp([64, 32, 4], act=act)

    def pool(self, h: Tensor) -> Tensor:
        return torch.cat([h.mean(1), h.amax(1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.point(x)))


@healthy(source="point cloud classification with Deep Sets")
def h_lidar_sets(seed: int) -> Case:
    return Case(seed=seed, model=Sets(), data=clouds(seed), optimizer=adam(5e-3), max_steps=200, **CE)


class FirstAxis(Sets):
    def pool(self, h: Tensor) -> Tensor:
        h = h.reshape(h.shape[1], h.shape[0], -1)
        return torch.cat([h.mean(0), h.amax(0)], 1)


@faulty("batch_mixing", twin="h_lidar_sets", source="reshape to points-first in place of a transposition")
def f_lidar_points_first(case: Case) -> None:
    case.model = FirstAxis()


# ------------------------------------------------------------------------------------------ metric learning
class Judge(nn.Module):
    """Distances of an anchor to two candidates in a learnt space, negated, as logits."""

    def __init__(self, dim: int = 6, width: int = 48, code: int = 8) -> None:
        super().__init__()
        self.encoder = mlp([dim, width, width, code])

    def candidate(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, anchor: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a = self.encoder(anchor)
        return -torch.stack([(a - self.candidate(x)).square().mean(1) for x in (first, second)], 1)


def triplet(output: Tensor, target: Tensor) -> Tensor:
    """Hinge on how much nearer the right candidate is."""
    right, wrong = output.gather(1, target[:, None]), output.gather(1, 1 - target[:, None])
    return F.relu(0.5 - right + wrong).mean()


@healthy(source="FaceNet in miniature: triplet loss in a learnt space")
def h_portrait_triplets(seed: int) -> Case:
    return Case(
        seed=seed, model=Judge(), data=judgements(seed), loss=triplet, metric="accuracy", optimizer=adam(3e-3), max_steps=250
    )


class Stale(Judge):
    """The candidates pass through a copy of the encoder that is never brought up to date."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = deepcopy(self.encoder)
        for layer in self.copy:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self.copy.requires_grad_(False)

    def candidate(self, x: Tensor) -> Tensor:
        return self.copy(x)


@faulty("frozen_by_accident", "not_in_optimizer", "detached_subgraph", twin="h_portrait_triplets", margin=0.05,
        source="MoCo's key encoder without its momentum update")  # fmt: skip
def f_portrait_stale_copy(case: Case) -> None:
    case.model = Stale()


# ------------------------------------------------------------------------------------------ autoencoders
@healthy(source="autoencoder of handwritten digits")
def h_numeral_autoencoder(seed: int) -> Case:
    data = tuple(type(part)(part.tensors[0], part.tensors[0]) for part in digits(seed))
    model = mlp([64, 96, 24, 96, 64])
    return Case(seed=seed, model=model, data=data, optimizer=adam(3e-3), max_steps=400, **MSE)  # type: ignore[arg-type]


@faulty(
    "wrong_last_activation", "unnormalised_target", twin="h_numeral_autoencoder", source="sigmoid decoder, pixels standardised"
)
def f_numeral_sigmoid_decoder(case: Case) -> None:
    case.model.append(nn.Sigmoid())


@faulty("dropout_active_in_eval", twin="h_numeral_autoencoder", source="denoising: the corruption stays on in evaluation")
def f_numeral_always_corrupted(case: Case) -> None:
    case.model.insert(0, Lambda(lambda x: F.dropout(x, 0.6)))


@faulty("dead_relu", "bad_bias_init", twin="h_numeral_autoencoder", source="a ReLU code whose units all start negative")
def f_numeral_dead_code(case: Case) -> None:
    nn.init.constant_(case.model[2].bias, -15.0)


# ------------------------------------------------------------------------------------------ variational
class Variational(nn.Module):
    def __init__(self, dim: int = 20, code: int = 6) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([dim, 48, 2 * code]), mlp([code, 48, dim])

    def sample(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.randn_like(mean) * (0.5 * log_var).exp() if self.training else mean

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return self.decoder(self.sample(mean, log_var)), mean, log_var


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor, beta: float = 0.1) -> Tensor:
    reconstruction, mean, log_var = output
    return ((reconstruction - target).square().sum(1) + beta * kl(mean, log_var)).mean()


@healthy(source="beta-VAE on vectors near a surface")
def h_surface_vae(seed: int) -> Case:
    return Case(
        seed=seed, model=Variational(), data=manifold(seed), loss=elbo, metric="mean_r2", optimizer=adam(5e-3), max_steps=300
    )


@faulty(
    "loss_reduction", "wrong_loss", twin="h_surface_vae", source="forum: reconstruction averaged over all, KL summed over all"
)
def f_surface_summed_kl(case: Case) -> None:
    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + 0.1 * kl(*output[1:]).sum()

    case.loss = loss


@faulty("loss_sign", "nan_loss", "wrong_loss", twin="h_surface_vae", source="Kingma's formula for -KL added as if it were KL")
def f_surface_kl_sign(case: Case) -> None:
    case.loss = lambda output, target: elbo(output, target, beta=-0.1)


class Sampled(Variational):
    def sample(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, (0.5 * log_var).exp()).sample() if self.training else mean


@faulty("detached_subgraph", twin="h_surface_vae", source="Normal.sample() where rsample() is needed")
def f_surface_sample_not_rsample(case: Case) -> None:
    case.model = Sampled()
