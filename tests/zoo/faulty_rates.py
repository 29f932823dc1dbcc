"""Faulty, second set: rates, clipping and schedules."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR, PolynomialLR

from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.healthy_steps import Lion, stepped
from tests.zoo.nets import adam, adamw, sgd


# ------------------------------------------------------------------------------------------ rates
@faulty("lr_too_high", "nan_loss", twin="h_latent_query", source="a rate of 1 for Adam, where SGD had it")
def f_perceiver_rate_one(case: Case) -> None:
    case.optimizer = adamw(1.0)


@faulty("lr_too_high", twin="h_lion", source="Lion at the rate of SGD: each weight moves by 0.5 per step")
def f_lion_half(case: Case) -> None:
    case.optimizer = lambda model: Lion(model.parameters(), lr=0.5)


@faulty(
    "lr_too_high", "nan_loss", "dead_relu", twin="h_unit_uniform_sgd", source="SGD at 3 in a regression of inputs in [0, 1]"
)
def f_uniform_rate_three(case: Case) -> None:
    case.optimizer = sgd(3.0)


@faulty(
    "lr_too_high", "nan_loss", twin="h_layerwise_rates", source="layer-wise rates grow towards the input: the exponent's sign"
)
def f_layerwise_upside_down(case: Case) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        return torch.optim.Adam(
            [{"params": layer.parameters(), "lr": 2e-2 * 0.05 ** (i - 2)} for i, layer in enumerate(layers)]
        )

    case.optimizer = optimizer


@faulty(
    "lr_too_high", twin="h_deep_he", source="Adam at 0.1, SGD's rate, in ten layers: each update is as large as the weights"
)
def f_deep_rate_for_sgd(case: Case) -> None:
    case.optimizer = adam(0.1)


@faulty(
    "lr_too_low",
    "frozen_by_accident",
    twin="h_deep_he",
    source="fine-tuning's two rates, a thousandth for the body, which is drawn afresh",
)
def f_rates_of_fine_tuning(case: Case) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        *body, head = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
        groups = [{"params": nn.ModuleList(body).parameters(), "lr": 2e-6}, {"params": head.parameters(), "lr": 2e-3}]
        return torch.optim.AdamW(groups)

    case.optimizer = optimizer


@faulty("lr_too_low", twin="h_adadelta", source="Keras' Adadelta: a rate of 0.001, its default there")
def f_adadelta_keras(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adadelta(model.parameters(), lr=1e-3)


@faulty("lr_too_low", twin="h_llama_block", source="1e-7, a rate for continued pretraining")
def f_llama_rate(case: Case) -> None:
    case.optimizer = adamw(1e-7)


@faulty("lr_too_low", twin="h_shapes_sgd", source="Adam's 1e-5 for SGD without momentum")
def f_shapes_rate_tiny(case: Case) -> None:
    case.optimizer = sgd(1e-5, 0.0)


@faulty("lr_too_low", twin="h_deep_he", source="SGD at 3e-6: ten layers whose gradient is large, and hardly move")
def f_deep_rate_of_a_warm_up(case: Case) -> None:
    case.optimizer = sgd(3e-6)


# ------------------------------------------------------------------------------------------ clipping
@faulty("clip_too_small", "lr_too_low", twin="h_regression_sgd", source="a clipping norm that leaves a hundredth under SGD")
def f_clip_for_sums(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 0.01}


@faulty("clip_too_small", "lr_too_low", twin="h_shapes_sgd", source="gradient_clip_val=1e-6, a typo for 1.0")
def f_clip_millionth(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-6}


@faulty("clip_too_small", "lr_too_low", twin="h_unrolled_cell", source="clipping at 0.001 in a recurrent net, by SGD")
def f_cell_clipped_away(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-3}


@faulty(
    "clip_too_small",
    "lr_too_low",
    twin="h_spectra_plain_sgd",
    source="clipping by value at 1e-5, by configure_gradient_clipping",
)
def f_value_clipped_by_hook(case: Case) -> None:
    class Clipping(Supervised):
        def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
            torch.nn.utils.clip_grad_value_(self.parameters(), 1e-5)

    case.module = Clipping


# ------------------------------------------------------------------------------------------ schedules
@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_warm_up_then_polynomial",
    source="LambdaLR given the rate itself: it multiplies, 0.001 times 0.1",
)
def f_lambda_is_a_factor(case: Case) -> None:
    case.scheduler = stepped(LambdaLR, lr_lambda=lambda step: 1e-3 * min(step / 40, 1.0))


@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_polynomial_to_zero",
    source="total_iters counted in epochs: the rate is 0 after six steps",
)
def f_polynomial_over_epochs(case: Case) -> None:
    case.scheduler = stepped(PolynomialLR, total_iters=6, power=2.0)


@faulty("lr_schedule", "lr_too_low", twin="h_pulses", source="gamma=0.5 for each step instead of each epoch", margin=0.08)
def f_halved_each_step(case: Case) -> None:
    case.scheduler = stepped(ExponentialLR, gamma=0.5)


@faulty(
    "lr_schedule",
    "lr_too_high",
    "nan_loss",
    twin="h_poly_loss",
    source="warm-up without an upper end: the rate grows by a half each step",
)
def f_warm_up_without_end(case: Case) -> None:
    case.scheduler = stepped(LambdaLR, lr_lambda=lambda step: 1.0 + step**2 / 50)


@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_llama_block",
    source="cosine with T_max of four steps and eta_min as rate, then constant",
)
def f_cosine_of_four(case: Case) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        cosine = CosineAnnealingLR(optimizer, T_max=4)
        rest = LambdaLR(optimizer, lambda step: 0.0)
        chain = torch.optim.lr_scheduler.SequentialLR(optimizer, [cosine, rest], milestones=[4])
        return {"scheduler": chain, "interval": "step"}

    case.scheduler = schedule


@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_one_cycle_of_sgd",
    source="OneCycleLR over 300 steps, returned without its interval: stepped once an epoch",
    margin=0.05,
)
def f_one_cycle_each_epoch(case: Case) -> None:
    case.scheduler = lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=300)


@faulty(
    "lr_schedule",
    twin="h_one_cycle_of_sgd",
    source="OneCycleLR with the number of epochs for its steps, and stepped at every batch: it raises",
)
def f_one_cycle_of_epochs(case: Case) -> None:
    case.scheduler = stepped(OneCycleLR, max_lr=0.2, total_steps=10)
