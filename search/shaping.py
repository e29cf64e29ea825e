"""Where the shape of the network is searched: the space of shapes, and the supernet that their weights come from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..evaluators.data import DataSet
from ..evaluators.models import load_weights
from ..evaluators.shapes import shape_profile
from ..evaluators.supernet import Part, Supernet
from ..evaluators.training.checkpoints import OnEpoch
from ..evaluators.training.loop import train
from ..evaluators.training.sandwich import Sandwich
from ..evaluators.training.task import TrainingTask
from ..policies.architectures import SHAPED
from ..policies.architectures.shapes import FAMILY
from ..policies.errors import ConfigError, ModelError, PolicyError
from ..policies.policy import Scalar
from ..spaces.families import default_menus
from ..spaces.shapes import ShapeSpace
from .config import Config
from .labelling import to_learn_from
from .rundir import RunDirectory
from .sections.space import ShapeConfig
from .splits import Splits, describe_recipe, trained_further
from .trainings import train_network

Say = Callable[[str], None]
Shape = Mapping[str, Scalar]
MOST_SHAPES = 256
"""Shapes that a supernet learns; of a larger space as many random ones, and those between them go by their neighbours."""


def shape_space(config: Config, dense: nn.Module, example: Tensor, say: Say) -> ShapeSpace:
    """The space of shapes that the configuration's network holds.

    The family's own menus lose what the network does not hold; menus that were given stay as they are, and candidates
    that it does not hold are recorded as failed.

    Raises
    ------
    ConfigError
        Where the network is of no family with a shape, a knob is unknown, or no choice is left.
    """
    given = given_space(config, example.shape[-1])
    if given is not None:
        return given
    shape = dense_shape(config, example.shape[-1])
    knobs = SHAPED[str(shape[FAMILY])].shape(**{name: value for name, value in shape.items() if name != FAMILY})
    supernet = Supernet(dense, example, _outputs(dense, example))
    menus = default_menus(str(shape[FAMILY]), knobs.pixels, knobs.downsampling)
    menus = {knob: _held(supernet, shape, knob, options, say) for knob, options in menus.items()}
    return _space(shape, {knob: options for knob, options in menus.items() if len(options) > 1})


def given_space(config: Config, side: int) -> ShapeSpace | None:
    """The space where the configuration names its menus, which needs no network; ``None`` where it does not.

    Raises
    ------
    ConfigError
        As ``shape_space`` does.
    """
    shape, menus = dense_shape(config, side), _shape_config(config).menus
    return _space(shape, menus) if menus else None


def _space(shape: Shape, menus: Mapping[str, tuple[Scalar, ...]]) -> ShapeSpace:
    fixed = {name: value for name, value in shape.items() if name != FAMILY and name not in menus}
    return ShapeSpace(str(shape[FAMILY]), menus, fixed)


def dense_shape(config: Config, side: int) -> dict[str, Scalar]:
    """The dense network's family and knobs, as the configuration gives them.

    Raises
    ------
    ConfigError
        Where its knobs are wrong, or it is made for pictures of another side.
    """
    family = config.model.name.partition(":")[2]
    try:
        knobs = SHAPED[family].shape(**config.model.arguments)
    except ModelError as error:
        raise ConfigError(f"model.arguments: {error}") from error
    if knobs.side != side:
        raise ConfigError(f"model.arguments: expected side to be the pictures' {side} pixels; got {knobs.side}")
    return {FAMILY: family, **config.model.arguments}


def make_supernet(
    config: Config, splits: Splits, dense: nn.Module, reference: bytes, space: ShapeSpace, run: RunDirectory, say: Say
) -> Supernet:
    """The network that all shapes are cut out of: from a file, from an earlier start of this run, or trained now.

    Parameters
    ----------
    reference
        The dense network as ONNX.

    Raises
    ------
    ConfigError
        Where it has to be trained and no shape of the space is contained in the dense network.
    """
    section, data = _shape_config(config).supernet, splits.data
    example = data.preprocess(data.calibration.images[:1])
    supernet = Supernet(copy.deepcopy(dense), example, _outputs(dense, example))
    if section.weights is not None:
        load_weights(supernet.model, section.weights)
    elif run.supernet.is_file():
        load_weights(supernet.model, str(run.supernet))
    else:
        shown = to_learn_from(config.quality, reference, data)
        recipe = describe_recipe(config, supernet=section.model_dump(mode="json"))
        metadata = trained_further(splits.record, config, recipe).metadata()
        _train(config, shown, supernet, learned_parts(space, supernet, config.seed), run, say, metadata)
    supernet.model.eval()
    return supernet


def learned_parts(space: ShapeSpace, supernet: Supernet, seed: int) -> list[Part]:
    """What the supernet learns to be, the one of the fewest multiply-accumulates first.

    Raises
    ------
    ConfigError
        Where it holds none of them.
    """
    everything = list(space.shapes())
    if len(everything) > MOST_SHAPES:
        drawn = np.random.default_rng(seed).choice(len(everything), MOST_SHAPES, replace=False)
        everything = [everything[i] for i in sorted(drawn)]
    held = list(_all_held(supernet, everything))
    if not held:
        raise ConfigError(
            "space.shape: no shape of the menus is contained in the dense network; expected model.arguments to be the"
            " largest shape"
        )
    return sorted(held, key=lambda part: _macs(part.shape, supernet))


def _macs(shape: Shape, supernet: Supernet) -> float:
    return shape_profile(shape, supernet.num_classes, supernet.example.shape[1]).macs


def _all_held(supernet: Supernet, shapes: Iterable[Shape]) -> Iterator[Part]:
    """Those that are contained in the supernet."""
    for shape in shapes:
        with suppress(PolicyError):
            yield supernet.part(shape)


def _held(supernet: Supernet, shape: Shape, knob: str, options: tuple[Scalar, ...], say: Say) -> tuple[Scalar, ...]:
    """The options of a knob that the network holds, the others left as they are in it."""
    held = tuple(o for o in options if any(_all_held(supernet, [{**shape, knob: o}])))
    if len(held) < len(options):
        left = ", ".join(str(option) for option in options if option not in held)
        say(f"space.shape: {knob} {left} is not contained in the dense network and left out")
    return held


def _train(
    config: Config,
    data: DataSet,
    supernet: Supernet,
    parts: list[Part],
    run: RunDirectory,
    say: Say,
    metadata: Mapping[str, str],
) -> None:
    section = _shape_config(config).supernet
    recipe = section.recipe()
    say(f"training the supernet for {len(parts)} shapes: {recipe.epochs} epochs of {len(data.train)} pictures")
    loss, seed = Sandwich.of(supernet, parts, section.random, recipe), config.seed

    def carry_out(checkpoint: Path | None, on_epoch: OnEpoch) -> None:
        train(supernet.model, data, recipe, seed=seed, loss=loss, checkpoint=checkpoint, on_epoch=on_epoch)

    task = TrainingTask(supernet.model, carry_out, recipe.epochs, metadata)
    train_network(task, run.supernet, run.path / "supernet-training.safetensors", config.pool, run, say)


def _shape_config(config: Config) -> ShapeConfig:
    assert config.space.shape is not None, "asked for where shapes are searched"
    return config.space.shape


def _outputs(dense: nn.Module, example: Tensor) -> int:
    return int(dense(example).shape[1])
