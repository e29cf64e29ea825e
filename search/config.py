"""The configuration: validated models, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..evaluators.training.augment import Augment
from ..evaluators.training.loop import Recipe
from ..evaluators.training.penalties import PENALTIES, make_penalty
from ..policies.coding.stream import Coder
from ..policies.errors import ConfigError
from ..spaces.precision import KNOWN
from .budgets import BUDGET_METRICS, Budget

MAX_CONFIG_BYTES = 1_000_000
OBJECTIVES = {**BUDGET_METRICS, "latency": "latency_ratio"}

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    temperature: Positive = Field(4.0, description="softens the dense network's outputs")
    teacher_weight: float = Field(0.7, ge=0, le=1, description="share of the loss that the dense network sets")


class ModelConfig(Section):
    """The trained network."""

    name: str = Field(description="timm:NAME, torchvision:NAME, family:NAME or package.module:function")
    weights: str | None = Field(None, description="a .safetensors or .pt file, or package:efficientnet-lite0")
    train: TrainConfig | None = Field(None, description="a recipe that trains it first, where there are no weights")
    num_classes: Count | None = Field(None, description="outputs; the data's classes where not given")
    arguments: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="for the network's constructor"
    )

    @model_validator(mode="after")
    def _has_weights(self) -> ModelConfig:
        if self.weights is None and self.train is None and ":" in self.name and self.name.split(":")[0] in _SOURCES:
            raise ValueError(
                "give model.weights (a file) or model.train (a recipe): an untrained network is not worth a search"
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
    calibration: Count = Field(256, description="training pictures for activation ranges and batch-norm statistics")
    test: float = Field(0.2, gt=0, description="share or number held out where the source has no test pictures")
    limit: Count | None = Field(None, description="use only so many training and test pictures")


class SpaceRule(Section):
    """Menus for the layers whose names match a pattern, in place of the general ones."""

    layers: str = Field(description="a pattern such as fc* or layer1.*")
    sparsity: tuple[Share, ...] | None = None
    precision: tuple[str, ...] | None = None
    rank: tuple[float, ...] | None = None
    channels: tuple[float, ...] | None = None
    blocks: tuple[Literal["keep", "drop"], ...] | None = None


class SpaceConfig(Section):
    """What may be done to a layer; a menu of one entry is no choice."""

    sparsity: tuple[Share, ...] = Field((0.0,), description="shares of weights dropped")
    sparsity_global: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (),
        description="total sparsities for which one magnitude threshold over all layers gives each layer its own; these"
        " are tried and added to the layers' menus, where no rule gives a layer its sparsity",
    )
    precision: tuple[str, ...] = Field(
        ("float32", "w8a8"),
        description=f"how the weights are held: {KNOWN}",
    )
    rank: tuple[float, ...] = Field(
        (1.0,), description="shares of a layer's weights that its factors keep; 1: not factorized"
    )
    channels: tuple[float, ...] = Field((1.0,), description="shares of a group's channels that are kept")
    blocks: tuple[Literal["keep", "drop"], ...] = Field(
        ("keep",), description="keep, or keep and drop: whether residual branches may be dropped whole"
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
        False, description="drop channels that pruning leaves without a connection; not where ranks are chosen too"
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


class SearchConfig(Section):
    """How the space is searched."""

    sampler: Literal["bank", "nsga2", "tpe", "gp", "random"] = Field(
        "bank", description="bank: solve a bank of measured layer variants; the others are Optuna's"
    )
    evaluations: Count = Field(100, description="candidates screened")
    minutes: Positive | None = Field(
        None, description="time that the workers may spend on bank and screening, however many were screened by then"
    )
    batch: Count = Field(8, description="candidates asked for at a time")
    objectives: tuple[str, ...] = Field(("error", "stored", "latency"), min_length=1)
    stitch_pictures: Count = Field(
        128,
        description="training pictures of the lowest rung, on which the sampler 'bank' tries thrice as many candidates",
    )
    screen_pictures: Count = Field(1000, description="validation pictures a candidate is screened on")
    screen_error: Positive = Field(
        10.0, description="points of error above the dense network that recovery is trusted to win back"
    )
    finalists: Count = Field(8, description="candidates that are recovered, exported and tested")

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective '{name}'{_nearest(name, OBJECTIVES)}")
        return value


class LatencyConfig(Section):
    """How latency is measured: ONNX Runtime, interleaved with the dense network."""

    threads: Count = 1
    screen_seconds: Positive = Field(0.6, description="time a candidate's probe may take while screening")
    pairs: Annotated[int, Field(ge=50)] = Field(100, description="candidate/reference pairs of a final measurement")


class StorageConfig(Section):
    """How compressed networks are stored."""

    coder: Coder = Field("ans", description="ans for the fewest bytes, or huffman for codes of whole bits (1510.00149)")


class PoolConfig(Section):
    """Where candidates are evaluated."""

    kind: Literal["ray", "in-process"] = "ray"
    workers: Count | None = Field(None, description="default: one a core")
    address: str | None = Field(None, description="of a Ray cluster; local by default")
    min_timeout_s: Positive = Field(60.0, description="least time before an evaluation is taken for hung")


class Config(Section):
    """A whole run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    quality: Literal["error", "agreement"] = Field(
        "error", description="what error_pct means: wrong labels, or disagreement with the dense network"
    )
    budgets: dict[str, str | float] = Field(default_factory=dict, description="any of " + ", ".join(BUDGET_METRICS))
    space: SpaceConfig = SpaceConfig()
    search: SearchConfig = SearchConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    latency: LatencyConfig = LatencyConfig()
    storage: StorageConfig = StorageConfig()
    pool: PoolConfig = PoolConfig()
    seed: int = Field(0, ge=0)

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, value: dict[str, str | float]) -> dict[str, str | float]:
        for name, text in value.items():
            if name not in BUDGET_METRICS:
                raise ValueError(f"unknown budget '{name}'{_nearest(name, BUDGET_METRICS)}")
            try:
                Budget.parse(name, text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    def limits(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(Budget.parse(name, text) for name, text in self.budgets.items())

    def to_yaml(self) -> str:
        """The whole configuration with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


_SOURCES = ("timm", "torchvision", "family")


class _Loader(yaml.SafeLoader):
    """Keeps the sign of ``+1.0``, which means "above the dense network"."""


_Loader.yaml_implicit_resolvers = {
    key: value for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items() if key != "+"
}


def parse_yaml(text: str) -> Any:
    """YAML as configurations are read: ``+1.0`` stays text.

    Raises
    ------
    ConfigError
        Where the text is too long or no YAML.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"a configuration has at most {MAX_CONFIG_BYTES} bytes; this one has {len(text)}")
    try:
        return yaml.load(text, Loader=_Loader)
    # PyYAML lets a wrong date or number through as one of the latter two.
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
        raise ConfigError(f"the configuration is no valid YAML: {error}") from error


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a configuration file, with ``a.b=c`` overrides.

    Raises
    ------
    ConfigError
        Where the file cannot be read or a key or value is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return make_config(parse_yaml(text), overrides, str(path))


def make_config(data: object, overrides: tuple[str, ...] = (), source: str = "configuration") -> Config:
    """Validate plain data.

    Raises
    ------
    ConfigError
        Naming each wrong key with the nearest known one, and each wrong value with what was expected.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source}: expected a mapping with 'model', 'data', 'budgets', ...; got {type(data).__name__}"
        )
    for override in overrides:
        data = _override(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{source} is not valid:\n  " + "\n  ".join(dict.fromkeys(lines))) from error


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    path, sign, text = override.partition("=")
    if not sign or not path.strip():
        raise ConfigError(f"--set takes a.b=value, got '{override}'")
    keys = path.strip().split(".")
    out: dict[str, Any] = dict(data)
    here = out
    for key in keys[:-1]:
        inner = here.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a section")
        here[key] = dict(inner or {})
        here = here[key]
    here[keys[-1]] = parse_yaml(text)
    return out


def _explain(item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    where = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_nearest(path[-1], _keys_at(path[:-1]))}"
    if item["type"] == "missing":
        return f"'{where}' is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("budgets."):
        return message
    return f"{where}: {message}" + ("" if item["type"] == "value_error" else f" (got {item['input']!r})")


def _keys_at(path: list[str]) -> list[str]:
    section: Any = Config
    for key in path:
        field = getattr(section, "model_fields", {}).get(key)
        if field is None:
            continue
        arguments = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), section)
    return list(section.model_fields)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
