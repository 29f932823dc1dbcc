"""Tables with embeddings, recommenders, forecasts, sounds, and what goes wrong in them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import Split, reorder, replace, rng, split, surface
from tests.zoo.more_data import customers, pulses, ratings, swings, tidy
from tests.zoo.nets import BCE, CE, MSE, adam, adamw, init_weights, mlp, normal


class Shop(nn.Module):
    """One embedding per code, joined with the numbers."""

    def __init__(self, registered: bool = True) -> None:
        super().__init__()
        tables = [nn.Embedding(k, 4) for k in (12, 7, 5)]
        self.tables = nn.ModuleList(tables) if registered else tables
        self.top = mlp([16, 48, 48, 1])

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        embedded = [table(code) for table, code in zip(self.tables, codes.T, strict=True)]
        return self.top(torch.cat([*embedded, numbers], 1))


@healthy(source="tabular model: entity embeddings and standardised numbers")
def h_shop_entities(seed: int) -> Case:
    return Case(seed=seed, model=Shop(), data=tidy(customers(seed, n=3000)), optimizer=adamw(5e-3), max_steps=250, **BCE)


@faulty("unnormalised_input", twin="h_shop_entities", source="income in euros next to embeddings of unit size")
def f_shop_euros(case: Case) -> None:
    case.data = customers(case.seed, n=3000)


@faulty("train_val_mismatch", twin="h_shop_entities", source="category codes fitted anew on the validation table")
def f_shop_refitted_codes(case: Case) -> None:
    turn = torch.tensor([5, 3, 2]), torch.tensor([12, 7, 5])
    case.data = replace(case.data, 0, lambda codes: (codes + turn[0]) % turn[1], train=False)  # type: ignore[arg-type]


@faulty("wrong_loss", twin="h_shop_entities", source="hinge loss given labels 0 / 1 where it wants -1 / 1")
def f_shop_hinge_of_zero_one(case: Case) -> None:
    case.loss = lambda output, target: F.relu(1 - target * output).mean()


# ------------------------------------------------------------------------------------------ ratings
class Factors(nn.Module):
    """The product of a user's and an item's factors, and their biases."""

    def __init__(self, rank: int = 4, std: float = 0.3) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, rank), nn.Embedding(40, rank)
        self.user_bias, self.item_bias, self.mean = nn.Embedding(50, 1), nn.Embedding(40, 1), nn.Parameter(torch.tensor([3.0]))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=std)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        user, item = x.T
        product = (self.user(user) * self.item(item)).sum(1, keepdim=True)
        return self.mean + product + self.user_bias(user) + self.item_bias(item)


@healthy("bad_bias_init", "init_symmetry", source="biased matrix factorisation, the mean rating as offset")
def h_film_factors(seed: int) -> Case:
    return Case(seed=seed, model=Factors(), data=ratings(seed), optimizer=adam(2e-2), max_steps=300, batch_size=64, **MSE)


@faulty(
    "init_symmetry", "init_vanishing", twin="h_film_factors", source="both factor tables start at zero: no gradient for either"
)
def f_film_zero_tables(case: Case) -> None:
    case.model = Factors(std=0.0)


class Flat(Factors):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(1)


@faulty("shape_broadcast", twin="h_film_factors", source="forum: MSE of [n] and [n, 1] broadcasts to [n, n]")
def f_film_flat_prediction(case: Case) -> None:
    case.model = Flat()


@faulty("weight_decay_too_strong", twin="h_film_factors", source="L2 penalty on embeddings added as a sum over the tables")
def f_film_summed_penalty(case: Case) -> None:
    def loss(output: Tensor, target: Tensor, model: Any = case.model) -> Tensor:
        return F.mse_loss(output, target) + 0.1 * sum(p.square().sum() for p in model.parameters())

    case.loss = loss


# ------------------------------------------------------------------------------------------ houses
@healthy(
    source="house prices, standardised, MLP with layer norm",
)
def h_price_model(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([8, 64, 64, 1], norm=nn.LayerNorm), data=surface(seed), optimizer=adam(3e-3), max_steps=250, **MSE
    )


@faulty("data_not_shuffled", twin="h_price_model", source="table sorted by price, read in order")
def f_price_sorted_table(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


@faulty("bad_data", "unnormalised_target", twin="h_price_model", source="missing prices coded as -9999")
def f_price_missing_code(case: Case) -> None:
    def code(y: Tensor) -> Tensor:
        return torch.where(torch.rand(y.shape, generator=rng(903, case.seed)) < 0.03, -9999.0, y)

    case.data = replace(case.data, -1, code, val=False)  # type: ignore[arg-type]


@faulty("nan_loss", twin="h_price_model", source="RMSLE of standardised values: logarithm of negative numbers")
def f_price_log_of_negative(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output.log1p(), target.log1p()).sqrt()


@faulty(
    "wrong_hidden_activation", "init_symmetry", twin="h_price_model", source="DeepCrime: hidden activation replaced by softmax"
)
def f_price_softmax_hidden(case: Case) -> None:
    case.model = mlp([8, 64, 64, 1], act=lambda: nn.Softmax(1), norm=nn.LayerNorm)


# ------------------------------------------------------------------------------------------ counts
def claims(seed: int, n: int = 3000) -> Split:
    """Counts of about twenty whose log rate is smooth in the inputs."""
    g = rng(905, seed)
    x = torch.randn(n, 6, generator=g)
    log_rate = 3 + 0.5 * x[:, 0].tanh() + 0.5 * (1.5 * x[:, 1]).sin() + 0.3 * x[:, 2].tanh() * x[:, 3].tanh()
    return split(x, torch.poisson(log_rate.exp(), generator=g)[:, None])


@healthy("nan_loss", "bad_bias_init", source="claims per policy, Poisson regression with log link")
def h_claim_counts(seed: int) -> Case:
    model = mlp([6, 48, 48, 1])
    nn.init.constant_(model[-1].bias, 3.0)
    return Case(
        seed=seed, model=model, data=claims(seed), loss=F.poisson_nll_loss, metric="log_r2",
        optimizer=adam(3e-3), max_steps=350,
    )  # fmt: skip


@faulty(
    "bad_bias_init", "init_exploding", twin="h_claim_counts", source="output bias set to the mean count, not to its logarithm"
)
def f_claim_bias_without_log(case: Case) -> None:
    nn.init.constant_(case.model[-1].bias, case.data[0].tensors[-1].mean().item())  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ forecasts
class Forecaster(nn.Module):
    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x[..., None])[1][0])


@healthy(source="two-step forecast with a GRU, clipping at 1")
def h_swing_forecast(seed: int) -> Case:
    return Case(
        seed=seed, model=Forecaster(), data=swings(seed), optimizer=adam(1e-2), max_steps=200,
        trainer={"gradient_clip_val": 1.0}, **MSE,
    )  # fmt: skip


@faulty("train_val_mismatch", twin="h_swing_forecast", source="scaler fitted on the test windows' own minimum and maximum")
def f_swing_own_scaler(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: (x - x.min()) / (x.max() - x.min()), train=False)  # type: ignore[arg-type]


class Teacher(Forecaster):
    """The recurrence is detached at every step, a truncation of length one."""

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.rnn(x[:, t : t + 1, None], None if state is None else state.detach())[1]
        return self.out(state[0])


@faulty("detached_subgraph", twin="h_swing_forecast", source="truncated BPTT: the state is detached each step", margin=0.05)
def f_swing_truncated(case: Case) -> None:
    case.model = Teacher()


# ------------------------------------------------------------------------------------------ sounds
def sound_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, padding=2), nn.Tanh(), nn.MaxPool1d(2), nn.Conv1d(12, 24, 5, padding=2), nn.Tanh(), nn.MaxPool1d(2),
        nn.Conv1d(24, 24, 5, padding=2), nn.Tanh(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


@healthy(source="sound events from two microphones, 1-D CNN with tanh")
def h_click_detector(seed: int) -> Case:
    return Case(seed=seed, model=sound_net(), data=pulses(seed), optimizer=adam(3e-3), max_steps=250, **CE)


@faulty("saturation", "bad_gain", "init_exploding", twin="h_click_detector", source="tanh network initialised with N(0, 2)")
def f_click_saturated(case: Case) -> None:
    init_weights(case.model, normal(2.0))


@faulty("labels_broken", twin="h_click_detector", source="annotators disagree: more than half of the labels are random")
def f_click_noisy_labels(case: Case) -> None:
    def noisy(y: Tensor) -> Tensor:
        g = rng(904, case.seed)
        return torch.where(torch.rand(len(y), generator=g) < 0.8, torch.randint(3, (len(y),), generator=g), y)

    case.data = replace(case.data, -1, noisy, val=False)  # type: ignore[arg-type]
