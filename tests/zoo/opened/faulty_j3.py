"""Held-out faults of tables, rankings, distances and several tasks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, replace, rng, several, split, standardise
from tests.zoo.more_data import judgements
from tests.zoo.nets import BCE, MSE, adam, mlp, sgd


# ------------------------------------------------------------------------------------------ clicks
def clicks(seed: int, n: int = 2400) -> Split:
    """Two codes (30 and 20 values), five numbers, a weight per row; who clicks, `[n, 1]`."""
    g = rng(905, seed)
    who, what = torch.randint(30, (n,), generator=g), torch.randint(20, (n,), generator=g)
    user, item = torch.randn(30, 3, generator=g), torch.randn(20, 3, generator=g)
    z = torch.randn(n, 5, generator=g)
    score = (user[who] * item[what]).sum(1) + z[:, 0] * z[:, 1] + z[:, 2] + 0.3 * torch.randn(n, generator=g)
    return split(torch.stack([who, what], 1), z, (score > 0).float()[:, None])


class Factors(nn.Module):
    """Products of embeddings, a network on the numbers, one logit."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, width), nn.Embedding(20, width)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        self.deep, self.mix = mlp([5, 32, 32, 1]), nn.Linear(width, 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        return self.mix(self.user(codes[:, 0]) * self.item(codes[:, 1])) + self.deep(numbers)


@healthy(source="click model: product of embeddings beside a network")
def h_j_clicks(seed: int) -> Case:
    return Case(seed=seed, model=Factors(), data=clicks(seed), optimizer=adam(1e-2), batch_size=64, max_steps=250, **BCE)


@faulty("bad_data", "unnormalised_input", twin="h_j_clicks", margin=0.08, source="missing numbers coded -999, not told apart")
def f_j_clicks_sentinel(case: Case) -> None:
    g = rng(906, case.seed)
    hole = lambda z: z.masked_fill(torch.rand(z.shape, generator=g) < 0.04, -999.0)  # noqa: E731
    case.data = replace(case.data, 1, hole)  # type: ignore[arg-type]


@faulty("init_symmetry", "init_vanishing", twin="h_j_clicks", source="both embeddings of a product start at zero: a saddle")
def f_j_clicks_zero_tables(case: Case) -> None:
    for table in (case.model.user, case.model.item):
        nn.init.zeros_(table.weight)  # type: ignore[union-attr, arg-type]


@faulty("weight_decay_too_strong", twin="h_j_clicks", source="decay of the paper's AdamW given to Adam, where it is L2")
def f_j_clicks_decay(case: Case) -> None:
    case.optimizer = adam(1e-2, weight_decay=0.1)


@faulty("labels_broken", twin="h_j_clicks", source="join of features and labels on the position after one of them was filtered")
def f_j_clicks_join(case: Case) -> None:
    *inputs, y = case.data[0].tensors  # type: ignore[attr-defined]
    keep = y.clone()
    keep[300:-1] = y[301:]
    case.data = TensorDataset(*inputs, keep), case.data[1]


@faulty("lr_too_low", twin="h_j_clicks", source="eps of Adam set to 1 as for another network, at the rate of the default")
def f_j_clicks_eps(case: Case) -> None:
    case.optimizer = adam(1e-2, eps=1.0)


# ------------------------------------------------------------------------------------------ raw features behind a batch norm
def readings(seed: int, n: int = 1800) -> Split:
    """Features in their units, `[n, 6]`; a smooth target."""
    g = rng(907, seed)
    z = torch.randn(n, 6, generator=g)
    y = (1.5 * z[:, 0]).sin() + z[:, 1] * z[:, 2] + z[:, 3].abs() + 0.1 * torch.randn(n, generator=g)
    unit, offset = torch.tensor([3.0, 40.0, 0.2, 900.0, 15.0, 7.0]), torch.tensor([20.0, 100.0, 1.0, 5000.0, 0.0, -30.0])
    return split(z * unit + offset, standardise(y)[:, None])


@healthy("unnormalised_input", source="features in their units, standardised by a first batch norm")
def h_j_readings(seed: int) -> Case:
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), *mlp([6, 48, 48, 1]))
    return Case(seed=seed, model=model, data=readings(seed), optimizer=adam(5e-3), batch_size=64, max_steps=250, **MSE)


@faulty("bn_stats", twin="h_j_readings", source="momentum 0.999 meant as the share that is kept, and corrected to 0.001")
def f_j_readings_momentum(case: Case) -> None:
    case.model[0].momentum = 0.001  # type: ignore[index]


class EvalFirst(Supervised):
    def on_train_epoch_start(self) -> None:
        self.model[0].eval()


@faulty(
    "bn_eval_in_train",
    "unnormalised_input",
    "bn_stats",
    twin="h_j_readings",
    source="batch norm in eval, never fitted",
)
def f_j_readings_eval(case: Case) -> None:
    case.module = EvalFirst


@faulty("dead_relu", "bad_bias_init", twin="h_j_readings", source="all biases at -3, to begin sparse")
def f_j_readings_negative_biases(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > 1:
            nn.init.constant_(layer.bias, -3.0)


@faulty("missing_activation", twin="h_j_readings", source="F.relu(h) whose result is thrown away")
def f_j_readings_relu_ignored(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.ReLU):
            layer.forward = lambda x: (F.relu(x), x)[1]  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------ distances
class Triplets(nn.Module):
    """Scaled negative distances of an anchor to two candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp([6, 48, 16])

    def forward(self, anchor: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b, c = (F.normalize(self.body(x), dim=1) for x in (anchor, first, second))
        return 5 * torch.stack([(a * b).sum(1), (a * c).sum(1)], 1)


def margin_loss(output: Tensor, target: Tensor) -> Tensor:
    """Hinge on the difference of the similarities."""
    right, wrong = output.gather(1, target[:, None]), output.gather(1, 1 - target[:, None])
    return F.relu(1 + wrong - right).mean()


@healthy("wrong_loss", source="triplet margin loss on unit vectors")
def h_j_triplets(seed: int) -> Case:
    return Case(
        seed=seed, model=Triplets(), data=judgements(seed), loss=margin_loss, metric="accuracy", optimizer=adam(5e-3),
        max_steps=200,
    )  # fmt: skip


@faulty("loss_sign", twin="h_j_triplets", source="positive and negative swapped in the triplet loss")
def f_j_triplets_swapped(case: Case) -> None:
    case.loss = lambda output, target: margin_loss(output, 1 - target)


# ------------------------------------------------------------------------------------------ several tasks
class Tasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp([8, 48, 32], last=nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return torch.cat([head(h) for head in self.heads], 1)


@healthy(source="three regressions on one trunk, equal weights")
def h_j_tasks(seed: int) -> Case:
    return Case(
        seed=seed, model=Tasks(), data=several(seed), loss=F.mse_loss, metric="each_r2", optimizer=sgd(0.05), max_steps=250
    )


@healthy(source="the same under Adam")
def h_j_tasks_adam(seed: int) -> Case:
    case = h_j_tasks(seed)
    case.optimizer = adam(5e-3)
    return case


@faulty("unnormalised_target", twin="h_j_tasks_adam", source="one of the targets left in its unit outweighs the others")
def f_j_tasks_one_in_units(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: y * torch.tensor([1.0, 60.0, 1.0]))  # type: ignore[arg-type]


@faulty("detached_subgraph", twin="h_j_tasks", source="losses of the tasks summed with .item(), but for the first")
def f_j_tasks_item(case: Case) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        first, *others = (F.mse_loss(output[:, i], target[:, i]) for i in range(3))
        return first + sum(other.item() for other in others)

    case.loss = loss


@faulty("clip_too_small", twin="h_j_tasks", source="gradient_clip_val=1e-3 from a script with another loss")
def f_j_tasks_clipped(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-3}
