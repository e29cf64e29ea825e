from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paretopress.policies.errors import ConfigError
from paretopress.search.budgets import BUDGET_METRICS, Budget, Limit

DENSE = {
    "error_pct": 2.0,
    "stored_bytes": 400_000.0,
    "onnx_bytes": 450_000.0,
    "latency_ratio": 1.0,
    "latency_ms": 8.0,
    "macs": 3e6,
    "params": 1e5,
    "peak_memory_bytes": 50_000.0,
    "energy_uj_estimate": 30.0,
}
positive = st.floats(1e-3, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("stored", "44kB", Limit("stored_bytes", 44_000)),
        ("stored", "1 MiB", Limit("stored_bytes", 1_048_576)),
        ("stored", 44_000, Limit("stored_bytes", 44_000)),
        ("stored", "0.5x", Limit("stored_bytes", 200_000)),
        ("stored", "+10kB", Limit("stored_bytes", 410_000)),
        ("onnx", "1.5MB", Limit("onnx_bytes", 1_500_000)),
        ("memory", "20KB", Limit("peak_memory_bytes", 20_000)),
        ("error", "0.8", Limit("error_pct", 0.8)),
        ("error", ".8%", Limit("error_pct", 0.8)),
        ("error", "+1.0", Limit("error_pct", 3.0)),
        ("error", "1.5x", Limit("error_pct", 3.0)),
        ("error", "+0", Limit("error_pct", 2.0)),
        ("latency", "3ms", Limit("latency_ms", 3)),
        ("latency", "500us", Limit("latency_ms", 0.5)),
        ("latency", "0.5x", Limit("latency_ratio", 0.5)),
        ("macs", "100M", Limit("macs", 1e8)),
        ("params", "200k", Limit("params", 2e5)),
        ("energy", "2mJ", Limit("energy_uj_estimate", 2000)),
        ("energy", "1e1 uJ", Limit("energy_uj_estimate", 10)),
    ],
)
def test_a_budget_becomes_a_limit_on_a_metric(name: str, text: str | float, limit: Limit) -> None:
    found = Budget.parse(name, text).resolve(DENSE)
    assert found.metric == limit.metric
    assert found.bound == pytest.approx(limit.bound, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stored", "44 parsecs", "unknown unit 'parsecs'; expected a size such as 44kB, or a share"),
        ("stored", "3ms", "unknown unit 'ms'"),
        ("latency", "44kB", "expected a time such as 3ms"),
        ("error", "1kB", "expected a number in per cent such as 0.8, or points above the dense network such as +1.0"),
        (
            "stored",
            "small",
            "expected a size such as 44kB, or a share of the dense network's such as 0.5x, got 'small'",
        ),
        ("stored", "-3kB", "got '-3kB'"),
        ("stored", "0x", "expected a positive number, or +0 for no worse than the dense network; got '0x'"),
        ("stored", "+0.5x", "a share has no sign, + is for what is added; expected a size such as 44kB"),
        ("stored", True, "expected a size such as 44kB, or a share of the dense network's such as 0.5x, got True"),
        ("stored", None, "got None"),
        (
            "memory",
            "1kb",
            "unknown unit 'kb'; expected a size such as 44kB, or a share of the dense network's such as 0.5x;",
        ),
        ("memory", "1kb", "units: B, kB, KB, MB, GB, KiB, MiB, GiB"),
        ("macs", "1x1", "expected a number such as 100M"),
        ("stored", "1e999", "expected a positive number"),
        ("error", "", "got ''"),
        ("error", "nan", "got 'nan'"),
    ],
)
def test_a_wrong_budget_says_what_was_expected_and_what_came(name: str, text: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Budget.parse(name, text)
    assert str(caught.value).startswith(f"budgets.{name}: ") and message in str(caught.value)


@given(name=st.sampled_from(sorted(BUDGET_METRICS)), share=positive)
def test_a_share_scales_with_the_dense_network(name: str, share: float) -> None:
    limit = Budget.parse(name, f"{share!r}x").resolve(DENSE)
    assert limit.bound == pytest.approx(share * DENSE[limit.metric])


@given(name=st.sampled_from(sorted(BUDGET_METRICS)), value=positive)
def test_a_plain_number_is_in_the_unit_of_its_metric(name: str, value: float) -> None:
    assert Budget.parse(name, value).resolve(DENSE) == Limit(BUDGET_METRICS[name], value)


@given(bound=positive, value=st.floats(0, 1e9))
def test_a_limit_is_passed_exactly_where_the_metric_is_above_it(bound: float, value: float) -> None:
    assert (Limit("m", bound).violation({"m": value}) > 0) == (value > bound)


def test_a_violation_is_a_share_of_the_bound() -> None:
    assert Limit("m", 50.0).violation({"m": 75.0}) == 0.5
