"""`WeightDecay` and `MaxNorm`: once at every real optimiser step, however the loop steps."""

import copy
import csv
import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import MaxNorm, WeightDecay

C = 0.4


def loader(n=64, batch=8):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=batch)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))


def fit(module, *callbacks, steps=20, data=None, ckpt=None, **kwargs):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), enable_model_summary=False, **options | kwargs)
    trainer.fit(module, data or loader(), ckpt_path=ckpt)
    return trainer


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a, b, atol=1e-6):
    return all(torch.allclose(a[name], b[name], rtol=0, atol=atol) for name in a)


class Watch(Callback):
    """After every optimiser step: how many there were, and the largest norm of a unit."""

    def __init__(self):
        self.steps, self.largest = 0, 0.0

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.note(pl_module))

    def note(self, module):
        def hook(*_):
            self.steps += 1
            norms = [m.weight.detach().norm(dim=1).max().item() for m in module.modules() if isinstance(m, nn.Linear)]
            self.largest = max(self.largest, *norms)

        return hook


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_decoupled_equals_adamw_over_forty_steps(decay):
    ours, torchs = LitModule(net(), optimizer=torch.optim.Adam, weight_decay=0, lr=0.01), None
    callbacks = [WeightDecay(decay)] if decay else []
    fit(ours, *callbacks, steps=40)
    torchs = LitModule(net(), optimizer=torch.optim.AdamW, weight_decay=decay, lr=0.01)
    fit(torchs, steps=40)
    assert same(weights(ours), weights(torchs))


def test_decoupled_follows_the_schedule_and_equals_sgd_without_momentum():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    settings = {"lr": 0.1, "momentum": 0.0, "lr_scheduler": schedule}
    ours, torchs = LitModule(net(), weight_decay=0, **settings), LitModule(net(), weight_decay=0.2, **settings)
    fit(ours, WeightDecay(0.2), steps=24)
    fit(torchs, steps=24)
    assert same(weights(ours), weights(torchs))


@pytest.mark.parametrize("extra", [{}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 4}])
def test_coupled_equals_sgd_with_momentum(extra):
    ours, torchs = LitModule(net(), weight_decay=0, lr=0.05), LitModule(net(), weight_decay=0.1, lr=0.05)
    fit(ours, WeightDecay(0.1, decoupled=False), **extra)
    if "gradient_clip_val" in extra:  # torch's SGD adds decay inside step, after clipping, as we do
        assert ours.trainer.gradient_clip_val
    fit(torchs, **extra)
    assert same(weights(ours), weights(torchs))


@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 4}, {"gradient_clip_val": 0.1}])
def test_projections_are_real_steps_plus_one_and_no_norm_exceeds(extra):
    constraint, watch = MaxNorm(C), Watch()
    fit(LitModule(net(), lr=0.5), constraint, watch, steps=6, **extra)
    assert watch.steps == 6
    assert constraint.projections == 7
    assert watch.largest <= C * (1 + 1e-6)


class Overflowing(LitModule):
    """Every third loss overflows in the scaled gradient."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx % 3 == 1 else loss


def test_steps_that_the_scaler_skips_do_not_count():
    def amp():
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]

    constraint, watch = MaxNorm(C), Watch()
    fit(Overflowing(net(), lr=0.5), constraint, watch, steps=8, plugins=amp())
    assert constraint.projections == watch.steps + 1 == 6
    assert watch.largest <= C * (1 + 1e-6)
    ours, torchs = Overflowing(net(), weight_decay=0, lr=0.05), Overflowing(net(), weight_decay=0.1, lr=0.05)
    fit(ours, WeightDecay(0.1, decoupled=False), steps=8, plugins=amp())
    fit(torchs, steps=8, plugins=amp())
    assert same(weights(ours), weights(torchs))


class TwoOptimizers(LightningModule):
    """Manual optimisation: the second optimiser steps twice as often."""

    def __init__(self, decay=0.0):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.first, self.second, self.decay = nn.Linear(6, 8), nn.Linear(8, 2), decay

    def training_step(self, batch, batch_idx):
        x, y = batch
        a, b = self.optimizers()
        for optimizer in (a, b, b):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.second(self.first(x)), y))
            optimizer.step()

    def configure_optimizers(self):
        groups = [[{"params": [m.weight], "weight_decay": self.decay}, {"params": [m.bias], "weight_decay": 0.0}]
                  for m in (self.first, self.second)]  # fmt: skip
        return [torch.optim.AdamW(group, lr=0.05, weight_decay=0.0) for group in groups]


def test_manual_optimisation_with_two_optimisers():
    constraint, watch = MaxNorm(C), Watch()
    fit(TwoOptimizers(), constraint, watch, steps=24)
    assert constraint.projections == watch.steps + 1 == 25
    assert watch.largest <= C * (1 + 1e-6)
    ours, torchs = TwoOptimizers(), TwoOptimizers(decay=0.2)
    fit(ours, WeightDecay(0.2), steps=24)
    fit(torchs, steps=24)
    assert same(weights(ours), weights(torchs))


lbfgs = functools.partial(torch.optim.LBFGS, max_iter=4)


def test_lbfgs_is_projected_and_refuses_decoupled_decay():
    constraint, watch = MaxNorm(C), Watch()
    fit(LitModule(net(), optimizer=lbfgs, weight_decay=0, lr=0.1), constraint, watch, steps=5)
    assert constraint.projections == 6
    assert watch.largest <= C * (1 + 1e-6)
    with pytest.raises(ValueError, match="LBFGS minimises what its closure returns"):
        fit(LitModule(net(), optimizer=lbfgs, weight_decay=0, lr=0.1), WeightDecay(0.1))


def test_a_run_resumed_from_a_checkpoint_without_the_callback_decays_once(tmp_path):
    def half(callback, decay):
        module = LitModule(net(), optimizer=torch.optim.AdamW, lr=0.01, weight_decay=decay)
        return fit(module, *callback, steps=10), module

    trainer, _ = half([], 0.3)  # the optimiser decays, and says so in its checkpoint
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    expected = LitModule(net(), optimizer=torch.optim.AdamW, lr=0.01, weight_decay=0.3)
    fit(expected, steps=20, ckpt=tmp_path / "half.ckpt")
    ours = LitModule(net(), optimizer=torch.optim.AdamW, lr=0.01, weight_decay=0)
    with pytest.warns(UserWarning, match=r"sets weight_decay=0\.3 to 0"):
        fit(ours, WeightDecay(0.3), steps=20, ckpt=tmp_path / "half.ckpt")
    assert same(weights(ours), weights(expected))


@pytest.mark.parametrize("average", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(0.1, 1)])
def test_averaged_weights_satisfy_the_bound_before_they_are_saved_or_used(average, tmp_path):
    module = LitModule(net(), lr=0.5)
    with torch.no_grad():
        module.network[0].weight.mul_(50)  # what is copied before training starts is far outside
    trainer = fit(module, MaxNorm(C), average(), steps=-1, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for state in (module.state_dict(), torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]):
        for name in ("network.0.weight", "network.3.weight"):
            assert state[name].norm(dim=1).max() <= C * (1 + 1e-6)


def logged(logger):
    with open(logger.experiment.metrics_file_path) as file:
        return list(csv.DictReader(file))


def test_l1_gives_exact_zeros_and_logs_them(tmp_path):
    module = LitModule(net(), lr=0.1, momentum=0, weight_decay=0)
    logger = CSVLogger(tmp_path)
    trainer = fit(module, WeightDecay(0, l1=0.05), steps=200, logger=logger, log_every_n_steps=50)
    zeros = torch.cat([module.network[i].weight.detach().flatten() == 0 for i in (0, 3)]).float().mean()
    assert zeros > 0.4
    ours = {row["step"]: row["weight_decay/sparsity"] for row in logged(logger) if row["weight_decay/sparsity"]}
    assert set(ours) == {row["step"] for row in logged(logger) if row["train_loss"]}
    assert float(list(ours.values())[-1]) == pytest.approx(zeros.item(), abs=0.02)
    assert trainer.global_step == 200


def test_two_instances_on_different_layers_log_side_by_side(tmp_path):
    logger = CSVLogger(tmp_path)
    constraints = MaxNorm(0.2, include="network.0"), MaxNorm(C, include="network.3")
    module = LitModule(net(), lr=0.5)
    fit(module, *constraints, logger=logger, log_every_n_steps=5)
    row = logged(logger)[-1]
    assert {"max_norm/at_bound", "max_norm/largest", "max_norm_2/at_bound"} <= set(row)
    assert module.network[0].weight.norm(dim=1).max() <= 0.2 * (1 + 1e-6)


class Interrupted(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise RuntimeError("stop")


@pytest.mark.parametrize("crash", [False, True])
def test_no_hook_stays_and_settings_survive_copies(crash):
    module, callbacks = LitModule(net()), [MaxNorm(C), WeightDecay(0.1, optimizer_decay="replace")]
    callbacks = [pickle.loads(pickle.dumps(copy.deepcopy(callback))) for callback in callbacks]
    assert callbacks[0].max_norm == C
    if crash:
        with pytest.raises(RuntimeError, match="stop"):
            fit(module, *callbacks, Interrupted())
    else:
        fit(module, *callbacks)
    (optimizer,) = module.trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_flat_shards_are_refused_with_the_strategy_to_use():
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    for callback in (MaxNorm(C), WeightDecay(0.1)):
        with pytest.raises(ValueError, match="ModelParallelStrategy"):
            callback.on_fit_start(trainer, LitModule(net()))


def test_frozen_parameters_are_left_alone():
    module = LitModule(net(), lr=0.5, weight_decay=0)
    module.network[0].weight.requires_grad_(False)
    before = module.network[0].weight.clone()
    fit(module, MaxNorm(0.01), WeightDecay(0.5))
    assert torch.equal(module.network[0].weight, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxNorm(-1), "positive finite"),
        (lambda: MaxNorm(float("nan")), "positive finite"),
        (lambda: MaxNorm(per="row"), "'unit' or 'tensor'"),
        (lambda: WeightDecay(-0.1), "finite number >= 0"),
        (lambda: WeightDecay(0.0), "does nothing"),
        (lambda: WeightDecay(optimizer_decay="ignore"), "'error' or 'replace'"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Sparse(LightningModule):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True)

    def training_step(self, batch, batch_idx):
        return self.table(batch[1]).sum()

    def configure_optimizers(self):
        return torch.optim.SparseAdam(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (lambda: LitModule(net()), [WeightDecay(0.1)], r"decay twice; build the optimiser with weight_decay=0 \(LitModule"),
        (lambda: LitModule(net(), weight_decay=0), [WeightDecay(0.1), WeightDecay(0.2)], "two instances act on network"),
        (lambda: LitModule(net()), [MaxNorm(1.0), MaxNorm(2.0)], "two instances act on network"),
        (lambda: LitModule(net()), [MaxNorm(1.0, include="hed")], "'hed' matches no parameter"),
        (Sparse, [WeightDecay(0.1, embeddings=True)], "sparse=False"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_batch(module, callbacks, message):
    with pytest.raises(ValueError, match=message):
        fit(module(), *callbacks)


def spiral(n=150):
    g = torch.Generator().manual_seed(0)
    t = torch.linspace(0.15, 1, n)
    turn = [4.5 * t + offset for offset in (0, torch.pi)]
    x = torch.cat([torch.stack([t * a.sin(), t * a.cos()], 1) for a in turn]) * 4
    return x + 0.1 * torch.randn(x.shape, generator=g), torch.arange(2).repeat_interleave(n)


def boundary_length(network):
    """How many neighbouring grid points get different classes."""
    axis = torch.linspace(-4, 4, 80)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        label = network(grid).argmax(1).view(80, 80)
    return (label[1:] != label[:-1]).sum() + (label[:, 1:] != label[:, :-1]).sum()


def test_on_a_spiral_decay_shrinks_the_weights_and_smooths_the_boundary():
    x, y = spiral()
    data = DataLoader([(x, y)], batch_size=None)
    norms, lengths = [], []
    for strength in (0.0, 0.001, 0.01, 0.1):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 2))
        module = LitModule(network, lr=0.2, weight_decay=0)
        callbacks = [WeightDecay(strength, decoupled=False)] if strength else []
        fit(module, *callbacks, steps=500, data=data, barebones=True)
        norms.append(sum(network[i].weight.square().sum() for i in (0, 2)).sqrt().item())
        lengths.append(boundary_length(network).item())
    assert norms == sorted(norms, reverse=True)
    assert norms[3] < 0.5 * norms[0]
    assert lengths[3] < lengths[0]
