"""The rule about what the schedule will do to the learning rate over the whole run."""

from collections.abc import Iterator
from statistics import median

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule

__all__ = ["lr_schedule"]

LONG_RUN = 50
IDLE = 0.01
MOST_IDLE = 0.6
STARTED = 0.25
STARTED_NAMED = 0.5
GROWS = 10.0


@rule(explains=["lr_too_low", "lr_too_high", "no_update", "slow_convergence", "loss_diverging", "nan_loss", "oscillating_loss"])
def lr_schedule(evidence: Evidence) -> Iterator[Finding]:
    """The schedule does not fit the run: ends early, warms up for longer than the run, raises, grows, or waits the wrong way.

    What it means: most of the run trains at a rate of nearly nothing, or at one that grows without end. Typical causes: a
    schedule that counts epochs and is stepped at every batch, or the other way round; a number of warm-up steps from a
    longer run; integer division; `ReduceLROnPlateau(mode="max")` on a loss.

    How it is measured: a copy of the scheduler runs ahead over all planned updates before the first one, so that the rate
    of each is known; where groups of parameters have rates of their own, the highest counts. `OneCycleLR`: its number of steps
    and highest rate. `ReduceLROnPlateau`: whether its `mode` fits the name of what it monitors.

    Threshold: in runs of 50 updates or more: the rate is below 1 % of its peak in more than three fifths of the updates; it
    never gets to a quarter of the rate that the optimiser was made with (to half of `OneCycleLR`'s `max_lr`) and ends at its
    highest; it ends at more than 10 times both that rate and its own median. In all runs: `OneCycleLR` has fewer steps than it
    is to take, since it raises then.

    Not an alarm: a rate that fades out where `EarlyStopping` ends the run; a function that gives the rate itself, for an
    optimiser made with a rate of 1 (Noam); cosine, linear, step and one-cycle schedules over the whole run, warm restarts, a
    decay by 10 three times, or by a tenth at each of a hundred epochs; schedules that are longer than the run but already past
    their peak.

    What to do: `{"scheduler": s, "interval": "step"}` for a schedule in updates, `"epoch"` for one in epochs; take its
    length from `trainer.estimated_stepping_batches`.
    """
    rates = evidence.plan.rates
    advice = 'Take its length from trainer.estimated_stepping_batches and step it with "interval": "step".'
    if evidence.plan.backwards:
        message = f"The schedule waits for a plateau the wrong way round: {evidence.plan.backwards}."
        advice = 'ReduceLROnPlateau(mode="min") for a loss or an error, "max" for an accuracy.'
        yield Finding("lr_schedule", "warning", "", evidence.step, message, advice)
    if evidence.plan.overrun:
        message = f"The schedule is too short: {evidence.plan.overrun}."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice)
        return
    if len(rates) < LONG_RUN:
        return
    named, n = evidence.plan.peak, len(rates)
    peak = max(rates) / named
    idle = sum(rate < IDLE * max(rates) for rate in rates)
    itself = named == 1 and all(f.made_with in (0.0, 1.0) for f in evidence.parameters.values())
    if not itself and peak < (STARTED if named == 1 else STARTED_NAMED) and rates[-1] >= 0.99 * max(rates):
        own = "the optimiser's own" if named == 1 else "max_lr"
        message = f"In all {n} planned updates the rate stays below {peak:.2g} times {own}: the warm-up is too long."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice, {"peak": peak})
    elif idle > MOST_IDLE * n and not evidence.plan.open_end:
        message = f"The rate is below 1 % of its peak in {idle} of the {n} planned updates: the schedule is over too early."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice, {"idle": idle / n})
    elif rates[-1] > GROWS * max(named, median(rates)):
        message = f"The rate grows to {rates[-1]:.2g} times the optimiser's own over the {n} planned updates."
        yield Finding(
            "lr_schedule", "error", "", evidence.step, message, "Schedules lower the rate: gamma below 1.", {"last": rates[-1]}
        )
