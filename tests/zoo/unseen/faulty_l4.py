"""Programs of plain tensors, deep stacks, adapters, small clinics."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, attributes, blobs, digits, replace, rings, rng, split
from tests.zoo.more_data import arcs, centred, shapes
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, init_weights, lecun, mlp, sgd


# ------------------------------------------------------------------------------------------ NumPy's MLP
class FromScratch(nn.Module):
    """`relu(x @ w1 + b1) @ w2 + b2`, as in the course that forbids nn.Linear."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.randn(a, b) * (2 / a) ** 0.5) for a, b in pairwise(sizes))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(b)) for _, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for w, b in zip(self.w[:-1], self.b[:-1], strict=True):
            x = (x @ w + b).clamp_min(0)
        return x @ self.w[-1] + self.b[-1]


class AffineOnly(FromScratch):
    def forward(self, x: Tensor) -> Tensor:
        for w, b in zip(self.w, self.b, strict=True):
            x = torch.addmm(b, x, w)
        return x


@healthy(source="an MLP of raw parameters with He's scale, SGD with momentum")
def h_scratcher(seed: int) -> Case:
    return Case(seed=seed, model=FromScratch(2, 48, 48, 3), data=rings(seed), optimizer=sgd(0.05), max_steps=250, **CE)


@faulty("init_symmetry", twin="h_scratcher", source="the same seed set before each layer and each neuron: equal columns")
def f_scratcher_equal_columns(case: Case) -> None:
    for w in list(case.model.w)[:-1]:  # type: ignore[arg-type, call-overload]
        w.data = w.data[:, :1].expand_as(w).clone()
    last = case.model.w[-1]  # type: ignore[index]
    last.data = last.data[:1].expand_as(last).clone()


@faulty("missing_activation", twin="h_scratcher", source="StackOverflow: a stack of affine maps is one")
def f_scratcher_affine(case: Case) -> None:
    case.model = AffineOnly(2, 48, 48, 3)


@faulty("dead_relu", "bad_bias_init", twin="h_scratcher", source="hidden biases drawn from U(-6, -3), a sign slip")
def f_scratcher_low_biases(case: Case) -> None:
    for b in list(case.model.b)[:-1]:  # type: ignore[arg-type, call-overload]
        nn.init.uniform_(b, -6, -3)


# ------------------------------------------------------------------------------------------ deep stacks
def tower(act: type[nn.Module], width: int = 40, depth: int = 9) -> nn.Sequential:
    return mlp([8, *[width] * depth, 4], act)


@healthy("init_vanishing", "saturation", source="nine tanh layers with LeCun's scale")
def h_tower(seed: int) -> Case:
    model = init_weights(tower(nn.Tanh), lecun)
    return Case(seed=seed, model=model, data=blobs(seed), optimizer=sgd(0.03), max_steps=350, **CE)


@faulty(
    "saturation",
    "bad_gain",
    "init_exploding",
    twin="h_tower",
    source="xavier_uniform_ with gain=5 for calculate_gain('tanh') = 5 / 3",
)
def f_tower_gain_five(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.xavier_uniform_(w, gain=5.0))


@faulty("bad_gain", "init_vanishing", twin="h_tower", source="an orthogonal initialisation with gain 0.5 in each of ten layers")
def f_tower_half_gain(case: Case) -> None:
    init_weights(case.model, lambda w: nn.init.orthogonal_(w, gain=0.5))


@faulty(
    "wrong_hidden_activation",
    "init_vanishing",
    "bad_gain",
    twin="h_tower",
    source="softmax between hidden layers, as the last one has it",
)
def f_tower_softmax(case: Case) -> None:
    for i, layer in enumerate(case.model):  # type: ignore[arg-type, var-annotated]
        if isinstance(layer, nn.Tanh) and i > 8:
            case.model[i] = nn.Softmax(1)  # type: ignore[operator, index]


# ------------------------------------------------------------------------------------------ adapters
class Adapted(nn.Module):
    """A frozen linear layer and a low-rank update that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 6) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * x @ self.down.T @ self.up.T


def pretrained(seed: int) -> nn.Sequential:
    """A net that reads transposed digits."""
    x, y = digits(seed + 50, flat=False)[0].tensors
    x, net = x.transpose(2, 3).flatten(1), mlp([64, 48, 48, 10])
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for i in range(150):
        rows = slice(i % 10 * 90, i % 10 * 90 + 90)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


@healthy("frozen_by_accident", "init_symmetry", source="Hu et al. 2021: LoRA on all layers of a frozen net")
def h_adapter(seed: int) -> Case:
    net = pretrained(seed)
    layers = [Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in net]
    frozen = [f"model.{i}.base.{what}" for i in (0, 2, 4) for what in ("weight", "bias")]
    return Case(
        seed=seed, model=nn.Sequential(*layers), data=digits(seed), frozen=frozen, max_steps=250, **CE,
        optimizer=lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3),
    )  # fmt: skip


@faulty(
    "init_symmetry", "init_vanishing", "no_update", twin="h_adapter", source="both factors of a low-rank update start at zero"
)
def f_adapter_both_zero(case: Case) -> None:
    for layer in case.model:  # type: ignore[attr-defined]
        if isinstance(layer, Adapted):
            nn.init.zeros_(layer.down)


# ------------------------------------------------------------------------------------------ several labels
@healthy("wrong_loss", source="multi-label tagging with one logit per tag")
def h_taggist(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))
    return Case(seed=seed, model=model, data=attributes(seed), optimizer=adamw(5e-3), max_steps=250, **BCE)


@faulty(
    "wrong_last_activation",
    "wrong_loss",
    twin="h_taggist",
    source="scores clamped to quieten BCELoss's 'between 0 and 1'",
    margin=0.06,
)
def f_taggist_clamped(case: Case) -> None:
    case.loss, case.metric = (lambda out, y: F.binary_cross_entropy(out.clamp(0, 1), y)), "probability_accuracy"


@faulty(
    "bn_stats", "batch_mixing", twin="h_taggist", source="a batch size of 2 for want of memory, batch norm kept", margin=0.06
)
def f_taggist_two_rows(case: Case) -> None:
    case.batch_size = 2


@faulty(
    "train_val_mismatch",
    "labels_broken",
    twin="h_taggist",
    source="MultiLabelBinarizer fitted anew on training and validation: columns in another order",
)
def f_taggist_columns(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: y.roll(1, 1), val=False)


# ------------------------------------------------------------------------------------------ a small clinic
def clinic(seed: int, train: int = 150) -> Split:
    """Few patients, twenty blood values, a noisy score."""
    g = rng(951, seed)
    x = torch.randn(train + 600, 20, generator=g)
    y = x[:, :6].sum(1) / 6**0.5 + 0.4 * x[:, 0] * x[:, 1] + 0.6 * torch.randn(len(x), generator=g)
    return split(x, y[:, None], val=600 / len(x))


@healthy("weight_decay_too_strong", source="few rows: a small net, L2 and dropout")
def h_clinic(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 1))
    return Case(
        seed=seed,
        model=model,
        data=clinic(seed),
        optimizer=adam(5e-3, weight_decay=0.2),
        val_batch_size=600,
        max_steps=500,
        **MSE,
    )


@faulty("overfit_no_regularisation", twin="h_clinic", source="150 rows, a hundred epochs, no decay, no dropout")
def f_clinic_unbridled(case: Case) -> None:
    case.model, case.optimizer = mlp([20, 24, 1]), adam(5e-3)


# ------------------------------------------------------------------------------------------ a patch encoder
class Patches(nn.Module):
    """4 x 4 patches, mixed by two MLPs."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.tokens, self.channels = mlp([16, 32, 16], nn.GELU), mlp([width, 48, width], nn.GELU)
        self.norm1, self.norm2, self.head = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, 4)

    def flat(self, x: Tensor) -> Tensor:
        return self.patch(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


@healthy(source="a small MLP-mixer on coloured shapes, AdamW and cosine")
def h_mixer_tiles(seed: int) -> Case:
    return Case(
        seed=seed, model=Patches(), data=centred(shapes(seed, n=2400)), optimizer=adamw(5e-3), max_steps=400,
        scheduler=lambda o: {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(o, 400), "interval": "step"}, **CE,
    )  # fmt: skip


@faulty(
    "missing_activation",
    twin="h_mixer_tiles",
    source="the activation built in __init__ and never called in forward",
    margin=0.08,
)
def f_mixer_tiles_uncalled(case: Case) -> None:
    for part in (case.model.tokens, case.model.channels):
        part[1] = nn.Identity()  # type: ignore[operator, index]


# ------------------------------------------------------------------------------------------ missing values
def measured(seed: int) -> Split:
    """Arcs with two dead sensors: zero everywhere."""
    return replace(arcs(seed), 0, lambda x: torch.cat([x, torch.zeros(len(x), 2)], 1))


@healthy("bad_data", source="columns that are constant, standardised with a floor for the deviation")
def h_sensors(seed: int) -> Case:
    return Case(seed=seed, model=mlp([7, 40, 40, 3], nn.ELU), data=measured(seed), optimizer=adam(4e-3), max_steps=200, **CE)


@faulty("nan_loss", "bad_data", twin="h_sensors", source="(x - mean) / std over columns of which some are constant: 0 / 0")
def f_sensors_standardised(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: (x - x.mean(0)) / x.std(0))


def holes(x: Tensor) -> Tensor:
    return x.masked_fill(torch.rand_like(x) < 0.002, float("nan"))


@faulty("bad_data", "nan_loss", twin="h_sensors", source="pandas: empty cells arrive as NaN")
def f_sensors_empty_cells(case: Case) -> None:
    case.data = replace(case.data, 0, holes, val=False)
