"""Rules about the first update: rates and clipping that are far off, and the ones that people use."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule, audit
from lit_training.callbacks import Diagnostics
from lit_training.diagnosis.evidence import collect
from lit_training.diagnosis.rules.guessing import guesses
from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import alarms, mlp, numbers

RULES = ["lr_too_high", "lr_too_low", "clip_too_small", "dropout_too_high", "bad_data"]


def found(lr: float, optimizer=torch.optim.SGD, *, steps: int = 200, dropout: float = 0.0, x=None, **options) -> list[str]:
    torch.manual_seed(0)
    inputs = torch.randn(256, 8) if x is None else x
    labels = (torch.randn(256, 8).sum(1) > 0).long()
    net = nn.Sequential(
        nn.Linear(inputs.shape[1], 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    watch = Diagnostics(verbose=False, select=RULES)

    class Stops(LitModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = self.global_step > 5

    trainer = pl.Trainer(max_steps=steps, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch], **options)  # fmt: skip
    trainer.fit(Stops(net, lr=lr, optimizer=optimizer, metrics=[]), DataLoader(TensorDataset(inputs, labels), 32, shuffle=True))
    return [finding.rule for finding in watch.findings if finding.severity != "note"]


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (torch.optim.SGD, 0.5),
        (torch.optim.SGD, 1e-2),
        (torch.optim.Adam, 3e-2),
        (torch.optim.Adam, 1e-4),
        (torch.optim.RMSprop, 1e-3),
        (torch.optim.Adagrad, 1e-2),
        (torch.optim.Adadelta, 1.0),
    ],
)
def test_rates_that_people_use_are_silent(optimizer, lr: float) -> None:
    assert found(lr, optimizer, steps=2000) == []


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 300.0), (torch.optim.Adam, 1.0), (torch.optim.AdamW, 0.6)])
def test_an_update_larger_than_the_weights_is_too_high(optimizer, lr: float) -> None:
    assert found(lr, optimizer) == ["lr_too_high"]
    assert found(lr, optimizer, gradient_clip_val=1e-4) == ([] if optimizer is torch.optim.SGD else ["lr_too_high"])


@pytest.mark.parametrize(("sizes", "rules"), [((16, 1), []), ((16, 32, 32, 1), ["lr_too_high"])])
def test_one_layer_takes_a_rate_in_the_unit_of_its_targets(sizes: tuple[int, ...], rules: list[str]) -> None:
    x, y = numbers()

    def fast(net: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(net.parameters(), lr=5.0)

    assert alarms(mlp(*sizes), (x, 1e3 * y), nn.functional.mse_loss, optimizer=fast) == rules


@pytest.mark.parametrize(
    ("act", "lr", "rules"),
    [(nn.ReLU, 0.065, ["lr_too_high"]), (nn.GELU, 0.065, []), (nn.ReLU, 0.02, [])],  # with GELU the loss falls all the same
)
def test_many_layers_half_overwritten_are_too_much_where_the_loss_rises(act, lr: float, rules: list[str]) -> None:
    def rate(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=lr)

    assert alarms(mlp(16, *[32] * 7, 4, act=act), optimizer=rate) == rules


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (torch.optim.SGD, 1e-6),
        (torch.optim.Adam, 1e-7),
        (torch.optim.RMSprop, 1e-7),
        (torch.optim.Adagrad, 1e-6),
        (torch.optim.Adadelta, 1e-4),
    ],
)
def test_a_run_that_cannot_move_the_weights_is_too_low(optimizer, lr: float) -> None:
    assert found(lr, optimizer) == ["lr_too_low"]
    assert found(lr, optimizer, steps=50) == []  # too short to be judged


@pytest.mark.parametrize(("lr", "rules"), [(1e-4, ["lr_too_low"]), (1e-3, [])])
def test_a_large_gradient_does_not_hide_that_the_weights_stay(lr: float, rules: list[str]) -> None:
    torch.manual_seed(1)
    assert found(lr, x=20 * torch.randn(256, 8)) == rules


@pytest.mark.parametrize(
    "options", [{"gradient_clip_val": 1e-5}, {"gradient_clip_val": 1e-7, "gradient_clip_algorithm": "value"}]
)
def test_clipping_that_leaves_nothing_is_named(options) -> None:
    assert found(0.05, **options) == ["clip_too_small"]
    assert found(1e-3, torch.optim.Adam, **options) == []


def test_common_clipping_is_silent() -> None:
    assert found(0.1, gradient_clip_val=1.0) == []


@pytest.mark.parametrize(("p", "rules"), [(0.5, []), (0.8, []), (0.9, ["dropout_too_high"])])
def test_dropout(p: float, rules: list[str]) -> None:
    assert found(0.05, dropout=p) == rules


def test_samples_that_are_all_alike_are_bad_data() -> None:
    assert found(0.05, x=torch.ones(256, 8)) == ["bad_data"]
    assert "bad_data" not in found(0.05, x=torch.randn(16, 8).repeat(16, 1))


def test_samples_that_could_not_be_read_are_bad_data_and_sparse_ones_are_not() -> None:
    unread = torch.arange(256)[:, None] % 3 == 0
    assert found(0.05, x=torch.randn(256, 24).masked_fill(unread, 0.0)) == ["bad_data"]
    assert found(0.05, x=torch.randn(256, 8).masked_fill(unread, 0.0)) == []
    sparse = (torch.rand(256, 24) < 0.15).float()
    assert "bad_data" not in found(0.05, x=sparse.masked_fill(unread, 0.0))


def test_audit_knows_no_plan_but_sees_the_rate() -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    batch = torch.randn(32, 4), torch.randint(3, (32,))
    optimizer = torch.optim.Adam(net.parameters(), lr=2.0)
    assert [f.rule for f in audit(net, batch, nn.functional.cross_entropy, optimizer=optimizer).alarms] == ["lr_too_high"]


@pytest.mark.parametrize(("hidden", "lr", "rules"), [(4, 0.1, ["lr_too_high"]), (1, 0.1, []), (4, 0.02, [])])
def test_adam_that_nearly_overwrites_each_of_many_layers_is_too_high(hidden: int, lr: float, rules: list[str]) -> None:
    net = mlp(16, *[48] * hidden, 4)
    assert [r for r in alarms(net, optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=lr), steps=2) if r in RULES] == rules


@pytest.mark.parametrize(("momentum", "rules"), [(0.9, []), (0.9999, ["lr_too_high"])])
def test_momentum_that_adds_up_more_than_the_weights_is_too_high(momentum: float, rules: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    batch = torch.randn(32, 8), torch.randint(2, (32,))
    assert [f.rule for f in audit(net, batch, nn.functional.cross_entropy, optimizer=optimizer).alarms] == rules


@pytest.mark.parametrize(("clip", "rules"), [(None, ["loss_reduction"]), (0.1, [])])
def test_a_summed_loss_that_is_clipped_is_no_alarm(clip: float | None, rules: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    data = TensorDataset(torch.randn(64, 8), torch.randint(2, (64,)))
    watch = Diagnostics(verbose=False, select=["loss_reduction"])
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=clip,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(LitModule(net, lr=0.1, loss=nn.CrossEntropyLoss(reduction="sum"), metrics=[]), DataLoader(data, 32))
    assert [finding.rule for finding in watch.findings] == rules


def test_weights_that_are_small_on_purpose_may_be_overwritten() -> None:
    def said(std: float, lr: float) -> bool:
        net = mlp(16, 32, 32, 4)
        for layer in (net[0], net[2]):
            nn.init.normal_(layer.weight, std=std)
        return "lr_too_high" in alarms(net, optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=lr))

    assert [said(1e-3, 5e-3), said(1e-3, 0.5), said(0.1, 0.5)] == [False, True, True]


def test_the_first_step_of_adagrad_is_no_measure_in_front_of_a_normalisation() -> None:
    def said(norm: bool, optimizer: type[torch.optim.Optimizer]) -> bool:
        layers = [
            layer for _ in range(2) for layer in (nn.Linear(16, 16), nn.LayerNorm(16) if norm else nn.Identity(), nn.ReLU())
        ]
        net = nn.Sequential(*layers, nn.Linear(16, 4))
        return "lr_too_high" in alarms(net, optimizer=lambda m: optimizer(m.parameters(), lr=0.5))

    assert said(norm=False, optimizer=torch.optim.Adagrad)
    assert said(norm=True, optimizer=torch.optim.Adam)
    assert not said(norm=True, optimizer=torch.optim.Adagrad)


def factors(std: float, lr: float) -> list[str]:
    """What is said of two tables that start with a deviation, and of Adam."""
    torch.manual_seed(0)
    words = torch.randint(50, (256,))
    net = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    for layer in net:
        nn.init.normal_(layer.weight, std=std)
    watch = Diagnostics(verbose=False, select=["lr_too_low"])
    trainer = pl.Trainer(max_steps=300, min_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[watch])  # fmt: skip

    class Stops(LitModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = self.global_step > 5

    module = Stops(net, lr=lr, optimizer=torch.optim.Adam, metrics=[])
    trainer.fit(module, DataLoader(TensorDataset(words, (words + 1) % 50), 64))
    return [finding.rule for finding in watch.findings]


@pytest.mark.parametrize(("lr", "rules"), [(3e-3, []), (1e-5, ["lr_too_low"])])
def test_two_factors_that_start_near_zero_get_their_gradients_later(lr: float, rules: list[str]) -> None:
    assert factors(1e-3, lr) == rules


@pytest.mark.parametrize(("told", "is_a_guess"), [(0.0, True), (1.0, False)])
def test_a_network_that_knows_a_little_does_not_guess(told: float, is_a_guess: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    labels = (torch.rand(256, generator=generator) < x[:, 0].sigmoid()).long()
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.zero_()[1, 0] = told
    with Probe(net, len(x), (x, labels)) as probe:
        loss = nn.functional.cross_entropy(net(x), labels)
        probe.differentiate(loss)
        loss.backward()
    assert loss > 0.85 * math.log(2)
    assert guesses(collect(probe, loss=loss)) is is_a_guess
