"""Rules about the schedule and about weight decay, on whole plans."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.evidence import Evidence, collect
from lit_training.diagnosis.plan import Plan
from lit_training.diagnosis.rules import RULES
from lit_training.diagnosis.rules.decay import weight_decay_too_strong
from lit_training.diagnosis.rules.loss_form import loss_reduction
from lit_training.diagnosis.rules.normalisation import bn_stats
from lit_training.diagnosis.rules.rate import clip_too_small
from lit_training.diagnosis.rules.schedule import lr_schedule
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import mlp, vectors


def evidence(optimizer, loss=F.cross_entropy, *, net: nn.Module | None = None, updates: int = 500, **plan) -> Evidence:
    net, (x, y) = mlp(16, 32, 32, 4) if net is None else net, vectors()
    held = optimizer(net.parameters())
    with Probe(net, len(x), (x, y)) as probe:
        value = loss(net(x), y) if loss is F.cross_entropy else loss(net, x, y)
        probe.differentiate(value)
        value.backward()
    return collect(probe, optimizers=[held], loss=value, stepping=held, plan=Plan(updates, **plan))


def of_net(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def scheduled(make, steps: int = 200) -> list[str]:
    """What the rule says of a schedule that Lightning steps at every batch."""
    torch.manual_seed(0)
    watch = Diagnostics(verbose=False, select=["lr_schedule"])

    class Net(LitModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return {"optimizer": optimizer, "lr_scheduler": {"interval": "step", "monitor": "train/loss", "strict": False}
                    | make(optimizer)}  # fmt: skip

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = self.global_step > 1

    data = DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(2, (64,))), 16)
    trainer = pl.Trainer(max_steps=steps, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(Net(nn.Linear(4, 2), metrics=[]), data)
    return [finding.rule for finding in watch.findings]


HEALTHY = {
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 200),
    "thrice by ten": lambda o: schedules.MultiStepLR(o, [60, 120, 160]),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=200),
    "warm-up": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 100)),
    "half a warm-up": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 400)),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 10),
    "inverse root": lambda o: schedules.LambdaLR(o, lambda step: min((step + 1) ** -0.5, (step + 1) * 20**-1.5)),
    "one cycle cut off behind its peak": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=500),
    "slow exponential": lambda o: schedules.ExponentialLR(o, 0.97),
    "a tenth less every other update": lambda o: schedules.StepLR(o, 2, gamma=0.9),
    "thrice by ten in the first half": lambda o: schedules.MultiStepLR(o, [30, 60, 90]),
}
FAULTY = {
    "stepped per batch": lambda o: schedules.StepLR(o, 10),
    "exponential per batch": lambda o: schedules.ExponentialLR(o, 0.9),
    "exponential per batch, slower": lambda o: schedules.ExponentialLR(o, 0.94),
    "never warm": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 10_000)),
    "a fifth of a warm-up": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 1000)),
    "integer division": lambda o: schedules.LambdaLR(o, lambda step: min(1, step // 1000)),
    "one cycle stepped too seldom": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=3000),
    "growing": lambda o: schedules.ExponentialLR(o, 1.05),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_usual_schedules_are_silent(name: str) -> None:
    assert scheduled(lambda o: {"scheduler": HEALTHY[name](o)}) == []


@pytest.mark.parametrize("name", FAULTY)
def test_a_schedule_that_does_not_fit_the_run_is_named(name: str) -> None:
    assert scheduled(lambda o: {"scheduler": FAULTY[name](o)}) == ["lr_schedule"]
    assert scheduled(lambda o: {"scheduler": FAULTY[name](o)}, steps=40) == []  # too short to be judged


def test_a_rate_that_fades_out_is_silent_where_early_stopping_ends_the_run() -> None:
    faded = {"rates": tuple(0.9**i for i in range(500)), "scheduled": True}
    said = [len(list(lr_schedule(evidence(torch.optim.Adam, **faded, open_end=open_end)))) for open_end in (False, True)]
    assert said == [1, 0]


@pytest.mark.parametrize(("lr", "said"), [(1.0, 0), (0.1, 1)])
def test_a_function_may_give_the_rate_itself_to_an_optimiser_made_with_one(lr: float, said: int) -> None:
    seen = evidence(lambda p: torch.optim.Adam(p, lr=lr), rates=(0.005,) * 500, scheduled=True)
    assert len(list(lr_schedule(seen))) == said


@pytest.mark.parametrize(("penalty", "said"), [(0.0, 0), (1.0, 1)])
def test_the_gradient_of_a_linear_model_may_point_along_its_weights(penalty: float, said: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2048, 128, generator=g), 0.1 * torch.randn(2048, 1, generator=g)
    net = nn.Linear(128, 1)
    with Probe(net, len(x), (x, y)) as probe:
        value = F.mse_loss(net(x), y) + (penalty * net.weight.square().sum() if penalty else 0.0)
        probe.differentiate(value)
        value.backward()
    held = torch.optim.SGD(net.parameters(), lr=0.01)
    seen = collect(probe, optimizers=[held], loss=value, stepping=held, plan=Plan(500))
    assert len(list(weight_decay_too_strong(seen))) == said


def test_the_usual_decay_is_not_too_strong_for_a_network_that_is_good_already() -> None:
    net, (x, y) = mlp(16, 32, 32, 4), vectors()
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)

    def said() -> int:
        seen = evidence(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3), net=net, updates=5000)
        net.zero_grad()
        return len(list(weight_decay_too_strong(seen)))

    assert said() == 1
    for _ in range(300):
        adam.zero_grad()
        F.cross_entropy(net(x), y).backward()
        adam.step()
    adam.zero_grad()
    assert said() == 0


@pytest.mark.parametrize(("steps", "rules"), [(40, []), (41, ["lr_schedule"])])
def test_one_cycle_that_will_raise_is_named_before_it_does(steps: int, rules: list[str]) -> None:
    assert scheduled(lambda o: {"scheduler": schedules.OneCycleLR(o, 0.5, total_steps=40)}, steps) == rules


@pytest.mark.parametrize(
    ("mode", "monitor", "rules"),
    [
        ("min", "val_loss", []),
        ("max", "val_loss", ["lr_schedule"]),
        ("max", "val/acc", []),
        ("min", "val_accuracy", ["lr_schedule"]),
        ("max", "reward", []),
        ("max", "closs", []),
        ("min", "val_iou_loss", []),
        ("max", "val_neg_mse", []),
    ],
)
def test_a_plateau_is_waited_for_in_the_metrics_direction(mode: str, monitor: str, rules: list[str]) -> None:
    def make(optimizer):
        return {"scheduler": schedules.ReduceLROnPlateau(optimizer, mode=mode), "monitor": monitor, "frequency": 1000}

    assert scheduled(make) == rules


@pytest.mark.parametrize(
    ("optimizer", "strong", "usual"),
    [
        (lambda p, wd: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=wd), 1.0, 5e-4),
        (lambda p, wd: torch.optim.Adam(p, lr=0.003, weight_decay=wd), 1.0, 1e-4),
        (lambda p, wd: torch.optim.AdamW(p, lr=0.01, weight_decay=wd), 10.0, 0.1),
    ],
)
def test_decay_that_outweighs_the_gradient_is_too_strong(optimizer, strong: float, usual: float) -> None:
    def found(decay: float, updates: int = 500) -> list[str]:
        return [f.rule for f in weight_decay_too_strong(evidence(lambda p: optimizer(p, decay), updates=updates))]

    assert found(strong) == ["weight_decay_too_strong"]
    assert found(usual) == []
    assert found(strong, updates=1) == []


@pytest.mark.parametrize(
    ("lr", "divisor", "rules"), [(0.05, 32, []), (1e-4, 32, []), (0.05, 6000, ["loss_reduction"]), (10.0, 6000, [])]
)
@pytest.mark.parametrize("binary", [True, False])
def test_a_sum_that_is_divided_by_the_data_sets_samples_is_found(
    lr: float, divisor: int, rules: list[str], binary: bool
) -> None:
    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if binary:
            return F.binary_cross_entropy_with_logits(net(x)[:, 0], (y > 1).float(), reduction="sum") / divisor
        return F.cross_entropy(net(x), y, reduction="sum") / divisor

    summed = evidence(lambda p: torch.optim.SGD(p, lr=lr), loss)
    assert [f.rule for f in loss_reduction(summed)] == rules


@pytest.mark.parametrize(("decay", "rules"), [(0.02, []), (0.5, ["weight_decay_too_strong"])])
def test_a_small_penalty_is_not_held_against_a_small_gradient(decay: float, rules: list[str]) -> None:
    """Words that are counted and divided by their number are small, and so is the first gradient (Kipf and Welling 2017)."""
    net = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 4))
    decayed = evidence(
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=decay),
        net=net,
        loss=lambda net, x, y: F.cross_entropy(net(0.02 * x), y),
    )
    assert [f.rule for f in weight_decay_too_strong(decayed)] == rules


@pytest.mark.parametrize(("updates", "rules"), [(60, []), (100, ["weight_decay_too_strong"])])
def test_a_strong_decay_needs_time_to_do_harm(updates: int, rules: list[str]) -> None:
    decayed = evidence(
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=3.0), net=mlp(16, 8, 4), loss=of_net, updates=updates
    )
    assert [f.rule for f in weight_decay_too_strong(decayed)] == rules


@pytest.mark.parametrize(("clip", "rules"), [(0.01, ["clip_too_small"]), (0.02, ["clip_too_small"]), (0.024, [])])
def test_a_clip_that_leaves_a_twentieth_needs_a_promise(clip: float, rules: list[str]) -> None:
    clipped = evidence(lambda p: torch.optim.SGD(p, lr=0.1), net=mlp(16, 8, 4), loss=of_net, updates=2000, clip=clip)
    assert [f.rule for f in clip_too_small(clipped)] == rules


@pytest.mark.parametrize(("decay", "rules"), [(0.6, []), (3.0, ["weight_decay_too_strong"])])
def test_a_weight_that_starts_wide_may_shrink_to_usual_size(decay: float, rules: list[str]) -> None:
    net = mlp(16, 32, 32, 4)
    nn.init.normal_(net[0].weight)
    decayed = evidence(
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=decay), net=net, loss=lambda n, x, y: F.cross_entropy(n(x), y)
    )
    assert [f.rule for f in weight_decay_too_strong(decayed)] == rules


@pytest.mark.parametrize(
    ("power", "factor", "strong"), [(2, 1.0, True), (1, 0.1, True), (1, 0.02, True), (2, 1e-4, False), (1, 1e-5, False)]
)
def test_a_penalty_in_the_loss_is_seen_by_where_the_gradient_points(power: int, factor: float, strong: bool) -> None:
    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y) + factor * sum(p.abs().pow(power).sum() for p in net.parameters())

    found = evidence(lambda p: torch.optim.SGD(p, lr=0.05), loss)
    assert [f.rule for f in weight_decay_too_strong(found)] == ["weight_decay_too_strong"] * strong


@pytest.mark.parametrize(("factor", "rules"), [(0.1, ["weight_decay_too_strong"]), (1e-3, [])])
def test_a_penalty_is_known_by_its_size_where_a_steep_head_hides_it(factor: float, rules: list[str]) -> None:
    net = mlp(16, 32, 32, 4)
    net[3] = nn.Sequential(nn.LayerNorm(32), nn.ReLU())
    nn.init.normal_(net[4].weight)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y) + factor * sum(p.square().sum() for p in net.parameters())

    found = evidence(lambda p: torch.optim.Adam(p, lr=1e-3), loss, net=net)
    assert [f.rule for f in weight_decay_too_strong(found)] == rules


def test_statistics_that_never_arrive_are_named() -> None:
    def found(momentum: float | None, updates: int = 500, trained: bool = False) -> list[str]:
        norm = nn.BatchNorm1d(32, momentum=momentum)
        if trained:
            norm.num_batches_tracked.fill_(5000)
        net = nn.Sequential(nn.Linear(16, 32), norm, nn.ReLU(), nn.Linear(32, 4))
        return [f.rule for f in bn_stats(evidence(lambda p: torch.optim.SGD(p, lr=0.05), net=net, updates=updates))]

    assert found(1e-3) == ["bn_stats"]
    assert found(0.1) == found(0.01) == found(None) == found(1e-3, updates=2000) == found(1e-3, trained=True) == []


def test_without_a_plan_nothing_is_said_about_it() -> None:
    seen = replace(evidence(lambda p: torch.optim.SGD(p, lr=1e-9)), plan=Plan())
    assert not [f.rule for rule in RULES for f in rule(seen) if f.rule in ("lr_too_low", "lr_schedule", "bn_stats")]
    assert not list(lr_schedule(seen))


def near_zero(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.poisson_nll_loss(net(x)[:, 0], 1.0 + y % 2)
    return loss - loss.detach() + 1e-3


def little(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(0.02 * net(x)[:, 0], 0.03 * (y % 2))


@pytest.mark.parametrize(("loss", "said"), [(near_zero, 0), (little, 1)])
def test_a_likelihood_that_is_zero_by_chance_is_not_held_against_decay(loss, said: int) -> None:
    torch.manual_seed(0)
    found = evidence(lambda p: torch.optim.Adam(p, lr=2e-3, weight_decay=3e-3), loss, net=mlp(16, 32, 32, 4), updates=2000)
    assert len(list(weight_decay_too_strong(found))) == said


@pytest.mark.parametrize(("to", "told"), [(1.0, False), (0.0, True)])
def test_a_penalty_that_draws_weights_to_a_size_is_no_decay(to: float, told: bool) -> None:
    def penalised(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        grams = [(w.T @ w, w.shape[1]) for w in net.parameters() if w.ndim == 2]
        apart = [gram - torch.eye(size) if to else gram for gram, size in grams]
        return F.cross_entropy(net(x), y) + sum(each.square().sum() for each in apart)

    model = mlp(16, 32, 32, 4)
    for layer in (model[0], model[2], model[4]):
        nn.init.kaiming_normal_(layer.weight)
    seen = evidence(lambda p: torch.optim.SGD(p, lr=0.01), penalised, net=model)
    assert bool(list(weight_decay_too_strong(seen))) == told
