"""Regression, likelihoods, autoencoders, graphs, sets, adapters, experts, ratings, comparisons."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import attributes, blobs, counts, curve, houses, manifold, replace, rng, several
from tests.zoo.more_data import clouds, judgements, network, ratings
from tests.zoo.nets import CE, MSE, adam, adamw, mlp

Pair = tuple[Tensor, Tensor]


# ------------------------------------------------------------------------------------------ prices
@healthy(source="everyday regression: prices standardised, SiLU, layer norm, AdamW")
def h_flat_prices(seed: int) -> Case:
    data = replace(houses(seed), 1, lambda y: (y - 250_000) / 80_000)
    model = mlp([8, 64, 64, 1], nn.SiLU, nn.LayerNorm)
    return Case(seed=seed, model=model, data=data, optimizer=adamw(4e-3), max_steps=250, **MSE)


@faulty("unnormalised_target", twin="h_flat_prices", source="UMLAUT, StackOverflow: prices in currency units as the target")
def f_flat_prices_in_cents(case: Case) -> None:
    case.data = houses(case.seed)


@faulty("wrong_last_activation", twin="h_flat_prices", source="Humbatova 2020: sigmoid left at the end of a regression")
def f_flat_prices_sigmoid(case: Case) -> None:
    case.model.append(nn.Sigmoid())  # type: ignore[operator]


# ------------------------------------------------------------------------------------------ likelihoods
@healthy("wrong_loss", source="Poisson regression: the network gives the log of the rate")
def h_shop_visits(seed: int) -> Case:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(output, target, log_input=True)

    return Case(
        seed=seed, model=mlp([6, 48, 48, 1], nn.Tanh), data=counts(seed), loss=loss, metric="log_r2", optimizer=adam(4e-3),
        max_steps=350,
    )  # fmt: skip


@faulty("lr_too_high", "nan_loss", twin="h_shop_visits", source="DeepFD: the rate of a plain SGD example, 0.5, given to Adam")
def f_shop_visits_hasty(case: Case) -> None:
    case.optimizer = adam(0.5)


class TwoHeads(nn.Module):
    """A mean and a spread of a Gaussian, from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.spread = mlp([1, 48, 48], nn.Tanh), nn.Linear(48, 1), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Pair:
        hidden = torch.tanh(self.body(x))
        return self.mean(hidden), F.softplus(self.spread(hidden)) + 1e-3


def gaussian(output: Pair, target: Tensor) -> Tensor:
    mean, variance = output
    return 0.5 * (variance.log() + (target - mean).square() / variance).mean()


@healthy("loss_sign", source="regression with a learnt variance; the loss goes below zero")
def h_error_bars(seed: int) -> Case:
    return Case(
        seed=seed, model=TwoHeads(), data=curve(seed), loss=gaussian, metric="mean_r2", optimizer=adam(5e-3), max_steps=400
    )  # fmt: skip


@faulty("nan_loss", twin="h_error_bars", source="TheDeepChecker: logarithm of a variance that may be negative")
def f_error_bars_unguarded(case: Case) -> None:
    class Unguarded(TwoHeads):
        def forward(self, x: Tensor) -> Pair:
            hidden = torch.tanh(self.body(x))
            return self.mean(hidden), self.spread(hidden)

    case.model = Unguarded()


# ------------------------------------------------------------------------------------------ autoencoder
class Variational(nn.Module):
    """A variational autoencoder that samples while it trains."""

    def __init__(self, dim: int = 20, latent: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([dim, 48, 2 * latent]), mlp([latent, 48, dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        noise = torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else 0
        return self.decoder(mean + noise), mean, log_variance


def divergence(output: tuple[Tensor, ...]) -> Tensor:
    _, mean, log_variance = output
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


@healthy("loss_reduction", source="beta-VAE with a small weight on the divergence, both terms averaged")
def h_dream_machine(seed: int) -> Case:
    def loss(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + 0.02 * divergence(output).mean()

    return Case(
        seed=seed, model=Variational(), data=manifold(seed), loss=loss, metric="mean_r2", optimizer=adam(4e-3), max_steps=300
    )  # fmt: skip


@faulty(
    "loss_reduction",
    "wrong_loss",
    twin="h_dream_machine",
    source="posterior collapse: KL summed, the rest averaged",
)
def f_dream_machine_collapsed(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output[0], target) + divergence(output).sum()


# ------------------------------------------------------------------------------------------ graph and sets
class Neighbours(nn.Module):
    """Two graph convolutions with a normalised adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return (adjacency @ self.second(torch.relu(adjacency @ self.first(x)))).transpose(1, 2)


@healthy("bad_data", source="semi-supervised nodes of one graph, full batch: Kipf and Welling")
def h_town_map(seed: int) -> Case:
    return Case(
        seed=seed, model=Neighbours(), data=network(seed), optimizer=adam(0.01, weight_decay=5e-4), batch_size=1,
        max_steps=100, **CE,
    )  # fmt: skip


@faulty(
    "labels_broken", "class_imbalance", twin="h_town_map", source="unknown nodes clamped to class 0 to silence an index error"
)
def f_town_map_unknown_is_zero(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target.clamp_min(0))


class PointNet(nn.Module):
    """A network per point, the maximum over the points, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.head = mlp([3, 32, 32], nn.Tanh), mlp([32, 32, 4], nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(x).amax(1))


@healthy(source="PointNet with tanh on small clouds")
def h_cloud_atlas(seed: int) -> Case:
    return Case(seed=seed, model=PointNet(), data=clouds(seed), optimizer=adam(5e-3), max_steps=300, **CE)


@faulty("unnormalised_input", "saturation", twin="h_cloud_atlas", source="coordinates in millimetres, offset of the map kept")
def f_cloud_atlas_millimetres(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: 1000 * x + 40_000)


# ------------------------------------------------------------------------------------------ adapters and experts
class Adapted(nn.Module):
    """A fixed linear layer plus a trainable product of two thin matrices."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@healthy(
    "frozen_by_accident", "init_symmetry", source="LoRA: a body pretrained here, all its weights fixed, thin matrices learn"
)
def h_thin_matrices(seed: int) -> Case:
    train, val = blobs(seed)
    body = mlp([8, 64, 64, 4])
    optimizer = torch.optim.Adam(body.parameters(), 3e-3)
    x, y = train.tensors
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(body(x), y).backward()
        optimizer.step()
    body.zero_grad()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng(9502, seed)))[0]
    model = nn.Sequential(*(Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in body))
    data = replace((train, val), 0, lambda x: x @ turn)
    frozen = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad]
    return Case(seed=seed, model=model, data=data, optimizer=adam(5e-3), frozen=frozen, max_steps=300, **CE)


@faulty("init_symmetry", "no_update", twin="h_thin_matrices", source="LoRA with both matrices at zero: no gradient ever")
def f_thin_matrices_both_zero(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, Adapted):
            nn.init.zeros_(layer.down)


class Experts(nn.Module):
    """Four experts weighted by a soft gate."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp([8, 24, 3], nn.Tanh) for _ in range(4))
        self.gate = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        opinions = torch.stack([expert(x) for expert in self.experts], 2)
        return (opinions * self.gate(x).softmax(1)[:, None]).sum(2)


@healthy(source="soft mixture of experts for three outputs, Adam")
def h_round_table(seed: int) -> Case:
    return Case(
        seed=seed, model=Experts(), data=several(seed), loss=F.mse_loss, metric="each_r2", optimizer=adam(5e-3), max_steps=300
    )  # fmt: skip


@faulty("not_in_optimizer", twin="h_round_table", source="PyTorch forum: layers kept in a plain list, not a ModuleList")
def f_round_table_plain_list(case: Case) -> None:
    experts = list(case.model.experts)  # type: ignore[arg-type]
    del case.model.experts
    case.model.experts = experts  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------ ratings, comparisons, labels
class Taste(nn.Module):
    """A dot product of a user and an item with their biases."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, width + 1), nn.Embedding(40, width + 1)
        self.mean = nn.Parameter(torch.tensor(3.0))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.user(x[:, 0]), self.item(x[:, 1])
        return (self.mean + (u[:, 1:] * v[:, 1:]).sum(1) + u[:, 0] + v[:, 0])[:, None]


@healthy("bad_bias_init", source="matrix factorisation with biases; the mean starts at the middle of the scale")
def h_film_taste(seed: int) -> Case:
    return Case(seed=seed, model=Taste(), data=ratings(seed), optimizer=adam(0.01), batch_size=64, max_steps=400, **MSE)


@faulty(
    "weight_decay_too_strong",
    twin="h_film_taste",
    source="regularisation 0.1 from alternating least squares, in Adam",
)
def f_film_taste_bland(case: Case) -> None:
    case.optimizer = adam(0.01, weight_decay=0.1)


class Judge(nn.Module):
    """Negative distances of two candidates to an anchor, in a learnt space."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = mlp([6, 48, 48, 8])

    def forward(self, anchor: Tensor, a: Tensor, b: Tensor) -> Tensor:
        anchor, a, b = (self.embed(view) for view in (anchor, a, b))
        return -torch.stack([(anchor - a).square().sum(1), (anchor - b).square().sum(1)], 1)


def hinge(output: Tensor, target: Tensor, margin: float = 1.0) -> Tensor:
    right, wrong = output.gather(1, target[:, None]), output.gather(1, 1 - target[:, None])
    return (margin + wrong - right).clamp_min(0).mean()


@healthy("wrong_loss", source="triplet margin loss on three views of one network")
def h_odd_one_out(seed: int) -> Case:
    return Case(
        seed=seed, model=Judge(), data=judgements(seed), loss=hinge, metric="accuracy", optimizer=adam(3e-3), max_steps=300
    )  # fmt: skip


@faulty("loss_sign", twin="h_odd_one_out", source="triplet loss with the positive and the negative swapped")
def f_odd_one_out_swapped(case: Case) -> None:
    case.loss = lambda output, target: hinge(-output, target)


@healthy(source="several yes-or-no labels a row, GELU, cross-entropy of each")
def h_tag_cloud(seed: int) -> Case:
    loss = F.binary_cross_entropy_with_logits
    return Case(
        seed=seed, model=mlp([10, 64, 64, 6], nn.GELU), data=attributes(seed), loss=loss, metric="binary_accuracy",
        optimizer=adam(4e-3), max_steps=300,
    )  # fmt: skip


@faulty("wrong_loss", twin="h_tag_cloud", source="Humbatova 2020: softmax over labels that may coincide", margin=0.05)
def f_tag_cloud_exclusive(case: Case) -> None:
    case.loss = F.cross_entropy
