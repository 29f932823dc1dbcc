"""Healthy, held out: language models, state spaces, experts and other newer sequence models."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, next_token, surface, walks
from tests.zoo.nets import CE, MSE, adam, adamw, mlp
from tests.zoo.unseen.healthy_h2 import tokens_loss, warm_cosine


class CausalBlock(nn.Module):
    """Pre-norm self-attention that looks back only, and a feed-forward net."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads, self.causal = nn.LayerNorm(width), nn.LayerNorm(width), heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class LanguageModel(nn.Module):
    """GPT-2's recipe: everything 0.02, residual outputs scaled by depth, the head tied to the embedding."""

    def __init__(self, vocabulary: int, length: int, width: int = 32, depth: int = 2, causal: bool = True) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, 4, causal) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * depth) if name.endswith(("out.weight", "narrow.weight")) else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x) + self.position(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(hidden))).transpose(1, 2)


def groups_adamw(lr: float, decay: float) -> Any:
    """Matrices decay, vectors do not."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        ps = list(model.parameters())
        groups = [{"params": [p for p in ps if p.ndim > 1]}, {"params": [p for p in ps if p.ndim < 2], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, betas=(0.9, 0.95))

    return build


@healthy(
    "init_vanishing", "lr_schedule", source="Radford 2019 in small: tied head, scaled residual outputs, decay of matrices only"
)
def h_gpt_tied_scaled(seed: int) -> Case:
    return Case(
        seed=seed, model=LanguageModel(12, 12), data=next_token(seed, 1200), loss=tokens_loss, metric="accuracy",
        optimizer=groups_adamw(5e-3, 0.1), scheduler=warm_cosine(20, 220), trainer={"gradient_clip_val": 1.0}, max_steps=220,
    )  # fmt: skip


class Masked(Dataset[Any]):
    """Sentences of which some words are replaced by a mask; the target is -100 elsewhere. Drawn anew each time if `fresh`."""

    def __init__(self, x: Tensor, mask: int, fresh: bool) -> None:
        self.x, self.mask = x, mask
        self.hidden = None if fresh else torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.2

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        hidden = torch.rand(self.x.shape[1]) < 0.2 if self.hidden is None else self.hidden[i]
        return self.x[i].masked_fill(hidden, self.mask), self.x[i].masked_fill(~hidden, -100)


@healthy("labels_broken", "train_val_mismatch", source="Devlin 2019: most targets are ignored, masks drawn anew in training")
def h_bert_masked_words(seed: int) -> Case:
    data = tuple(Masked(part.tensors[0], 12, i == 0) for i, part in enumerate(next_token(seed, 2400)))
    return Case(
        seed=seed, model=LanguageModel(13, 12, causal=False), data=data, loss=tokens_loss, metric="accuracy",
        optimizer=adamw(6e-3), scheduler=warm_cosine(30, 400), batch_size=64, max_steps=400,
    )  # fmt: skip


class StateSpace(nn.Module):
    """A diagonal linear recurrence as one long convolution; decays start spread over time scales."""

    def __init__(self, width: int, states: int = 8) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.linspace(-4.0, 0.0, states).repeat(width, 1))
        self.out = nn.Parameter(torch.randn(width, states) / states)
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # [batch, width, length]
        length = x.shape[2]
        decay = (-self.log_rate.exp()[..., None] * torch.arange(length)).exp()
        kernel = (self.out[..., None] * decay).sum(1)
        y = torch.fft.irfft(torch.fft.rfft(x, 2 * length) * torch.fft.rfft(kernel, 2 * length), 2 * length)[..., :length]
        return y + self.skip[:, None] * x


@healthy("missing_activation", source="Gu 2022, S4D in small: a linear recurrence by FFT, then a gate")
def h_diagonal_state_space(seed: int) -> Case:
    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 4)
            self.spaces = nn.ModuleList(StateSpace(width) for _ in range(2))
            self.gates = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for norm, space, gate in zip(self.norms, self.spaces, self.gates, strict=True):
                x = x + F.glu(gate(F.gelu(space(norm(x).transpose(1, 2)).transpose(1, 2))), 2)
            return self.head(x[:, -1])

    return Case(seed=seed, model=Net(), data=walks(seed), **CE, optimizer=adam(5e-3), max_steps=200)


class Experts(nn.Module):
    """The two best of six experts by a gate; `balance` is the auxiliary loss of the last pass."""

    def __init__(self, dim: int, width: int, outputs: int, count: int = 6) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, count)
        self.experts = nn.ModuleList(mlp([dim, width, outputs]) for _ in range(count))
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(1)
        top = p.topk(2, 1)
        weights = torch.zeros_like(p).scatter(1, top.indices, top.values / top.values.sum(1, keepdim=True))
        self.balance = p.shape[1] * ((weights > 0).float().mean(0) * p.mean(0)).sum() / 2
        return (weights[:, None] * torch.stack([expert(x) for expert in self.experts], 2)).sum(2)


class Balanced(Supervised):
    """Cross-entropy and a hundredth of the balance of the experts."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_fn(self(batch[0]), batch[1]) + 0.01 * self.model.balance
        self.log("train_loss", loss)
        return loss


@healthy("frozen_by_accident", source="Shazeer 2017: most experts see no gradient for a given row")
def h_two_of_six_experts(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Experts(8, 24, 4),
        data=blobs(seed),
        **CE,
        module=Balanced,
        optimizer=adam(5e-3),
        batch_size=64,
        max_steps=280,
    )


class Hyper(nn.Module):
    """A net of the last four inputs writes the weights of a net of the first four (Ha 2017)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.writer = mlp([4, 32, 4 * width + 2 * width + 1], act=nn.Tanh)
        nn.init.normal_(self.writer[-1].weight, std=0.05)
        nn.init.normal_(self.writer[-1].bias, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        w1, b1, w2, b2 = self.writer(x[:, 4:]).split([4 * self.width, self.width, self.width, 1], 1)
        hidden = F.gelu(torch.einsum("ni,nij->nj", x[:, :4], w1.unflatten(1, (4, self.width))) + b1)
        return (hidden * w2).sum(1, keepdim=True) + b2


@healthy("init_vanishing", "bad_bias_init", source="Ha 2017, hypernetwork: the bias of the writer is the mean weight")
def h_weights_from_a_net(seed: int) -> Case:
    return Case(seed=seed, model=Hyper(), data=surface(seed, 2400), **MSE, optimizer=adam(5e-3), batch_size=64, max_steps=360)
