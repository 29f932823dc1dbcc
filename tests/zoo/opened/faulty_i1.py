"""Tables: own networks, own training steps, embeddings of codes, rare events."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import blobs, rare_blobs, replace, rng, split, standardise, surface
from tests.zoo.more_data import customers, tidy
from tests.zoo.nets import CE, MSE, adam, adamw, mlp, sgd


# ------------------------------------------------------------------------------------------ three layers, functional
class Triage(nn.Module):
    """Three linear layers with functional activations."""

    def __init__(self, dim: int = 8, width: int = 48, classes: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, classes)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.hidden(x))


@healthy(source="everyday classifier of a table with nn.Module and functional ReLU")
def h_ticket_desk(seed: int) -> Case:
    return Case(seed=seed, model=Triage(), data=blobs(seed, spread=0.25), optimizer=sgd(0.03), max_steps=260, **CE)


@faulty(
    "wrong_last_activation", twin="h_ticket_desk", source="StackOverflow: softmax in forward and CrossEntropyLoss", margin=0.05
)
def f_ticket_desk_softmaxed(case: Case) -> None:
    class Softmaxed(Triage):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(super().forward(x), dim=1)

    case.model = Softmaxed()


@faulty("wrong_hidden_activation", twin="h_ticket_desk", source="Humbatova 2020: wrong activation; softmax between the layers")
def f_ticket_desk_inner_softmax(case: Case) -> None:
    class Inner(Triage):
        def hidden(self, x: Tensor) -> Tensor:
            return F.softmax(self.fc2(F.softmax(self.fc1(x), dim=1)), dim=1)

    case.model = Inner()


@faulty("missing_activation", twin="h_ticket_desk", source="Code review: the result of F.relu is never assigned")
def f_ticket_desk_unassigned(case: Case) -> None:
    class Unassigned(Triage):
        def hidden(self, x: Tensor) -> Tensor:
            x = self.fc1(x)
            F.relu(x)
            x = self.fc2(x)
            F.relu(x)
            return x

    case.model = Unassigned()


@faulty("wrong_loss", twin="h_ticket_desk", source="PyTorch forum: NLLLoss on raw scores, log_softmax forgotten", margin=0.05)
def f_ticket_desk_raw_nll(case: Case) -> None:
    case.loss = F.nll_loss


@faulty("init_symmetry", twin="h_ticket_desk", source="DeepCrime: all weights start at zero")
def f_ticket_desk_zeros(case: Case) -> None:
    for p in case.model.parameters():
        nn.init.zeros_(p)


@faulty(
    "loss_reduction", "lr_too_high", twin="h_ticket_desk", source="reduction='sum' with the rate that was tuned for the mean"
)
def f_ticket_desk_summed(case: Case) -> None:
    case.loss = nn.CrossEntropyLoss(reduction="sum")


@faulty(
    "detached_subgraph",
    "no_update",
    twin="h_ticket_desk",
    source="loss wrapped anew in a tensor that requires grad",
)
def f_ticket_desk_rewrapped(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target).detach().clone().requires_grad_()


@faulty(
    "batch_mixing", twin="h_ticket_desk", source="Karpathy: view where permute was meant; columns stacked first, rows wanted"
)
def f_ticket_desk_columns(case: Case) -> None:
    class Columns(Triage):
        def forward(self, x: Tensor) -> Tensor:
            columns = torch.stack([column.clamp(-3, 3) for column in x.unbind(1)])
            return super().forward(columns.view(len(x), -1))

    case.model = Columns()


# ------------------------------------------------------------------------------------------ by hand
class ByHand(Supervised):
    """The textbook loop: zero, forward, backward, step."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss_fn(self(x), y)
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        optimizer.step()
        self.log("train_loss", loss, batch_size=len(y))


@healthy("gradients_not_zeroed", source="a regression of a table with manual optimisation and clipping that seldom bites")
def h_hand_driven(seed: int) -> Case:
    net = mlp([8, 48, 48, 1], nn.Tanh)
    return Case(seed=seed, model=net, data=surface(seed), optimizer=sgd(0.05), module=ByHand, max_steps=350, **MSE)


@faulty("gradients_not_zeroed", twin="h_hand_driven", source="Karpathy: you forgot to .zero_grad() before .backward()")
def f_hand_driven_unzeroed(case: Case) -> None:
    class Unzeroed(ByHand):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
            x, y = batch
            loss = self.loss_fn(self(x), y)
            self.manual_backward(loss)
            nn.utils.clip_grad_norm_(self.parameters(), 5.0)
            self.optimizers().step()
            self.log("train_loss", loss, batch_size=len(y))

    case.module = Unzeroed


@faulty("no_update", "gradients_not_zeroed", twin="h_hand_driven", source="PyTorch forum: zero_grad between backward and step")
def f_hand_driven_wiped(case: Case) -> None:
    class Wiped(ByHand):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
            x, y = batch
            loss = self.loss_fn(self(x), y)
            self.manual_backward(loss)
            nn.utils.clip_grad_norm_(self.parameters(), 5.0)
            self.zero_grad()
            self.optimizers().step()
            self.log("train_loss", loss, batch_size=len(y))

    case.module = Wiped


@faulty("shape_broadcast", twin="h_hand_driven", source="StackOverflow: target [N] against output [N, 1] under MSELoss")
def f_hand_driven_flat_target(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output, target.squeeze(-1))


# ------------------------------------------------------------------------------------------ codes and numbers
class Shop(nn.Module):
    """Embeddings of three codes next to four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, 4) for k in (12, 7, 5))
        self.top = mlp([16, 48, 24, 1])

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        return self.top(torch.cat([*(table(code) for table, code in zip(self.tables, codes.T, strict=True)), numbers], 1))


@healthy(source="everyday tabular model: embeddings of categories, standardised numbers, AdamW")
def h_shop_counter(seed: int) -> Case:
    loss = F.binary_cross_entropy_with_logits
    return Case(
        seed=seed, model=Shop(), data=tidy(customers(seed)), loss=loss, metric="binary_accuracy", optimizer=adamw(4e-3),
        max_steps=350,
    )  # fmt: skip


@faulty("unnormalised_input", twin="h_shop_counter", source="Islam 2019: incomes in euros beside shares, no scaling")
def f_shop_counter_in_euros(case: Case) -> None:
    case.data = customers(case.seed)


@faulty("train_val_mismatch", twin="h_shop_counter", source="scaler fitted and applied to the training file only", margin=0.08)
def f_shop_counter_scaled_once(case: Case) -> None:
    case.data = case.data[0], customers(case.seed)[1]


@faulty(
    "labels_broken", "wrong_loss", twin="h_shop_counter", source="labels -1 and 1 from an SVM file under binary cross-entropy"
)
def f_shop_counter_signed(case: Case) -> None:
    case.data = replace(case.data, 2, lambda y: 2 - 3 * y, val=False)


@faulty("wrong_loss", twin="h_shop_counter", source="StackOverflow: cross_entropy on a single output is always zero")
def f_shop_counter_one_class(case: Case) -> None:
    case.loss = F.cross_entropy


# ------------------------------------------------------------------------------------------ rare events
@healthy("class_imbalance", source="fraud: one in 25, a weight on the positive class")
def h_fraud_watch(seed: int) -> Case:
    weight = torch.tensor([24.0])
    return Case(
        seed=seed, model=mlp([6, 32, 32, 1]), data=replace(rare_blobs(seed, 0.04, 3000), 1, lambda y: y.float()[:, None]),
        loss=lambda output, target: F.binary_cross_entropy_with_logits(output, target, pos_weight=weight),
        metric="balanced_binary", optimizer=adam(2e-3), max_steps=300, batch_size=64, val_batch_size=1000,
    )  # fmt: skip


@faulty("class_imbalance", twin="h_fraud_watch", source="the share of the positives handed over as their weight")
def f_fraud_watch_upside_down(case: Case) -> None:
    weight = torch.tensor([0.04])
    case.loss = lambda output, target: F.binary_cross_entropy_with_logits(output, target, pos_weight=weight)


@faulty(
    "bad_bias_init", twin="h_fraud_watch", source="prior bias of the head computed in percent, not as a log-odds", margin=0.05
)
def f_fraud_watch_percent(case: Case) -> None:
    nn.init.constant_(case.model[-1].bias, -96.0)


# ------------------------------------------------------------------------------------------ a small noisy study
@healthy("overfit_no_regularisation", "weight_decay_too_strong", source="ridge regression on harmonics, few noisy points")
def h_tide_gauge(seed: int) -> Case:
    g = rng(9501, seed)
    t = 6.283 * torch.rand(760, 1, generator=g)
    y = t.sin() + 0.7 * (2 * t).cos() + 0.5 * (3 * t).sin() + 0.4 * torch.randn(760, 1, generator=g)
    waves = t * torch.arange(1, 51)
    x = torch.cat([waves.sin(), waves.cos()], 1) * 2**0.5
    return Case(
        seed=seed, model=nn.Linear(100, 1), data=split(x, standardise(y), val=0.75), optimizer=sgd(0.02, weight_decay=0.3),
        max_steps=1000, **MSE,
    )  # fmt: skip


@faulty("overfit_no_regularisation", twin="h_tide_gauge", source="more features than rows, and the ridge penalty left out")
def f_tide_gauge_by_heart(case: Case) -> None:
    case.optimizer = sgd(0.02)
