"""`LitModule`: a base class with loss, metrics per stage, and the lecture's update, of which a user overrides what differs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_training.batches import batch_size, call, split_batch
from lit_training.losses import LossFunction, check_target, check_values, loss_function, loss_spec
from lit_training.metrics import Metrics, StageMetrics, default_metrics, metric_inputs, named_metrics
from lit_training.optimizers import OptimizerFactory, build_optimizer, settled_setting
from lit_training.preprocessing import Standardize, first_tensor

__all__ = ["LitModule"]

LR, WEIGHT_DECAY = 0.01, 5e-4


class LitModule(LightningModule):
    """Train a network with SGD and momentum, decay on weights only, and sensible metrics; wrap a network or subclass.

    Override as little as differs: `forward` for a network of your own, `unpack` for other batches, `compute_loss` for another loss,
    `configure_optimizers` for another update.

    Args:
        network: the network to train; `None` if the subclass defines `forward`.
        loss: a name from `torch.nn.functional` (`"cross_entropy"`, `"mse"`, ...) or a callable of outputs and target.
        metrics: torchmetrics: one, a list or a dict of name to metric. `None` chooses accuracy for classification, mean squared
            error and R² for regression.
        lr: learning rate. .01 suits SGD with momentum on standardised inputs.
        momentum: of SGD; .9, the lecture's value. Not used with another `optimizer`.
        weight_decay: on weights only, in the optimiser's convention (`select` tells which). 5e-4, as in AlexNet.
        optimizer: an optimiser class or a callable that takes parameter groups; `None` is SGD with momentum.
        lr_scheduler: a callable that takes the optimiser; `None` keeps the rate constant. It is stepped every epoch,
            `ReduceLROnPlateau` on `val_loss`.
        normalize: standardises the first input of `forward`: a fitted `Standardize`, or `"fit"` to fit one to the training data
            before training (a checkpoint brings its own); `None` takes inputs as they are.
        layer_decay: factor in (0, 1] between the rates of adjacent layers, for fine-tuning (`parameter_groups`); `None` gives all
            the same rate.

    Plain arguments, also those of a subclass, are its hyper-parameters: saved in checkpoints and logged.

    Logs:
        `train_loss` at each logged step; `train_NAME`, `val_loss`, `val_NAME`, `test_loss`, `test_NAME` for each metric at the end
        of an epoch, over all samples of all processes.

    Raises:
        ValueError: for an unknown loss (the nearest are listed), a negative rate, momentum or decay.
        TypeError: for metrics that are none.

    Example:
        >>> module = LitModule(nn.Linear(4, 3), lr=0.1)
        >>> module(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
        >>> [group["name"] for group in module.configure_optimizers().param_groups]
        ['decay', 'no_decay']
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        loss: str | LossFunction = "cross_entropy",
        metrics: Metrics | None = None,
        lr: float = LR,
        momentum: float = 0.9,
        weight_decay: float = WEIGHT_DECAY,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        normalize: Standardize | Literal["fit"] | None = None,
        layer_decay: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            del self.hparams[name]  # a checkpoint has to load with weights_only=True
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value!r}")
        if not (normalize is None or normalize == "fit" or isinstance(normalize, Standardize)):
            raise TypeError(f"normalize must be a Standardize module, 'fit' or None, got {normalize!r}")
        if network is not None:
            self.network = network
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self._loss_function = loss_function(loss)
        self._loss_spec = loss_spec(self._loss_function)
        self._metrics = None if metrics is None else named_metrics(metrics)
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._stages: dict[str, StageMetrics] = {}
        self._resumed: dict[str, Any] = {}
        self.layer_decay = layer_decay
        if normalize is not None:
            self._normalize = Standardize() if normalize == "fit" else normalize
            self.register_forward_pre_hook(_standardized, with_kwargs=True)

    log = torch.compiler.disable(LightningModule.log)  # it inspects signatures, which dynamo cannot

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; override it in a subclass that builds its own layers."""
        if not isinstance(getattr(self, "network", None), nn.Module):
            name = type(self).__name__
            raise TypeError(f"{name} has no network: pass one, {name}(network=...), or define forward in the subclass")
        return self.network(*args, **kwargs)

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch into inputs and target; override it for batches that `split_batch` cannot read."""
        own = type(self).forward is not LitModule.forward
        return split_batch(batch, self.forward if own else self.network.forward)

    def compute_loss(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss, a scalar; override it for losses that need more than outputs and target."""
        if self._loss_spec is not None:
            check_target(self._loss_spec, outputs, target)
        return self._loss_function(outputs, target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._step(batch, "train", batch_idx)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._step(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics."""
        self._step(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the outputs for a batch, with or without a target."""
        return call(self, self.unpack(batch)[0])

    def configure_optimizers(self) -> Any:
        """Build the optimiser on `parameter_groups`, and the scheduler."""
        factory = self._optimizer or self._sgd
        optimizer = build_optimizer(
            self,
            factory,
            lr=settled_setting(factory, "lr", self.lr, LR) if self._optimizer else self.lr,
            weight_decay=settled_setting(factory, "weight_decay", self.weight_decay, WEIGHT_DECAY)
            if self._optimizer
            else self.weight_decay,
            layer_decay=self.layer_decay,
        )
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        monitor = {"monitor": "val_loss"} if isinstance(scheduler, ReduceLROnPlateau) else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **monitor}}

    def on_fit_start(self) -> None:
        """Fit what standardises the inputs, unless it is fitted or a checkpoint will bring it."""
        standardize = getattr(self, "_normalize", None)
        if standardize is not None and not standardize.fitted and self.trainer.ckpt_path is None:
            loader = self.trainer.fit_loop._data_source.dataloader()
            standardize.fit_(loader, inputs=lambda batch: first_tensor(self.unpack(batch)[0]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metrics of the epoch that is under way."""
        if "train" in self._stages:
            checkpoint["lit_training_metrics"] = self._stages["train"].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics of the epoch that was under way, once among all ranks.

        Raises:
            TypeError: if the checkpoint has a network and this module none.
        """
        has_network = any(name.startswith("network.") for name in checkpoint["state_dict"])
        if has_network and not isinstance(getattr(self, "network", None), nn.Module):
            name = type(self).__name__
            raise TypeError(
                f"the network is not in a checkpoint, only its weights: {name}.load_from_checkpoint(path, network=...)"
            )
        if self._trainer is not None and self._trainer.is_global_zero:
            self._resumed = checkpoint.get("lit_training_metrics", {})

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's metrics anew."""
        self._stages.pop("train", None)
        self._resumed = {}

    def on_validation_epoch_start(self) -> None:
        """Begin the epoch's metrics anew."""
        self._stages.pop("val", None)

    def on_test_epoch_start(self) -> None:
        """Begin the epoch's metrics anew."""
        self._stages.pop("test", None)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_stage("train")

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_stage("val")

    def on_test_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_stage("test")

    def _sgd(self, groups: Any) -> Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _step(self, batch: Any, stage: str, batch_idx: int) -> Tensor:
        inputs, target = self.unpack(batch)
        outputs = call(self, inputs)
        if batch_idx == 0 and self._loss_spec is not None:
            check_target(self._loss_spec, outputs, target)
            check_values(self._loss_spec, outputs, target)
        loss = self.compute_loss(outputs, target)
        if stage not in self._stages:
            chosen = default_metrics(self._loss_spec, outputs) if self._metrics is None else self._metrics
            self._stages[stage] = StageMetrics(chosen)
            if stage == "train" and self._resumed:
                self._stages[stage].load_state_dict(self._resumed)
        self._stages[stage].update(loss, batch_size(inputs), *metric_inputs(self._loss_spec, outputs, target))
        return loss

    def _log_stage(self, stage: str) -> None:
        if stage not in self._stages:
            return
        for name, metric in self._stages[stage].items():
            if (stage, name) != ("train", "loss"):  # logged at its steps
                self.log(f"{stage}_{name}", metric.compute(), prog_bar=stage == "val")


def _standardized(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Standardise the first argument of `forward`.

    DDP calls the module with a batch, while Lightning has its steps stand in for `forward` (`wrapped_forward`).
    """
    if getattr(module.forward, "__name__", "") == "wrapped_forward":
        return args, kwargs
    if args:
        return (module._normalize(args[0]), *args[1:]), kwargs  # type: ignore[operator]
    first = next(iter(kwargs))
    return args, {**kwargs, first: module._normalize(kwargs[first])}  # type: ignore[operator]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return value is None or type(value) in (bool, int, float, str)
