"""More data sets, which no rule has seen: tables, colour pictures, signals, graphs, clouds; the last tensor is the target."""

import math

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.zoo.data import Split, rng, split, standardise


# ------------------------------------------------------------------------------------------ tables
def arcs(seed: int, n: int = 1536, classes: int = 3, dim: int = 5, noise: float = 0.1) -> Split:
    """Interleaved half circles in a plane of a `dim`-dimensional space: the class is the arc."""
    g = rng(201, seed)
    y, t = torch.randint(classes, (n,), generator=g), math.pi * torch.rand(n, generator=g)
    up = 1 - 2 * (y % 2)
    plane = torch.stack([t.cos() + y, up * t.sin() + 0.7 * (y % 2)], 1) + noise * torch.randn(n, 2, generator=g)
    basis = torch.linalg.qr(torch.randn(dim, 2, generator=g))[0].T
    return split(standardise(standardise(plane) @ basis + 0.05 * torch.randn(n, dim, generator=g)), y)


def friedman(seed: int, n: int = 1536, dim: int = 8) -> Split:
    """Friedman 1991: inputs uniform in [0, 1]; the target, `[n, 1]`, is about 14 +- 5."""
    x = torch.rand(n, dim, generator=rng(202, seed))
    y = 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5).square() + 10 * x[:, 3] + 5 * x[:, 4]
    return split(x, (y + 0.5 * torch.randn(n, generator=rng(203, seed)))[:, None])


def customers(seed: int, n: int = 1800) -> Split:
    """Three codes (12, 7 and 5 values), four numbers in their units (age, income, visits, share); who buys, `[n, 1]`."""
    g = rng(204, seed)
    codes = torch.stack([torch.randint(k, (n,), generator=g) for k in (12, 7, 5)], 1)
    effects = [torch.randn(k, generator=g) for k in (12, 7, 5)]
    z = torch.randn(n, 4, generator=g)
    score = sum(effect[code] for effect, code in zip(effects, codes.T, strict=True)) + 1.5 * z[:, 0] * z[:, 1] + z[:, 2]
    visits = torch.poisson((0.5 * z[:, 2] + 1).exp(), generator=g)
    numbers = torch.stack([41 + 12 * z[:, 0], 32_000 + 9_000 * z[:, 1], visits, z[:, 3].sigmoid()], 1)
    return split(codes, numbers, (score > score.median()).float()[:, None])


def tidy(data: Split) -> Split:
    """Customers whose numbers are standardised."""
    return tuple(  # type: ignore[return-value]
        TensorDataset(part.tensors[0], standardise(part.tensors[1]), part.tensors[2]) for part in data
    )


def ratings(seed: int, n: int = 4096, users: int = 50, items: int = 40) -> Split:
    """User and item numbers `[n, 2]`; the rating `[n, 1]`, about 3 +- 1."""
    g = rng(205, seed)
    who, what = torch.randint(users, (n,), generator=g), torch.randint(items, (n,), generator=g)
    user, item = torch.randn(users, 2, generator=g), torch.randn(items, 2, generator=g)
    taste = (user[who] * item[what]).sum(1) / 2 + 0.6 * torch.randn(users, generator=g)[who]
    return split(torch.stack([who, what], 1), (3 + taste + 0.2 * torch.randn(n, generator=g))[:, None])


def baskets(seed: int, n: int = 1536, dim: int = 10, classes: int = 4) -> Split:
    """Counts with a long tail; the class is the largest of a few products of rates."""
    g = rng(206, seed)
    rate = (1.2 * torch.randn(n, dim, generator=g) + 2).clamp_max(6)
    score = torch.stack([rate[:, c] + (rate[:, c + classes] - 2).abs() for c in range(classes)], 1)
    return split(torch.poisson(rate.exp(), generator=g), score.argmax(1))


def spectra(seed: int, n: int = 1536, length: int = 48) -> Split:
    """A spectrum of two peaks on a noisy ground; where the first is and how high the second, standardised."""
    g = rng(207, seed)
    place, height = 6 + 20 * torch.rand(n, generator=g), 0.3 + torch.rand(n, generator=g)
    at = torch.arange(length)
    x = (-(at - place[:, None]).square() / 18).exp() + height[:, None] * (-(at - 38).square() / 8).exp()
    return split(x + 0.03 * torch.randn(n, length, generator=g).abs(), standardise(torch.stack([place, height], 1)))


def judgements(seed: int, n: int = 1800, dim: int = 6) -> Split:
    """An anchor and two candidates; which of them (0 or 1) shares the anchor's hidden kind."""
    g = rng(208, seed)
    centres = torch.randn(10, dim, generator=g)
    kind, other = torch.randint(5, (n,), generator=g), torch.randint(1, 5, (n,), generator=g)
    which = torch.randint(2, (n,), generator=g)

    def seen(k: Tensor) -> Tensor:
        return centres[k + 5 * torch.randint(2, (n,), generator=g)] + 0.3 * torch.randn(n, dim, generator=g)

    right, wrong = seen(kind), seen((kind + other) % 5)
    swap = which[:, None] == 1
    return split(seen(kind), torch.where(swap, wrong, right), torch.where(swap, right, wrong), which)


# ------------------------------------------------------------------------------------------ pictures
def shapes(seed: int, n: int = 720, size: int = 16) -> Split:
    """Colour pictures `[n, 3, size, size]` in [0, 1] of a disc, a square, a cross or a frame: the class."""
    g = rng(220, seed)
    y = torch.randint(4, (n,), generator=g)
    centre, radius = size * (0.35 + 0.3 * torch.rand(n, 2, 1, 1, generator=g)), 3 + 1.5 * torch.rand(n, 1, 1, generator=g)
    at = torch.arange(size)
    down, right = (at[:, None] - centre[:, 0]).abs(), (at[None, :] - centre[:, 1]).abs()
    square = torch.maximum(down, right)
    drawn = [
        (down.square() + right.square()).sqrt() < radius,
        square < radius,
        (square < radius) & (torch.minimum(down, right) < 1),
        (square < radius) & (square > radius - 1.5),
    ]
    mask = torch.stack(drawn)[y, torch.arange(n)][:, None].float()
    ink, paper = 0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=g), 0.4 * torch.rand(n, 3, 1, 1, generator=g)
    x = mask * ink + (1 - mask) * paper + 0.05 * torch.randn(n, 3, size, size, generator=g)
    return split(x.clamp(0, 1), y)


def centred(data: Split) -> Split:
    """The same with the first tensor of both parts standardised over everything."""
    mean, std = data[0].tensors[0].mean(), data[0].tensors[0].std()
    return tuple(TensorDataset((part.tensors[0] - mean) / std, *part.tensors[1:]) for part in data)  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------ sequences, graphs, clouds
def pulses(seed: int, n: int = 1200, length: int = 40) -> Split:
    """Two noisy channels `[n, 2, length]` with a pulse somewhere: a bump, an edge or a pair of bumps is the class."""
    g = rng(230, seed)
    y, at = torch.randint(3, (n,), generator=g), torch.arange(length)
    d = at - (8 + (length - 16) * torch.rand(n, 1, generator=g))
    bump, edge = (-d.square() / 6).exp(), (d > 0).float() * (-d.abs() / 8).exp()
    pair = (-(d - 4).square() / 3).exp() + (-(d + 4).square() / 3).exp()
    pulse = 2.5 * torch.stack([bump, edge, pair])[y, torch.arange(n)]
    gain = torch.stack([torch.ones(n), 0.5 + torch.rand(n, generator=g)], 1)
    x = pulse[:, None] * gain[:, :, None] + 0.4 * torch.randn(n, 2, length, generator=g)
    return split(standardise(x, None), y)


def reviews(seed: int, n: int = 1800, length: int = 14, vocabulary: int = 40) -> Split:
    """Tokens padded with 0 at the end; the class is the sign of the summed hidden valence of its words."""
    g = rng(231, seed)
    valence = torch.randn(vocabulary, generator=g)
    x = torch.randint(1, vocabulary, (n, length), generator=g)
    x = x.masked_fill(torch.arange(length) >= torch.randint(5, length + 1, (n, 1), generator=g), 0)
    return split(x, (valence.masked_fill(torch.arange(vocabulary) == 0, 0)[x].sum(1) > 0).long())


def cipher(seed: int, n: int = 1400, length: int = 9, vocabulary: int = 8) -> Split:
    """Tokens `[n, length]`, and each added to its predecessor modulo the vocabulary."""
    x = torch.randint(vocabulary, (n, length), generator=rng(232, seed))
    return split(x, (x + x.roll(1, 1)) % vocabulary)


def swings(seed: int, n: int = 1536, length: int = 20) -> Split:
    """Windows `[n, length]` of damped swings of several frequencies; the next two values."""
    g = rng(233, seed)
    rate, phase = 0.3 + 0.9 * torch.rand(n, 1, generator=g), 2 * math.pi * torch.rand(n, 1, generator=g)
    at = torch.arange(length + 2)
    x = (rate * at + phase).sin() * (-0.03 * at).exp() + 0.05 * torch.randn(n, length + 2, generator=g)
    return split(standardise(x[:, :length], None), standardise(x[:, length:], None))


def regimes(seed: int, n: int = 900, length: int = 18) -> Split:
    """Signals `[n, length, 2]` that switch between three regimes; the regime at each step, `[n, length]`."""
    g = rng(234, seed)
    y = torch.randint(3, (n, 1), generator=g).repeat(1, length)
    for t in range(1, length):
        jump = torch.rand(n, generator=g) < 0.15
        y[:, t] = torch.where(jump, torch.randint(3, (n,), generator=g), y[:, t - 1])
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.9], [-0.6, -0.9]])
    return split(means[y] + 0.8 * torch.randn(n, length, 2, generator=g), y)


def network(seed: int, nodes: int = 160) -> Split:
    """One graph: features `[1, nodes, 6]`, normalised adjacency, communities; -100 at the nodes of the other part."""
    g = rng(235, seed)
    y = torch.randint(4, (nodes,), generator=g)
    likely = torch.where(y[:, None] == y[None], 0.2, 0.02)
    edges = (torch.rand(nodes, nodes, generator=g) < likely).float().triu(1)
    adjacency = edges + edges.T + torch.eye(nodes)
    scale = adjacency.sum(1).rsqrt()
    x = torch.randn(4, 6, generator=g)[y] + 1.2 * torch.randn(nodes, 6, generator=g)
    hidden = torch.rand(nodes, generator=g) < 0.4
    graph = standardise(x)[None], (scale[:, None] * adjacency * scale)[None]
    return TensorDataset(*graph, y.masked_fill(hidden, -100)[None]), TensorDataset(*graph, y.masked_fill(~hidden, -100)[None])


def clouds(seed: int, n: int = 900, points: int = 20) -> Split:
    """Unordered points `[n, points, 3]` on a ring, a line, a sphere or two blobs: the class."""
    g = rng(236, seed)
    y, z = torch.randint(4, (n,), generator=g), torch.randn(n, points, 3, generator=g)
    flat = z * torch.tensor([1.0, 1.0, 0.0])
    kinds = [
        1.5 * flat / flat.norm(dim=2, keepdim=True),
        z[:, :, :1] * torch.tensor([1.0, 1.0, 0.6]),
        1.5 * z / z.norm(dim=2, keepdim=True),
        0.3 * z + z[:, :, :1].sign() * torch.tensor([1.2, 0.0, 0.0]),
    ]
    return split(torch.stack(kinds)[y, torch.arange(n)] + 0.15 * torch.randn(n, points, 3, generator=g), y)


def openings(seed: int, n: int = 1536, length: int = 12) -> Split:
    """Signals `[n, length, 2]` that begin up or down, which is the class; what follows is noise."""
    g = rng(237, seed)
    y = torch.randint(2, (n,), generator=g)
    x = 0.4 * torch.randn(n, length, 2, generator=g)
    x[:, 0, 0] += 4.0 * y - 2.0
    return split(x, y)
