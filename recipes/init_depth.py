"""Initialisation in deep networks of rectifiers: He against Glorot at 22 and 30 layers (He et al. 2015, figures 2 and 3).

python recipes/init_depth.py            # Fashion-MNIST, width 128, 5 seeds, then all schemes at 30 layers
python recipes/init_depth.py --smoke    # digits, seconds
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import COLOURS, Claim, Images, arguments, band, finish, images, seeds_of, shown, train
from rich.progress import track
from torch import nn

from lit_training import audit, initialize_

SCHEMES = ("default", "normal", "glorot", "he", "orthogonal", "random_walk", "data_dependent", "lsuv")
OPTIONS = {"normal": {"std": 0.01}}


def network(data: Images, depth: int, scheme: str, seed: int) -> nn.Sequential:
    """Return `depth` layers of width 128 with rectifiers between them, drawn by a scheme; "default" is torch's."""
    torch.manual_seed(seed)
    sizes = [data.train[0].numel(), *[128] * (depth - 1), 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    if scheme != "default":
        generator = torch.Generator().manual_seed(seed)
        initialize_(net, scheme, batch=data.train[:256], generator=generator, **OPTIONS.get(scheme, {}))
    return net


def signals(data: Images, depth: int, scheme: str, seed: int) -> tuple[list[float], list[float], str]:
    """Return std and signal of every layer before training, and what the audit says first."""
    batch = data.train[:256], data.train_labels[:256]
    net = network(data, depth, scheme, seed)
    report = audit(net, batch, nn.functional.cross_entropy, optimizer=torch.optim.SGD(net.parameters(), 0.003, momentum=0.9))
    verdict = report.alarms[0].rule if report.alarms else "silent"
    return [row.std for row in report.layers], [row.signal for row in report.layers], verdict


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "init_depth").parse_args(argv)
    data = images(args).standardised()
    steps, lr = (150, 0.01) if args.smoke else (20000, 0.003) if args.full else (800, 0.003)
    seeds = seeds_of(args)
    depths = (30,) if args.smoke else (22, 30)
    arms = [(depth, scheme, seed) for depth in depths for scheme in ("he", "glorot") for seed in seeds]
    others = ("default",) if args.smoke else tuple(s for s in SCHEMES if s not in ("he", "glorot"))
    arms += [(30, scheme, args.seed) for scheme in others]
    runs = {
        arm: train(network(data, *arm), data, steps=steps, seed=arm[2], lr=lr, weight_decay=0.0)
        for arm in track(arms, "training")
    }
    before = {scheme: signals(data, 30, scheme, args.seed) for scheme in SCHEMES}

    def of(depth: int, scheme: str) -> list[float]:
        return [runs[depth, scheme, seed].accuracy for seed in seeds]

    def falls_at(depth: int, scheme: str) -> list[float]:
        """The step at which the smoothed loss first is below 1.5 nats; the last one if it never is."""
        smooth = [np.convolve(runs[depth, scheme, seed].losses, np.ones(10) / 10, "valid") for seed in seeds]
        return [float(np.argmax(curve < 1.5)) if (curve < 1.5).any() else float(steps) for curve in smooth]

    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    for column, depth in enumerate((22, 30)):
        panel = axes[0, column]
        for colour, scheme in zip(COLOURS, ("he", "glorot") if depth in depths else (), strict=False):
            curves = [runs[depth, scheme, seed].losses for seed in seeds]
            band(
                panel,
                curves,
                colour,
                f"{scheme}: accuracy {shown(of(depth, scheme), '.2f')}; audit: {runs[depth, scheme, args.seed].finding}",
            )
        panel.set(xlabel="update", ylabel="training loss (nats)", title=f"{depth} ReLU layers, mean and range over seeds")
    for number, scheme in enumerate(SCHEMES):
        style, colour = ("-", "--")[number % 2], COLOURS[number]
        signal = np.clip(before[scheme][1], 1e-35, None)
        axes[1, 0].plot(range(1, len(signal) + 1), signal, style, color=colour, label=f"{scheme}: {before[scheme][2]}")
        if (30, scheme, args.seed) in runs:
            run = runs[30, scheme, args.seed]
            band(axes[1, 1], [run.losses], colour, f"{scheme}: accuracy {run.accuracy:.2f}", style=style)
    axes[1, 0].set(
        xlabel="layer",
        ylabel="signal: std over the batch of a unit",
        yscale="log",
        title="before training, and the audit's verdict",
    )
    axes[1, 1].set(xlabel="update", ylabel="training loss (nats)", title="all schemes at 30 layers, one seed")
    for panel in axes.flat:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    figure.tight_layout()

    rows = [
        {
            "depth": depth,
            "scheme": scheme,
            "seed": seed,
            "accuracy": run.accuracy,
            "finding": run.finding,
            "final_loss": float(run.losses[-20:].mean()),
            "log10_signal_last": math.log10(max(before[scheme][1][-2], 1e-38)),
            "log10_std_last": math.log10(max(before[scheme][0][-2], 1e-38)),
        }
        for (depth, scheme, seed), run in runs.items()
    ]
    he, glorot = of(30, "he"), of(30, "glorot")
    measured = f"test accuracy {shown(he)} with He, {shown(glorot)} with Glorot"
    claims = [Claim("at 30 layers Glorot stalls, He learns", measured, min(he) > max(glorot) + 0.2)]
    if 22 in depths:
        late, early = falls_at(22, "glorot"), falls_at(22, "he")
        measured = (
            f"loss below 1.5 after {shown(early, '.0f')} updates with He, {shown(late, '.0f')} with Glorot; "
            f"test accuracy {shown(of(22, 'he'))} and {shown(of(22, 'glorot'))}"
        )
        both = max(early) < min(late) and min(of(22, "glorot")) > 0.3
        claims.insert(0, Claim("at 22 layers both learn, He starts earlier", measured, both))
    finish(args, "init_depth", figure, rows, claims)


if __name__ == "__main__":
    main()
