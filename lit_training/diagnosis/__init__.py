"""Diagnosis: evidence from a step of training, rules from evidence to findings, findings in the order of causes."""

from lit_training.diagnosis.finding import Finding, Severity, is_alarm, save_findings

__all__ = ["Finding", "Severity", "is_alarm", "save_findings"]
