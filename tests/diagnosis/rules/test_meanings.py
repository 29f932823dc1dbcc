"""What outputs, targets and comparisons may mean besides the usual, and the faults that look like it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Exponential
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lit_training.diagnosis.parts import summary
from lit_training.diagnosis.rules.validation import _apart
from lit_training.diagnosis.samples import in_order
from tests.diagnosis.rules.looking import Loss, alarms, mlp, numbers, vectors


def said(loss: Loss, y: Tensor, outputs: int = 1, model: nn.Module | None = None) -> list[str]:
    """What the rules say of a few steps on inputs `[32, 16]`."""
    return alarms(model or mlp(16, 32, outputs), (vectors()[0], y), loss)


def positive() -> Tensor:
    return numbers()[1].exp()


def test_a_rate_falls_where_waiting_times_rise() -> None:
    def unlikely(z: Tensor, y: Tensor) -> Tensor:
        return -Exponential(z.exp()).log_prob(y).mean()

    assert said(unlikely, positive()) == []


def test_an_error_that_falls_may_turn_outputs_round_and_one_that_rises_may_not() -> None:
    y = numbers()[1]
    assert said(lambda z, y: F.mse_loss(-z, y), y) == []
    assert said(lambda z, y: F.binary_cross_entropy_with_logits(-z, y), (y > 0).float()) == []
    assert said(lambda z, y: -F.mse_loss(-z, y), y) == ["loss_sign"]


def in_pairs(z: Tensor, y: Tensor) -> Tensor:
    better = (y < y.T).float()
    return (F.softplus(z.T - z) * better).sum() / better.sum()


def test_an_order_may_begin_with_the_best() -> None:
    assert said(in_pairs, numbers()[1]) == []


def test_what_is_masked_out_may_hold_any_number() -> None:
    y = (torch.randn(32, 3, generator=torch.Generator().manual_seed(1)) > 0).float()
    y[::3] = -1

    def masked(z: Tensor, y: Tensor) -> Tensor:
        return (F.binary_cross_entropy_with_logits(z, y, reduction="none") * (y >= 0)).mean()

    def weighted(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y, weight=(y >= 0).float())

    def by_hand(z: Tensor, y: Tensor) -> Tensor:
        return ((z.sigmoid() - y).square() * (y >= 0)).mean()

    assert [said(loss, y, 3) for loss in (masked, weighted, by_hand)] == [[], [], []]
    assert said(F.binary_cross_entropy_with_logits, y, 3) == ["labels_broken"]
    assert said(lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.ones(3)), y, 3) == ["labels_broken"]
    assert said(lambda z, y: F.mse_loss(z.sigmoid(), y), y, 3) == ["wrong_last_activation"]


def multinomial(z: Tensor, y: Tensor) -> Tensor:
    return -(z.log_softmax(1) * y).sum(1).mean()


def test_counts_have_a_multinomial_likelihood_and_several_labels_do_not() -> None:
    several = (torch.rand(32, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert said(multinomial, 3 * several, 6) == []
    assert said(F.cross_entropy, several, 6) == ["wrong_loss"]
    assert said(multinomial, several, 6) == []  # somebody wrote it down
    x = (torch.rand(32, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert alarms(mlp(16, 8, 16), (x, x), multinomial) == []


def test_all_pairs_are_compared_on_purpose_where_both_sides_were_given_a_dimension_for_it() -> None:
    y = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
    assert said(lambda z, y: (z[:, :, None] - y[:, None]).abs().amin(2).mean(), y, 5) == []
    assert said(lambda z, y: (z - y.flatten()).abs().mean(), numbers()[1]) == ["shape_broadcast"]
    assert said(lambda z, y: (z - y.flatten()[None]).abs().mean(), numbers()[1]) == ["shape_broadcast"]


def test_means_may_be_compared_beside_what_each_sample_is_told() -> None:
    def means(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z.mean(0), y.mean(0))

    assert said(means, numbers()[1]) == ["wrong_loss"]
    assert said(lambda z, y: means(z, y) + F.mse_loss(z, y), numbers()[1]) == []


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(16, 8, 1, seed=seed) for seed in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x) for net in self.nets], 1)


def test_each_net_of_an_ensemble_may_tell_the_number() -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, y.float()[:, None].expand_as(z))

    assert said(loss, vectors()[1], model=Ensemble()) == []
    assert said(loss, vectors()[1], 4) == ["wrong_loss"]


def test_a_mean_of_as_many_terms_as_samples_is_none_of_a_mean() -> None:
    y = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))

    def of_columns(z: Tensor, y: Tensor) -> Tensor:
        return sum((F.mse_loss(z[:, i], y[:, i]) for i in range(32)), torch.zeros(())) / 32

    assert said(of_columns, y, 32) == []
    assert said(lambda z, y: F.mse_loss(z, y) / 32, y, 32) == ["loss_reduction"]


def test_order_is_unknown_where_a_sampler_draws_batches() -> None:
    x = TensorDataset(torch.zeros(8, 1))
    assert in_order(DataLoader(x, batch_size=2)) is True
    assert in_order(DataLoader(x, batch_size=2, shuffle=True)) is False

    class Own(BatchSampler):
        pass

    assert in_order(DataLoader(x, batch_sampler=Own(RandomSampler(x), 2, False))) is None


def test_zeros_and_ones_may_be_balanced_in_training_only() -> None:
    x = torch.arange(256)[:, None]
    even, rare, scaled = summary(((x % 2).float(), (x % 64 == 0).float(), 10 + (x % 64 == 0).float()))
    assert _apart([even], [rare]) is None
    assert _apart([even], [scaled]) is not None


def test_the_beginning_of_a_stream_is_no_sample_of_it() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    train, near, far = summary((x, 0.2 * x, 0.05 * x))
    assert _apart([train], [near], begins=True) is None
    assert _apart([train], [near]) is not None
    assert _apart([train], [far], begins=True) is not None


def test_neighbours_that_are_alike_show() -> None:
    g = torch.Generator().manual_seed(1)
    series, drawn = torch.randn(64, generator=g).cumsum(0).unfold(0, 8, 1), torch.randn(64, 8, generator=g)
    parts = summary((series, drawn))
    assert [part.ordered for part in parts if part is not None] == [True, False]
