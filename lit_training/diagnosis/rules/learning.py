"""Rules about which parameters learn: forgotten, frozen, never stepped, and gradients that pile up."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from posixpath import commonpath

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, Severity, is_alarm
from lit_training.diagnosis.freshness import can_tell
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.fixed import is_corrected, is_fixed_classifier, is_fixed_factor, loses_nothing
from lit_training.diagnosis.rules.flags import froze_in_vain, thawed_in_vain
from lit_training.tracing.graph import LOSSES, NORMALISATIONS
from lit_training.tracing.loss_calls import from_loader

__all__ = ["frozen_by_accident", "gradients_not_zeroed", "is_meant", "no_update", "not_in_optimizer", "thawed_later"]

CARRIED = 2
ROUNDING = 1e-5
SEASONED = 10
MEANT = frozenset("target prior random fixed".split())


@rule(explains=["no_update", "slow_convergence", "lr_too_low", "frozen_by_accident", "vanishing_gradient"])
def not_in_optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Something gets a gradient, but no optimiser holds it, so it never moves.

    What it means: backward computes a gradient for it, and `step()` does not know it. The rest of the network trains around a
    part that stays as it was drawn; the loss falls, only not as far as it could. Typical causes: the optimiser was built from
    part of the module, or before a layer was replaced (PyTorch forum 84911); layers kept in a plain list or dict, which
    `parameters()` does not see; `torch.randn(..., requires_grad=True)` where `nn.Parameter` was meant.

    How it is measured: at the first optimiser step, over all optimisers: parameters of the module with a gradient that no
    optimiser holds, then or in the first few steps; and leaves of the traced forward that got a gradient and are no parameter
    of any module. At the end of the run: parameters that were frozen at the first step, and have a gradient that no optimiser
    holds.

    Threshold: none.

    Not an alarm: trained weights, as those of a perceptual loss or of a body whose head alone is trained: a note, since freezing
    them saves the time that their gradients take, or the normalisation of a body that is frozen but for it (`BackboneFinetuning`);
    parameters without a gradient; parameters declared with `expect_frozen`; tensors with one row per sample, such as inputs whose
    gradient is wanted (saliency, gradient penalties).

    What to do: pass `self.parameters()` in `configure_optimizers`, keep layers in `nn.ModuleList` or `nn.ModuleDict`, wrap
    tensors in `nn.Parameter`; freeze with `requires_grad_(False)` what is not to move.
    """
    arrived = evidence.later.unheld if evidence.later is not None else ()
    lost = [f for f in evidence.parameters.values() if f.optimized is False and f.requires_grad]
    lost = [f for f in lost if f.gradient is not None or f.name in arrived]
    if lost and not all(facts.expected_frozen for facts in lost):
        message = f"{len(lost)} parameter(s) get gradients but are in no optimiser, {lost[0].name} first."
        advice = "Give the optimiser self.parameters(), or freeze them: requires_grad_(False)."
        tables = [f for f in lost if f.kind in ("weight", "embedding") and can_tell(f.shape) and f.norm > 0]
        trained = bool(tables) and 2 * sum(f.fresh for f in tables) <= len(tables)
        severity: Severity = "note" if trained or _are_left_over(evidence, lost) else "error"
        yield Finding("not_in_optimizer", severity, lost[0].name, evidence.step, message, advice, {"parameters": len(lost)})
    loose = [t for t in evidence.loose if t.is_parameter or t.shape[:1] != (evidence.batch_size,)]
    loose = [t for t in loose if t.shape or len(evidence.loose) > 1]
    if loose:
        layers = any(t.is_parameter for t in loose)
        what = "weight(s) of layers that no module owns" if layers else "tensor(s) that no module owns"
        shapes = ", ".join(str(list(t.shape)) for t in loose[:3])
        message = f"{len(loose)} {what} (shapes {shapes}) get gradients but are in no optimiser."
        advice = (
            "Keep layers in nn.ModuleList or nn.ModuleDict, not in a list or dict."
            if layers
            else "Write self.name = nn.Parameter(tensor), not tensor.requires_grad_()."
        )
        yield Finding("not_in_optimizer", "error", loose[0].scope, evidence.step, message, advice, {"tensors": len(loose)})


def _are_left_over(evidence: Evidence, lost: Sequence[ParameterFacts]) -> bool:
    """Tell whether parameters are vectors of a part whose weights are all frozen."""
    body = commonpath([facts.name.replace(".", "/") for facts in lost]).replace("/", ".")
    tables = [f for f in evidence.parameters.values() if f.kind in ("weight", "embedding")]
    inside = [f for f in tables if body and f.name.startswith(f"{body}.")]
    return bool(inside) and not any(f.requires_grad for f in inside)


@rule(explains=["overfit_no_regularisation", "no_update", "slow_convergence", "lr_too_low"])
def frozen_by_accident(evidence: Evidence) -> Iterator[Finding]:
    """Weights that were never trained are frozen, and nobody declared it.

    What it means: the network computes with random features that can never improve. Freezing is for weights that are worth
    keeping. Typical causes: a freezing loop left over from a fine-tuning script, a name test that matches too much,
    `nn.Embedding.from_pretrained` (which freezes by default) of random vectors, a new head caught by the filter for the old
    body.

    How it is measured: `requires_grad` is False before the step (so that what GAN-like loops toggle does not count), the
    parameter matches no pattern of `expect_frozen`, the forward used it, and the weight still looks as it was drawn: entries
    distributed as independent random numbers by kurtosis, unit norms and largest singular value, or orthogonal
    (`freshness.looks_fresh`). Besides, before the first update and at the end: a module has a plain attribute `requires_grad`,
    which only parameters have. `module.requires_grad = True` leaves its parameters frozen, whatever their weights look like; A
    weight of zeros that shuts off all that learns is told, too. `= False` leaves them learning, which is told as a warning. At
    the end, too: most weights that `BackboneFinetuning` was to thaw are frozen still, and look as they were drawn.

    Threshold: the edge of the Marchenko-Pastur law plus 5 %; layers of trained networks have singular values well outside
    (Martin and Mahoney, JMLR 2021).

    Not an alarm: frozen weights that do not look fresh (transfer learning freezes trained ones); declared freezing; biases and
    normalisation; networks whose name says so (a random target or prior: Burda et al. 2019, Osband et al. 2018), or that another
    one is to predict, which meet what learns only in a difference or a loss; frequencies of Fourier features of the input; what
    a learned mask or addition turns into another weight; what a batch norm reads that has taken in ten batches before;
    copies of a trained weight, as target networks are at the start; a layer that runs under `no_grad` next to frozen ones that
    do not look fresh, or to batch norms whose gains have moved, as those of a teacher that training has moved little; classes
    that keep a flag of that name for themselves, and modules of several optimisers, which may take turns; a projection in front
    that is as wide as what it reads, with nothing nonlinear behind (MoCo v3's patches); a factor of a correction whose other
    one learns and starts at zero (LoRA-FA), and what it corrects, if most of that looks trained; an orthogonal last layer where
    all else learns (a fixed classifier). If the module thaws them later in a hook of its own, the alarm becomes a note.

    What to do: thaw the layer, or declare it: `diagnostics(expect_frozen=["body"])`.
    """
    frozen = [f for f in evidence.parameters.values() if not f.requires_grad and f.fresh and not f.expected_frozen]
    of_others = (is_meant, _is_part, _is_copy, _is_taught, _is_target, _feeds_seasoned_norm)
    excuses = (*of_others, loses_nothing, is_fixed_factor, is_corrected, is_fixed_classifier)
    frozen = [f for f in frozen if not any(excuse(evidence, f) for excuse in excuses)]
    shut = None if frozen else _shuts_off(evidence)
    if shut is not None:
        message = f"{shut.name} is frozen and all zero, so that nothing in front of it learns, and nothing else does."
        advice = "Train it: both factors of an adapter, all layers of a branch that starts at zero."
        yield Finding("frozen_by_accident", "error", shut.name, evidence.step, message, advice)
        return
    if frozen:
        first = frozen[0]
        message = (
            f"{len(frozen)} frozen weight(s) look freshly initialised, {first.name} first: there is nothing in them to keep."
        )
        advice = f"Train them: layer.requires_grad_(True), or declare them: diagnostics(expect_frozen=[{first.name!r}])."
        yield Finding("frozen_by_accident", "error", first.name, evidence.step, message, advice, {"weights": len(frozen)})
        return
    resting = {f.name: not f.requires_grad and not f.expected_frozen for f in evidence.parameters.values()}
    yield from thawed_in_vain(evidence.flags, resting, evidence.step)
    moved = [f for f in evidence.parameters.values() if f.gradient is not None and f.optimized]
    if all(f.stepping for f in evidence.parameters.values() if f.optimized):
        yield from froze_in_vain(evidence.flags, [f.name for f in moved], evidence.step)


def thawed_later(findings: Sequence[Finding], trainable: Collection[str]) -> list[Finding]:
    """Make notes of `frozen_by_accident` where the parameter is trainable in the end: somebody thawed it, so it was meant.

    >>> frozen = Finding("frozen_by_accident", "error", "body.weight", message="Frozen.")
    >>> [f.severity for f in thawed_later([frozen], {"body.weight"})], [f.severity for f in thawed_later([frozen], ())]
    (['note'], ['error'])
    """
    meant = [f for f in findings if f.rule == "frozen_by_accident" and f.where in trainable]
    notes = [replace(f, severity="note", message=f"{f.message} It was thawed later.") for f in meant]
    return sorted([*(f for f in findings if f not in meant), *notes], key=lambda f: not is_alarm(f))


def is_meant(evidence: Evidence, weight: ParameterFacts) -> bool:
    """Tell whether a random weight is to stay: by its name, or as frequencies of the input."""
    if not MEANT.isdisjoint(weight.name.lower().replace("_", ".").split(".")):
        return True
    graph = evidence.graph
    made = graph.made_by_layers()
    calls = [node for node in graph.layers() if node.weight == weight.name]
    acts = [set(graph.follows(node.index)) for node in calls if made.isdisjoint(node.parents)]
    return len(acts) == len(calls) > 0 and all(act and act <= {"sin", "cos"} for act in acts)


def _is_part(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a weight that learns is made of a frozen one, by a mask or an addition."""
    graph, readers = evidence.graph, evidence.graph.consumers()
    own = [node.index for node in graph.nodes if node.op == "parameter" and node.name == frozen.name]
    return any(graph.nodes[r].origin == "parameter" and graph.nodes[r].requires_grad for i in own for r in readers[i])


def _shuts_off(evidence: Evidence) -> ParameterFacts | None:
    """Return a frozen weight of zeros that nobody declared, if all that is trained gets a gradient of exactly zero."""
    learning = [f for f in evidence.parameters.values() if f.requires_grad and f.optimized is not False]
    if not learning or any(f.gradient for f in learning) or not any(f.gradient == 0 for f in learning):
        return None
    layers = {layer.weight for layer in evidence.layers}
    frozen = (f for f in evidence.parameters.values() if not f.requires_grad and not f.expected_frozen and f.norm == 0)
    return next((f for f in frozen if f.kind == "weight" and f.name in layers), None)


def _feeds_seasoned_norm(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a batch norm that has been through a training reads what a layer gives."""
    graph, readers = evidence.graph, evidence.graph.consumers()
    seasoned = {name for name, count in evidence.taken_in.items() if count >= SEASONED}
    starts = [node.index for node in graph.layers() if node.weight == frozen.name]
    return bool(seasoned) and any(graph.nodes[reader].scope in seasoned for i in starts for reader in readers[i])


def _is_copy(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a weight equals one that learns, up to the rounding of a running average."""
    learning = [f for f in evidence.parameters.values() if f.requires_grad and f.shape == frozen.shape]
    pairs = (((f.norm, frozen.norm), (f.low, frozen.low), (f.high, frozen.high)) for f in learning)
    return any(all(math.isclose(a, b, rel_tol=ROUNDING) for a, b in each) for each in pairs)


def _is_taught(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a layer runs without gradients in front of or behind frozen layers that look trained."""
    graph = evidence.graph
    calls = [node for node in graph.layers() if node.weight == frozen.name]
    before = {i for node in calls for i in graph.ancestors(node.index)}
    own = {node.index for node in calls}
    chain = [node for node in graph.layers() if node.index in before or own & graph.ancestors(node.index)]
    kept = [evidence.parameters[node.weight] for node in chain if node.weight in evidence.parameters]
    trained = any(not f.requires_grad and not f.fresh for f in kept) or _has_trained_norms(evidence, before, own)
    return not any(node.grad_mode for node in calls) and trained


def _has_trained_norms(evidence: Evidence, before: Collection[int], own: Collection[int]) -> bool:
    """Tell whether normalisations in front of or behind some nodes have frozen gains that are not all 1, as they are drawn."""
    graph = evidence.graph
    for node in (node for node in graph.nodes if node.op in NORMALISATIONS):
        gains = (evidence.parameters.get(graph.nodes[p].name) for p in node.parents if graph.nodes[p].op == "parameter")
        moved = any(gain is not None and not gain.requires_grad and gain.low != gain.high for gain in gains)
        if moved and (node.index in before or not graph.ancestors(node.index).isdisjoint(own)):
            return True
    return False


def _is_target(evidence: Evidence, frozen: ParameterFacts) -> bool:
    """Tell whether a frozen layer stands on one side of a comparison of numbers, and all that learns on the other.

    Probabilities are those of a teacher, as is what is compared beside given targets.
    """
    graph, readers = evidence.graph, evidence.graph.consumers()
    if any(from_loader(graph, graph.nodes[call.target]) for call in evidence.losses):
        return False
    learning = {name for name, f in evidence.parameters.items() if f.requires_grad}
    stack = [node.index for node in graph.layers() if node.weight == frozen.name]
    seen, compared = set(stack), False
    while stack:
        node = graph.nodes[stack.pop()]
        behind = {graph.nodes[i].weight for i in graph.ancestors(node.index)} | {node.weight}
        if learning.isdisjoint(behind) and node.op not in ("softmax", "log_softmax"):
            new = set(readers[node.index]) - seen
            seen |= new
            stack += new
        elif node.op == "sub" or node.op in LOSSES:
            compared = True
        else:
            return False
    return compared


@rule(explains=["slow_convergence", "lr_too_low"])
def no_update(evidence: Evidence) -> Iterator[Finding]:
    """Nothing moves: the weights are the same to the bit after several steps, or no step ever uses a gradient.

    What it means: the loop runs, and nothing learns. Typical causes: a `training_step` that logs its loss and does not return it,
    `optimizer.step()` forgotten in manual optimisation, `zero_grad()` between `backward()` and `step()`, an optimiser that holds a
    copy of the model, a checkpoint loaded in every step, a learning rate of 0.

    How it is measured: every weight is hashed before the first update and again before the fourth (or at the end of the epoch,
    or after 256 batches, where there was no step at all); not one has changed, although gradients arrived, or although a loss of
    torch's was computed and no backward pass ever began. And at the first step: the backward pass went through the layers, but no
    parameter has a gradient when the optimiser steps. At the end of a run (`LossMonitor`): epochs began with the very weights of
    the one before, though validation had become better in it; or of several optimisers one never stepped in 20 updates or more,
    although gradients arrive and its rate is not 0.

    Threshold: 3 such epochs, and half of all; else none, a single changed bit is an update.

    Not an alarm: gradients that are not finite, with which mixed precision leaves steps out; a rate of 0 that a schedule raises;
    manual accumulation over many batches; networks that take turns; frozen parts; steps that return nothing and compute no loss,
    as while a replay buffer fills.

    What to do: `zero_grad()`, `backward()`, `step()`, in this order, with an optimiser of `self.parameters()`.
    """
    trainable = [f for f in evidence.parameters.values() if f.requires_grad and f.optimized is not False and f.stepping]
    went_through = any(layer.gradient is not None and layer.gradient.largest > 0 for layer in evidence.layers)
    if trainable and went_through and not any(f.gradient for f in trainable) and evidence.stepping:
        message = "Backward ran, but no parameter has a gradient when the optimiser steps: they were cleared in between."
        yield Finding(
            "no_update", "error", "", evidence.step, message, "Call zero_grad() before backward(), not before step()."
        )
        return
    later = evidence.later
    if later is None or any(later.moved.values()):
        return
    if later.steps > 0 and trainable and _is_kept_to_itself(evidence):
        message = f"A loss was computed, and none was differentiated in {later.steps} steps: no parameter ever had a gradient."
        advice = "Return the loss from training_step; in manual optimisation call self.manual_backward(loss)."
        yield Finding("no_update", "error", "", evidence.step, message, advice)
    elif not (arrived := [g for g in later.gradients.values() if g]) or not all(map(math.isfinite, arrived)):
        return
    elif later.steps == 0 and later.batches > 1:
        message = f"No optimiser step was taken in {later.batches} batches, although gradients arrive."
        yield Finding(
            "no_update", "error", "", evidence.step, message, "Call optimizer.step() after backward in training_step."
        )
    elif later.steps > 0 and later.rate == 0 and not evidence.plan.scheduled:
        message = (
            f"All weights are as at the start after {later.steps} steps: the learning rate is 0, and no schedule raises it."
        )
        yield Finding("no_update", "error", "", evidence.step, message, "Give the optimiser a rate above 0.", {"lr": 0.0})
    elif later.steps > 0 and later.rate > 0:
        message = (
            f"All weights are the same to the bit after {later.steps} steps at lr {later.rate:.2g}, although gradients arrive."
        )
        advice = "Look for a second copy of the model in the optimiser, or for code that restores the weights in every step."
        yield Finding("no_update", "error", "", evidence.step, message, advice, {"lr": later.rate})


def _is_kept_to_itself(evidence: Evidence) -> bool:
    """Tell whether the first step computed a loss, and neither that nor a later one was differentiated."""
    later = evidence.later
    never = later is not None and not later.losses and all(norm is None for norm in later.gradients.values())
    return never and bool(evidence.losses) and not evidence.differentiated


@rule(explains=["oscillating_loss", "loss_diverging", "exploding_gradient", "nan_loss", "lr_too_high"])
def gradients_not_zeroed(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are never set back, so each step follows the sum of all gradients so far.

    What it means: it acts like momentum of 1, which does not forget: training oscillates or diverges (Humbatova et al. 2020,
    taxonomy "missing zero_grad"). Typical causes: `optimizer_zero_grad` overridden and empty, `zero_grad()` lost from a manual
    loop, or called once per epoch.

    How it is measured: after an optimiser's step, its gradients are looked at before every backward pass until its next step.
    If they were there each time, they were carried over.

    Threshold: carried over at 2 consecutive steps of an optimiser, and set back at none of its steps.

    Not an alarm: accumulation over batches (no step lies in between); gradients that another network's backward pass leaves
    behind in a GAN, as long as they are cleared before their owner's turn.

    What to do: `optimizer.zero_grad()` before each `backward()`.
    """
    later = evidence.later
    if later is not None and later.carried >= CARRIED:
        message = (
            f"Gradients were carried over at {later.carried} steps of {later.carried}: each step adds all gradients before it."
        )
        advice = "Call optimizer.zero_grad() before backward(); do not override optimizer_zero_grad with nothing."
        yield Finding("gradients_not_zeroed", "error", "", evidence.step, message, advice, {"carried": later.carried})
