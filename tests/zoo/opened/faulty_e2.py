"""Faulty activations and objectives: what is missing, of the wrong kind, of the wrong sign or of the wrong size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data, more_data
from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.nets import CE, MSE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ stripes, functionally
class Stripes(nn.Module):
    """Convolutions with strides, activations in `forward`, the mean over the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


class BareStripes(Stripes):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(x)
        return self.fc(x.mean((2, 3)))


@healthy(source="everyday convnet with a functional forward")
def h_stripes_functional(seed: int) -> Case:
    return Case(seed=seed, model=Stripes(), data=data.gratings(seed), optimizer=adam(5e-3), max_steps=150, **CE)


@faulty("missing_activation", twin="h_stripes_functional", source="F.relu forgotten between convolutions in forward")
def f_stripes_bare(case: Case) -> None:
    case.model = BareStripes()


# ------------------------------------------------------------------------------------------ sets
class Gathering(nn.Module):
    """Zaheer et al. 2017: an embedding of each point, their sum, a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.mid, self.read, self.out = nn.Linear(3, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.lift(x))
        h = F.gelu(self.mid(h)).mean(1)
        return self.out(F.gelu(self.read(h)))


class CarelessGathering(Gathering):
    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        F.gelu(h)
        h = self.mid(h)
        F.gelu(h)
        h = self.read(h.mean(1))
        F.gelu(h)
        return self.out(h)


class SoftGathering(Gathering):
    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).softmax(-1)
        h = self.mid(h).softmax(-1).mean(1)
        return self.out(self.read(h).softmax(-1))


@healthy(source="deep sets on point clouds")
def h_gathering_of_points(seed: int) -> Case:
    return Case(seed=seed, model=Gathering(), data=more_data.clouds(seed), optimizer=adam(4e-3), max_steps=200, **CE)


@faulty(
    "missing_activation", twin="h_gathering_of_points", source="result of an activation that does not work in place dropped"
)
def f_gathering_results_dropped(case: Case) -> None:
    case.model = CarelessGathering()


@faulty("wrong_hidden_activation", twin="h_gathering_of_points", source="softmax between hidden layers")
def f_gathering_softmax_inside(case: Case) -> None:
    case.model = SoftGathering()


# ------------------------------------------------------------------------------------------ several numbers
@healthy(source="everyday regression of three standardised numbers")
def h_three_numbers(seed: int) -> Case:
    model = mlp([8, 48, 48, 3], nn.SiLU)
    return Case(
        seed=seed, model=model, data=data.several(seed), optimizer=sgd(0.05), max_steps=300, **MSE | {"metric": "each_r2"}
    )


@faulty(
    "wrong_last_activation", twin="h_three_numbers", source="ReLU after each linear layer, the last one of a regression too"
)
def f_three_numbers_rectified(case: Case) -> None:
    case.model.append(nn.ReLU())


@faulty("loss_reduction", "lr_too_low", twin="h_three_numbers", source="a mean loss divided by the batch size once more")
def f_three_numbers_divided_again(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output, target) / len(target)


# ------------------------------------------------------------------------------------------ several labels
@healthy("wrong_last_activation", source="multi-label classifier with sigmoids and F.binary_cross_entropy")
def h_labels_of_a_scene(seed: int) -> Case:
    model = mlp([10, 64, 64, 6], last=nn.Sigmoid())
    loss = F.binary_cross_entropy
    return Case(
        seed=seed, model=model, data=data.attributes(seed), loss=loss, metric="probability_accuracy", optimizer=adam(4e-3),
        max_steps=300,
    )  # fmt: skip


@faulty("wrong_last_activation", twin="h_labels_of_a_scene", source="softmax over labels that do not exclude each other")
def f_labels_compete(case: Case) -> None:
    case.model[-1] = nn.Softmax(dim=1)


class MultiLabel(nn.Module):
    """A trunk and one logit per label."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.logits = mlp([10, 64, 64], last=nn.ReLU()), nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.trunk(x))


@healthy(source="multi-label classifier with logits")
def h_labels_as_logits(seed: int) -> Case:
    loss = nn.BCEWithLogitsLoss()
    return Case(
        seed=seed, model=MultiLabel(), data=data.attributes(seed), loss=loss, metric="binary_accuracy", optimizer=adam(4e-3),
        max_steps=300,
    )  # fmt: skip


@faulty(
    "wrong_loss",
    twin="h_labels_as_logits",
    source="forum: CrossEntropyLoss accepts multi-hot float targets without a word",
    margin=0.07,
)
def f_labels_cross_entropy(case: Case) -> None:
    case.loss = nn.CrossEntropyLoss()


def last_label_only(output: Tensor, target: Tensor) -> Tensor:
    loss = output.new_zeros(())
    for i in range(target.shape[1]):
        loss = F.binary_cross_entropy_with_logits(output[:, i], target[:, i])
    return loss


@faulty("loss_reduction", "wrong_loss", "detached_subgraph", twin="h_labels_as_logits", source="loop over labels: = for +=")
def f_labels_last_of_loop(case: Case) -> None:
    case.loss = last_label_only


# ------------------------------------------------------------------------------------------ counts
@healthy("wrong_loss", source="Poisson regression of counts with a log link")
def h_calls_per_hour(seed: int) -> Case:
    loss = nn.PoissonNLLLoss(log_input=True)
    model = mlp([6, 48, 48, 1], nn.Tanh)
    return Case(seed=seed, model=model, data=data.counts(seed), loss=loss, metric="log_r2", optimizer=adam(5e-3), max_steps=300)


@faulty("wrong_loss", twin="h_calls_per_hour", source="log rates fitted to raw counts by squared error")
def f_calls_squared(case: Case) -> None:
    case.loss = nn.MSELoss()


# ------------------------------------------------------------------------------------------ a variational autoencoder
class BarsVAE(nn.Module):
    """Kingma & Welling 2014 on pictures of bars; returns logits and the divergence of each sample."""

    def __init__(self, dim: int = 64, latent: int = 12) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_var = mlp([dim, 96], last=nn.ReLU()), nn.Linear(96, latent), nn.Linear(96, latent)
        self.decoder = mlp([latent, 96, dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp() if self.training else mean
        return self.decoder(z), 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def evidence(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    logits, divergence = output
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean() + divergence.mean()


def evidence_signed(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    logits, divergence = output
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean() - divergence.mean()


def evidence_of_means(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    logits, divergence = output
    return F.binary_cross_entropy_with_logits(logits, target) + divergence.mean()


@healthy("loss_reduction", source="VAE with a Bernoulli decoder, both terms summed per picture")
def h_bars_variational(seed: int) -> Case:
    return Case(
        seed=seed, model=BarsVAE(), data=data.bars(seed), loss=evidence, metric="first_binary_accuracy", optimizer=adam(3e-3),
        max_steps=400,
    )  # fmt: skip


@faulty("loss_sign", twin="h_bars_variational", source="evidence bound: divergence subtracted from the reconstruction error")
def f_bars_divergence_rewarded(case: Case) -> None:
    case.loss = evidence_signed


@faulty(
    "loss_reduction", twin="h_bars_variational", source="tracker: mean over pixels plus sum over latents, the code collapses"
)
def f_bars_mean_against_sum(case: Case) -> None:
    case.loss = evidence_of_means


# ------------------------------------------------------------------------------------------ rewards, triplets
class Bandit(Supervised):
    """A policy that is trained by sampled actions and their rewards, less a running baseline."""

    sign = -1.0

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.register_buffer("baseline", torch.tensor(0.0))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        state, best = batch
        policy = torch.distributions.Categorical(logits=self(state))
        action = policy.sample()
        reward = (action == best).float()
        loss = self.sign * ((reward - self.baseline) * policy.log_prob(action)).mean()
        self.baseline.lerp_(reward.mean(), 0.1)
        self.log("train_loss", loss)
        return loss


class Ascending(Bandit):
    sign = 1.0


@healthy("loss_sign", "wrong_loss", source="REINFORCE with a baseline on a contextual bandit")
def h_bandit_of_arcs(seed: int) -> Case:
    model = mlp([5, 48, 48, 3], nn.Tanh)
    return Case(seed=seed, model=model, data=more_data.arcs(seed), optimizer=adam(5e-3), module=Bandit, max_steps=400, **CE)


@faulty("loss_sign", twin="h_bandit_of_arcs", source="policy gradient without the minus")
def f_bandit_seeks_penalty(case: Case) -> None:
    case.module = Ascending


class Nearest(nn.Module):
    """Minus the distances of two candidates to an anchor in a learnt space."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = mlp([6, 48, 48, 8])

    def forward(self, anchor: Tensor, one: Tensor, two: Tensor) -> Tensor:
        a, b, c = self.embed(anchor), self.embed(one), self.embed(two)
        return -torch.stack([(a - b).square().mean(1), (a - c).square().mean(1)], 1)


def hinge(output: Tensor, target: Tensor) -> Tensor:
    right, wrong = -output.gather(1, target[:, None]), -output.gather(1, 1 - target[:, None])
    return (right - wrong + 1).clamp_min(0).mean()


def swapped_hinge(output: Tensor, target: Tensor) -> Tensor:
    right, wrong = -output.gather(1, target[:, None]), -output.gather(1, 1 - target[:, None])
    return (wrong - right + 1).clamp_min(0).mean()


@healthy("wrong_loss", source="triplet hinge on learnt distances")
def h_nearest_of_two(seed: int) -> Case:
    return Case(
        seed=seed, model=Nearest(), data=more_data.judgements(seed), loss=hinge, metric="accuracy", optimizer=adam(3e-3),
        max_steps=300,
    )  # fmt: skip


@faulty("loss_sign", twin="h_nearest_of_two", source="positive and negative swapped in a triplet loss")
def f_nearest_pushed_away(case: Case) -> None:
    case.loss = swapped_hinge
