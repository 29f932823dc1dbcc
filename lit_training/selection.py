"""Which parameters a callback acts on: by kind (weight, bias, norm, embedding) and by name pattern.

Every callback of the project chooses its parameters here, so that `include=["head"]` means the same everywhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.swa_utils import AveragedModel

__all__ = ["Choice", "Kind", "ParameterInfo", "choose", "classify", "clean_names", "match", "names_of", "select"]

Kind = Literal["weight", "bias", "norm", "embedding"]
Patterns = str | Sequence[str] | None

_WEIGHT_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM_CLASS = re.compile(r"(?<!weight)(?<!spectral)norm(\dd)?$", re.IGNORECASE)
_BIAS_LEAF = re.compile(r"^bias(_|$)|_bias$")
_TOKEN_LEAF = re.compile(r"(^|_)(cls|tokens?|registers?|pos|positions?|positional|rel_pos)(_|$)|embed|position_bias")
_ALWAYS_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
_MAYBE_WRAPPERS = _ALWAYS_WRAPPERS | {"module"}
_MODULE_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter: its `name` without wrapper parts, its `kind`, why it has that kind, and the names it is tied to.

    `spelt` are its names as `named_parameters()` spells them, where those hold wrapper parts.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    reason: str
    aliases: tuple[str, ...] = ()
    spelt: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Whether a parameter was selected, and by which rule or pattern."""

    info: ParameterInfo
    selected: bool
    reason: str


def select(
    module: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = False,
) -> dict[str, nn.Parameter]:
    """Return the parameters that a regulariser should act on: weights, unless the arguments say otherwise.

    A pattern is a shell pattern on the qualified name, in which `*` also matches dots; naming a module means its subtree
    (`"head"` is `"head.*"`). Names are free of wrapper parts (`_orig_mod.`, DDP's `module.`). A tied parameter is returned
    once, under its first name, and is matched by any of its names. Parameters are returned whether or not they are frozen.

    Args:
        module: any module.
        include: patterns of what to consider; `None` considers everything.
        exclude: patterns of what to leave out, stronger than `include`.
        biases: also return biases.
        norms: also return what normalisation layers own, and other scales and gates (LayerScale, weight_norm's g, PReLU).
        embeddings: also return embedding tables, class and position tokens.

    Returns:
        Qualified name to parameter, in the order of `module.named_parameters()`.

    Raises:
        ValueError: if a pattern matches no parameter (the nearest names are listed), or if `include` names only parameters of
            kinds that are switched off.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> list(select(net))
    ['0.weight', '2.weight']
    >>> list(select(net, include="2", biases=True))
    ['2.weight', '2.bias']
    """
    choices = choose(module, include=include, exclude=exclude, biases=biases, norms=norms, embeddings=embeddings)
    return {choice.info.name: choice.info.parameter for choice in choices if choice.selected}


def choose(
    module: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = False,
) -> list[Choice]:
    """Do what `select` does, and tell for every parameter why it was selected or not.

    Args, raises: as `select`.

    >>> [choice.reason for choice in choose(nn.Linear(3, 2))]
    ["weight: 'weight' of Linear", "bias: 'bias' of Linear"]
    """
    infos = classify(module)
    names = names_of(infos)
    included = None if include is None else match(include, names, "include")
    excluded = {} if exclude is None else match(exclude, names, "exclude")
    wanted = {"weight": True, "bias": biases, "norm": norms, "embedding": embeddings}
    if included is not None:
        _check_kinds(included, infos, wanted)
    return [_choice(info, wanted[info.kind], included, excluded) for info in infos]


def classify(module: nn.Module) -> list[ParameterInfo]:
    """Tell each parameter's kind, once per tensor, in the order of `module.named_parameters()`.

    A tied tensor takes the kind `embedding` if any of its owners is an embedding, else the kind at its first name.

    >>> [(info.name, info.kind) for info in classify(nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2)))]
    [('0.weight', 'embedding'), ('1.weight', 'weight'), ('1.bias', 'bias')]
    """
    found: dict[nn.Parameter, list[tuple[str, Kind, str]]] = {}
    spelt: dict[nn.Parameter, list[str]] = {}
    for name, raw, parameter, owner, leaf in _owned_parameters(module):
        kind, reason = _kind(parameter, owner, leaf)
        found.setdefault(parameter, []).append((name, kind, reason))
        if raw != name:
            spelt.setdefault(parameter, []).append(raw)
    infos = []
    for parameter, uses in found.items():
        _, kind, reason = next((use for use in uses if use[1] == "embedding"), uses[0])
        aliases = tuple(name for name, _, _ in uses[1:])
        infos.append(ParameterInfo(uses[0][0], parameter, kind, reason, aliases, tuple(spelt.get(parameter, ()))))
    return infos


def names_of(infos: Iterable[ParameterInfo]) -> dict[str, tuple[str, ...]]:
    """Map the name of each parameter to all names it is known under, as `match` takes them.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> names_of(classify(nn.Sequential(layer, layer)))
    {'0.weight': ('0.weight', '1.weight')}
    """
    return {info.name: (info.name, *info.aliases, *info.spelt) for info in infos}


def match(patterns: str | Sequence[str], names: Mapping[str, Sequence[str]] | Iterable[str], argument: str) -> dict[str, str]:
    """Return which names the patterns match, and by which pattern.

    Args:
        patterns: one shell pattern or several.
        names: the names to match, or a mapping from each to all names it is known under.
        argument: what the user calls the patterns, for the message.

    Raises:
        ValueError: for an empty pattern or one that matches nothing.

    >>> match("head", ["body.weight", "head.weight"], "include")
    {'head.weight': 'head'}
    """
    known = names if isinstance(names, Mapping) else {name: (name,) for name in names}
    matched: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name, aliases in known.items() if any(_matches(pattern, alias) for alias in aliases)]
        if not hits:
            raise ValueError(f"{argument}: {pattern!r} matches no parameter; nearest: {_nearest(pattern, known)}")
        for name in hits:
            matched.setdefault(name, pattern)
    return matched


def clean_names(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return `module.named_modules()` with wrapper parts (`_orig_mod.`, DDP's `module.`) stripped from the names.

    >>> [name for name, _ in clean_names(nn.DataParallel(nn.Sequential(nn.ReLU())))]
    ['', '', '0']
    """
    modules = dict(module.named_modules())
    return [(_clean(name, modules), part) for name, part in modules.items()]


def _owned_parameters(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, nn.Module, str]]:
    """Yield clean name, name, parameter, the layer it belongs to and its name there; tied parameters at each place."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, owner in modules.items():
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            raw = f"{path}.{leaf}" if path else leaf
            yield _clean(raw, modules), raw, parameter, *_layer_of(path, owner, leaf, modules)


def _layer_of(path: str, owner: nn.Module, leaf: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, str]:
    """See through `torch.nn.utils.parametrize`: the layer that is parametrised, and the name of what is parametrised."""
    if not isinstance(owner, ParametrizationList):
        return owner, leaf
    layer, _, tensor = f".{path}".rpartition(".parametrizations.")
    magnitude = leaf == "original0" and any(type(p).__name__ == "_WeightNorm" for p in owner)
    return modules[layer.removeprefix(".")], "weight_g" if magnitude else tensor


def _clean(name: str, modules: Mapping[str, nn.Module]) -> str:
    parts = name.split(".")
    if _MAYBE_WRAPPERS.isdisjoint(parts):
        return name
    kept = []
    for i, part in enumerate(parts):
        wraps = part == "module" and isinstance(modules.get(".".join(parts[:i])), _MODULE_WRAPPERS)
        if part not in _ALWAYS_WRAPPERS and not wraps:
            kept.append(part)
    return ".".join(kept)


def _kind(parameter: nn.Parameter, owner: nn.Module, leaf: str) -> tuple[Kind, str]:
    """Decide by owner first, then by name, last by shape; return the kind and the rule that decided."""
    layer = type(owner).__name__
    if isinstance(owner, _NORM_LAYERS) or _NORM_CLASS.search(layer):
        return "norm", f"'{leaf}' of {layer}"
    if leaf.endswith("weight_g"):
        return "norm", f"magnitude g of weight_norm on {layer}"
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding", f"'{leaf}' of {layer}"
    if _TOKEN_LEAF.search(leaf):
        return "embedding", f"the name '{leaf}' is that of a token or an embedding"
    if _BIAS_LEAF.search(leaf):
        return "bias", f"'{leaf}' of {layer}"
    if isinstance(owner, _WEIGHT_LAYERS) or isinstance(parameter, UninitializedParameter):
        return "weight", f"'{leaf}' of {layer}"
    wide = [size for size in parameter.shape if size > 1]
    if len(wide) <= 1:
        return "norm", f"'{leaf}' of {layer} has one dimension: a scale or gate"
    if parameter.ndim > 2 and parameter.shape[0] == 1:
        return "embedding", f"'{leaf}' of {layer} has a leading dimension of 1: a token"
    return "weight", f"'{leaf}' of {layer}"


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Return up to three parameter or module names close to a pattern that matched nothing."""
    candidates = dict.fromkeys(part for name in names for part in _prefixes(name))
    return get_close_matches(pattern.removesuffix(".*"), candidates, n=3, cutoff=0.0)


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _check_kinds(included: Mapping[str, str], infos: Sequence[ParameterInfo], wanted: Mapping[str, bool]) -> None:
    """Refuse an include pattern whose every match is of a kind that is switched off."""
    kinds: dict[str, set[str]] = {}
    for info in infos:
        if info.name in included:
            kinds.setdefault(included[info.name], set()).add(info.kind)
    for pattern, found in kinds.items():
        if not any(wanted[kind] for kind in found):
            switches = {"bias": "biases=True", "norm": "norms=True", "embedding": "embeddings=True"}
            needed = " or ".join(switches[kind] for kind in sorted(found))
            raise ValueError(
                f"include: {pattern!r} matches only parameters of kind {sorted(found)}, which are left out; pass {needed}"
            )


def _choice(info: ParameterInfo, wanted: bool, included: Mapping[str, str] | None, excluded: Mapping[str, str]) -> Choice:
    if info.name in excluded:
        return Choice(info, False, f"excluded by {excluded[info.name]!r}")
    if included is not None and info.name not in included:
        return Choice(info, False, "not matched by include")
    return Choice(info, wanted, f"{info.kind}: {info.reason}")
