"""`diagnostics()` watches: what is trained is bit-identical to training without, whatever goes wrong in it."""

import copy
import pickle
import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos import Transformer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lit_training.callbacks.activation_monitor
import lit_training.callbacks.init_auditor
from lit_training.callbacks import Diagnostics, diagnostics

QUIET = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Demo(pl.LightningModule):
    """Lightning's demo transformer on random words."""

    def __init__(self):
        super().__init__()
        self.model = Transformer(vocab_size=50, ninp=16, nhead=2, nhid=16, nlayers=2)

    def training_step(self, batch, batch_idx):
        words, target = batch
        loss = nn.functional.nll_loss(self.model(words, target).view(-1, 50), target.view(-1))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Gan(pl.LightningModule):
    """Manual optimisation with two optimisers; the step returns None."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(), nn.Linear(16, 6))
        self.critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        x = batch[0]
        g, d = self.optimizers()
        bce = nn.functional.binary_cross_entropy_with_logits
        fake = self.generator(torch.randn(len(x), 4))
        loss = bce(self.critic(x), torch.ones(len(x), 1)) + bce(self.critic(fake.detach()), torch.zeros(len(x), 1))
        d.zero_grad()
        self.manual_backward(loss)
        d.step()
        self.log("critic", loss)
        if batch_idx % 2:
            g.zero_grad()
            self.manual_backward(bce(self.critic(fake), torch.ones(len(x), 1)))
            g.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.generator.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-3)


class Classic(pl.LightningModule):
    """Batch norm, dropout and torchmetrics."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(x[0, 0].item())
        logits = self.net(x)
        self.accuracy(logits, y)
        loss = nn.functional.cross_entropy(logits, y)
        self.log("loss", loss)
        self.log("accuracy", self.accuracy)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def rows(n=96):
    g = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(n, 6, generator=g), torch.randint(2, (n,), generator=g))


class Stream(IterableDataset):
    """Draws from the global generator as it goes."""

    def __iter__(self):
        return ((torch.randn(6), torch.tensor(i % 2)) for i in range(96))


def words():
    tokens = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(tokens, tokens.roll(1, 1)), batch_size=8)


LOADERS = {
    "global": lambda: DataLoader(rows(), batch_size=8, shuffle=True),
    "generator": lambda: DataLoader(rows(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "workers": lambda: DataLoader(rows(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
}
CASES = [(Demo, words)] + [(Gan, LOADERS["generator"])] + [(Classic, loader) for loader in LOADERS.values()]


def run(kind, loader, callbacks, tmp_path=None, **kwargs):
    pl.seed_everything(7, verbose=False)
    module, record = kind(), Record()
    data = loader()
    options = QUIET | {"max_epochs": 2, "logger": False, "log_every_n_steps": 1} | kwargs
    trainer = pl.Trainer(callbacks=[*callbacks, record], **options)
    val = DataLoader(rows(16), batch_size=8) if hasattr(module, "seen") else None
    trainer.fit(module, data, val)
    generators = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    return module, (record.metrics, getattr(module, "seen", None), generators)


class Record(Callback):
    def __init__(self):
        self.metrics = []

    def on_train_batch_end(self, trainer, *_):
        self.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize(("kind", "loader"), CASES, ids=["transformer", "gan", *LOADERS])
def test_training_is_bit_identical_with_and_without(kind, loader):
    plain, without = run(kind, loader, [])
    watched, with_ = run(kind, loader, diagnostics())
    assert without == with_
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def breakable():
    auditor, monitor = lit_training.callbacks.init_auditor, lit_training.callbacks.activation_monitor
    step = lit_training.callbacks._first_step
    return [
        (step, "Probe"),
        (step, "collect"),
        (auditor, "report"),
        (auditor, "audit_view"),
        (monitor, "log_scalars"),
    ]


@pytest.mark.parametrize(("where", "name"), breakable(), ids=[name for _, name in breakable()])
def test_what_raises_becomes_one_warning_and_training_goes_on(where, name, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr(where, name, broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = pl.loggers.CSVLogger(tmp_path)
        module, _ = run(Classic, LOADERS["global"], diagnostics(), logger=logger)
    assert module.trainer.global_step == 24
    assert len([w for w in caught if "broken on purpose" in str(w.message)]) == 1


def test_a_rule_that_raises_is_named_once():
    def crashing(evidence):
        raise ZeroDivisionError("broken on purpose")

    with pytest.warns(UserWarning, match="rule crashing failed") as caught:
        run(Classic, LOADERS["global"], [Diagnostics(rules=[crashing], verbose=False)])
    assert len([w for w in caught if "broken on purpose" in str(w.message)]) <= 2  # at the audit, and at its second look


def hooks(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for part in module.modules() for kind in kinds for hook in getattr(part, kind).values()]


class Raise(Callback):
    def __init__(self, error, step):
        self.error, self.step = error, step

    def on_before_zero_grad(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt()])
def test_nothing_stays_attached(error, step):
    watch = diagnostics()
    module = None
    try:
        pl.seed_everything(0, verbose=False)
        module = Classic()
        callbacks = [*watch, *([] if error is None else [Raise(error, step)])]
        pl.Trainer(callbacks=callbacks, logger=False, max_epochs=1, **QUIET).fit(module, LOADERS["global"]())
    except (RuntimeError, SystemExit, KeyboardInterrupt):
        assert error is not None
    assert hooks(module) == []
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert isinstance(watch[0].findings, list)


class Copies(Callback):
    """Copies and pickles the network after every batch."""

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        copy.deepcopy(pl_module.net)
        pickle.dumps(pl_module.net)
        self.count += 1


def test_the_module_can_be_copied_and_pickled_between_samples():
    copies = Copies()
    run(Classic, LOADERS["global"], [*diagnostics(), copies])
    assert copies.count == 24


def test_an_empty_loader_finds_nothing_and_says_nothing_false():
    watch = diagnostics()
    loader = DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), batch_size=8)
    pl.Trainer(callbacks=watch, max_epochs=1, logger=False, **QUIET).fit(Classic(), loader)
    assert watch[0].findings == []
