"""The rule about units that start alike and get the same gradient."""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule

__all__ = ["init_symmetry"]


@rule(explains=["vanishing_gradient", "constant_output", "slow_convergence", "lr_too_low", "dead_relu", "bad_gain"])
def init_symmetry(evidence: Evidence) -> Iterator[Finding]:
    """All units of a layer start with the same weights and get the same gradient, so they stay copies of one unit for ever.

    Measured on every weight of two or more units: the slices along the first dimension are equal to 1e-5 of the largest weight,
    and so are those of its gradient; of an embedding, its columns, the factors. Rumelhart, Hinton and Williams 1986 broke this
    symmetry with random weights, and the lecture names all-zero initialisation as the first mistake. A layer of equal units has
    the capacity of one unit.

    Where that gradient is zero, as it is behind a layer that starts at zero, the first three updates decide: weights that have
    not moved and got no gradient by then stay equal. So do tables and factors of zeros whose gradient stays zero.

    Not an alarm: zero-initialised last layers, residual branches and LoRA's B, whose units start equal but get different
    gradients, or get them as soon as what follows has moved; embeddings whose rows start equal; biases and normalisation,
    which start equal by design; layers that are frozen.

    What to do: draw the weights at random; only biases and the last layer of a branch may start at zero.
    """
    alike = [
        f
        for f in evidence.parameters.values()
        if f.kind in ("weight", "embedding") and f.requires_grad and _stays_equal(evidence, f)
    ]
    if alike:
        first = alike[0]
        value = "zero" if first.norm == 0 else "the same"
        units = first.shape[1] if first.kind == "embedding" else first.shape[0]
        yield Finding(
            "init_symmetry",
            "error",
            _module(first.name),
            evidence.step,
            f"All {units} units start with weights that are {value} and get the same gradient, so they will stay equal"
            f" ({len(alike)} weight(s) like this).",
            "Draw weights at random: torch.nn.init.kaiming_normal_(layer.weight); only biases start alike.",
            {"units": units, "weights": len(alike)},
        )


def _stays_equal(evidence: Evidence, facts: ParameterFacts) -> bool:
    """Tell whether a weight's units are equal and nothing will make them differ."""
    if facts.kind not in ("weight", "embedding") or not facts.equal_units or not facts.equal_gradients:
        return False
    if facts.gradient:
        return True
    if evidence.later is not None:
        later = evidence.later
        return later.steps > 0 and later.moved.get(facts.name) is False and not later.gradients.get(facts.name)
    return not any(f.gradient for f in evidence.parameters.values() if f.kind == "weight")


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
