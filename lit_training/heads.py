"""A new last layer for a pretrained network."""

from difflib import get_close_matches

from torch import nn

from lit_training.selection import clean_names

__all__ = ["replace_head"]

_HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COUNTS = ("num_classes", "num_labels")


def replace_head(module: nn.Module, num_outputs: int, *, name: str | None = None) -> str:
    """Replace the last layer of a pretrained network by a fresh one with another number of outputs.

    The new layer has the old one's inputs, kernel, bias, dtype and device, weights of std .01 and zero biases: the first
    predictions are nearly uniform, so that the gradient which reaches a thawed body is small (as torchvision initialises the
    heads of its MobileNets). Attributes `num_classes` and `num_labels` that held the old number get the new one.

    Args:
        module: any network, changed in place, before its optimiser is made.
        num_outputs: number of outputs of the new layer.
        name: qualified name of the layer to replace; by default the last one registered that has parameters.

    Returns:
        The layer's name, to be used as a pattern: `LayerFreezing([Phase(head), Phase("*", epoch=1)])`.

    Raises:
        ValueError: if `num_outputs` is less than 1, no layer has that name (the nearest are listed), the layer is not linear or a
            convolution, or its weight is tied to another layer's.

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1000))
    >>> replace_head(net, 10)
    '2'
    >>> net[2]
    Linear(in_features=4, out_features=10, bias=True)
    """
    if num_outputs < 1:
        raise ValueError(f"num_outputs must be at least 1, got {num_outputs}")
    paths = {path: part for path, part in clean_names(module) if path and not isinstance(part, nn.ParameterList)}
    name = _last(paths) if name is None else name
    if name not in paths:
        raise ValueError(f"name: no layer is called {name!r}; nearest: {get_close_matches(name, paths, n=3, cutoff=0.0)}")
    old = paths[name]
    if not isinstance(old, _HEADS):
        linear = [path for path, part in paths.items() if isinstance(part, _HEADS) and not _in_attention(path, paths)]
        raise ValueError(
            f"the last layer, {name}, is a {type(old).__name__}, not linear or a convolution: say which to replace by name=, "
            f"e.g. one of {linear[-3:]}"
        )
    _refuse_tied(module, name, old)
    parent = paths.get(name.rpartition(".")[0], module)
    setattr(parent, name.rpartition(".")[2], _fresh(old, num_outputs))
    before = old.out_features if isinstance(old, nn.Linear) else old.out_channels
    for part in module.modules():
        for count in _COUNTS:
            if vars(part).get(count) == before:
                setattr(part, count, num_outputs)
    return name


def _last(paths: dict[str, nn.Module]) -> str:
    own = [
        path
        for path, part in paths.items()
        if next(part.parameters(recurse=False), None) is not None and not _in_attention(path, paths)
    ]
    if not own:
        raise ValueError("the module has no layer with parameters")
    return own[-1]


def _in_attention(path: str, paths: dict[str, nn.Module]) -> bool:
    """Tell whether a layer is the output projection of attention, which is registered after it."""
    return isinstance(paths.get(path.rpartition(".")[0]), nn.MultiheadAttention)


def _refuse_tied(module: nn.Module, name: str, old: nn.Module) -> None:
    for path, part in clean_names(module):
        if part is not old and any(p is old.weight for p in part.parameters(recurse=False)):
            raise ValueError(f"the weight of {name} is tied to {path}: untie it first, or add a layer after it")


def _fresh(old: nn.Module, num_outputs: int) -> nn.Module:
    kind = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_outputs, old.bias is not None, **kind)
    else:
        assert isinstance(old, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if old.groups > 1:
            raise ValueError("the last layer is a grouped convolution, which is no head: say which layer to replace by name=")
        new = type(old)(
            old.in_channels, num_outputs, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
            bias=old.bias is not None, padding_mode=old.padding_mode, **kind,  # type: ignore[arg-type]
        )  # fmt: skip
    nn.init.normal_(new.weight, std=0.01)  # type: ignore[arg-type]
    if new.bias is not None:
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]
    return new.train(old.training)
