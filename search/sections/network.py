"""The network and its data."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from ...evaluators.data import SplitSizes
from ...evaluators.sources import SPLIT_NAME, check_name
from ...policies.errors import DataError
from .base import SOURCES, Count, NetworkName, Section
from .training import TrainConfig


class ModelConfig(Section):
    """The trained network."""

    name: NetworkName = Field(description="timm:NAME, torchvision:NAME, family:NAME or package.module:function")
    weights: str | None = Field(None, description="a .safetensors or .pt file, or package:efficientnet-lite0")
    train: TrainConfig | None = Field(None, description="a recipe that trains it first, where there are no weights")
    num_classes: Count | None = Field(None, description="outputs; the data's classes where not given")
    arguments: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="for the network's constructor"
    )

    @model_validator(mode="after")
    def _has_weights(self) -> ModelConfig:
        if self.weights is None and self.train is None and self.name.split(":")[0] in SOURCES:
            raise ValueError(
                "give model.weights (a file) or model.train (a recipe): an untrained network is not worth a search"
            )
        return self

    @model_validator(mode="after")
    def _has_a_teacher(self) -> ModelConfig:
        if self.train is not None and self.train.teach != "soft" and not self.train.teachers:
            raise ValueError(
                f"model.train.teach: {self.train.teach} needs model.train.teachers: nothing but its data teaches the network yet"
            )
        return self


class DataConfig(Section):
    """Pictures with labels."""

    name: str = Field(
        "digits",
        description="digits, mnist, fashion_mnist, cifar10, imagefolder:PATH, npz:PATH or package.module:function",
    )
    directory: str | None = Field(
        None, description="where named data sets lie; default $PARETOPRESS_DATA or ~/.cache/paretopress"
    )
    image_size: Count | None = Field(None, description="side in pixels that pictures are scaled to")
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, on the [0, 1] scale; the training pictures' own by default"
    )
    std: tuple[float, ...] | None = None
    validation: float = Field(
        0.1, gt=0, description="share or number of training pictures on which candidates are compared"
    )
    validation_from: str | None = Field(
        None,
        description="where the pictures come from on which candidates are compared: training (cut from the training pictures),"
        " testing (0.3 of the test pictures, 5,000 at most; the last reading is on the rest) or the name of a split of the"
        " data. By default the data's own validation split, else training pictures where the network is known not to have"
        " learned them, else test pictures",
    )
    calibration: Count = Field(256, description="training pictures for activation ranges and batch-norm statistics")
    test: float = Field(0.2, gt=0, description="share or number held out where the source has no test pictures")
    limit: Count | None = Field(None, description="use only so many training and test pictures")

    @field_validator("name")
    @classmethod
    def _of_a_known_form(cls, value: str) -> str:
        try:
            check_name(value)
        except DataError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("validation_from")
    @classmethod
    def _names_a_split(cls, value: str | None) -> str | None:
        if value is not None and (value in ("train", "test") or not SPLIT_NAME.fullmatch(value)):
            raise ValueError(f"expected training, testing or the name of a further split of the data; got '{value}'")
        return value

    @model_validator(mode="after")
    def _can_be_split(self) -> DataConfig:
        try:
            SplitSizes(self.validation, self.calibration, self.test)
        except DataError as error:
            raise ValueError(str(error)) from error
        return self
