"""Faulty: steps that a loop takes by hand, tables that also read out, codes for what is missing, mixup."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.case import Case, faulty
from tests.zoo.data import replace, rng
from tests.zoo.healthy_batches import Mixup
from tests.zoo.healthy_by_hand import ClippedByHand, TiedLanguage
from tests.zoo.healthy_loops import Manual


@faulty(
    "loss_reduction",
    "lr_too_low",
    twin="h_manual_mean_of_four",
    source="four batches to a step: the mean divided by their samples, as a sum would be",
)
def f_manual_mean_of_mean(case: Case) -> None:
    case.loss = lambda output, target: F.cross_entropy(output, target) / len(target)


@faulty(
    "clip_too_small",
    "lr_too_low",
    twin="h_value_clip_by_hand",
    source="clip_grad_value_ by hand at 1e-5, meant for a norm over the number of elements",
)
def f_value_clip_by_hand(case: Case) -> None:
    class Tighter(ClippedByHand):
        most = 1e-5

    case.module = Tighter


@faulty("clip_too_small", "lr_too_low", twin="h_manual_optimisation", source="clip_grad_norm_ at 1e-3 behind manual_backward")
def f_norm_clip_by_hand(case: Case) -> None:
    class Clipped(Manual):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            super().manual_backward(loss, *args, **kwargs)
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-3)

    case.module = Clipped


@faulty(
    "init_exploding",
    "bad_gain",
    twin="h_tied_table_read_out",
    source="nn.Embedding left at unit variance, and tied to the head: the first loss is far above log(V)",
)
def f_tied_table_of_unit_size(case: Case) -> None:
    case.model = TiedLanguage(std=1.0)


@faulty(
    "bad_data",
    "unnormalised_input",
    twin="h_codes_for_missing_in_a_column",
    source="-999 for what is missing in a column, taken for a number",
    margin=0.05,
)
def f_codes_for_missing(case: Case) -> None:
    case.model = case.model.net  # type: ignore[assignment]


@faulty(
    "bad_data",
    "unnormalised_input",
    twin="h_imputed_columns",
    source="-999 for what is missing stays in the columns when they are standardised: all else becomes one number",
    margin=0.05,
)
def f_codes_standardised(case: Case) -> None:
    def code(x: Tensor) -> Tensor:
        missing = torch.rand(x.shape, generator=rng(1203, case.seed)) < 0.1
        coded = x.masked_fill(missing, -999.0)
        return (coded - coded.mean(0)) / coded.std(0)

    case.data = replace(case.data, 0, code)


@faulty("labels_broken", twin="h_mixup", source="mixup: each target gets the weight of the other sample", margin=0.05)
def f_mixup_swapped(case: Case) -> None:
    class Exchanged(Mixup):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            share, other = torch.distributions.Beta(0.3, 0.3).sample(), torch.randperm(len(x))
            output = self(share * x + (1 - share) * x[other])
            return (1 - share) * self.loss_fn(output, y) + share * self.loss_fn(output, y[other])

    case.module = Exchanged
