"""Language models that see what they are to predict, or are asked for another token: part of `labels_broken`."""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding

__all__ = ["tokens_shown"]

TWICE = 2


def tokens_shown(evidence: Evidence) -> Iterator[Finding]:
    """Say so if targets are not shifted, or twice, or if what is to predict the next token reads it."""
    ahead = {call.ahead for call in evidence.losses}
    shift = "Shift the targets by one, once: logits[:, :-1] against tokens[:, 1:]. Some models shift the labels themselves."
    causal = "Mask attention causally (is_causal=True, is_decoder=True), pad convolutions on the left, read in one direction."
    if 1 not in ahead and 0 in ahead:
        message = "The network gets at each place the very token that it is to predict there, so it learns to copy."
        yield Finding("labels_broken", "error", "", evidence.step, message, shift)
    elif 1 not in ahead and TWICE in ahead:
        message = "The network is to predict the next token but one at each place: the targets are shifted twice."
        yield Finding("labels_broken", "error", "", evidence.step, message, shift)
    elif any(call.open_way for call in evidence.losses) and any(result.foresees for result in evidence.in_eval):
        message = "What the network gives at a place changes with the next token, which it is to predict there."
        yield Finding("labels_broken", "error", "", evidence.step, message, causal)
