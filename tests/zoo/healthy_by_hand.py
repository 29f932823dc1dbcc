"""Healthy: steps that a loop takes by hand, tables that also read out, and columns in which numbers are missing."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.nets import CE, MSE, Transformer, adamw, convnet, mlp, sgd


class FourToAStep(Supervised):
    """Gradients of four batches for each step, each divided by `divisor`."""

    automatic_optimization = False
    divisor = 4

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / self.divisor)
        if batch_idx % 4 == 3:
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            optimizer.step()
            optimizer.zero_grad()


@healthy("loss_reduction", "lr_too_low", source="a step for every fourth batch of 16, each mean divided by four")
def h_manual_mean_of_four(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 64, 64, 10]), data=data.digits(seed), batch_size=16, optimizer=sgd(0.05), max_steps=150,
        module=FourToAStep, **CE,
    )  # fmt: skip


class SumOverTheStep(FourToAStep):
    """The divisor is the number of samples of a whole step."""

    divisor = 64


@healthy("loss_reduction", source="sums over four batches of 16, divided by the 64 samples of a step")
def h_sum_over_four_batches(seed: int) -> Case:
    case = h_manual_mean_of_four(seed)
    case.module = SumOverTheStep
    case.loss = lambda output, target: F.cross_entropy(output, target, reduction="sum")
    return case


class ClippedByHand(Supervised):
    """Each element of the gradient is clipped between backward and step."""

    automatic_optimization = False
    most = 0.02

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.change_gradients()
        optimizer.step()

    def change_gradients(self) -> None:
        torch.nn.utils.clip_grad_value_(self.parameters(), self.most)


@healthy("clip_too_small", "lr_too_low", source="clip_grad_value_ by hand at 0.02, which binds at first")
def h_value_clip_by_hand(seed: int) -> Case:
    return Case(
        seed=seed, model=convnet(), data=data.gratings(seed), optimizer=sgd(0.05), max_steps=200, module=ClippedByHand, **CE
    )


class UnitGradient(ClippedByHand):
    """Each step has the length of the rate, whatever the gradient's, as of a loss that is scaled by a thousand."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        plain, self.loss_fn = self.loss_fn, lambda output, target: 1000 * plain(output, target)
        super().training_step(batch, batch_idx)
        self.loss_fn = plain

    def change_gradients(self) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        for gradient in gradients:
            gradient.div_(norm)


@healthy("clip_too_small", "lr_too_low", source="normalised gradient descent by hand, whose gradients are of length 1")
def h_manual_unit_gradient(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=sgd(0.02),
        max_steps=300,
        module=UnitGradient,
        **CE,
    )


# ------------------------------------------------------------------------------------------ tables that also read out
class TiedLanguage(Transformer):
    """A causal transformer that reads out with its embedding (Press and Wolf 2017), by a product with the normalised states."""

    scale = 1.0

    def __init__(self, std: float = 0.02, width: int = 64) -> None:
        super().__init__(vocabulary=40, classes=40, width=width, dropout=0.0, causal=True, per_token=True)
        del self.head
        nn.init.normal_(self.embed.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.norm(self.encoder(self.embed(x) + self.position, mask=mask, is_causal=True))
        return (self.scale * hidden @ self.embed.weight.T).transpose(1, 2)


@healthy("init_exploding", "bad_gain", source="Radford et al. 2019: a tied table drawn with a std of .02")
def h_tied_table_read_out(seed: int) -> Case:
    words = data.next_token(seed, n=1200, vocabulary=40)
    return Case(seed=seed, model=TiedLanguage(), data=words, optimizer=adamw(5e-4), max_steps=60, **CE)


@healthy(
    "init_exploding", "bad_gain", source="Raffel et al. 2020: a tied table of unit variance, states scaled by 1 / sqrt(width)"
)
def h_tied_table_scaled_down(seed: int) -> Case:
    case = h_tied_table_read_out(seed)
    case.model = TiedLanguage(std=1.0)
    case.model.scale = 64**-0.5
    return case


# ------------------------------------------------------------------------------------------ codes for what is missing
class Masking(nn.Module):
    """An MLP that takes -999 for what it means: nothing is known."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.masked_fill(x == -999, 0.0))
        return out


@healthy("bad_data", "unnormalised_input", "lr_too_high", source="-999 for what is missing in a column, masked in the network")
def h_codes_for_missing_in_a_column(seed: int) -> Case:
    def code(x: Tensor) -> Tensor:
        missing = (torch.rand(x.shape, generator=data.rng(1201, seed)) < 0.03) & (torch.arange(x.shape[1]) == 5)
        return x.masked_fill(missing, -999.0)

    return Case(
        seed=seed, model=Masking(mlp([8, 64, 64, 1])), data=data.replace(data.surface(seed), 0, code), optimizer=adamw(3e-3),
        max_steps=250, **MSE,
    )  # fmt: skip


@healthy("bad_data", "lr_too_high", source="a column of heavy tails, as amounts have them, in front of a batch norm")
def h_heavy_tailed_column(seed: int) -> Case:
    def stretch(x: Tensor) -> Tensor:
        return torch.cat([x, (3 * torch.randn(len(x), 1, generator=data.rng(1202, seed))).exp()], 1)

    return Case(
        seed=seed, model=nn.Sequential(nn.BatchNorm1d(9), mlp([9, 64, 64, 1])), optimizer=adamw(3e-3), max_steps=250,
        data=data.replace(data.surface(seed), 0, stretch), **MSE,
    )  # fmt: skip


@healthy(
    "bad_data",
    "unnormalised_input",
    source="a tenth of a table is missing, and the mean stands there; amounts that are often nothing; a clip",
)
def h_imputed_columns(seed: int) -> Case:
    def impute(x: Tensor) -> Tensor:
        missing = torch.rand(x.shape, generator=data.rng(1203, seed)) < 0.1
        amount = torch.where(x[:, :1] > -0.5, (2 * x[:, :1]).exp(), 0.0)
        return torch.cat([x.masked_fill(missing, 0.0).clamp(max=1.0), (amount - amount.mean()) / amount.std()], 1)

    return Case(
        seed=seed, model=mlp([9, 64, 64, 1]), optimizer=adamw(3e-3), max_steps=250,
        data=data.replace(data.surface(seed), 0, impute), **MSE,
    )  # fmt: skip
