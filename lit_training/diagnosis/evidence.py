"""What the rules see: everything that one step of training showed, gathered once and shared by all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_training.diagnosis.experiments import Call, InEval, try_in_eval
from lit_training.diagnosis.figures import ROUNDING, to_host
from lit_training.diagnosis.flow import samples_apart
from lit_training.diagnosis.later import Later
from lit_training.diagnosis.modules import collecting_norms, dropouts, flags, forget_gates, idle_norms, tracked
from lit_training.diagnosis.parameters import LooseTensor, ParameterFacts, loose_tensors, parameter_facts
from lit_training.diagnosis.plan import Plan
from lit_training.diagnosis.reading import gathering_head, logits_of
from lit_training.diagnosis.samples import Samples
from lit_training.selection import clean_names
from lit_training.tracing.comparisons import Direction
from lit_training.tracing.following import last_layers
from lit_training.tracing.graph import Graph, Node
from lit_training.tracing.loss_calls import LossCall
from lit_training.tracing.probe import Layer, Probe
from lit_training.tracing.tensor_stats import TensorStats, read_together

__all__ = ["GROWN", "Evidence", "ParameterFacts", "collect"]

GROWN = 10.0
"""How many times larger than the first layer's output values may become on the way to a last layer."""

NOTICED = 0.05
_SAME = 1e-3  # relative
_HALF = frozenset([torch.float16, torch.bfloat16])
_MANY = 0.5  # of an activation's values at its bounds
_LARGE = 2.0  # beyond what standardised inputs have


@dataclass(frozen=True)
class Evidence:
    """One step of training as the rules see it.

    Args:
        graph: what the forward did.
        layers: every layer in forward order, with its statistics over the joint batch of all processes.
        readouts: products with the tables of embeddings, which `layers` knows as embeddings.
        inputs: statistics of the floating-point tensors that entered the forward, by their nodes.
        parameters: every parameter by name.
        losses: torch's losses that the forward called, in order.
        one_hot: of each attention, the weights that made its queries and keys, and the share of its rows that are one-hot.
        directions: which way a step takes differences from targets, and similarities between samples.
        label_rows: of targets that log-probabilities were multiplied by, over the classes: `[sum, largest]`, by the product's node.
        fading: of each weight with many calls, what the way back from one call to the one before leaves of a gradient.
        norm_passes: of each batch norm that several passes feed by turns, how far the furthest is from what it keeps.
        norm_means: of each batch norm whose running statistics are slow for the planned updates, how many deviations the channels
            of its first batch are from zero, where those start.
        differentiated: nodes of the losses that were differentiated.
        loose: tensors that got a gradient, but that no module owns.
        maximizes: whether an optimiser climbs (`maximize=True`).
        stepping: whether an optimiser was about to step.
        plan: what the training is set to do: updates, rates, clipping.
        later: what the first few steps showed, `None` before them.
        samples: what the loaders handed out in the first few batches.
        momentum: the largest of the optimisers'.
        in_eval: what the called networks do in eval mode.
        broken: in words, the first operation that made the loss not finite, `""` if none is known.
        collecting_norms: momentum of each batch-norm layer that collects its first statistics.
        took_in: batch-norm layers that took the first batch into their running statistics.
        taken_in: how many batches batch-norm layers had taken in before.
        idle_norms: batch-norm layers that normalise with statistics which were never updated.
        forget_gates: mean bias of the gates that keep the memory of each LSTM and GRU.
        flags: what `requires_grad` says on modules, where somebody set it instead of calling `requires_grad_`.
        dropouts: probability of each dropout layer in train mode.
        loss: the loss that was differentiated, averaged over processes; `None` if unknown.
        bare: whether that is what the only one of `losses` gave, for targets that no network made, without weights, penalties or
            other parts.
        batch_size: number of samples in the joint batch.
        step: optimiser steps done before.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    readouts: tuple[Layer, ...] = ()
    inputs: Mapping[int, TensorStats] = field(default_factory=dict)
    parameters: Mapping[str, ParameterFacts] = field(default_factory=dict)
    losses: tuple[LossCall, ...] = ()
    one_hot: tuple[tuple[tuple[str, ...], float], ...] = ()
    directions: tuple[Direction, ...] = ()
    label_rows: Mapping[int, TensorStats] = field(default_factory=dict)
    fading: Mapping[str, float] = field(default_factory=dict)
    norm_passes: Mapping[str, float] = field(default_factory=dict)
    norm_means: Mapping[str, float] = field(default_factory=dict)
    differentiated: tuple[int, ...] = ()
    loose: tuple[LooseTensor, ...] = ()
    maximizes: bool = False
    later: Later | None = None
    samples: Samples = field(default_factory=Samples)
    plan: Plan = field(default_factory=Plan)
    momentum: float = 0.0
    stepping: bool = True
    broken: str = ""
    collecting_norms: Mapping[str, float] = field(default_factory=dict)
    in_eval: tuple[InEval, ...] = ()
    took_in: tuple[str, ...] = ()
    taken_in: Mapping[str, int] = field(default_factory=dict)
    idle_norms: tuple[str, ...] = ()
    forget_gates: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    dropouts: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    bare: bool = False
    differences: tuple[LossCall, ...] = ()
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
    gradient_scale: float = 1.0,
    step: int = 0,
    expect_frozen: Sequence[str] = (),
    stepping: Optimizer | None = None,
    calls: Sequence[Call] = (),
    samples: Samples | None = None,
    plan: Plan | None = None,
    tracked_before: Mapping[str, int] | None = None,
    arrived: Mapping[int, float] | None = None,
) -> Evidence:
    """Turn what a probe saw, and the parameters as the backward pass left them, into evidence.

    Args:
        probe: after its forward and backward.
        optimizers: all of the training's, `None` if there is none to ask.
        loss: the loss that was differentiated.
        gradient_factor: what the gradients at the layers have to be multiplied by to be those of the mean loss (the inverse of
            AMP's loss scale and of the number of processes).
        gradient_scale: what AMP has not yet divided the parameters' gradients by.
        step: optimiser steps done before.
        expect_frozen: patterns of parameters that are meant to be frozen.
        stepping: the optimiser that is about to step; `None` if none is.
        calls: of networks, to be tried in eval mode, unless the graph shows that they treat each sample for itself.
        samples: what the loaders handed out.
        plan: what the training is set to do.
        tracked_before: batches that batch-norm layers had taken in before the forward (`modules.tracked`).
        arrived: norms of the gradients as the last backward pass left them, by the parameters' ids, if that is known.
    """
    layers = tuple(
        replace(layer, gradient=layer.gradient.scaled(gradient_factor)) if layer.gradient is not None else layer
        for layer in probe.layers.values()
    )
    read_together(
        stats
        for layer in layers
        for stats in (layer.output, layer.source, layer.activation, layer.gradient)
        if stats is not None
    )
    losses = tuple(call for call in probe.losses if not probe.graph.reaches_layer(call.node))
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss
    parts = clean_names(probe.module)
    collecting = collecting_norms(parts)
    shares = to_host(seen.one_hot for seen in probe.attentions)
    one_hot = tuple((seen.weights, share) for seen, share in zip(probe.attentions, shares, strict=True))
    return Evidence(
        graph=probe.graph,
        layers=layers,
        readouts=tuple(probe.readouts.values()),
        inputs=probe.inputs,
        parameters=parameter_facts(
            probe.module,
            optimizers,
            expect_frozen,
            trainable=probe.trainable,
            stepping=stepping,
            arrived=arrived,
            gradient_scale=gradient_scale,
            rounding=_rounding(probe.graph),
            judged={
                *last_layers(probe.graph),
                *(
                    gathering_head(probe.graph, scores)
                    for call in losses
                    if (scores := logits_of(probe.graph, call)) is not None
                ),
                *(layer.weight for layer in layers if layer.op == "recurrent" or layer.calls > 1),
                *(
                    layer.weight
                    for layer in layers
                    if layer.activation is not None and float(layer.activation.saturated) > _MANY
                ),
                *(weight for weights, _ in one_hot for weight in weights),
                *_growing(layers),
                *(layer.weight for layer in layers if layer.source is not None and layer.source.rms > _LARGE),
            },
        ),
        one_hot=one_hot,
        losses=losses,
        directions=tuple(probe.comparisons.directions),
        differences=probe.comparisons.differences(),
        label_rows=probe.label_rows,
        fading=probe.fading.left(),
        norm_passes=probe.norm_passes.apart(probe.graph),
        norm_means=probe.norm_passes.off_centre(probe.graph, _slow(collecting, plan)),
        differentiated=tuple(probe.differentiated),
        loose=loose_tensors(probe.tracer, optimizers),
        maximizes=any(group.get("maximize") for o in optimizers or () for group in o.param_groups),
        in_eval=()
        if samples_apart(probe.graph, probe.batch_size)
        else tuple(
            try_in_eval(
                calls,
                samples.per_batch if samples else None,
                ahead=any(call.open_way for call in losses),
                in_order=samples is not None and samples.in_order is True,
            )
        ),
        taken_in=tracked_before or {},
        took_in=tuple(n for n, count in tracked(parts).items() if tracked_before and count > tracked_before.get(n, count)),
        idle_norms=idle_norms(parts),
        forget_gates=forget_gates(parts),
        samples=samples or Samples(),
        plan=plan or Plan(),
        flags=flags(parts),
        dropouts=dropouts(parts),
        momentum=max([float(group.get("momentum", 0.0)) for o in optimizers or () for group in o.param_groups], default=0.0),
        loss=value,
        bare=_is_bare(probe.graph, losses, value),
        stepping=stepping is not None,
        broken=_in_words(probe.first_broken()),
        collecting_norms=collecting,
        batch_size=probe.batch_size,
        step=step,
    )


def _rounding(graph: Graph) -> float:
    """Return up to what gradients are equal: some steps of the coarsest numbers that a layer computes with."""
    return max([ROUNDING, *(2 * torch.finfo(dtype).eps for dtype in {node.dtype for node in graph.layers()} & _HALF)])


def _growing(layers: Sequence[Layer]) -> list[str]:
    """Return the weights of all layers if values grow on their way, which trained weights may do and drawn ones should not."""
    first = next((layer.output.rms for layer in layers if layer.op != "embedding" and layer.output.rms > 0), 0.0)
    grow = first > 0 and any(layer.source is not None and layer.source.rms > GROWN * first for layer in layers)
    return [layer.weight for layer in layers] if grow else []


def _slow(collecting: Mapping[str, float], plan: Plan | None) -> list[str]:
    """Return the batch norms whose running statistics keep some of their start over all planned updates."""
    updates = None if plan is None else plan.updates
    return [] if updates is None else [n for n, momentum in collecting.items() if (1 - momentum) ** updates > NOTICED]


def _is_bare(graph: Graph, losses: Sequence[LossCall], value: float | None) -> bool:
    if value is None or len(losses) != 1 or losses[0].value is None:
        return False
    learnt = any(graph.nodes[i].weight for i in graph.ancestors(losses[0].target))
    return not losses[0].weighted and not learnt and math.isclose(value, losses[0].value, rel_tol=_SAME)


def _in_words(broken: Node | None) -> str:
    if broken is None:
        return ""
    return f"{broken.op} in {broken.scope}" if broken.scope else broken.op
