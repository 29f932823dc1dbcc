"""Freeze and thaw parts of a network, so that frozen means unchanged: gradients, statistics and all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lit_training.selection import ParameterInfo, classify, clean_names, match, names_of

__all__ = ["freeze", "frozen_tree", "release", "thaw", "train_only", "trained_by"]

_DROPOUT = nn.modules.dropout._DropoutNd


def freeze(module: nn.Module, patterns: str | Sequence[str] = "*", *, train_bn: bool = False) -> list[str]:
    """Stop training what the patterns name, and let nothing else change it.

    A frozen parameter has `requires_grad=False` and `grad=None` (a zero gradient would let momentum and weight decay go on).
    A layer that rewrites its own state in train mode (running statistics of batch norm, power iteration of spectral norm) goes
    into eval mode once none of its parameters trains, and stays there, also after `module.train()`, until `thaw`. Dropout is
    left as it is.

    Args:
        module: any module, changed in place.
        patterns: shell patterns on qualified names; naming a module means its subtree (`"head"` is `"head.*"`).
        train_bn: leave batch norm alone: its weights, biases and statistics.

    Returns:
        The names of the parameters that trained before and are frozen now.

    Raises:
        ValueError: if a pattern matches nothing.

    >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> freeze(net, ["0", "1"])
    ['0.weight', '1.weight', '1.bias']
    >>> net.train()[1].training
    False
    """
    infos, layers = classify(module), _mode_layers(module)
    named = _named(patterns, infos, layers, "patterns")
    if train_bn:
        named -= _batch_norm(infos, layers)
    changed = [info.name for info in infos if info.name in named and info.parameter.requires_grad]
    for info in infos:
        if info.name in named:
            _freeze_parameter(info.parameter)
    for layer in layers:
        if layer.rewrites and layer.is_named(named, infos) and not any(p.requires_grad for p in layer.parameters):
            _hold_in_eval(layer.module)
    return changed


def thaw(module: nn.Module, patterns: str | Sequence[str] = "*") -> list[str]:
    """Train again what the patterns name, and let its batch norm follow the mode of the layer around it.

    Args, raises: as `freeze`.

    Returns:
        The names of the parameters that were frozen before and train now.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    >>> _ = freeze(net)
    >>> thaw(net, "1")
    ['1.weight', '1.bias']
    """
    infos, layers = classify(module), _mode_layers(module)
    named = _named(patterns, infos, layers, "patterns")
    changed = [info for info in infos if info.name in named and _can_train(info.parameter) and not info.parameter.requires_grad]
    for info in changed:
        info.parameter.requires_grad_(True)
    for layer in layers:
        if layer.is_named(named, infos):
            _follow_parent(layer)
    return [info.name for info in changed]


def train_only(
    module: nn.Module, patterns: str | Sequence[str], *, train_bn: bool = False, train_dropout: bool = True
) -> set[str]:
    """Train what the patterns name and freeze everything else, whatever was frozen before.

    Args:
        module: any module, changed in place.
        patterns: as in `freeze`.
        train_bn: also train batch norm in the frozen part: its weights, biases and statistics.
        train_dropout: leave dropout on in the frozen part; `False` switches `nn.Dropout` layers there off.

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: if a pattern matches nothing, or all of them together no parameter that can train.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    >>> sorted(train_only(net, "1"))
    ['1.bias', '1.weight']
    """
    infos, layers = classify(module), _mode_layers(module)
    named = _trained_by(patterns, infos, layers, train_bn)
    trains = trained_by(module, patterns, train_bn=train_bn)
    for info in infos:
        if info.name in trains:
            info.parameter.requires_grad_(True)
        else:
            _freeze_parameter(info.parameter)
    for layer in layers:
        if layer.is_named(named, infos) or (not layer.rewrites and train_dropout):
            _follow_parent(layer)
        else:
            _hold_in_eval(layer.module)
    return trains


def trained_by(module: nn.Module, patterns: str | Sequence[str], *, train_bn: bool = False) -> set[str]:
    """Return the names of the parameters that `train_only` would train, and change nothing.

    Args, raises: as `train_only`.

    >>> sorted(trained_by(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)), "2", train_bn=True))
    ['1.bias', '1.weight', '2.bias', '2.weight']
    """
    infos = classify(module)
    named = _trained_by(patterns, infos, _mode_layers(module), train_bn)
    trains = {info.name for info in infos if info.name in named and _can_train(info.parameter)}
    if not trains:
        raise ValueError(f"train: {patterns!r} matches no parameter that can train")
    return trains


def release(module: nn.Module) -> None:
    """Let every layer follow `module.train()` again; what is frozen stays without gradient.

    >>> net = nn.Sequential(nn.BatchNorm1d(3))
    >>> _ = freeze(net)
    >>> release(net)
    >>> net[0].training, net[0].weight.requires_grad
    (True, False)
    """
    for layer in _mode_layers(module):
        _follow_parent(layer)


def frozen_tree(module: nn.Module) -> str:
    """Return a table of what trains: a line for each module that is frozen or trained as a whole, and those around it.

    The columns are the module, its number of parameters, whether it trains (or the share that does), and the mode of its
    batch norm.

    >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> _ = freeze(net, ["0", "1"])
    >>> print(frozen_tree(net))
    Sequential  26  30.8 % train
      0         12  frozen
      1          6  frozen        batch norm in eval mode
      2          8  trains
    """
    rows = list(_rows(module, type(module).__name__, 0, set()))
    label, count, state = (max(len(row[i]) for row in rows) for i in range(3))
    return "\n".join(f"{a:<{label}}  {b:>{count}}  {c:<{state}}  {d}".rstrip() for a, b, c, d in rows)


@dataclass(frozen=True)
class _ModeLayer:
    """A layer that does something else in train mode, and the parameters that say whether it is frozen."""

    name: str
    module: nn.Module
    parent: nn.Module
    parameters: tuple[nn.Parameter, ...]
    rewrites: bool

    def is_named(self, named: set[str], infos: Sequence[ParameterInfo]) -> bool:
        """Tell whether the patterns name any of its parameters, or, where it has none, the layer itself."""
        own = set(self.parameters)
        return any(info.name in named for info in infos if info.parameter in own) if own else self.name in named


def _mode_layers(module: nn.Module) -> list[_ModeLayer]:
    found = []
    parents = {child: parent for parent in module.modules() for child in parent.children()}
    for name, part in clean_names(module):
        parent = parents.get(part, module)
        owner = parent if isinstance(part, _SpectralNorm) else part
        if _rewrites_itself(part) or isinstance(part, _DROPOUT):
            parameters = tuple(owner.parameters(recurse=False))
            found.append(_ModeLayer(name, part, parent, parameters, not isinstance(part, _DROPOUT)))
    return found


def _rewrites_itself(part: nn.Module) -> bool:
    legacy = any(isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values())
    return _has_statistics(part) or isinstance(part, _SpectralNorm) or legacy


def _has_statistics(part: nn.Module) -> bool:
    return getattr(part, "running_mean", None) is not None


def _named(
    patterns: str | Sequence[str], infos: Sequence[ParameterInfo], layers: Sequence[_ModeLayer], argument: str
) -> set[str]:
    """Return the parameters and layers that the patterns match; a layer without parameters is matched by its own name."""
    names = names_of(infos)
    return set(match(patterns, names | {layer.name: (layer.name, f"{layer.name}.training") for layer in layers}, argument))


def _trained_by(
    patterns: str | Sequence[str], infos: Sequence[ParameterInfo], layers: Sequence[_ModeLayer], train_bn: bool
) -> set[str]:
    return _named(patterns, infos, layers, "train") | (_batch_norm(infos, layers) if train_bn else set())


def _batch_norm(infos: Sequence[ParameterInfo], layers: Sequence[_ModeLayer]) -> set[str]:
    norms = [layer for layer in layers if _has_statistics(layer.module)]
    owned = {parameter for layer in norms for parameter in layer.parameters}
    return {info.name for info in infos if info.parameter in owned} | {layer.name for layer in norms}


def _can_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _freeze_parameter(parameter: nn.Parameter) -> None:
    parameter.requires_grad_(False)
    parameter.grad = None


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `module.train`: a function of this file, so that held layers can be copied and pickled."""
    return module


def _hold_in_eval(module: nn.Module) -> None:
    module.eval()
    module.__dict__["train"] = partial(_stay, module)


def _follow_parent(layer: _ModeLayer) -> None:
    held = layer.module.__dict__.get("train")
    if isinstance(held, partial) and held.func is _stay:
        del layer.module.__dict__["train"]
        layer.module.train(layer.parent.training)


def _rows(module: nn.Module, name: str, depth: int, seen: set[nn.Parameter]) -> Iterator[tuple[str, str, str, str]]:
    """Yield label, parameters, state and batch norm's mode; go below a module only where it is frozen in part."""
    parameters = [p for p in module.parameters() if p not in seen]
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    state = "frozen" if trained == 0 else "trains" if trained == total else f"{100 * trained / total:.3g} % train"
    modes = {"train" if part.training else "eval" for part in module.modules() if _has_statistics(part)}
    uniform = trained in (0, total)
    mode = f"batch norm in {' and '.join(sorted(modes))} mode" if uniform and modes else ""
    yield "  " * depth + name, f"{total:,}", state, mode
    if uniform:
        seen.update(parameters)
        return
    for leaf, parameter in module.named_parameters(recurse=False):
        yield "  " * (depth + 1) + leaf, f"{parameter.numel():,}", "trains" if parameter.requires_grad else "frozen", ""
        seen.add(parameter)
    for child_name, child in module.named_children():
        if any(p not in seen for p in child.parameters()):
            yield from _rows(child, child_name, depth + 1, seen)
