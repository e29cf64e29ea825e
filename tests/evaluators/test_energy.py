"""The energy estimate against a hand-made sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paretopress.evaluators.energy import PICOJOULE, energy_uj
from paretopress.evaluators.macs import Profile

NOTHING = Profile(macs=0, int8_macs=0, params=0, activations=0, peak_memory_bytes=0, unknown_operations=())


def test_the_table_is_horowitzs():
    # 1506.02626, table 1, in picojoule at 45 nm.
    assert (PICOJOULE["float32 add"], PICOJOULE["float32 multiply"]) == (0.9, 3.7)
    assert (PICOJOULE["int32 add"], PICOJOULE["int32 multiply"]) == (0.1, 3.1)
    assert (PICOJOULE["SRAM read"], PICOJOULE["DRAM read"]) == (5.0, 640.0)


@pytest.mark.parametrize(
    ("profile", "weight_bytes", "microjoule"),
    [
        (NOTHING, 0, 0.0),
        (replace(NOTHING, macs=1_000_000), 0, 4.6),
        (replace(NOTHING, macs=1_000_000, int8_macs=1_000_000), 0, 3.2),
        (replace(NOTHING, macs=1_000_000, int8_macs=250_000), 0, 0.75 * 4.6 + 0.25 * 3.2),
        (NOTHING, 4_000_000, 640.0),
        (replace(NOTHING, activations=1_000_000), 0, 10.0),
        (replace(NOTHING, macs=2_000_000, activations=3_000_000), 400_000, 9.2 + 30 + 64),
    ],
)
def test_it_is_the_sum_of_compute_weights_and_activations(profile, weight_bytes, microjoule):
    assert energy_uj(profile, weight_bytes) == pytest.approx(microjoule)
