"""Faulty: rates, schedules, clipping, decay, and gradients that pile up."""

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from tests.zoo import data
from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.healthy_loops import Manual
from tests.zoo.healthy_steps import BodyAndHead
from tests.zoo.nets import adam, adamw, convnet, mlp, sgd


def per_step(scheduler: LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


# ------------------------------------------------------------------------------------------ too high
@faulty("lr_too_high", "nan_loss", twin="h_mlp_sgd", source="DeepFD: rate far out of range, classification")
def f_sgd_rate_ten(case: Case) -> None:
    case.optimizer = sgd(10.0)


@faulty(
    "lr_too_high", "nan_loss", twin="h_regression_sgd", source="DeepFD, Stack Overflow 48934338: SGD overflows in a regression"
)
def f_regression_rate_one(case: Case) -> None:
    case.optimizer = sgd(1.0)


@faulty("lr_too_high", "dead_relu", twin="h_conv", source="Adam at 0.5: ReLU units die in a few steps")
def f_adam_rate_half(case: Case) -> None:
    case.optimizer = adam(0.5)


@faulty("lr_too_high", twin="h_transformer", source="a rate of 0.1 for a transformer under AdamW")
def f_transformer_rate(case: Case) -> None:
    case.optimizer = adamw(0.1)


@faulty("lr_too_high", "saturation", twin="h_gru", source="Adam at 1 saturates a recurrent cell")
def f_gru_rate_one(case: Case) -> None:
    case.optimizer = adam(1.0)


@faulty("lr_too_high", twin="h_digits_sgd", source="momentum 0.999 with a rate made for 0.9: a thousand gradients add up")
def f_momentum_too_high(case: Case) -> None:
    case.optimizer = sgd(0.05, momentum=0.999)


# ------------------------------------------------------------------------------------------ too low
@faulty("lr_too_low", twin="h_patient_sgd", source="TheDeepChecker: 1e-6 with SGD")
def f_sgd_rate_millionth(case: Case) -> None:
    case.optimizer = sgd(1e-6)


@faulty("lr_too_low", twin="h_regression", source="Adam at 1e-6: weights move by a ten-thousandth in a whole run")
def f_adam_rate_millionth(case: Case) -> None:
    case.optimizer = adam(1e-6)


@faulty("lr_too_low", twin="h_conv_bn", source="a fine-tuning rate for a net that starts from scratch")
def f_conv_rate_too_low(case: Case) -> None:
    case.optimizer = sgd(2e-5)


@faulty("lr_too_low", twin="h_transformer", source="weight decay and rate swapped in the call")
def f_rate_and_decay_swapped(case: Case) -> None:
    case.optimizer = adamw(1e-6, weight_decay=3e-3)


@faulty("lr_too_low", twin="h_lstm", source="Adadelta's epsilon in place of the rate")
def f_lstm_rate_too_low(case: Case) -> None:
    case.optimizer = adam(3e-6)


# ------------------------------------------------------------------------------------------ schedule
@faulty("lr_schedule", "lr_too_low", twin="h_patient_sgd", source="a schedule made for epochs stepped at every batch")
def f_step_decay_per_batch(case: Case) -> None:
    case.scheduler = lambda optimizer: per_step(StepLR(optimizer, 5, gamma=0.1))


@faulty("lr_schedule", "lr_too_low", twin="h_regression_sgd", source="ExponentialLR per batch instead of per epoch")
def f_exponential_per_batch(case: Case) -> None:
    case.scheduler = lambda optimizer: per_step(ExponentialLR(optimizer, 0.6))


@faulty("lr_schedule", "lr_too_low", "no_update", twin="h_conv_bn", source="warm-up over more steps than the run has")
def f_warm_up_never_ends(case: Case) -> None:
    case.scheduler = lambda optimizer: per_step(LambdaLR(optimizer, lambda step: min(1.0, step / 1_000_000)))


@faulty(
    "lr_schedule",
    "lr_too_low",
    "no_update",
    twin="h_digits_sgd",
    source="Python 2's division: step // warm_up is 0 until it is 1",
)
def f_integer_warm_up(case: Case) -> None:
    case.scheduler = lambda optimizer: per_step(LambdaLR(optimizer, lambda step: float(min(1, step // 500))))


@faulty("lr_schedule", "lr_too_low", twin="h_reduce_on_plateau", source="ReduceLROnPlateau told to maximise a loss")
def f_plateau_wrong_mode(case: Case) -> None:
    def schedule(optimizer: Optimizer) -> dict[str, Any]:
        scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=1e-3, patience=0, min_lr=0.0)
        return {"scheduler": scheduler, "monitor": "val_loss", "interval": "step", "frequency": 5, "strict": False}

    case.trainer = {"val_check_interval": 5, "limit_val_batches": 1}
    case.scheduler = schedule


@faulty("lr_schedule", "lr_too_high", "nan_loss", twin="h_mlp_sgd", source="a factor above 1: the rate grows without end")
def f_growing_rate(case: Case) -> None:
    case.scheduler = lambda optimizer: per_step(ExponentialLR(optimizer, 1.06))


@faulty(
    "lr_schedule",
    "lr_too_low",
    twin="h_cosine_decay",
    source="cosine over the number of epochs, stepped per batch, annealed to zero early and held",
)
def f_cosine_ends_early(case: Case) -> None:
    def schedule(optimizer: Optimizer) -> dict[str, Any]:
        cosine = CosineAnnealingLR(optimizer, 5)
        held = LambdaLR(optimizer, lambda step: 0.0)
        return per_step(torch.optim.lr_scheduler.SequentialLR(optimizer, [cosine, held], [5]))

    case.scheduler = schedule


# ------------------------------------------------------------------------------------------ clipping
@faulty("clip_too_small", "lr_too_low", twin="h_mlp_sgd", source="gradient_clip_val=1e-4 under SGD")
def f_clip_norm_tiny(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-4}


@faulty("clip_too_small", "lr_too_low", twin="h_conv_bn", source="clipping by value at 1e-6")
def f_clip_value_tiny(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-6, "gradient_clip_algorithm": "value"}


@faulty(
    "clip_too_small", "lr_too_low", twin="h_conv", source="a clipping norm of 1e-4 copied from a script that summed its loss"
)
def f_clip_copied(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-4}


class ClipsHard(Supervised):
    """Clips in the hook that Lightning offers, with a bound of its own."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2e-4)


@faulty(
    "clip_too_small", "lr_too_low", twin="h_regression_sgd", source="clip_grad_norm_ in the hook, a bound made for another loss"
)
def f_clip_in_hook(case: Case) -> None:
    case.module = ClipsHard


# ------------------------------------------------------------------------------------------ decay
@faulty("weight_decay_too_strong", twin="h_digits_sgd", source="weight decay of 0.5 with SGD: weights shrink to nothing")
def f_sgd_decay_half(case: Case) -> None:
    case.optimizer = sgd(0.05, weight_decay=0.5)


@faulty("weight_decay_too_strong", twin="h_regression_decay", source="AdamW with a decay of 40")
def f_adamw_decay_forty(case: Case) -> None:
    case.optimizer = adamw(5e-3, weight_decay=40.0)


class PenalisedTooMuch(Supervised):
    """A penalty on all weights that outweighs the loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + 0.3 * sum(p.square().sum() for p in self.model.parameters())


@faulty("weight_decay_too_strong", twin="h_mlp_sgd", source="an L2 penalty in the loss that outweighs it")
def f_penalty_outweighs(case: Case) -> None:
    case.module = PenalisedTooMuch


@faulty("weight_decay_too_strong", twin="h_lstm", source="Adam's coupled decay of 0.3 in a recurrent net")
def f_lstm_decay(case: Case) -> None:
    case.optimizer = adam(6e-3, weight_decay=0.3)


# ------------------------------------------------------------------------------------------ piling up
class NeverZeroed(Supervised):
    """Gradients are never set back."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        pass


@faulty(
    "gradients_not_zeroed",
    "lr_too_high",
    "nan_loss",
    twin="h_regression_sgd",
    source="Humbatova et al. 2020: optimizer_zero_grad overridden and empty",
)
def f_never_zeroed_regression(case: Case) -> None:
    case.module = NeverZeroed


@faulty("gradients_not_zeroed", twin="h_deep_bn_conv", source="gradients not reset, ten convolutions with batch norm")
def f_never_zeroed_conv(case: Case) -> None:
    case.module = NeverZeroed


@faulty("gradients_not_zeroed", twin="h_digits_sgd", source="gradients not reset, plain MLP")
def f_adding_up_gradients(case: Case) -> None:
    case.module = NeverZeroed


class ManualWithoutZero(Manual):
    """Manual optimisation whose zero_grad was lost in a merge."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(Supervised.training_step(self, batch, batch_idx))
        self.optimizers().step()


@faulty("gradients_not_zeroed", twin="h_manual_optimisation", source="manual optimisation without zero_grad")
def f_manual_never_zeroed(case: Case) -> None:
    case.module = ManualWithoutZero


class ZeroedPerEpoch(Supervised):
    """Gradients set back at the start of an epoch only."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if batch_idx == 0:
            optimizer.zero_grad()


@faulty("gradients_not_zeroed", twin="h_autoencoder_sgd", source="zero_grad once per epoch")
def f_zeroed_per_epoch(case: Case) -> None:
    case.module = ZeroedPerEpoch


class HeadNotSetBack(BodyAndHead):
    """Sets back the gradients of the first optimiser only."""

    def set_back(self, body: Any, head: Any) -> None:
        body.zero_grad()


@faulty("gradients_not_zeroed", twin="h_body_and_head", source="two optimisers, zero_grad of the first only", margin=0.05)
def f_head_never_zeroed(case: Case) -> None:
    case.module = HeadNotSetBack


# ------------------------------------------------------------------------------------------ too little data
def starve(case: Case, rows: int, noise: float) -> None:
    """Keep the first rows, and replace a share of their labels by random ones."""
    x, y = case.data[0][:rows]
    wrong = torch.rand(len(y), generator=data.rng(98, case.seed)) < noise
    other = y[torch.randperm(len(y), generator=data.rng(99, case.seed))]
    case.data = (torch.utils.data.TensorDataset(x, torch.where(wrong, other, y)), case.data[1])


@faulty(
    "overfit_no_regularisation",
    twin="h_noisy_digits_regularised",
    source="TheDeepChecker: a large net, few samples with noisy labels, no regularisation",
)
def f_overfit_noisy_digits(case: Case) -> None:
    case.model, case.optimizer = mlp([64, 512, 512, 10]), adam(3e-3)
    starve(case, 120, 0.3)


@faulty(
    "overfit_no_regularisation",
    twin="h_mlp_sgd",
    source="DeepCrime: most of the training data deleted, a wide net, many epochs",
)
def f_overfit_blobs(case: Case) -> None:
    case.model, case.optimizer, case.max_steps = mlp([8, 256, 256, 4]), adam(3e-3), 300
    starve(case, 64, 0.25)


@faulty("overfit_no_regularisation", twin="h_conv_average", source="forty noisy pictures and a wide conv net")
def f_overfit_pictures(case: Case) -> None:
    case.model, case.optimizer = convnet(width=24), adam(3e-3)
    case.data = data.replace(data.gratings(case.seed, noise=1.5), 0, lambda x: x)
    starve(case, 40, 0.2)
    case.max_steps = 150
