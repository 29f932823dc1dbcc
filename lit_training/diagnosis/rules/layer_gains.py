"""What a layer does to the scale of the signal, and what its nonlinearity needs."""

from lit_training.gains import RECTIFIERS, gain
from lit_training.tracing.probe import Layer

__all__ = ["REINITIALISE", "excess_gain", "gain_in_words", "is_weak", "measured_gain", "needed_gain"]

SIGMOID = 4.0
WEAK = 0.75
REINITIALISE = "Initialise with kaiming_normal_ (ReLU family) or xavier_normal_ (tanh, linear), or normalise between layers."


def measured_gain(layer: Layer) -> float | None:
    """Return the signal of a layer's output over the one that arrives, `None` if none does."""
    if layer.source is None or not layer.source.signal > 0:
        return None
    return layer.output.energy / layer.source.energy


def needed_gain(layer: Layer) -> float:
    """Return the gain that keeps the scale: that of the nonlinearity for rectifiers, 1 for what is linear around zero."""
    if layer.nonlinearity == "sigmoid":
        return SIGMOID
    return gain(layer.nonlinearity) if layer.nonlinearity in RECTIFIERS else 1.0


def excess_gain(layer: Layer) -> float | None:
    """Return the gain that is measured over the one that is needed, `None` where no signal arrives."""
    g = measured_gain(layer)
    return None if g is None else g / needed_gain(layer)


def is_weak(layer: Layer) -> bool:
    """Tell whether a layer leaves less than three quarters of the signal that its nonlinearity needs."""
    excess = excess_gain(layer)
    return excess is not None and excess < WEAK


def gain_in_words(layer: Layer) -> str:
    """Return name and gain of a layer beside the one that is needed."""
    follows = f" before {layer.nonlinearity}" if layer.nonlinearity else ""
    g = measured_gain(layer)
    figure = "an unknown gain" if g is None else f"gain {g:.2g}"
    return f"{layer.name} has {figure} where {needed_gain(layer):.2g} keeps the scale{follows}"
