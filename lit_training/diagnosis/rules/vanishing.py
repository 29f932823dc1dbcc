"""The rule about weights that are drawn too small: the signal dies on its way."""

import math
from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.reading import producer
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.layer_gains import (
    REINITIALISE,
    gain_in_words,
    is_weak,
    measured_gain,
    needed_gain,
)
from lit_training.diagnosis.rules.units import LEAST_UNITS
from lit_training.tracing.graph import NORMALISATIONS, Graph, first_operand
from lit_training.tracing.probe import Layer

__all__ = ["init_vanishing"]

VANISHED = 1e-3
VANISHED_ADAPTIVE = 1e-5
HELD = 0.1
CHOOSES = frozenset(["argmin", "argmax"])


@rule(
    explains=["vanishing_gradient", "constant_output", "slow_convergence", "lr_too_low", "dead_relu", "bad_gain", "no_update"]
)
def init_vanishing(evidence: Evidence) -> Iterator[Finding]:
    """The signal dies on its way through the layers, so that the last layers see the same input whatever the sample.

    What it means: no gradient of use comes back either, and the network outputs one and the same. Typical causes: weights of a
    small constant std, default initialisation in a deep plain net, Glorot's scheme in front of ReLU.

    How it is measured: the signal (the std over the batch of each unit, averaged over units) that arrives at each layer, over
    the one that arrived at the first, or over 1 if that was larger, as pixels are before they are normalised. Of shares, as
    attention gives them, it is taken over the mean share: each of a thousand tokens gets little. The first layer on the way
    whose gain is below 3/4 of what its nonlinearity needs is named. The overall std does not tell: biases keep it
    at 10^-1.2 in a 30-layer ReLU net with torch's default initialisation, while the signal is 10^-8.6.

    Threshold: 1e-3 under plain gradient descent, 1e-5 under optimisers that divide the size of gradients out. Measured on nets
    of 4 to 16 layers of 64 ReLU, GELU, SiLU units with default initialisation, 250 steps: SGD reaches 92 % and more down to a
    signal of 1.6e-3 and stays at guessing from 5e-4 on; Adam loses nothing down to 4e-5 and 5 to 70 points below 1e-5.
    He-initialised ReLU nets of 30 layers keep 0.2 (correlations between samples grow with depth), tanh nets with Glorot's 0.1.

    Not an alarm: inputs that are the same in all samples, as the grid that an operator network is asked on, or the first step of a
    decoder and of spiking units; branches that are added to others, and keep 1e-5 of the signal, or whose tiny weights Adam's first
    step overwrites; gates whose few units all happen to be silent, squeeze layers in branches that start at zero and queries of
    class tokens, if the signal goes on past them; what is behind layer scales of 1e-5, or batch norms whose gains start at zero;
    codes of which all samples choose the same one at first; zero-initialised heads and branches next to a skip connection (the
    signal that arrives is what counts), nets with normalisation between the layers; growth that is taken back, as Kraehenbuehl's
    equal gradient rates bring it (at 40 layers of 64 by a factor of 1000: they train as well as with He). Small weights in front of
    normalisation are silent though a narrow transformer learns late with them: a std of .02 is customary, and at width 32 it is
    hardly better than .01.

    What to do: initialise for the nonlinearity (`kaiming_normal_` for ReLU), normalise, or add skip connections.
    """
    threshold = VANISHED if any(f.descent is not None for f in evidence.parameters.values()) else VANISHED_ADAPTIVE
    first = 0.0
    passed: list[Layer] = []
    for layer in evidence.layers:
        arriving = _arriving(evidence.graph, layer)
        if math.isnan(arriving) or (arriving == 0 and layer.calls > 1):  # the first of several steps may see a start token
            passed.append(layer)
            continue
        way = _way_to(evidence, layer, passed) if arriving < threshold * first else None
        beside = way is not None and (
            _is_chosen(evidence, layer)
            or _is_small_branch(evidence, layer, way, first)
            or _is_held_back(evidence, layer)
            or (_is_cut(layer, way[-1]) and _goes_on(evidence, layer, threshold * first))
        )
        if way is not None and not beside:
            culprit = next((p for p in way if is_weak(p)), way[0])
            ratio = arriving / first
            yield Finding(
                "init_vanishing",
                "error",
                culprit.name,
                evidence.step,
                f"By {layer.name}, what tells samples apart has faded to {_power(ratio)} of its strength: "
                f"{gain_in_words(culprit)}.",
                REINITIALISE,
                {"signal_ratio": ratio, "gain": measured_gain(culprit) or 0.0, "needed": needed_gain(culprit)},
            )
            return
        first = first or min(arriving, 1.0)
        passed.append(layer)


def _arriving(graph: Graph, layer: Layer) -> float:
    """Return the signal that arrives at a layer, times their number if shares arrive: what a softmax made."""
    if layer.source is None:
        return math.nan
    if layer.node is None:
        return layer.source.signal
    node = graph.nodes[layer.node]
    maker = producer(graph, graph.nodes[node.parents[first_operand(node.op)]])
    shares = maker.shape[int(maker.scalars[0])] if maker.op == "softmax" and maker.scalars and maker.shape else 1
    return layer.source.signal * shares


def _way_to(evidence: Evidence, layer: Layer, passed: Sequence[Layer]) -> list[Layer] | None:
    """Return the layers on the way to one, `None` if what arrives at it did not come from any signal that layers could lose."""
    if layer.node is None:
        return list(passed)
    before = evidence.graph.ancestors(layer.node)
    way = [p for p in passed if p.node is None or p.node in before]
    return way if any(p.source is not None and p.source.signal > 0 for p in way) else None


def _is_chosen(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether what arrives was chosen by an index, as codes are, of which all samples may have the same one at first."""
    return layer.node is not None and any(evidence.graph.nodes[i].op in CHOOSES for i in evidence.graph.ancestors(layer.node))


def _is_cut(layer: Layer, before: Layer) -> bool:
    """Tell whether nothing arrives at once: behind a branch that starts at zero, of a class token, or of few units, all silent."""
    units = before.activation
    few = units is not None and len(units.low) < LEAST_UNITS and units.silent_units == 1
    return few or (layer.source is not None and layer.source.signal == 0)


def _goes_on(evidence: Evidence, layer: Layer, least: float) -> bool:
    """Tell whether layers behind one get some signal all the same."""
    with_signal = (x.node for x in evidence.layers if x.node is not None and x.source is not None and x.source.signal >= least)
    return any(layer.node in evidence.graph.ancestors(node) for node in with_signal)


def _is_held_back(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a trainable gain on the way is small on purpose, as layer scales are, and zero gains at a branch's end."""
    if layer.node is None:
        return False
    graph = evidence.graph
    for node in (graph.nodes[i] for i in graph.ancestors(layer.node)):
        factors = [p for p in node.parents if graph.nodes[p].origin == "parameter"]
        if node.op == "mul" and node.origin == "data":
            named = [graph.nodes[i].name for factor in factors for i in graph.ancestors(factor)]
        else:
            named = [graph.nodes[p].name for p in factors[:1]] if node.op in NORMALISATIONS else []
        gains = [evidence.parameters[name] for name in named if name in evidence.parameters]
        if any(gain.requires_grad and gain.low == gain.high and abs(gain.low) < HELD for gain in gains):
            return True
    return False


def _is_small_branch(evidence: Evidence, layer: Layer, way: Sequence[Layer], first: float) -> bool:
    """Tell whether others are added to what a way leads to, and it is only small, or the first step overwrites its weak weights."""
    if layer.node is None or layer.source is None or not _is_added(evidence.graph, layer.node):
        return False
    weak = [evidence.parameters.get(p.weight) for p in way if is_weak(p)]
    overwritten = bool(weak) and all(f is not None and _is_overwritten(f) for f in weak)
    small = layer.source.signal >= VANISHED_ADAPTIVE * first and _goes_on(evidence, layer, VANISHED * first)
    return overwritten or small


def _is_added(graph: Graph, index: int) -> bool:
    """Tell whether what other layers made is added to what becomes of a node."""
    made, behind = graph.made_by_layers(), {index}
    for node in graph.nodes[index + 1 :]:
        others = set(node.parents) - behind
        if len(others) < len(set(node.parents)):
            if node.op == "add" and not made.isdisjoint(others):
                return True
            behind.add(node.index)
    return False


def _is_overwritten(facts: ParameterFacts) -> bool:
    """Tell whether the first step of Adam or its like is larger than a weight."""
    return (facts.fixed_step or 0.0) * math.sqrt(math.prod(facts.shape)) > facts.norm


def _power(value: float) -> str:
    return f"10^{math.log10(value):.1f}" if value > 0 else "0"
