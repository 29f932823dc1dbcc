"""Max norm and decoupled decay beside their peers: a whole SGD-momentum step, relative to the bare one.

PYTHONPATH=. python tests/benchmarks/enforcers.py
"""

from collections.abc import Callable

import torch
from torch import nn

from lit_training.constraints import MaxNormProjection
from lit_training.regularizers import decay_
from tests.benchmarks.interleaved import seconds

BOUND, DECAY = 3.0, 0.1
RATES = {
    "inside": 1e-8,
    "at the bound": 1e-3,
}  # of SGD: with the first no unit reaches the bound, with the second all stay at it


def shapes() -> dict[str, list[tuple[int, ...]]]:
    conv = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (10, 256)]
    return {"8 of 512x512": [(512, 512)] * 8, "60 of 64x64": [(64, 64)] * 60, "conv net": conv}


def trained(
    sizes: list[tuple[int, ...]], rate: float = 1e-8, **options: float
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    weights = [nn.Parameter(nn.init.kaiming_normal_(torch.empty(size))) for size in sizes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights, torch.optim.SGD(weights, lr=rate, momentum=0.9, **options)


@torch.no_grad()
def renorm(weights: list[nn.Parameter]) -> None:
    for w in weights:
        w.renorm_(2, 0, BOUND)


@torch.no_grad()
def keras(weights: list[nn.Parameter]) -> None:
    for w in weights:
        norms = w.square().sum(tuple(range(1, w.ndim)), keepdim=True).sqrt()
        w.mul_(norms.clamp(0, BOUND) / (1e-7 + norms))


@torch.no_grad()
def foreach(weights: list[nn.Parameter]) -> None:
    flat = [w.detach().flatten(1) for w in weights]
    norms = [torch.linalg.vector_norm(w, dim=1, keepdim=True) for w in flat]
    factors = torch._foreach_div([torch.full_like(n, BOUND) for n in norms], norms)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(flat, factors)


def after(
    make: Callable[[list[nn.Parameter]], Callable[[], None]], sizes: list[tuple[int, ...]], rate: float
) -> Callable[[], None]:
    weights, optimizer = trained(sizes, rate)
    act = make(weights)

    def step() -> None:
        optimizer.step()
        act()

    return step


def main() -> None:
    torch.set_num_threads(1)
    peers = {
        "ours": lambda ws: MaxNormProjection([(w, (0,)) for w in ws], BOUND),
        "renorm_ loop": lambda ws: lambda: renorm(ws),
        "Keras' formula": lambda ws: lambda: keras(ws),
        "_foreach": lambda ws: lambda: foreach(ws),
    }
    print("share of a bare SGD-momentum step (1 thread, medians of interleaved rounds)")
    for regime, rate in RATES.items():
        for name, sizes in shapes().items():
            variants = {"bare": trained(sizes, rate)[1].step} | {peer: after(make, sizes, rate) for peer, make in peers.items()}
            result = seconds(variants, rounds=200)
            shares = {peer: result[peer] / result["bare"] - 1 for peer in peers}
            print(f"max norm, {regime:12}  {name:14}" + "".join(f"  {peer} {share:.2f}" for peer, share in shares.items()))
    for name, sizes in shapes().items():
        _, bare = trained(sizes)
        _, own = trained(sizes, weight_decay=DECAY)
        weights, optimizer = trained(sizes)

        def decayed(weights: list[nn.Parameter] = weights, optimizer: torch.optim.Optimizer = optimizer) -> None:
            decay_(weights, 1e-8 * DECAY)
            optimizer.step()

        result = seconds({"bare": bare.step, "own": own.step, "ours": decayed}, rounds=200)
        print(
            f"decay     {name:14}  ours {result['ours'] / result['bare']:.2f} x  SGD's own {result['own'] / result['bare']:.2f} x"
        )


if __name__ == "__main__":
    main()
