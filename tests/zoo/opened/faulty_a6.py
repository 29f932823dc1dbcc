"""Records in dictionaries, metric learning, soft trees."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import digits, surface
from tests.zoo.metrics import accuracy
from tests.zoo.more_data import customers, tidy
from tests.zoo.nets import BCE, CE, MSE, adam, mlp


# ------------------------------------------------------------------------------------------ tables in dictionaries
class Records(Dataset[dict[str, Tensor]]):
    """Rows with names."""

    def __init__(self, part: Any) -> None:
        self.columns = dict(zip(("codes", "numbers", "bought"), part.tensors, strict=True))

    def __len__(self) -> int:
        return len(self.columns["bought"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


class Table(nn.Module):
    """Embedded codes next to numbers."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, 5) for k in (12, 7, 5))
        self.first, self.second, self.out = nn.Linear(19, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        embedded = [table(code) for table, code in zip(self.tables, codes.T, strict=True)]
        x = F.relu(self.first(torch.cat([*embedded, numbers], 1)))
        return self.out(F.relu(self.second(x)))


class LinearTable(Table):
    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        x = self.first(torch.cat([table(code) for table, code in zip(self.tables, codes.T, strict=True)] + [numbers], 1))
        F.relu(x)
        x = self.second(x)
        F.relu(x)
        return self.out(x)


class SoftTable(Table):
    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        return super().forward(codes, numbers).softmax(1)


class FromRecords(Supervised):
    """Steps on dictionaries."""

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        output = self(batch["codes"], batch["numbers"])
        return output, self.loss_fn(output, batch["bought"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch)[1]
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output, loss = self.step(batch)
        self.log("val_loss", loss, batch_size=len(output))
        self.log("val_metric", self.metric.score(output, batch["bought"]), batch_size=len(output))


@healthy(source="who buys: embedded codes and numbers, batches of dictionaries")
def h_customer_records(seed: int) -> Case:
    data = tuple(Records(part) for part in tidy(customers(seed, 3000)))
    return Case(seed=seed, model=Table(), data=data, module=FromRecords, optimizer=adam(3e-3), max_steps=300, **BCE)


def retyped(case: Case, kind: type[nn.Module]) -> None:
    model = kind()
    model.load_state_dict(case.model.state_dict())
    case.model = model


@faulty("missing_activation", twin="h_customer_records", source="F.relu(x) on a line of its own", margin=0.05)
def f_records_relu_dropped(case: Case) -> None:
    retyped(case, LinearTable)


@faulty("wrong_last_activation", twin="h_customer_records", source="forum: softmax over a single output is always one")
def f_records_softmax_of_one(case: Case) -> None:
    retyped(case, SoftTable)
    case.loss = F.binary_cross_entropy


# ------------------------------------------------------------------------------------------ metric learning
class Triplets(Supervised):
    """Triplets within a batch; validated by the nearest mean of the training set's embeddings."""

    margin = 0.3

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.gallery = case.data[0].tensors

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.model(x), dim=1)

    def distances(self, z: Tensor) -> Tensor:
        return ((z[:, None] - z[None]).square().sum(2) + 1e-8).sqrt()

    def hardest(self, distance: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        return distance.masked_fill(~same, 0).amax(1), distance.masked_fill(same, 9).amin(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        far, near = self.hardest(self.distances(self.embed(x)), y[:, None] == y[None])
        loss = (far - near + self.margin).clamp_min(0).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = self.gallery
        means = torch.stack([self.embed(x)[y == c].mean(0) for c in range(int(y.max()) + 1)])
        self.log("val_metric", accuracy(self.embed(batch[0]) @ means.T, batch[1]), batch_size=len(batch[1]))


class Swapped(Triplets):
    def hardest(self, distance: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        return super().hardest(distance, same)[::-1]


class Rooted(Triplets):
    def distances(self, z: Tensor) -> Tensor:
        return (z[:, None] - z[None]).square().sum(2).sqrt()


@healthy("loss_sign", "batch_mixing", source="batch-hard triplet loss (Hermans 2017) on digits")
def h_triplet_digits(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([64, 64, 16]), data=digits(seed), module=Triplets, optimizer=adam(2e-3), batch_size=64,
        max_steps=200, **CE,
    )  # fmt: skip


@faulty("loss_sign", twin="h_triplet_digits", source="positives and negatives swapped in a triplet loss")
def f_triplet_swapped(case: Case) -> None:
    case.module = Swapped


@faulty("nan_loss", twin="h_triplet_digits", source="PyTorch issue: the gradient of sqrt at 0, of a point with itself")
def f_triplet_root_of_zero(case: Case) -> None:
    case.module = Rooted


# ------------------------------------------------------------------------------------------ soft trees
class SoftTrees(nn.Module):
    """Oblivious soft decision trees: products of sigmoid splits choose among leaves (NODE)."""

    def __init__(self, dim: int = 8, trees: int = 24, depth: int = 3, slope: float = 2.0) -> None:
        super().__init__()
        self.depth, self.slope = depth, slope
        self.split = nn.Linear(dim, trees * depth)
        self.leaves = nn.Parameter(0.3 * torch.randn(trees, 2**depth))

    def forward(self, x: Tensor) -> Tensor:
        side = torch.sigmoid(self.slope * self.split(x)).unflatten(1, (-1, self.depth))
        share = x.new_ones(*side.shape[:2], 1)
        for s in side.unbind(2):
            share = torch.cat([share * s[:, :, None], share * (1 - s[:, :, None])], 2)
        return (share * self.leaves).sum((1, 2))[:, None]


@healthy("saturation", "wrong_hidden_activation", source="soft decision trees for regression")
def h_soft_trees(seed: int) -> Case:
    return Case(
        seed=seed, model=SoftTrees(), data=surface(seed), optimizer=adam(2e-2), batch_size=64, max_steps=350, **MSE
    )  # fmt: skip


@faulty("saturation", "bad_gain", twin="h_soft_trees", source="slope of the splits set so high that no split has a gradient")
def f_soft_trees_steep(case: Case) -> None:
    case.model.slope = 150.0
