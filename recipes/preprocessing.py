"""What preprocessing buys: raw pixels, mean-subtracted, standardised, PCA-whitened; then crops, flips and averaging at test.

python recipes/preprocessing.py            # Fashion-MNIST, 5 seeds; crops and flips need torchvision (extra "vision")
python recipes/preprocessing.py --smoke    # digits, seconds
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import COLOURS, Claim, Images, arguments, band, finish, images, mlp, quiet, seeds_of, shown, started, train
from rich.progress import track
from sklearn.decomposition import PCA
from torch import Tensor, nn

from lit_training import LitModule

Views = Callable[[Tensor], Tensor]
TESTED = {"accuracy": "centre crop", "ten_crops": "ten crops"}
RATES = (0.03, 0.003, 3e-4, 3e-5)
SCALES = ("raw", "mean subtracted", "standardised", "PCA-whitened")


def scaled(data: Images, how: str) -> Images:
    """Transform the pictures by statistics of the training pictures."""
    if how == "raw":
        return data
    if how == "standardised":
        return data.standardised()
    if how == "mean subtracted":
        mean = data.train.mean(0)
        return Images(data.train - mean, data.train_labels, data.test - mean, data.test_labels)
    flat = data.train.flatten(1).numpy()
    pca = PCA(n_components=0.99, whiten=True, random_state=0).fit(flat[:10000])
    train_x, test_x = (torch.tensor(pca.transform(x.flatten(1).numpy()), dtype=torch.float32) for x in (data.train, data.test))
    return Images(train_x, data.train_labels, test_x, data.test_labels)


def convnet(seed: int) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    return started(net, seed)


def crops(size: int) -> tuple[Views, Views, Views] | None:
    """Return random crops with flips, the centre crop and ten crops of a batch; `None` without torchvision."""
    try:
        from torchvision.transforms import v2
    except ImportError:
        print("crops and flips are left out: they need torchvision, pip install 'lit-training[vision]'")
        return None
    draw, ten = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip()]), v2.TenCrop(size)
    return lambda x: torch.stack([draw(one) for one in x]), v2.CenterCrop(size), lambda x: torch.stack(ten(x))


@torch.no_grad()
def right(module: nn.Module, data: Images, views: Views) -> float:
    """Return the accuracy of the mean prediction over views `[views, N, 1, H, W]` of each test picture."""
    module.eval()
    hits = [(torch.stack([module(v).softmax(1) for v in views(x)]).mean(0).argmax(1) == y).float()
            for x, y in zip(data.test.split(500), data.test_labels.split(500), strict=True)]  # fmt: skip
    return float(torch.cat(hits).mean())


def augmented(data: Images, seeds: Sequence[int], steps: int) -> list[dict[str, object]]:
    """Train on the whole pictures' centre and on random crops with flips; test on the centre and on ten crops."""
    size = round(data.train.shape[-1] * 6 / 7)
    found = crops(size)
    rows: list[dict[str, object]] = []
    if found is None:
        return rows
    draw, centre, ten = found
    few = Images(data.train[:2000], data.train_labels[:2000], data.test[:2000], data.test_labels[:2000])
    cropped = Images(few.train, few.train_labels, centre(few.test), few.test_labels)
    for arm, augment in (("centre crop", centre), ("random crops", draw)):
        for seed in track(seeds, arm):
            module = LitModule(convnet(seed), lr=0.03)
            run = train(module, cropped, steps=steps, seed=seed, batch=64, augment=augment, threads=2)
            hits = {"accuracy": run.accuracy, "ten_crops": right(module, few, ten)}
            rows.append({"arm": arm, "seed": seed, **hits, "finding": run.finding})
    return rows


def best_rate(data: Images, steps: int, seed: int) -> float:
    """Return the rate that reaches the lowest training loss."""

    def reached(lr: float) -> float:
        losses = train(mlp(data.train[0].numel(), seed), data, steps=steps, seed=seed, lr=lr).losses
        return float(np.nan_to_num(losses[-30:], nan=1e9).mean())

    return min(RATES, key=reached)


def draw(curves: dict[str, list[np.ndarray]], labels: dict[str, str], bars: dict[str, list[float]]) -> plt.Figure:
    figure, (left, side) = plt.subplots(1, 2, figsize=(11, 4.2))
    for colour, how in zip(COLOURS, SCALES, strict=False):
        band(left, [losses.clip(max=10) for losses in curves[how]], colour, labels[how])
    left.set(xlabel="update", ylabel="training loss (nats), cut at 10", yscale="log")
    left.set_title("an MLP, each at its best rate: test accuracy, mean and range", fontsize=10)
    left.legend(fontsize=7)
    for place, values in enumerate(bars.values()):
        side.bar(place, np.mean(values), color=COLOURS[place // 2], hatch="//" if place % 2 else None)
        side.text(place, np.mean(values), shown(values), ha="center", va="bottom", fontsize=8)
    side.set(xticks=range(len(bars)), xticklabels=bars, ylabel="test accuracy", title="a conv net on 2000 training pictures")
    side.tick_params(axis="x", labelsize=8)
    side.set_ylim(max(0.0, min([min(values) for values in bars.values()], default=0.0) - 0.05), None)
    figure.tight_layout()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "preprocessing").parse_args(argv)
    quiet()
    data, seeds = images(args), seeds_of(args)
    steps = 150 if args.smoke else 20000 if args.full else 500
    ready = {how: scaled(data, how) for how in SCALES}
    rates = {how: best_rate(ready[how], steps // 2, args.seed + 100) for how in track(SCALES, "rates")}
    runs = {(how, seed): train(mlp(ready[how].train[0].numel(), seed), ready[how], steps=steps, seed=seed, lr=rates[how])
            for how, seed in track([(h, s) for h in SCALES for s in seeds], "scales")}  # fmt: skip
    hits = {how: [runs[how, seed].accuracy for seed in seeds] for how in SCALES}
    rows = [{"arm": how, "seed": seed, "accuracy": run.accuracy, "finding": run.finding} for (how, seed), run in runs.items()]
    views = augmented(data.standardised(), seeds, 60 if args.smoke else 800)
    tested = {(arm, key): [float(row[key]) for row in views if row["arm"] == arm]
              for arm in ("centre crop", "random crops") for key in TESTED if views}  # fmt: skip

    labels = {how: f"{how}, rate {rates[how]:g}: {shown(hits[how])}; audit: {runs[how, args.seed].finding}" for how in SCALES}
    bars = {f"trained on\n{arm},\n{TESTED[key]}\nat test": values for (arm, key), values in tested.items()}
    figure = draw({how: [runs[how, seed].losses for seed in seeds] for how in SCALES}, labels, bars)
    plain, whitened = hits["standardised"], hits["PCA-whitened"]
    claims = [
        Claim("zero-centred inputs of variance one train faster than raw pixels",
              ", ".join(f"{shown(hits[how])} {how}" for how in SCALES), min(plain) > max(hits["raw"])),
        Claim("PCA-whitening is not needed on pictures",
              f"{shown(whitened)} with, {shown(plain)} without", np.mean(whitened) <= np.mean(plain)),
    ]  # fmt: skip
    if views:
        fixed, moved, ten = (tested[key] for key in (("centre crop", "accuracy"), *(("random crops", k) for k in TESTED)))
        claims += [
            Claim("random crops and flips at training help",
                  f"{shown(moved)} with, {shown(fixed)} without", np.mean(moved) > np.mean(fixed)),
            Claim("averaging ten crops at test helps",
                  f"{shown(ten)} with ten, {shown(moved)} with one", np.mean(ten) > np.mean(moved)),
        ]  # fmt: skip
    finish(args, "preprocessing", figure, rows + views, claims)


if __name__ == "__main__":
    main()
