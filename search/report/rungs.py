"""What each rung of the search saw, and whether it can be believed: does it order candidates as the next one does? Pure."""

from __future__ import annotations

from ..promotion import LEAST_PAIRS, SURE_CORRELATION, rank_correlation
from .data import ReportData, done, number
from .text import seconds_text

RUNG_NAMES = {
    "profile": "bank, layers",
    "kernels": "bank, kernels",
    "stitch": "stitched",
    "learn": "learned",
    "screen": "screened",
    "tune": "tried out",
    "recover": "recovered",
    "test": "tested",
}
_MEASURES = {
    "profile": "damage by one unit's variant, on training pictures",
    "kernels": "latency and counts of a variant's kernels",
    "stitch": "damage by layers of the bank together, on training pictures",
    "learn": "an architecture learned by one training with switches, on all validation pictures",
    "screen": "the exported file, on some validation pictures",
    "tune": "the exported file after a moment of training, on some validation pictures",
    "recover": "the exported file after recovery, on all validation pictures",
    "test": "the exported file, on the test pictures",
}
FEWEST_RECOVERED = 4
ABSENT = "—"


def rung_rows(data: ReportData) -> list[dict[str, str]]:
    """A row for each rung that was used, from the cheapest up; none where the run had no bank."""
    if not any(row["fidelity"] == "profile" for row in data.history):
        return []
    rows = []
    for rung, name in RUNG_NAMES.items():
        mine = [row for row in data.history if row["fidelity"] == rung and row["state"] in ("done", "failed")]
        spent_s = sum(float(row.get("spent_s") or 0.0) for row in mine)
        failed = sum(row["state"] == "failed" for row in mine)
        if mine:
            time = seconds_text(spent_s) if spent_s else ABSENT
            counts = {"done": f"{len(mine) - failed:,}", "failed": f"{failed:,}"}
            rows.append({"rung": name, "what": _MEASURES[rung], **counts, "time": time})
    return rows


def correlations(data: ReportData) -> list[dict[str, str]]:
    """Spearman's correlation of neighbouring rungs over the candidates that both measured, and what it means."""
    lower, upper = _pairs(data, "stitch", "kl", "screen")
    first = rank_correlation(lower, upper, LEAST_PAIRS)
    before, after = _pairs(data, "screen", "error_pct", "recover")
    second = rank_correlation(before, after, FEWEST_RECOVERED)
    return [
        _row("stitched KL, screened error", len(lower), first, _screened(first)),
        _row("screened error, recovered error", len(before), second, _recovered(second)),
    ]


def _pairs(data: ReportData, lower: str, metric: str, upper: str) -> tuple[list[float], list[float]]:
    below = {str(row["id"]): number(row["metrics"], metric) for row in done(data, lower)}
    above = {str(row["id"]): number(row["metrics"], "error_pct") for row in done(data, upper)}
    both = [(b, a) for name, a in above.items() if a is not None and (b := below.get(name)) is not None]
    return [b for b, _ in both], [a for _, a in both]


def _row(between: str, pairs: int, correlation: float | None, meaning: str) -> dict[str, str]:
    text = ABSENT if correlation is None else f"{correlation:.2f}"
    return {"between": between, "pairs": str(pairs), "correlation": text, "meaning": meaning}


def _screened(correlation: float | None) -> str:
    if correlation is None:
        return "Too few pairs, or all alike: nothing is known, and a third of the stitched candidates is screened."
    if correlation >= SURE_CORRELATION:
        return "Stitching orders candidates much as screening does: a third of them is screened."
    return (
        f"Below {SURE_CORRELATION}, stitching is a poor guide: half of the candidates are screened instead of a third."
    )


def _recovered(correlation: float | None) -> str:
    if correlation is None:
        return "Too few pairs, or all alike: nothing is known."
    if correlation >= SURE_CORRELATION:
        return "Screening orders finalists much as recovery does."
    return f"Below {SURE_CORRELATION}, training changes the order of the finalists: more of them would be worth recovering."
