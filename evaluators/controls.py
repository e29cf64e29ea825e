"""Controls of a member of the front: its architecture or its mask, trained from a start that owes nothing to its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..policies import forms
from ..policies.apply import CompressedModel, apply_plan, quantize_layers, under_names
from ..policies.batch_norms import reestimate_statistics
from ..policies.coding.press import decode
from ..policies.coding.tensors import StoredTensor
from ..policies.dead import drop_some
from ..policies.errors import CandidateError
from ..policies.graph import input_energies
from ..policies.importance import Importance
from ..policies.own_network import into_evaluation, settle_calls
from ..policies.plain_layers import make_plain
from ..policies.plan import Plan, make_plan
from ..policies.policy import Policy
from ..policies.state import load_tensors, tensors_of
from ..policies.techniques import ChannelTechnique, DropDead, KeepChannels, MergeNeurons, Phase, PruneChannels, build
from ..policies.techniques.collapse import Collapse
from ..policies.techniques.prune_magnitude import PruneMagnitude
from ..policies.techniques.prune_nm import PruneNM
from ..policies.techniques.prune_obd import PruneOBD
from ..policies.techniques.prune_obs import PruneOBS
from .candidate import CandidateEvaluator
from .stopwatch import Stopwatch
from .training.checkpoints import UNKEPT, Checkpoints
from .training.loop import Recipe, train
from .training.lottery import CONTROLS, FROM_INITIAL, SCRATCH, Control, Masks, Origins, Start, hold, ticket
from .untrained import Untrained

FIDELITY = "control:"
"""What a control's rung begins with, its name follows."""

PRUNERS = (PruneMagnitude, PruneOBD, PruneOBS, PruneNM)
TRACEABLE = ("energy", "magnitude")
"""Scores of channels that do not depend on which pictures a worker looked at: which channels went can be told again."""
IMPORTANCE_PICTURES = 64


def applicable(policy: Policy) -> tuple[Control, ...]:
    """The controls that say something about a policy.

    Training from scratch is for what changed the network's structure: its shape, channels, branches, factors. The others are
    for pruned weights; those that begin with the initial weights need to tell which of them a weight was.
    """
    steps = [(name, build(step)) for name, steps in policy.layers.items() for step in steps]
    factorized = {name for name, t in steps if t.phase == Phase.FACTORIZE}
    dead = any(isinstance(t, DropDead) for _, t in steps)
    cut = [t for _, t in steps if isinstance(t, ChannelTechnique)]
    rearchitected = any(t.phase == Phase.REARCHITECT for _, t in steps)
    collapsed = any(isinstance(t, Collapse) for _, t in steps)
    pruned = {name for name, t in steps if isinstance(t, PRUNERS)}
    found: list[Control] = list(SCRATCH) if policy.shape or factorized or dead or cut or rearchitected else []
    if pruned and not dead:
        found.append("random")
        if (
            not policy.shape
            and not collapsed
            and not pruned & factorized
            and all(isinstance(t, KeepChannels) or t.chosen_by in TRACEABLE for t in cut)
        ):
            found += FROM_INITIAL
    return tuple(control for control in CONTROLS if control in found)


def control(
    evaluator: CandidateEvaluator,
    fidelity: str,
    policy: Policy,
    payload: Mapping[str, Any],
    checkpoints: Checkpoints = UNKEPT,
) -> dict[str, Any]:
    """A job: train and measure the control that the rung names.

    Parameters
    ----------
    payload
        ``press``, ``epochs``, ``seed`` and ``halvings``, see ``ControlEvaluator``.
    """
    untrained = evaluator.bench.untrained
    assert untrained is not None, "the driver says how networks begin where it asks for controls"
    (name,) = (name for name in CONTROLS if fidelity == f"{FIDELITY}{name}")
    given = {key: int(payload.get(key, 0)) for key in ("epochs", "seed", "halvings")}
    return ControlEvaluator(evaluator, untrained, checkpoints)(name, policy, payload["press"], **given)


def epochs_of(control: Control, epochs: int, dense_macs: float, macs: float) -> int:
    """Epochs of a control's training (1810.05270, section 3).

    Scratch-E trains for as many as the dense network, Scratch-B for as much computation, ``epochs * dense_macs / macs``. A
    supermask is not trained.
    """
    if control == "supermask":
        return 0
    return max(1, round(epochs * dense_macs / macs)) if control == "scratch_b" else epochs


@dataclass(frozen=True)
class ControlEvaluator:
    """Trains and measures the controls of members.

    The start takes the place of the trained weights. It is trained by the dense network's recipe, under the member's masks;
    what follows on pruning (quantization, shared weights) is then done to it as to the member, fine-tuning by the
    recovery's recipe included.

    Parameters
    ----------
    evaluator
        Of the network that the member's policy is for.
    untrained
        How networks begin.
    checkpoints
        Where the trainings keep their states.
    """

    evaluator: CandidateEvaluator
    untrained: Untrained
    checkpoints: Checkpoints = UNKEPT

    def __call__(
        self, control: Control, policy: Policy, press: bytes, epochs: int, seed: int, halvings: int = 0
    ) -> dict[str, Any]:
        """The control of a member: its error on validation pictures, and its files.

        Parameters
        ----------
        press
            The member's stored file, which has its masks.
        epochs
            Of the training, see ``epochs_of``.
        halvings
            How often its batches are halved, after a lack of memory.

        Raises
        ------
        CandidateError
            Where a training diverges, or the member's weights are none of a network that was drawn anew.
        """
        watch, bench = Stopwatch(), self.evaluator.bench
        plan = make_plan(policy, bench.graph)
        with watch("build"):
            tensors = under_names(plan, bench.graph, bench.model, decode(press).tensors)
            model, masks = self._begun(control, plan, tensors, seed)
        recipe = _halved(replace(self.untrained.recipe, epochs=epochs), halvings)
        with watch("train"):
            if epochs:
                self._train(model, recipe, seed)
            self._follow_on(plan, model, seed, epochs)
        result = self.evaluator.validated(CompressedModel(into_evaluation(model), plan), watch)
        zeros = {"masked_weights": float(sum(int((~mask).sum()) for mask in masks.values()))}
        result["metrics"] |= {"epochs": float(epochs), **zeros}
        result["artefacts"] = {name.replace("model", control): file for name, file in result["artefacts"].items()}
        return result

    def _begun(
        self, control: Control, plan: Plan, tensors: Mapping[str, StoredTensor], seed: int
    ) -> tuple[nn.Module, Masks]:
        """The network as its training begins, and the masks that its layers carry."""
        bench = self.evaluator.bench
        if control not in FROM_INITIAL:
            network = self._settled(self.untrained.drawn(seed, bench.model, plan.policy.shape))
            model = self._structured(_any_channels(plan), network, None)
            if not plan.collapsed:
                _keep_variance(model, network)
            drop_some(model, [g for g in bench.graph.groups if g.root in plan.dead], _counts(plan, tensors))
            masks = _masks(plan, model, tensors)
            hold(model, ticket("random", Origins(random=_state(model)), masks), masks)
            return model, masks
        model = self._structured(plan, self._settled(self.untrained.initial()), self._importance())
        masks = _masks(plan, model, tensors)
        start: Start = "initial" if control == "rewind" else "signs" if control == "signs" else "supermask"
        origins = Origins(initial=_state(model), final=_decoded(masks, tensors))
        if control == "rewind" and self.untrained.early is not None:
            start, origins = "early", replace(origins, early=self._early_state(plan))
        hold(model, ticket(start, origins, masks), masks)
        return model, masks

    def _settled(self, network: nn.Module) -> nn.Module:
        """A network that was built anew, its calls made as safe as the dense network's."""
        settle_calls(network, self._calibration[:2])
        return network

    def _early_state(self, plan: Plan) -> dict[str, Tensor]:
        network = self.untrained.initial()
        assert self.untrained.early is not None
        load_tensors(network, self.untrained.early)
        return _state(self._structured(plan, network, self._importance()))

    def _structured(self, plan: Plan, network: nn.Module, importance: Importance | None) -> nn.Module:
        """What the plan does to the structure, on a network of the dense one's; weights are left to the masks."""
        early = [
            replace(p, techniques=tuple(t for t in p.techniques if t.phase < Phase.QUANTIZE and not _prunes(t)))
            for p in plan.layers
        ]
        structure = replace(plan, layers=tuple(p for p in early if p.techniques), dead=())
        graph = self.evaluator.bench.graph
        network = make_plain(network, self._calibration[:1]).model
        return apply_plan(structure, graph, network, self._calibration, importance=importance).model

    def _train(self, model: nn.Module, recipe: Recipe, seed: int) -> None:
        on_epoch = self.evaluator.fine_tuning.following(model, self.checkpoints, 0)
        data, checkpoint = self.evaluator.bench.data, self.checkpoints.of(0)
        train(model.requires_grad_(True), data, recipe, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch)

    def _follow_on(self, plan: Plan, model: nn.Module, seed: int, epochs: int) -> None:
        """What comes after pruning, in place."""
        if not epochs:
            reestimate_statistics(into_evaluation(model), self._calibration)
        if any(t.phase >= Phase.QUANTIZE for layer in plan.layers for t in layer.techniques):
            quantize_layers(plan, model, self._calibration)
            if epochs:
                recipe, data = self.evaluator.bench.settings.recovery, self.evaluator.bench.data
                self.evaluator.fine_tuning.train(model, recipe, seed + 1, data, self.checkpoints, epochs)

    def _importance(self) -> Importance:
        """Of the trained network's channels: those that went are the member's."""
        bench = self.evaluator.bench
        energies = input_energies(bench.model, self._calibration, bench.graph.groups)
        return Importance(bench.model, bench.graph.groups, self._calibration[:IMPORTANCE_PICTURES], energies)

    @property
    def _calibration(self) -> Tensor:
        data = self.evaluator.bench.data
        return data.preprocess(data.calibration.images)


def _prunes(technique: object) -> bool:
    return isinstance(technique, PRUNERS)


def _any_channels(plan: Plan) -> Plan:
    """The plan with as many channels dropped, none merged: of random weights all are alike."""
    channels = {
        root: PruneChannels(step.sparsity, step.multiple, "magnitude")
        if isinstance(step, PruneChannels | MergeNeurons)
        else step
        for root, step in plan.channels.items()
    }
    return replace(plan, channels=channels)


def _keep_variance(model: nn.Module, drawn: nn.Module) -> None:
    """Scale weights that lost inputs by ``sqrt(inputs / inputs left)``, in place: sums vary as the initialisation has it."""
    before = dict(forms.weighted_modules(drawn))
    for name, layer in forms.weighted_modules(model):
        if name in before and forms.form_of(layer) is None:
            inputs, left = (_inputs(module) for module in (before[name], layer))
            if left != inputs:
                with torch.no_grad():
                    layer.get_parameter("weight").mul_(math.sqrt(inputs / left))


def _inputs(layer: nn.Module) -> int:
    return int(np.prod(layer.get_parameter("weight").shape[1:]))


def _masks(plan: Plan, model: nn.Module, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The member's masks of the layers that the plan prunes, from its file; those of factors by their own names."""
    masks: dict[str, Tensor] = {}
    for layer in plan.layers:
        if not any(_prunes(technique) for technique in layer.techniques):
            continue
        for inner, module in forms.weighted_modules(model.get_submodule(layer.layer.name)):
            name = f"{layer.layer.name}.{inner}" if inner else layer.layer.name
            stored = tensors[f"{name}.weight"]
            kept = getattr(stored, "mask", None)
            mask = torch.from_numpy(np.array(stored.decode() != 0 if kept is None else kept))
            if mask.shape != module.get_parameter("weight").shape:
                came, expected = tuple(mask.shape), tuple(module.get_parameter("weight").shape)
                raise CandidateError(
                    f"layer '{name}': the member's weights are {came}, those of a new start {expected}"
                )
            masks[name] = mask
    return masks


def _decoded(masks: Masks, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.from_numpy(np.array(tensors[f"{name}.weight"].decode())) for name in masks}


def _counts(plan: Plan, tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Channels left in groups whose dead channels were dropped."""
    return {root: len(tensors[f"{root}.weight"].decode()) for root in plan.dead if f"{root}.weight" in tensors}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors_of(model).items()}


def _halved(recipe: Recipe, times: int) -> Recipe:
    return replace(recipe, batch_size=max(2, recipe.batch_size >> times)) if times else recipe
