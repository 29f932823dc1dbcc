"""Healthy, held out: ways of training - mixing, averaging, scaling, scheduling, several optimisers and losses."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR
from torch.optim.swa_utils import AveragedModel, update_bn

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, curve, digits, gratings, several, surface
from tests.zoo.more_data import centred, friedman, shapes
from tests.zoo.nets import CE, MSE, ResidualMLP, ResNet, adam, adamw, convnet, mlp, sgd


class Mixup(Supervised):
    """Two rows and their labels in one, by a share from Beta(0.4, 0.4)."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        share, other = torch.distributions.Beta(0.4, 0.4).sample().item(), torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[other])
        loss = share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[other])
        self.log("train_loss", loss)
        return loss


@healthy("batch_mixing", "labels_broken", "train_val_mismatch", source="Zhang 2018, mixup: the training loss stays high")
def h_mixup_of_digits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 96, 96, 10]), data=digits(seed), **CE, module=Mixup, optimizer=adamw(3e-3), max_steps=260
    )


class CutMix(Supervised):
    """A random rectangle comes from another picture, the label by its area; in half of the batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if torch.rand(()) < 0.5:
            loss = self.loss_fn(self(x), y)
        else:
            size, other = x.shape[-1], torch.randperm(len(x))
            (top, left), (h, w) = torch.randint(size - 4, (2,)).tolist(), torch.randint(2, 7, (2,)).tolist()
            x = x.clone()
            x[:, :, top : top + h, left : left + w] = x[other, :, top : top + h, left : left + w]
            cut = (min(top + h, size) - top) * (min(left + w, size) - left) / size**2
            output = self(x)
            loss = (1 - cut) * self.loss_fn(output, y) + cut * self.loss_fn(output, y[other])
        self.log("train_loss", loss)
        return loss


@healthy("batch_mixing", "labels_broken", source="Yun 2019, CutMix on a small ResNet")
def h_cutmix_of_gratings(seed: int) -> Case:
    model = ResNet(norm=lambda width: nn.GroupNorm(2, width))
    return Case(seed=seed, model=model, data=gratings(seed, 1152), **CE, module=CutMix, optimizer=adam(3e-3), max_steps=240)


class Averaged(Supervised):
    """Validates with a moving average of the weights."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        keep = min(0.98, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)

    def forward(self, *inputs: Tensor) -> Any:
        return (self.model if self.training else self.average)(*inputs)


@healthy("frozen_by_accident", "not_in_optimizer", source="Tarvainen 2017: a moving average of the weights is what counts")
def h_moving_average_of_weights(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], act=nn.SiLU), data=surface(seed, 3000), **MSE, module=Averaged, optimizer=adam(5e-3),
        frozen=["average.*"], max_steps=300,
    )  # fmt: skip


class Stochastic(Supervised):
    """Stochastic weight averaging from step 120 on, at a constant rate; validates with the average once there is one."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.average, self.rows = AveragedModel(self.model).requires_grad_(False), case.data[0].tensors[0]

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step >= 120 and self.global_step % 10 == 0:
            self.average.update_parameters(self.model)

    def on_validation_start(self) -> None:
        if self.average.n_averaged > 0:
            update_bn(self.rows.split(128), self.average)
            self.average.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return (self.model if self.training or self.average.n_averaged == 0 else self.average)(*inputs)


@healthy("frozen_by_accident", "bn_stats", source="Izmailov 2018, SWA: the statistics of the average are counted afterwards")
def h_swa_with_norms(seed: int) -> Case:
    model = mlp([64, 64, 64, 10], norm=nn.BatchNorm1d, bias=False)
    return Case(
        seed=seed, model=model, data=digits(seed), **CE, module=Stochastic, optimizer=sgd(0.05), frozen=["average.*"], max_steps=240
    )


class Sharpness(Supervised):
    """Climb a little, take the gradient there, step from where one was."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss_fn(self(x), y))
        ps = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in ps]).norm() + 1e-12
        climbs = [0.05 * p.grad / norm for p in ps]
        with torch.no_grad():
            for p, climb in zip(ps, climbs, strict=True):
                p.add_(climb)
        optimizer.zero_grad()
        loss = self.loss_fn(self(x), y)
        self.manual_backward(loss)
        with torch.no_grad():
            for p, climb in zip(ps, climbs, strict=True):
                p.sub_(climb)
        optimizer.step()
        self.log("train_loss", loss.detach())


@healthy("lr_too_high", "gradients_not_zeroed", source="Foret 2021, SAM: two passes for a step")
def h_climb_before_each_step(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed, 2400), **CE, module=Sharpness, optimizer=sgd(0.05), max_steps=280
    )


class Lars(Optimizer):
    """Layer-wise rates: the norm of the weights by that of the gradient."""

    def __init__(self, params: Any, lr: float, trust: float = 0.02, momentum: float = 0.9, decay: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr, "trust": trust, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                g, rate = p.grad, 0.1
                if p.ndim > 1:
                    g = g + group["decay"] * p
                    rate = group["trust"] * (p.norm() / (g.norm() + 1e-9)).item()
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(group["momentum"]).add_(g, alpha=rate * group["lr"])
                p.sub_(v)
        return loss


@healthy("lr_too_high", source="You 2017, LARS in large batches: a rate near one")
def h_lars_in_batches_of_128(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 96, 10], norm=nn.BatchNorm1d, bias=False), data=digits(seed), **CE,
        optimizer=lambda model: Lars(model.parameters(), 0.5), batch_size=128, max_steps=160,
    )  # fmt: skip


@healthy("gradients_not_zeroed", "lr_schedule", source="four batches of eight for a step, everyday")
def h_four_times_eight(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed, 2400), **CE, optimizer=adam(4e-3), batch_size=8,
        trainer={"accumulate_grad_batches": 4}, max_steps=260,
    )  # fmt: skip


@healthy("lr_too_high", "lr_schedule", source="Smith 2018, one cycle up to a high rate, ResNet on pictures")
def h_one_cycle_up_and_down(seed: int) -> Case:
    def schedule(optimizer: Optimizer) -> dict[str, Any]:
        return {"scheduler": OneCycleLR(optimizer, 0.2, total_steps=201), "interval": "step"}

    return Case(
        seed=seed, model=ResNet(channels=3), data=centred(shapes(seed, 1080)), **CE, optimizer=sgd(0.02, weight_decay=5e-4),
        scheduler=schedule, max_steps=200,
    )  # fmt: skip


@healthy("lr_schedule", "lr_too_high", source="Loshchilov 2017: cosine with warm restarts, the loss jumps at each")
def h_cosine_that_restarts(seed: int) -> Case:
    def schedule(optimizer: Optimizer) -> dict[str, Any]:
        return {"scheduler": CosineAnnealingWarmRestarts(optimizer, 40, 2, 1e-4), "interval": "step"}

    return Case(
        seed=seed, model=mlp([64, 96, 10]), data=digits(seed), **CE, optimizer=sgd(0.1), scheduler=schedule, max_steps=280
    )


@healthy("lr_too_high", "data_not_shuffled", source="L-BFGS with the whole table as one batch, as for small scientific problems")
def h_lbfgs_whole_table(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([1, 24, 24, 1], act=nn.Tanh), data=curve(seed, 900), **MSE, batch_size=600, shuffle=False,
        optimizer=lambda model: torch.optim.LBFGS(model.parameters(), 1.0, max_iter=8, line_search_fn="strong_wolfe"), max_steps=40,
    )  # fmt: skip


class Alternating(Supervised):
    """Body by Adam at each step, head by SGD at every second one."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        body, head = self.optimizers()
        loss = self.loss_fn(self(x), y)
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(body, 5.0, "norm")
        body.step()
        if batch_idx % 2 == 0:
            head.step()
        self.log("train_loss", loss.detach())

    def configure_optimizers(self) -> Any:
        body = torch.optim.Adam(self.model[:-1].parameters(), 3e-3)
        return body, torch.optim.SGD(self.model[-1].parameters(), 0.05, momentum=0.9)


@healthy("not_in_optimizer", "no_update", source="two optimisers by hand at different paces, as in actor and critic")
def h_two_paces(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 4]), data=blobs(seed, 2400), **CE, module=Alternating, optimizer=adam(3e-3), max_steps=500
    )


class Weighed(Supervised):
    """Learned weights of three tasks (Kendall 2018); they are parameters of the module, not of the net."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.log_var = nn.Parameter(torch.zeros(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        errors = (self(batch[0]) - batch[1]).square().mean(0)
        loss = (errors * (-self.log_var).exp() + self.log_var).sum() / 2
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 4e-3)


@healthy("loss_sign", "no_update", source="Kendall 2018: uncertainties weigh the tasks, the sum falls below zero")
def h_three_tasks_of_kendall(seed: int) -> Case:
    model = ResidualMLP(8, 48, 3, 2)
    return Case(seed=seed, model=model, data=several(seed, 2400), **MSE, module=Weighed, optimizer=adam(4e-3), max_steps=260)


class ScaledTarget(nn.Module):
    """Knows mean and spread of the target from the training set and answers in its units."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", y.mean(0))
        self.register_buffer("spread", y.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.spread * self.net(rescaled(x))


def rescaled(x: Tensor) -> Tensor:
    """Uniform inputs in [0, 1] to about unit variance."""
    return 3.46 * (x - 0.5)


@healthy("unnormalised_target", "unnormalised_input", source="inputs and outputs are scaled inside the net, loss by the variance")
def h_scaled_inside(seed: int) -> Case:
    data = friedman(seed, 2400)
    spread = data[0].tensors[1].var()
    return Case(
        seed=seed, model=ScaledTarget(mlp([8, 64, 64, 1]), data[0].tensors[1]), data=data, metric="r2",
        loss=lambda output, target: F.mse_loss(output, target) / spread, optimizer=adam(4e-3), max_steps=280,
    )  # fmt: skip


@healthy("wrong_loss", source="a convnet with batch norm and Adam, smoothing of labels at 0.1")
def h_smoothed_labels(seed: int) -> Case:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    model = convnet(3, 10, 4, 16, norm=nn.BatchNorm2d, bias=False)
    return Case(
        seed=seed, model=model, data=centred(shapes(seed, 1440)), loss=loss, metric="accuracy", optimizer=adamw(2e-3), max_steps=260
    )
