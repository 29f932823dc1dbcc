"""Data sets: small, synthetic (but for scikit-learn's digits), seeded, standardised unless the name says otherwise.

Each function returns a training and a validation `TensorDataset` whose last tensor is the target.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.utils.data import TensorDataset

Split = tuple[TensorDataset, TensorDataset]


def split(*tensors: Tensor, val: float = 1 / 3) -> Split:
    """The first part to train on, the rest to validate on."""
    cut = round(len(tensors[0]) * (1 - val))
    return TensorDataset(*(t[:cut] for t in tensors)), TensorDataset(*(t[cut:] for t in tensors))


def replace(data: Split, index: int, change: Callable[[Tensor], Tensor], *, train: bool = True, val: bool = True) -> Split:
    """The same data with tensor number `index` (of both parts, unless told otherwise) passed through `change`."""

    def changed(part: TensorDataset) -> TensorDataset:
        return TensorDataset(*(change(t) if i == index % len(part.tensors) else t for i, t in enumerate(part.tensors)))

    return changed(data[0]) if train else data[0], changed(data[1]) if val else data[1]


def reorder(data: Split, key: Callable[[Tensor], Tensor]) -> Split:
    """The training part sorted by `key` of its target, as a file that was written class by class."""
    order = key(data[0].tensors[-1]).flatten().argsort(stable=True)
    return TensorDataset(*(t[order] for t in data[0].tensors)), data[1]


def standardise(x: Tensor, dim: int | None = 0) -> Tensor:
    """Zero mean and unit variance per column, or over everything."""
    return (x - x.mean()) / x.std() if dim is None else (x - x.mean(dim)) / x.std(dim).clamp_min(1e-6)


def rng(kind: int, seed: int) -> Generator:
    """A generator that no other data set shares."""
    return Generator().manual_seed(100_000 * kind + seed)


# ------------------------------------------------------------------------------------------ vectors, classes
def blobs(seed: int, n: int = 1536, dim: int = 8, classes: int = 4, per_class: int = 6, spread: float = 0.3) -> Split:
    """Several Gaussian clusters per class: a linear model fails."""
    g = rng(1, seed)
    centres = torch.randn(classes * per_class, dim, generator=g)
    which = torch.randint(classes * per_class, (n,), generator=g)
    return split(standardise(centres[which] + spread * torch.randn(n, dim, generator=g)), which % classes)


def rare_blobs(seed: int, rare: float = 0.05, n: int = 1536, overlap: float = 0.6) -> Split:
    """Two classes that overlap, of which one is rare in training and in validation."""
    g = rng(2, seed)
    y = (torch.rand(n, generator=g) < rare).long()
    centres = torch.randn(2, 3, 6, generator=g)
    x = centres[y, torch.randint(3, (n,), generator=g)] + overlap * torch.randn(n, 6, generator=g)
    return split(standardise(x), y)


def rings(seed: int, n: int = 1536, classes: int = 3) -> Split:
    """Concentric rings in the plane."""
    g = rng(3, seed)
    y = torch.randint(classes, (n,), generator=g)
    radius, angle = 1 + y + 0.15 * torch.randn(n, generator=g), 2 * math.pi * torch.rand(n, generator=g)
    return split(standardise(torch.stack([radius * angle.cos(), radius * angle.sin()], 1)), y)


def spirals(seed: int, n: int = 1536, arms: int = 2) -> Split:
    """Interleaved spiral arms in the plane."""
    g = rng(4, seed)
    y, t = torch.randint(arms, (n,), generator=g), torch.rand(n, generator=g)
    angle = 2 * math.pi * y / arms + 5 * t + 0.1 * torch.randn(n, generator=g)
    return split(standardise(torch.stack([t * angle.cos(), t * angle.sin()], 1)), y)


def binary(seed: int, n: int = 1536, dim: int = 6) -> Split:
    """Two classes bounded by a quadric; targets `[n, 1]` of 0.0 and 1.0."""
    g = rng(5, seed)
    x = torch.randn(n, dim, generator=g)
    score = x[:, 0] * x[:, 1] + x[:, 2].square() - 1 + x[:, 3]
    return split(x, (score > score.median()).float()[:, None])


def attributes(seed: int, n: int = 1536, dim: int = 10, labels: int = 6) -> Split:
    """Several yes-or-no labels at once, each a non-linear function of two inputs; targets `[n, labels]`."""
    g = rng(6, seed)
    x = torch.randn(n, dim, generator=g)
    pairs = [torch.randperm(dim, generator=g)[:2].tolist() for _ in range(labels)]
    return split(x, torch.stack([(x[:, i] * x[:, j].abs() + 0.5 * x[:, j] > 0).float() for i, j in pairs], 1))


def digits(seed: int, flat: bool = True, n: int = 1440) -> Split:
    """Scikit-learn's handwritten digits, 8 x 8 pixels."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=rng(7, seed))[:n]
    x = standardise(torch.tensor(bunch.data, dtype=torch.float32), None)[order]
    return split(x if flat else x.view(-1, 1, 8, 8), torch.tensor(bunch.target)[order])


def pairs(seed: int, n: int = 1536, dim: int = 8) -> Split:
    """Two views and whether they show the same of four things; targets 0.0 and 1.0."""
    g = rng(8, seed)
    centres = torch.randn(8, dim, generator=g)
    first, other = torch.randint(8, (n,), generator=g), torch.randint(8, (n,), generator=g)
    same = torch.rand(n, generator=g) < 0.5
    second = torch.where(same, (first + 4 * torch.randint(2, (n,), generator=g)) % 8, other)
    views = [centres[i] + 0.3 * torch.randn(n, dim, generator=g) for i in (first, second)]
    return split(*views, (first % 4 == second % 4).float()[:, None])


# ------------------------------------------------------------------------------------------ images
def gratings(seed: int, n: int = 768, classes: int = 4, size: int = 12, channels: int = 1, noise: float = 0.6) -> Split:
    """Stripes of random phase: the class is their direction."""
    g = rng(10, seed)
    y = torch.randint(classes, (n,), generator=g)
    angle = math.pi * y / classes + 0.1 * torch.randn(n, generator=g)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = angle.cos()[:, None, None] * row + angle.sin()[:, None, None] * column
    x = (1.3 * along + 2 * math.pi * torch.rand(n, 1, 1, generator=g)).sin()[:, None]
    x = x * (1 + 0.3 * torch.randn(1, channels, 1, 1, generator=g)) + noise * torch.randn(n, channels, size, size, generator=g)
    return split(standardise(x, None), y)


def stamps(seed: int, n: int = 768, classes: int = 4, size: int = 12, channels: int = 1, noise: float = 0.8) -> Split:
    """A small random pattern per class, somewhere in a noisy picture."""
    g = rng(11, seed)
    patterns = 2.5 * torch.randn(classes, channels, 5, 5, generator=g)
    y, x = torch.randint(classes, (n,), generator=g), noise * torch.randn(n, channels, size, size, generator=g)
    for i, (top, left) in enumerate(torch.randint(size - 4, (n, 2), generator=g).tolist()):
        x[i, :, top : top + 5, left : left + 5] += patterns[y[i]]
    return split(standardise(x, None), y)


def masks(seed: int, n: int = 384, size: int = 12) -> Split:
    """A bright disc in noise, and which pixels it covers: targets `[n, 1, size, size]`."""
    g = rng(12, seed)
    centre, radius = size * (0.25 + 0.5 * torch.rand(n, 2, 1, 1, generator=g)), 1.5 + 2 * torch.rand(n, 1, 1, generator=g)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = (((row - centre[:, 0]).square() + (column - centre[:, 1]).square()).sqrt() < radius).float()[:, None]
    return split(standardise(y + 0.7 * torch.randn(y.shape, generator=g), None), y)


def bars(seed: int, n: int = 768, size: int = 8) -> Split:
    """Binary pictures of a few full rows and columns, as input and as target, in {0, 1}."""
    g = rng(13, seed)
    rows, columns = (torch.rand(n, size, generator=g) < 0.2 for _ in range(2))
    x = (rows[:, :, None] | columns[:, None, :]).float().flatten(1)
    return split(x, x)


# ------------------------------------------------------------------------------------------ sequences
def waves(seed: int, n: int = 1024, length: int = 32, classes: int = 3) -> Split:
    """Noisy sine waves `[n, 1, length]`: the class is the frequency."""
    g = rng(20, seed)
    y = torch.randint(classes, (n,), generator=g)
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    x = (0.5 * (1 + y[:, None]) * torch.arange(length) + phase).sin() + 0.6 * torch.randn(n, length, generator=g)
    return split(standardise(x, None)[:, None], y)


def walks(seed: int, n: int = 1536, length: int = 14, features: int = 3) -> Split:
    """Random steps `[n, length, features]` with drift: the class says which two of the sums end up positive."""
    g = rng(21, seed)
    x = torch.randn(n, length, features, generator=g) + 0.5 * torch.randn(n, 1, features, generator=g)
    total = x.sum(1)
    return split(x, 2 * (total[:, 0] > 0).long() + (total[:, 1] > 0).long())


def marked_sum(seed: int, n: int = 2048, length: int = 10) -> Split:
    """The adding problem: the sum of the two marked numbers, standardised."""
    g = rng(22, seed)
    values, marks = torch.rand(n, length, generator=g), torch.zeros(n, length)
    marks.scatter_(1, torch.rand(n, length, generator=g).topk(2).indices, 1.0)
    return split(torch.stack([values - 0.5, marks], 2), standardise((values * marks).sum(1, keepdim=True)))


def words(seed: int, n: int = 1536, length: int = 12, vocabulary: int = 30, classes: int = 3) -> Split:
    """Tokens in `classes` topics: the class is the topic of most tokens."""
    g = rng(23, seed)
    y, x = torch.randint(classes, (n,), generator=g), torch.randint(vocabulary, (n, length), generator=g)
    x = torch.where(torch.rand(n, length, generator=g) < 0.45, x - x % classes + y[:, None], x)
    return split(x, F.one_hot(x % classes, classes).sum(1).argmax(1))


def next_token(seed: int, n: int = 768, length: int = 12, vocabulary: int = 12) -> Split:
    """Walks on a sparse Markov chain: input tokens `[n, length]` and their successors."""
    g = rng(24, seed)
    table = torch.stack([torch.randperm(vocabulary, generator=g)[:2] for _ in range(vocabulary)])
    x = torch.randint(vocabulary, (n, length + 1), generator=g)
    for t in range(length):
        x[:, t + 1] = table[x[:, t], (torch.rand(n, generator=g) < 0.15).long()]
    return split(x[:, :-1], x[:, 1:])


def padded_copy(seed: int, n: int = 1024, length: int = 8, vocabulary: int = 8) -> Split:
    """Sequences of several lengths padded with token 0; the target is the mirrored token, -100 at the padding."""
    g = rng(25, seed)
    x = torch.randint(1, vocabulary, (n, length), generator=g)
    padding = torch.arange(length) >= torch.randint(length // 2, length + 1, (n, 1), generator=g)
    y = (vocabulary - x).masked_fill(padding, -100)
    return split(x.masked_fill(padding, 0), y)


def mirrored(seed: int, n: int = 1024, length: int = 6, vocabulary: int = 8) -> Split:
    """Tokens, and the same tokens in reverse order: each position needs another one."""
    x = torch.randint(vocabulary, (n, length), generator=rng(26, seed))
    return split(x, x.flip(1))


# ------------------------------------------------------------------------------------------ numbers
def surface(seed: int, n: int = 1536, dim: int = 8, noise: float = 0.1) -> Split:
    """A smooth non-linear function of a few inputs, standardised, `[n, 1]`."""
    g = rng(30, seed)
    x = torch.randn(n, dim, generator=g)
    y = (1.5 * x[:, 0]).sin() + x[:, 1] * x[:, 2] + x[:, 3].abs() + 0.5 * x[:, 4] + noise * torch.randn(n, generator=g)
    return split(x, standardise(y)[:, None])


def several(seed: int, n: int = 1536, dim: int = 8, outputs: int = 3) -> Split:
    """A smooth function with several standardised outputs."""
    g = rng(31, seed)
    x = torch.randn(n, dim, generator=g)
    y = (x @ torch.randn(dim, 12, generator=g) / dim**0.5).tanh() @ torch.randn(12, outputs, generator=g)
    return split(x, standardise(y + 0.05 * torch.randn(n, outputs, generator=g)))


def houses(seed: int, n: int = 1536) -> Split:
    """Standardised features of houses; the price in currency units, about 250000 +- 80000."""
    train, val = surface(seed, n)
    return replace((train, val), 1, lambda y: 250_000 + 80_000 * y)


def counts(seed: int, n: int = 1536, dim: int = 6) -> Split:
    """Poisson counts whose log rate is smooth in the inputs, `[n, 1]`."""
    g = rng(33, seed)
    x = torch.randn(n, dim, generator=g)
    log_rate = 0.8 * x[:, 0] + x[:, 1].sin() + 0.3 * x[:, 2] * x[:, 3]
    return split(x, torch.poisson((1 + log_rate).clamp_max(4).exp(), generator=g)[:, None])


def curve(seed: int, n: int = 1024) -> Split:
    """A noisy wiggle of one variable."""
    g = rng(34, seed)
    x = 4 * torch.rand(n, 1, generator=g) - 2
    return split(x, standardise((3 * x).sin() + 0.5 * x + 0.1 * torch.randn(n, 1, generator=g)))


def manifold(seed: int, n: int = 1536, dim: int = 20, latent: int = 3) -> Split:
    """Points near a curved low-dimensional surface, as input and as target."""
    g = rng(35, seed)
    x = (torch.randn(n, latent, generator=g) @ torch.randn(latent, dim, generator=g)).tanh()
    x = standardise(x + 0.05 * torch.randn(n, dim, generator=g))
    return split(x, x)
