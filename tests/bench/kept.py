"""How many members of finished fronts keep their budgets on the test split; run by ``make bench-kept``.

Each of ``PROBLEMS`` is searched with its seeds by the command line, in a directory of its own; finished runs are not searched
again, and one that was stopped goes on. What came out stands in a JSON file, from which the tables on stdout are made.

To compare with an earlier commit, measure its tree first, then this one against it:

    python -m paretopress.tests.bench.kept --tree ../earlier/paretopress --json runs/kept-before.json --runs runs/kept-before
    python -m paretopress.tests.bench.kept --before runs/kept-before.json

A member is *marked* where its front did not promise the budgets before the test split was read. A tree that knows no marks
marks nothing: all its members count as promised.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from paretopress.search.cli import main; main()"
FIGURES = {"stored_bytes": "smallest file, B", "latency_ratio": "lowest latency"}
MAX_GROWTH = 0.15
"""By so much may the smallest figure of an unmarked member exceed the one before."""
MIN_SHARE = 0.9
"""At least so many of the unmarked members keep every budget."""


@dataclass(frozen=True)
class Problem:
    """A configuration that is searched.

    Parameters
    ----------
    config
        File name in ``configs``, without its ending.
    seeds
        Each is a run of its own.
    weights
        A safetensors file, relative to the tree, that is given without its metadata, as a stranger's; ``None``: as configured.
    """

    config: str
    seeds: tuple[int, ...]
    weights: str | None = None

    @property
    def name(self) -> str:
        """Return the name of its runs."""
        return self.config if self.weights is None else f"{self.config}_stranger"


PROBLEMS = (
    Problem("quickstart", (0, 1, 2, 3, 4)),
    Problem("digits_controls", (0, 1, 2, 3, 4)),
    Problem("mnist_lenet300", (0, 1, 2, 3, 4)),
    Problem("mnist_lenet5", (0,)),
    Problem("mnist_lenet5_small", (0,)),
    Problem("cifar10_resnet20", (0,)),
    Problem("cifar10_resnet20", (0,), weights="configs/weights/cifar10_resnet20.safetensors"),
)


@dataclass(frozen=True)
class Tree:
    """A checkout whose package is searched with.

    Parameters
    ----------
    root
        Its root, which is the package.
    python
        The interpreter.
    runs
        Where its runs lie.
    """

    root: Path
    python: str
    runs: Path

    def search(self, problem: Problem, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
        """Search one problem, or go on with it, and return its record.

        Raises
        ------
        subprocess.CalledProcessError
            Where the search fails; what it printed stands in a file beside its directory.
        """
        directory = self.runs / f"{problem.name}-{seed}"
        changes = [f"seed={seed}", *overrides]
        if problem.weights is not None:
            changes.append(f"model.weights={self._without_metadata(problem.weights)}")
        config = self.root / "configs" / f"{problem.config}.yaml"
        command = [self.python, "-c", PROGRAM, "search", str(config), "--out", str(directory)]
        command += [part for change in changes for part in ("--set", change)]
        # The folder of a checkout may have any name: a link gives it the package's.
        link = self.runs / "package" / "paretopress"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(self.root, target_is_directory=True)
        start = time.perf_counter()
        with directory.with_name(f"{directory.name}.log").open("ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(link.parent)}
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=self.root, env=environment)
        seconds = time.perf_counter() - start
        front = json.loads((directory / "front.json").read_text())
        return {"config": problem.config, "seed": seed, "seconds": seconds, **summarize_front(front)}

    def _without_metadata(self, weights: str) -> Path:
        path = self.runs / Path(weights).name
        save_file(load_file(self.root / weights), path)
        return path

    def commit(self) -> str | None:
        """Return the commit that is checked out, or ``None`` where there is no repository."""
        command = ["git", "-C", str(self.root), "rev-parse", "--short", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None


def summarize_front(front: Mapping[str, Any]) -> dict[str, Any]:
    """Return budgets, the dense network's figures and each member's from the content of a ``front.json``."""
    shown = ("error_pct", "validation_error_pct", *FIGURES)
    members = [
        {
            "id": member["id"],
            "marked": not member.get("certain", True),
            "misses": member["misses"],
            **{name: member["metrics"][name] for name in shown},
        }
        for member in front["front"]
    ]
    dense = {name: front["baseline"][name] for name in shown if name in front["baseline"]}
    return {"budgets": front["budgets"], "dense": dense, "members": members}


def best_figures(members: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the least of each of ``FIGURES`` among members, ``None`` where there are none."""
    return {name: min((member[name] for member in members), default=None) for name in FIGURES}


def summarize_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many members a run has, how many of them are marked, and how many keep every budget."""
    members = record["members"]
    unmarked = [member for member in members if not member["marked"]]
    return {
        "members": len(members),
        "marked": len(members) - len(unmarked),
        "members_that_keep": sum(not member["misses"] for member in members),
        "unmarked_that_keep": sum(not member["misses"] for member in unmarked),
        **best_figures(unmarked),
    }


def summarize_all(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the totals over all runs and the shares that keep every budget, ``None`` of no members."""
    rows = [summarize_run(record) for record in records.values()]
    counts = ("members", "marked", "members_that_keep", "unmarked_that_keep")
    totals: dict[str, Any] = {name: sum(row[name] for row in rows) for name in counts}
    unmarked = totals["members"] - totals["marked"]
    totals["share_of_all"] = totals["members_that_keep"] / totals["members"] if totals["members"] else None
    totals["share_of_unmarked"] = totals["unmarked_that_keep"] / unmarked if unmarked else None
    return totals


def format_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table with a row for each run."""
    titles = ["run", "members", "marked", "all that keep", "unmarked that keep", *FIGURES.values(), "seconds"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, record in records.items():
        row = summarize_run(record)
        unmarked = row["members"] - row["marked"]
        cells = [
            name,
            str(row["members"]),
            str(row["marked"]),
            f"{row['members_that_keep']} of {row['members']}",
            f"{row['unmarked_that_keep']} of {unmarked}",
            *(_format_figure(row[figure]) for figure in FIGURES),
            f"{record['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    totals = summarize_all(records)
    lines.append(
        f"\nOf all {totals['members']} members {_format_share(totals['share_of_all'])} keep every budget on the test split,"
        f" of the {totals['members'] - totals['marked']} that are not marked {_format_share(totals['share_of_unmarked'])}"
        f" (to be at least {MIN_SHARE:.0%})."
    )
    return "\n".join(lines)


def format_comparison(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of the least figures, those before beside those of the unmarked members after."""
    titles = ["run", "figure", "before, all", "before, those that keep", "after, unmarked", "growth", "growth (keep)"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in [name for name in after if name in before]:
        of_all = best_figures(before[name]["members"])
        of_keeping = best_figures([member for member in before[name]["members"] if not member["misses"]])
        unmarked = summarize_run(after[name])
        for figure, title in FIGURES.items():
            values = [of_all[figure], of_keeping[figure], unmarked[figure]]
            growths = [_format_growth(values[0], values[2]), _format_growth(values[1], values[2])]
            cells = [name, title, *(_format_figure(value) for value in values), *growths]
            lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\nGrowth is to be at most {MAX_GROWTH:+.0%} in what the run's budgets are on.")
    return "\n".join(lines)


def _format_figure(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}x"


def _format_share(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _format_growth(before: float | None, after: float | None) -> str:
    return "none" if before is None or after is None else f"{after / before - 1:+.1%}"


def select_runs(names: Sequence[str], seeds: Sequence[int] | None) -> Iterator[tuple[Problem, int]]:
    """Yield the problems of these names (all, where there are none) with those of their seeds that are among ``seeds``."""
    for problem in PROBLEMS:
        for seed in problem.seeds:
            if problem.name in (names or [problem.name]) and (seeds is None or seed in seeds):
                yield problem, seed


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all, so that a stop in between loses no finished run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/kept.json"), help="what came out of finished runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/kept"), help="where the run directories lie")
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout; this one where not given")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that searches")
    parser.add_argument(
        "--only", nargs="*", default=[], choices=sorted({p.name for p in PROBLEMS}), help="all by default"
    )
    parser.add_argument("--seeds", nargs="*", type=int, help="only these of each problem's")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="such as pool.workers=1, for all runs"
    )
    parser.add_argument("--before", type=Path, help="the JSON file of an earlier commit, to compare with")
    return parser.parse_args()


def main() -> None:
    """Search what is not finished yet, and print the tables."""
    arguments = parse_arguments()
    tree = Tree(arguments.tree.resolve(), arguments.python, arguments.runs.resolve())
    content: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"runs": {}}
    content["tree"] = {"commit": tree.commit(), "overrides": arguments.overrides}
    failed = []
    for problem, seed in select_runs(arguments.only, arguments.seeds):
        name = f"{problem.name}, seed {seed}"
        if name in content["runs"]:
            continue
        print(f"kept: {name}", file=sys.stderr, flush=True)
        try:
            content["runs"][name] = tree.search(problem, seed, arguments.overrides)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            log = tree.runs / f"{problem.name}-{seed}.log"
            print(f"kept: {name} failed with exit code {error.returncode}, see {log}", file=sys.stderr, flush=True)
            continue
        content["totals"] = summarize_all(content["runs"])
        write_json(arguments.json, content)
    print(format_table(content["runs"]))
    if arguments.before is not None:
        print("\n" + format_comparison(json.loads(arguments.before.read_text())["runs"], content["runs"]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
