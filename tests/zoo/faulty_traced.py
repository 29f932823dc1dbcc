"""Faulty: what only the traced step shows - results thrown away, samples, towers and numbers that teach nobody."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from tests.zoo.case import Case, faulty
from tests.zoo.healthy_traced import Autoencoding, ClassToken, Halves, Raters, TwoAims, Watched
from tests.zoo.nets import mlp


# ------------------------------------------------------------------------------------------ activations
class ThrownAway(Watched):
    """The rectifier's result goes nowhere."""

    def act(self, x: Tensor) -> Tensor:
        F.relu(x)
        return x


@faulty("missing_activation", twin="h_firing_counted", source="F.relu(x) without 'x =' in front")
def f_result_thrown_away(case: Case) -> None:
    case.model = ThrownAway()


@faulty("wrong_hidden_activation", "init_vanishing", twin="h_memory_lookup", source="softmax and dropout between dense layers")
def f_softmax_then_dropout(case: Case) -> None:
    layers = [part for _ in range(2) for part in (nn.Linear(64, 64), nn.Softmax(1), nn.Dropout(0.1))]
    case.model = nn.Sequential(nn.Linear(8, 64), nn.Softmax(1), nn.Dropout(0.1), *layers, nn.Linear(64, 4))


# ------------------------------------------------------------------------------------------ cuts
class Sampled(Autoencoding):
    """`sample` in place of `rsample`."""

    def draw(self, code: Normal) -> Tensor:
        return code.sample()


@faulty("detached_subgraph", twin="h_latent_reparametrised", source="PyTorch forum: Normal.sample() has no gradient")
def f_latent_sampled(case: Case) -> None:
    case.module = Sampled


class ByHand(Autoencoding):
    """Mean plus noise, inside of no_grad."""

    @torch.no_grad()
    def draw(self, code: Normal) -> Tensor:
        return code.mean + code.stddev * torch.randn_like(code.mean)


@faulty("detached_subgraph", twin="h_latent_reparametrised", source="the sampling helper is decorated with no_grad")
def f_latent_without_gradients(case: Case) -> None:
    case.module = ByHand


class OneLearns(Halves):
    """The second tower runs as a momentum encoder would, without the momentum."""

    @torch.no_grad()
    def code(self, x: Tensor) -> Tensor:
        return self.lower(x)


@faulty("detached_subgraph", twin="h_two_halves", source="MoCo's key encoder copied without its update", margin=0.05)
def f_half_without_gradients(case: Case) -> None:
    case.model = OneLearns()


class ThroughData(Raters):
    """Normalises the tables' `.data`."""

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.users.data, self.items.data


@faulty("detached_subgraph", "no_update", twin="h_normalised_tables", source="embeddings read through .data")
def f_tables_through_data(case: Case) -> None:
    case.model = ThroughData()


class OnlyLogged(TwoAims):
    """The second loss is added as a number."""

    def second(self, value: Tensor) -> Any:
        return value.item()


@faulty("detached_subgraph", "no_update", twin="h_two_aims", source="PyTorch forum: losses summed with .item()")
def f_second_aim_as_number(case: Case) -> None:
    case.module = OnlyLogged


# ------------------------------------------------------------------------------------------ mixing
class Viewed(nn.Module):
    """A GRU in torch's default layout, and a view where a transposition was meant."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, t, f = x.shape
        return self.head(self.rnn(x.reshape(t, b, f))[0][-1])


@faulty("batch_mixing", twin="h_gru_time_first", source="reshape(time, batch, features) in place of transpose")
def f_reshaped_to_time_first(case: Case) -> None:
    case.model = Viewed()


class AcrossSamples(ClassToken):
    """Forgets the transposition."""

    def mix(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)


@faulty("batch_mixing", "init_vanishing", twin="h_class_token", source="TransformerEncoderLayer without batch_first")
def f_class_token_across_samples(case: Case) -> None:
    case.model = AcrossSamples()


# ------------------------------------------------------------------------------------------ attention, dropout, batch norm
@faulty("saturation", "bad_gain", "init_exploding", twin="h_attention_by_hand", source="N(0, 1) projections", margin=0.03)
def f_attention_of_one(case: Case) -> None:
    nn.init.normal_(case.model.qkv.weight, std=1.5)  # type: ignore[union-attr, arg-type]
    case.model.scores = lambda q, k: q @ k.transpose(1, 2)


@faulty("dropout_too_high", twin="h_class_token", source="dropout of .8 all over a transformer")
def f_dropout_all_over(case: Case) -> None:
    case.model = ClassToken(dropout=0.8)


@faulty("dropout_too_high", twin="h_two_wide_dropouts", source="dropout of .75 in each of five narrow layers")
def f_dropout_in_five(case: Case) -> None:
    case.model = mlp([64, 48, 48, 48, 48, 48, 10], dropout=0.75)


@faulty("bn_stats", twin="h_norm_over_sixteen", source="batches of two, for want of memory")
def f_norm_over_pairs(case: Case) -> None:
    case.batch_size = 2
