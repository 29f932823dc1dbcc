"""Healthy, second set: optimisers, schedules and loops out of the ordinary, each of which learns."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, OneCycleLR, PolynomialLR

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import digits, gratings
from tests.zoo.nets import CE, MSE, Lambda, adam, conv_block, mlp, plain_deep, sgd, weighted


def stepped(schedule: Callable[..., Any], **settings: Any) -> Callable[[torch.optim.Optimizer], dict[str, Any]]:
    """A schedule that moves with every step."""
    return lambda optimizer: {"scheduler": schedule(optimizer, **settings), "interval": "step"}


def arcs(seed: int, optimizer: Callable[[nn.Module], torch.optim.Optimizer], **settings: Any) -> Case:
    """The arcs and a small net."""
    given = {"model": mlp([5, 48, 48, 3]), "data": data.arcs(seed)} | CE | settings
    return Case(seed=seed, optimizer=optimizer, **given)


# ------------------------------------------------------------------------------------------ optimisers
class Lion(torch.optim.Optimizer):
    """Chen et al. 2023: the sign of an average of gradients."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.sub_(group["lr"] * (0.9 * average + 0.1 * p.grad).sign())
                    average.lerp_(p.grad, 0.01)
        return loss


@healthy("lr_too_low", "no_update", source="Chen et al. 2023: Lion, an optimiser of one's own")
def h_lion(seed: int) -> Case:
    return arcs(seed, lambda model: Lion(model.parameters(), lr=2e-3))


@healthy("lr_too_high", source="Zeiler 2012: Adadelta at its default rate of 1")
def h_adadelta(seed: int) -> Case:
    return arcs(seed, lambda model: torch.optim.Adadelta(model.parameters(), lr=1.0), max_steps=250)


@healthy("lr_too_high", source="Rprop on the whole data set, eighty steps")
def h_rprop(seed: int) -> Case:
    return arcs(seed, lambda model: torch.optim.Rprop(model.parameters(), lr=1e-2), batch_size=1024, max_steps=80)


@healthy("lr_too_high", source="NAdam with an unusual epsilon and betas")
def h_nadam(seed: int) -> Case:
    return arcs(seed, lambda model: torch.optim.NAdam(model.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-3))


@healthy("lr_too_low", "no_update", source="one learning rate per layer, smaller towards the input")
def h_layerwise_rates(seed: int) -> Case:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        groups = [{"params": layer.parameters(), "lr": 2e-2 * 0.2 ** (2 - i)} for i, layer in enumerate(layers)]
        return torch.optim.Adam(groups)

    return arcs(seed, optimizer, max_steps=260)


@healthy("lr_too_high", "no_update", source="LBFGS with line search on all of a regression's data")
def h_lbfgs_regression(seed: int) -> Case:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=10, line_search_fn="strong_wolfe")

    model = mlp([48, 16, 2], nn.Tanh)
    return Case(seed=seed, model=model, data=data.spectra(seed), optimizer=optimizer, batch_size=1024, max_steps=12, **MSE)


# ------------------------------------------------------------------------------------------ schedules
@healthy("lr_schedule", "no_update", "lr_too_low", source="linear warm-up from 0 over forty steps, then a polynomial decay")
def h_warm_up_then_polynomial(seed: int) -> Case:
    def rate(step: int) -> float:
        return min(step / 40, (1 - step / 250) ** 0.9)

    return arcs(seed, sgd(0.1), scheduler=stepped(LambdaLR, lr_lambda=rate), max_steps=249)


@healthy("lr_schedule", source="Loshchilov and Hutter 2017: cosine with warm restarts")
def h_warm_restarts(seed: int) -> Case:
    return arcs(seed, sgd(0.1), scheduler=stepped(CosineAnnealingWarmRestarts, T_0=50), max_steps=200)


@healthy("lr_schedule", "lr_too_high", source="Smith 2017: a cyclic rate")
def h_cyclic_rate(seed: int) -> Case:
    return arcs(seed, sgd(0.02), scheduler=stepped(CyclicLR, base_lr=0.01, max_lr=0.15, step_size_up=30))


@healthy("lr_schedule", "lr_too_low", source="a polynomial decay to zero at the end of the run, per step")
def h_polynomial_to_zero(seed: int) -> Case:
    return arcs(seed, adam(2e-2), scheduler=stepped(PolynomialLR, total_iters=200, power=2.0))


@healthy("lr_schedule", "lr_too_low", source="Smith and Topin 2019: one cycle, as many steps as the run has")
def h_one_cycle_of_sgd(seed: int) -> Case:
    return arcs(seed, sgd(0.1), scheduler=stepped(OneCycleLR, max_lr=0.2, total_steps=300), max_steps=300)


# ------------------------------------------------------------------------------------------ small steps
@healthy("lr_too_low", source="a wide net, whose weights hardly move though it learns (Chizat et al. 2019: lazy training)")
def h_wide_and_lazy(seed: int) -> Case:
    return arcs(seed, adam(1e-4), model=mlp([5, 1024, 256, 3]), max_steps=200)


@healthy("lr_too_high", source="Adam at 0.05 in a small net: brisk, and harmless where few layers multiply")
def h_brisk_adam(seed: int) -> Case:
    return arcs(seed, adam(0.05), model=mlp([5, 24, 3]))


@healthy("nan_loss", "bad_data", source="counts as shares of their row, none of which is empty")
def h_shares_of_a_row(seed: int) -> Case:
    shares = Lambda(lambda x: 10 * x / x.sum(1, keepdim=True))
    return Case(
        seed=seed,
        model=nn.Sequential(shares, mlp([10, 64, 4])),
        data=data.baskets(seed),
        optimizer=adam(5e-3),
        max_steps=300,
        **CE,
    )


# ------------------------------------------------------------------------------------------ modes and several optimisers
class Looking(Supervised):
    """Looks at a few predictions in eval mode in the first step of each epoch, and goes back to training."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(batch, batch_idx)
        if batch_idx == 0:
            self.look(batch[0][:4])
        return loss

    def look(self, x: torch.Tensor) -> None:
        self.model.eval()
        with torch.no_grad():
            self.seen = self.model(x)
        self.model.train()


@healthy("bn_eval_in_train", source="a look at predictions in eval mode inside the training step, and back")
def h_look_in_eval(seed: int) -> Case:
    model = plain_deep(10, norm=nn.BatchNorm2d)
    return Case(seed=seed, model=model, data=gratings(seed), optimizer=sgd(0.05), max_steps=140, module=Looking, **CE)


class BodyAndHead(Supervised):
    """Manual optimisation with an optimiser for the body and one for the head."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def set_back(self, body: Any, head: Any) -> None:
        body.zero_grad()
        head.zero_grad()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        body, head = self.optimizers()
        self.set_back(body, head)
        self.manual_backward(super().training_step(batch, batch_idx))
        body.step()
        head.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        *body, head = weighted(self.model)
        return [self.make_optimizer(nn.ModuleList(body)), self.make_optimizer(head)]


@healthy(
    "gradients_not_zeroed", "not_in_optimizer", source="manual optimisation, one optimiser for the body and one for the head"
)
def h_body_and_head(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([5, 48, 48, 3]), data=data.arcs(seed), optimizer=sgd(0.07), max_steps=300, module=BodyAndHead, **CE
    )


# ------------------------------------------------------------------------------------------ layers set out of the ordinary
@healthy(
    "bn_stats", "bias_before_bn", source="running statistics that keep 28 % of their start, and nothing that moves the mean"
)
def h_slow_norms_centred(seed: int) -> Case:
    model = mlp([64, 48, 48, 48, 10], norm=partial(nn.BatchNorm1d, momentum=0.025), bias=False)
    return Case(seed=seed, model=model, data=digits(seed), optimizer=adam(3e-3), batch_size=64, max_steps=50, **CE)


@healthy("dropout_too_high", source="channel dropout of 0.5 behind 32 and 48 channels")
def h_channel_dropout_wide(seed: int) -> Case:
    model = nn.Sequential(
        *conv_block(1, 32, None, nn.ReLU), nn.Dropout2d(0.5), nn.MaxPool2d(2),
        *conv_block(32, 48, None, nn.ReLU), nn.Dropout2d(0.5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(48 * 4, 10),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=digits(seed, flat=False), optimizer=adam(4e-3), max_steps=150, **CE)


class Returning(Supervised):
    """Goes on from the best weights so far at the start of each epoch."""

    def on_fit_start(self) -> None:
        self.best, self.lowest = deepcopy(self.model.state_dict()), math.inf

    def on_train_epoch_start(self) -> None:
        self.model.load_state_dict(self.best)

    def on_validation_epoch_end(self) -> None:
        loss = float(self.trainer.callback_metrics["val_loss"])
        if self.is_best(loss):
            self.best, self.lowest = deepcopy(self.model.state_dict()), loss

    def is_best(self, loss: float) -> bool:
        return loss < self.lowest


@healthy("no_update", source="a loop that goes back to the best epoch, at a rate at which many are worse")
def h_returns_to_best(seed: int) -> Case:
    case = arcs(seed, adam(2e-2), max_steps=400)
    case.module = Returning
    return case
