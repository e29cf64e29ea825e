"""How a candidate is trained: pruned step by step, quantized, taught by the dense network or by other teachers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from ..policies.apply import CompressedModel, drop_dead, is_coarse, quantize_layers
from ..policies.batch_norms import reestimate_statistics
from ..policies.folding import round_scales
from ..policies.layout import laid_out
from ..policies.plan import Plan, before, before_rising_sparsity
from ..policies.techniques import Phase
from ..policies.techniques.prune_obs import PruneOBS
from .accuracy import model_error
from .data import DataSet, Pictures
from .training.checkpoints import Checkpoints, OnEpoch
from .training.ensemble import as_one
from .training.gradual import halves, inner_targets, prune_gradually, sparsities
from .training.loop import Recipe
from .training.methods import make_teaching
from .training.teaching import Teaching, teach
from .workbench import Workbench

STATISTICS_PICTURES, STATISTICS_VALUES = 4096, 2**27
"""Training pictures that batch norms are estimated on after a training with coarse weights; fewer if large, by their values."""


@dataclass(frozen=True)
class FineTuning:
    """Trains the candidates of a workbench.

    Parameters
    ----------
    bench
        Data, teachers and settings.
    compress
        Carries a plan out, without training.
    calibration
        Input (N, C, H, W).
    screening
        Validation pictures on which a network is tried between epochs, where somebody listens.
    """

    bench: Workbench
    compress: Callable[[Plan], CompressedModel]
    calibration: Tensor
    screening: Pictures

    def carry_out(
        self, plan: Plan, seed: int, recipe: Recipe, data: DataSet, checkpoints: Checkpoints
    ) -> CompressedModel:
        """A plan's network, trained by a recipe; pruned layers lose their weights on the way where the settings say so.

        Raises
        ------
        CandidateError
            Where the training diverges, or a technique fails on what became of the weights.
        """
        targets = {} if recipe.epochs < 2 else sparsities(plan)
        share = self.bench.settings.prune_share
        if not targets or not share:
            compressed = _own(self.compress(plan))
            self.train(compressed.model, recipe, seed, data, checkpoints)
            return self._settled(compressed, recipe, data)
        first, second = halves(recipe, share)
        # What the Hessian pruned is a good start; by magnitude alone, sparsity has to rise step by step.
        solved = all(isinstance(t, PruneOBS) for p in plan.layers for t in p.techniques if t.phase == Phase.PRUNE)
        first_plan = before(plan, Phase.QUANTIZE) if solved else before_rising_sparsity(plan)
        early = _own(self.compress(first_plan))
        prune_gradually(
            early.model.requires_grad_(True),
            inner_targets(early.model, targets),
            data,
            first,
            seed=seed,
            loss=self._teaching.loss(self._teacher, self.bench.settings.recovery.label_smoothing),
            schedule=self.bench.settings.prune_schedule,
            checkpoint=checkpoints.of(0),
            on_epoch=self.following(early.model, checkpoints, 0),
        )
        drop_dead(plan, self.bench.graph, early.model, self.calibration[:1])
        compressed = CompressedModel(early.model, plan)
        quantize_layers(plan, early.model, self.calibration)
        self.train(compressed.model, second, seed + 1, data, checkpoints, first.epochs)
        return self._settled(compressed, second, data)

    def _settled(self, compressed: CompressedModel, recipe: Recipe, data: DataSet) -> CompressedModel:
        """With batch norms estimated anew where weights are coarse.

        To the end of a training such weights jump between neighbouring codes, so that the running statistics are of
        weights that are no more (Nagel 2022, 2203.16086, section 3.2).
        """
        if recipe.epochs and is_coarse(compressed.plan):
            count = min(STATISTICS_PICTURES, max(2, STATISTICS_VALUES // math.prod(data.input_shape)))
            pictures = data.preprocess(data.train.images[:count])
            reestimate_statistics(compressed.model, laid_out(compressed.model, pictures))
        return compressed

    def train(
        self, model: nn.Module, recipe: Recipe, seed: int, data: DataSet, checkpoints: Checkpoints, before: int = 0
    ) -> None:
        """Train in place as finalists are, after so many epochs of a training before; nothing where the recipe has no epochs."""
        if not recipe.epochs:
            return
        if self.bench.settings.compact:
            round_scales(model, self.bench.settings.vector_bits)
        teach(
            # A dense network that is handed over frozen is recovered like any other.
            model.requires_grad_(True),
            self._teacher,
            self._teaching,
            data,
            recipe,
            seed=seed,
            checkpoint=checkpoints.of(int(before > 0)),
            on_epoch=self.following(model, checkpoints, before),
        )

    def following(self, model: nn.Module, checkpoints: Checkpoints, before: int) -> OnEpoch:
        """Hands on each epoch of a network's training, after so many epochs before it."""
        return checkpoints.following(before, lambda: model_error(model, self.bench.data, self.screening))

    @cached_property
    def _teaching(self) -> Teaching:
        settings = self.bench.settings
        return make_teaching(settings.teach, settings.temperature, settings.teacher_weight, settings.hint)

    @cached_property
    def _teacher(self) -> nn.Module:
        return as_one(self.bench.teachers or (self.bench.model,))


def _own(compressed: CompressedModel) -> CompressedModel:
    """With tensors of its own: layers that nothing was done to share the dense network's, which must not be trained."""
    model = copy.deepcopy(compressed.model)
    for parameter in model.parameters():
        # Layers that were just made and layers read from the bank's files must lie in memory alike: products round by it.
        parameter.data = parameter.data.contiguous()
    return replace(compressed, model=model)
