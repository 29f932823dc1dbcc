"""Faulty, second set: what should learn and does not - frozen, left out, cut off, never stepped - and samples that mix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, Supervised, faulty
from tests.zoo.healthy_meant import RestsFirst
from tests.zoo.healthy_passes import InFirstStep, SharpnessAware
from tests.zoo.healthy_routes import Quantised
from tests.zoo.healthy_shapes import strided
from tests.zoo.healthy_shared import Probe
from tests.zoo.healthy_signals import Mixer
from tests.zoo.nets import trainable


# ------------------------------------------------------------------------------------------ frozen
@faulty(
    "frozen_by_accident",
    twin="h_translator",
    source="a prefix that matches too much: everything but what starts with 'head' or 's' is frozen, untrained",
)
def f_prefix_matches_reader(case: Case) -> None:
    for name, p in case.model.named_parameters():
        p.requires_grad_(name.startswith(("head", "s")))
    case.optimizer = trainable(torch.optim.Adam, lr=1.5e-2)


@faulty("frozen_by_accident", twin="h_hashed_words", source="freeze=True left in: random vectors of hashed words", margin=0.03)
def f_random_bag_frozen(case: Case) -> None:
    case.model.bag.weight.requires_grad_(False)  # type: ignore[union-attr, operator]


@faulty(
    "frozen_by_accident",
    "detached_subgraph",
    "bn_eval_in_train",
    twin="h_linear_probe",
    source="the checkpoint was never loaded: a probe of random features",
)
def f_probe_of_random_features(case: Case) -> None:
    case.model = Probe(strided(nn.BatchNorm2d), 24, 4)  # type: ignore[arg-type]


@faulty(
    "frozen_by_accident",
    twin="h_convnext",
    source="a freezing loop by index stops one too late: head and last block",
    margin=0.1,
)
def f_head_and_block_frozen(case: Case) -> None:
    for layer in (case.model[0], case.model[2], case.model[3], case.model[6]):  # type: ignore[index]
        layer.requires_grad_(False)
    case.optimizer = trainable(torch.optim.AdamW, lr=1e-2)


class StaysAtRest(RestsFirst):
    """Sets an attribute of the body."""

    @staticmethod
    def thaw(body: nn.Module) -> None:
        body.requires_grad = True  # type: ignore[assignment]


@faulty("frozen_by_accident", twin="h_body_rests_first", source="body.requires_grad = True instead of requires_grad_(True)")
def f_body_stays_at_rest(case: Case) -> None:
    case.module = StaysAtRest


# ------------------------------------------------------------------------------------------ not in the optimiser
class VerdictOnly(InFirstStep):
    """Optimises `verdict`, and forgets `trunk`."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.verdict.parameters(), lr=1e-2)


@faulty("not_in_optimizer", twin="h_dictionaries", source="Lightning: configure_optimizers names one of two parts", margin=0.05)
def f_trunk_forgotten(case: Case) -> None:
    case.module = VerdictOnly


@faulty("not_in_optimizer", "no_update", twin="h_wide_deep", source="only the last layer of the deep part is handed to Adagrad")
def f_wide_part_left_out(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.Adagrad(model.deep[-1].parameters(), lr=0.08)  # type: ignore[union-attr, index]


@faulty(
    "not_in_optimizer",
    "no_update",
    twin="h_shapes_gelu",
    source="model = model.double().float(): the optimiser holds the old parameters",
)
def f_parameters_replaced(case: Case) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.Adam(model.parameters(), lr=4e-3)
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(p.detach().clone()))
        return made

    case.optimizer = optimizer


# ------------------------------------------------------------------------------------------ no update
class Rebinding(torch.optim.SGD):
    """An optimiser of one's own: `p = p - rate * grad` binds a name and leaves the parameter alone."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p = p - group["lr"] * p.grad
        return loss


@faulty("no_update", twin="h_lion", source="Stack Overflow: w = w - lr * w.grad inside a hand-written optimiser")
def f_rebinding_step(case: Case) -> None:
    case.optimizer = lambda model: Rebinding(model.parameters(), lr=0.1)


class NeverDue(Supervised):
    """Steps after each thousandth batch; an epoch has thirty-two."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / 1000)
        if (batch_idx + 1) % 1000 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


@faulty("no_update", twin="h_sharpness_aware", source="manual accumulation over more batches than an epoch has")
def f_step_never_due(case: Case) -> None:
    case.module = NeverDue
    case.trainer = {"max_steps": -1, "max_epochs": 6}


# ------------------------------------------------------------------------------------------ cut off
@faulty("detached_subgraph", twin="h_cipher_conv", source=".data in forward: activations without their graph", margin=0.05)
def f_data_in_forward(case: Case) -> None:
    case.model.act = lambda x: F.relu(x).data  # type: ignore[assignment]


class NotThrough(Quantised):
    """The codes are handed on as they are, without the straight-through trick, and detached."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        pieces = x.view(len(x), -1, 4)
        return self.codes[torch.cdist(pieces, self.codes).argmin(2)].flatten(1)


@faulty(
    "detached_subgraph",
    twin="h_quantised",
    source="vector quantisation without straight-through gradient or commitment",
    margin=0.04,
)
def f_quantised_not_through(case: Case) -> None:
    case.model[1] = NotThrough()  # type: ignore[operator]
    case.module = Supervised


@faulty(
    "detached_subgraph", twin="h_packed", source="PyTorch forum: the hidden state detached in front of the head", margin=0.05
)
def f_state_detached(case: Case) -> None:
    case.model.gru.register_forward_hook(lambda module, args, output: (output[0], output[1].detach()))  # type: ignore[union-attr]


@faulty("detached_subgraph", "no_update", twin="h_spectra", source="Stack Overflow: torch.tensor(output, requires_grad=True)")
def f_output_as_new_tensor(case: Case) -> None:
    case.model.register_forward_hook(lambda module, args, output: torch.tensor(output.tolist(), requires_grad=True))


# ------------------------------------------------------------------------------------------ mixing
class Reshaped(Mixer):
    """Patches made by one view across samples."""

    def patches(self, x: Tensor) -> Tensor:
        return x.permute(2, 0, 1).reshape(len(x), 10, 8)


@faulty("batch_mixing", twin="h_mixer", source="Karpathy: view after permute: patches of other samples", margin=0.15)
def f_patches_of_others(case: Case) -> None:
    case.model = Reshaped()


@faulty("batch_mixing", "wrong_hidden_activation", twin="h_translator", source="attention's softmax over dim=0, the batch")
def f_shares_over_batch(case: Case) -> None:
    case.model.over = 0  # type: ignore[assignment]


@faulty(
    "batch_mixing", twin="h_tagging", source="LSTM without batch_first: each step sees the steps of other samples", margin=0.08
)
def f_tags_time_first(case: Case) -> None:
    case.model.lstm.batch_first = False  # type: ignore[union-attr, assignment]


# ------------------------------------------------------------------------------------------ gradients kept
class NeverCleared(SharpnessAware):
    """Both gradients of a step, and those of all steps before, add up."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer, (x, y) = self.optimizers(), batch
        self.manual_backward(self.loss_fn(self(x), y))
        optimizer.step()


@faulty(
    "gradients_not_zeroed",
    "lr_too_high",
    twin="h_sharpness_aware",
    source="manual optimisation: zero_grad forgotten",
    margin=0.04,
)
def f_manual_never_cleared(case: Case) -> None:
    case.module = NeverCleared


class Kept(Supervised):
    """optimizer_zero_grad overridden to save time."""

    def optimizer_zero_grad(self, *_: Any) -> None:
        return


@faulty(
    "gradients_not_zeroed",
    "lr_too_high",
    "nan_loss",
    twin="h_shapes_sgd",
    source="Humbatova et al. 2020: no zero_grad, conv net",
)
def f_gradients_kept(case: Case) -> None:
    case.module = Kept


@faulty(
    "gradients_not_zeroed",
    "lr_too_high",
    "nan_loss",
    twin="h_deep_leaky",
    source="Humbatova et al. 2020: no zero_grad, deep net",
)
def f_gradients_kept_deep(case: Case) -> None:
    case.module = Kept
