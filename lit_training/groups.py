"""Optimiser groups: which parameters decay, and how fast each layer learns by its depth."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_training.selection import Kind, ParameterInfo, classify, clean_names

__all__ = ["Layer", "layers", "parameter_groups"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One step of depth: the module path it begins with (or `"stem"`), and its parameters."""

    name: str
    parameters: tuple[ParameterInfo, ...]


@dataclass(frozen=True)
class _Part:
    """What is never split between layers: a block, a child without blocks, or a parameter of a module that has blocks."""

    path: str
    is_block: bool
    parameters: tuple[ParameterInfo, ...]


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    r"""Return named optimiser groups in which only weights decay and, if asked, lower layers learn more slowly.

    Biases, normalisation, embeddings, tokens and gates go into a group with `weight_decay` 0, as in the lecture: decay belongs
    on what multiplies inputs. All parameters are returned, frozen ones too, so that groups need not change when they thaw:
    build the schedulers on these groups once, and `LayerFreezing` needs no others.

    With `layer_decay`, layer $l$ of $L$ has the rate $\eta \xi^{L-l}$: the head learns with `lr`, each layer below it with
    `layer_decay` times the rate of the one above (`layers` says what a layer is). Howard and Ruder, "Universal Language Model
    Fine-tuning", 2018, section 3.2 (they use 1 / 2.6); Bao et al., "BEiT", 2022, appendix (.65 to .85). On timm's ViT and
    ResNet the groups are those of `timm.optim.param_groups_layer_decay`.

    A scheduler multiplies each group's own rate, which keeps the ratios, except where it is given absolute rates: pass
    `OneCycleLR(max_lr=[group["lr"] for group in groups])`, likewise for `CyclicLR`, and leave `eta_min` and `min_lr` at 0.

    Args:
        module: any module.
        lr: learning rate of the head, and of everything without `layer_decay`.
        weight_decay: decay of weights, in the optimiser's own convention.
        layer_decay: factor in (0, 1] between the rates of adjacent layers; `None` gives all the same rate.

    Returns:
        Groups for any `torch.optim` optimiser, named `"decay"` and `"no_decay"`, or per layer, from the input on,
        `"decay/03.layer2.0"` and `"no_decay/03.layer2.0"`; an empty group is left out.

    Raises:
        ValueError: if `layer_decay` is outside (0, 1].

    >>> groups = parameter_groups(nn.Linear(3, 2), lr=0.1, weight_decay=0.01)
    >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
    [('decay', 1, 0.01), ('no_decay', 1, 0.0)]
    >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> groups = parameter_groups(net, lr=0.1, weight_decay=0.01, layer_decay=0.5)
    >>> [(group["name"], group["lr"]) for group in groups]
    [('decay/0.0', 0.05), ('no_decay/0.0', 0.05), ('decay/1.3', 0.1)]
    """
    if layer_decay is None:
        return _split_by_decay(classify(module), "", lr, weight_decay)
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay!r}; .75 is common, None switches it off")
    depth = layers(module)
    width = len(str(len(depth) - 1))
    groups = []
    for i, layer in enumerate(depth):
        rate = lr * layer_decay ** (len(depth) - 1 - i)
        groups += _split_by_decay(layer.parameters, f"/{i:0{width}d}.{layer.name}", rate, weight_decay)
    return groups


def layers(module: nn.Module) -> list[Layer]:
    """Divide a network into layers by depth, from the input to the head, in the order in which modules were registered.

    In a network of blocks (a ResNet's residual blocks, a transformer's layers: composite elements of a `Sequential`,
    `ModuleList` or `ModuleDict`, or siblings of one class), each block is a layer, what comes before the first is the stem, and
    what comes after the last is the head; normalisation after a block belongs to the block, and so does what follows the last
    block inside the same child of the network (a pooler, `norm` of a headless backbone). In a network without blocks each
    weight layer is one, together with the normalisation that follows it.

    Args:
        module: any module; a wrapper with a single child that has parameters is seen through.

    Returns:
        The layers; each parameter is in exactly one, a tied one in the first that uses it.

    >>> mlp = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(layer.name, [info.name for info in layer.parameters]) for layer in layers(mlp)]
    [('0', ['0.weight', '0.bias', '1.weight', '1.bias']), ('3', ['3.weight', '3.bias'])]
    """
    infos = classify(module)
    owners = {info.name.rpartition(".")[0] for info in infos if info.kind in ("weight", "embedding")}
    names = {part: name for name, part in clean_names(module)}
    blocks = [names[block] for block in _blocks(module, names, owners)]
    parts = list(_parts(infos, blocks))
    return _by_block(parts, _trunk(infos, parts)) if blocks else _by_weight_layer(parts)


def _split_by_decay(infos: Iterable[ParameterInfo], suffix: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    parts: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for info in infos:
        parts["decay" if info.kind == "weight" else "no_decay"].append(info.parameter)
    decays = {"decay": weight_decay, "no_decay": 0.0}
    return [
        {"name": f"{name}{suffix}", "params": parameters, "lr": lr, "weight_decay": decays[name]}
        for name, parameters in parts.items()
        if parameters
    ]


def _blocks(module: nn.Module, names: dict[nn.Module, str], owners: set[str]) -> Iterator[nn.Module]:
    """Yield the innermost repeated composite modules: elements of containers, and siblings of one class."""
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    for child in children:
        repeated = not isinstance(child, _CONTAINERS) and sum(type(other) is type(child) for other in children) > 1
        if not _is_composite(names[child], owners) or not (repeated or isinstance(module, _CONTAINERS)):
            yield from _blocks(child, names, owners)
        elif isinstance(child, _CONTAINERS) or not isinstance(module, _CONTAINERS):
            yield from list(_blocks(child, names, owners)) or [child]
        else:
            yield from list(_blocks_of_stage(child, names, owners)) or [child]


def _blocks_of_stage(stage: nn.Module, names: dict[nn.Module, str], owners: set[str]) -> Iterator[nn.Module]:
    """Yield the blocks that a stage (ConvNeXt, Swin) holds in a `Sequential`; experts in a `ModuleList` are no blocks."""
    for child in stage.children():
        elements = [element for element in child.children() if any(True for _ in element.parameters())]
        alike = len({type(element) for element in elements}) == 1 and not isinstance(elements[0], _CONTAINERS)
        if isinstance(child, nn.Sequential) and alike and _is_composite(names[elements[0]], owners):
            yield from elements


def _is_composite(path: str, owners: set[str]) -> bool:
    return sum(_inside(owner, path) for owner in owners) > 1


def _inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _parts(infos: Sequence[ParameterInfo], blocks: Sequence[str]) -> Iterator[_Part]:
    """Cut the parameters, in their order, into blocks and the children of whatever contains a block; or into leaf modules."""
    opened = {prefix for block in blocks for prefix in _prefixes(block)[:-1]}
    grouped: dict[str, list[ParameterInfo]] = {}
    for info in infos:
        prefixes = _prefixes(info.name)
        leaf = info.name.partition(".parametrizations.")[0] if ".parametrizations." in info.name else prefixes[-2:][0]
        path = next(prefix for prefix in prefixes if prefix not in opened) if blocks else leaf
        grouped.setdefault(path, []).append(info)
    return (_Part(path, path in blocks, tuple(members)) for path, members in grouped.items())


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _trunk(infos: Sequence[ParameterInfo], parts: Sequence[_Part]) -> str:
    """Return the path of the child that holds the last block, where the network first has several children."""
    last = next(part.path for part in reversed(parts) if part.is_block)
    return next(prefix for prefix in _prefixes(last) if prefix == last or not all(_inside(info.name, prefix) for info in infos))


def _by_block(parts: Sequence[_Part], trunk: str) -> list[Layer]:
    """Return the stem, one layer a block, and the head; what lies between two blocks belongs to the next one."""
    blocks = [part.path for part in parts if part.is_block]
    members: list[list[_Part]] = [[] for _ in range(len(blocks) + 2)]
    passed = 0
    for part in parts:
        passed += part.is_block
        with_last = _holds_only([part], "norm") or (passed == len(blocks) and _inside(part.path, trunk))
        members[passed if part.is_block or passed == 0 or with_last else passed + 1].append(part)
    head = members[-1][0].path if members[-1] else ""
    return [Layer(name, _flat(layer)) for name, layer in zip(["stem", *blocks, head], members, strict=True) if layer]


def _by_weight_layer(parts: Sequence[_Part]) -> list[Layer]:
    """Begin a layer at each weight or embedding; embeddings that follow each other are one layer."""
    grouped: list[list[_Part]] = []
    for part in parts:
        begun = grouped and not _holds_only(grouped[-1], "bias", "norm")
        same = _holds_only([part], "bias", "norm") or (begun and _holds_only([*grouped[-1], part], "embedding"))
        if grouped and (same or not begun):
            grouped[-1].append(part)
        else:
            grouped.append([part])
    return [Layer(layer[0].path, _flat(layer)) for layer in grouped]


def _flat(parts: Iterable[_Part]) -> tuple[ParameterInfo, ...]:
    return tuple(info for part in parts for info in part.parameters)


def _holds_only(parts: Iterable[_Part], *kinds: Kind) -> bool:
    return all(info.kind in kinds for part in parts for info in part.parameters)
