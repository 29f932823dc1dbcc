"""Callback: draw all weights anew before training. What it draws is in `lit_training.initialization`."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lit_training.gains import Nonlinearity, gain
from lit_training.init_report import InitReport
from lit_training.initialization import OutputPrior, check_output_prior, initialize_with_
from lit_training.running import Runner, runner_for, undisturbed
from lit_training.schemes import NEEDS_DATA, check_scheme
from lit_training.showing.console import show

__all__ = ["Initialize"]

Patterns = str | Sequence[str] | None


class Initialize(Callback):
    """Draw all weights by a published scheme, once, before the first training step of a run that was not resumed.

    It acts when the loop hands out its first batch: what follows each layer is seen in a real forward on that batch, and the
    schemes that need data (`"lsuv"`, `"data_dependent"`) use it, so the order of the data stays what it was. With several
    processes the statistics are those of the joint batch and all ranks draw the same weights. Random generators, buffers and
    metrics are left as they were. It goes to the front of the trainer's callbacks, so that an audit sees the new weights.

    The network is run through the module's `forward`. A module without one is run through its `training_step` (automatic
    optimisation only), with nothing logged.

    Args:
        scheme: `"he"`, `"glorot"` (both also as `..._uniform`), `"orthogonal"`, `"random_walk"`, `"lsuv"`, `"data_dependent"`
            or `"normal"`; see `lit_training.initialize_` for their sources.
        nonlinearity: what follows all layers, as `lit_training.gain` takes it; `"auto"` finds out.
        include: patterns of what to initialise; see `lit_training.select`.
        exclude: patterns of what to leave alone, such as pretrained parts.
        zero_init_residual: let each residual branch start as zero.
        forget_gate_bias: of LSTMs (1: a fresh cell remembers).
        output_prior: class frequencies or the probability of a 1: sets the last layer's bias for imbalanced classes.
        options: the scheme's own, such as `{"std": 0.02}` of `"normal"` or `{"tolerance": 0.05}` of `"lsuv"`.
        seed: of the weights; `None` takes torch's (`seed_everything`), without drawing from the global generator.
        verbose: print one line on what was done (`print(callback.report)` prints the whole table).

    Attributes:
        report: an `InitReport` with a row for each weight, `None` before.

    Raises:
        ValueError: in `__init__` for an unknown scheme (the nearest is named), option or prior; as training starts, for patterns
            that match nothing, or a batch that makes a layer constant or not finite (weights are restored).

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> callback = Initialize("lsuv", verbose=False)
        >>> Trainer(max_steps=1, callbacks=[callback], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> [(row.name, row.of) for row in callback.report]
        [('layer.weight', 'output')]
    """

    def __init__(
        self,
        scheme: str = "he",
        *,
        nonlinearity: Nonlinearity = "auto",
        include: Patterns = None,
        exclude: Patterns = None,
        zero_init_residual: bool = False,
        forget_gate_bias: float = 1.0,
        output_prior: OutputPrior = None,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        self.options = check_scheme(scheme, options or {})
        check_output_prior(output_prior)
        if nonlinearity != "auto":
            gain(nonlinearity)
        self.scheme, self.seed, self.verbose = scheme, seed, verbose
        self.settings: dict[str, Any] = {
            "nonlinearity": nonlinearity,
            "include": include,
            "exclude": exclude,
            "zero_init_residual": zero_init_residual,
            "forget_gate_bias": forget_gate_bias,
            "output_prior": output_prior,
        }
        self.report: InitReport | None = None
        self._done = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go before the callbacks that look at weights."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = sorted(callbacks, key=lambda callback: not isinstance(callback, Initialize))  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a resumed run alone, whether or not its checkpoint was written with this callback."""
        self._done = trainer.ckpt_path is not None or trainer.global_step > 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Initialise before the first training step."""
        if self._done:
            return
        self._done = True
        seed = trainer.strategy.broadcast(torch.initial_seed() if self.seed is None else self.seed)
        self.report = initialize_with_(
            pl_module,
            self.scheme,
            self._runner(trainer, pl_module, batch),
            options=self.options,
            generator=torch.Generator(pl_module.device).manual_seed(seed),
            **self.settings,
        )
        if self.verbose and trainer.is_global_zero:
            show(self.report.summary)

    def _runner(self, trainer: Trainer, module: LightningModule, batch: Any) -> Runner | None:
        """Return a way to run the network, or None where there is none and the scheme can do without."""
        runner = _through_forward(module, batch, self.options.get("loss_fn"))
        if runner is None and module.automatic_optimization:
            runner = _through_training_step(module, batch)
        if runner is None and self.scheme in NEEDS_DATA:
            raise ValueError(
                f"Initialize({self.scheme!r}) has to run the network on a batch: let forward(inputs) of {type(module).__name__} do "
                "so (with an `unpack(batch) -> (inputs, target)` if batches are not the inputs, then the targets)"
            )
        if runner is None:
            rank_zero_warn(
                f"Initialize: the forward of {type(module).__name__} cannot be run on a batch; what follows may be guessed"
            )
        elif trainer.world_size > 1:
            return replace(runner, reduce=lambda tensor: trainer.strategy.reduce(tensor.clone(), reduce_op="sum"))
        return runner


def _through_forward(module: LightningModule, batch: Any, loss_fn: Callable[..., Tensor] | None) -> Runner | None:
    """Return a runner of `forward`, if the module has one and it takes the batch."""
    if type(module).forward is LightningModule.forward:
        return None
    try:
        runner = runner_for(module, batch, loss_fn)
        with _quiet(module):
            runner.forward()
    except (TypeError, AttributeError, NotImplementedError):  # it takes something else than the batch's first part
        return None
    return _wrapped(runner, module)


def _through_training_step(module: LightningModule, batch: Any) -> Runner:
    """Return a runner of `training_step`, whose loss is the objective."""

    def step() -> Any:
        with undisturbed(module):
            return module.training_step(batch, 0)

    def objective() -> Tensor:
        with torch.enable_grad():
            result = step()
        loss: Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss

    return _wrapped(Runner(torch.no_grad()(step), objective), module)


def _wrapped(runner: Runner, module: LightningModule) -> Runner:
    def quietly(run: Callable[[], Any]) -> Callable[[], Any]:
        def quiet_run() -> Any:
            with _quiet(module):
                return run()

        return quiet_run

    return Runner(quietly(runner.forward), quietly(runner.objective))


@contextmanager
def _quiet(module: LightningModule) -> Iterator[None]:
    """Log nothing, and leave metrics as they are."""
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    states = [copy.deepcopy({**metric.metric_state, **_counters(metric)}) for metric in metrics]
    silenced = {name: lambda *_, **__: None for name in ("log", "log_dict")}
    vars(module).update(silenced)
    try:
        yield
    finally:
        for name in silenced:
            vars(module).pop(name, None)
        for metric, state in zip(metrics, states, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)


def _counters(metric: Metric) -> dict[str, Any]:
    return {name: vars(metric)[name] for name in ("_update_count", "_computed", "_forward_cache") if name in vars(metric)}
