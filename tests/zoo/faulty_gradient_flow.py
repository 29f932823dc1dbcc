"""Faulty: gradients that do not get where they should (frozen, detached, not in the optimiser), and samples that mix."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.nets import Recurrent, mlp, trainable, weighted


# ------------------------------------------------------------------------------------------ frozen
@faulty(
    "frozen_by_accident",
    twin="h_narrow_deep",
    source="a freezing loop left over: all but the head, on fresh weights",
    margin=0.15,
)
def f_frozen_fresh_body(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        layer.requires_grad_(False)


@faulty(
    "frozen_by_accident",
    twin="h_deep_tanh_glorot",
    source="a name test that matches too much: everything called 'weight' is frozen",
)
def f_frozen_weights_scattered(case: Case) -> None:
    for name, p in case.model.named_parameters():
        p.requires_grad_("weight" not in name)
    case.optimizer = trainable(torch.optim.SGD, lr=0.05, momentum=0.9)


@faulty(
    "frozen_by_accident", twin="h_frozen_backbone", source="the filter that freezes the body matches the new head's weight too"
)
def f_frozen_head(case: Case) -> None:
    case.model.head.weight.requires_grad_(False)  # type: ignore[union-attr, operator]


@faulty(
    "frozen_by_accident",
    twin="h_narrow_embedding",
    source="from_pretrained freezes by default: random vectors that never learn",
    margin=0.08,
)
def f_frozen_random_embedding(case: Case) -> None:
    random = case.model.embed.weight.detach()  # type: ignore[union-attr, operator]
    case.model.embed = nn.EmbeddingBag.from_pretrained(random, mode="mean")


# ------------------------------------------------------------------------------------------ optimiser
@faulty("not_in_optimizer", twin="h_narrow_deep", source="only the head's parameters given to the optimiser", margin=0.15)
def f_only_head_optimised(case: Case) -> None:
    head = weighted(case.model)[-1]
    case.optimizer = lambda model: torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)


@faulty("not_in_optimizer", "no_update", twin="h_frozen_backbone", source="the head replaced after the optimiser was built")
def f_head_replaced_later(case: Case) -> None:
    replaced = nn.Linear(case.model.head.in_features, 4)  # type: ignore[union-attr, arg-type]
    case.optimizer = lambda model: torch.optim.Adam(replaced.parameters(), lr=1e-2)


class PlainList(nn.Module):
    """Its hidden layers sit in a Python list, where `parameters()` does not see them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.hidden, self.head = list(layers[:-1]), layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)


@faulty(
    "not_in_optimizer",
    twin="h_narrow_deep",
    source="PyTorch forum classic: layers in a plain list instead of a ModuleList",
    margin=0.15,
)
def f_plain_list(case: Case) -> None:
    case.model = PlainList(list(case.model.children()))


@faulty("not_in_optimizer", twin="h_prototypes", source="torch.randn(..., requires_grad=True) where nn.Parameter was meant")
def f_loose_tensor(case: Case) -> None:
    loose = case.model.prototypes.detach().clone().requires_grad_()  # type: ignore[union-attr, operator]
    del case.model.prototypes
    case.model.prototypes = loose


# ------------------------------------------------------------------------------------------ no update
class StepForgotten(Supervised):
    """Manual optimisation: backward, but no step."""

    automatic_optimization = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))


class Logging(Supervised):
    """Logs the loss and does not return it."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        super().training_step(batch, batch_idx)


@faulty("no_update", twin="h_mlp_sgd", source="Lightning forum: training_step logs the loss and forgets to return it")
def f_loss_only_logged(case: Case) -> None:
    case.module = Logging


@faulty("no_update", twin="h_manual_optimisation", source="manual optimisation without optimizer.step()")
def f_step_forgotten(case: Case) -> None:
    case.module = StepForgotten
    case.trainer = {"max_epochs": 4, "max_steps": -1}


class ZeroedBeforeStep(Supervised):
    """The gradients are zeroed between backward and step."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.zero_grad()
        optimizer.step()


@faulty("no_update", twin="h_manual_optimisation", source="Humbatova et al. 2020: zero_grad between backward and step")
def f_zeroed_before_step(case: Case) -> None:
    case.module = ZeroedBeforeStep


@faulty("no_update", "not_in_optimizer", twin="h_mlp_sgd", source="the optimiser holds a copy of the model")
def f_optimiser_of_a_copy(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.05, momentum=0.9)


@faulty("no_update", "lr_too_low", "lr_schedule", twin="h_regression", source="a rate of 0 from the configuration file")
def f_rate_zero(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adam(model.parameters(), lr=0.0)


class Refilled(Supervised):
    """Weights restored after each step by a line meant for the start only."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "kept"):
            self.kept = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.kept)


@faulty("no_update", twin="h_digits_sgd", source="a checkpoint loaded in every step instead of once")
def f_reloaded_every_step(case: Case) -> None:
    case.module = Refilled


class StepsScratch(Supervised):
    """Manual optimisation that steps an optimiser made on the spot, of copies of the parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        copies = [p.detach().clone().requires_grad_() for p in self.model.parameters()]
        for copied, p in zip(copies, self.model.parameters(), strict=True):
            copied.grad = p.grad
        torch.optim.SGD(copies, lr=0.05).step()


@faulty(
    "no_update", "not_in_optimizer", twin="h_manual_optimisation", source="another optimiser is stepped, which holds copies"
)
def f_scratch_optimiser_stepped(case: Case) -> None:
    case.module = StepsScratch
    case.trainer = {"max_epochs": 4, "max_steps": -1}


class NewLeaf(Supervised):
    """The loss is taken out of its graph and made to require a gradient again."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        return torch.tensor(loss.item(), requires_grad=True)


@faulty(
    "no_update",
    "detached_subgraph",
    twin="h_digits_sgd",
    source="PyTorch forum classic: torch.tensor(loss, requires_grad=True)",
)
def f_loss_as_new_tensor(case: Case) -> None:
    case.module = NewLeaf


# ------------------------------------------------------------------------------------------ detached
class Cut(nn.Module):
    """Two parts with a cut between them."""

    def __init__(self, body: nn.Module, head: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.head, self.how = body, head, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                hidden = self.body(x)
        elif self.how == "numpy":
            hidden = torch.from_numpy(self.body(x).detach().numpy())
        elif self.how == "pooled":
            hidden = torch.from_numpy(self.body(x).detach().numpy().mean((2, 3)))
        else:
            hidden = self.body(x).detach()
        return self.head(hidden)


@faulty("detached_subgraph", twin="h_bottleneck", source="detach() left in from debugging, in front of the head", margin=0.1)
def f_detached_body(case: Case) -> None:
    case.model = Cut(case.model[:4], case.model[4:], "detach")  # type: ignore[index]


@faulty("detached_subgraph", twin="h_conv_average", source="torch.no_grad() around the encoder", margin=0.05)
def f_encoder_under_no_grad(case: Case) -> None:
    case.model = Cut(case.model[:5], case.model[5:], "no_grad")  # type: ignore[index]


@faulty("detached_subgraph", twin="h_autoencoder", source="a trip through numpy in the middle of the network", margin=0.1)
def f_through_numpy(case: Case) -> None:
    case.model = Cut(case.model[:5], case.model[5:], "numpy")  # type: ignore[index]


@faulty("detached_subgraph", twin="h_conv_average", source="global average pooling written in numpy", margin=0.05)
def f_pooled_in_numpy(case: Case) -> None:
    case.model = Cut(case.model[:4], nn.Linear(16, 4), "pooled")  # type: ignore[index]


class HardChoice(nn.Module):
    """Codes rounded to a grid: no gradient passes."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.one_hot(self.body(x).argmax(1), 12).float())


@faulty(
    "detached_subgraph", "wrong_hidden_activation", twin="h_digits_sgd", source="argmax in the middle of a network", margin=0.1
)
def f_argmax_inside(case: Case) -> None:
    case.model = HardChoice(mlp([64, 64, 12]), mlp([12, 64, 10]))


# ------------------------------------------------------------------------------------------ mixing
@faulty("batch_mixing", twin="h_lstm", source="PyTorch forum classic: LSTM without batch_first")
def f_lstm_time_first(case: Case) -> None:
    case.model = Recurrent(batch_first=False)


@faulty("batch_mixing", twin="h_self_attention", source="attention without batch_first attends across the batch", margin=0.05)
def f_attention_across_batch(case: Case) -> None:
    case.model.attention.batch_first = False  # type: ignore[union-attr, assignment]


@faulty("batch_mixing", "wrong_last_activation", twin="h_served_in_fours", source="log-softmax over dimension 0")
def f_softmax_over_batch(case: Case) -> None:
    case.model[-1] = nn.LogSoftmax(dim=0)  # type: ignore[operator]


class ViewedWrong(nn.Module):
    """`view` where `transpose` was meant: features of different samples land in one row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.t().contiguous().view(len(x), -1))


@faulty("batch_mixing", twin="h_digits_sgd", source="Karpathy: view instead of transpose mixes samples")
def f_view_for_transpose(case: Case) -> None:
    case.model = ViewedWrong(case.model)


@faulty("batch_mixing", twin="h_transformer_mirror", source="a transformer built without batch_first", margin=0.08)
def f_transformer_time_first(case: Case) -> None:
    for module in case.model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.batch_first = False
