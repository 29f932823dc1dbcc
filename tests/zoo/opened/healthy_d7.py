"""Sequences: convolutions, bags, prompts, patches."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import rng, split, standardise, words
from tests.zoo.more_data import pulses
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, trainable


# ------------------------------------------------------------------------------------------ convolutions, bags, prompts
class TextCNN(nn.Module):
    """Kim 2014: filters of several widths, max over time, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.filters = nn.ModuleList(nn.Conv1d(24, 16, k, padding=k // 2) for k in (1, 3, 5))
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(48, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.head(self.dropout(torch.cat([F.relu(f(x)).amax(2) for f in self.filters], 1)))


@healthy(source="everyday: Kim's convolutional sentence classifier with dropout")
def h_kim_sentences(seed: int) -> Case:
    g = rng(783, seed)
    y, x = torch.randint(3, (2400,), generator=g), torch.randint(30, (2400, 12), generator=g)
    at = torch.randint(10, (2400,), generator=g)
    phrase = torch.tensor([[3, 7, 11], [7, 3, 19], [11, 25, 3]])
    for j in range(3):
        x[torch.arange(2400), at + j] = phrase[y, j]
    return Case(seed=seed, model=TextCNN(), data=split(x, y), optimizer=adam(2e-3), max_steps=250, batch_size=64, **CE)


class Dilated(nn.Module):
    """Causal convolutions of growing dilation with gates and skips: a small WaveNet that forecasts each next step."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(4))
        self.out = nn.Sequential(nn.SiLU(), nn.Conv1d(width, width, 1), nn.SiLU(), nn.Conv1d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.front(x[:, None]), 0
        for gated, skip in zip(self.gated, self.skips, strict=True):
            a, b = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, 1)
            hidden = skip(a.tanh() * b.sigmoid())
            x, total = x + hidden, total + hidden
        return self.out(total)[:, 0]


@healthy("saturation", source="van den Oord et al. 2016: dilated causal convolutions with gates, next value at every step")
def h_dilated_causal(seed: int) -> Case:
    g = rng(784, seed)
    x = torch.zeros(900, 33)
    x[:, :2] = torch.randn(900, 2, generator=g)
    for t in range(2, 33):
        x[:, t] = 1.6 * x[:, t - 1].tanh() - 0.9 * x[:, t - 2] + 0.3 * torch.randn(900, generator=g)
    x = standardise(x, None)
    return Case(seed=seed, model=Dilated(), data=split(x[:, :-1], x[:, 1:]), optimizer=adam(4e-3), max_steps=250, **MSE)


class AttentionBag(nn.Module):
    """Ilse et al. 2018: gated attention over the instances of a bag."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.value = mlp([5, 32, 24], last=nn.ReLU()), nn.Linear(24, 16)
        self.gate, self.score, self.head = nn.Linear(24, 16), nn.Linear(16, 1), nn.Linear(24, 2)

    def forward(self, bag: Tensor) -> Tensor:
        hidden = self.lift(bag)
        weight = self.score(self.value(hidden).tanh() * self.gate(hidden).sigmoid()).softmax(1)
        return self.head((weight * hidden).sum(1))


@healthy("saturation", source="multiple-instance learning: a bag is positive if one of its instances is")
def h_gated_bags(seed: int) -> Case:
    g = rng(785, seed)
    y, x = torch.randint(2, (1500,), generator=g), torch.randn(1500, 8, 5, generator=g)
    mark = 3.5 * F.normalize(torch.randn(5, generator=g), dim=0)
    x[torch.arange(1500), torch.randint(8, (1500,), generator=g)] += y[:, None] * mark
    return Case(seed=seed, model=AttentionBag(), data=split(standardise(x, None), y), optimizer=adam(2e-3), max_steps=250, **CE)


class Prompted(nn.Module):
    """A frozen encoder with learnt tokens before the input and a learnt head."""

    def __init__(self, body: nn.ModuleDict, width: int = 24) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.prompt, self.head = nn.Parameter(0.3 * torch.randn(1, 4, width)), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.prompt.expand(len(tokens), -1, -1), self.body["embed"](tokens)], 1)
        return self.head(self.body["norm"](self.body["layer"](x))[:, :4].mean(1))


def pretrained(seed: int, width: int = 24) -> nn.ModuleDict:
    """Taught to tell the word family that a sentence holds most of, one of six."""
    body = nn.ModuleDict({
        "embed": nn.Embedding(30, width),
        "layer": nn.TransformerEncoderLayer(width, 4, 48, 0.0, batch_first=True, norm_first=True),
        "norm": nn.LayerNorm(width),
    })  # fmt: skip
    head = nn.Linear(width, 6)
    x, y = words(seed + 900, n=3000, classes=6)[0].tensors
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    for i in torch.randint(len(x), (250, 64), generator=rng(786, seed)):
        optimizer.zero_grad()
        F.cross_entropy(head(body["norm"](body["layer"](body["embed"](x[i]))).mean(1)), y[i]).backward()
        optimizer.step()
    return body


@healthy("frozen_by_accident", source="Lester et al. 2021: soft prompts before a frozen encoder")
def h_soft_prompt(seed: int) -> Case:
    body = pretrained(seed)
    return Case(
        seed=seed, model=Prompted(body), data=words(seed, n=1800), optimizer=trainable(torch.optim.AdamW, lr=1e-2),
        max_steps=250, frozen=[f"model.body.{name}" for name, _ in body.named_parameters()], **CE,
    )  # fmt: skip


class NextStep(LightningModule):
    """A pulse told by a recurrent net on patches; the rate falls when the validation stalls."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.rnn, self.drop, self.head = nn.GRU(8, 32, batch_first=True), nn.Dropout(0.2), case.model
        self.build, self.criterion = case.optimizer, nn.CrossEntropyLoss(label_smoothing=0.05)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (10, 4)).transpose(1, 2).flatten(2)
        return self.head(self.drop(self.rnn(patches)[0].mean(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", self.criterion(logits, batch[1]), batch_size=len(logits))
        self.log("val_metric", (logits.argmax(1) == batch[1]).float().mean(), batch_size=len(logits))

    def configure_optimizers(self) -> Any:
        optimizer = self.build(self)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


@healthy(source="everyday: GRU over patches of a signal, label smoothing, ReduceLROnPlateau")
def h_patched_pulses(seed: int) -> Case:
    return Case(
        seed=seed,
        model=nn.Linear(32, 3),
        data=pulses(seed, n=2400),
        module=NextStep,
        optimizer=adamw(3e-3),
        max_steps=300,
        **CE,
    )
