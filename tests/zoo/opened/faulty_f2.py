"""Inputs, targets, labels and their order, each right and then damaged."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, rare_blobs, reorder, replace
from tests.zoo.more_data import centred, friedman, pulses, reviews, shapes
from tests.zoo.nets import CE, MSE, adam, conv1d_net, convnet, mlp, sgd


# ------------------------------------------------------------------------------------------ colour pictures
class Pictures(Dataset[Any]):
    """Pictures in [0, 1] with a transform each time that one is asked for."""

    def __init__(self, part: TensorDataset, transform: Callable[[Tensor], Tensor], shift: int = 0) -> None:
        self.x, self.y = part.tensors
        self.transform, self.shift = transform, shift

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.x[i]), self.y[(i + self.shift) % len(self.y)]


def normalised(x: Tensor) -> Tensor:
    return (x - 0.4) / 0.25


@healthy(source="torchvision-style Dataset with Normalize in its transform, small CNN")
def h_drawn_shapes(seed: int) -> Case:
    train, val = shapes(seed, n=1200)
    return Case(
        seed=seed,
        model=convnet(3, 12, 4, 16, norm=lambda width: nn.GroupNorm(4, width)),
        data=(Pictures(train, normalised), Pictures(val, normalised)),
        **CE,
        optimizer=adam(3e-3),
        max_steps=300,
    )


@faulty("labels_broken", twin="h_drawn_shapes", source="Dataset that reads the label file without its header: off by one row")
def f_drawn_labels_a_row_off(case: Case) -> None:
    train, val = shapes(case.seed, n=1200)
    case.data = Pictures(train, normalised, shift=1), Pictures(val, normalised)


@faulty(
    "train_val_mismatch", twin="h_drawn_shapes", source="validation transform forgets ToTensor's division by 255 and Normalize"
)
def f_drawn_validated_as_bytes(case: Case) -> None:
    train, val = shapes(case.seed, n=1200)
    case.data = Pictures(train, normalised), Pictures(val, lambda x: (255 * x).round())


@faulty("train_val_mismatch", twin="h_drawn_shapes", source="cv2 and PIL mixed: other polarity and channel order in validation")
def f_drawn_validated_as_negatives(case: Case) -> None:
    train, val = shapes(case.seed, n=1200)
    case.data = Pictures(train, normalised), Pictures(val, lambda x: normalised(1 - x.flip(0)))


@faulty("bad_data", twin="h_drawn_shapes", source="broken decoder: most pictures come out black, without an exception")
def f_drawn_mostly_black(case: Case) -> None:
    train, val = shapes(case.seed, n=1200)
    lost = torch.rand(len(train.tensors[0]), 1, 1, 1, generator=torch.Generator().manual_seed(case.seed)) < 0.93
    dim = TensorDataset(train.tensors[0].masked_fill(lost, 0.0), train.tensors[1])
    case.data = Pictures(dim, normalised), Pictures(val, normalised)


@faulty(
    "bad_data",
    twin="h_drawn_shapes",
    source="__getitem__ with a worker's index modulo a cache size: the same few pictures again",
)
def f_drawn_few_over_and_over(case: Case) -> None:
    train, val = shapes(case.seed, n=1200)
    few = TensorDataset(*(t[torch.arange(len(t)) % 12] for t in train.tensors))
    case.data = Pictures(few, normalised), Pictures(val, normalised)


@healthy(source="small CNN, SGD, standardised pictures")
def h_shapes_plain_sgd(seed: int) -> Case:
    model = convnet(3, 12, 4, 16)
    return Case(
        seed=seed, model=model, data=centred(shapes(seed, n=1200)), **CE, optimizer=sgd(0.03), batch_size=16, max_steps=400
    )


@faulty("unnormalised_input", twin="h_shapes_plain_sgd", source="forum: uint8 pictures cast to float and not divided by 255")
def f_shapes_as_bytes(case: Case) -> None:
    case.data = replace(shapes(case.seed, n=1200), 0, lambda x: (255 * x).round())


@faulty("data_not_shuffled", twin="h_shapes_plain_sgd", source="ImageFolder order (class by class) with shuffle=False")
def f_shapes_folder_by_folder(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ signals
@healthy(source="1-D CNN on standardised two-channel signals")
def h_pulse_detector(seed: int) -> Case:
    return Case(
        seed=seed, model=conv1d_net(2, 12, 3), data=pulses(seed), **CE, optimizer=adam(5e-3), batch_size=32, max_steps=300
    )


@faulty(
    "labels_broken",
    "train_val_mismatch",
    twin="h_pulse_detector",
    source="Northcutt 2021 taken further: annotators' class ids mapped by two tables",
)
def f_pulse_half_relabelled(case: Case) -> None:
    g = torch.Generator().manual_seed(case.seed)
    case.data = replace(
        case.data,  # type: ignore[arg-type]
        1,
        lambda y: torch.where(torch.rand(y.shape, generator=g) < 0.6, (y + 1) % 3, y),
        val=False,
    )


@faulty("unnormalised_input", twin="h_pulse_detector", source="sensor counts around 2^15 with the signal in the last digits")
def f_pulse_raw_counts(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: 32768 + 40 * x)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ words in dictionaries
class Valence(nn.Module):
    """The sum of the scores of the words, padding left out, through a small MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=0)
        self.top = mlp([16, 32, 2])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.top(self.embed(tokens).sum(1) / 3)


class OfDicts(Supervised):
    """Batches are dictionaries of tokens and label."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
        return super().training_step((batch["tokens"], batch["label"]), batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        super().validation_step((batch["tokens"], batch["label"]), batch_idx)


def collated(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Sorted by length, labels too, cut to the longest."""
    rows = sorted(rows, key=lambda row: -int((row[0] > 0).sum()))
    tokens = torch.stack([row[0] for row in rows])
    return {"tokens": tokens[:, : int((tokens > 0).sum(1).max())], "label": torch.stack([row[1] for row in rows])}


def collated_apart(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tokens = sorted((row[0] for row in rows), key=lambda t: -int((t > 0).sum()))
    return {"tokens": torch.stack(tokens), "label": torch.stack([row[1] for row in rows])}


@healthy(source="collate function that sorts by length and pads, dictionaries as batches")
def h_valence_of_reviews(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Valence(),
        data=reviews(seed),
        **CE,
        optimizer=adam(5e-3),
        module=OfDicts,
        collate=collated,
        max_steps=250,
    )


@faulty(
    "labels_broken", twin="h_valence_of_reviews", source="code review: collate sorts the texts by length and leaves the labels"
)
def f_valence_sorted_apart(case: Case) -> None:
    case.collate = collated_apart


@faulty("train_val_mismatch", twin="h_valence_of_reviews", source="vocabulary built anew for validation: same words, other ids")
def f_valence_second_vocabulary(case: Case) -> None:
    order = torch.cat([torch.zeros(1), 1 + torch.randperm(39)]).long()
    case.data = replace(case.data, 0, lambda x: order[x], train=False)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ a rare class
def repeated(data: Split, times: int) -> Split:
    """The rare rows of the training part several times."""
    y = data[0].tensors[-1]
    rows = torch.arange(len(y)).repeat_interleave(torch.where(y == 1, times, 1))
    return TensorDataset(*(t[rows] for t in data[0].tensors)), data[1]


@healthy("class_imbalance", source="fraud tutorial: rare class oversampled in training only")
def h_fraud_oversampled(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([6, 32, 2], dropout=0.1),
        data=repeated(rare_blobs(seed, rare=0.04, n=3000, overlap=0.7), 20),
        loss=F.cross_entropy,
        metric="balanced_accuracy",
        optimizer=adam(2e-3, weight_decay=1e-4),
        val_batch_size=1000,
        max_steps=250,
    )


@faulty("class_imbalance", twin="h_fraud_oversampled", source="the same without oversampling", margin=0.08)
def f_fraud_as_it_comes(case: Case) -> None:
    case.data = rare_blobs(case.seed, rare=0.04, n=3000, overlap=0.7)


@faulty("class_imbalance", twin="h_fraud_oversampled", source="class weights given in the wrong order", margin=0.08)
def f_fraud_weights_swapped(case: Case) -> None:
    case.data = rare_blobs(case.seed, rare=0.04, n=3000, overlap=0.7)
    case.loss = nn.CrossEntropyLoss(weight=torch.tensor([24.0, 1.0]))


# ------------------------------------------------------------------------------------------ numbers
def scaled(data: Split) -> Split:
    """Inputs and targets standardised by what the training part says."""
    for i in range(2):
        mean, std = data[0].tensors[i].mean(0), data[0].tensors[i].std(0)
        data = replace(data, i, lambda t, mean=mean, std=std: (t - mean) / std)  # type: ignore[misc]
    return data


@healthy(source="regression with a plain MLP and SGD, both sides standardised")
def h_friedman_scaled(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 48, 48, 1], act=nn.Tanh),
        data=scaled(friedman(seed)),
        **MSE,
        optimizer=sgd(0.02),
        max_steps=400,
    )


@faulty("unnormalised_target", twin="h_friedman_scaled", source="target in cents, network and rate as for a standardised one")
def f_friedman_in_cents(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: 140_000 + 50_000 * y)  # type: ignore[arg-type]


@faulty(
    "unnormalised_target",
    twin="h_friedman_scaled",
    source="concentrations in mol/l of the order of 1e-4: loss is tiny from the start",
)
def f_friedman_in_moles(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: 5e-4 + 1e-4 * y)  # type: ignore[arg-type]


@faulty("unnormalised_input", twin="h_friedman_scaled", source="one column of time stamps among standardised ones")
def f_friedman_with_time_stamps(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: torch.cat([x[:, :7], 3000 + 800 * x[:, 7:]], 1))  # type: ignore[arg-type]


@faulty("lr_too_low", twin="h_friedman_scaled", source="SGD at the 1e-4 that is a habit with Adam")
def f_friedman_sgd_at_adams_rate(case: Case) -> None:
    case.optimizer = sgd(1e-4, momentum=0.0)


@faulty("data_not_shuffled", twin="h_friedman_scaled", source="rows of a table sorted by the target, shuffle=False", margin=0.3)
def f_friedman_sorted_by_target(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]
