"""LSUV in one forward: time over depth, beside the paper's loop that runs the net for each layer.

PYTHONPATH=. python tests/benchmarks/lsuv.py
"""

import warnings

import torch
from torch import nn

from lit_training import initialize_
from tests.benchmarks.interleaved import seconds

WIDTH, BATCH = 128, 256


def stack(depth: int) -> nn.Sequential:
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])


@torch.no_grad()
def loop(net: nn.Sequential, x: torch.Tensor) -> None:
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    for i, layer in enumerate(net):
        if isinstance(layer, nn.Linear):
            for _ in range(10):
                seen = {}
                hook = layer.register_forward_hook(lambda m, a, out, seen=seen: seen.update(var=out.var(correction=0).item()))
                net(x)
                hook.remove()
                if abs(seen["var"] - 1) < 0.1:
                    break
                net[i].weight.div_(seen["var"] ** 0.5)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    x = torch.randn(BATCH, WIDTH)
    nets = {depth: stack(depth) for depth in (15, 30, 60)}
    ours = {f"ours {d}": lambda n=n: initialize_(n, "lsuv", batch=x) for d, n in nets.items()}
    loops = {f"loop {d}": lambda n=n: loop(n, x) for d, n in nets.items()}
    result = seconds(ours | loops, rounds=7)
    for name, value in result.items():
        print(f"{name:8}  {1000 * value:8.1f} ms")
    print(
        f"depth 60 / depth 15: ours {result['ours 60'] / result['ours 15']:.2f}, loop {result['loop 60'] / result['loop 15']:.2f}"
    )
    net = nets[60]
    initialize_(net, "lsuv", batch=x)
    worst = 0.0
    for layer in net:
        x = layer(x).detach()
        if isinstance(layer, nn.Linear):
            worst = max(worst, abs(x.var(correction=0).item() - 1))
    print(f"largest abs(variance - 1) at depth 60: {worst:.1e}")


if __name__ == "__main__":
    main()
