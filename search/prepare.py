"""From a configuration to all that a search needs: data, the dense network, its graph, the space and the baseline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluators.accuracy import file_error
from ..evaluators.cores import available_cores
from ..evaluators.counts import dense_counts
from ..evaluators.data import DataSet, check_measurable
from ..evaluators.holdout import ValidationFrom, whole_test
from ..evaluators.latency import LatencyProbe
from ..evaluators.layouts import Takes, shapes_taken_by
from ..evaluators.models import FUNCTION, build_model, load_weights
from ..evaluators.ray_pool import pickle_without_tensors
from ..evaluators.sources import load_data
from ..evaluators.supernet import Supernet
from ..evaluators.training.checkpoints import OnEpoch
from ..evaluators.training.task import TrainingTask
from ..evaluators.workbench import Settings, Workbench
from ..evaluators.wrappers import check_copies
from ..policies.apply import CompressedModel
from ..policies.architectures import SHAPED
from ..policies.architectures.shapes import FAMILY, network_of
from ..policies.coding.press import encode
from ..policies.errors import ConfigError, ModelError
from ..policies.graph import ModelGraph
from ..policies.loading import described
from ..policies.own_network import into_evaluation, own_copy, settle_calls
from ..policies.plain_layers import left_alone_notes, make_plain
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..policies.state import tensors_of, to_bytes
from ..policies.version import VERSION
from ..spaces.layerwise import KNOBS, LayerwiseSpace, Menu, make_units
from ..spaces.shapes import ShapeSpace
from .checking import check_outputs, check_training, export_reference
from .config import Config
from .identity import Identity, labels_digest, pictures_digest
from .labelling import labelled_by
from .rundir import RunDirectory
from .sections.space import SpaceConfig
from .shaping import given_space, make_supernet, shape_space
from .splits import Splits, describe_recipe, settle_splits, split_sizes, trained_here
from .teachers import known_by, learned, read_teachers, settled_hint
from .trainings import train_network

Say = Callable[[str], None]
OWN_MODEL = "python.object:model"
OWN_DATA = "python.object:data"
"""Names in the configuration of what the caller of the Python interface hands over."""


@dataclass(frozen=True)
class Given:
    """What the caller of the Python interface hands over instead of names.

    Parameters
    ----------
    model
        A trained network, or ``None``: the configuration's.
    data
        A data set, or ``None``: the configuration's.
    """

    model: nn.Module | None = None
    data: DataSet | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that does not change during a run.

    Parameters
    ----------
    bench
        What workers get.
    data
        All four splits; under ``quality: agreement`` the labels are the dense network's predictions.
    space
        Policies that may be tried.
    context_hash
        Digest of data, dense weights and settings: the part of an evaluation's identity that is not its policy.
    workers, threads
        Of the pool.
    identity
        What ``context_hash`` is made of, part by part.
    splits
        Which pictures candidates are compared on; its labels are the data's own.
    """

    bench: Workbench
    data: DataSet
    space: LayerwiseSpace | ShapeSpace
    context_hash: str
    workers: int
    threads: int
    identity: Identity
    splits: Splits

    @property
    def example(self) -> Tensor:
        """(1, C, H, W)."""
        return self.data.preprocess(self.data.calibration.images[:1])


def prepare(
    config: Config,
    run: RunDirectory,
    say: Say,
    given: Given | None = None,
    *,
    searched: bool = True,
    validation_from: ValidationFrom | None = None,
) -> Prepared:
    """Load, train where a recipe says so, trace and export the dense network.

    Parameters
    ----------
    searched
        Whether policies will be tried: where not, no supernet is trained for a space of shapes.
    validation_from
        Where an earlier start of the run took its validation pictures from.

    Raises
    ------
    InputError
        Where data, network, weights or space do not fit together.
    """
    given = given or Given()
    workers, threads = _workers(config)
    torch.set_num_threads(available_cores())
    data = given.data or read_data(config, say, given.model)
    check_measurable(data, config.data.limit)
    splits = settle_splits(config, data, is_handed_over=given.model is not None, recorded=validation_from)
    data = splits.data
    if config.space.shape is not None:
        given_space(config, data.input_shape[-1])
    model, graph, reference = _dense(config, given, splits, run, say)
    example = data.preprocess(data.calibration.images[:1])
    torch.set_num_threads(max(1, threads))
    teachers = read_teachers(config.recovery, model, data, config.seed, "recovery")
    hint = settled_hint(config.recovery, model, teachers or (model,), example, "recovery")
    network = _described(config, data) if given.model is None and config.storage.compact else None
    settings = replace(_settings(config), hint=hint, network=network)
    # Of the data as it came: what the dense network calls its pictures follows from it and the weights.
    stored = _stored_otherwise(settings)
    space, supernet, held = _space(config, splits, model, graph, reference, run, say, searched)
    taught = known_by(settings, [_weights_digest(teacher) for teacher in teachers])
    in_words = f"{settings}{stored}{taught}{held}"
    identity = Identity(
        release=VERSION,
        weights=_weights_digest(model),
        data=data.digest(),
        pictures=pictures_digest(data),
        labels=labels_digest(data),
        settings=hashlib.sha256(in_words.encode()).hexdigest(),
    )
    context = hashlib.sha256(f"{identity.data}{identity.weights}{in_words}".encode()).hexdigest()
    if config.quality == "agreement":
        say("labelling the pictures by the dense network's predictions (quality: agreement)")
        data = labelled_by(reference, data, available_cores())
    bench = Workbench(model, graph, data.without_test(), reference, settings, threads, supernet, teachers)
    return Prepared(bench, data, space, context, workers, threads, identity, splits)


def _dense(
    config: Config, given: Given, splits: Splits, run: RunDirectory, say: Say
) -> tuple[nn.Module, ModelGraph, bytes]:
    """Return the dense network as it is compressed, its graph and its ONNX file, and say what had to be done to it."""
    data = splits.data
    model = given.model if given.model is not None else dense_network(config, data, run, say)
    is_sent = config.pool.kind == "ray" or config.pool.train == "tune"
    check_copies(model, pickle_without_tensors if is_sent else None)
    model = into_evaluation(model) if given.model is None else own_copy(model)
    model = _settled(model, data, say)
    example = data.preprocess(data.calibration.images[:1])
    plain = make_plain(model, example)
    graph = ModelGraph.trace(plain.model, example)
    for note in (*splits.notes, *plain.notes, *left_alone_notes(graph.left_alone)):
        say(note)
    return plain.model, graph, export_reference(plain.model, data)


def _settled(model: nn.Module, data: DataSet, say: Say) -> nn.Module:
    """The network with calls that are safe, see ``settle_calls``; in evaluation mode, in which it gives logits."""
    check_outputs(model, data)
    for note in settle_calls(model, data.preprocess(data.calibration.images[:2])):
        say(note)
    return model


def _space(
    config: Config,
    splits: Splits,
    model: nn.Module,
    graph: ModelGraph,
    reference: bytes,
    run: RunDirectory,
    say: Say,
    searched: bool,
) -> tuple[LayerwiseSpace | ShapeSpace, Supernet | None, str]:
    """What is searched, the supernet where that is the network's shape, and the supernet's digest."""
    if config.space.shape is None:
        return make_space(config.space, graph, model), None, ""
    if config.search.sampler == "bank":
        say(f"space.shape: the sampler bank is of one network's layers; shapes are asked of {config.sampler}")
    data = splits.data
    space = shape_space(config, model, data.preprocess(data.calibration.images[:1]), say)
    if not searched:
        return space, None, ""
    supernet = make_supernet(config, splits, model, reference, space, run, say)
    return space, supernet, _weights_digest(supernet.model)


def read_data(config: Config, say: Say, model: nn.Module | None = None) -> DataSet:
    """The configuration's data set in its four splits; of arrays whose layout is open, the network takes one."""
    section = config.data
    directory = None if section.directory is None else Path(section.directory).expanduser()
    options = data_options(config)
    takes = shapes_taken(config, model)
    return load_data(section.name, directory=directory, report=say, takes=takes, **options)


def shapes_taken(config: Config, model: nn.Module | None) -> Takes | None:
    """Which shapes of pictures the network takes; ``None`` where it is built for whatever the data has."""
    size = data_options(config)["image_size"]
    if model is not None:
        return shapes_taken_by(model, size)
    section = config.model
    if not FUNCTION.fullmatch(section.name):
        return None

    def takes(shape: tuple[int, int, int]) -> bool:
        try:
            classes = section.num_classes
            own = build_model(
                section.name, num_classes=classes, in_channels=None, seed=config.seed, **section.arguments
            )
        except ModelError:
            # It asks for what only the data tells: it decides nothing.
            return False
        return shapes_taken_by(own, size)(shape)

    return takes


def data_options(config: Config) -> dict[str, Any]:
    """How data is split and preprocessed, for ``load_data`` and ``as_dataset`` alike."""
    section = config.data
    choice = section.validation_from
    return {
        "sizes": split_sizes(config),
        "seed": config.seed,
        "image_size": None if section.image_size is None else (section.image_size, section.image_size),
        "mean": section.mean,
        "std": section.std,
        "limit": section.limit,
        "validation_split": None if choice in ("training", "testing") else choice,
    }


def dense_network(config: Config, data: DataSet, run: RunDirectory, say: Say) -> nn.Module:
    """The trained network: weights from a file, from an earlier start of this run, or by the recipe."""
    section = config.model
    model = empty_network(config, data)
    if section.weights is not None:
        load_weights(model, section.weights)
    elif run.weights.is_file():
        load_weights(model, str(run.weights))
    elif section.train is not None:
        recipe, seed, shown = section.train, config.seed, data.without_test()
        _check_before_training(config, _settled(into_evaluation(model), data, say), shown)
        say(f"training {section.name} on {data.name}: {recipe.epochs} epochs of {len(data.train)} pictures")

        def carry_out(checkpoint: Path | None, on_epoch: OnEpoch) -> None:
            learned(model, shown, recipe, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch)

        provenance = trained_here(data, describe_recipe(config, train=recipe.model_dump(mode="json")))
        task = TrainingTask(model, carry_out, recipe.epochs, provenance.metadata())
        train_network(task, run.weights, run.path / "training.safetensors", config.pool, run, say)
    return model


def empty_network(config: Config, data: DataSet) -> nn.Module:
    """The network of the configuration, untrained."""
    section = config.model
    known = section.num_classes or (None if config.quality == "agreement" else data.num_classes)
    channels = data.input_shape[0] if data.input_shape[0] != 3 else None
    return build_model(section.name, num_classes=known, in_channels=channels, seed=config.seed, **section.arguments)


def network_for(policy: Policy, config: Config, data: DataSet) -> nn.Module:
    """The untrained network that a policy is carried out on: of the shape that it sets, or the configuration's."""
    if not policy.shape:
        return empty_network(config, data)
    return network_of(policy.shape, config.model.num_classes or data.num_classes, data.input_shape[0])


def make_space(section: SpaceConfig, graph: ModelGraph, model: nn.Module | None = None) -> LayerwiseSpace:
    """The space of a configuration on a network; its weights are needed for ``sparsity_global`` alone.

    Raises
    ------
    ConfigError
        Where no knob is left, a rule names no layer, or blocks are to be dropped that the network has not.
    """
    _check_rules(section, graph)
    _check_blocks(section, graph)
    units = make_units(graph, section.tie, section.skip)
    menus = {unit: _menu(section, names) for unit, names in units.items()}
    split = (menu for menu in menus.values() if min(menu.rank) < 1 or set(menu.rewrite) != {"keep"})
    if section.drop_dead and any(split):
        raise ConfigError(
            "space.drop_dead: channels of factorized layers cannot be dropped; leave out drop_dead or rank and rewrite"
        )
    space = LayerwiseSpace(
        graph,
        units,
        menus,
        section.multiple,
        section.factorize,
        section.second_order,
        section.prune,
        section.drop,
        section.drop_dead,
    )
    if section.sparsity_global:
        assert model is not None, "sparsity_global needs the network's weights"
        space = space.with_thresholds(_prunable(section, space, model), section.sparsity_global)
    if not space.menu():
        raise ConfigError(
            "space: every menu has one option or none fits a layer;"
            " give sparsity, precision, rank, rewrite, channels or blocks two or more"
        )
    return space


def measure_baseline(prepared: Prepared, config: Config) -> dict[str, float]:
    """The dense network's metrics; its test error is the one reading of the test split that it gets."""
    bench, data = prepared.bench, prepared.data
    assert data.test is not None
    cores = available_cores()
    tensors = CompressedModel(bench.model, make_plan(Policy(), bench.graph)).stored_once()
    probe = LatencyProbe(bench.reference, prepared.example.numpy(), config.latency.threads)
    latency = probe.measure(bench.reference, pairs=config.latency.pairs, seed=config.seed)
    error = file_error(bench.reference, data, data.test, cores)
    validation_error = file_error(bench.reference, data, data.validation, cores)
    return {
        "error_pct": error,
        "validation_error_pct": validation_error,
        **whole_test(data, validation_error, error),
        "stored_bytes": len(encode(tensors, {}, coder=config.storage.coder)),
        "onnx_bytes": len(bench.reference),
        "latency_ratio": 1.0,
        "latency_ms": latency.reference_ms,
        **dense_counts(bench.model, prepared.example, len(bench.reference)),
    }


def _menu(section: SpaceConfig, names: tuple[str, ...]) -> Menu:
    options = {knob: getattr(section, knob) for knob in KNOBS}
    for rule in section.rules:
        if any(fnmatchcase(name, rule.layers) for name in names):
            options |= {knob: value for knob in options if (value := getattr(rule, knob)) is not None}
    return Menu(**options)


def _prunable(section: SpaceConfig, space: LayerwiseSpace, model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of each unit whose sparsity no rule sets; depthwise layers are not pruned."""
    found: dict[str, np.ndarray] = {}
    for unit, names in space.units.items():
        ruled = any(r.sparsity is not None and fnmatchcase(name, r.layers) for r in section.rules for name in names)
        layers = [model.get_submodule(name) for name in names if space.graph.layers[name].groups == 1]
        if layers and not ruled:
            weights = [cast(Tensor, layer.weight).detach().cpu().numpy().ravel() for layer in layers]
            found[unit] = np.concatenate(weights)
    if not found:
        raise ConfigError(
            "space.sparsity_global: every layer has a rule for its sparsity or is depthwise; leave it out"
        )
    return found


def _check_rules(section: SpaceConfig, graph: ModelGraph) -> None:
    for number, rule in enumerate(section.rules):
        if not any(fnmatchcase(name, rule.layers) for name in graph.layers):
            raise ConfigError(
                f"space.rules.{number}: '{rule.layers}' matches no layer; the network has {', '.join(graph.layers)}"
            )


def _check_blocks(section: SpaceConfig, graph: ModelGraph) -> None:
    roots = [branch.root for branch in graph.branches]
    asked = [("space.blocks", "*", section.blocks)]
    asked += [("space.rules", rule.layers, rule.blocks) for rule in section.rules if rule.blocks is not None]
    for where, pattern, blocks in asked:
        if "drop" in blocks and not any(fnmatchcase(root, pattern) for root in roots):
            known = f"these do: {', '.join(roots)}" if roots else "the network has none that can be dropped"
            raise ConfigError(
                f"{where}: blocks are to be dropped where '{pattern}' matches no layer that starts a residual branch;"
                f" {known}"
            )


def _settings(config: Config) -> Settings:
    return Settings(
        quality=config.quality,
        stitch_pictures=config.search.stitch_pictures,
        screen_pictures=config.search.screen_pictures,
        screen_seconds=config.latency.screen_seconds,
        latency_threads=config.latency.threads,
        recovery=config.recovery.recipe(),
        prune_share=config.recovery.prune_share,
        prune_schedule=config.recovery.prune_schedule,
        tryout=config.recovery.tryout,
        temperature=config.recovery.temperature,
        # Without true labels the dense network is the only one to learn from.
        teacher_weight=1.0 if config.quality == "agreement" else config.recovery.teacher_weight,
        seed=config.seed,
        coder=config.storage.coder,
        teach=config.recovery.teach,
        compact=config.storage.compact,
        vector_bits=config.storage.vector_bits,
    )


def _stored_otherwise(settings: Settings) -> str:
    """How files are stored, where it is not as it always was: older results keep their identity."""
    coder = "" if settings.coder == "ans" else settings.coder
    told = "" if settings.network is None else json.dumps(settings.network)
    return f"{coder}{' compact' * settings.compact}{told}{f' {settings.vector_bits}' * (settings.vector_bits != 8)}"


def _described(config: Config, data: DataSet) -> list[Any] | None:
    """What compact files say of the network; ``None`` where it is of no family with a shape."""
    source, _, family = config.model.name.partition(":")
    if source != "family" or family not in SHAPED:
        return None
    shape = {FAMILY: family, **config.model.arguments}
    return described(shape, config.model.num_classes or data.num_classes, data.input_shape[0])


def _workers(config: Config) -> tuple[int, int]:
    cores = available_cores()
    workers = 1 if config.pool.kind == "in-process" else (config.pool.workers or cores)
    return workers, max(1, cores // workers)


def _check_before_training(config: Config, model: nn.Module, data: DataSet) -> None:
    """Refuse what could not be searched once it is trained."""
    model = make_plain(model, data.preprocess(data.calibration.images[:1])).model
    export_reference(model, data)
    graph = ModelGraph.trace(model, data.preprocess(data.calibration.images[:1]))
    assert config.model.train is not None
    check_training(model, data, config.model.train.batch_size, graph.layers, "give model.weights")
    if config.space.shape is None:
        make_space(config.space, graph, model)


def _weights_digest(model: nn.Module) -> str:
    tensors = tensors_of(model)
    sha = hashlib.sha256(json.dumps(sorted(tensors)).encode())
    for value in tensors.values():
        sha.update(to_bytes(value))
    return sha.hexdigest()
