"""Run compiled code eagerly for a step: hooks added after the first compiled call would never fire, silently."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["eager"]

_holders = 0
_stance = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Keep `torch.compile`d code eager while any holder is inside, whatever the order in which they leave.

    Does nothing where nothing was compiled, since loading the compiler takes seconds.
    """
    global _holders
    if "torch._dynamo" not in sys.modules:
        yield
        return
    if _holders == 0:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0:
            _stance.close()
