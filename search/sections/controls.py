"""Which controls are trained beside the members of the front."""

from __future__ import annotations

from typing import Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ...evaluators.training.lottery import FROM_INITIAL, Control
from .base import Section
from .network import ModelConfig
from .training import TrainConfig


class ControlsConfig(Section):
    """Controls that tell whether a member's weights were worth keeping, or its architecture alone; none by default.

    A list of their names stands for a section with nothing else.
    """

    which: tuple[Control, ...] = Field(
        (),
        description="scratch_e and scratch_b train a changed architecture from new random weights, for as many epochs as the"
        " dense network or for as much computation (1810.05270); rewind, random, signs and supermask start pruned weights"
        " from their initial values, from new ones, from their initial signs, or leave them untrained (1803.03635,"
        " 1905.01067)",
    )
    train: TrainConfig | None = Field(
        None, description="the dense network's recipe; model.train where the run trained it"
    )
    rewind_epochs: int = Field(0, ge=0, description="rewind to the weights after so many epochs (1903.01611)")

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"which": value} if isinstance(value, list | tuple) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        section = handler(core)
        inner = handler.resolve_ref_schema(section)
        return {"anyOf": [section, inner["properties"]["which"] | {"title": "Controls"}]}

    def recipe_for(self, model: ModelConfig) -> TrainConfig | None:
        """How the dense network was trained, as far as the configuration says."""
        return self.train or (model.train if model.weights is None else None)

    def complaint(self, model: ModelConfig, quality: str) -> str | None:
        """Why the controls cannot be trained, or ``None``."""
        recipe, trained_here = self.recipe_for(model), model.weights is None and model.train is not None
        from_initial = [name for name in self.which if name in FROM_INITIAL]
        if not self.which:
            return None
        if quality == "agreement":
            return "controls: they are trained on labels; expected quality: error, or no controls"
        if recipe is None:
            return (
                "controls: the dense network's weights are given, and nothing says how they were trained; expected the"
                " recipe in controls.train"
            )
        if recipe.teachers:
            return (
                "controls: the dense network learned from teachers, and controls learn from labels alone; expected a recipe"
                " without teachers in controls.train"
            )
        if from_initial and not trained_here:
            return (
                f"controls: {', '.join(from_initial)} begin with the weights that the dense network began with, which are"
                " known where model.train trains it; expected model.train without model.weights, or other controls"
            )
        if self.rewind_epochs >= recipe.epochs:
            return (
                f"controls.rewind_epochs: expected fewer than the {recipe.epochs} epochs of the dense network's recipe; got"
                f" {self.rewind_epochs}"
            )
        return None
