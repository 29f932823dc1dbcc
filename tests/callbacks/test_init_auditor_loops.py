"""The audit of loops as they occur: nothing crashes, and nothing false is said."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos import Transformer
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import InitAuditor
from tests.diagnosis.rules.looking import mlp

QUIET: dict[str, Any] = {"barebones": True, "accelerator": "cpu", "devices": 1}


def loader(rows: int = 128, batch_size: int = 32) -> DataLoader:
    g = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(rows, 16, generator=g), torch.randint(0, 4, (rows,), generator=g)), batch_size)


class Classifier(LightningModule):
    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(16, 64, 64, 4) if net is None else net

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class NothingReturned(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch))
        optimizer.step()


class WithClosures(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


class NegativeLoss(Classifier):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) - 100


class Integers(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 4)))

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net((batch[0].abs() * 20).long().clamp_max(49)), batch[1])


class SeveralLosses(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.body, self.first, self.second = mlp(16, 64, 64), nn.Linear(64, 4), nn.Linear(64, 16)

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        hidden = self.body(batch[0]).relu()
        loss = F.cross_entropy(self.first(hidden), batch[1]) + 0.1 * F.mse_loss(self.second(hidden), batch[0])
        return {"loss": loss}


class BuiltLater(Classifier):
    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.later: nn.Module | None = None

    def configure_model(self) -> None:
        if self.later is None:
            self.later = mlp(16, 64, 4)

    def training_step(self, batch: Any) -> Tensor:
        assert self.later is not None
        return F.cross_entropy(self.later(batch[0]), batch[1])


class Adversarial(LightningModule):
    """The order of Lightning's tutorial: the generator first, gradients cleared after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(*mlp(8, 64, 16, act=nn.LeakyReLU), nn.Tanh())
        self.discriminator = mlp(16, 64, 1, act=nn.LeakyReLU)

    def training_step(self, batch: Any) -> None:
        of_generator, of_discriminator = self.optimizers()
        z = torch.randn(len(batch[0]), 8)
        self.toggle_optimizer(of_generator)
        self.manual_backward(F.softplus(-self.discriminator(self.generator(z))).mean())
        of_generator.step()
        of_generator.zero_grad()
        self.untoggle_optimizer(of_generator)
        self.toggle_optimizer(of_discriminator)
        fake = self.discriminator(self.generator(z).detach())
        self.manual_backward(F.softplus(-self.discriminator(batch[0])).mean() + F.softplus(fake).mean())
        of_discriminator.step()
        of_discriminator.zero_grad()
        self.untoggle_optimizer(of_discriminator)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=2e-4) for part in (self.generator, self.discriminator)]


class GradientPenalty(Adversarial):
    """The discriminator's gradient at points in between is part of its loss."""

    def training_step(self, batch: Any) -> None:
        of_generator, of_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(batch[0]), 8))
        between = (0.5 * batch[0] + 0.5 * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        of_discriminator.zero_grad()
        apart = self.discriminator(fake.detach()).mean() - self.discriminator(batch[0]).mean()
        self.manual_backward(apart + 10 * (slope.norm(dim=1) - 1).square().mean())
        of_discriminator.step()
        of_generator.zero_grad()
        self.manual_backward(-self.discriminator(fake).mean())
        of_generator.step()


class SelfDistilled(LightningModule):
    """Its target network is a copy that runs under `no_grad`, held by the optimiser all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.predictor = mlp(16, 64, 16), mlp(16, 32, 16)
        self.target = copy.deepcopy(self.online)

    def training_step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            goal = self.target(batch[0] + 0.1 * torch.randn_like(batch[0]))
        return -F.cosine_similarity(self.predictor(self.online(batch[0])), goal).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Quantised(LightningModule):
    """A codebook with straight-through gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.codes = mlp(16, 32, 8), mlp(8, 32, 16), nn.Embedding(32, 8)

    def training_step(self, batch: Any) -> Tensor:
        z = self.encoder(batch[0])
        chosen = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        passed = z + (chosen - z).detach()
        commitment = F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(z, chosen.detach())
        return F.mse_loss(self.decoder(passed), batch[0]) + commitment

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Velocity(LightningModule):
    """Flow matching: the target is noise minus data, which the network has read in part."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(17, 64, 64, 16, act=nn.SiLU)

    def training_step(self, batch: Any) -> Tensor:
        x, noise, t = batch[0], torch.randn_like(batch[0]), torch.rand(len(batch[0]), 1)
        return F.mse_loss(self.net(torch.cat([(1 - t) * x + t * noise, t], 1)), noise - x)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Rewarded(Classifier):
    """Policy gradient with random advantages: labels are actions, good and bad ones."""

    def training_step(self, batch: Any) -> Tensor:
        chosen = self.net(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]
        return -(chosen * torch.randn(len(chosen))).mean()


class LanguageModel(LightningModule):
    """Lightning's demo transformer on made-up tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer(vocab_size=50, ninp=16, nhid=32, nhead=2, nlayers=1)

    def training_step(self, batch: Any) -> Tensor:
        tokens = (batch[0].abs() * 20).long().clamp_max(49)
        inputs, target = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return F.nll_loss(self.net(inputs, target), target.view(-1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


LOOPS: list[Callable[[], LightningModule]] = [
    Classifier, NothingReturned, WithClosures, NegativeLoss, Integers, SeveralLosses, BuiltLater, Adversarial, GradientPenalty,
    SelfDistilled, Quantised, Velocity, Rewarded, LanguageModel,
]  # fmt: skip


def audited(module: LightningModule, data: DataLoader | None = None, **settings: Any) -> InitAuditor:
    auditor = InitAuditor(verbose=False)
    Trainer(callbacks=[auditor], **QUIET | {"max_steps": 12} | settings).fit(module, data)
    assert auditor.report is not None
    return auditor


@pytest.mark.filterwarnings("error:.*training goes on")
@pytest.mark.filterwarnings("error:.*was skipped")
@pytest.mark.parametrize("make", LOOPS)
def test_healthy_loops_are_silent(make: Callable[[], LightningModule]) -> None:
    torch.manual_seed(3)
    assert audited(make(), loader()).report.alarms == []


@pytest.mark.filterwarnings("error:.*training goes on")
@pytest.mark.parametrize("make", [BoringModel, ManualOptimBoringModel])
def test_demo_models_are_silent(make: Callable[[], LightningModule]) -> None:
    assert audited(make()).report.alarms == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_small_batches_are_silent(batch_size: int) -> None:
    assert audited(Classifier(), loader(batch_size=batch_size)).report.alarms == []


def test_accumulation_is_silent() -> None:
    assert audited(Classifier(), loader(batch_size=8), accumulate_grad_batches=8, max_steps=4).report.alarms == []
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


class StepForgotten(NothingReturned):
    def training_step(self, batch: Any) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(Classifier.training_step(self, batch))


class NeverZeroed(Classifier):
    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        pass


class ClearedBeforeStep(NothingReturned):
    def training_step(self, batch: Any) -> None:
        optimizer = self.optimizers()
        self.manual_backward(Classifier.training_step(self, batch))
        optimizer.zero_grad()
        optimizer.step()


class WarmUp(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, step - 8) / 100)
        return [optimizer], [{"scheduler": ramp, "interval": "step"}]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (StepForgotten, ["no_update"]),
        (ClearedBeforeStep, ["no_update"]),
        (NeverZeroed, ["gradients_not_zeroed"]),
        (WarmUp, []),
    ],
)
def test_the_second_look(make: Callable[[], LightningModule], said: list[str]) -> None:
    auditor = audited(make(), loader(), max_steps=-1, max_epochs=3)
    assert [finding.rule for finding in auditor.report.alarms] == said


def test_two_looks_leave_nothing_behind() -> None:
    module = Classifier()
    auditor = audited(module, loader())
    assert auditor._next is None
    assert auditor._evidence is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
