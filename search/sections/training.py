"""How networks are trained, and how finalists are recovered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ...evaluators.training.augment import Augment
from ...evaluators.training.loop import Recipe
from ...evaluators.training.penalties import PENALTIES, make_penalty
from ...policies.errors import ConfigError
from .base import Count, Positive, Section, Share


class AugmentConfig(Section):
    """Random changes of training pictures."""

    shift: int = Field(0, ge=0, description="largest shift in pixels")
    flip: bool = Field(False, description="mirror left and right")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")


class TrainConfig(Section):
    """A recipe that trains the dense network."""

    epochs: Count = Field(10, description="passes over the training pictures")
    batch_size: Count = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.1, description="peak learning rate of the one-cycle schedule")
    warmup: Share = Field(0.15, description="share of the steps that warm up")
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: Share = 0.0
    augment: AugmentConfig = AugmentConfig()
    penalty: dict[str, float] = Field(
        default_factory=dict,
        description="terms of the weights that are added to the loss, each with its strength; any of "
        + ", ".join(PENALTIES),
    )

    @field_validator("penalty")
    @classmethod
    def _penalties(cls, value: dict[str, float]) -> dict[str, float]:
        for name, strength in value.items():
            try:
                make_penalty(name, strength)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    def recipe(self) -> Recipe:
        """The same for the training loop."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name in Recipe.__dataclass_fields__}
        penalties = tuple(make_penalty(name, strength) for name, strength in self.penalty.items())
        return Recipe(**{**fields, "augment": Augment(**self.augment.model_dump()), "penalties": penalties})


class RecoveryConfig(TrainConfig):
    """How finalists are fine-tuned: distillation from the dense network (1503.02531)."""

    epochs: int = Field(2, ge=0, description="0 leaves finalists as they were screened")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: float = Field(0.0, ge=0)
    prune_share: Share = Field(
        0.5,
        description="share of the epochs in which pruned layers lose their weights step by step; 0: all at once",
    )
    prune_schedule: Literal["gradual", "iterative", "surgery"] = Field(
        "gradual",
        description="how they do: along a cubic, and those that matter come back (1710.01878); in rounds of pruning and"
        " training (1506.02626); or all from the start, and masked weights that grow are spliced in again (1608.04493)",
    )
    tryout: Share = Field(
        0.1,
        description="share of the training pictures on which four times as many candidates as there are finalists are"
        " trained once, before the finalists are chosen; 0: not at all",
    )
    scheduler: Literal["none", "asha"] = Field(
        "none",
        description="asha: the worse half of the finalists is stopped at 1, 2, 4, ... epochs, by validation error"
        " (1810.05934); for pool.train tune where error is the one objective",
    )
    temperature: Positive = Field(4.0, description="softens the dense network's outputs")
    teacher_weight: float = Field(0.7, ge=0, le=1, description="share of the loss that the dense network sets")
