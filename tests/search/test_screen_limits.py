"""What candidates are held to before recovery."""

from __future__ import annotations

from typing import Any, cast

import pytest
from paretopress.search.config import make_config
from paretopress.search.session import Session
from paretopress.tests.search.runs import small

DENSE = {"error_pct": 2.0, "validation_error_pct": 3.0, "latency_ms": 1.0, "stored_bytes": 1e6}
VALUES = {"error_pct": 4.0, "stored_bytes": 99_000.0, "latency_ratio": 1.0}


def session(**changes: Any) -> Session:
    nothing = cast(Any, None)
    made = Session(make_config(small(**changes)), nothing, nothing, nothing, nothing)
    made.__dict__["baseline"] = DENSE
    return made


def test_stored_bytes_leave_room_for_what_recovery_adds() -> None:
    assert session().screen_violations(VALUES)["stored_bytes"] < 0
    held = session(search__screen_growth=0.03)
    assert held.screen_violations(VALUES)["stored_bytes"] == pytest.approx(99_000 * 1.03 / 100_000 - 1)
    # What is shipped is held to the budget itself, and the others are as they are.
    assert {limit.metric: limit.bound for limit in held.validation_limits}["stored_bytes"] == 100_000
    assert held.screen_violations(VALUES)["latency_ratio"] == session().screen_violations(VALUES)["latency_ratio"]


def test_without_recovery_there_is_nothing_to_leave_room_for() -> None:
    held = session(search__screen_growth=0.03, recovery__epochs=0)
    assert held.screen_violations(VALUES) == session(recovery__epochs=0).screen_violations(VALUES)
