"""The held-out part of the zoo: cases by authors who had seen neither the rules nor the other cases.

Whoever works on the rules reads none of it: `python -m tests.zoo.score --part heldout` tells the rates, and no more.
"""

from importlib import import_module
from pkgutil import iter_modules

for _family in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_family}")
