"""Try every network with every compression: results to a JSON file, the table to a page.

nice -n 19 python -m paretopress.tests.bench.coverage --json runs/coverage.json --page docs/coverage.md
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

from paretopress.policies.files import write_text

from .columns import COLUMNS
from .networks import NETWORKS
from .page import render
from .run import run


def main() -> None:
    """Fill the cells that are missing and write the page."""
    arguments = _parser().parse_args()
    networks = [network for network in NETWORKS if any(fnmatchcase(network.label, name) for name in arguments.only)]
    result = run(arguments.json, networks, arguments.columns, arguments.limit, arguments.fresh)
    if arguments.page is not None:
        write_text(arguments.page, render(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paretopress.tests.bench.coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, default=Path("runs/coverage.json"), help="cells it holds are kept")
    parser.add_argument("--page", type=Path, help="where the table is written")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, such as 'resnet*'")
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time after which a cell is ended")
    parser.add_argument("--fresh", action="store_true", help="run the cells again that the file holds")
    return parser


if __name__ == "__main__":
    main()
