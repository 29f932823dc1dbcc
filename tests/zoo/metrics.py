"""Figures of merit, higher is better, each with what the best constant predictor reaches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """`score(output, target)` of a batch, and `constant(target)`: what an output that ignores its input could score."""

    score: Callable[[Tensor, Tensor], Tensor]
    constant: Callable[[Tensor], float]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of right classes (dimension 1), of all positions that are not padding (-100)."""
    known = target != -100
    return (output.argmax(1) == target)[known].float().mean()


def majority(target: Tensor) -> float:
    """Share of the most frequent class."""
    return target[target != -100].unique(return_counts=True)[1].max().item() / (target != -100).sum().item()


def balanced_accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Recall, averaged over the classes that occur."""
    hits = output.argmax(1) == target
    return torch.stack([hits[target == c].float().mean() for c in target.unique()]).mean()


def binary_accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of logits on the right side of 0, for targets in {0, 1} of any shape."""
    return ((output.reshape(target.shape) > 0) == (target > 0.5)).float().mean()


def probability_accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of probabilities on the right side of 0.5."""
    return binary_accuracy(output - 0.5, target)


def balanced_binary(output: Tensor, target: Tensor) -> Tensor:
    """Mean recall of the two sides, for logits of shape [N, 1]."""
    return balanced_accuracy(torch.cat([-output, output], 1), target[:, 0].long())


def binary_majority(target: Tensor) -> float:
    """What always saying the more frequent side scores, column by column."""
    share = (target > 0.5).float().reshape(len(target), -1).mean(0)
    return torch.maximum(share, 1 - share).mean().item()


def jaccard(output: Tensor, target: Tensor) -> Tensor:
    """Overlap of the predicted and the true foreground (logits above 0)."""
    guess, truth = output.reshape(target.shape) > 0, target > 0.5
    return (guess & truth).sum() / (guess | truth).sum().clamp_min(1)


def r2(output: Tensor, target: Tensor) -> Tensor:
    """Explained share of the variance, clipped from below at -1."""
    output, target = output.reshape(len(target), -1), target.reshape(len(target), -1)
    spread = (target - target.mean(0)).square().mean().clamp_min(1e-30)
    return (1 - (output - target).square().mean() / spread).clamp_min(-1)


def each_r2(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the columns of the explained share of each, clipped from below at -1."""
    return torch.stack([r2(output[:, i], target[:, i]) for i in range(target.shape[1])]).mean()


def decoded(output: Tensor, target: Tensor) -> Tensor:
    """Share of symbols that a greedy CTC decoding (repeats merged, blank 0 dropped) puts in their place."""
    hits = 0
    for path, truth in zip(output.argmax(2), target, strict=True):
        symbols = [s for s in path.unique_consecutive().tolist() if s]
        hits += sum(a == b for a, b in zip(symbols, truth.tolist(), strict=False))
    return torch.tensor(hits / target.numel())


def best_direction(target: Tensor) -> float:
    """Mean cosine with the one direction that suits all targets best."""
    unit = F.normalize(target, dim=1)
    return (unit @ F.normalize(unit.mean(0), dim=0)).mean().item()


METRICS = {
    "accuracy": Metric(accuracy, majority),
    "balanced_accuracy": Metric(balanced_accuracy, lambda target: 1 / len(target.unique())),
    "binary_accuracy": Metric(binary_accuracy, binary_majority),
    "probability_accuracy": Metric(probability_accuracy, binary_majority),
    "mean_r2": Metric(lambda output, target: r2(output[0], target), lambda target: 0.0),
    "log_r2": Metric(lambda output, target: r2(output.exp(), target), lambda target: 0.0),
    "first_binary_accuracy": Metric(lambda output, target: binary_accuracy(output[0], target), binary_majority),
    "cosine": Metric(lambda output, target: F.cosine_similarity(output, target, dim=1).mean(), best_direction),
    "balanced_binary": Metric(balanced_binary, lambda target: 0.5),
    "one_hot_accuracy": Metric(
        lambda output, target: accuracy(output, target.argmax(1)), lambda target: majority(target.argmax(1))
    ),
    "hazard_r2": Metric(lambda output, target: r2(output, target[:, 2]), lambda target: 0.0),
    "decoded": Metric(decoded, lambda target: 0.25),
    "jaccard": Metric(jaccard, lambda target: (target > 0.5).float().mean().item()),
    "first_column_accuracy": Metric(
        lambda output, target: accuracy(output[:, :10], target[:, 0].long()), lambda target: majority(target[:, 0].long())
    ),
    "integer_r2": Metric(lambda output, target: r2(output, target.float()), lambda target: 0.0),
    "r2": Metric(r2, lambda target: 0.0),
    "each_r2": Metric(each_r2, lambda target: 0.0),
}
