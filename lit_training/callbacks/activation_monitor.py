"""Callback: watch the activations of every layer at sampled steps. The arithmetic is in `lit_training.activations`."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lit_training.activations import FOLLOWED, ActivationStats, pack, pack_all, unpack
from lit_training.callbacks.eager import eager
from lit_training.callbacks.harmless import harmless
from lit_training.callbacks.logging import log_scalars, logged_step
from lit_training.columns import batch_size_of
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.ranks import gather_packed
from lit_training.diagnosis.rules.divergence import became_nan, died
from lit_training.sampling import is_sampled
from lit_training.tracing.trace import Tracer

__all__ = ["ActivationMonitor"]

_ENOUGH, _GONE, _ALIVE = 8, 0.99, 0.6
_NARROW, _ROWS, _STILL = 4, 16, 1e-5


@dataclass
class _Site:
    """A monitored module: what acts on its output next, and what was packed at the current step."""

    name: str
    node: int | None
    follows: str = ""
    packed: Tensor | None = None
    candidates: dict[str, Tensor] = field(default_factory=dict)


class ActivationMonitor(Callback):
    """Log mean, spread, signal, dead and saturated fractions of every layer's output at sampled steps.

    A layer is a module with parameters of its own whose output is a tensor (of a tuple, the first). Between sampled steps nothing
    is attached to the model and nothing waits for the device. Statistics are those of the joint batch of all processes.

    Args:
        every_n_steps: interval in optimiser steps; steps 0, 1, 2, 4, 8, ... below it are sampled too. `None` takes the trainer's
            `log_every_n_steps` (0 under `barebones`), 1 is every step, 0 never.

    Logs:
        `activation_mean/NN.layer`, `activation_std/NN.layer`, `activation_signal/NN.layer`: in the activation's units, before the
        nonlinearity, NN in forward order. `activation_dead/NN.layer`: fraction of units whose rectifier is closed on the whole
        batch. `activation_saturated/NN.layer`: fraction of values within 1 % of the bounds of tanh or sigmoid.

    Attributes:
        findings: a `nan_loss` error at the first layer whose output was not finite; `lr_too_high` where all units of a rectifier
            that fired at the start are silent at two samples in a row; of fewer than 8 units at four, of 16 rows or more, if
            no layer behind them tells samples apart any more.
        latest: the last sample, `{layer: ActivationStats}`.

    Raises:
        ValueError: in `__init__` for a negative interval.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> monitor = ActivationMonitor(every_n_steps=1)
        >>> Trainer(max_steps=1, callbacks=[monitor], barebones=True, accelerator="cpu").fit(BoringModel())
        >>> list(monitor.latest)
        ['layer']
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 0:
            raise ValueError(f"every_n_steps must be positive, 0 for never or None for the trainer's, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.findings: list[Finding] = []
        self.latest: dict[str, ActivationStats] = {}
        self._sites: dict[int, _Site] = {}
        self._attached = ExitStack()
        self._tracer: Tracer | None = None
        self._sampling = self._disabled = self._missed = False
        self._last_step, self._batch_size = -1, 0
        self._at_start: dict[str, ActivationStats] = {}
        self._gone: dict[str, int] = {}
        self._masked: set[str] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, also when the same trainer fits twice."""
        self.release()
        self.findings, self.latest, self._sites, self._last_step = [], {}, {}, -1
        self._disabled = self._missed = False
        self._at_start, self._gone, self._masked = {}, {}, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Attach if this step is sampled; the first time, also find out what follows each layer."""
        step = logged_step(trainer)
        interval = trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps  # type: ignore[attr-defined]
        if self._disabled or step == self._last_step or not is_sampled(step, interval):
            return
        self._sampling, self._last_step, self._batch_size = True, step, batch_size_of(batch)
        self._attach(pl_module)

    @harmless
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Do not trace the backward pass."""
        if self._sampling and self._tracer is not None:
            self._tracer.pause()

    @harmless
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on tracing: a manual loop may run forward again."""
        if self._sampling and self._tracer is not None and not pl_module.automatic_optimization:
            self._tracer.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Detach, move the sample to the host at once, and log it."""
        if not self._sampling:
            return
        self.release()
        sites = self._finish()
        if not trainer.strategy.reduce_boolean_decision(sites is not None):
            self._disabled = True
        elif sites:
            self._record(trainer, sites)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing attached."""
        self.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing attached."""
        self.release()

    def release(self) -> None:
        """Detach from the model."""
        self._attached.close()
        self._sampling = False

    @harmless
    def _attach(self, module: LightningModule) -> None:
        self._attached.enter_context(eager())
        if self._sites:
            self._attached.callback(register_module_forward_hook(self._on_forward).remove)
        else:
            self._tracer = self._attached.enter_context(Tracer(module, on_module=self._on_first_call))

    def _on_first_call(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        """Remember a layer when it first runs; what will act on its output is known only after the forward."""
        tensor = _first_tensor(output)
        if tensor is None or id(module) in self._sites or next(module.parameters(recurse=False), None) is None:
            return
        node = self._tracer.node(tensor) if self._tracer is not None else None
        candidates = pack_all(tensor.detach(), self._batch_size)
        self._sites[id(module)] = _Site(name, None if node is None else node.index, candidates=candidates)

    def _on_forward(self, module: nn.Module, _: Any, output: Any) -> None:
        site = self._sites.get(id(module))
        if site is None or site.packed is not None or torch._C._current_graph_task_id() != -1:  # recomputed in the backward
            return
        site.packed = self._pack(site, output)

    @harmless
    def _pack(self, site: _Site, output: Any) -> Tensor | None:
        tensor = _first_tensor(output)
        return None if tensor is None else pack(tensor.detach(), self._batch_size, site.follows)

    @harmless
    def _finish(self) -> list[_Site]:
        """Return the layers that ran, with what was packed; `None` if anything failed."""
        if self._tracer is not None:
            self._settle(self._tracer)
            self._tracer = None
        sites = [_Site(s.name, s.node, s.follows, s.packed) for s in self._sites.values() if s.packed is not None]
        for site in self._sites.values():
            site.packed = None
        if not sites and not self._missed:
            self._missed = True
            rank_zero_warn(f"ActivationMonitor saw no layer run at step {self._last_step}")
        return sites

    def _settle(self, tracer: Tracer) -> None:
        """Look up in the traced graph what acts on each layer's output."""
        if tracer.failure is not None:
            raise tracer.failure
        for site in self._sites.values():
            acting = () if site.node is None else tracer.graph.follows(site.node, through_normalisation=False)
            site.follows = next((name for name in acting if name in FOLLOWED), "")
            site.packed, site.candidates = site.candidates[site.follows], {}

    @harmless
    def _record(self, trainer: Trainer, sites: list[_Site]) -> None:
        packed = [site.packed for site in sites if site.packed is not None]
        ranks = gather_packed([torch.cat(packed, 1)], self._batch_size)
        sizes, follows = [layer.shape[1] for layer in packed], [site.follows for site in sites]
        stats = unpack([joint for (joint,), _ in ranks], [size for _, size in ranks], sizes, follows)
        self.latest = {site.name: layer for site, layer in zip(sites, stats, strict=True)}
        self._judge({site.name for site in sites if site.packed is not None and site.packed.shape[1] >= _ENOUGH})
        log_scalars(trainer, _scalars(self.latest), self._last_step)

    def _judge(self, wide: set[str]) -> None:
        self._at_start = self._at_start or self.latest
        gone = [name for name in self.latest if self._died(name) and (name in wide or self._cuts(name))]
        self._gone = {name: self._gone.get(name, 0) + 1 for name in gone}
        place = next((name for name, times in self._gone.items() if times >= (2 if name in wide else _NARROW)), None)
        if place is not None and not self.findings:
            self.findings += died(place, self._last_step, self._at_start[place].dead or 0.0)
        infinite = [name for name, stats in self.latest.items() if not stats.finite]
        if self._masked is None:
            self._masked = {name for name in infinite if self.latest[name].mean == -math.inf}
        broken = next((name for name in infinite if name not in self._masked), None)
        if broken is not None and not self.findings:
            self.findings += became_nan(broken, self._last_step)

    def _died(self, name: str) -> bool:
        """Tell whether all units behind a layer are silent, of which enough fired at the start.

        Exactly zero everywhere, they were given nothing to tell: a modality that is left out of this batch, an expert without a
        sample.
        """
        now, before = self.latest[name], self._at_start[name].dead if name in self._at_start else None
        given = now.mean != 0 or now.variance != 0
        return given and now.dead is not None and before is not None and now.dead >= _GONE and before < _ALIVE

    def _cuts(self, name: str) -> bool:
        """Tell whether all layers behind one, of which there are some, give the same for every sample, and did not at the start."""
        names = list(self.latest)
        behind = [(self.latest[n].signal, self._at_start.get(n)) for n in names[names.index(name) + 1 :]]
        still = [before is not None and now < _STILL * before.signal for now, before in behind]
        return self._batch_size >= _ROWS and bool(still) and all(still)


def _scalars(stats: dict[str, ActivationStats]) -> dict[str, float]:
    width = len(str(max(len(stats) - 1, 1)))
    scalars: dict[str, float] = {}
    for i, (name, layer) in enumerate(stats.items()):
        place = f"{i:0{width}d}.{name}"
        scalars |= {
            f"activation_mean/{place}": layer.mean,
            f"activation_std/{place}": layer.variance**0.5,
            f"activation_signal/{place}": layer.signal,
        }
        scalars |= {} if layer.dead is None else {f"activation_dead/{place}": layer.dead}
        scalars |= {} if layer.saturated is None else {f"activation_saturated/{place}": layer.saturated}
    return scalars


def _first_tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    usable = isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 0 and first.numel() > 0
    inside = usable and torch._C._functorch.is_functorch_wrapped_tensor(first)  # a sample of vmap's, dead outside of it
    return first if usable and not inside else None
