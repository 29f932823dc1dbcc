"""Where the units of a weight are: the incoming weights of each output feature, gate row or embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from lit_training.selection import Kind, ParameterInfo, Patterns, classify, match, names_of

__all__ = ["UnitWeight", "unit_weights"]

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_ROWS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, _ConvNd, *_TABLES)


@dataclass(frozen=True)
class UnitWeight:
    """A parameter and how its units lie in it.

    `groups` splits dimension 0 first (grouped transposed convolutions); `kept` are the dimensions that then count units, `()`
    if the whole tensor is one. `assumed` is true for a parameter of an unknown layer, taken as `[out, in, ...]`.
    """

    name: str
    parameter: nn.Parameter
    kept: tuple[int, ...] = (0,)
    groups: int = 1
    assumed: bool = False

    def view(self) -> tuple[Tensor, tuple[int, ...]]:
        """Return the tensor with its groups apart, and its kept dimensions: what `MaxNormProjection` takes."""
        weight = self.parameter.detach()
        return (weight if self.groups == 1 else weight.view(self.groups, -1, *weight.shape[1:])), self.kept


def unit_weights(
    module: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    per: Literal["unit", "tensor"] = "unit",
) -> list[UnitWeight]:
    """Return the weights that have units, each tensor once: weights of layers and embedding tables.

    A unit is an output feature of `Linear`, `Bilinear`, `Conv1d` to `Conv3d` and their transposed and grouped forms, one gate
    of one cell of a recurrent layer (input and recurrent weights apart, as in Keras), a row of an embedding, an output feature
    of an attention projection (packed or not). Biases, normalisation and tokens have none.

    Args:
        module: any module.
        include: patterns of what to consider; `None` considers everything.
        exclude: patterns of what to leave out.
        per: `"tensor"` makes one unit of each weight.

    Raises:
        ValueError: for a pattern without a match, a weight behind a parametrisation or `weight_norm`, and a tensor tied between
            layers whose units lie on different dimensions.

    >>> [(u.name, u.kept) for u in unit_weights(nn.Sequential(nn.Linear(4, 3), nn.ConvTranspose1d(3, 2, 5)))]
    [('0.weight', (0,)), ('1.weight', (1,))]
    """
    owners = _owners(module)
    infos = classify(module)
    candidates = {info.name: info for info in infos if _has_units(info.kind, info.parameter, owners)}
    names = names_of(candidates.values())
    chosen = set(candidates) if include is None else set(match(include, names, "include, among weights of layers"))
    if exclude is not None:
        chosen -= set(match(exclude, names_of(infos), "exclude"))
    return [_unit_weight(info, owners[info.parameter], per) for name, info in candidates.items() if name in chosen]


def _owners(module: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Map each parameter to the layers that hold it, and its name there."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for layer in module.modules():
        for leaf, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((layer, leaf))
    return owners


def _has_units(kind: Kind, parameter: nn.Parameter, owners: dict[nn.Parameter, list[tuple[nn.Module, str]]]) -> bool:
    return kind == "weight" or (kind == "embedding" and any(isinstance(layer, _TABLES) for layer, _ in owners[parameter]))


def _unit_weight(info: ParameterInfo, owners: Sequence[tuple[nn.Module, str]], per: str) -> UnitWeight:
    for layer, leaf in owners:
        if isinstance(layer, ParametrizationList) or leaf in ("weight_v", "weight_orig"):
            raise ValueError(
                f"{info.name} is not a weight itself, but one is computed from it (parametrisation, weight_norm, "
                f"spectral_norm, pruning), so that a bound on it bounds no unit; leave it out with exclude={info.name!r}"
            )
    if per == "tensor":
        return UnitWeight(info.name, info.parameter, kept=())
    layouts = {_layout(layer) for layer, _ in owners}
    if len(layouts) > 1:
        layers = ", ".join(type(layer).__name__ for layer, _ in owners)
        raise ValueError(
            f"{info.name} is tied between layers whose units lie on different dimensions ({layers}); leave it out with "
            f"exclude={info.name!r}, or bound the whole tensor with per='tensor'"
        )
    kept, groups, assumed = layouts.pop()
    assumed = assumed and not isinstance(info.parameter, UninitializedParameter)
    return UnitWeight(info.name, info.parameter, kept, groups, assumed)


def _layout(layer: nn.Module) -> tuple[tuple[int, ...], int, bool]:
    """Return kept dimensions, groups to split dimension 0 into, and whether that is a guess."""
    if isinstance(layer, _ConvTransposeNd):
        return ((1,), 1, False) if layer.groups == 1 else ((0, 2), layer.groups, False)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # transformers' GPT-2 keeps [in, out]
        return (1,), 1, False
    return (0,), 1, not isinstance(layer, _ROWS)
