"""Energy of one forward pass, estimated from a table of operations at 45 nm (Horowitz 2014; 1506.02626, table 1)."""

from __future__ import annotations

from .macs import Profile

PICOJOULE = {
    "int32 add": 0.1,
    "float32 add": 0.9,
    "register file": 1.0,
    "int32 multiply": 3.1,
    "float32 multiply": 3.7,
    "SRAM read": 5.0,
    "DRAM read": 640.0,
}


def energy_uj(profile: Profile, weight_bytes: int) -> float:
    """Estimated energy in microjoule.

    Each multiply-accumulate is one multiplication and one addition (integer ones in 8-bit layers), each 32-bit word of
    the deployed weights comes once from DRAM, each activation is written to and read from SRAM once.
    """
    table = PICOJOULE
    float_macs = profile.macs - profile.int8_macs
    compute = float_macs * (table["float32 multiply"] + table["float32 add"])
    compute += profile.int8_macs * (table["int32 multiply"] + table["int32 add"])
    memory = weight_bytes / 4 * table["DRAM read"] + 2 * profile.activations * table["SRAM read"]
    return (compute + memory) * 1e-6
