"""Weights found in a layer's input: principal directions and k-means centres of the patches its units see."""

import torch
from torch import Generator, Tensor, nn

from lit_training.fans import matrices

__all__ = ["patches", "principal_directions_", "spherical_kmeans_"]

_MOST = 10_000


@torch.no_grad()
def patches(module: nn.Module, inputs: Tensor, generator: Generator | None = None, most: int = _MOST) -> Tensor | None:
    """Return a random sample of what the units of a layer see, or None for a layer that sees no patches.

    Args:
        module: a Linear or an (ungrouped, grouped or dilated) convolution.
        inputs: what it is called with.
        generator: chooses the sample.
        most: sample size, if there are that many.

    Returns:
        `[samples, groups, inputs * kernel]` in float32 or wider.

    >>> patches(nn.Conv1d(4, 2, 3, groups=2), torch.zeros(5, 4, 8), most=7).shape
    torch.Size([7, 2, 6])
    """
    inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(-1, 1, module.in_features)
        return rows[_choose(len(rows), most, generator, inputs.device)]
    if not isinstance(module, nn.modules.conv._ConvNd) or module.transposed:
        return None
    spatial = len(module.kernel_size)
    inputs = inputs if inputs.ndim == spatial + 2 else inputs.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True), 2):
        windows = windows.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    places = (len(windows), *windows.shape[2 : 2 + spatial])
    chosen = _choose(int(torch.tensor(places).prod()), most, generator, inputs.device)
    windows = windows.movedim(1, 1 + spatial)  # [images, *places, channels, *kernel]
    return windows[torch.unravel_index(chosen, places)].reshape(len(chosen), module.groups, -1)


def principal_directions_(module: nn.Module, weight: Tensor, inputs: Tensor, generator: Generator | None = None) -> None:
    """Set the units of `weight` to the principal directions of the layer's input; what is too many stays as it is."""
    seen = patches(module, inputs, generator)
    if seen is None:
        return
    for group, matrix in enumerate(matrices(module, "weight", weight)):
        directions, _ = _principal(seen[:, group])
        _set_(matrix.view, directions)


def spherical_kmeans_(module: nn.Module, weight: Tensor, inputs: Tensor, generator: Generator | None = None) -> None:
    """Set the units of `weight` to spherical k-means centres of whitened input patches.

    Coates and Ng, "Learning feature representations with k-means", 2012: whitening, then ten rounds that assign each patch to
    the centre it points most along. The centres are taken back through the whitening, so that they act on what the layer sees.
    """
    seen = patches(module, inputs, generator)
    if seen is None:
        return
    for group, matrix in enumerate(matrices(module, "weight", weight)):
        directions, variances = _principal(seen[:, group])
        whitening = directions / (variances + 0.01 * variances.mean()).sqrt()[:, None]
        points = nn.functional.normalize((seen[:, group] - seen[:, group].mean(0)) @ whitening.t(), dim=1)
        _set_(matrix.view, _centres(points, len(matrix.view), generator) @ whitening)


def _principal(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions `[k, dim]` along which the rows vary, and the variances, largest first."""
    centred = seen - seen.mean(0)
    variances, directions = torch.linalg.eigh(centred.t() @ centred / len(seen))
    kept = variances.flip(0) > 1e-6 * variances[-1]
    return directions.t().flip(0)[kept], variances.flip(0)[kept]


def _centres(points: Tensor, k: int, generator: Generator | None) -> Tensor:
    centres = points[_choose(len(points), k, generator, points.device)]
    for _ in range(10):
        nearest = (points @ centres.t()).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        length = sums.norm(dim=1, keepdim=True)
        centres = torch.where(length > 1e-6, sums / length.clamp_min(1e-6), centres)
    return centres


def _choose(total: int, most: int, generator: Generator | None, device: torch.device) -> Tensor:
    at = torch.device("cpu") if generator is None else generator.device
    return torch.randperm(total, generator=generator, device=at)[:most].to(device)


def _set_(view: Tensor, rows: Tensor) -> None:
    rows = rows[: len(view)]
    view[: len(rows)] = rows.reshape(len(rows), *view.shape[1:])
