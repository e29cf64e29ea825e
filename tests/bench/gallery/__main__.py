"""Draw what each technique does to real weights: pictures and figures to a folder, the table to a page.

nice -n 19 python -m paretopress.tests.bench.gallery --folder docs/gallery --page docs/gallery.md
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from paretopress.policies.files import write_bytes, write_text

from .exhibits import EXHIBITS
from .networks import NETWORKS
from .page import render


def main() -> None:
    """Draw the techniques that are asked for, and write the page of all."""
    parser = argparse.ArgumentParser(
        prog="paretopress.tests.bench.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("docs/gallery"), help="of pictures and figures.json")
    parser.add_argument("--page", type=Path, default=Path("docs/gallery.md"))
    parser.add_argument("--only", nargs="+", choices=list(EXHIBITS), default=list(EXHIBITS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = functools.cache(lambda name: NETWORKS[name]())
    given.folder.mkdir(parents=True, exist_ok=True)
    kept = given.folder / "figures.json"
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in given.only:
        canvas, found = EXHIBITS[name].draw(network(EXHIBITS[name].network))
        write_bytes(given.folder / f"{name}.png", canvas.png())
        figures[name] = {key: _short(value) for key, value in asdict(found).items()}
    write_text(kept, json.dumps({name: figures[name] for name in EXHIBITS if name in figures}, indent=1) + "\n")
    if figures.keys() == EXHIBITS.keys():
        write_text(given.page, render(figures))


def _short(value: Any) -> Any:
    """More digits would differ from machine to machine."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
