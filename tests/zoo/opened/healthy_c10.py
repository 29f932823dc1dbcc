"""Held-out healthy cases: training loops and optimisers that are not the usual ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import blobs, digits, rng, split, standardise, surface
from tests.zoo.more_data import ratings
from tests.zoo.nets import CE, MSE, adam, adamw, mlp


class ByHand(Supervised):
    """Steps its optimisers itself."""

    automatic_optimization = False

    def step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", loss)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: the singular values are driven towards 1."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class OrthogonalMomentum(Optimizer):
    """Momentum whose matrices are orthogonalised."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["momentum"]).add_(p.grad)
                p.sub_(group["lr"] * orthogonal(mean))
        return loss


class Two(ByHand):
    """Hidden matrices to one optimiser, all else to another."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        optimizers, loss = self.optimizers(), self.loss_fn(self(x), y)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        hidden = [self.model[i].weight for i in (2, 4)]
        rest = [p for p in self.model.parameters() if all(p is not h for h in hidden)]
        return [OrthogonalMomentum(hidden, lr=0.02), torch.optim.AdamW(rest, lr=3e-3)]


@healthy("lr_too_high", "not_in_optimizer", source="Jordan 2024: Muon for hidden matrices, AdamW for the rest")
def h_two_kinds_of_step_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 48, 4], act=nn.GELU), data=blobs(seed), module=Two, optimizer=adamw(3e-3),
        max_steps=400, **CE,
    )  # fmt: skip


@healthy("data_not_shuffled", "lr_too_high", source="small physics fits: the whole data set as one batch, L-BFGS")
def h_whole_batch_newton_uc(seed: int) -> Case:
    data = surface(seed, 1500)
    return Case(
        seed=seed, model=mlp([8, 24, 1], act=nn.Tanh), data=data, batch_size=1000, max_steps=60,
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
        trainer={"check_val_every_n_epoch": 20, "log_every_n_steps": 1}, **MSE,
    )  # fmt: skip


class Factors(nn.Module):
    """Scalar products of what is known of two sides, and a bias for each."""

    def __init__(self, users: int = 50, items: int = 40, dim: int = 3) -> None:
        super().__init__()
        self.who, self.what = nn.Embedding(users, dim + 1), nn.Embedding(items, dim + 1)
        self.mean = nn.Parameter(torch.zeros(()))
        for side in (self.who, self.what):
            nn.init.normal_(side.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.who(x[:, 0]), self.what(x[:, 1])
        return ((a[:, 1:] * b[:, 1:]).sum(1) + a[:, 0] + b[:, 0] + self.mean)[:, None]


class Alternating(ByHand):
    """One side moves in even epochs, the other in odd ones."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        who, what = self.optimizers()
        active = (who, what)[self.current_epoch % 2]
        self.toggle_optimizer(active)
        self.step(active, self.loss_fn(self(x), y))
        self.untoggle_optimizer(active)

    def configure_optimizers(self) -> Any:
        m = self.model
        return [torch.optim.Adam([*p], lr=0.02) for p in ((m.who.weight, m.mean), (m.what.weight,))]


@healthy("no_update", "frozen_by_accident", source="Koren 2009: alternating descent for matrix factors, a side at a time")
def h_one_side_at_a_time_uc(seed: int) -> Case:
    who, rating = (torch.cat([part.tensors[i] for part in ratings(seed, 6000)]) for i in (0, 1))
    return Case(
        seed=seed, model=Factors(), data=split(who, standardise(rating)), module=Alternating, optimizer=adam(0.02),
        batch_size=128, max_steps=400, **MSE,
    )  # fmt: skip


class Greedy(nn.Module):
    """Blocks that no gradient connects, each with a head of its own; the last head answers."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width if i else 64, width), nn.LayerNorm(width), nn.ReLU()) for i in range(blocks)
        )
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x.detach())
            outputs.append(head(x))
        return torch.stack(outputs, 2) if self.training else outputs[-1]


def local_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target[:, None].expand(-1, output.shape[2]) if output.ndim == 3 else target)


@healthy("detached_subgraph", source="Belilovsky 2019, Nokland 2019: layers trained by local losses")
def h_local_losses_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=Greedy(), data=digits(seed), loss=local_loss, metric="accuracy", optimizer=adam(1e-3), max_steps=200
    )


class Truncated(ByHand):
    """A long signal in four pieces, the state carried over without its gradient."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        (x, y), optimizer, state = batch, self.optimizers(), None
        for piece, answer in zip(x.chunk(4, 1), y.chunk(4, 1), strict=True):
            hidden, state = self.model.rnn(piece, state)
            state = state.detach()
            self.step(optimizer, self.loss_fn(self.model.head(hidden), answer))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.model)


class Tracker(nn.Module):
    """A GRU with an answer at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@healthy("detached_subgraph", "lr_too_high", source="Williams 1990: truncated backpropagation, four steps for each batch")
def h_pieces_of_signals_uc(seed: int) -> Case:
    g = rng(790, seed)
    path = 0.3 * torch.randn(600, 40, 1, generator=g).cumsum(1)
    path = path - 0.25 * path.mean(1, keepdim=True)
    seen = path + 0.5 * torch.randn(path.shape, generator=g)
    return Case(
        seed=seed, model=Tracker(), data=split(standardise(seen, None), standardise(path, None)), module=Truncated,
        optimizer=adam(4e-3), max_steps=320, **MSE,
    )  # fmt: skip


class Balanced(Supervised):
    """Three tasks weighted by learnt uncertainties; the loss may fall below zero."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        errors, s = (self(x) - y).square().mean(0), self.model.log_var
        return 0.5 * (errors * (-s).exp() + s).sum()


class Uncertain(nn.Module):
    """A network and the log variance of each of its outputs."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.body, self.log_var = mlp(sizes, act=nn.SiLU), nn.Parameter(torch.zeros(sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@healthy("loss_sign", "labels_broken", source="Kendall 2018: homoscedastic uncertainty weighs tasks, one of them noisy")
def h_weighed_tasks_uc(seed: int) -> Case:
    g = rng(791, seed)
    x = torch.randn(1800, 6, generator=g)
    clean = torch.stack([x[:, 0] * x[:, 1], (2 * x[:, 2]).sin() + x[:, 3], x[:, 4].abs() + x[:, 5]], 1)
    y = standardise(clean) + torch.tensor([0.05, 0.2, 0.6]) * torch.randn(1800, 3, generator=g)
    return Case(
        seed=seed, model=Uncertain(6, 64, 64, 3), data=split(x, standardise(y)), module=Balanced, optimizer=adam(3e-3),
        max_steps=300, **MSE,
    )  # fmt: skip
