"""Mixup: the weights of the two targets have to be those of the two samples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, findings, mlp, vectors

Weight = float | Tensor
Mixer = Callable[[Tensor, Weight], Tensor]
X, Y = vectors()
ORDER = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))


def picked(values: Tensor) -> Tensor:
    return values[ORDER]


def in_place(x: Tensor, lam: Weight) -> Tensor:
    other = x.flip(0).mul_(1 - lam)
    return x.clone().mul_(lam).add_(other)


def weighted(out: Tensor, y: Tensor, other: Tensor, lam: Weight, **settings: Any) -> Tensor:
    return lam * F.cross_entropy(out, y, **settings) + (1 - lam) * F.cross_entropy(out, other, **settings)


def exchanged(loss: Callable[[nn.Module], Tensor], model: nn.Module | None = None) -> bool:
    """Tell whether weights are said to be exchanged in a step whose loss is a function of the network."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(16, 32, 4) if model is None else model

        def forward(self, _: Tensor) -> Tensor:
            return loss(self.net)

    found = findings(Step(), (X, Y), lambda value, _: value, optimizer=adam, steps=1)
    return any(f.rule == "labels_broken" and "exchanged" in f.message for f in found)


WEIGHTS: dict[str, Callable[[], Weight]] = {
    "number": lambda: 0.7,
    "drawn": lambda: torch.distributions.Beta(0.2, 0.2).sample(),
    "drawn_in_a_row": lambda: torch.distributions.Beta(torch.tensor([0.2]), torch.tensor([0.2])).sample(),
    "nearly_all": lambda: 0.9999,
}
REORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "index": picked,
    "numpy": lambda values: values[ORDER.numpy()],
    "index_select": lambda values: values.index_select(0, ORDER),
    "flip": lambda values: values.flip(0),
    "roll": lambda values: values.roll(1, 0),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("order", REORDERED)
def test_weights_of_the_targets_that_are_those_of_the_inputs_exchanged(weight: str, order: str) -> None:
    def loss(net: nn.Module, *, swapped: bool) -> Tensor:
        lam, other = WEIGHTS[weight](), REORDERED[order]
        out = net(lam * X + (1 - lam) * other(X))
        return weighted(out, Y, other(Y), 1 - lam if swapped else lam).sum()

    assert exchanged(lambda net: loss(net, swapped=True))
    assert not exchanged(lambda net: loss(net, swapped=False))


@pytest.mark.parametrize("lam", [0.7, torch.tensor(0.7)])
@pytest.mark.parametrize(
    "mix", [lambda x, lam: x.flip(0).lerp(x, lam), lambda x, lam: torch.lerp(x, x.flip(0), 1 - lam), in_place]
)
def test_interpolation_and_sums_in_place_are_mixes_too(mix: Mixer, lam: Weight) -> None:
    assert exchanged(lambda net: weighted(net(mix(X, lam)), Y, Y.flip(0), 1 - lam))
    assert not exchanged(lambda net: weighted(net(mix(X, lam)), Y, Y.flip(0), lam))


@pytest.mark.parametrize("lam", [0.7, torch.tensor(0.7)])
def test_smoothed_labels_other_factors_and_losses_by_the_sample_change_nothing(lam: Weight) -> None:
    def loss(net: nn.Module, *, swapped: bool, **settings: Any) -> Tensor:
        out = net(lam * X + (1 - lam) * picked(X))
        return weighted(out, Y, picked(Y), 1 - lam if swapped else lam, **settings).mean() / 2

    for swapped in (True, False):
        for settings in ({"label_smoothing": 0.1}, {"reduction": "none"}):
            assert exchanged(lambda net, s=swapped, k=settings: loss(net, swapped=s, **k)) == swapped


def test_likelihoods_of_log_probabilities_that_are_made_once_and_mixed_features() -> None:
    body, head = mlp(16, 32), nn.Linear(32, 4)

    def loss(lam: float) -> Tensor:
        h = body(X)
        log_p = head(0.7 * h + 0.3 * picked(h)).log_softmax(1)
        return lam * F.nll_loss(log_p, Y) + (1 - lam) * F.nll_loss(log_p, picked(Y))

    model = nn.ModuleList([body, head])
    assert exchanged(lambda _: loss(0.3), model)
    assert not exchanged(lambda _: loss(0.7), model)


NEAR: dict[str, Callable[[nn.Module], Tensor]] = {
    "even": lambda net: weighted(net(0.52 * X + 0.48 * picked(X)), Y, picked(Y), 0.48),
    "other_weights": lambda net: weighted(net(0.7 * X + 0.3 * picked(X)), Y, picked(Y), 0.4),
    "another_tensor": lambda net: weighted(net(torch.tensor(0.7) * X + torch.tensor(0.3) * picked(X)), Y, picked(Y), 0.3),
    "another_order": lambda net: weighted(net(0.7 * X + 0.3 * X.flip(0)), Y, picked(Y), 0.3),
    "mirrored": lambda net: weighted(net(0.7 * X + 0.3 * X.flip(1)), Y, Y.flip(0), 0.3),
    "not_mixed": lambda net: weighted(net(X), Y, picked(Y), 0.3),
    "one_target": lambda net: 0.3 * F.cross_entropy(net(0.7 * X + 0.3 * picked(X)), Y),
    "of_two_outputs": lambda net: (
        0.3 * F.cross_entropy(net(0.7 * X + 0.3 * picked(X)), Y) + 0.7 * F.cross_entropy(net(X), picked(Y))
    ),
    "pasted": lambda net: weighted(net(torch.cat([X[:, :11], picked(X)[:, 11:]], 1)), Y, picked(Y), 5 / 16),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_not_known_to_be_exchanged_is_silent(name: str) -> None:
    assert not exchanged(NEAR[name])


def test_weights_by_the_sample_and_soft_targets_are_silent() -> None:
    def by_the_sample(net: nn.Module) -> Tensor:
        lam = torch.rand(len(X))
        return weighted(net(lam[:, None] * X + (1 - lam[:, None]) * picked(X)), Y, picked(Y), 1 - lam, reduction="none").mean()

    def soft(net: nn.Module) -> Tensor:
        rows = F.one_hot(Y, 4).float()
        return F.cross_entropy(net(0.7 * X + 0.3 * picked(X)), 0.3 * rows + 0.7 * picked(rows))

    assert not exchanged(by_the_sample)
    assert not exchanged(soft)
