"""Sign and reduction of the loss."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.tracing.direction import agreement
from tests.diagnosis.rules.looking import adam, alarms, findings, mlp, numbers, vectors

Loss = Callable[[Tensor, Tensor], Tensor]

CLASSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "hinge": F.multi_margin_loss,
    "focal": lambda z, y: ((1 - (p := z.softmax(1).gather(1, y[:, None]))) ** 2 * -p.log()).mean(),
    "brier": lambda z, y: (z.softmax(1) - F.one_hot(y, 4)).square().sum(1).mean(),
}
NUMBERS: dict[str, Loss] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "gaussian": lambda z, y: F.gaussian_nll_loss(z, y, torch.ones_like(z)),
    "poisson": lambda z, y: F.poisson_nll_loss(z, y.exp()),
    "correlation": lambda z, y: -F.cosine_similarity(z - z.mean(), y - y.mean(), dim=0).mean(),
    "logits": lambda z, y: F.binary_cross_entropy_with_logits(z, (y > 0).float()),
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_losses_of_classes_point_the_right_way_or_climb(name: str, sign: int) -> None:
    said = alarms(mlp(16, 32, 4), loss=lambda z, y: sign * CLASSES[name](z, y), steps=1)
    assert said == ([] if sign > 0 else ["loss_sign"])


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_losses_of_numbers_point_the_right_way_or_climb(name: str, sign: int) -> None:
    said = alarms(mlp(16, 32, 1), numbers(), lambda z, y: sign * NUMBERS[name](z, y), steps=1)
    assert said == ([] if sign > 0 else ["loss_sign"])


def scale_invariant(output: Tensor, target: Tensor) -> Tensor:
    """Minus the signal-to-distortion ratio, whatever the output's scale (Le Roux et al. 2019)."""
    output, target = (part - part.mean(1, keepdim=True) for part in (output, target))
    near = (output * target).sum(1, keepdim=True) * target / target.pow(2).sum(1, keepdim=True)
    return -10 * torch.log10(near.pow(2).sum(1) / ((output - near).square().sum(1) + 1e-8)).mean()


def test_outputs_may_go_to_minus_the_targets_where_the_loss_is_the_same() -> None:
    x, model = vectors(256)[0], mlp(16, 32)
    noise = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    assert alarms(model, (x, 0.3 * noise - model(x).detach()), scale_invariant, optimizer=adam, steps=1) == []
    similar = alarms(model, (x, noise), lambda z, y: F.cosine_similarity(z, y).mean(), optimizer=adam, steps=1)
    assert similar == ["loss_sign"]


def test_an_optimiser_that_maximises_climbs_unless_the_loss_is_to_be_maximised() -> None:
    def up(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, maximize=True)

    assert alarms(mlp(16, 32, 4), optimizer=up) == ["loss_sign"]
    assert alarms(mlp(16, 32, 4), loss=lambda z, y: -F.cross_entropy(z, y), optimizer=up) == []


def test_a_negative_likelihood_is_no_alarm() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.gaussian_nll_loss(output, target, torch.full_like(output, 1e-3)) - 2000

    assert "loss_sign" not in alarms(mlp(16, 32, 1), numbers(), loss, optimizer=adam)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_few_samples_prove_no_direction(rows: int) -> None:
    x, y = vectors(rows)
    assert alarms(mlp(16, 32, 4), (x, y)) == []


def test_agreement_needs_shapes_that_fit() -> None:
    gradient = torch.randn(6, 3)
    assert agreement(gradient, torch.randn(5)) is None
    assert agreement(gradient, torch.tensor([0, 1, 2, 3, 0, 1])) is None
    assert agreement(torch.zeros(6, 3), torch.tensor([0, 1, 2, 1, 0, 1])) is None
    assert agreement(torch.randn(6, 3, 2), torch.zeros(6, 2, dtype=torch.long)) is None


@pytest.mark.parametrize("channel", [True, False])
def test_maps_that_are_enlarged_before_they_are_compared_agree_at_their_own_size(channel: bool) -> None:
    fine = torch.randn(4, 1, 12, 8)
    coarse = F.avg_pool2d(fine, (3, 2))
    assert agreement(-coarse, fine if channel else fine[:, 0]) == pytest.approx(1.0)
    assert agreement(-coarse[..., :3], fine) is None


def test_class_maps_larger_than_logits_count_by_their_shares_in_each_cell() -> None:
    labels = torch.randint(3, (4, 12, 8), generator=torch.Generator().manual_seed(0))
    shares = F.avg_pool2d(F.one_hot(labels).movedim(-1, 1).float(), (3, 2))
    labels[0, :3, :2] = 255
    shares[0, :, 0, 0] = 0
    assert agreement(1 / 3 - shares, labels) == pytest.approx(1.0)
    assert agreement(shares - 1 / 3, labels) == pytest.approx(-1.0)
    assert agreement(shares[..., :3], labels) is None
    assert agreement(shares[:, :1], labels % 2) is None  # one logit for a yes or no has no class of its own


def test_agreement_skips_ignored_labels() -> None:
    y = torch.tensor([0, 1, 2, 1, 0, -100])
    gradient = torch.full((6, 3), 1 / 3) - F.one_hot(y.clamp_min(0), 3)
    gradient[5] = 100.0
    assert agreement(gradient, y) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------ reduction
def summed(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def test_a_sum_with_a_rate_for_the_mean_is_found() -> None:
    found = findings(
        mlp(16, 32, 16), (vectors()[0],) * 2, summed, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1), steps=1
    )
    assert found[0].rule == "loss_reduction"
    assert "sum over 32 samples" in found[0].message


@pytest.mark.parametrize("reduction", ["mse", "cross_entropy"])
def test_torch_losses_with_reduction_sum_are_found(reduction: str) -> None:
    fast = {"optimizer": lambda m: torch.optim.SGD(m.parameters(), 1.0), "steps": 1}
    if reduction == "mse":
        said = alarms(mlp(16, 32, 1), numbers(), lambda z, y: F.mse_loss(z, y, reduction="sum"), **fast)
    else:
        said = alarms(mlp(16, 32, 4), loss=lambda z, y: F.cross_entropy(z, y, reduction="sum"), **fast)
    assert said == ["loss_reduction"]


def test_a_sum_with_a_lower_rate_is_silent() -> None:
    assert alarms(mlp(16, 32, 1), numbers(), summed, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.05 / 32)) == []


class Corrected(nn.Module):
    """A network, and a layer of one number that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.epsilon = mlp(16, 32, 1), nn.Linear(1, 1)
        nn.init.constant_(self.epsilon.weight, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.epsilon(torch.ones_like(x[:, :1]))


@pytest.mark.parametrize(("lr", "said"), [(0.05 / 32, []), (0.1, ["loss_reduction"])])
def test_a_weight_of_one_number_does_not_tell_the_step_of_a_sum(lr: float, said: list[str]) -> None:
    assert alarms(Corrected(), numbers(), summed, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr), steps=1) == said


def test_a_sum_under_adam_is_silent() -> None:
    assert alarms(mlp(16, 32, 1), numbers(), summed, optimizer=adam) == []


def test_a_sum_that_is_divided_by_the_samples_is_a_mean() -> None:
    assert alarms(mlp(16, 32, 1), numbers(), lambda z, y: summed(z, y) / 32) == []


def test_a_mean_of_a_mean_is_found_under_plain_descent_only() -> None:
    def twice(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) / len(target)

    assert alarms(mlp(16, 32, 4), loss=twice) == ["loss_reduction"]
    assert alarms(mlp(16, 32, 4), loss=twice, optimizer=adam) == []


@pytest.mark.parametrize(
    ("reduction", "weight", "said"), [("sum", 0.5, ["loss_reduction"]), ("mean", 0.5, []), ("sum", 0.1, []), ("sum", 1e-4, [])]
)
def test_a_sum_that_drowns_a_mean_beside_it_is_found(reduction: str, weight: float, said: list[str]) -> None:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        again = F.mse_loss(output[:, 4:], x, reduction=reduction)
        return F.cross_entropy(output[:, :4], labels) + weight * again

    x, y = vectors()
    assert alarms(mlp(16, 32, 20), (x, y), loss, optimizer=adam, steps=1) == said


def test_a_sum_over_the_few_samples_with_a_label_is_divided_by_their_number() -> None:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        known = F.cross_entropy(output, labels, ignore_index=-1, reduction="sum") / (labels >= 0).sum().item()
        return known + F.mse_loss(output.softmax(1), (output + 0.1).softmax(1).detach() + 1e-3)

    x, y = vectors()
    assert alarms(mlp(16, 32, 4), (x, y.masked_fill(torch.arange(32) > 3, -1)), loss, optimizer=adam, steps=1) == []


def overlap(output: Tensor, target: Tensor) -> Tensor:
    p, y = output.sigmoid(), (target > 0).float()
    return F.binary_cross_entropy_with_logits(output, y) + 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def test_a_quotient_of_sums_is_no_sum() -> None:
    def fast(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    assert "loss_reduction" not in alarms(mlp(16, 32, 1), numbers(), overlap, optimizer=fast, steps=1)
    assert "loss_reduction" in alarms(
        mlp(16, 32, 1), numbers(), lambda z, y: F.mse_loss(z, y, reduction="sum"), optimizer=fast, steps=1
    )


class ByHand(LitModule):
    """A step for every fourth batch, of a loss divided by a number, by hand or by Lightning."""

    def __init__(self, divisor: float, *, manual: bool) -> None:
        super().__init__(mlp(16, 32, 4), lr=0.05, metrics=[])
        self.divisor, self.automatic_optimization = divisor, not manual

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def, override]
        loss = F.cross_entropy(self(batch[0]), batch[1]) / self.divisor
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        if batch_idx % 4 == 3:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return None


@pytest.mark.parametrize(
    ("manual", "divisor", "rules"),
    [(True, 32, ["loss_reduction"]), (True, 8, []), (True, 4, []), (False, 8, ["loss_reduction"]), (False, 4, [])],
)
def test_a_mean_over_several_batches_is_divided_by_their_number_and_by_nothing_else(
    manual: bool, divisor: float, rules: list[str]
) -> None:
    watch = Diagnostics(verbose=False, select=["loss_reduction"])
    trainer = Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, accumulate_grad_batches=1 if manual else 4, callbacks=[watch])  # fmt: skip
    trainer.fit(ByHand(divisor, manual=manual), DataLoader(TensorDataset(*vectors(256)), 8))
    assert [finding.rule for finding in watch.findings] == rules


class TwoHeads(nn.Module):
    """A mean and a log variance, of layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_variance = mlp(16, 32, 32), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        return torch.cat([self.log_variance(x), self.mean(x)], 1)


@pytest.mark.parametrize(("sign", "said"), [(1, []), (-1, ["loss_sign"])])
def test_of_a_mean_and_its_log_variance_the_mean_tells_the_sign(sign: int, said: list[str]) -> None:
    """Targets vary most where they are low, so that their log variance is to fall as they rise."""
    torch.manual_seed(0)
    x, y = torch.randn(128, 16), torch.randn(128, 1).exp().neg()

    def likelihood(output: Tensor, target: Tensor) -> Tensor:
        log_variance, mean = output.chunk(2, 1)
        return sign * 0.5 * (log_variance + (target - mean) ** 2 * torch.exp(-log_variance)).mean()

    assert [rule for rule in alarms(TwoHeads(), (x, y), likelihood, optimizer=adam, steps=1) if rule == "loss_sign"] == said


@pytest.mark.parametrize(("divisor", "said"), [(1, []), (32, ["loss_reduction"]), (32 * 6, ["loss_reduction"]), (50, [])])
def test_a_mean_over_tokens_is_divided_by_none_of_what_it_is_a_mean_of(divisor: int, said: list[str]) -> None:
    model = nn.Sequential(mlp(16, 32, 24), nn.Unflatten(1, (4, 6)))
    y = torch.randint(4, (32, 6), generator=torch.Generator().manual_seed(0))
    assert alarms(model, (vectors()[0], y), lambda z, y: F.cross_entropy(z, y) / divisor) == said
