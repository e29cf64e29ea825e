"""The probe and the runtime it stands on; what the clock shows is only asserted coarsely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paretopress.evaluators import latency
from paretopress.evaluators.latency import LatencyProbe
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.architectures import DigitsCNN, ResNet20
from paretopress.policies.errors import CandidateError, ConfigError, DataError
from paretopress.policies.export.onnx import export_onnx

torch.set_num_threads(1)
PICTURE = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


def network(width: int) -> bytes:
    torch.manual_seed(0)
    return export_onnx(ResNet20(width=width).eval(), torch.from_numpy(PICTURE), calibration=None)


@pytest.fixture(scope="module")
def small() -> bytes:
    return network(8)


@pytest.fixture(scope="module")
def large() -> bytes:
    return network(32)


@pytest.fixture(scope="module")
def digits() -> bytes:
    return export_onnx(DigitsCNN(in_channels=3).eval(), torch.zeros(1, 3, 8, 8), calibration=None)


def test_network_against_itself_is_near_one(small: bytes) -> None:
    found = LatencyProbe(small, PICTURE).measure(small, pairs=50, seed=1)
    assert 0.5 < found.ratio < 2 and 0.5 < found.interval[0] <= found.interval[1] < 2
    assert found.latency_ms == pytest.approx(found.ratio * found.reference_ms)
    assert found.pairs >= 50 and found.load >= 0 and found.p95_ms > 0


def test_smaller_network_is_faster(small: bytes, large: bytes) -> None:
    found = LatencyProbe(large, PICTURE).measure(small, pairs=30)
    assert 0 < found.ratio < 1 and 0 < found.ratio_of_minima < 1 and 0 < found.median_ratio < 1


def test_tiny_network_is_measured(digits: bytes) -> None:
    found = LatencyProbe(digits, PICTURE[..., :8, :8]).measure(digits, pairs=20)
    assert 0.5 < found.ratio < 2 and 0 < found.reference_ms < 50


def test_reference_keeps_its_quietest_timings(small: bytes) -> None:
    probe = LatencyProbe(small, PICTURE)
    first, second = (probe.measure(small, pairs=10, seed=seed).reference_ms for seed in (0, 1))
    assert 0 < second <= first


def test_time_limit_ends_the_measurement_after_ten_pairs(small: bytes) -> None:
    assert LatencyProbe(small, PICTURE).measure(small, pairs=1000, seconds=0.0).pairs == 10


class Host:
    """A machine whose other tenants slow it down for a while, the 8-bit candidate more than the reference."""

    def __init__(self) -> None:
        self.disturbed, self.timings, self.made = range(0), 0, 0

    def timer(self, *_: object) -> Host.Timer:
        self.made += 1
        return Host.Timer(self, "candidate" if self.made > 1 else "reference")

    class Timer:
        def __init__(self, host: Host, which: str) -> None:
            self.host, self.which = host, which

        def seconds(self) -> float:
            self.host.timings += self.host.made > 1  # settling, before there is a candidate, is quiet
            slow = self.host.timings in self.host.disturbed
            return {"reference": (1.0, 1.25), "candidate": (0.6, 1.0)}[self.which][slow] * 1e-3


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(latency, "_Timer", host.timer)
    monkeypatch.setattr(latency, "PATIENCE_SECONDS", 0.05)
    return host


def test_a_quiet_spell_is_waited_for(small: bytes, host: Host) -> None:
    host.disturbed = range(1, 250)
    found = LatencyProbe(small, PICTURE).measure(small, pairs=50)
    assert found.ratio == pytest.approx(0.6) and found.reference_ms == pytest.approx(1.0) and not found.wide
    assert found.pairs == 50 + 2 * latency.TURN_PAIRS


def test_a_host_that_stays_slower_is_believed_in_the_end(small: bytes, host: Host) -> None:
    host.disturbed = range(1, 10**9)
    probe = LatencyProbe(small, PICTURE)
    first = probe.measure(small, pairs=50)
    assert first.ratio == pytest.approx(0.8) and first.wide and first.pairs > 100
    last = [probe.measure(small, pairs=50) for _ in range(8)][-1]
    assert last.pairs == 50 and last.reference_ms == pytest.approx(1.0)


def test_more_threads_are_timed_by_wall_time(small: bytes) -> None:
    one = LatencyProbe(small, PICTURE).measure(small, pairs=10)
    two = LatencyProbe(small, PICTURE, threads=2).measure(small, pairs=10)
    assert "CPU time of one thread" in one.method and "wall time on 2 threads" in two.method
    assert two.ratio == two.median_ratio > 0


def test_too_few_pairs_are_refused(small: bytes) -> None:
    with pytest.raises(ConfigError, match="at least 10 latency pairs, got 9"):
        LatencyProbe(small, PICTURE).measure(small, pairs=9)


def test_candidate_that_is_no_network_fails_as_a_candidate(small: bytes) -> None:
    with pytest.raises(CandidateError, match="cannot load this network"):
        LatencyProbe(small, PICTURE).measure(b"no network", pairs=10)


@pytest.mark.parametrize("threads", [1, 2])
def test_session_has_the_threads_asked(small: bytes, threads: int) -> None:
    options = session(small, threads).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)


def test_session_without_threads_is_refused(small: bytes) -> None:
    with pytest.raises(ConfigError, match="at least one thread, got 0"):
        session(small, 0)


def test_logits_do_not_depend_on_the_batch_size(small: bytes) -> None:
    x = np.random.default_rng(1).standard_normal((7, 3, 32, 32), dtype=np.float32)
    whole, parts = (logits(session(small), x, size) for size in (7, 3))
    assert whole.shape == (7, 10)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_logits_of_nothing_are_refused(small: bytes) -> None:
    with pytest.raises(DataError, match="at least one picture"):
        logits(session(small), np.zeros((0, 3, 32, 32), np.float32), 4)
