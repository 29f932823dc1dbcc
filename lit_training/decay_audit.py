"""Which parameters weight decay acts on, and why: a table to read before training."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lit_training.selection import Choice, Patterns, choose

__all__ = ["DecayAudit", "DecayRow", "decay_audit"]


@dataclass(frozen=True)
class DecayRow:
    """One parameter: whether it decays, by which rule or pattern, and what deserves a second look (`flags`)."""

    name: str
    shape: tuple[int, ...] | None
    kind: str
    decayed: bool
    reason: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecayAudit:
    """All parameters of a model, tied ones once; `print` or `rich.print` it as a table."""

    rows: tuple[DecayRow, ...]

    @property
    def decayed(self) -> tuple[str, ...]:
        """Names of what decays."""
        return tuple(row.name for row in self.rows if row.decayed)

    def __rich__(self) -> Table:
        table = Table(title="weight decay", caption=f"{len(self.decayed)} of {len(self.rows)} parameters decay")
        table.add_column("parameter", overflow="fold")
        table.add_column("shape", justify="right")
        table.add_column("decayed")
        table.add_column("why", overflow="fold")
        table.add_column("note", overflow="fold")
        for row in self.rows:
            shape = "?" if row.shape is None else "x".join(map(str, row.shape))
            table.add_row(row.name, shape, "yes" if row.decayed else "no", row.reason, "; ".join(row.flags))
        return table

    def __str__(self) -> str:
        console = Console(width=128, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def decay_audit(
    module: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = False,
) -> DecayAudit:
    """Tell for every parameter whether weight decay acts on it, and why.

    Flagged are: normalisation weights with several dimensions and tokens (a rule by `ndim` decays them by mistake), tied
    parameters (they decay once), frozen ones (left alone), and tensors behind a parametrisation (the tensor decays, not the
    weight that the layer computes from it).

    Args:
        module: any module.
        include: as in `lit_training.select`, like all that follow.
        exclude: patterns of what to leave out.
        biases: whether biases decay.
        norms: whether normalisation, scales and gates decay.
        embeddings: whether embedding tables and tokens decay.

    Returns:
        One row a parameter, in the order of `module.named_parameters()`.

    Raises:
        ValueError: as `lit_training.select`.

    >>> audit = decay_audit(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((3, 3))))
    >>> audit.decayed
    ('0.weight',)
    >>> audit.rows[2].flags
    ('normalisation weight with 2 dimensions',)
    """
    choices = choose(module, include=include, exclude=exclude, biases=biases, norms=norms, embeddings=embeddings)
    tables = _embedding_tables(module)
    return DecayAudit(tuple(_row(choice, tables) for choice in choices))


def _row(choice: Choice, tables: Sequence[Tensor]) -> DecayRow:
    info = choice.info
    parameter = info.parameter
    shape = None if isinstance(parameter, UninitializedParameter) else tuple(parameter.shape)
    flags = []
    if info.kind == "norm" and shape is not None and len(shape) > 1:
        flags.append(f"normalisation weight with {len(shape)} dimensions")
    if info.kind == "embedding" and not any(parameter is table for table in tables):
        flags.append("token")
    if info.aliases:
        flags.append(f"tied with {', '.join(info.aliases)}")
    if not parameter.requires_grad:
        flags.append("frozen: left alone")
    if ".parametrizations." in f".{info.name}":
        flags.append("behind a parametrisation: this tensor, not the layer's weight")
    return DecayRow(info.name, shape, info.kind, choice.selected, choice.reason, tuple(flags))


def _embedding_tables(module: nn.Module) -> list[Tensor]:
    return [m.weight for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
