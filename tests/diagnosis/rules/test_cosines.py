"""Cosines as logits: what they are multiplied by says how low a cross-entropy can be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import Loss, adam, findings, mlp, vectors

Head = Callable[[Tensor, Tensor], Tensor]
DIRECTIONS = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


class Cosines(nn.Module):
    """What a head makes of encoded samples `[32, 8]` and of a direction for each of 4 classes `[4, 8]`."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.body, self.directions, self.head = mlp(16, 32, 8), nn.Parameter(torch.randn(4, 8)), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x), self.directions)


def said(model: nn.Module, loss: Loss = F.cross_entropy) -> list[str]:
    """Return what is said of bounded logits."""
    found = findings(model, vectors(), loss, optimizer=adam, steps=1)
    return [f.message for f in found if f.rule == "wrong_loss" and "cosines" in f.message]


def unit(x: Tensor, dim: int = -1) -> Tensor:
    return F.normalize(x, dim=dim)


def plain(x: Tensor, w: Tensor) -> Tensor:
    return unit(x) @ unit(w).T


HEADS: dict[str, Head] = {
    "product": plain,
    "linear": lambda x, w: F.linear(unit(x), unit(w)),
    "columns": lambda x, w: unit(x) @ unit(w.T, dim=0),
    "similarity": lambda x, w: F.cosine_similarity(x[:, None], w[None], dim=-1),
    "by_hand": lambda x, w: torch.einsum("bd,cd->bc", x / x.norm(dim=1, keepdim=True), w / (w.norm(dim=1)[:, None] + 1e-8)),
    "clamped": lambda x, w: (x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)) @ unit(w).T,
    "batched": lambda x, w: (unit(x.view(8, 4, 8)) @ unit(w).T).reshape(32, 4),
    "in_parts": lambda x, w: torch.cat([unit(x) @ unit(part).T for part in w.split(2)], 1),
    "joined": lambda x, w: unit(x) @ torch.cat([unit(part) for part in w.chunk(2)]).T,
}


@pytest.mark.parametrize("name", HEADS)
def test_cosines_that_are_multiplied_by_their_temperature(name: str) -> None:
    head = HEADS[name]
    for down in (lambda x, w: 0.07 * head(x, w), lambda x, w: -head(x, w) / 14, lambda x, w: head(0.5 * x, w) * 0.07):
        assert len(said(Cosines(down))) == 1
    assert len(said(Cosines(lambda x, w: plain(x, w) / 0.07))) == 0
    assert said(Cosines(head)) == []


def test_the_figures_are_those_of_the_best_cosines() -> None:
    (message,) = said(Cosines(lambda x, w: 0.05 * plain(x, w)))
    best = F.cross_entropy(torch.tensor([[0.05, -0.05, -0.05, -0.05]]), torch.tensor([0]))
    assert f"within 0.05 of 0: the cross-entropy of 4 classes cannot fall below {best:.3f}, and guessing costs 1.386" in message


def test_a_scale_within_the_product_counts() -> None:
    assert said(Cosines(lambda x, w: (0.1 * unit(x)) @ (0.5 * unit(w)).T))
    assert not said(Cosines(lambda x, w: 0.1 * ((20 * unit(x)) @ unit(w).T)))


def pairs(scale: float) -> Loss:
    """Each sample is to find its partner, both ways."""

    def loss(out: Tensor, _: Tensor) -> Tensor:
        a, b = (unit(half) for half in out.chunk(2))
        similarities, partner = scale * a @ b.T, torch.arange(len(a))
        return (F.cross_entropy(similarities, partner) + F.cross_entropy(similarities.T, partner)) / 2

    return loss


def test_losses_both_ways_and_soft_targets() -> None:
    def soft(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, 0.9 * F.one_hot(y, 4).float() + 0.025)

    assert said(mlp(16, 32, 8), pairs(0.07))
    assert not said(mlp(16, 32, 8), pairs(1 / 0.07))
    assert said(Cosines(lambda x, w: 0.07 * plain(x, w)), soft)
    assert not said(Cosines(lambda x, w: plain(x, w) / 0.07), soft)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "filled": lambda s: s.masked_fill(torch.eye(32, dtype=torch.bool), -torch.inf),
    "diagonal": lambda s: s.fill_diagonal_(-1e9),
    "left_out": lambda s: s[~torch.eye(32, dtype=torch.bool)].view(32, 31),
}


@pytest.mark.parametrize("name", MASKS)
def test_views_that_are_not_compared_with_themselves(name: str) -> None:
    """Chen et al. 2020: each view is to find the other one of its sample among all others."""

    def loss(out: Tensor, scale: float) -> Tensor:
        partner = (torch.arange(32) + 16) % 32 if name != "left_out" else (torch.arange(32) + 15) % 31
        return F.cross_entropy(MASKS[name](scale * unit(out) @ unit(out).T), partner)

    (message,) = said(mlp(16, 32, 8), lambda out, _: loss(out, 0.07))
    assert "guessing costs 3.4" in message
    assert not said(mlp(16, 32, 8), lambda out, _: loss(out, 1 / 0.07))
    assert not said(mlp(16, 32, 8), lambda out, _: loss(out, 1.0))


def test_a_mask_that_leaves_two_classes_is_known_by_the_cost() -> None:
    others = torch.arange(32)[:, None] - torch.arange(32)
    away = ~((others == 1) | (others == 2))

    def loss(scale: float) -> Loss:
        return lambda out, _: F.cross_entropy(
            (scale * unit(out) @ unit(out).T)[2:].masked_fill(away[2:], -torch.inf), torch.arange(1, 31)
        )

    assert not said(mlp(16, 32, 8), loss(0.1))
    (message,) = said(mlp(16, 32, 8), loss(0.05))
    assert "of 2 classes" in message


def test_a_student_of_similarities_is_silent() -> None:
    teacher = mlp(16, 32, 4).requires_grad_(False)

    def loss(out: Tensor, _: Tensor) -> Tensor:
        return -(out.log_softmax(1) * teacher(vectors()[0]).softmax(1)).sum(1).mean()

    assert not said(Cosines(lambda x, w: 0.07 * plain(x, w)), loss)


UNBOUNDED: dict[str, Head] = {
    "one_side": lambda x, w: 0.07 * unit(x) @ w.T,
    "over_the_batch": lambda x, w: 0.07 * unit(x, dim=0) @ unit(w).T,
    "absolute": lambda x, w: 0.07 * F.normalize(x, p=1) @ unit(w).T,
    "weighted": lambda x, w: 0.07 * (unit(x) * w[0]) @ unit(w).T,
    "learnt_scale": lambda x, w: 0.07 * plain(x, w) * w[0, 0].exp(),
    "learnt_temperature": lambda x, w: 0.07 * plain(x, w) / w[0, 0],
    "biased": lambda x, w: F.linear(0.07 * unit(x), unit(w), w[:, 0]),
    "standardised": lambda x, w: 0.07 * F.layer_norm(x, (8,)) @ unit(w).T,
    "half_of_it": lambda x, w: torch.cat([0.07 * plain(x, w)[:, :2], x[:, :2]], 1),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_logits_that_can_grow_are_silent(name: str) -> None:
    assert said(Cosines(UNBOUNDED[name])) == []


def test_norms_of_the_other_axis_of_a_square_are_none_of_the_vectors() -> None:
    class Square(Cosines):
        def forward(self, x: Tensor) -> Tensor:
            square = self.body(x)[:8]
            return self.head(square / square.norm(dim=1), self.directions).repeat(4, 1)

    assert said(Square(lambda x, w: 0.07 * x @ unit(w).T)) == []


def towards(rows: Tensor, given: Tensor) -> Tensor:
    return F.cosine_similarity(rows, given).mean()


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (lambda z, y: towards(z, DIRECTIONS[y]), True),
        (lambda z, y: 1 - towards(z, DIRECTIONS[y]), False),
        (lambda z, y: -towards(z, DIRECTIONS[y]), False),
        (lambda z, y: -towards(z, DIRECTIONS[y]) + towards(z, DIRECTIONS[(y + 1) % 4]), False),  # another class's is to fall
        (lambda z, y: towards(z, z.flip(0).detach()), False),  # samples are to part
        (lambda z, y: F.cross_entropy(z, y) + towards(z, DIRECTIONS[y]), False),
    ],
)
def test_a_similarity_to_what_is_given_is_not_to_be_all_that_is_minimised(loss: Loss, wrong: bool) -> None:
    found = findings(mlp(16, 32, 8), vectors(), loss, optimizer=adam, steps=1)
    assert any(f.rule == "loss_sign" and "cosine similarity" in f.message for f in found) == wrong
