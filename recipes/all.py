"""Run every recipe and rebuild the gallery: recipes/README.md and its figures.

python recipes/all.py            # about 20 minutes on 2 cores
python recipes/all.py --smoke --out smoke    # seconds each, the gallery goes to --out
python recipes/all.py --only init_depth,alexnet
"""

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
NAMES = {
    "init_depth": "Which initialisation trains deep networks of rectifiers?",
    "regularisation_2d": "What does regularisation do to a decision boundary and to the weights?",
    "alexnet": "Are AlexNet's two towers one network with two groups, and what do groups cost?",
    "preprocessing": "What do scaling, cropping, flipping and averaging buy?",
    "sgd_momentum": "Is training three steps, and what does momentum add?",
}

INTRO = """# Recipes

Each script reproduces a result of the lecture on real data through the public API, and prints what holds here and what does
not: means and 95 % intervals over seeds. `--smoke` runs in seconds, `--full` at the paper's scale. `python recipes/all.py` makes
this page. `quickstart.py` is the main job; `your_project.py` with `your_project.yaml` is the template to copy.
"""


def run(name: str, out: Path, options: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--out", str(out / name), *options], check=True)
    return time.perf_counter() - start


def section(name: str, out: Path, figure: str, seconds: float) -> str:
    """Return a recipe's part of the gallery."""
    with (out / name / f"{name}.claims.csv").open() as file:
        claims = list(csv.DictReader(file))
    cells = [[c["claim"], c["measured"], "yes" if c["holds"] == "True" else "**no**"] for c in claims]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    table = ["| the lecture's claim | measured | holds here |", "|---|---|---|", *rows]
    head = [
        f"## {NAMES[name]}",
        "",
        f"`python recipes/{name}.py` ({seconds / 60:.1f} minutes on 2 cores)",
        "",
        f"![{name}]({figure})",
        "",
    ]
    return "\n".join([*head, *table, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder for everything, the gallery too; default: runs, and recipes for the gallery"
    )
    parser.add_argument("--only", type=lambda value: value.split(","), default=list(NAMES), help="recipes, separated by commas")
    args, options = parser.parse_known_args()
    unknown = set(args.only) - set(NAMES)
    if unknown:
        parser.error(f"--only: unknown {sorted(unknown)}; there are {list(NAMES)}")
    if args.out is None and ("--smoke" in options or set(args.only) != set(NAMES)):
        args.out = Path("runs") / "part"
    out, gallery = args.out or Path("runs"), args.out or HERE
    seconds = {name: run(name, out, options) for name in args.only}
    figures = gallery / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        small = (
            Image.open(out / name / f"{name}.png")
            .convert("RGB")
            .quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        )
        small.save(figures / f"{name}.png", optimize=True)
    parts = [section(name, out, f"figures/{name}.png", seconds[name]) for name in args.only]
    (gallery / "README.md").write_text("\n".join([INTRO, *parts]))
    print(f"gallery: {gallery / 'README.md'}; all in {sum(seconds.values()) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
