"""Published compressions of small networks, made again by ``paretopress search``; a row each in ``docs/results.md``.

Run by ``make papers``. Each configuration of ``configs/papers`` is searched in ``runs/papers``; what is there already is not
searched again. Networks that share a recipe share the weights of whichever was trained first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from paretopress.policies.coding.press import decode
from paretopress.search.config import Config, load_config
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "papers"
RUNS = ROOT / "runs" / "papers"
RESULTS = ROOT / "docs" / "results.md"
START, END = "<!-- papers: start -->", "<!-- papers: end -->"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Published:
    """A figure of a paper.

    Parameters
    ----------
    what
        Method and network.
    error_pct
        Test error; ``None`` where the paper gives none on this data.
    times
        How many times less there is of ``counted``; ``None`` where the paper does not say.
    counted
        ``stored``: bytes of the file; ``weights`` or ``weights of these``: weights that are not zero, of all or of ``layers``.
    paper
        Where the figure stands.
    layers
        A pattern of the layers whose weights are counted, where these are not all.
    """

    what: str
    error_pct: float | None
    times: float | None
    counted: str
    paper: str
    layers: str | None = None


PUBLISHED = {
    "deep_compression_lenet300": Published(
        "Deep Compression, LeNet-300-100", 1.58, 40, "stored", "1510.00149, table 1"
    ),
    "deep_compression_lenet5": Published("Deep Compression, LeNet-5", 0.74, 39, "stored", "1510.00149, table 1"),
    "surgery_lenet300": Published("Dynamic Network Surgery, LeNet-300-100", 1.99, 56, "weights", "1608.04493, table 1"),
    "hashed_lenet300": Published(
        "Hashed weights at 1/8, LeNet-300-100 (published: 1,000 hidden neurons)", 1.45, 8, "stored", "1504.04788"
    ),
    "binaryconnect_lenet300": Published(
        "BinaryConnect, LeNet-300-100 (published: three layers of 1,024)", 1.29, None, "stored", "1511.00363, table 2"
    ),
    "binaryconnect_stochastic_lenet300": Published(
        "the same, stochastic (published: three layers of 1,024, tested with real-valued weights)",
        1.18,
        None,
        "stored",
        "1511.00363, table 2",
    ),
    "merging_lenet300": Published("Neurons merged without data, LeNet-300-100", None, 6.7, "weights", "1507.06149"),
    "product_lenet300": Published(
        "Product quantization, LeNet-300-100, 1 bit a weight", None, None, "stored", "1412.6115"
    ),
    "residual_lenet300": Published("Residual quantization at equal bits", None, None, "stored", "1412.6115"),
    "surgery_lenet5": Published("Dynamic Network Surgery, LeNet-5", 0.91, 108, "weights", "1608.04493, table 1"),
    "deepneuron_lenet5": Published(
        "DeepNeuron on the linear layers of LeNet-5", 0.93, 67.04, "weights of these", "1606.07326", "fc*"
    ),
    "soft_sharing_lenet300": Published("Soft weight-sharing, LeNet-300-100", 1.94, 64, "stored", "1702.04008, table 2"),
    "soft_sharing_lenet5": Published("Soft weight-sharing, LeNet-5", 0.97, 162, "stored", "1702.04008, table 2"),
}


def reach(name: str, overrides: list[str]) -> dict[str, Any]:
    """Search one configuration; its best member on validation pictures, and the seconds it took."""
    path, out = CONFIGS / f"{name}.yaml", RUNS / name
    config = load_config(path)
    weights = RUNS / f"dense-{_recipe(config)}.safetensors"
    trained = weights.is_file()
    changes = [f"model.weights={weights}", "model.train=null"] if trained else []
    start = time.perf_counter()
    program = [sys.executable, "-c", "from paretopress.search.cli import main; main()"]
    command = [*program, "search", str(path), "--out", str(out)]
    command += [part for change in [*changes, *overrides] for part in ("--set", change)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=None)
    seconds = time.perf_counter() - start
    if not trained:
        shutil.copy(out / "dense.safetensors", weights)
    found = json.loads((out / "front.json").read_text())
    best = min(found["front"], key=lambda member: member["metrics"]["validation_error_pct"])
    metrics = best["metrics"]
    dense = found["baseline"]
    return {
        "error_pct": metrics["error_pct"],
        "stored_bytes": metrics["stored_bytes"],
        "params": metrics["params"],
        "dense_error_pct": dense["error_pct"],
        "dense_params": dense["params"],
        "seconds": seconds,
        "trained_first": not trained,
        "weights": _nonzero(out / "artefacts" / best["id"] / "model.press"),
        "dense_weights": {name: array.size for name, array in load_file(weights).items() if array.ndim > 1},
    }


def _nonzero(path: Path) -> dict[str, int]:
    """Of each matrix or kernel in a file."""
    arrays = {name: tensor.decode() for name, tensor in decode(path.read_bytes()).tensors.items()}
    return {name: int(np.count_nonzero(array)) for name, array in arrays.items() if array.ndim > 1}


def _recipe(config: Config) -> str:
    """What the dense weights follow from."""
    parts = [part.model_dump(mode="json", exclude_defaults=True) for part in (config.model, config.data)]
    text = json.dumps([*parts, config.seed])
    return f"{config.model.name.partition(':')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def times(published: Published, row: dict[str, Any]) -> float:
    """How many times less the reached network has of what the paper counts."""
    if published.counted == "stored":
        return float(FLOAT_BYTES * row["dense_params"] / row["stored_bytes"])
    if published.layers is not None:
        dense, left = (
            sum(count for name, count in row[which].items() if fnmatchcase(name, published.layers))
            for which in ("dense_weights", "weights")
        )
        return dense / left
    return float(row["dense_params"] / row["params"])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| what | published | reached | stored | dense | seconds | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, published in PUBLISHED.items():
        if name not in rows:
            continue
        row = rows[name]
        claimed = "" if published.error_pct is None else f"{published.error_pct:.2f} %"
        claimed += "" if published.times is None else f"{', ' if claimed else ''}{published.times:g}x"
        counted = "" if published.times is None else f", {times(published, row):.1f}x {published.counted}"
        training = " with the dense network's training" if row["trained_first"] else ""
        lines.append(
            f"| {published.what} | {claimed} | {row['error_pct']:.2f} %{counted} |"
            f" {row['stored_bytes']:,} B | {row['dense_error_pct']:.2f} % | {row['seconds']:.0f}{training} |"
            f" {published.paper} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Reach every figure that is not reached yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PUBLISHED, []], help="which; all where not given")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="such as pool.workers=1, for all of them"
    )
    given = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    record = RUNS / "papers.json"
    rows: dict[str, dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else {}
    for name in given.names or PUBLISHED:
        if name not in rows or given.names:
            print(f"papers: {name}", file=sys.stderr, flush=True)
            rows[name] = reach(name, given.overrides)
            record.write_text(json.dumps(rows, indent=1))
    before, _, rest = RESULTS.read_text().partition(START)
    RESULTS.write_text(f"{before}{START}\n{table(rows)}\n{END}{rest.partition(END)[2]}")
    print(table(rows))


if __name__ == "__main__":
    main()
