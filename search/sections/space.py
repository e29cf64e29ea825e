"""What may be done to a network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ...policies.errors import ConfigError
from ...spaces.menus import KNOBS, Menu
from ...spaces.precision import KNOWN
from .base import Count, Section, Share
from .learned import LearnedConfig
from .training import SelfTaughtConfig

Rewrite = Literal["keep", "separable", "stacked", "asymmetric", "flattened", "pooled"]


class _Menus(Section):
    """What has menus of a layer's options; each is checked where it stands."""

    @field_validator(*KNOBS, check_fields=False)
    @classmethod
    def _is_a_menu(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            Menu(**({} if value is None else {str(info.field_name): value}))
        except ConfigError as error:
            raise ValueError(str(error).removeprefix(f"space.{info.field_name}: ")) from error
        return value


class SpaceRule(_Menus):
    """Menus for the layers whose names match a pattern, in place of the general ones."""

    layers: str = Field(description="a pattern such as fc* or layer1.*")
    sparsity: tuple[Share, ...] | None = None
    precision: tuple[str, ...] | None = None
    rank: tuple[float, ...] | None = None
    channels: tuple[float, ...] | None = None
    blocks: tuple[Literal["keep", "drop"], ...] | None = None
    rewrite: tuple[Rewrite, ...] | None = None


class SupernetConfig(SelfTaughtConfig):
    """How the one network is trained that all shapes are cut out of; it starts as the dense network."""

    random: Count = Field(2, description="random shapes that learn in each step beside the largest and the smallest")
    weights: str | None = Field(None, description="a .safetensors file of one that is trained already")


class ShapeConfig(Section):
    """Shapes of the network's family: which knobs have a menu, all others stay as the dense network has them."""

    menus: dict[str, tuple[int | float | str | bool, ...]] = Field(
        default_factory=dict, description="options of each knob; the family's own menus where none is given"
    )
    supernet: SupernetConfig = SupernetConfig()

    @field_validator("menus")
    @classmethod
    def _some(
        cls, value: dict[str, tuple[int | float | str | bool, ...]]
    ) -> dict[str, tuple[int | float | str | bool, ...]]:
        for knob, options in value.items():
            if not options:
                raise ValueError(f"{knob}: expected one option or more, got none")
        return value


class SpaceConfig(_Menus):
    """What may be done to a layer; a menu of one entry is no choice."""

    sparsity: tuple[Share, ...] = Field((0.0,), description="shares of weights dropped")
    sparsity_global: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="total sparsities for which one magnitude threshold over all layers gives each layer its own; these"
        " are tried and added to the layers' menus, where no rule gives a layer its sparsity",
    )
    precision: tuple[str, ...] = Field(
        ("float32", "w8a8", "w7a8"),
        description=f"how the weights are held: {KNOWN}. On x86 processors without VNNI w8a8 needs slower kernels than w7a8",
    )
    rank: tuple[float, ...] = Field(
        (1.0,), description="shares of a layer's weights that its factors keep; 1: not factorized"
    )
    channels: tuple[float, ...] = Field((1.0,), description="shares of a group's channels that are kept")
    blocks: tuple[Literal["keep", "drop"], ...] = Field(
        ("keep",), description="keep, or keep and drop: whether residual branches may be dropped whole"
    )
    rewrite: tuple[Rewrite, ...] = Field(
        ("keep",),
        description="what may stand in a convolution's place: depthwise separable layers, 3 x 3 ones in a row, a column and a"
        " row, flattened filters; and in that of a linear layer on a map, global average pooling (pooled)",
    )
    multiple: Count = Field(8, description="channel counts are multiples of this")
    factorize: Literal["svd_spatial", "svd_channel", "tucker2", "cp"] = Field(
        "svd_spatial", description="how convolutions are factorized; linear layers and 1 x 1 ones are by SVD"
    )
    drop: Literal["energy", "magnitude", "activity", "taylor", "hessian", "merge"] = Field(
        "energy",
        description="which channels go: those of least energy, weight, activity, first-order change of the loss or"
        " second-order change of what reads them; or neurons that are alike are merged (1507.06149)",
    )
    drop_dead: bool = Field(
        False,
        description="drop channels that pruning leaves without a connection; not where ranks or rewrites are chosen too",
    )
    prune: Literal["auto", "magnitude", "obd", "obd_inputs", "obs", "n_of_m"] = Field(
        "auto",
        description="which weights sparsity drops: the smallest, those of least curvature times square by the loss's"
        " gradients (obd) or by the layer's inputs, by the layer's Hessian (obs), or as many of each group of inputs"
        " (n_of_m: 2 of 4 for 0.5); auto: obs where second_order allows it",
    )
    second_order: bool = Field(
        True,
        description="weights that are left make up for those that go or are rounded (2208.11580), where a layer allows it",
    )
    tie: Literal["auto", "none", "stage", "all"] | tuple[tuple[str, ...], ...] = Field(
        "auto", description="which layers share one choice: none, stage, all, or lists of name patterns"
    )
    skip: tuple[str, ...] = Field((), description="patterns of layers that are left alone")
    rules: tuple[SpaceRule, ...] = ()
    learned: LearnedConfig = LearnedConfig()
    shape: ShapeConfig | None = Field(
        None,
        description="search the shape of the network in place of what is done to its layers; model.name is family:NAME"
        " with the largest shape as its arguments",
    )

    @model_validator(mode="after")
    def _learned_or_shaped(self) -> SpaceConfig:
        if self.shape is not None and self.learned.lambdas:
            raise ValueError(
                "shape and learned exclude each other: neurons are learned on one network; give one of them"
            )
        if self.shape is not None and (given := self._of_layers()):
            raise ValueError(
                f"shape is searched in place of what is done to layers; leave out {', '.join(given)}, or shape"
            )
        return self

    def _of_layers(self) -> list[str]:
        """What is given of the layers' choices, where it is not as it is by default."""
        fields = type(self).model_fields
        return [n for n in fields if n not in ("shape", "learned") and getattr(self, n) != fields[n].default]
