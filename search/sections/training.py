"""How networks are trained, and how finalists are recovered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ...evaluators.training.augment import Augment
from ...evaluators.training.loop import Recipe
from ...evaluators.training.methods import Method
from ...evaluators.training.penalties import PENALTIES, make_penalty
from ...policies.errors import ConfigError
from .base import Count, NetworkName, Positive, Section, Share


class AugmentConfig(Section):
    """Random changes of training pictures."""

    shift: int = Field(0, ge=0, description="largest shift in pixels")
    flip: bool = Field(False, description="mirror left and right")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")


class HintConfig(Section):
    """Which inner layer learns from which (FitNets, 1412.6550)."""

    student: str | None = Field(None, description="the layer that learns; the middle one where not given")
    guide: str | None = Field(None, description="the teacher's layer that it learns from; the middle one")
    share: float = Field(0.3, gt=0, lt=1, description="share of the epochs that go to the hint, before the outputs")


class TeacherConfig(Section):
    """A trained network to learn from; its weights alone are enough where it is built like the one that learns."""

    weights: str = Field(description="a .safetensors or .pt file")
    name: NetworkName | None = Field(
        None, description="as model.name; where not given, built like the network that learns"
    )
    num_classes: Count | None = Field(None, description="outputs; the data's classes where not given")
    arguments: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="for the network's constructor"
    )

    @model_validator(mode="before")
    @classmethod
    def _weights_alone(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        section = handler(core)
        inner = handler.resolve_ref_schema(section)
        return {"anyOf": [section, inner["properties"]["weights"] | {"title": "Weights alone"}]}

    @model_validator(mode="after")
    def _shape_has_a_name(self) -> TeacherConfig:
        if self.name is None and (self.arguments or self.num_classes):
            raise ValueError("arguments and num_classes are of a network with a name of its own; give name")
        return self


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

    teach: Method = Field(
        "soft",
        description="how the network learns from its teachers: from softened outputs (1503.02531), by regression to their"
        " logits (1312.6184), or first an inner layer and then softened outputs (hints, 1412.6550)",
    )
    hint: HintConfig = HintConfig()
    teachers: tuple[TeacherConfig, ...] = Field(
        (),
        description="trained networks to learn from, each a file of weights or a network with its name; several are averaged",
    )
    temperature: Positive = Field(4.0, description="softens the teachers' outputs and the network's")
    teacher_weight: float = Field(0.7, ge=0, le=1, description="share of the loss that the teachers set")

    @model_validator(mode="after")
    def _hint_is_used(self) -> TrainConfig:
        if self.teach != "hints" and self.hint != HintConfig():
            raise ValueError(f"a hint is for teach: hints; got teach: {self.teach}")
        return self

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


class SelfTaughtConfig(TrainConfig):
    """A recipe of a network whose parts learn from its own largest or last one."""

    @model_validator(mode="after")
    def _teaches_itself(self) -> SelfTaughtConfig:
        keys = ("teach", "hint", "teachers", "temperature", "teacher_weight")
        given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
        if given:
            raise ValueError(f"this training has no teacher but the network itself; leave out {', '.join(given)}")
        return self


class RecoveryConfig(TrainConfig):
    """How finalists are fine-tuned: they learn from the dense network, or from the teachers that are given."""

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
        " training (1506.02626); or along the cubic, and masked weights learn on until they are spliced in (1608.04493)",
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
