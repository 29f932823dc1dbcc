"""AlexNet on two GPUs is AlexNet with two groups: equal outputs and gradients, weights converted both ways, and what groups cost.

python recipes/alexnet.py            # equality at full size, then small forms trained on Fashion-MNIST, 3 seeds
python recipes/alexnet.py --smoke    # narrow, on digits, seconds
"""

import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from common import COLOURS, Claim, arguments, band, finish, images, interval, quiet, seeds_of, shown, started, train
from rich.progress import track
from torch import Tensor, nn

SPLIT = ("conv1", "conv2", "conv4", "conv5")  # here each tower has kernels of its own; conv3 and the head read both
CAFFE = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "conv4": "conv4", "conv5": "conv5", "fc6": "head.2", "fc7": "head.5",
         "fc8": "head.7"}  # fmt: skip


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012, figure 2; `width` scales the channels, `small` suits pictures of 8 to 32 pixels."""

    def __init__(
        self, groups: int = 2, *, channels: int = 3, classes: int = 1000, width: float = 1.0, small: bool = False
    ) -> None:
        super().__init__()
        c = [channels, *(int(n * width) for n in (96, 256, 384, 384, 256))]
        first = {"kernel_size": 3, "padding": 1} if small else {"kernel_size": 11, "stride": 4, "padding": 2}
        self.groups, hidden = groups, int(4096 * width)
        self.conv1 = nn.Conv2d(c[0], c[1], **first)
        self.conv2 = nn.Conv2d(c[1], c[2], 5, padding=2, groups=groups)
        self.conv3 = nn.Conv2d(c[2], c[3], 3, padding=1)
        self.conv4 = nn.Conv2d(c[3], c[4], 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(c[4], c[5], 3, padding=1, groups=groups)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4 * 5, beta=0.75, k=2.0)
        self.pool, self.last = (nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)) if small else (nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(), nn.Linear(c[5] * (4 if small else 36), hidden), nn.ReLU(),
            nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise over neighbouring kernels of one group, as each GPU did over its own."""
        return torch.cat([self.norm(part) for part in x.chunk(self.groups, 1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.normalised(F.relu(self.conv1(x))))
        x = self.pool(self.normalised(F.relu(self.conv2(x))))
        x = F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))
        return self.head(self.last(x))


class Towers(nn.Module):
    """The same network as it ran on two GPUs: two towers with half of the kernels each."""

    def __init__(self, net: AlexNet) -> None:
        super().__init__()
        for name in SPLIT:
            whole: nn.Conv2d = getattr(net, name)
            size = (whole.in_channels // whole.groups, whole.out_channels // 2, whole.kernel_size, whole.stride, whole.padding)
            setattr(self, name, nn.ModuleList(nn.Conv2d(*size) for _ in range(2)))
        self.conv3, self.norm, self.pool, self.last, self.head = net.conv3, net.norm, net.pool, net.last, net.head
        for name in SPLIT:  # the first half of a layer's kernels is the first tower's
            weights, biases = (parameter.data.chunk(2) for parameter in getattr(net, name).parameters())
            for half, weight, bias in zip(getattr(self, name), weights, biases, strict=True):
                half.weight.data, half.bias.data = weight.clone(), bias.clone()

    def grouped(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename and join weights, or gradients, of the towers to those of the grouped network."""
        joined = {f"{n}.{k}": torch.cat([values[f"{n}.{i}.{k}"] for i in range(2)]) for n in SPLIT for k in ("weight", "bias")}
        return joined | {name: value for name, value in values.items() if name.split(".")[0] not in SPLIT}

    def forward(self, x: Tensor) -> Tensor:
        towers = [self.pool(self.norm(F.relu(conv(x)))) for conv in self.conv1]
        towers = [self.pool(self.norm(F.relu(conv(part)))) for conv, part in zip(self.conv2, towers, strict=True)]
        towers = F.relu(self.conv3(torch.cat(towers, 1))).chunk(2, 1)
        towers = [F.relu(conv(part)) for conv, part in zip(self.conv4, towers, strict=True)]
        return self.head(self.last(torch.cat([F.relu(conv(part)) for conv, part in zip(self.conv5, towers, strict=True)], 1)))


def to_caffe(net: AlexNet) -> dict[str, list[Tensor]]:
    """Return weights as bvlc_alexnet holds them: [out, in / groups, h, w], the first layer's colours as blue, green, red."""
    blobs = {name: [p.detach().clone() for p in net.get_submodule(ours).parameters()] for name, ours in CAFFE.items()}
    return blobs | {"conv1": [blobs["conv1"][0].flip(1), blobs["conv1"][1]]}


def from_caffe(blobs: dict[str, list[Tensor]], **options: float) -> AlexNet:
    net = AlexNet(2, **options)
    for name, ours in CAFFE.items():
        for parameter, blob in zip(net.get_submodule(ours).parameters(), blobs[name], strict=True):
            parameter.data = blob.flip(1) if name == "conv1" and blob.ndim == 4 else blob.clone()
    return net


def step(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor], float]:
    """Return outputs, gradients and the seconds of one forward and backward; dropout is on, with the same masks for all."""
    torch.manual_seed(0)
    net.zero_grad()
    start = time.perf_counter()
    out = net(x)
    F.cross_entropy(out, y).backward()
    seconds = time.perf_counter() - start
    return out.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}, seconds


def compare(width: float) -> tuple[dict[str, Any], dict[str, float], dict[str, int]]:
    """Return how far the two forms are apart, and the seconds and weights of each."""
    net, x, y = AlexNet(2, width=width), torch.randn(4, 3, 227, 227), torch.arange(4)
    towers, back = Towers(net), from_caffe(to_caffe(net), width=width)
    nets = {"towers": towers, "groups = 2": net, "groups = 1": AlexNet(1, width=width)}
    seconds = {name: min(step(n, x, y)[2] for _ in range(3)) for name, n in nets.items()}
    with torch.backends.mkldnn.flags(enabled=False):  # its kernels for groups sum in another order than those without
        (same, own, _), (out, grads, _), (again, _, _) = (step(n, x, y) for n in (towers, net, back))
    apart = float((out - same).abs().max() / out.abs().max())
    off = max(float((grads[n] - g).abs().max() / grads[n].abs().max()) for n, g in towers.grouped(own).items())
    joined = towers.grouped(dict(towers.state_dict()))
    converted = torch.equal(again, out) and all(torch.equal(a, joined[n]) for n, a in net.state_dict().items())
    counts = {name: sum(p.numel() for p in n.parameters()) for name, n in nets.items()}
    return {"outputs_apart": apart, "gradients_apart": off, "converted": converted}, seconds, counts


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "alexnet", seeds=3).parse_args(argv)
    quiet(threads=2)
    data = images(args).standardised()
    torch.manual_seed(args.seed)
    width = 0.125 if args.smoke else 1.0
    equal, seconds, counts = compare(width)
    steps = 40 if args.smoke else 20000 if args.full else 250
    small = {"channels": 1, "classes": 10, "width": 0.25, "small": True}
    runs = {}
    for groups, seed in track([(g, s) for g in (2, 1) for s in seeds_of(args)], "training"):
        net = started(AlexNet(groups, **small), seed)
        runs[groups, seed] = train(net, data, steps=steps, seed=seed, lr=0.02, batch=64, threads=2)
    hits = {g: [run.accuracy for (groups, _), run in runs.items() if groups == g] for g in (2, 1)}

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for colour, g in zip(COLOURS, hits, strict=False):
        curves = [run.losses for (groups, _), run in runs.items() if groups == g]
        band(left, curves, colour, f"groups = {g}: test accuracy {shown(hits[g])}")
    left.set(xlabel="update", ylabel="training loss (nats)", title="small AlexNet on real pictures, mean and range")
    left.legend()
    right.bar(list(seconds), [1000 * value for value in seconds.values()], color=COLOURS)
    for place, name in enumerate(seconds):
        right.text(place, 1000 * seconds[name], f"{counts[name] / 1e6:.1f} M weights", ha="center", va="bottom")
    right.margins(y=0.1)
    right.set(ylabel="forward and backward of 4 pictures (ms)", title=f"AlexNet at width {width:g}")
    figure.tight_layout()
    gaps = [grouped - plain for grouped, plain in zip(hits[2], hits[1], strict=True)]
    rows = [{"groups": g, "seed": s, "accuracy": r.accuracy, "seconds": r.seconds, "finding": r.finding, **equal}
            for (g, s), r in runs.items()]  # fmt: skip
    few, many, apart, off = counts["groups = 2"], counts["groups = 1"], equal["outputs_apart"], equal["gradients_apart"]
    finish(args, "alexnet", figure, rows, [
        Claim("two towers are one network with groups = 2",
              f"relative difference of outputs {apart:.1g}, of gradients {off:.1g}", apart == 0.0 and off < 1e-6),
        Claim("weights convert both ways, also in Caffe's layout",
              "equal to the bit" if equal["converted"] else "they differ", equal["converted"]),
        Claim("groups save weights at no visible cost in accuracy",
              f"{few / 1e6:.1f} of {many / 1e6:.1f} M weights; small form: accuracy {shown(hits[2])} with, {shown(hits[1])} "
              f"without, difference of pairs {shown(gaps)}", few < many and np.nansum(interval(gaps)) > 0),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
