"""Starts the cells one after the other, each in its own process, and keeps what came out.

The results file is JSON, ``{"cells": {name: {column: cell}}, ...}``; a cell that it holds is not run again.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretopress.policies.files import write_text

from .cell import send_cell
from .networks import Network

PACKAGES = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnxruntime")
# On a busy machine a cell gets a part of a core; one that sleeps for good must end too.
PATIENCE = 10


def load(path: Path) -> dict[str, Any]:
    """The results so far; an empty table where there are none."""
    return json.loads(path.read_text()) if path.is_file() else {"versions": {}, "cells": {}}


def run(
    path: Path, networks: Sequence[Network], columns: Sequence[str], cpu_limit_s: int, fresh: bool = False
) -> dict[str, Any]:
    """Fill the cells that are missing, or all of the named ones; the file is written after each.

    Parameters
    ----------
    cpu_limit_s
        Seconds of processor time after which a cell is ended and recorded as failed; on the clock it has ten times as many.
    """
    result = load(path)
    result["versions"] = {name: version(name) for name in PACKAGES}
    for network in networks:
        row = result["cells"].setdefault(network.name, {})
        for column in columns:
            if fresh or column not in row:
                row[column] = run_cell(network, column, cpu_limit_s)
                write_text(path, json.dumps(result, indent=1) + "\n")
                shown = row[column]
                print(f"{network.name}  {column}: {shown['status']}, {shown['cpu_seconds']:.0f} s", file=sys.stderr)
                if shown["reason"]:
                    print(f"    {shown['reason']}", file=sys.stderr)
    return result


def run_cell(network: Network, column: str, cpu_limit_s: int) -> dict[str, Any]:
    """One cell in its own process; a crash and a hang are results like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preload"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_cell, args=(theirs, network, column, cpu_limit_s))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE * cpu_limit_s):
            return _failed(f"not done after {PATIENCE * cpu_limit_s} s on the clock", PATIENCE * cpu_limit_s)
        cell: dict[str, Any] = ours.recv()
        return cell
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return _failed(f"not done after {cpu_limit_s} s of processor time", cpu_limit_s)
        return _failed(f"the process died with exit code {process.exitcode}", 0)
    finally:
        process.kill()
        process.join()


def _failed(reason: str, cpu_seconds: int) -> dict[str, Any]:
    return {"status": "fails", "reason": reason, "figures": {}, "cpu_seconds": float(cpu_seconds)}
