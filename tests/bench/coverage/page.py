"""The table as a page of Markdown: a cell says how far the cost fell and in how many seconds, or points to a note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .columns import COLUMNS
from .comparing import FLOAT_TOLERANCE, INT8_TIMES, INT8_TOLERANCE
from .exported import ROUNDING_TIMES, TOLERANCE
from .networks import NETWORKS, Network
from .silenced import TOLERANCE as SILENCED_TOLERANCE
from .silenced import add_groups, describe_groups

COMMAND = "make coverage"
SILENCING = "silencing"
# What a column's cells show of its figures.
SHOWN = {
    "channel pruning": ("macs_ratio", "MACs"),
    "int8 export": ("onnx_bytes_ratio", "ONNX bytes"),
    "low rank": ("macs_ratio", "MACs"),
    "sharing + coding": ("stored_bytes_ratio", "stored bytes"),
    "one process": ("stored_bytes_ratio", "stored bytes"),
}

INTRODUCTION = f"""# Coverage of real networks

Which compressions work on which networks, written by `{COMMAND}` (results: `runs/coverage.json`). Each cell is a process of
its own that builds the network, plans one policy that treats every layer alike, carries it out, exports it and compares:

| column | policy | what must fall |
|---|---|---|
| channel pruning | a quarter of the channels of each group, in multiples of 8 | multiply-accumulates and parameters |
| int8 export | `w8a8` on every layer | the ONNX file |
| low rank | factors with half of a layer's weights, where it has such | multiply-accumulates and parameters |
| sharing + coding | half of the weights pruned, 16 values for the rest | the `.press` file, which is read again bit for bit |
| one process | two policies, each with and without recovery | the `.press` file of the 8-bit one |
| silencing | none; channels that nothing reads are dropped | nothing: the outputs stay |

In "one process" a search's own evaluator makes four members one after the other: a quarter of the channels and 30 % of the
weights pruned, and `w8a8` on every layer, each as built and after some steps of recovery. Each member's ONNX and `.press`
file must be its own network and not an earlier one's: at most {TOLERANCE:g} away, or {ROUNDING_TIMES:g} times what float32's
rounding does to torch's own network where that is more; 8 bit as below.

In "silencing" nothing is exported. Each group of channels loses a half of them, then one, then all groups a half of theirs;
before, the weights that read these channels were set to zero (of a group that nothing reads, those that make them). The
smaller network's outputs must be the same, to {SILENCED_TOLERANCE:g} of their spread; then the group counts as exact. Refused are
groups whose channels are all needed, each with its reason, which a search that is asked to prune them tells: the outputs
themselves, grouped convolutions, norms and attention over channels, and moves that some other number of channels would
bring to other places.

In the others, the exported file in ONNX Runtime must agree with the compressed network in torch: root mean square difference
over the standard deviation of torch's outputs, at most {FLOAT_TOLERANCE:g}. For 8 bit, where torch rounds weights and
layers' inputs and the file rounds layers' outputs and sums too, it is at most {INT8_TOLERANCE:g}, or {INT8_TIMES:g} times
the distance between torch's 8-bit and float networks where that is more. Weights are random from a seed (none are fetched),
so the table says nothing about accuracy. A cell shows what is left of the cost, and seconds of processor time. Pictures are
as small as the network sensibly takes.
"""


def render(result: Mapping[str, Any]) -> str:
    """The page of the results that ``run`` keeps; networks that have none are left out."""
    notes: list[str] = []
    cells = result["cells"]
    networks = [network for network in NETWORKS if network.name in cells]
    titles = [f"{column} ({_title(column)})" for column in COLUMNS]
    lines = [
        INTRODUCTION,
        _table_line(["network", "family", "pixels", *titles]),
        "|---|---|---|" + "---|" * len(titles),
    ]
    for network in networks:
        row = cells[network.name]
        shown = [_cell(network, column, row.get(column), notes) for column in COLUMNS]
        lines.append(_table_line([f"`{network.name}`", network.family, str(network.size), *shown]))
    lines += [_table_line(["passes", "", "", *(_passes(cells, column) for column in COLUMNS)]), ""]
    lines += [f"Groups of channels of these networks: {describe_groups(add_groups(_cells_of(cells, SILENCING)))}.", ""]
    if notes:
        lines += ["Notes:", "", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""]
    given = [f"`{n.label}` {', '.join(f'{k}={v}' for k, v in n.arguments)}" for n in networks if n.arguments]
    lines += [f"Built with other than the library's arguments: {'; '.join(given)}.", ""] if given else []
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines.append(f"Versions: {versions}. One thread; a cell that takes longer than its limit is recorded as failed.")
    return "\n".join(lines) + "\n"


def _title(column: str) -> str:
    return "groups of channels" if column == SILENCING else f"{SHOWN[column][1]} left"


def _cells_of(cells: Mapping[str, Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    return [row[column] for row in cells.values() if column in row]


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(network: Network, column: str, cell: Mapping[str, Any] | None, notes: list[str]) -> str:
    if cell is None:
        return "not run"
    seconds = f"{cell['cpu_seconds']:.0f} s"
    if cell["status"] == "passes":
        figures = cell["figures"]
        shown = describe_groups(figures) if column == SILENCING else f"{figures[SHOWN[column][0]]:.2f}"
        return f"✓ {shown}, {seconds}"
    notes.append(f"`{network.label}`, {column}: {_one_line(cell['reason'])}")
    return f"{cell['status']} (note {len(notes)}), {seconds}"


def _one_line(reason: str) -> str:
    return " ".join(reason.split()).replace("|", "\\|")


def _passes(cells: Mapping[str, Mapping[str, Any]], column: str) -> str:
    found = [row[column]["status"] for row in cells.values() if column in row]
    return f"**{found.count('passes')} of {len(found)}**"
