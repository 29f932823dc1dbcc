"""Tables: customers and prices."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import houses, rare_blobs, replace, surface
from tests.zoo.metrics import METRICS
from tests.zoo.more_data import customers, friedman, tidy
from tests.zoo.nets import adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ customers
class Rows(Dataset[Any]):
    """Dictionaries of columns."""

    def __init__(self, part: Any) -> None:
        self.codes, self.numbers, self.bought = part.tensors

    def __len__(self) -> int:
        return len(self.bought)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"codes": self.codes[i], "numbers": self.numbers[i], "bought": self.bought[i]}


class EntityNet(nn.Module):
    """An embedding per categorical column, concatenated with the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: Any = nn.ModuleList(nn.Embedding(k, 4) for k in (12, 7, 5))
        self.top = mlp([16, 48, 24, 1])

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        columns = [e(c) for e, c in zip(self.embeddings, codes.T, strict=True)]
        return self.top(torch.cat([*columns, numbers], 1))


class Churn(LightningModule):
    """Training on dictionaries."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.make_optimizer, self.loss, self.metric = case.model, case.optimizer, case.loss, METRICS[case.metric]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["codes"], batch["numbers"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch), batch["bought"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        out = self(batch)
        self.log("val_loss", self.loss(out, batch["bought"]))
        self.log("val_metric", self.metric.score(out, batch["bought"]), batch_size=len(out))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.net)


@healthy(source="entity embeddings for a tabular competition, dictionaries as batches")
def h_churner(seed: int) -> Case:
    data = tuple(Rows(part) for part in tidy(customers(seed)))
    return Case(
        seed=seed, model=EntityNet(), data=data, loss=F.binary_cross_entropy_with_logits, metric="binary_accuracy",
        optimizer=adam(4e-3), module=Churn, max_steps=300,
    )  # fmt: skip


@faulty(
    "unnormalised_input",
    twin="h_churner",
    source="income in dollars and age in years next to embeddings, no scaler",
    margin=0.06,
)
def f_churner_raw_income(case: Case) -> None:
    case.data = tuple(Rows(part) for part in customers(case.seed))


class SmallEntityNet(EntityNet):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.top = nn.ModuleList(nn.Embedding(k, 1) for k in (12, 7, 5)), mlp([7, 8, 1])


class UnlistedEntityNet(SmallEntityNet):
    def __init__(self) -> None:
        super().__init__()
        layers = list(self.embeddings)
        del self.embeddings
        self.embeddings = layers


@healthy("init_vanishing", source="one number per category: embeddings of dimension 1")
def h_scorecard(seed: int) -> Case:
    case = h_churner(seed)
    case.model, case.optimizer, case.max_steps = SmallEntityNet(), adam(0.01), 300
    return case


@faulty("not_in_optimizer", twin="h_scorecard", source="discuss.pytorch.org: layers in a Python list", margin=0.06)
def f_scorecard_list(case: Case) -> None:
    case.model = UnlistedEntityNet()


@faulty("weight_decay_too_strong", twin="h_scorecard", source="sklearn's alpha and weight_decay mixed up: 0.3 in Adam")
def f_scorecard_alpha(case: Case) -> None:
    case.optimizer = adam(0.01, weight_decay=0.3)


# ------------------------------------------------------------------------------------------ prices
class Valuer(nn.Module):
    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Dropout(drop), nn.Linear(64, 64), nn.SiLU(), nn.Dropout(drop))
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


class SigmoidValuer(Valuer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class DetachedValuer(Valuer):
    """Hidden features go through a list of numbers to be plotted and come back as a new tensor."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tensor(self.body(x).tolist())
        return self.out(hidden)


@healthy(source="a plain regression with MAE-like loss, dropout and AdamW")
def h_valuer(seed: int) -> Case:
    return Case(
        seed=seed, model=Valuer(), data=surface(seed), loss=F.smooth_l1_loss, metric="r2", optimizer=adamw(4e-3), max_steps=350
    )


@faulty("dropout_too_high", twin="h_valuer", source="TensorFlow 1's keep_prob = 0.95 passed to nn.Dropout", margin=0.15)
def f_valuer_keep_prob(case: Case) -> None:
    case.model = Valuer(0.95)


@faulty("unnormalised_target", twin="h_valuer", source="house prices in currency units, Adam at its usual rate")
def f_valuer_currency(case: Case) -> None:
    case.data = houses(case.seed)


@faulty("wrong_last_activation", twin="h_valuer", source="a classifier's sigmoid kept for a standardised target", margin=0.15)
def f_valuer_sigmoid_end(case: Case) -> None:
    case.model = SigmoidValuer()


@faulty(
    "init_exploding", "bad_gain", twin="h_valuer", source="nn.init.normal_(m.weight) for all layers: its default deviation is 1"
)
def f_valuer_normal_default(case: Case) -> None:
    for module in case.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)


@faulty(
    "bad_bias_init", twin="h_valuer", source="the last bias set to the mean of the raw prices, the target standardised later"
)
def f_valuer_mean_price(case: Case) -> None:
    nn.init.constant_(case.model.out.bias, 250.0)  # type: ignore[union-attr, arg-type]


@faulty("detached_subgraph", "not_in_optimizer", twin="h_valuer", source="torch.tensor(list) in the middle of forward")
def f_valuer_through_list(case: Case) -> None:
    case.model = DetachedValuer()


@faulty(
    "lr_schedule", "lr_too_low", twin="h_valuer", source="ExponentialLR(0.9), meant per epoch, stepped per batch", margin=0.15
)
def f_valuer_decay_per_batch(case: Case) -> None:
    case.scheduler = lambda o: {"scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.9), "interval": "step"}


# ------------------------------------------------------------------------------------------ Friedman's, by hand
class ByHand(Supervised):
    """Manual optimisation in two lines too many."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.loss_fn(self(batch[0]), batch[1])
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]


class NeverZeroed(ByHand):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss_fn(self(batch[0]), batch[1]))
        self.optimizers().step()  # type: ignore[union-attr]


class RarelyStepped(ByHand):
    """Accumulates over 64 batches; an epoch has 32, and the counter starts anew with each."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.loss_fn(self(batch[0]), batch[1]) / 64)
        if (batch_idx + 1) % 64 == 0:
            optimizer.step()  # type: ignore[union-attr]
            optimizer.zero_grad()  # type: ignore[union-attr]


def scaled(seed: int) -> Any:
    data = replace(friedman(seed), 1, lambda y: (y - 14.4) / 5)
    return replace(data, 0, lambda x: (x - 0.5) * 12**0.5)


@healthy("no_update", source="manual optimisation, SGD with Nesterov momentum")
def h_byhander(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 48, 48, 1], nn.Tanh), data=scaled(seed), loss=F.mse_loss, metric="r2",
        optimizer=sgd(0.03, nesterov=True), module=ByHand, max_steps=350,
    )  # fmt: skip


@faulty(
    "gradients_not_zeroed",
    "lr_too_high",
    twin="h_byhander",
    source="Lightning discussions: manual optimisation without zero_grad",
)
def f_byhander_never_zeroed(case: Case) -> None:
    case.module = NeverZeroed


@faulty("no_update", twin="h_byhander", source="Lightning discussions: accumulation by batch_idx, longer than an epoch")
def f_byhander_rarely(case: Case) -> None:
    case.module = RarelyStepped
    case.trainer = {"max_epochs": 8}


@faulty("loss_reduction", "lr_too_high", twin="h_byhander", source="reduction='sum' at the step size of the mean")
def f_byhander_summed(case: Case) -> None:
    case.loss = lambda out, y: F.mse_loss(out, y, reduction="sum")


@faulty(
    "loss_reduction",
    "lr_too_low",
    twin="h_byhander",
    source="loss / len(dataset), as in the epoch's print-out, before backward",
)
def f_byhander_divided_by_all(case: Case) -> None:
    case.loss = lambda out, y: F.mse_loss(out, y) / len(case.data[0])  # type: ignore[arg-type]


@faulty("clip_too_small", twin="h_byhander", source="clip_grad_norm_ to 1e-3, a value for another loss scale")
def f_byhander_clipped(case: Case) -> None:
    case.module = Clipped


class Clipped(ByHand):
    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss, *args, **kwargs)
        nn.utils.clip_grad_norm_(self.parameters(), 1e-3)


@faulty(
    "detached_subgraph",
    "no_update",
    twin="h_byhander",
    source="StackOverflow: requires_grad=True against 'does not require grad'",
)
def f_byhander_new_leaf(case: Case) -> None:
    case.loss = lambda out, y: torch.tensor(F.mse_loss(out, y).item(), requires_grad=True)


# ------------------------------------------------------------------------------------------ fraud
class Drawn(Dataset[Any]):
    """Rows drawn with the frequency of their class."""

    def __init__(self, part: Any, balanced: bool) -> None:
        self.x, self.y = part.tensors
        weights = 1 / self.y.bincount()[self.y].float() if balanced else torch.ones(len(self.y))
        self.rows = torch.multinomial(weights, 2048, replacement=True, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[self.rows[i]], self.y[self.rows[i]]


@healthy("class_imbalance", "train_val_mismatch", source="fraud: rare rows drawn more often in training")
def h_fraudster(seed: int) -> Case:
    train, val = rare_blobs(seed, rare=0.025, n=3000, overlap=0.65)
    return Case(
        seed=seed, model=mlp([6, 32, 32, 2]), data=(Drawn(train, True), val), loss=F.cross_entropy, metric="balanced_accuracy",
        optimizer=adam(3e-3), max_steps=250, val_batch_size=1000,
    )  # fmt: skip


@faulty("class_imbalance", twin="h_fraudster", source="Kaggle: 97 % accuracy, and no fraud found", margin=0.1)
def f_fraudster_as_drawn(case: Case) -> None:
    case.data = Drawn(rare_blobs(case.seed, rare=0.025, n=3000, overlap=0.65)[0], False), case.data[1]
