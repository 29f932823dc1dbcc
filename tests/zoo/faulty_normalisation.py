"""Faulty: batch norm and dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.healthy_steps import Looking
from tests.zoo.healthy_views import Views
from tests.zoo.nets import conv_block, mlp, plain_deep, weighted

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, NORMS)]


# ------------------------------------------------------------------------------------------ evaluation mode in training
class InEvaluationMode(Supervised):
    """`model.eval()` at the start of each epoch, left over from an experiment."""

    def on_train_epoch_start(self) -> None:
        self.model.eval()


@faulty("bn_eval_in_train", twin="h_deep_bn_conv", source="model.eval() before training: batch norm normalises nothing")
def f_eval_before_training(case: Case) -> None:
    case.module = InEvaluationMode


class NormsInEvaluationMode(Supervised):
    """Batch norm put into evaluation mode as for a pretrained net, but this one is fresh."""

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        for norm in norms(self.model):
            norm.eval()


@faulty(
    "bn_eval_in_train",
    twin="h_raw_behind_batch_norm",
    source="batch norm frozen in evaluation mode on a fresh net with raw inputs",
)
def f_norms_in_eval(case: Case) -> None:
    case.module = NormsInEvaluationMode


class NeverBack(Supervised):
    """Evaluates on the training batch in the middle of a step and does not switch back."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            self.log("train_metric", self.metric.score(self(batch[0]), batch[1]))
        return super().training_step(batch, batch_idx)


@faulty(
    "bn_eval_in_train",
    twin="h_deep_bn_conv",
    source="eval() for a metric inside training_step, train() forgotten",
)
def f_eval_for_a_metric(case: Case) -> None:
    case.module = NeverBack


# ------------------------------------------------------------------------------------------ statistics
@faulty(
    "bn_stats",
    twin="h_raw_behind_batch_norm",
    source="momentum as in Keras (0.99 means slow there): here 1e-4, statistics never arrive",
)
def f_norm_momentum_tiny(case: Case) -> None:
    for norm in norms(case.model):
        norm.momentum = 1e-4  # type: ignore[assignment]


@faulty("bn_stats", twin="h_deep_bn_conv", source="statistics that move by a thousandth per step in a short run of a deep net")
def f_deep_norm_momentum_tiny(case: Case) -> None:
    for norm in norms(case.model):
        norm.momentum = 1e-3  # type: ignore[assignment]


@faulty(
    "bn_stats",
    "bad_bias_init",
    "bias_before_bn",
    twin="h_slow_norms_centred",
    source="biases of 1.5 in front of batch norm, free in training; the slow running mean does not get there",
)
def f_norm_mean_late(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        layer.bias = nn.Parameter(torch.full((layer.out_features,), 1.5))


@faulty("bn_stats", twin="h_batch_norm_unit_weights", source="batches of two: statistics of two samples are noise", margin=0.1)
def f_norm_batches_of_two(case: Case) -> None:
    case.batch_size = 2
    for norm in norms(case.model):
        norm.momentum = 1.0  # type: ignore[assignment]


class FedTwice(Supervised):
    """Each step also feeds noise through the network, whose statistics end up half way between."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self(20 + 20 * torch.randn_like(batch[0]))
        return loss


@faulty("bn_stats", twin="h_conv_bn", source="another kind of batch through the same batch norm in training mode")
def f_norm_fed_twice(case: Case) -> None:
    case.module = FedTwice


class BrightView(Views):
    """Its augmented view is brighter by two standard deviations."""

    brightness = 2.5


@faulty(
    "bn_stats",
    "train_val_mismatch",
    twin="h_mild_view_apart",
    source="Xie et al. 2020: clean and strongly augmented pictures pass the same norms one after the other",
)
def f_bright_view_apart(case: Case) -> None:
    case.module = BrightView


# ------------------------------------------------------------------------------------------ dropout in evaluation
class AlwaysDropped(nn.Module):
    """`F.dropout(x, p)` without `training=self.training`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


def never_off(model: nn.Module) -> None:
    """Write each dropout layer as a bare function of the same rate."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout | nn.Dropout2d):
                setattr(parent, name, AlwaysDropped(child.p))


@faulty(
    "dropout_active_in_eval",
    twin="h_dropout_strong_wide",
    source="PyTorch forum classic: F.dropout is on unless told otherwise",
    margin=0.03,
)
def f_functional_dropout(case: Case) -> None:
    never_off(case.model)


@faulty(
    "dropout_active_in_eval",
    twin="h_regression_dropout",
    source="F.dropout in a regression net: predictions jitter",
    margin=0.08,
)
def f_functional_dropout_regression(case: Case) -> None:
    never_off(case.model)


class KeepsTraining(nn.Module):
    """A `train` method that forgets its argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "KeepsTraining":
        super().train(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@faulty(
    "dropout_active_in_eval", twin="h_gru_dropout", source="train() overridden without its argument: eval() trains", margin=0.05
)
def f_train_ignores_mode(case: Case) -> None:
    case.model = KeepsTraining(case.model)


# ------------------------------------------------------------------------------------------ modes
class StaysInEval(Looking):
    """Forgets to go back to training after the look."""

    def look(self, x: Tensor) -> None:
        self.model.eval()
        with torch.no_grad():
            self.seen = self.model(x)


@faulty(
    "bn_eval_in_train", twin="h_look_in_eval", source="eval() for a look at predictions in training_step, train() forgotten"
)
def f_eval_after_a_look(case: Case) -> None:
    case.module = StaysInEval


# ------------------------------------------------------------------------------------------ too much
@faulty("dropout_too_high", twin="h_digits_sgd", source="DeepCrime: dropout rate changed, to 0.95")
def f_dropout_95(case: Case) -> None:
    case.model = mlp([64, 64, 64, 10], dropout=0.95)


@faulty("dropout_too_high", twin="h_mlp_sgd", source="the probability to keep given where torch wants the one to drop")
def f_keep_probability(case: Case) -> None:
    case.model = mlp([8, 64, 64, 4], dropout=0.9)


@faulty("dropout_too_high", twin="h_regression", source="dropout of 0.9 in a regression net")
def f_regression_dropout(case: Case) -> None:
    case.model = mlp([8, 64, 64, 1], dropout=0.9)


@faulty("dropout_too_high", twin="h_conv", source="nine tenths of the input pixels dropped", margin=0.1)
def f_input_dropout(case: Case) -> None:
    case.model = nn.Sequential(nn.Dropout(0.97), case.model)


@faulty("dropout_too_high", twin="h_channel_dropout_wide", source="the net made narrow, the channel dropout raised to 0.75")
def f_channels_gone(case: Case) -> None:
    case.model = nn.Sequential(
        *conv_block(1, 8, None, nn.ReLU), nn.Dropout2d(0.75), nn.MaxPool2d(2),
        *conv_block(8, 8, None, nn.ReLU), nn.Dropout2d(0.75), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 4, 10),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ waste
@faulty(
    "bias_before_bn",
    twin="h_conv_bn",
    source="Ioffe and Szegedy 2015: a bias in front of batch norm is subtracted again",
    note=True,
)
def f_conv_bias_before_norm(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


@faulty("bias_before_bn", twin="h_batch_norm_mlp", source="linear layers with a bias in front of batch norm", note=True)
def f_linear_bias_before_norm(case: Case) -> None:
    case.model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d)


@faulty("bias_before_bn", twin="h_deep_bn_conv_no_bias", source="ten convolutions with a bias each, all cancelled", note=True)
def f_deep_bias_before_norm(case: Case) -> None:
    case.model = plain_deep(10, norm=nn.BatchNorm2d)
