"""What regularisation does to a decision boundary: ConvNetJS's classify2d with weight decay, L1, elastic net and max norm.

python recipes/regularisation_2d.py            # spiral, circle and random points, 5 seeds
python recipes/regularisation_2d.py --smoke    # the spiral, seconds
"""

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import Claim, Images, arguments, finish, interval, seeds_of, shown, train
from lightning.pytorch import Callback
from matplotlib.colors import ListedColormap
from rich.progress import track
from torch import Tensor, nn

from lit_training.callbacks import MaxNorm, WeightDecay

ARMS: dict[str, dict[str, float]] = {
    "none": {},
    "L2 .001": {"weight_decay": 0.001},
    "L2 .01": {"weight_decay": 0.01},
    "L2 .1": {"weight_decay": 0.1},
    "L1 .003": {"weight_decay": 0.0, "l1": 0.003},
    "elastic net .002, .002": {"weight_decay": 0.004, "l1": 0.002},  # lambda2 ||W||^2 has no half: twice its weight decay
    "max norm 1": {"max_norm": 1.0},
}


def points(kind: str, seed: int, n: int = 200) -> tuple[Tensor, Tensor]:
    """Return `n` points of the plane and their class, as ConvNetJS draws them."""
    draw = np.random.default_rng(seed)
    label = np.arange(n) % 2
    if kind == "spiral":
        t = np.repeat(np.linspace(0, 1, n // 2), 2)
        angle = 1.25 * t * 2 * np.pi + np.pi * label
        x = 5 * (0.05 + t)[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1) + draw.uniform(-0.1, 0.1, (n, 2))
    elif kind == "circle":
        radius, angle = np.where(label, draw.uniform(3, 5, n), draw.uniform(0, 2, n)), draw.uniform(0, 2 * np.pi, n)
        x = np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1)
    else:
        x, label = draw.uniform(-3, 3, (40, 2)), draw.integers(0, 2, 40)
    return torch.tensor(x / x.std(), dtype=torch.float32), torch.tensor(label)


def callbacks(options: dict[str, float]) -> list[Callback]:
    if not options:
        return []
    return [MaxNorm(**options)] if "max_norm" in options else [WeightDecay(**options, decoupled=False)]


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    for layer in (net[0], net[2]):
        nn.init.xavier_normal_(layer.weight, gain=5 / 3)
    return net


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.ndim > 1])


@torch.no_grad()
def boundary(net: nn.Module, size: int = 80) -> tuple[np.ndarray, float]:
    """Return the class at each place of a grid, and the share of neighbours that differ: the length of the boundary."""
    side = torch.linspace(-2.5, 2.5, size)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
    chosen = net(grid).argmax(1).reshape(size, size).numpy()
    return chosen, float((chosen[1:] != chosen[:-1]).mean() + (chosen[:, 1:] != chosen[:, :-1]).mean()) / 2


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "regularisation_2d").parse_args(argv)
    steps = 500 if args.smoke else 20000 if args.full else 1000
    kinds = ("spiral",) if args.smoke else ("spiral", "circle", "random")
    seeds = seeds_of(args)
    figure, axes = plt.subplots(
        len(kinds), len(ARMS), figsize=(2 * len(ARMS), 2.3 * len(kinds)), squeeze=False, layout="constrained"
    )
    colours, rows = ListedColormap(["#9ecae1", "#fdc086"]), []
    for kind, arm, seed in track([(k, a, s) for k in kinds for a in ARMS for s in seeds], "training"):
        x, y = points(kind, seed)
        net = network(seed)
        run = train(net, Images(x, y, x, y), steps=steps, seed=seed, lr=0.05, batch=len(x), weight_decay=0.0,
                    callbacks=callbacks(ARMS[arm]))  # fmt: skip
        classes, length = boundary(net)
        w = weights(net)
        units = torch.cat([p.detach().norm(dim=1) for p in net.parameters() if p.ndim > 1])
        rows.append({"data": kind, "arm": arm, "seed": seed, "accuracy": run.accuracy, "norm": float(w.norm()),
                     "zeros": float((w == 0).float().mean()), "largest_unit": float(units.max()), "boundary": length,
                     "finding": run.finding})  # fmt: skip
        if seed == args.seed:
            panel = axes[kinds.index(kind), list(ARMS).index(arm)]
            panel.imshow(classes, origin="lower", extent=(-2.5, 2.5, -2.5, 2.5), cmap=colours, alpha=0.8)
            for label, mark, edge in ((0, "o", "#08519c"), (1, "^", "#b35806")):
                panel.scatter(*x[y == label].T, s=5, marker=mark, color=edge)
            panel.set(
                xticks=[], yticks=[], title=f"{arm}\n|W| {w.norm():.1f}, {(w == 0).float().mean():.0%} zeros", ylabel=kind
            )
            panel.title.set_fontsize(8)
    for panel in axes[:, 1:].flat:
        panel.set_ylabel("")
    figure.suptitle("decision boundaries of a 2-32-32-2 tanh network; |W|: norm of all weights")

    def of(arm: str, key: str, kind: str = "spiral") -> list[float]:
        return [row[key] for row in rows if row["arm"] == arm and row["data"] == kind]

    decay = ("none", "L2 .001", "L2 .01", "L2 .1")
    norms, hardest = [of(arm, "norm") for arm in decay], kinds[-1]
    lengths = [of(arm, "boundary", hardest) for arm in decay]
    bounded, free = of("max norm 1", "largest_unit"), of("none", "largest_unit")
    sparse, dense = of("L1 .003", "zeros"), of("L2 .01", "zeros")
    falling = all(min(np.subtract(a, b)) > 0 for a, b in pairwise(norms))
    elastic = of("elastic net .002, .002", "zeros")
    simpler = ", ".join(shown(part) for part in lengths)
    smaller = ", ".join(shown(part, ".1f") for part in norms)
    zeros = f"zeros: {shown(sparse, '.2f')} with L1, {shown(elastic, '.2f')} with elastic net, {shown(dense, '.2f')} with L2"
    within = f"largest norm {shown(bounded, '.4f')} of 1, without it {shown(free, '.2f')}"
    claims = [
        Claim(
            "weight decay shrinks the weights, the more the larger lambda",
            f"|W| on the spiral for 0, .001, .01, .1: {smaller}",
            falling,
        ),
        Claim(
            "a larger lambda makes the boundary simpler",
            f"share of neighbouring places on two sides of it, {hardest} points: {simpler}",
            interval(lengths[2])[0] < 0.9 * interval(lengths[0])[0],
        ),
        Claim("L1 makes weights exactly zero, L2 does not", zeros, min(sparse) > 0.4 and max(dense) == 0),
        Claim("max norm keeps every unit's incoming weights within the bound", within, max(bounded) <= 1 + 1e-5),
    ]
    finish(args, "regularisation_2d", figure, rows, claims)


if __name__ == "__main__":
    main()
