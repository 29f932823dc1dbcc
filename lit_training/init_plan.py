"""What to initialise, and with which gain: the decisions that `lit_training.initialize_` makes before it draws."""

import math
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from lit_training.fans import fans
from lit_training.init_report import InitReport, LayerInit
from lit_training.layers import Layer, Weight, find_layers, looks_fresh
from lit_training.running import Runner
from lit_training.schemes import USES_GAIN
from lit_training.selection import choose
from lit_training.tracing.following import Following
from lit_training.tracing.graph import Graph
from lit_training.tracing.symbolic import symbolic_graph
from lit_training.tracing.trace import Tracer

__all__ = ["choose_layers", "forward_graph", "plan_row", "warn_of_overwriting"]

Patterns = str | Sequence[str] | None

_BY_STRUCTURE = (
    (nn.RNNBase, "gates"),
    (nn.RNNCellBase, "gates"),
    (nn.Embedding, "linear"),
    (nn.EmbeddingBag, "linear"),
    (nn.MultiheadAttention, "attention"),
)


def choose_layers(model: nn.Module, include: Patterns, exclude: Patterns, report: InitReport) -> list[Layer]:
    """Return the layers with what is selected and not frozen, and note in the report why the rest is left alone."""
    choices = choose(model, include=include, exclude=exclude, biases=True, norms=True, embeddings=True)
    taken = {choice.info.parameter for choice in choices if choice.selected and choice.info.parameter.requires_grad}
    layers, known = [], set()
    for layer in find_layers(model):
        known |= {parameter for weight in layer.weights for parameter in weight.parameters.values()}
        weights = [weight for weight in layer.weights if taken.issuperset(weight.parameters.values())]
        biases = {name: bias for name, bias in layer.biases.items() if bias in taken}
        if weights or biases:
            layers.append(Layer(layer.name, layer.module, weights, biases))
    for choice in choices:
        info = choice.info
        if not choice.selected:
            report.left_alone[info.name] = choice.reason
        elif not info.parameter.requires_grad:
            report.left_alone[info.name] = "frozen"
        elif info.kind == "weight" and info.parameter not in known:
            report.left_alone[info.name] = "a weight of no known layer: initialise it where it is made"
    if not any(layer.weights for layer in layers):
        raise ValueError(
            f"nothing to initialise: include={include!r}, exclude={exclude!r} and freezing leave no layer's weight"
        )
    return layers


def warn_of_overwriting(layers: Sequence[Layer], report: InitReport, *, stacklevel: int) -> None:
    """List, in a warning and in the report, weights that do not look as torch's constructors leave them."""
    report.overwritten = [weight.name for layer in layers for weight in layer.weights if not looks_fresh(weight)]
    if report.overwritten:
        shown = ", ".join(report.overwritten[:10]) + (", ..." if len(report.overwritten) > 10 else "")
        warnings.warn(
            f"{len(report.overwritten)} weights do not look like torch's fresh initialisation and are overwritten: {shown}. "
            "If they are pretrained, name them in `exclude`.",
            stacklevel=stacklevel + 1,
        )


def forward_graph(model: nn.Module, runner: Runner | None) -> tuple[Graph | None, str]:
    """Return the graph of the forward, real if there is a runner, and how it was found; None where neither way works."""
    if runner is not None:
        with Tracer(model) as tracer:
            runner.forward()
        if tracer.failure is None and tracer.graph.layers():
            return tracer.graph, "trace"
    return symbolic_graph(model), "symbolic"


def plan_row(
    layer: Layer, weight: Weight, scheme: str, fixed: Following | None, found: Mapping[str, Following], how: str
) -> LayerInit:
    """Return a weight's row with the fan and the gain to use, and where that gain is from."""
    follows, source, doubt = _follows(layer.module, weight, fixed, found, how)
    notes = [f"tied to {', '.join(weight.tied)}"] if weight.tied else []
    if doubt and scheme in USES_GAIN:
        notes.append(f"{doubt}; gain {follows.gain:.4g} was used")
    fan = fans(weight.module, weight.leaf)
    divisor = sum(fan) / 2 if scheme.startswith("glorot") else fan.fan_in
    return LayerInit(
        weight.name, scheme, divisor, follows.gain if scheme in USES_GAIN else 1.0, follows.name, source, notes=notes
    )


def _follows(
    module: nn.Module, weight: Weight, fixed: Following | None, found: Mapping[str, Following], how: str
) -> tuple[Following, str, str]:
    """Return what follows, how that is known, and what is doubtful about it."""
    structure = next((name for kind, name in _BY_STRUCTURE if isinstance(module, kind)), None)
    if structure is not None:
        return Following(structure, 1.0), "structure", ""
    if fixed is not None:
        return fixed, "given", ""
    seen = next((found[name] for name in (*weight.parameters, *weight.tied) if name in found), None)
    if seen is None:
        return Following("unknown", math.sqrt(2)), "assumed", "what follows was not found, ReLU is assumed"
    if not seen.known:
        return seen, "assumed", f"the gain of {seen.name!r} is not known"
    return seen, how, ""
