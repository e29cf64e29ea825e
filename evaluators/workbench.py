"""What a worker is given: the dense network, its data, and how candidates are measured and recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from ..policies.coding.stream import Coder
from ..policies.errors import PolicyError
from ..policies.graph import ModelGraph
from ..policies.policy import Scalar
from .data import DataSet
from .supernet import Supernet
from .training.gradual import PruneSchedule
from .training.hints import Hint
from .training.loop import Recipe
from .training.methods import Method
from .untrained import Untrained


@dataclass(frozen=True)
class Settings:
    """How candidates are measured and recovered.

    Parameters
    ----------
    quality
        What ``error_pct`` means: wrong labels, or disagreement with the dense network.
    stitch_pictures
        Training pictures of the lowest rung.
    screen_pictures
        Validation pictures of a screening.
    screen_seconds
        Time of a screening's latency probe.
    latency_threads
        Threads of a timed session.
    recovery
        Recipe of the fine-tuning; 0 epochs: none.
    prune_share
        Share of the recovery's epochs in which pruned layers lose their weights step by step; 0: all at once.
    prune_schedule
        How they do, see ``gradual.prune_gradually``.
    tryout
        Share of the training pictures that a candidate is trained on once before the finalists are chosen.
    temperature, teacher_weight
        Of the distillation.
    seed
        Of the run.
    coder
        Of stored files. Not shown, like what follows: results of older runs are known by the other settings.
    teach
        How finalists learn from the teachers.
    hint
        Which inner layers do, where ``teach`` is ``hints``.
    compact
        Whether stored files leave out what the network and the policy tell, and scales are folded into batch norms.
    vector_bits
        Significant bits of stored biases and batch norms.
    network
        What compact files say of the network, see ``policies.loading.described``; ``None`` where it is of no family.
    """

    quality: Literal["error", "agreement"] = "error"
    stitch_pictures: int = 128
    screen_pictures: int = 1000
    screen_seconds: float = 0.6
    latency_threads: int = 1
    recovery: Recipe = field(default_factory=lambda: Recipe(epochs=0))
    prune_share: float = 0.0
    prune_schedule: PruneSchedule = "gradual"
    tryout: float = 0.0
    temperature: float = 4.0
    teacher_weight: float = 0.7
    seed: int = 0
    coder: Coder = field(default="ans", repr=False)
    teach: Method = field(default="soft", repr=False)
    hint: Hint | None = field(default=None, repr=False)
    compact: bool = field(default=False, repr=False)
    vector_bits: int = field(default=8, repr=False)
    network: Sequence[Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Workbench:
    """All that a worker needs, put once where workers find it.

    Parameters
    ----------
    model
        The dense network, in evaluation mode.
    graph
        Its layers.
    data
        Without the test split.
    reference
        The dense network as ONNX.
    settings
        How to measure.
    threads
        For torch and for error measurements in the runtime.
    supernet
        What networks of other shapes are cut out of, where the shape is searched.
    teachers
        What candidates learn from; the dense network where there are none.
    untrained
        How the dense network began, where controls are trained.
    """

    model: nn.Module
    graph: ModelGraph
    data: DataSet
    reference: bytes
    settings: Settings
    threads: int = 1
    supernet: Supernet | None = None
    teachers: tuple[nn.Module, ...] = ()
    untrained: Untrained | None = None

    def of_shape(self, shape: Mapping[str, Scalar]) -> Workbench:
        """The same for the network of a shape: cut out of the supernet, with the dense network for a teacher.

        Raises
        ------
        PolicyError
            Where there is no supernet, or it does not hold this shape.
        """
        if self.supernet is None:
            raise PolicyError("the policy sets the network's shape, but this run has no supernet; give space.shape")
        calibration = self.data.preprocess(self.data.calibration.images)
        network = self.supernet.network(shape, calibration)
        graph = ModelGraph.trace(network, calibration[:1], of_shape=shape)
        return replace(self, model=network, graph=graph, supernet=None, teachers=self.teachers or (self.model,))
