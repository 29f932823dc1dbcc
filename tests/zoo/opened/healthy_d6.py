"""Sequences: retrieval, experts, shared layers, pointers, prompts, convolutions, bags."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, healthy
from tests.zoo.data import rng, split, standardise, walks, words
from tests.zoo.nets import CE, adam, adamw, mlp
from tests.zoo.opened.healthy_d1 import SharedStep, figure
from tests.zoo.opened.healthy_d5 import schedule


# ------------------------------------------------------------------------------------------ retrieval
class Towers(nn.Module):
    """A question and a document, each to the unit sphere; a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(60, 24, mode="mean")
        self.question, self.document = mlp([24, 48, 16]), mlp([10, 48, 16])
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, question: Tensor, document: Tensor) -> Tensor:
        a, b = F.normalize(self.question(self.words(question)), dim=1), F.normalize(self.document(document), dim=1)
        return self.log_scale.exp() * a @ b.T


def in_batch(output: Tensor, _: Tensor) -> Tensor:
    own = torch.arange(len(output))
    return (F.cross_entropy(output, own) + F.cross_entropy(output.T, own)) / 2


FOUND = figure("d_found", lambda out, y: (out.argmax(1) == torch.arange(len(out))).float().mean(), 1 / 64)


@healthy("batch_mixing", "wrong_loss", source="CLIP and DPR: both ways softmax over the batch, recall at one among sixty-four")
def h_question_document(seed: int) -> Case:
    g = rng(780, seed)
    tokens = torch.randint(60, (2400, 6), generator=g)
    meaning = torch.randn(60, 10, generator=g)[tokens].mean(1)
    document = standardise((2 * meaning @ torch.randn(10, 10, generator=g)).tanh() + 0.05 * torch.randn(2400, 10, generator=g))
    data = split(tokens, document, torch.arange(2400), val=384 / 2400)
    return Case(
        seed=seed, model=Towers(), data=data, loss=in_batch, metric=FOUND, optimizer=adam(4e-3), max_steps=400, batch_size=64,
        val_batch_size=64,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ transformers
class SparseExperts(nn.Module):
    """Two of four experts for each token, weighed by their renormalised gates; `balance` is kept for the loss."""

    def __init__(self, width: int, experts: int = 4) -> None:
        super().__init__()
        self.gate, self.experts = (
            nn.Linear(width, experts, bias=False),
            nn.ModuleList(mlp([width, 32, width]) for _ in range(experts)),
        )
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1)
        best, which = share.topk(2, -1)
        weight = torch.zeros_like(share).scatter(-1, which, best / best.sum(-1, keepdim=True))
        used = (weight > 0).float().flatten(0, -2).mean(0)
        self.balance = len(self.experts) / 2 * (used * share.flatten(0, -2).mean(0)).sum()
        return (torch.stack([expert(x) for expert in self.experts], -1) * weight.unsqueeze(-2)).sum(-1)


class ExpertReader(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(30, width), nn.Parameter(0.02 * torch.randn(12, width))
        self.attend, self.experts = nn.MultiheadAttention(width, 4, batch_first=True), SparseExperts(width)
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(width) for _ in range(3)), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        normed = self.norms[0](x)
        x = x + self.attend(normed, normed, normed, need_weights=False)[0]
        x = x + self.experts(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class Balanced(SharedStep):
    def shared_step(self, batch: Any, stage: str) -> Tensor:
        tokens, y = batch
        logits = self(tokens)
        loss = F.cross_entropy(logits, y)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_metric": self.figure(logits, y)}, batch_size=len(y))
        return loss + 0.01 * self.net.experts.balance


@healthy("detached_subgraph", "dead_relu", source="Switch and Mixtral: two of four experts per token, a small balance term")
def h_sparse_experts(seed: int) -> Case:
    return Case(
        seed=seed, model=ExpertReader(), data=words(seed, n=2400), module=Balanced, optimizer=adamw(3e-3), max_steps=200,
        batch_size=64, **CE,
    )  # fmt: skip


class SameLayer(nn.Module):
    """A universal transformer: one layer, passed four times, a step embedding before each."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(30, width), nn.Parameter(0.1 * torch.randn(12, width))
        self.step = nn.Parameter(0.1 * torch.randn(4, 1, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        for step in self.step:
            x = self.layer(x + step)
        return self.head(x.mean(1))


@healthy("init_exploding", source="Dehghani et al. 2019: the same transformer layer four times over")
def h_same_layer_again(seed: int) -> Case:
    return Case(
        seed=seed, model=SameLayer(), data=words(seed, n=2400), optimizer=adam(2e-3), scheduler=schedule(200, 20),
        max_steps=200, batch_size=64, **CE,
    )  # fmt: skip


class Pointer(nn.Module):
    """Which place holds the number nearest to the one asked: scores over places."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift = mlp([2, width, width])
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        tokens = self.lift(torch.stack([x, asked.expand_as(x)], 2))
        return self.score(self.norm(self.layer(tokens))).squeeze(2)


@healthy("wrong_loss", source="pointer networks: cross-entropy over the places of a set that the answer lies in")
def h_points_at_place(seed: int) -> Case:
    g = rng(782, seed)
    x, asked = torch.randn(2400, 7, generator=g), 0.7 * torch.randn(2400, 1, generator=g)
    return Case(
        seed=seed, model=Pointer(), data=split(x, asked, (x - asked).abs().argmin(1)), optimizer=adamw(3e-3), max_steps=350,
        batch_size=64, scheduler=schedule(350, 30), **CE,
    )  # fmt: skip


class LinearAttention(nn.Module):
    """Causal attention as a running sum of `elu + 1` features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1)
        return self.out((q.unsqueeze(-2) @ state).squeeze(-2) / (q * k.cumsum(1)).sum(-1, keepdim=True))


class LinearReader(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.lift, self.attend = nn.Linear(3, width), nn.ModuleList(LinearAttention(width) for _ in range(2))
        self.mix = nn.ModuleList(mlp([width, 48, width], nn.GELU) for _ in range(2))
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(width) for _ in range(5)), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for i in range(2):
            x = x + self.attend[i](self.norms[2 * i](x))
            x = x + self.mix[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, -1])


@healthy(source="Katharopoulos et al. 2020: linear attention, read out at the last step")
def h_linear_attention(seed: int) -> Case:
    return Case(
        seed=seed, model=LinearReader(), data=walks(seed), optimizer=adamw(3e-3), max_steps=200, batch_size=64,
        trainer={"gradient_clip_val": 1.0}, **CE,
    )  # fmt: skip
