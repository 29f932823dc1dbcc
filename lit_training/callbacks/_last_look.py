"""What the end of a run tells about freezing: who was thawed after all, who was not, and whom no optimiser knows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning

from lit_training.callbacks.layer_freezing import declared_frozen
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.freshness import can_tell, looks_fresh
from lit_training.diagnosis.modules import flags, left_out_norms
from lit_training.diagnosis.rule import Filter
from lit_training.diagnosis.rules.detached import joined_later
from lit_training.diagnosis.rules.flags import averaged_in_part, never_thawed, thawed_in_vain, thawed_unheld
from lit_training.diagnosis.rules.learning import thawed_later
from lit_training.selection import ParameterInfo, classify, clean_names, match, names_of

__all__ = ["LastLook"]


@dataclass
class LastLook:
    """Look at a module when an epoch's last batch is done, and when training ends.

    Args:
        frozen: names of the parameters that were frozen at the first step.
        expect_frozen: patterns of those that are meant to be.

    Attributes:
        lost: names of those that were thawed, and got a gradient that no optimiser holds.
        taught: names of the parameters that had a gradient, if there is one optimiser only.
    """

    frozen: Collection[str]
    expect_frozen: Sequence[str]
    lost: list[str] = field(default_factory=list)
    taught: set[str] = field(default_factory=set)

    def note(self, trainer: Trainer, module: LightningModule) -> None:
        """Note `lost` and `taught`, since validation clears the gradients of all."""
        if len(trainer.optimizers) == 1:
            self.taught |= {info.name for info in classify(module) if info.parameter.grad is not None}
        if self.frozen and not self.lost:
            held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
            thawed = (info for info in classify(module) if info.name in self.frozen and info.parameter.grad is not None)
            self.lost = [info.name for info in thawed if id(info.parameter) not in held]

    def revise(self, findings: Sequence[Finding], wanted: Filter, trainer: Trainer, module: LightningModule) -> list[Finding]:
        """Take back what a later thawing of the user's own, or the end of a cut, has answered; add what thawing left out."""
        self.note(trainer, module)
        infos, step = classify(module), trainer.global_step
        kept = thawed_later(findings, {info.name for info in infos if info.parameter.requires_grad})
        kept = joined_later(kept, self.taught)
        expected = match(self.expect_frozen, names_of(infos), "expect_frozen")
        meant = {*expected, *declared_frozen(trainer)}
        resting = {info.name: not info.parameter.requires_grad and info.name not in meant for info in infos}
        new = [
            *thawed_in_vain(flags(clean_names(module)), resting, step),
            *thawed_unheld(self.lost, step),
            *never_thawed(self._asleep(trainer, infos, expected), step),
            *averaged_in_part(left_out_norms(clean_names(module)), step),
        ]
        known = {(finding.rule, finding.where) for finding in kept}
        return [*(f for f in new if (f.rule, f.where) not in known and wanted.wants(f)), *kept]

    def _asleep(self, trainer: Trainer, infos: Sequence[ParameterInfo], expected: Collection[str]) -> dict[str, bool]:
        """Return of each weight that `BackboneFinetuning` kept frozen to the end whether it looks as it was drawn."""
        if not any(isinstance(callback, BackboneFinetuning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            return {}
        still = [info for info in infos if info.name in self.frozen and info.name not in expected]
        weights = {info.name: info.parameter for info in still if not info.parameter.requires_grad}
        return {name: looks_fresh(weight) for name, weight in weights.items() if can_tell(weight.shape)}
