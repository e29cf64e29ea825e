"""The configuration: validated models, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from ..policies.architectures import SHAPED
from ..policies.errors import ConfigError
from .budgets import BUDGET_METRICS, Budget
from .sections.base import Section, nearest
from .sections.controls import ControlsConfig
from .sections.exits import ExitsConfig
from .sections.network import DataConfig, ModelConfig
from .sections.search import LatencyConfig, PoolConfig, SearchConfig, StorageConfig
from .sections.space import SpaceConfig
from .sections.training import RecoveryConfig

MAX_CONFIG_BYTES = 1_000_000
MAX_SEED = 2**32 - 1
"""What every source of random numbers takes."""


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
    exits: ExitsConfig = ExitsConfig()
    controls: ControlsConfig = ControlsConfig()
    latency: LatencyConfig = LatencyConfig()
    storage: StorageConfig = StorageConfig()
    pool: PoolConfig = PoolConfig()
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets(cls, value: Any) -> Any:
        for name, text in value.items() if isinstance(value, dict) else ():
            if name not in BUDGET_METRICS:
                raise ValueError(f"unknown budget '{name}'{nearest(str(name), BUDGET_METRICS)}")
            try:
                Budget.parse(name, text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _agrees_with_one(self) -> Config:
        if self.quality == "agreement" and self.recovery.teachers:
            raise ValueError(
                "recovery.teachers: quality: agreement asks to match the dense network; leave out the teachers, or take"
                " quality: error"
            )
        return self

    def limits(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(Budget.parse(name, text) for name, text in self.budgets.items())

    @model_validator(mode="after")
    def _has_a_shape(self) -> Config:
        source, _, family = self.model.name.partition(":")
        if self.space.shape is not None and (source != "family" or family not in SHAPED):
            raise ValueError(
                f"space.shape: expected model.name to be family: and one of {', '.join(SHAPED)}; got '{self.model.name}'"
            )
        return self

    @model_validator(mode="after")
    def _can_train_there(self) -> Config:
        if self.pool.train == "tune" and self.pool.kind != "ray":
            raise ValueError(f"pool.train: expected pool.kind to be ray for tune; got '{self.pool.kind}'")
        if self.recovery.scheduler == "none":
            return self
        if self.pool.train != "tune":
            raise ValueError(f"recovery.scheduler: expected pool.train to be tune; got '{self.pool.train}'")
        # Stopped by their error, small candidates would lose to large ones of which the front has enough.
        if self.search.objectives != ("error",):
            raise ValueError(
                "recovery.scheduler: compares finalists by their error alone; expected search.objectives to be [error],"
                f" got [{', '.join(self.search.objectives)}]"
            )
        return self

    @model_validator(mode="after")
    def _can_train_controls(self) -> Config:
        complaint = self.controls.complaint(self.model, self.quality)
        if complaint is not None:
            raise ValueError(complaint)
        return self

    @property
    def sampler(self) -> str:
        """The sampler of the search: a bank is of one network's layers, so shapes are left to TPE where none is named."""
        name = self.search.sampler
        return "tpe" if self.space.shape is not None and name == "bank" else name

    def to_yaml(self) -> str:
        """The whole configuration with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


class _Loader(yaml.SafeLoader):
    """Keeps the sign of ``+1.0``, which means "above the dense network", and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"'{key.value}' is given twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        return node


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
    try:
        plain = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return make_config(plain, overrides, str(path))


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
        lines = [_explain(item) for item in _told(error.errors())]
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


def _told(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The complaints without those that a list is too short because its entries are wrong."""
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(len(i["loc"]) > len(item["loc"]) and i["loc"][: len(item["loc"])] == item["loc"] for i in items)
    ]


def _explain(item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    where = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(path[-1], _keys_at(path[:-1]))}"
    if item["type"] == "missing":
        return f"'{where}' is missing"
    if item["type"] == "too_short":
        return f"{where}: expected one entry or more, got none"
    message = str(item["msg"]).removeprefix("Value error, ")
    # Where the section is the whole configuration, or the message says more exactly where.
    if not where or message.startswith(f"{where}."):
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
