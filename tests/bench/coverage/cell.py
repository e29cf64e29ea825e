"""One network and one column, in a process of its own."""

from __future__ import annotations

import resource
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from paretopress.policies.errors import ParetopressError

from .columns import COLUMNS
from .networks import Network, build


def try_cell(network: Network, column: str) -> dict[str, Any]:
    """What came out: ``passes``, ``refused`` (an error of ours, in words) or ``fails`` (anything else), with why."""
    start = time.process_time()
    try:
        model, pictures = build(network)
        finding = COLUMNS[column](model, pictures)
    except ParetopressError as error:
        outcome: dict[str, Any] = {"status": "refused", "reason": str(error), "figures": {}}
    # A crash is a result as well.
    except Exception as error:
        traceback.print_exc()
        outcome = {"status": "fails", "reason": f"{type(error).__name__}: {error}", "figures": {}}
    else:
        status = "fails" if finding.complaints else "passes"
        outcome = {"status": status, "reason": "; ".join(finding.complaints), "figures": dict(finding.figures)}
    return {**outcome, "cpu_seconds": time.process_time() - start}


def send_cell(connection: Connection, network: Network, column: str, cpu_limit_s: int) -> None:
    """Try a cell and send what came out; the system ends the process once it has used its processor time."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit_s, cpu_limit_s + 1))
    torch.set_num_threads(1)
    connection.send(try_cell(network, column))
