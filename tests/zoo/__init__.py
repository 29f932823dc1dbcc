"""The zoo: faulty and healthy training set-ups, an exam for the diagnosis that its rules never see while they are written.

`CASES` holds them all by name. `python -m tests.zoo.score` examines the diagnosis, `python -m tests.zoo.hurts` the zoo itself.
"""

# ruff: noqa: F401 - the families register their cases
from tests.zoo import (
    faulty_activation,
    faulty_data,
    faulty_gradient_flow,
    faulty_initialisation,
    faulty_loss,
    faulty_normalisation,
    faulty_optimiser,
    healthy_generative,
    healthy_loops,
    healthy_losses,
    healthy_numbers,
    healthy_pictures,
    healthy_sequences,
    healthy_structures,
    healthy_transfer,
    healthy_vectors,
    unseen_faulty_flow,
    unseen_faulty_objectives,
    unseen_faulty_rates,
    unseen_faulty_regularisation,
    unseen_faulty_tables,
    unseen_faulty_weights,
    unseen_healthy_classes,
    unseen_healthy_objectives,
    unseen_healthy_passes,
    unseen_healthy_routes,
    unseen_healthy_sentences,
    unseen_healthy_sets,
    unseen_healthy_shapes,
    unseen_healthy_shared,
    unseen_healthy_signals,
    unseen_healthy_steps,
    unseen_healthy_tables,
)
from tests.zoo.case import CASES

__all__ = ["CASES"]
