"""Metrics of one stage: which are sensible for a loss, what they are given, and their state across an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from lit_training.losses import LossSpec

__all__ = ["Metrics", "StageMetrics", "default_metrics", "metric_inputs", "named_metrics"]

Metrics: TypeAlias = Metric | MetricCollection | Mapping[str, Metric] | Sequence[Metric]


def named_metrics(metrics: Any) -> dict[str, Metric]:
    """Bring metrics, however they were given, into a dictionary; unnamed ones are called after their class.

    Raises:
        TypeError: for what is no metric: a string, a class, a plain function.
        ValueError: if two metrics have one name.

    >>> list(named_metrics([MeanSquaredError(), R2Score()]))
    ['MeanSquaredError', 'R2Score']
    """
    if isinstance(metrics, MetricCollection):
        return dict(metrics.items(keep_base=False))
    if isinstance(metrics, Metric):
        metrics = [metrics]
    if isinstance(metrics, str) or not isinstance(metrics, (Mapping, Sequence)):
        raise TypeError(_wrong_type(metrics))
    pairs = list(metrics.items()) if isinstance(metrics, Mapping) else [(type(metric).__name__, metric) for metric in metrics]
    for _, metric in pairs:
        if not isinstance(metric, Metric):
            raise TypeError(_wrong_type(metric))
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError(f"two metrics have one name in {[name for name, _ in pairs]}; pass a dict of name to metric")
    return named


def default_metrics(spec: LossSpec | None, outputs: Tensor) -> dict[str, Metric]:
    """Choose metrics for a loss: accuracy with the class count of the outputs, or mean squared error and R².

    Args:
        spec: the loss; `None`, an unknown one, has no metrics.
        outputs: `[N, classes, ...]` of a classifier; `[N]` or `[N, 1, ...]` of a binary, `[N, labels]` of a multi-label one; any
            shape of a regression.

    >>> list(default_metrics(LossSpec("mse_loss", "values"), torch.zeros(2, 1)))
    ['mse', 'r2']
    """
    if spec is None:
        return {}
    if spec.kind == "values":
        return {"mse": MeanSquaredError(), "r2": _R2()}
    if spec.kind == "binary" and (outputs.ndim < 2 or outputs.shape[1] == 1):
        return {"accuracy": BinaryAccuracy()}
    if spec.kind == "binary":
        return {"accuracy": MultilabelAccuracy(num_labels=outputs.shape[1], average="micro")}
    return {"accuracy": MulticlassAccuracy(outputs.shape[1], average="micro", ignore_index=spec.ignore_index)}


def metric_inputs(spec: LossSpec | None, outputs: Any, target: Any) -> tuple[Any, Any]:
    """Return what metrics compare: probabilities where the loss takes logits, classes as integers, values as they are.

    torchmetrics takes scores within 0 and 1 for probabilities and others for logits, batch by batch; with probabilities nothing
    depends on that guess. Half precision becomes float32, and values become `[N]` or `[N, outputs]`, as R² asks for.

    >>> metric_inputs(LossSpec("binary_cross_entropy_with_logits", "binary"), torch.zeros(1), torch.ones(1))
    (tensor([0.5000]), tensor([1]))
    """
    if spec is None:
        return outputs, target
    outputs = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    if spec.kind == "values":
        shape = outputs.shape if outputs.ndim == 2 and outputs.shape[1] > 1 else (-1,)
        return outputs.reshape(shape), target.detach().reshape(shape)
    if spec.kind == "binary":
        outputs = outputs.sigmoid() if spec.name == "binary_cross_entropy_with_logits" else outputs
        return outputs, (target > 0.5).long()
    outputs = outputs.softmax(1) if spec.name == "cross_entropy" else outputs.exp()
    return outputs, target.argmax(1) if target.is_floating_point() else target


class StageMetrics:
    """The mean loss and the metrics of one stage, kept apart from the network's modules.

    They are no submodules on purpose: a metric may hold a network of its own (FID), which must reach neither the optimiser nor
    the checkpoint's weights. Metrics follow the device of what they are given.

    Args:
        metrics: name to metric; they are cloned.

    >>> stage = StageMetrics({"mse": MeanSquaredError()})
    >>> stage.update(torch.tensor(0.25), 2, torch.zeros(2), torch.ones(2))
    >>> {name: metric.compute().item() for name, metric in stage.items()}
    {'loss': 0.25, 'mse': 1.0}
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        if "loss" in metrics:
            raise ValueError("a metric cannot be called 'loss': that is the mean loss; name it otherwise")
        self._metrics: dict[str, Metric] = {"loss": MeanMetric()} | {name: metric.clone() for name, metric in metrics.items()}

    def items(self) -> Iterator[tuple[str, Metric]]:
        """Yield each name and metric, the mean loss first."""
        yield from self._metrics.items()

    def update(self, loss: Tensor, weight: int, outputs: Any, target: Any) -> None:
        """Take in one batch: its loss with the batch size as weight, and what the metrics compare."""
        for name, metric in self._metrics.items():
            if metric.device != loss.device:
                metric.to(loss.device)
            if name == "loss":
                metric.update(loss.detach(), weight)
            else:
                metric.update(outputs, target)

    def state_dict(self) -> dict[str, Any]:
        """Return all states, reduced over ranks. A collective: call it on all ranks or on none."""
        return {name: _state(metric) for name, metric in self._metrics.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Metrics that are new since then start empty."""
        for name, metric in self._metrics.items():
            for path, values in state.get(name, {}).items():
                _restore(dict(_inner(metric))[path], values)


class _R2(R2Score):
    """R² that is NaN, rather than an error, for fewer than two samples; sums are kept in float64 where the device has it."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        if preds.device.type != "mps":
            self.set_dtype(torch.float64)
            preds, target = preds.double(), target.double()
        super().update(preds, target)

    def compute(self) -> Tensor:
        if self.total < 2:
            return torch.full((), torch.nan, device=self.device)
        return super().compute()


def _inner(metric: Metric) -> Iterator[tuple[str, Metric]]:
    """Yield a metric and those it wraps (MinMax, Classwise), by path."""
    for path, module in metric.named_modules():
        if isinstance(module, Metric):
            yield path, module


def _state(metric: Metric) -> dict[str, dict[str, Any]]:
    with metric.sync_context(should_sync=metric._update_count > 0):
        return {path: {"updates": inner._update_count, **_copy(inner.metric_state)} for path, inner in _inner(metric)}


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """A synchronised list of tensors is one tensor."""
    return {
        name: [value.clone() for value in values] if isinstance(values, list) else values.clone()
        for name, values in state.items()
    }


def _restore(metric: Metric, values: Mapping[str, Any]) -> None:
    values = dict(values)
    metric._update_count = values.pop("updates")
    for name, value in values.items():
        if isinstance(metric._defaults[name], list) and isinstance(value, Tensor):
            value = [value]
        setattr(metric, name, value)
    metric._computed = None


def _wrong_type(value: Any) -> str:
    if isinstance(value, type):
        return f"metrics needs instances, got the class {value.__name__}; write {value.__name__}(...)"
    return f"metrics must be torchmetrics: one, a list, a MetricCollection or a dict of name to metric; got {value!r}"
