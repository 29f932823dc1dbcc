"""The rule about the scale and the offset of what the first layers read."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import is_normalised
from lit_training.diagnosis.updates import matrices
from lit_training.tracing.graph import NORMALISATIONS, Graph
from lit_training.tracing.probe import Layer
from lit_training.tracing.tensor_stats import TensorStats

__all__ = ["is_off", "unnormalised_input"]

LARGE = 20.0
SMALL = 0.03
FLAT, DROWNED = 0.01, 0.1
OFFSET = 5.0
UNLIKE = 100.0
NEAR = 4.0
REGRESSION = frozenset("mse_loss l1_loss smooth_l1_loss huber_loss".split())
BOUNDED = frozenset("tanh sigmoid softmax hardtanh hardsigmoid".split())


@rule(
    explains=[
        "lr_too_low",
        "lr_too_high",
        "bad_initial_loss",
        "init_exploding",
        "init_vanishing",
        "bad_bias_init",
        "loss_diverging",
        "dead_relu",
        "exploding_gradient",
        "nan_loss",
        "saturation",
        "oscillating_loss",
    ]
)
def unnormalised_input(evidence: Evidence) -> Iterator[Finding]:
    """The inputs reach the first layer at a scale, or with an offset, that initialisation is not made for.

    Measured where the first layers read them, so that what the network normalises itself does not count: the root mean square
    is over 20, or the mean is more than 5 standard deviations from zero, or no value is above .03 and no normalisation takes
    that back (one that follows does not if biases or positions are added first, and what tells samples apart is less than a
    tenth of what comes out of it), or the std is below .01 beside a larger mean and what tells samples apart is less than a
    tenth of what the layer makes. Initialisation assumes inputs of variance 1 (Glorot and Bengio 2010); the gradient of the
    first layer grows with their scale, and an offset makes all its columns move together (LeCun et al. 1998, section 4.3). Pixels
    from 0 to 255 have a root mean square of 100 and more, divided by 255 twice they stay below .004.

    Not an alarm: integers for an embedding; inputs in 0...1, which are off but train; columns of like scale in front of a
    layer with a batch norm behind it, which takes scale and offset back, and the size of the gradient with them; with another
    normalisation straight behind it, not in a residual stream, that takes the scale back (pixels up to 255 in front of layer or
    group norm cost a point at most); numbers that are told from numbers of their own size, by units without bounds under Adam and
    its like, where all grows with the input (super-resolution and an autoencoder reach the same R2, to .03, with pixels up to 255
    as with a std of 1); large numbers in front of weights that are made for them: ones that bring them below 20 and to less than a
    quarter, as Caffe's networks do with pixels (torch draws weights that bring them to .6), or frequencies, which only sine and
    cosine follow and which do not look drawn.

    What to do: standardise with the training data's mean and std.
    """
    for layer in evidence.layers:
        stats = layer.source
        if stats is None or not is_off(evidence, layer):
            continue
        if _is_tiny(evidence, layer, stats):
            message = f"The inputs are within {stats.largest:.2g} of zero where {layer.name} reads them, not of size 1."
            advice = "Standardise: x = (x - mean) / std; were they divided by 255 twice?"
            numbers = {"largest": stats.largest}
        else:
            message = (
                f"The inputs have mean {stats.mean:.3g} and std {stats.std:.3g} where {layer.name} reads them, not 0 and 1."
            )
            advice = "Standardise: x = (x - mean) / std, with the training data's statistics."
            numbers = {"mean": stats.mean, "std": stats.std}
        yield Finding("unnormalised_input", "error", layer.name, evidence.step, message, advice, numbers)
        return


def is_off(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a layer reads inputs at a scale, or with an offset, that its weights are not made for."""
    stats = layer.source
    if stats is None or not stats.finite or not _reads_inputs(evidence, layer) or _is_behind_idle_norm(evidence, layer):
        return False
    offset = abs(stats.mean) / stats.std if stats.std > 0 else math.inf
    far = offset > OFFSET and stats.rms > 2 and not _makes_phases(evidence, layer)
    large = stats.rms > LARGE and not (
        _scales_along(evidence, layer, stats) or _is_rescaled(evidence, layer, stats) or _is_made_for_it(evidence, layer)
    )
    flat = offset > OFFSET and 0 < stats.std < FLAT and layer.output.signal < DROWNED * layer.output.rms
    return large or ((far or flat) and not _is_centred(evidence, layer, stats)) or _is_tiny(evidence, layer, stats)


def _is_made_for_it(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a layer brings what it reads to an ordinary size, by weights far smaller than drawn ones, or to phases."""
    read = 0.0 if layer.source is None else layer.source.rms
    return (0 < layer.output.rms < min(LARGE, read / NEAR)) or _makes_phases(evidence, layer)


def _makes_phases(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether only sine and cosine read a layer, whose weights do not look drawn: frequencies."""
    facts = evidence.parameters.get(layer.weight)
    acts = set() if layer.node is None else set(evidence.graph.follows(layer.node))
    return facts is not None and not facts.fresh and bool(acts) and acts <= {"sin", "cos"}


def _is_behind_idle_norm(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a batch norm would standardise what a layer reads, were it not in eval mode, untrained (bn_eval_in_train)."""
    graph, idle = evidence.graph, set(evidence.idle_norms)
    return bool(idle) and layer.node is not None and any(graph.nodes[i].scope in idle for i in graph.ancestors(layer.node))


def _is_tiny(evidence: Evidence, layer: Layer, stats: TensorStats) -> bool:
    return 0 < stats.largest < SMALL and (not is_normalised(evidence, layer) or _is_drowned(evidence, layer))


def _is_drowned(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether biases or positions drown what a layer makes of the inputs, before a normalisation scales all of it."""
    others = (other for other in evidence.layers if None not in (layer.node, other.node, other.source) and other is not layer)
    behind = (other for other in others if layer.node in evidence.graph.ancestors(other.node or 0))
    arrives = next((other.source for other in behind), None)
    return arrives is not None and arrives.signal < DROWNED * arrives.rms


def _scales_along(evidence: Evidence, layer: Layer, stats: TensorStats) -> bool:
    """Tell whether targets are as large as inputs of one scale, and neither units nor optimiser mind how large both are."""
    read = evidence.graph.ancestors(layer.node or 0)
    largest = max([stats.largest, *(given.largest for index, given in evidence.inputs.items() if index in read)])
    errors = [call for call in evidence.losses if call.op in REGRESSION]
    if not errors or len(errors) < len(evidence.losses):
        return False
    sizes = [max(map(abs, call.target_range)) for call in errors]
    alike = all(largest < NEAR * size and size < NEAR * largest for size in sizes)
    bounded = any(layer.nonlinearity in BOUNDED or layer.op == "recurrent" for layer in evidence.layers)
    adaptive = all(f.fixed_step is not None for f in matrices(evidence))
    return alike and adaptive and not bounded and not evidence.one_hot and _is_even(stats)


def _is_even(stats: TensorStats) -> bool:
    """Tell whether columns that vary are of one scale."""
    stds = stats.columns.variance.sqrt()
    stds = stds[stds > 0]
    return len(stds) > 0 and float(stds.max()) < UNLIKE * float(stds.min())


def _is_rescaled(evidence: Evidence, layer: Layer, stats: TensorStats) -> bool:
    """Tell whether a normalisation follows a layer whose inputs are all of one scale, before others are added."""
    return is_normalised(evidence, layer) and _is_even(stats) and not _meets_others(evidence.graph, layer.node or 0)


def _is_centred(evidence: Evidence, layer: Layer, stats: TensorStats) -> bool:
    """Tell whether batch norm follows a layer whose inputs are all of one scale."""
    graph = evidence.graph
    norms = {node.op for node in graph.nodes if node.op in NORMALISATIONS and layer.node in graph.ancestors(node.index)}
    return is_normalised(evidence, layer) and bool(norms) and all("batch_norm" in op for op in norms) and _is_even(stats)


def _meets_others(graph: Graph, index: int) -> bool:
    """Tell whether what other layers made is added to a layer's output before anything acts on it, as to a residual stream."""
    readers, made, seen, stack = graph.consumers(), graph.made_by_layers(), {index}, [index]
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
            if reader.op == "add" and any(p in made and p not in seen for p in reader.parents):
                return True
            seen.add(reader.index)
            stack += [] if reader.op in NORMALISATIONS or graph.acts(reader) else [reader.index]
    return False


def _reads_inputs(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a layer reads no other's output, or beside it numbers that the loader gave and that are large themselves."""
    if layer.node is None:
        return False
    graph, inside = evidence.graph, layer.name if layer.op == "recurrent" else None  # what it does inside is its own
    behind, seen, stack = False, {layer.node}, [layer.node]
    while stack:
        for parent in (graph.nodes[p] for p in graph.nodes[stack.pop()].parents if p not in seen):
            seen.add(parent.index)
            if parent.weight and parent.scope != inside:
                behind = True
            else:
                stack.append(parent.index)
    large = any(stats.rms > LARGE for index, stats in evidence.inputs.items() if index in seen)
    return large or not behind
