"""`InitAuditor` and what `Diagnostics` adds to it: what is named, what is told, what runs in peace."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_training.callbacks import Diagnostics, InitAuditor, diagnostics


class Plain(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)


def alarms_on(module, data):
    auditor = InitAuditor(verbose=False)
    pl.Trainer(callbacks=[auditor], max_steps=2, barebones=True, accelerator="cpu").fit(module, data)
    return [finding.rule for finding in auditor.findings if finding.severity != "note"]


def test_nan_inputs_are_named_as_the_cause():
    x = torch.randn(16, 4)
    x[3, 2] = torch.nan
    assert alarms_on(Plain(nn.Linear(4, 2)), DataLoader(TensorDataset(x), batch_size=8))[0] == "bad_data"


def test_a_module_without_parameters_is_told():
    with pytest.warns(UserWarning, match=r"no parameters.*nn\.ModuleList"):
        pl.Trainer(callbacks=diagnostics(), fast_dev_run=True, accelerator="cpu", logger=False).fit(
            Hidden(), DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=8)
        )


class Hidden(pl.LightningModule):
    """Its layers are in a plain list."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 2)]

    def training_step(self, batch, batch_idx):
        return self.layers[0](batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.layers[0].parameters(), lr=0.1)


def test_an_unknown_batch_structure_is_no_obstacle():
    class Strange:
        def __init__(self, x):
            self.x = x

    class Net(Plain):
        def training_step(self, batch, batch_idx):
            return self.net(batch.x).mean()

    batches = [Strange(torch.randn(8, 4)) for _ in range(3)]
    assert alarms_on(Net(nn.Linear(4, 2)), DataLoader(batches, batch_size=None)) == []


class TrainedWhileValidating(pl.LightningModule):
    """Switches to train mode in validation, as a callback of old did."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 16), *layers, nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def on_validation_start(self) -> None:
        self.train()

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize(
    ("layer", "rules"),
    [(nn.Dropout(0.5), ["dropout_active_in_eval"]), (nn.BatchNorm1d(16), ["bn_stats"]), (nn.LayerNorm(16), [])],
)
def test_a_network_in_train_mode_while_it_validates_is_named(layer: nn.Module, rules: list[str]) -> None:
    data = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(2, (64,))), 16)
    for module, expected in ((TrainedWhileValidating(layer), rules), (TrainedWhileValidating(layer), [])):
        if not expected:
            module.on_validation_start = lambda: None
        watch = Diagnostics(verbose=False, select=["dropout_active_in_eval", "bn_stats"])
        trainer = pl.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, data, data)
        assert [finding.rule for finding in watch.findings if finding.severity != "note"] == expected


class PerSample(pl.LightningModule):
    """Gradients of single samples by vmap, as private training takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        def loss(weights, x, y):
            output = torch.func.functional_call(self.model, weights, (x[None],))
            return nn.functional.cross_entropy(output, y[None])

        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, *batch)
        for name, p in self.model.named_parameters():
            p.grad = gradients[name].mean(0)
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Thawing(TrainedWhileValidating):
    """Freezes the first layer for the first epoch, in a hook of its own."""

    def on_validation_start(self) -> None:
        pass

    def on_train_batch_start(self, batch, batch_idx) -> None:
        self.model[0].requires_grad_(self.current_epoch > 0)


class ThawingLater(Thawing):
    """Starts with a frozen layer."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.model[0].requires_grad_(False)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        pass

    def on_train_epoch_start(self) -> None:
        self.model[0].requires_grad_(self.current_epoch > 0)


@pytest.mark.parametrize("make", [PerSample, lambda: Thawing(nn.Identity()), ThawingLater], ids=["vmap", "thawing", "later"])
def test_loops_that_take_gradients_their_own_way_run_and_are_silent(make, recwarn) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(make(), data)
    assert trainer.global_step == 16
    assert [str(w.message) for w in recwarn if "failed" in str(w.message)] == []
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == []


def test_what_a_finetuning_callback_froze_is_meant_to_be_frozen() -> None:
    class FirstOnly(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.model[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            pass

    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    for callbacks, expected in (([FirstOnly()], []), ([], ["frozen_by_accident"])):
        watch, module = Diagnostics(verbose=False, select=["frozen_by_accident"]), Thawing(nn.Identity())
        module.on_train_batch_start = lambda *_: None
        module.model[0].requires_grad_(bool(callbacks))
        trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                             callbacks=[*callbacks, watch], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, data)
        assert [finding.rule for finding in watch.findings] == expected


@pytest.mark.parametrize(
    ("frozen", "says", "expect", "told"),
    [
        (True, True, (), ["error"]),
        (True, True, ("model.0",), []),
        (True, False, (), []),
        (False, True, (), []),
        (False, False, (), ["warning"]),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_flag_on_a_module_thaws_and_freezes_nothing(frozen, says, expect, told, late) -> None:
    class Flagging(Thawing):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == (2 if late else 0):
                self.model[0].requires_grad = says

    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    watch, module = Diagnostics(verbose=False, select=["frozen_by_accident"], expect_frozen=expect), Flagging(nn.Identity())
    nn.init.constant_(module.model[0].weight, 0.1)
    module.model[0].requires_grad_(not frozen)
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                         callbacks=[watch], enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, data)
    assert [finding.severity for finding in watch.findings] == ([] if late and told == ["warning"] else told)


@pytest.mark.parametrize("callback", [Diagnostics, InitAuditor])
def test_a_pattern_of_frozen_parameters_without_a_match_is_refused(callback) -> None:
    for pattern, told in (("nett", "'nett' matches no parameter; nearest: .*'net'"), ("net.*", None)):
        trainer = pl.Trainer(
            callbacks=[callback(expect_frozen=[pattern], verbose=False)], barebones=True, max_steps=1, accelerator="cpu"
        )
        data = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=8)
        if told is None:
            trainer.fit(Plain(nn.Linear(4, 2)), data)
        else:
            with pytest.raises(ValueError, match=told):
                trainer.fit(Plain(nn.Linear(4, 2)), data)
        assert trainer.global_step == (told is None)


class Stream(IterableDataset):
    """The beginning is narrow: an agent that has not gone far yet."""

    def __iter__(self):
        return iter(0.2 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))


class Validated(Plain):
    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.net(batch)


def test_the_beginning_of_a_stream_may_differ_from_validation() -> None:
    wide = DataLoader(torch.randn(64, 8), batch_size=16)
    for data, expected in ((Stream(), []), (list(Stream()), ["train_val_mismatch"])):
        watch = Diagnostics(verbose=False, select=["train_val_mismatch"])
        trainer = pl.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(Validated(nn.Linear(8, 2)), DataLoader(data, batch_size=16), wide)
        assert [finding.rule for finding in watch.findings] == expected


def test_the_recording_holds_nothing_that_monitors_do() -> None:
    seen = []
    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16)
    for callback in (InitAuditor, Diagnostics):
        watch = callback(rules=[lambda evidence: seen.append([node.op for node in evidence.graph.nodes]) or []], verbose=False)
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(TrainedWhileValidating(nn.Identity()), data)
    assert len({tuple(ops) for ops in seen}) == 1


class Forgetful(TrainedWhileValidating):
    """Logs the loss and does not return it; or has none yet."""

    def __init__(self, *, has_loss: bool) -> None:
        super().__init__(nn.Identity())
        self.has_loss = has_loss

    def training_step(self, batch, batch_idx):
        logits = self.model(batch[0])
        if self.has_loss:
            self.log("loss", nn.functional.cross_entropy(logits, batch[1]))


@pytest.mark.parametrize(("has_loss", "rules"), [(True, ["no_update"]), (False, [])])
def test_a_loss_that_is_not_returned_is_named(has_loss: bool, rules: list[str]) -> None:
    data = DataLoader(TensorDataset(torch.randn(128, 8), torch.randint(2, (128,))), 16)
    watch = Diagnostics(verbose=False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Forgetful(has_loss=has_loss), data)
    assert [finding.rule for finding in watch.findings if finding.severity != "note"] == rules
