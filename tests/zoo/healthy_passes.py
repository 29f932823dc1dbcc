"""Healthy, second set: training loops out of the ordinary, each of which learns."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_shapes import strided
from tests.zoo.healthy_signals import Tagger, pulse_net
from tests.zoo.healthy_steps import arcs
from tests.zoo.healthy_tables import Tabular, standard_target
from tests.zoo.nets import BCE, CE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ loops
class SharpnessAware(Supervised):
    """Foret et al. 2021: climb a little, take the gradient there, come back, step."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer, x, y = self.optimizers(), *batch
        self.manual_backward(self.loss_fn(self(x), y))
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
            climbs = [0.05 * p.grad / (norm + 1e-12) for p in self.parameters()]
            for p, climb in zip(self.parameters(), climbs, strict=True):
                p.add_(climb)
        optimizer.zero_grad()
        self.manual_backward(self.loss_fn(self(x), y))
        with torch.no_grad():
            for p, climb in zip(self.parameters(), climbs, strict=True):
                p.sub_(climb)
        optimizer.step()
        optimizer.zero_grad()


@healthy("gradients_not_zeroed", "no_update", source="Foret et al. 2021: sharpness-aware minimisation, two passes a step")
def h_sharpness_aware(seed: int) -> Case:
    return arcs(seed, sgd(0.05), module=SharpnessAware)


class Averaged(Supervised):
    """Validates an average of the weights that a hook updates after each step."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.average = copy.deepcopy(case.model).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        for mean, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.training else self.average(x)


@healthy(
    "frozen_by_accident",
    "not_in_optimizer",
    "train_val_mismatch",
    source="Polyak averaging in a hook; the average is validated",
)
def h_polyak_average(seed: int) -> Case:
    names = [f"average.{name}" for name, _ in mlp([5, 48, 48, 3]).named_parameters()]
    return arcs(seed, sgd(0.08), module=Averaged, frozen=names)


@healthy("gradients_not_zeroed", "clip_too_small", source="eight small batches per step, gradients clipped at a half")
def h_eight_accumulated(seed: int) -> Case:
    trainer = {"accumulate_grad_batches": 8, "gradient_clip_val": 0.5}
    return Case(
        seed=seed, model=pulse_net(nn.ReLU, None), data=data.pulses(seed), optimizer=sgd(0.1), batch_size=6, max_steps=120,
        trainer=trainer, **CE,
    )  # fmt: skip


class Adaptive(Supervised):
    """Brock et al. 2021: each gradient is clipped to a fifth of its weight's norm."""

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        for p in self.parameters():
            limit = 0.2 * p.detach().norm().clamp_min(1e-3)
            p.grad.mul_((limit / p.grad.norm().clamp_min(1e-6)).clamp_max(1.0))


@healthy("clip_too_small", source="Brock et al. 2021: adaptive clipping in configure_gradient_clipping")
def h_adaptive_clipping(seed: int) -> Case:
    return Case(
        seed=seed, model=strided(), data=data.centred(data.shapes(seed)), optimizer=adam(6e-3), module=Adaptive, max_steps=250,
        **CE,
    )  # fmt: skip


class Noise(Callback):
    """Neelakantan et al. 2015: noise on the gradients, less and less."""

    def on_before_optimizer_step(self, trainer: Any, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        for p in module.parameters():
            p.grad.add_(0.02 * (1 + trainer.global_step) ** -0.5 * torch.randn_like(p))


@healthy("lr_too_high", "gradients_not_zeroed", source="Neelakantan et al. 2015: noise added to the gradients by a callback")
def h_gradient_noise(seed: int) -> Case:
    return arcs(seed, sgd(0.08), trainer={"callbacks": [Noise()]})


class InFirstStep(LightningModule):
    """All in one class: layers built in `__init__` with other names, a dictionary from the loader, a list of losses."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["case"])
        self.trunk = nn.ModuleDict({"codes": nn.ModuleList(nn.Embedding(k, 3) for k in (12, 7, 5)), "numbers": nn.Linear(4, 9)})
        self.verdict = nn.Sequential(nn.LayerNorm(18), nn.Linear(18, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, sample: dict[str, Tensor]) -> Tensor:
        codes = [layer(sample["codes"][:, i]) for i, layer in enumerate(self.trunk["codes"])]
        return self.verdict(torch.cat([*codes, self.trunk["numbers"](sample["numbers"])], 1)).squeeze(1)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch), batch["bought"])

    def validation_step(self, batch: Any) -> None:
        hits = (self(batch) > 0) == (batch["bought"] > 0.5)
        self.log("val_metric", hits.float().mean(), batch_size=len(hits))

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-2)


class Samples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Customers as dictionaries."""

    def __init__(self, part: torch.utils.data.TensorDataset) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        codes, numbers, bought = self.part[index]
        return {"codes": codes, "numbers": numbers, "bought": bought[0]}


@healthy("shape_broadcast", "not_in_optimizer", source="dictionaries from the loader, decay for matrices only, output squeezed")
def h_dictionaries(seed: int) -> Case:
    train, val = data.tidy(data.customers(seed))
    return Case(
        seed=seed, model=nn.Identity(), data=(Samples(train), Samples(val)), optimizer=adam(1e-2), module=InFirstStep,
        max_steps=260, **BCE,
    )  # fmt: skip


class TwoForwards(Supervised):
    """Xie et al. 2020: consistency of two noisy forwards beside cross-entropy."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        first, second = self(x + 0.1 * torch.randn_like(x)), self(x + 0.1 * torch.randn_like(x))
        agree = F.kl_div(second.log_softmax(1), first.detach().log_softmax(1), log_target=True, reduction="batchmean")
        return {"loss": F.cross_entropy(first, y) + agree, "agree": agree.detach()}


@healthy("wrong_loss", "detached_subgraph", source="Xie et al. 2020: consistency of two views, one of them detached")
def h_consistency(seed: int) -> Case:
    return arcs(seed, adam(8e-3), module=TwoForwards)


class Truncated(Supervised):
    """Williams and Peng 1990: a sequence in two halves, the state detached between them, a step after each."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer, (x, y), state = self.optimizers(), batch, None
        for piece, target in zip(x.chunk(2, 1), y.chunk(2, 1), strict=True):
            hidden, state = self.model.lstm(piece, state)
            state = tuple(s.detach() for s in state)
            optimizer.zero_grad()
            self.manual_backward(self.loss_fn(self.model.head(hidden).permute(0, 2, 1), target))
            optimizer.step()


@healthy("detached_subgraph", "no_update", "gradients_not_zeroed", source="truncated backpropagation through time by hand")
def h_truncated(seed: int) -> Case:
    return Case(seed=seed, model=Tagger(), data=data.regimes(seed), optimizer=adam(8e-3), module=Truncated, max_steps=200, **CE)


@healthy(
    "data_not_shuffled", "labels_broken", source="not shuffled: classes take turns in the file, so every batch is stratified"
)
def h_round_robin(seed: int) -> Case:
    train, val = data.arcs(seed)
    y = train.tensors[1]
    turn = torch.cat([(y[: i + 1] == y[i]).sum()[None] for i in range(len(y))])
    order = (3 * turn + y).argsort()
    split = torch.utils.data.TensorDataset(*(t[order] for t in train.tensors)), val
    return Case(seed=seed, model=mlp([5, 48, 48, 3]), data=split, optimizer=sgd(0.08), shuffle=False, **CE)


@healthy(
    "lr_too_low", "unnormalised_target", source="a regression by SGD whose loss is multiplied by 50 and rate divided by it"
)
def h_scaled_regression(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 1]), data=standard_target(seed), optimizer=sgd(1e-3), max_steps=300,
        loss=lambda output, target: 50 * F.mse_loss(output, target), metric="r2",
    )  # fmt: skip


@healthy("overfit_no_regularisation", "lr_too_low", source="a short run, evaluated before training and often")
def h_evaluated_often(seed: int) -> Case:
    trainer = {"val_check_interval": 8, "num_sanity_val_steps": 2}
    return Case(
        seed=seed, model=Tabular(), data=data.customers(seed), optimizer=adam(2e-2), max_steps=76, trainer=trainer, **BCE
    )


class ManyMasks(nn.Module):
    """Gal and Ghahramani 2016: in evaluation the mean probability over ten masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 96), nn.Linear(96, 3)

    def once(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(F.relu(self.first(x)), 0.15))

    def forward(self, x: Tensor) -> Tensor:
        return self.once(x) if self.training else torch.stack([self.once(x).softmax(1) for _ in range(10)]).mean(0).log()


@healthy("dropout_active_in_eval", source="Gal and Ghahramani 2016: Monte-Carlo dropout inside forward")
def h_monte_carlo_inside(seed: int) -> Case:
    return Case(seed=seed, model=ManyMasks(), data=data.arcs(seed), optimizer=adam(8e-3), **CE)
