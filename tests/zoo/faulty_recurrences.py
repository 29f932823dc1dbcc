"""Faulty: recurrences written out step by step that cannot learn what to remember."""

from tests.zoo.case import Case, faulty
from tests.zoo.nets import normal


@faulty(
    "detached_subgraph",
    twin="h_memory_cells",
    source="forum: 'backward through the graph a second time' answered by detaching the state inside the loop over time",
)
def f_lstm_cells_cut(case: Case) -> None:
    case.model.cut = 1  # type: ignore[assignment]


@faulty(
    "bad_gain",
    "init_vanishing",
    twin="h_order_by_hand",
    source="every weight N(0, .01), the recurrent one of 32 units too: a step leaves a twentieth of the state",
)
def f_tiny_recurrence(case: Case) -> None:
    for p in (case.model.into, case.model.turn):
        normal(0.01)(p)  # type: ignore[arg-type]
