"""The zoo: faulty and healthy training set-ups, an exam for the diagnosis that its rules never see while they are written.

`CASES` holds them all by name. `python -m tests.zoo.score` examines the diagnosis, `python -m tests.zoo.hurts` the zoo itself.
"""

# ruff: noqa: F401 - the families register their cases
from tests.zoo import (
    faulty_activation,
    faulty_courses,
    faulty_data,
    faulty_flow,
    faulty_gradient_flow,
    faulty_initialisation,
    faulty_likelihoods,
    faulty_loss,
    faulty_normalisation,
    faulty_objectives,
    faulty_optimiser,
    faulty_rates,
    faulty_recurrences,
    faulty_regularisation,
    faulty_tables,
    faulty_traced,
    faulty_weights,
    healthy_classes,
    healthy_courses,
    healthy_generative,
    healthy_hardly,
    healthy_likelihoods,
    healthy_loops,
    healthy_losses,
    healthy_meanings,
    healthy_meant,
    healthy_numbers,
    healthy_objectives,
    healthy_passes,
    healthy_pictures,
    healthy_programs,
    healthy_recurrences,
    healthy_routes,
    healthy_runs,
    healthy_sentences,
    healthy_sequences,
    healthy_sets,
    healthy_shapes,
    healthy_shared,
    healthy_signals,
    healthy_starts,
    healthy_steps,
    healthy_structures,
    healthy_tables,
    healthy_traced,
    healthy_transfer,
    healthy_vectors,
    healthy_views,
)
from tests.zoo.case import CASES

__all__ = ["CASES"]
