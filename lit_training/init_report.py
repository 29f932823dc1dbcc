"""What an initialisation did, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["InitReport", "LayerInit"]


@dataclass
class LayerInit:
    """One weight: how it was drawn, what was aimed at and what came out.

    `fan` is what the variance was divided by, `follows` what acts on the layer's output and `found` how that is known: `trace`
    (a real forward), `symbolic` (torch.fx), `given`, `structure` (recurrent layers, embeddings) or `assumed`. `std` figures
    are those of `of`: the `weight`, or the `output` before the nonlinearity for schemes that look at data; none is aimed at where
    gradient rates are made equal. `divisions` counts LSUV's.
    """

    name: str
    scheme: str
    fan: float
    gain: float
    follows: str
    found: str
    of: str = "weight"
    std_aimed: float = float("nan")
    std: float = float("nan")
    divisions: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class InitReport:
    """What `initialize_` did: one row for each weight, in forward order where known, and what it left alone.

    Attributes:
        scheme: as asked for.
        layers: the rows.
        left_alone: why, by parameter name (frozen, excluded, not a layer's weight).
        overwritten: weights that did not look freshly constructed.
        gradient_rates: by weight, before and after equalising; of `data_dependent` only.
    """

    scheme: str
    layers: list[LayerInit] = field(default_factory=list)
    left_alone: dict[str, str] = field(default_factory=dict)
    overwritten: list[str] = field(default_factory=list)
    gradient_rates: list[dict[str, float]] = field(default_factory=list)

    def __getitem__(self, name: str) -> LayerInit:
        """Return the row of a weight, such as `"0.weight"`."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; rows: {[row.name for row in self.layers]}")

    def __iter__(self) -> Iterator[LayerInit]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def summary(self) -> str:
        """One line: how many weights, and what to look at."""
        parts = [f"{self.scheme}: {len(self.layers)} weights initialised"]
        if assumed := sum(row.found == "assumed" for row in self.layers):
            parts.append(f"{assumed} with an assumed gain")
        if self.left_alone:
            parts.append(f"{len(self.left_alone)} parameters left alone")
        if len(self.gradient_rates) == 1:
            parts.append("gradient rates left as they were")
        if noted := sum(bool(row.notes) for row in self.layers):
            parts.append(f"{noted} with a note")
        return ", ".join(parts)

    def __str__(self) -> str:
        head = ("weight", "scheme", "fan", "gain", "follows", "found", "of", "std aimed", "std got", "notes")
        rows = [head, *(_cells(row) for row in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name}: left alone, {why}" for name, why in self.left_alone.items()), self.summary])


def _cells(row: LayerInit) -> tuple[str, ...]:
    numbers = (f"{row.fan:g}", f"{row.gain:.4g}")
    stds = (f"{row.std_aimed:.4g}", f"{row.std:.4g}")
    return (row.name, row.scheme, *numbers, row.follows, row.found, row.of, *stds, "; ".join(row.notes))
