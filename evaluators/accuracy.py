"""Error of predictions, of files and of networks, with its interval."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from .data import DataSet, Pictures
from .runtime import logits as outputs_of
from .runtime import session

ONNX_BATCH = 100
MAX_BATCH_VALUES = 2**20
"""Of the pictures that a runtime is given at once: it holds many times as much between its layers, and is no faster for it."""


def error_pct(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures, in per cent, whose largest logit (N, K) is not the label's (N,)."""
    return 100.0 * float(np.mean(logits.argmax(1) != labels))


def error_interval(error: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval, in per cent, of an error in per cent measured on ``count`` pictures (Wilson 1927)."""
    z, p = 1.959964, error / 100
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def bounds(name: str, interval: tuple[float, float]) -> dict[str, float]:
    """An interval as two plain numbers, as the ledger keeps them."""
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def file_error(onnx: bytes, data: DataSet, split: Pictures, threads: int, batch_size: int = ONNX_BATCH) -> float:
    """Error in per cent of an exported file on a split, in the runtime."""
    return error_pct(file_logits(onnx, data, split, threads, batch_size), split.labels)


def file_mistakes(
    onnx: bytes, data: DataSet, split: Pictures, threads: int, batch_size: int = ONNX_BATCH
) -> np.ndarray:
    """Return (N,) bool: the pictures of a split that an exported file gets wrong, in the runtime."""
    return file_logits(onnx, data, split, threads, batch_size).argmax(1) != split.labels


def count_mistakes(mistakes: np.ndarray, dense_mistakes: np.ndarray) -> dict[str, float]:
    """Return what certainty needs of a candidate's and the dense network's mistakes (N,) bool on the same pictures.

    The counts are of pictures: all, those that the candidate gets wrong, the dense network, the candidate alone.
    """
    return {
        "validation_pictures": float(len(mistakes)),
        "validation_wrong": float(mistakes.sum()),
        "validation_dense_wrong": float(dense_mistakes.sum()),
        "validation_newly_wrong": float((mistakes & ~dense_mistakes).sum()),
    }


def model_error(model: nn.Module, data: DataSet, split: Pictures) -> float:
    """Error in per cent of a network on a split as it is in the middle of its training; it is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        batch_size = _fitting(data, ONNX_BATCH)
        parts = [model(x).numpy() for x, _ in data.batches(split, batch_size)]
    return error_pct(np.concatenate(parts), split.labels)


def file_logits(onnx: bytes, data: DataSet, split: Pictures, threads: int, batch_size: int = ONNX_BATCH) -> np.ndarray:
    """Outputs (N, K) of an exported file on a split."""
    running = session(onnx, threads)
    batch_size = _fitting(data, batch_size)
    parts = [outputs_of(running, x.numpy(), batch_size) for x, _ in data.batches(split, batch_size)]
    return np.concatenate(parts)


def _fitting(data: DataSet, batch_size: int) -> int:
    """The batch size, or fewer pictures where they are large."""
    return min(batch_size, max(1, MAX_BATCH_VALUES // math.prod(data.input_shape)))
