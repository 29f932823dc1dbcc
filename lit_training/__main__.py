"""Command line: `python -m lit_training explain [RULE]`."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from lit_training.diagnosis.rules import RULES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    >>> main(["explain", "init_vanish"])
    no rule is called 'init_vanish'; nearest: init_vanishing, ...
    2
    """
    parser = argparse.ArgumentParser(prog="python -m lit_training", description="Explain what lit-training's diagnosis says.")
    commands = parser.add_subparsers(dest="command", required=True)
    explain = commands.add_parser("explain", help="explain a rule, or list all rules")
    explain.add_argument("rule", nargs="?", help="the rule's id, as in a finding")
    return _explain(parser.parse_args(arguments).rule)


def _explain(rule_id: str | None) -> int:
    pages = {rule.id: rule.page for rule in RULES}
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
