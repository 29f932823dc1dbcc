"""Command line: `python -m lit_training explain [RULE]`, and `fit`, `validate`, `test`, `predict` with LightningCLI's YAML."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from lit_training.diagnosis.rules import MONITORED, RULES

_TRAINER = ("fit", "validate", "test", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    >>> main(["explain", "init_vanish"])
    no rule is called 'init_vanish'; nearest: init_vanishing, ...
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m lit_training", description="Explain what the diagnosis says, or train from YAML."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    explain = commands.add_parser("explain", help="explain a rule, or list all rules")
    explain.add_argument("rule", nargs="?", help="the rule's id, as in a finding")
    for name in _TRAINER:
        commands.add_parser(name, help=f"LightningCLI: `{name} --config run.yaml`, `{name} --help`", add_help=False)
    known, rest = parser.parse_known_args(arguments)
    return _explain(known.rule) if known.command == "explain" else _train([known.command, *rest])


def _train(arguments: Sequence[str]) -> int:
    try:
        import jsonargparse  # noqa: F401
    except ImportError:
        print("training from YAML needs jsonargparse: pip install 'lit-training[cli]'", file=sys.stderr)
        return 2
    from lightning.pytorch.cli import LightningCLI

    sys.path.insert(0, "")  # classes of the folder one is in can be named
    LightningCLI(args=list(arguments), save_config_kwargs={"overwrite": True})
    return 0


def _explain(rule_id: str | None) -> int:
    pages = {rule.id: rule.page for rule in (*RULES, *MONITORED)}
    if rule_id is None:
        width = max(map(len, pages))
        for name, page in pages.items():
            print(f"{name:{width}}  {page.splitlines()[0]}")
        return 0
    if rule_id not in pages:
        print(f"no rule is called {rule_id!r}; nearest: {', '.join(get_close_matches(rule_id, pages, n=3, cutoff=0.0))}")
        return 2
    print(f"{rule_id}\n\n{pages[rule_id]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
