"""Latency of a network against a reference, on a machine that others use too.

Candidate and reference are run in turn, so that both meet the same load, and only their ratio is believed. With one
thread the clock is the thread's CPU time, which does not run while others have the core; what remains of the others is
their use of caches and memory, and the quietest timings are free of it. Measured with a network of 0.65 ms and 200 pairs
on two cores, with and without 2 to 4 busy processes beside it, the ratio of the three quietest timings had a standard
deviation of 1 to 2 % from probe to probe and the same mean under every load; the median of the paired ratios had 1 to
6 % and rose by a tenth with the load.

Other tenants of the host slow networks down too, for seconds at a time and not all alike: an 8-bit ResNet-20 took 0.65 of
the dense one's 0.96 ms in quiet spells, whose ratios differ by 0.3 %, and 0.69 to 0.80 in spells where the dense one took
1.2 to 1.3 ms. So the reference's quietest timings are remembered, and a measurement that did not come near them goes on
until it does, within limits. With more threads CPU time is no latency, so there it is the median of paired wall times.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime

from ..policies.errors import ConfigError
from .runtime import session

MIN_PAIRS = 10
QUIETEST = 3
WIDE = 0.03
# A spell is quiet where the reference is as fast as this, over its quietest timings; so many of its timings must be.
QUIET, ENOUGH_QUIET = 1.05, 8
SETTLING_SECONDS = 0.2
# How long a quiet spell is waited for: the time limit so many times over, or so long where there is none.
PATIENCE, PATIENCE_SECONDS, TURN_PAIRS = 10, 10.0, 50
FORGETTING = 1.03
"""How much slower a spell may be and still count as quiet after each wait that was in vain: the host may stay slower."""
# Long against the clock's cost (0.5 us), short enough to fall between two disturbances.
TIMING_SECONDS = 0.25e-3
RESAMPLES = 500


@dataclass(frozen=True)
class Latency:
    """One batch of one picture, candidate against reference.

    Parameters
    ----------
    ratio
        Candidate over reference; smaller is faster.
    interval
        95 % bootstrap interval of ``ratio`` over the pairs.
    ratio_of_minima
        Quickest timing over quickest timing.
    median_ratio
        Median over the pairs.
    latency_ms
        ``ratio`` times ``reference_ms``.
    reference_ms
        The reference's quietest timings since the probe was made.
    p95_ms
        95th percentile of the candidate's timings, load included.
    pairs
        How many were timed.
    load
        Processes that were running, the mean of the last minute.
    wide
        Whether the interval is wider than 3 % of the ratio although the measurement was repeated, or had no time to be; or
        no quiet spell came.
    method
        In a sentence, for the report.
    """

    ratio: float
    interval: tuple[float, float]
    ratio_of_minima: float
    median_ratio: float
    latency_ms: float
    reference_ms: float
    p95_ms: float
    pairs: int
    load: float
    wide: bool
    method: str


class LatencyProbe:
    """Measures candidates against one reference network.

    Parameters
    ----------
    reference
        ONNX file.
    example
        (1, C, H, W) float32, the input of both networks.
    threads
        Of each session.
    known_ms
        What the reference took on this machine in a quiet spell, where that is known.

    Raises
    ------
    ConfigError
        Where ``threads`` is below 1.
    CandidateError
        Where the reference cannot be loaded.
    """

    def __init__(self, reference: bytes, example: np.ndarray, threads: int = 1, known_ms: float | None = None) -> None:
        self._threads = threads
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._reference = _Timer(session(reference, threads), example, self._clock)
        self._example = example
        self._quietest = [] if known_ms is None else [known_ms / 1e3] * QUIETEST
        self._slower = 1.0
        settled = time.monotonic() + SETTLING_SECONDS
        while threads == 1 and (time.monotonic() < settled or len(self._quietest) < QUIETEST):
            self._remember([self._reference.seconds()])

    def measure(self, candidate: bytes, *, pairs: int = 200, seed: int = 0, seconds: float | None = None) -> Latency:
        """Time a candidate.

        Parameters
        ----------
        candidate
            ONNX file with the reference's input.
        pairs
            Timings of each network; as many again where the interval stays wide. At least 50 for a final figure.
        seed
            Of the bootstrap and of which network begins.
        seconds
            Wall time after which no further pair is begun, once there are 10; ten times as much where no spell was quiet.
            ``None``: no limit but that of such waiting, 10 s.

        Raises
        ------
        ConfigError
            Where ``pairs`` is below 10.
        CandidateError
            Where the candidate cannot be loaded.
        """
        if pairs < MIN_PAIRS:
            raise ConfigError(
                f"expected at least {MIN_PAIRS} latency pairs, got {pairs}; a final figure needs 50 or more"
            )
        begun = time.monotonic()
        deadline = math.inf if seconds is None else begun + seconds
        timer = _Timer(session(candidate, self._threads), self._example, self._clock)
        times = self._time(timer, pairs, seed, deadline)
        if self._summary(times, seed).wide and time.monotonic() < deadline:
            times = np.concatenate([times, self._time(timer, pairs, seed + 1, deadline)])
        patience = begun + (PATIENCE_SECONDS if seconds is None else PATIENCE * seconds)
        while (disturbed := self._is_disturbed(times)) and time.monotonic() < patience:
            times = np.concatenate([times, self._time(timer, min(pairs, TURN_PAIRS), len(times), patience)])
        found = self._summary(times, seed)
        self._slower = self._slower * FORGETTING if disturbed else min(self._slower, self._slowness(times))
        return found

    def _is_disturbed(self, times: np.ndarray) -> bool:
        """Whether too few of the reference's timings were near its quietest."""
        return self._threads == 1 and self._slowness(times) > QUIET * self._slower

    def _slowness(self, times: np.ndarray) -> float:
        """How many times as long as at its quietest the reference took when it was quick in these pairs (n, 2)."""
        rank = min(ENOUGH_QUIET, len(times)) - 1
        return max(1.0, float(np.partition(times[:, 0], rank)[rank] / np.mean(self._quietest)))

    def _remember(self, seconds: list[float]) -> None:
        self._quietest = sorted([*self._quietest, *seconds])[:QUIETEST]

    def _time(self, candidate: _Timer, pairs: int, seed: int, deadline: float) -> np.ndarray:
        """Seconds (pairs, 2) of the reference and the candidate; which of them begins alternates."""
        times: list[tuple[float, float]] = []
        while len(times) < pairs and (len(times) < MIN_PAIRS or time.monotonic() < deadline):
            if (len(times) + seed) % 2:
                second = candidate.seconds()
                times.append((self._reference.seconds(), second))
            else:
                first = self._reference.seconds()
                times.append((first, candidate.seconds()))
        return np.array(times)

    def _summary(self, times: np.ndarray, seed: int) -> Latency:
        reference, candidate = times[:, 0], times[:, 1]
        self._remember(reference.tolist())
        estimate = _quiet_ratio if self._threads == 1 else _median_ratio
        ratio = float(estimate(times))
        picked = np.random.default_rng(seed).integers(0, len(times), (RESAMPLES, len(times)))
        low, high = (float(q) for q in np.percentile(estimate(times[picked]), [2.5, 97.5]))
        reference_ms = float(np.mean(self._quietest)) * 1e3
        return Latency(
            ratio=ratio,
            interval=(low, high),
            ratio_of_minima=float(candidate.min() / reference.min()),
            median_ratio=float(_median_ratio(times)),
            latency_ms=ratio * reference_ms,
            reference_ms=reference_ms,
            p95_ms=float(np.percentile(candidate, 95)) * 1e3,
            pairs=len(times),
            load=os.getloadavg()[0],
            wide=high - low > WIDE * ratio or self._is_disturbed(times),
            method=self._method(len(times)),
        )

    def _method(self, pairs: int) -> str:
        how = (
            f"CPU time of one thread, mean of the {QUIETEST} quietest of {pairs} interleaved timings of each network"
            if self._threads == 1
            else f"wall time on {self._threads} threads, median ratio of {pairs} interleaved pairs"
        )
        return f"ONNX Runtime {onnxruntime.__version__}, batch 1, {how}"


class _Timer:
    """Times one network on one input, several runs at once where one is too short for the clock."""

    def __init__(self, runner: onnxruntime.InferenceSession, example: np.ndarray, clock: Callable[[], float]) -> None:
        self._run, self._clock, self._runs = runner.run, clock, 1
        self._feed = {runner.get_inputs()[0].name: np.ascontiguousarray(example, dtype=np.float32)}
        quickest = min(self.seconds() for _ in range(3))
        self._runs = max(1, math.ceil(TIMING_SECONDS / max(quickest, 1e-6)))

    def seconds(self) -> float:
        """Of one run."""
        start = self._clock()
        for _ in range(self._runs):
            self._run(None, self._feed)
        return (self._clock() - start) / self._runs


def _quiet_ratio(times: np.ndarray) -> np.ndarray:
    """Ratio of the means of the quietest timings; (..., pairs, 2) → (...)."""
    quiet = np.partition(times, QUIETEST - 1, axis=-2)[..., :QUIETEST, :].mean(axis=-2)
    return np.asarray(quiet[..., 1] / quiet[..., 0])


def _median_ratio(times: np.ndarray) -> np.ndarray:
    """Median of the paired ratios; (..., pairs, 2) → (...)."""
    return np.asarray(np.median(times[..., 1] / times[..., 0], axis=-1))
