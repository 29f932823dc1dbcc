"""One forward in which each layer is measured and adjusted before its result goes on to the next.

A layer's output is corrected on the spot, as if its weights had been changed before it ran; the weights follow when the
forward is over. So a whole network is normalised layer by layer in the time of one forward, and sharded weights are not
changed while in use.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_training.fans import matrices
from lit_training.layers import Layer, Weight, read, write_

__all__ = ["Adjustment", "Site", "adjust"]

_PARTS = ("query", "key", "value")


@dataclass
class Adjustment:
    """What to do to a layer: multiply its weights by `scale`, a number or `[units]`, and set its bias to `bias`, if given.

    `std` and `mean` are what the output then has, `divisions` how many it took, `note` what a user should know.
    """

    scale: Tensor
    bias: Tensor | None = None
    mean: float = math.nan
    std: float = math.nan
    divisions: int = 0
    note: str = ""


@dataclass(eq=False)
class Site:
    """Where a layer's linear result is seen: a whole weight, or the query, key or value part of attention's projection."""

    layer: Layer
    weight: Weight
    part: str = ""
    calls: int = 0
    adjustment: Adjustment | None = None

    @property
    def name(self) -> str:
        """The weight's name, with the part in brackets."""
        return f"{self.weight.name}[{self.part}]" if self.part else self.weight.name

    def views(self, weight: Tensor) -> list[Tensor]:
        """Return this site's matrices `[units, inputs, *kernel]` in a tensor of the weight's shape."""
        return [m.view for m in matrices(self.layer.module, self.weight.leaf, weight) if m.part in ("", self.part)]

    def bias(self) -> Tensor | None:
        """Return the bias that is added here, as the layer sees it now: whole, also where it is sharded again."""
        bias: Tensor | None = getattr(self.layer.module, "in_proj_bias" if self.part else "bias", None)
        if isinstance(bias, DTensor):
            bias = bias.full_tensor()
        return bias.chunk(3)[_PARTS.index(self.part)] if bias is not None and self.part else bias

    @property
    def may_shift(self) -> bool:
        """Whether there is a bias that may be changed."""
        return bool(self.layer.biases)


Rule = Callable[[Site, Tensor, Tensor | None], Adjustment]
Prepare = Callable[[Site, Tensor], Tensor]


def adjust(layers: Sequence[Layer], forward: Callable[[], Any], rule: Rule, *, prepare: Prepare | None = None) -> list[Site]:
    """Run `forward` once and let `rule` adjust each layer as it runs, then change the weights accordingly.

    A layer that is called several times is adjusted at its first call; what it returns later is corrected likewise. Recurrent
    layers and embeddings are not sites: what is inside a fused operation cannot be seen, and a lookup has the scale of its
    table.

    Args:
        layers: the layers to adjust; all others are left alone.
        forward: runs the network.
        rule: what to do, given a site, its linear result without the bias, `[..., units]` in float32 or wider, and the bias.
        prepare: called with a site and its layer's input before the first call; returns the weight to start from.

    Returns:
        All sites in forward order, those that never ran (`calls` is 0) last.
    """
    run = _Run(layers, rule, prepare)
    try:
        forward()
    finally:
        for handle in run.handles:
            handle.remove()
    run.commit()
    return run.order + [site for site in run.sites if site.adjustment is None]


class _Run:
    """The hooks of one such forward, and what they found."""

    def __init__(self, layers: Sequence[Layer], rule: Rule, prepare: Prepare | None) -> None:
        self.rule, self.prepare = rule, prepare
        self.handles: list[Any] = []
        self.sites: list[Site] = []
        self.order: list[Site] = []
        attentions = [layer for layer in layers if isinstance(layer.module, nn.MultiheadAttention)]
        callers = {id(layer.module.out_proj): layer.module for layer in attentions}
        for layer in layers:
            if isinstance(layer.module, nn.MultiheadAttention):
                self._watch_projections(layer)
            elif not isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)):
                self._watch(Site(layer, layer.weights[0]), callers.get(id(layer.module), layer.module))

    def _watch(self, site: Site, caller: nn.Module) -> None:
        """Adjust a layer by its output, or by attention's output where attention uses its `out_proj` without calling it."""
        self.sites.append(site)

        @torch.no_grad()
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self.prepare is not None and site.adjustment is None and args:
                weight = self.prepare(site, args[0])
                site.weight.write_(weight)
                if _sharded(site.weight):  # the layer runs with a copy that was gathered before
                    getattr(module, site.weight.leaf).copy_(weight)

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            result, *rest = output if isinstance(output, tuple) else (output,)
            dim = -1 if caller is not site.layer.module else _unit_dim(site.layer.module, result)
            with torch.no_grad():
                self._decide(site, result.detach().movedim(dim, -1))
            corrected = _corrected(site, result.movedim(dim, -1)).movedim(-1, dim)
            return (corrected, *rest) if isinstance(output, tuple) else corrected

        if caller is site.layer.module:
            self.handles.append(caller.register_forward_pre_hook(before))
        self.handles.append(caller.register_forward_hook(after))

    def _watch_projections(self, layer: Layer) -> None:
        """Adjust q, k and v before attention computes them inside."""
        parts = [
            Site(layer, weight, part)
            for weight in layer.weights
            for part in _PARTS
            if weight.leaf in ("in_proj_weight", f"{part[0]}_proj_weight")
        ]
        self.sites += parts

        @torch.no_grad()
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = dict(zip(_PARTS, args, strict=False)) | kwargs
            for site in parts:
                used = getattr(module, site.weight.leaf)
                (rows,) = site.views(used)
                bias = site.bias()
                first = site.adjustment is None
                self._decide(site, nn.functional.linear(inputs[site.part].to(rows.dtype), rows, bias))
                if first:
                    _apply_(site, used, bias)

        self.handles.append(layer.module.register_forward_pre_hook(before, with_kwargs=True))

    def _decide(self, site: Site, output: Tensor) -> None:
        site.calls += 1
        if site.adjustment is None:
            wide = output.to(torch.promote_types(output.dtype, torch.float32))
            bias = site.bias()
            offset = None if bias is None else bias.detach().to(wide.dtype)
            site.adjustment = self.rule(site, wide if offset is None else wide - offset, offset)
            self.order.append(site)

    @torch.no_grad()
    def commit(self) -> None:
        """Change the weights as the outputs were changed; projections that are not sharded were changed in use."""
        for site in self.order:
            if not site.part or _sharded(site.weight):
                weight = site.weight.read()
                biases = {name: read(parameter) for name, parameter in site.layer.biases.items()}
                whole = next(iter(biases.values()), None)
                bias = whole.chunk(3)[_PARTS.index(site.part)] if whole is not None and site.part else whole
                _apply_(site, weight, bias)
                site.weight.write_(weight)
                for name, parameter in site.layer.biases.items():
                    write_(parameter, biases[name])


def _sharded(weight: Weight) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in weight.parameters.values())


def _corrected(site: Site, output: Tensor) -> Tensor:
    """Return what a layer would have returned with its weights adjusted; units are last."""
    adjustment = site.adjustment
    assert adjustment is not None  # decided right before
    bias = site.bias()
    old = 0 if bias is None else bias.detach()
    new = old if adjustment.bias is None else adjustment.bias
    return ((output - old) * adjustment.scale + new).to(output.dtype)


def _apply_(site: Site, weight: Tensor, bias: Tensor | None) -> None:
    """Adjust, in place, a tensor that holds the weight, and one that holds the bias."""
    adjustment = site.adjustment
    assert adjustment is not None  # decided before
    start = 0
    for view in site.views(weight):
        scale = adjustment.scale
        if scale.ndim:
            scale = scale[start : start + len(view)].view(-1, *[1] * (view.ndim - 1))
        view.mul_(scale.to(view))
        start += len(view)
    if bias is not None and adjustment.bias is not None:
        bias.copy_(adjustment.bias)


def _unit_dim(module: nn.Module, output: Tensor) -> int:
    """Return where a layer has its units: before the spatial dimensions of a convolution, else last."""
    spatial = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return output.ndim - 1 - spatial
