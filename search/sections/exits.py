"""Early exits of a network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import Count, Positive
from .training import SelfTaughtConfig


class ExitsConfig(SelfTaughtConfig):
    """How exits are placed and trained; used by ``paretopress exits`` alone."""

    after: tuple[str, ...] = Field(
        (), description="modules behind which there are exits; by equal shares of cost where none"
    )
    count: Count = Field(2, description="exits, where they are placed by cost")
    channels: int = Field(
        0, ge=0, description="of a 3x3 convolution in front of each exit's classifier, on maps; none where 0"
    )
    tuned: bool = Field(False, description="whether the network itself learns too; its own error may then change")
    members: Count = Field(
        6,
        description="sets of thresholds that are exported and tested; their error is within search.screen_error of the network's",
    )

    @field_validator("after")
    @classmethod
    def _different_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("expected names of modules, got an empty one")
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"one exit stands behind a module; {', '.join(twice)} is named more than once")
        return value

    @model_validator(mode="after")
    def _changes_what_learns(self) -> ExitsConfig:
        if self.penalty and not self.tuned:
            raise ValueError(
                "a penalty is of the network's weights, which do not learn here; leave it out, or set tuned: true"
            )
        return self

    epochs: Count = Field(2, description="passes over the training pictures")
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = Field(3e-3, description="peak learning rate of the one-cycle schedule")
    weight_decay: float = Field(1e-4, ge=0)
