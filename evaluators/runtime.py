"""ONNX Runtime with the same settings wherever a network is run."""

from __future__ import annotations

import numpy as np
import onnxruntime

from ..policies.errors import CandidateError, ConfigError, DataError
from .exact_integers import session_entries


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Settings of a session on the CPU: one operator at a time on ``threads`` threads, which sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A spinning worker takes a core from the networks that are measured or trained beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in session_entries().items():
        options.add_session_config_entry(name, value)
    return options


def session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session with these settings, in which 8-bit layers compute what the file says on whatever processor this is.

    Raises
    ------
    ConfigError
        Where ``threads`` is below 1.
    CandidateError
        Where ONNX Runtime refuses the network.
    """
    if threads < 1:
        raise ConfigError(f"expected at least one thread, got {threads}; set threads to 1 or the number of free cores")
    try:
        return onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    # The runtime has an exception class for each status, with no common base of its own.
    except Exception as error:
        version = onnxruntime.__version__
        raise CandidateError(f"ONNX Runtime {version} cannot load this network: {_first_line(error)}") from error


def logits(session: onnxruntime.InferenceSession, x: np.ndarray, batch_size: int) -> np.ndarray:
    """The network's first output (N, classes) for inputs (N, C, H, W) of float32, ``batch_size`` at a time.

    Raises
    ------
    DataError
        Where there are no inputs.
    CandidateError
        Where the runtime cannot carry the network out.
    """
    if len(x) == 0:
        raise DataError("expected at least one picture to run the network on, got none; check the split's size")
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    try:
        parts = [session.run([target], {source: x[i : i + batch_size]})[0] for i in range(0, len(x), batch_size)]
    except Exception as error:
        raise CandidateError(f"ONNX Runtime cannot run this network: {_first_line(error)}") from error
    return np.concatenate(parts)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
