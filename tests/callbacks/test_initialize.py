"""`Initialize`: once, before the first step, with the batch the loop hands out."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lit_training import LitModule
from lit_training.callbacks import InitAuditor, Initialize


def deep(width: int = 32, depth: int = 20) -> nn.Sequential:
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), *hidden, nn.Linear(width, 3))


def loader(**kwargs) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(96, 8, generator=generator), torch.randint(3, (96,), generator=generator))
    return DataLoader(data, batch_size=32, **kwargs)


def fit(module: LightningModule, *callbacks, steps: int = 1, **kwargs) -> Trainer:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **kwargs}
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), enable_model_summary=False, **options)
    trainer.fit(module, loader())
    return trainer


class StepOnly(LightningModule):
    """A module without `forward` that logs and keeps metrics."""

    def __init__(self):
        super().__init__()
        self.net, self.metric, self.batches = deep(depth=2), MeanMetric(), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.metric.update(loss.detach())
        self.log("loss", loss)
        self.batches.append(x[0, 0].item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(("scheme", "depth"), [("he", 20), ("orthogonal", 20), ("lsuv", 20), ("data_dependent", 20)])
def test_the_audit_sees_the_new_weights_whatever_the_order_of_the_callbacks(scheme, depth):
    auditor, initialize = InitAuditor(verbose=False), Initialize(scheme, verbose=False)
    fit(LitModule(deep(depth=depth), lr=1e-9), auditor, initialize)
    assert [finding.rule for finding in auditor.findings if finding.severity != "note"] == []
    silent = InitAuditor(verbose=False)
    fit(LitModule(deep(), lr=1e-9), silent)
    assert [finding.rule for finding in silent.findings if finding.severity != "note"] == ["init_vanishing"]


def test_a_module_without_forward_is_run_through_its_training_step_and_leaves_no_trace():
    module, callback = StepOnly(), Initialize("lsuv", verbose=False)
    fit(module, callback)
    assert callback.report is not None
    assert all(row.std == pytest.approx(1, abs=0.05) for row in callback.report)
    assert module.metric._update_count == 1


def test_lsuv_without_a_way_to_run_the_network_says_what_to_write():
    class Manual(StepOnly):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match=r"let forward\(inputs\) of Manual do so"):
        fit(Manual(), Initialize("lsuv"))


def test_random_generators_and_the_order_of_data_stay_what_they_were():
    def batches(*callbacks):
        seed_everything(3, verbose=False)
        module = StepOnly()
        trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=list(callbacks), barebones=True)
        trainer.fit(module, loader(shuffle=True))
        return module.batches, torch.rand(3)

    plain, state = batches()
    seen, after = batches(Initialize("he", verbose=False))
    assert seen[-len(plain) :] == plain
    assert torch.equal(state, after)


def test_the_seed_decides():
    def weights(seed, also=None):
        seed_everything(0 if also is None else also, verbose=False)
        module = LitModule(deep(depth=1), lr=0.0, weight_decay=0.0)
        fit(module, Initialize("he", seed=seed, verbose=False))
        return module.network[0].weight.detach()

    assert torch.equal(weights(5), weights(5, also=1))
    assert not torch.equal(weights(5), weights(6))
    assert torch.equal(weights(None, also=2), weights(None, also=2))
    assert not torch.equal(weights(None, also=2), weights(None, also=3))


def test_a_resumed_run_is_left_alone(tmp_path):
    first = LitModule(deep(depth=1))
    trainer = fit(first, steps=2)
    trainer.save_checkpoint(tmp_path / "run.ckpt")  # written without the callback
    module, callback = LitModule(deep(depth=1)), Initialize("normal", verbose=False)
    options = {"barebones": True, "accelerator": "cpu"}
    Trainer(max_steps=3, callbacks=[callback], **options).fit(module, loader(), ckpt_path=tmp_path / "run.ckpt")
    assert callback.report is None
    assert torch.allclose(module.network[0].weight, first.network[0].weight, atol=0.05)


def test_a_batch_that_makes_a_layer_constant_is_named_and_weights_are_restored():
    module = LitModule(deep(depth=1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = DataLoader(TensorDataset(torch.zeros(32, 8), torch.zeros(32, dtype=torch.long)), batch_size=32)
    with pytest.raises(ValueError, match=r"network\.0"):
        Trainer(max_steps=1, callbacks=[Initialize("lsuv")], barebones=True, accelerator="cpu").fit(module, data)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "lsvu"}, "did you mean 'lsuv'"),
        ({"scheme": "he", "options": {"std": 1}}, "no option 'std'"),
        ({"output_prior": 1.5}, "probability between 0 and 1"),
    ],
)
def test_bad_input_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        Initialize(**arguments)


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(ValueError, match="network"):
        fit(LitModule(deep(depth=1)), Initialize("he", exclude="netwrk"))
