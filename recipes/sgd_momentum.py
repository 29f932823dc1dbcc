"""The three steps of training (forward, backward, update) in plain torch and in `LitModule`: equal to the last bit; and momentum.

python recipes/sgd_momentum.py            # Fashion-MNIST, 5 seeds
python recipes/sgd_momentum.py --smoke    # digits, seconds
"""

from collections.abc import Sequence

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import COLOURS, Batches, Claim, Images, arguments, band, finish, images, mlp, quiet, seeds_of, shown, train
from rich.progress import track
from torch import Tensor, nn

from lit_training import LitModule


def network(data: Images, seed: int) -> nn.Module:
    return mlp(data.train[0].numel(), seed)


def by_hand(net: nn.Module, data: Images, *, steps: int, seed: int, lr: float, momentum: float) -> list[Tensor]:
    """Train in plain torch; return the weights."""
    weights = list(net.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    batches, done = Batches(data.train, data.train_labels, 128, seed), 0
    while done < steps:
        for x, y in batches:
            loss = nn.functional.cross_entropy(net(x), y)  # forward
            gradients = torch.autograd.grad(loss, weights)  # backward
            with torch.no_grad():  # update
                for w, v, g in zip(weights, velocity, gradients, strict=True):
                    v.mul_(momentum).add_(g)
                    w.add_(v, alpha=-lr)
            done += 1
            if done == steps:
                break
    return weights


def largest_difference(data: Images, *, steps: int, seed: int, lr: float, momentum: float) -> float:
    """Return how far the weights of the two loops are apart."""
    plain = by_hand(network(data, seed), data, steps=steps, seed=seed, lr=lr, momentum=momentum)
    module = LitModule(network(data, seed), lr=lr, momentum=momentum, weight_decay=0.0)
    loader = torch.utils.data.DataLoader(Batches(data.train, data.train_labels, 128, seed), batch_size=None)
    pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False).fit(module, loader)  # fmt: skip
    return max(
        float((a.detach() - b).abs().max()) for a, b in zip(plain, (p.detach() for p in module.parameters()), strict=True)
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "sgd_momentum").parse_args(argv)
    quiet()
    data = images(args).standardised()
    steps = 60 if args.smoke else 20000 if args.full else 600
    seeds = seeds_of(args, smoke=3)
    lr = 0.01
    apart = largest_difference(data, steps=steps, seed=args.seed, lr=lr, momentum=0.9)
    arms = [(momentum, seed) for momentum in (0.0, 0.9) for seed in seeds]
    runs = {arm: train(network(data, arm[1]), data, steps=steps, seed=arm[1], lr=lr, momentum=arm[0], weight_decay=0.0)
            for arm in track(arms, "training")}  # fmt: skip
    early = {m: [float(runs[m, s].losses[: steps // 3].mean()) for s in seeds] for m in (0.0, 0.9)}
    hits = {m: [runs[m, s].accuracy for s in seeds] for m in (0.0, 0.9)}

    figure, axes = plt.subplots(figsize=(6, 4))
    for colour, momentum in zip(COLOURS, (0.0, 0.9), strict=False):
        band(
            axes,
            [runs[momentum, s].losses for s in seeds],
            colour,
            f"momentum {momentum}: test accuracy {shown(hits[momentum])}",
        )
    axes.set(
        xlabel="update",
        ylabel="training loss (nats)",
        yscale="log",
        title=f"SGD with and without momentum, rate {lr}, mean and range",
    )
    axes.legend()
    rows = [{"momentum": m, "seed": s, "accuracy": r.accuracy, "early_loss": float(r.losses[: steps // 3].mean()),
             "apart": apart, "finding": r.finding} for (m, s), r in runs.items()]  # fmt: skip
    gain = np.subtract(early[0.0], early[0.9])
    finish(args, "sgd_momentum", figure, rows, [
        Claim("training is three steps: forward, backward, update (LitModule does just these)",
              f"largest difference of a weight after {steps} updates: {apart:g}", apart == 0.0),
        Claim("momentum .9 learns faster at the same rate", f"mean loss of the first third: {shown(early[0.0])} without, "
              f"{shown(early[0.9])} with; test accuracy {shown(hits[0.0])}, {shown(hits[0.9])}", bool((gain > 0).all())),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
