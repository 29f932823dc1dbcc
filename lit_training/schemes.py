"""The initialisation schemes by name: their options, and how each draws a layer's weight."""

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Generator, nn

from lit_training.fans import Matrix, matrices
from lit_training.initializers import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    orthogonal_,
    random_walk_,
    random_walk_gain,
)
from lit_training.layers import Weight

__all__ = ["NEEDS_DATA", "SCHEMES", "USES_GAIN", "check_scheme", "draw_"]

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "normal": {"std": 0.01},
    "glorot": {},
    "glorot_uniform": {},
    "he": {},
    "he_uniform": {},
    "orthogonal": {},
    "random_walk": {},
    "lsuv": {"tolerance": 0.1, "max_iterations": 10},
    "data_dependent": {"mean": 1.0, "weights": "random", "between_layers": True, "max_iterations": 10, "loss_fn": None},
}
NEEDS_DATA = frozenset({"lsuv", "data_dependent"})
USES_GAIN = frozenset({"he", "he_uniform", "orthogonal", "random_walk"})

_ALSO_KNOWN = {
    "kaiming": "he",
    "xavier": "glorot",
    "gaussian": "normal",
    "kraehenbuehl": "data_dependent",
    "saxe": "orthogonal",
}
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "std": (lambda v: _is_number(v) and v > 0, "a positive number"),
    "mean": (lambda v: _is_number(v) and v >= 0, "a number of at least 0"),
    "tolerance": (lambda v: _is_number(v) and v > 0, "a positive number"),
    "max_iterations": (lambda v: isinstance(v, int) and v >= 1, "an integer of at least 1"),
    "weights": (lambda v: v in ("random", "pca", "kmeans"), "'random', 'pca' or 'kmeans'"),
    "between_layers": (lambda v: isinstance(v, bool), "True or False"),
    "loss_fn": (lambda v: v is None or callable(v), "a function of output and target, or None"),
}


def check_scheme(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheme's options, completed with their defaults.

    Raises:
        ValueError: for an unknown scheme or option (the nearest is named), or a bad value.

    >>> check_scheme("normal", {"std": 0.02})
    {'std': 0.02}
    """
    if scheme not in SCHEMES:
        names = {name: name for name in SCHEMES} | _ALSO_KNOWN
        near = get_close_matches(str(scheme).lower(), names, n=1, cutoff=0.0)
        raise ValueError(f"unknown scheme {scheme!r}; did you mean {names[near[0]]!r}? Schemes: {list(SCHEMES)}")
    defaults = SCHEMES[scheme]
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(f"scheme {scheme!r} has no option {name!r}; its options: {list(defaults) or 'none'}")
        valid, wanted = _CHECKS[name]
        if not valid(value):
            raise ValueError(f"{name} of scheme {scheme!r} must be {wanted}, got {value!r}")
    return {**defaults, **options}


def draw_(
    weight: Weight, scheme: str, *, gain: float, follows: str, options: Mapping[str, Any], generator: Generator | None
) -> float:
    """Draw a weight by a scheme, matrix by matrix, and return the standard deviation aimed at.

    The schemes that look at data start from orthonormal weights (`lsuv`) or independent ones (`data_dependent`) of gain 1.

    Args:
        weight: of `lit_training.layers.find_layers`.
        scheme: one of `SCHEMES`.
        gain: of what follows the layer.
        follows: its name.
        options: the scheme's options, complete.
        generator: source of randomness; `None` is torch's global one.
    """
    shape = getattr(weight.module, weight.leaf).shape
    parameter = next(iter(weight.parameters.values()))
    whole = torch.empty(shape, dtype=torch.promote_types(parameter.dtype, torch.float32), device=parameter.device)
    squares = 0.0
    for matrix in matrices(weight.module, weight.leaf, whole):
        std = _fill_(weight.module, matrix, scheme, gain, follows, options, generator)
        squares += std**2 * matrix.view.numel()
    padding = getattr(weight.module, "padding_idx", None)
    if padding is not None:
        whole[padding] = 0
    weight.write_(whole)
    return math.sqrt(squares / max(whole.numel(), 1))


def _fill_(
    module: nn.Module,
    matrix: Matrix,
    scheme: str,
    gain: float,
    follows: str,
    options: Mapping[str, Any],
    generator: Generator | None,
) -> float:
    view, fans = matrix.view, matrix.fans
    lookup = isinstance(module, (nn.Embedding, nn.EmbeddingBag))  # one input at a time: there is nothing to orthogonalise
    if scheme == "normal":
        with torch.no_grad():
            nn.init.normal_(view, std=options["std"], generator=generator)
        return float(options["std"])
    if scheme in ("glorot", "glorot_uniform"):
        (glorot_normal_ if scheme == "glorot" else glorot_uniform_)(view, fans=fans, generator=generator)
        return math.sqrt(2 / sum(fans))
    if scheme in ("orthogonal", "lsuv") and not lookup:
        columns = math.prod(view.shape[1:])
        scale = gain * math.sqrt(columns / fans.fan_in)  # a stride leaves a transposed convolution fewer terms than columns
        orthogonal_(view, scale, generator=generator)
        return scale / math.sqrt(max(len(view), columns))
    if scheme == "random_walk" and not lookup:
        width = getattr(module, "out_channels", len(view))
        nonlinearity = follows if follows in ("relu", "tanh") else gain
        random_walk_(view, nonlinearity, fans=fans, width=width, generator=generator)
        return random_walk_gain(nonlinearity, width) / math.sqrt(fans.fan_in)
    (he_uniform_ if scheme == "he_uniform" else he_normal_)(view, gain, fans=fans, generator=generator)
    return gain / math.sqrt(fans.fan_in)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
