"""Compare methods of search on problems whose answers cost nothing; JSON to a file or stdout, a page where asked for.

python -m paretopress.tests.bench.tabular --seeds 10 --json result.json --html result.html
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from paretopress.evaluators.cores import available_cores
from paretopress.policies.files import write_text

from .methods import METHODS
from .overhead import overhead
from .page import render
from .run import PROBLEMS, compare
from .summary import summarise


def main() -> None:
    """Run, print a table on stderr and write the results."""
    arguments = _parser().parse_args()
    problems = list(PROBLEMS) if arguments.problem == "both" else [arguments.problem]
    start = time.monotonic()
    result: dict[str, Any] = {"evaluations": arguments.evaluations, "problems": {}}
    for name in problems:
        comparison = compare(name, arguments.methods, arguments.seeds, arguments.evaluations, arguments.workers)
        result["problems"][name] = summarise(comparison)
        if name == "synthetic":
            result["overhead"] = overhead(comparison)
    result["seconds"] = time.monotonic() - start
    for name, found in result["problems"].items():
        print(_table(name, found), file=sys.stderr)
    text = json.dumps(result, indent=1, allow_nan=False)
    if arguments.json is not None:
        write_text(arguments.json, text + "\n")
    if arguments.html is not None:
        write_text(arguments.html, render(result))
    if arguments.json is None:
        print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paretopress.tests.bench.tabular",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problem", choices=[*PROBLEMS, "both"], default="both")
    parser.add_argument("--seeds", type=_positive, default=10, help="instances, and seeds of the methods")
    parser.add_argument("--evaluations", type=_positive, default=300, help="of each method on each instance")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--workers", type=_positive, default=available_cores(), help="processes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where the result goes; stdout by default")
    parser.add_argument("--html", type=Path, metavar="OUT", help="where the page goes")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return number


def _table(name: str, found: dict[str, Any]) -> str:
    """Mean ratios and the paired difference to the static sweep, as text."""
    steps = list(next(iter(found["methods"].values()))["mean"])
    lines = [f"{name}: hypervolume over the best known, mean of {len(found['seeds'])} seeds"]
    lines.append(f"{'method':18s}" + "".join(f"{step:>8s}" for step in steps) + f"{'ms/cand.':>10s}")
    for method, row in found["methods"].items():
        means = "".join(f"{row['mean'][step]:8.3f}" for step in steps)
        lines.append(f"{method:18s}{means}{1e3 * row['thinking_s_per_candidate']:10.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
