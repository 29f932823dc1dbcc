"""What the rules see: everything that one step of training showed, gathered once and shared by all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_training.diagnosis.experiments import Call, InEval, try_in_eval
from lit_training.diagnosis.flow import samples_apart
from lit_training.diagnosis.later import Later
from lit_training.diagnosis.parameters import LooseTensor, ParameterFacts, loose_tensors, parameter_facts
from lit_training.diagnosis.samples import Samples
from lit_training.following import last_layers
from lit_training.graph import Graph
from lit_training.probe import Layer, LossCall, Probe
from lit_training.selection import clean_names
from lit_training.tensor_stats import TensorStats

__all__ = ["Evidence", "ParameterFacts", "collect"]


@dataclass(frozen=True)
class Evidence:
    """One step of training as the rules see it.

    Args:
        graph: what the forward did.
        layers: every layer in forward order, with its statistics over the joint batch of all processes.
        inputs: statistics of the floating-point tensors that entered the forward.
        parameters: every parameter by name.
        losses: torch's losses that the forward called, in order.
        label_sums: over the classes, of targets that log-probabilities were multiplied by, once for each such product.
        differentiated: nodes of the losses that were differentiated.
        loose: tensors that got a gradient, but that no module owns.
        maximizes: whether an optimiser climbs (`maximize=True`).
        stepping: whether an optimiser was about to step.
        scheduled: whether a schedule changes the learning rate.
        later: what the first few steps showed, `None` before them.
        samples: what the loaders handed out in the first few batches.
        planned: updates that the whole run will do, `None` without a limit.
        clip: norm that gradients are clipped to, `None` if they are not; `clip_value` likewise each element.
        momentum: the largest of the optimisers'.
        in_eval: what the called networks do in eval mode.
        idle_norms: batch-norm layers that normalise with statistics which were never updated.
        forget_gates: mean bias of the forget gates of each LSTM.
        dropouts: probability of each dropout layer in train mode.
        loss: the loss that was differentiated, averaged over processes; `None` if unknown.
        batch_size: number of samples in the joint batch.
        step: optimiser steps done before.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    inputs: tuple[TensorStats, ...] = ()
    parameters: Mapping[str, ParameterFacts] = field(default_factory=dict)
    losses: tuple[LossCall, ...] = ()
    label_sums: tuple[TensorStats, ...] = ()
    differentiated: tuple[int, ...] = ()
    loose: tuple[LooseTensor, ...] = ()
    maximizes: bool = False
    later: Later | None = None
    samples: Samples = field(default_factory=Samples)
    planned: int | None = None
    clip: float | None = None
    clip_value: float | None = None
    momentum: float = 0.0
    stepping: bool = True
    scheduled: bool = False
    in_eval: tuple[InEval, ...] = ()
    idle_norms: tuple[str, ...] = ()
    forget_gates: Mapping[str, float] = field(default_factory=dict)
    dropouts: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    batch_size: int = 0
    step: int = 0

    def layer(self, name: str) -> Layer | None:
        """Return a layer by its name."""
        return next((layer for layer in self.layers if layer.name == name), None)


def collect(
    probe: Probe,
    *,
    optimizers: Sequence[Optimizer] | None = None,
    loss: Tensor | float | None = None,
    gradient_factor: float = 1.0,
    step: int = 0,
    expect_frozen: Sequence[str] = (),
    stepping: Optimizer | None = None,
    scheduled: bool = False,
    calls: Sequence[Call] = (),
    samples: Samples | None = None,
    planned: int | None = None,
    clip: float | None = None,
    clip_value: float | None = None,
) -> Evidence:
    """Turn what a probe saw, and the parameters as the backward pass left them, into evidence.

    Args:
        probe: after its forward and backward.
        optimizers: all of the training's, `None` if there is none to ask.
        forget_gates: mean bias of the forget gates of each LSTM.
        loss: the loss that was differentiated.
        gradient_factor: what the gradients at the layers have to be multiplied by to be those of the mean loss (the inverse of
            AMP's loss scale and of the number of processes).
        step: optimiser steps done before.
        expect_frozen: patterns of parameters that are meant to be frozen.
        stepping: the optimiser that is about to step; `None` if none is.
        scheduled: whether a schedule changes the learning rate.
        calls: of networks, to be tried in eval mode, unless the graph shows that they treat each sample for itself.
        samples: what the loaders handed out.
        planned: updates that the whole run will do.
        clip: norm that gradients are clipped to.
        clip_value: what each of their elements is clipped to.
    """
    layers = tuple(
        replace(layer, gradient=layer.gradient.scaled(gradient_factor)) if layer.gradient is not None else layer
        for layer in probe.layers.values()
    )
    return Evidence(
        graph=probe.graph,
        layers=layers,
        inputs=tuple(probe.inputs.values()),
        parameters=parameter_facts(
            probe.module,
            optimizers,
            expect_frozen,
            trainable=probe.trainable,
            stepping=stepping,
            heads=last_layers(probe.graph),
        ),
        losses=tuple(probe.losses),
        label_sums=tuple(probe.label_sums),
        differentiated=tuple(probe.differentiated),
        loose=loose_tensors(probe.tracer, optimizers),
        maximizes=any(group.get("maximize") for o in optimizers or () for group in o.param_groups),
        in_eval=() if samples_apart(probe.graph, probe.batch_size) else tuple(try_in_eval(calls)),
        idle_norms=_idle_norms(probe.module),
        forget_gates=_forget_gates(probe.module),
        samples=samples or Samples(),
        planned=planned,
        clip=clip,
        clip_value=clip_value,
        dropouts=_dropouts(probe.module),
        momentum=max([float(group.get("momentum", 0.0)) for o in optimizers or () for group in o.param_groups], default=0.0),
        loss=float(loss.detach()) if isinstance(loss, Tensor) else loss,
        stepping=stepping is not None,
        scheduled=scheduled,
        batch_size=probe.batch_size,
        step=step,
    )


def _idle_norms(module: nn.Module) -> tuple[str, ...]:
    """Return batch-norm layers in eval mode whose running statistics are still those they were born with."""
    return tuple(
        name
        for name, part in clean_names(module)
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and not part.training
        and part.num_batches_tracked is not None
        and int(part.num_batches_tracked) == 0
        and part.running_mean is not None
        and not part.running_mean.any()
    )


@torch.no_grad()
def _forget_gates(module: nn.Module) -> dict[str, float]:
    """Return the mean bias of the forget gates of each LSTM, the lowest of its layers."""
    gates = {}
    for name, part in clean_names(module):
        if isinstance(part, nn.LSTM) and part.bias:
            size = part.hidden_size
            biases = dict(part.named_parameters(recurse=False))
            pairs = [(b, biases.get(leaf.replace("bias_ih", "bias_hh"))) for leaf, b in biases.items() if "bias_ih" in leaf]
            means = [float((b + other)[size : 2 * size].mean()) for b, other in pairs if other is not None]
            gates[name] = min(means, default=0.0)
    return gates


def _dropouts(module: nn.Module) -> dict[str, float]:
    """Return the probability to drop of each dropout layer in train mode."""
    kind = nn.modules.dropout._DropoutNd
    return {name: float(part.p) for name, part in clean_names(module) if isinstance(part, kind) and part.training}
