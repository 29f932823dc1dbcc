"""What `requires_grad` was to do, and does not, and what an average leaves out: parts of rules that look back at a run's end."""

from collections.abc import Collection, Mapping, Sequence

from lit_training.diagnosis.finding import Finding

__all__ = ["averaged_in_part", "froze_in_vain", "never_thawed", "thawed_in_vain", "thawed_unheld"]


def thawed_in_vain(flags: Mapping[str, bool], frozen: Mapping[str, bool], step: int = 0) -> list[Finding]:
    """Say so of each module that was to be thawed by `module.requires_grad = True`, and all of whose parameters are frozen.

    Args:
        flags: what the attribute says, by module (`modules.flags`).
        frozen: by parameter whether it is frozen, and was not declared so.
        step: optimiser steps done.

    >>> frozen = {"body.weight": True, "head.weight": True, "head.bias": True}
    >>> [finding.where for finding in thawed_in_vain({"head": True, "body": False}, frozen)]
    ['head.weight']
    >>> thawed_in_vain({"head": True}, {**frozen, "head.bias": False})
    []
    """
    found = []
    for name in (name for name, says in flags.items() if says):
        own = [parameter for parameter in frozen if _inside(parameter, name)]
        if own and all(frozen[parameter] for parameter in own):
            message = (
                f"{name}.requires_grad = True sets an attribute that a module does not have, and its parameters stay frozen."
            )
            advice = f"Call {name}.requires_grad_(True)."
            found.append(Finding("frozen_by_accident", "error", own[0], step, message, advice))
    return found


def froze_in_vain(flags: Mapping[str, bool], learning: Collection[str], step: int = 0) -> list[Finding]:
    """Say so of each module that was to be frozen by `module.requires_grad = False`, and that learns.

    >>> [finding.where for finding in froze_in_vain({"head": True, "body": False}, ["body.weight", "head.weight"])]
    ['body']
    """
    found = []
    for name in (name for name, says in flags.items() if not says):
        if any(_inside(parameter, name) for parameter in learning):
            message = f"{name}.requires_grad = False sets an attribute that a module does not have, and it goes on learning."
            advice = f"Call {name}.requires_grad_(False)."
            found.append(Finding("frozen_by_accident", "warning", name, step, message, advice))
    return found


def thawed_unheld(names: Sequence[str], step: int = 0) -> list[Finding]:
    """Say so of parameters that were thawed during the run, and that no optimiser holds.

    >>> [(f.rule, f.where) for f in thawed_unheld(["body.0.weight", "body.0.bias"])], thawed_unheld([])
    ([('not_in_optimizer', 'body.0.weight')], [])
    """
    if not names:
        return []
    message = (
        f"{len(names)} parameter(s) were thawed during the run and get gradients but are in no optimiser, {names[0]} first."
    )
    advice = "Give the optimiser all parameters from the start, or optimizer.add_param_group({'params': thawed}) when thawing."
    return [Finding("not_in_optimizer", "error", names[0], step, message, advice, {"parameters": len(names)})]


def never_thawed(fresh: Mapping[str, bool], step: int = 0) -> list[Finding]:
    """Say so of weights that a fine-tuning callback kept frozen to the end, if most of them look as they were drawn.

    >>> [f.where for f in never_thawed({"body.0.weight": True, "body.2.weight": True})], never_thawed({"body.0.weight": False})
    (['body.0.weight'], [])
    """
    drawn = [name for name, looks_drawn in fresh.items() if looks_drawn]
    if 2 * len(drawn) <= len(fresh):
        return []
    message = (
        f"{len(drawn)} weight(s) that look freshly initialised were to be thawed, and stayed frozen to the end of the run."
    )
    advice = "Thaw them earlier (unfreeze_backbone_at_epoch=), or load what the body was trained to."
    return [Finding("frozen_by_accident", "error", drawn[0], step, message, advice, {"weights": len(drawn)})]


def _inside(parameter: str, module: str) -> bool:
    return not module or parameter.startswith(f"{module}.")


def averaged_in_part(norms: Sequence[str], step: int = 0) -> list[Finding]:
    """Say so of batch norms whose gains follow others, as in a running average of a network, and whose statistics do not.

    >>> [(f.rule, f.where) for f in averaged_in_part(["teacher.1"])], averaged_in_part([])
    ([('bn_stats', 'teacher.1')], [])
    """
    if not norms:
        return []
    message = f"{len(norms)} batch-norm layer(s) of a copy follow another's gains and biases, not its running statistics."
    advice = "Copy the buffers, too: for mine, its in zip(copy.buffers(), model.buffers()): mine.copy_(its)."
    return [Finding("bn_stats", "error", norms[0], step, message, advice, {"norms": len(norms)})]
