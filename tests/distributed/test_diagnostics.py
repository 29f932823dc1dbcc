"""The audit with two processes: once, on the joint batch."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import InitAuditor, diagnostics


class Net(LightningModule):
    def __init__(self, std=0.01):
        super().__init__()
        torch.manual_seed(0)
        hidden = [part for _ in range(8) for part in (nn.Linear(16, 16), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(16, 3))
        for layer in self.net[::2]:
            nn.init.normal_(layer.weight, std=std)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def rows():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 16, generator=g), torch.randint(3, (32,), generator=g)


def audited(loader, devices):
    auditor = InitAuditor(verbose=False)
    options = {"accelerator": "cpu", "barebones": True, "max_steps": 1, "use_distributed_sampler": False}
    Trainer(callbacks=[auditor], devices=devices, strategy="ddp" if devices > 1 else "auto", **options).fit(Net(), loader)
    figures = [(row.name, row.std, row.signal, row.gradient_std) for row in auditor.report.layers]
    return [(finding.rule, finding.where, finding.severity) for finding in auditor.findings], figures


def loader_of_rank(sizes):
    import os

    rank = int(os.environ["LOCAL_RANK"])
    start = sum(sizes[:rank])
    x, y = (part[start : start + sizes[rank]] for part in rows())
    return DataLoader(TensorDataset(x, y), batch_size=sizes[rank])


def test_rules_places_and_figures_are_those_of_the_joint_batch(on_two_ranks):
    first, second = on_two_ranks(lambda: audited(loader_of_rank([16, 16]), 2))
    alone = audited(DataLoader(TensorDataset(*rows()), batch_size=32), 1)
    assert first[0] == second[0] == alone[0]
    assert ("init_vanishing", "net.0", "error") in alone[0]
    for ours, theirs in zip(first[1], alone[1], strict=True):
        assert ours[0] == theirs[0]
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-4)


def test_ranks_with_batches_of_different_size_do_not_wait_for_each_other(on_two_ranks):
    first, second = on_two_ranks(lambda: audited(loader_of_rank([20, 12]), 2))
    assert first[0] == second[0]
    assert ("init_vanishing", "net.0", "error") in first[0]


def test_one_table_is_printed(on_two_ranks, capfd):
    def run():
        options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(callbacks=diagnostics(), devices=2, strategy="ddp", max_steps=2, **options)
        trainer.fit(Net(), DataLoader(TensorDataset(*rows()), batch_size=8))

    on_two_ranks(run)
    assert capfd.readouterr().out.count("Audit of the first batch") == 1


class Healthy(Net):
    def __init__(self):
        super().__init__(std=0.35)


class NeverZeroed(Healthy):
    def optimizer_zero_grad(self, *args, **kwargs):
        pass


def looked_at_again(make):
    auditor = InitAuditor(verbose=False)
    options = {"accelerator": "cpu", "barebones": True, "max_steps": 6, "use_distributed_sampler": False}
    data = DataLoader(TensorDataset(*rows()), batch_size=4)
    Trainer(callbacks=[auditor], devices=2, strategy="ddp", **options).fit(make(), data)
    return [finding.rule for finding in auditor.report.alarms], auditor._next is None


@pytest.mark.parametrize(("make", "said"), [(Healthy, []), (NeverZeroed, ["gradients_not_zeroed"])])
def test_the_second_look_on_two_ranks(on_two_ranks, make, said):
    assert on_two_ranks(looked_at_again, make) == [(said, True)] * 2


class OneRankOverflows(Healthy):
    """In the first two batches one rank's loss is infinite, so that both leave those steps out."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if self.global_rank == 1 and batch_idx < 2 else loss


def scaled():
    auditor = InitAuditor(verbose=False)
    data = TensorDataset(torch.randn(256, 16), torch.randint(3, (256,)))
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    options = {"accelerator": "cpu", "barebones": True, "max_steps": 12, "devices": 2, "strategy": "ddp"}
    Trainer(callbacks=[auditor], plugins=[plugin], **options).fit(OneRankOverflows(), DataLoader(data, 8))
    return [(f.rule, f.severity) for f in auditor.findings], auditor.report is not None


def test_an_overflow_on_one_rank_leaves_none_waiting(on_two_ranks):
    first, second = on_two_ranks(scaled)
    assert first == second
    assert first[1]
