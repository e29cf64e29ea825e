"""The cheapest rung: a candidate's layers stitched into the dense network, one forward pass of a few calibration pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..policies.layout import laid_out
from ..policies.plan import Plan
from .bank import Bank
from .data import DataSet, Pictures
from .stitch import StitchedNetwork
from .variants import Stitch

BATCH = 64
LARGEST_KL = 1e3


class StitchedRung:
    """Measures plans on training pictures, without building or exporting a network.

    Weights are compressed, activations stay float32. The error of a layer's weights is seen exactly; 8-bit inputs are
    seen from the next rung on.

    Parameters
    ----------
    model, bank, data
        The dense network, its compressed layers and its data.
    pictures
        How many training pictures are run.
    seed
        Of the choice of pictures.
    """

    def __init__(self, model: nn.Module, bank: Bank, data: DataSet, pictures: int, seed: int) -> None:
        self.bank = bank
        chosen = _some(data.train, pictures, seed)
        self._batches = laid_out(model, data.preprocess(chosen.images)).split(BATCH)
        self._labels = torch.from_numpy(chosen.labels.astype(np.int64)).split(BATCH)
        self._network = StitchedNetwork(model, self._batches)
        self._dense = [functional.log_softmax(logits, 1) for logits in self._network.run({})]

    def forget(self) -> None:
        """Free what is kept to be quick, which is made again when it is needed."""
        self._network.forget()
        self.bank.forget()

    def measure(self, plan: Plan, hopeless_kl: float = math.inf) -> dict[str, float]:
        """``kl`` to the dense network in nats, ``calibration_error_pct``, ``estimated_stored_bytes``, ``pictures``.

        Parameters
        ----------
        hopeless_kl
            Where the mean over the batches so far lies above, later ones are not run.

        Raises
        ------
        CandidateError
            Where a layer cannot be compressed as the plan says.
        """
        return self.measure_stitch(self.bank.stitch(plan), hopeless_kl)

    def measure_stitch(self, stitch: Stitch, hopeless_kl: float = math.inf) -> dict[str, float]:
        """The same of a candidate that is stitched already."""

        parts: list[Tensor] = []

        def promising(number: int, logits: Tensor) -> bool:
            parts.append(_kl(self._dense[number], logits))
            return float(torch.cat(parts).mean()) <= hopeless_kl

        outputs = self._network.run(stitch.modules, promising, stitch.kept)
        kl = torch.cat(parts)
        wrong = torch.cat([logits.argmax(1) != labels for logits, labels in zip(outputs, self._labels)])
        return {
            "kl": float(kl.mean()),
            "calibration_error_pct": 100 * float(wrong.float().mean()),
            "estimated_stored_bytes": float(stitch.stored_bytes),
            "pictures": float(len(kl)),
        }


def _kl(dense: Tensor, logits: Tensor) -> Tensor:
    """(N,) KL(dense || candidate) from log-probabilities and logits; a candidate that overflows is infinitely far."""
    kl = functional.kl_div(functional.log_softmax(logits, 1), dense, log_target=True, reduction="none").sum(1)
    return kl.nan_to_num(nan=LARGEST_KL, posinf=LARGEST_KL).clamp(0, LARGEST_KL)


def _some(part: Pictures, count: int, seed: int) -> Pictures:
    order = np.random.default_rng([seed, 7]).permutation(len(part))
    return part.take(np.sort(order[:count]))
