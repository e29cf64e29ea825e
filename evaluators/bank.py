"""The bank: each layer compressed once in each way that is asked for, and networks put together from it by pointer.

A layer is compressed from the dense network's weights and inputs, whatever is done to the other layers, so that what is made
once serves every candidate. Channels that a group drops are cut out of a layer's weights, and the weights that are left
are solved again for the least output error (2208.11580, section 3). The batch norm behind a layer follows the change of
its output's mean and variance.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..policies import forms
from ..policies.apply import CompressedModel, round_vectors, settle_and_quantize
from ..policies.batch_norms import settle_statistics
from ..policies.branches import Branch, stand_ins
from ..policies.coding.press import decode, encode
from ..policies.coding.stream import CODERS, Coder
from ..policies.coding.tensors import StoredTensor
from ..policies.copying import with_modules
from ..policies.errors import CandidateError, FormatError, PolicyError
from ..policies.graph import ModelGraph
from ..policies.own_network import into_evaluation
from ..policies.plan import Plan
from ..policies.state import tensors_of, to_dense
from ..policies.stored_layers import layer_tensors, set_tensors
from ..policies.techniques import Calibration, Phase, Technique, spelled_out
from ..policies.techniques.base import Outlined, Resumable, outline
from .cutting import Cuts, Cutter
from .observe import Observations, outputs_of
from .variants import Key, Recent, Stitch, Variant

KEPT_VARIANT_BYTES = 1_000_000_000
KEPT_STAGE_BYTES = 256_000_000
_EMPTY_BYTES = {coder: len(encode({}, {}, coder=coder)) for coder in CODERS}


class Bank:
    """Variants of a network's layers, made when first asked for and kept.

    Parameters
    ----------
    model
        The dense network, in evaluation mode; not changed.
    graph
        Its layers and channel groups.
    observations
        What was seen of its layers on calibration pictures.
    energies
        ``input_energies`` of the network, by which channels are chosen.
    norms
        Layer -> the batch norm behind it.
    coder
        By which bytes are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        observations: Observations,
        energies: Mapping[str, Tensor],
        norms: Mapping[str, str],
        coder: Coder = "ans",
    ) -> None:
        self._coder: Coder = coder
        self._model, self._graph, self._seen, self._norms = model, graph, observations, norms
        self._modules = dict(model.named_modules())
        self._cutter = Cutter(model, graph, observations, energies)
        self._variants: Recent[Variant] = Recent(KEPT_VARIANT_BYTES)
        self._stages: Recent[tuple[nn.Module, Calibration]] = Recent(KEPT_STAGE_BYTES)
        self._failures: dict[Key, str] = {}
        self._files: Mapping[str, bytes] = {}
        self._others: dict[tuple[str, Cuts], nn.Module] = {}
        self._dense_bytes = {name: coded_bytes(self._modules[name], coder) for name in graph.layers}
        self._rest = _rest(model, graph)
        self._rest_bytes = len(encode(self._rest, {}, coder=coder))
        self._without: dict[str, tuple[dict[str, nn.Module], int]] = {}

    def adopt(self, files: Mapping[str, bytes]) -> None:
        """Take variants that were made elsewhere, by their digest, as ``stored_layers.write_layer`` wrote them."""
        self._files = files

    def forget(self) -> None:
        """Free what was computed of the observed layers, which is computed again when it is needed; variants stay."""
        self._seen.forget()

    def stitch(self, plan: Plan) -> Stitch:
        """The candidate of a plan.

        Raises
        ------
        CandidateError
            Where a layer cannot be compressed so, or its channels cannot be cut without tracing the network again.
        """
        if plan.collapsed:
            raise CandidateError("layers of the bank stand alone; two that become one are compressed with the network")
        cuts = {r: (r, step.keep(self._cutter.channels(r)), step.chosen_by) for r, step in plan.channels.items()}
        self._cutter.check(cuts.values())
        own = {layer.layer.name: layer.techniques for layer in plan.layers}
        modules: dict[str, nn.Module] = {}
        variants: dict[str, Variant] = {}
        kept: dict[str, Tensor] = {}
        gone = {name for branch in plan.dropped for name in branch.modules}
        for name in dict.fromkeys([*own, *(name for root in cuts for name in self._cutter.touched(root))]):
            if name in gone:
                continue
            local = self._cutter.of(name, cuts)
            if name in self._graph.layers:
                variants[name] = self.variant(name, local, own.get(name, ()))
                modules[name] = variants[name].plain
            else:
                modules[name] = self._other(name, local)
                if isinstance(norm := self._modules[name], _BatchNorm):
                    lost = self._cutter.lost(name, "out", local)
                    kept[name] = torch.tensor([c for c in range(norm.num_features) if c not in lost])
        for variant in variants.values():
            modules |= variant.norms
        sizes = {**self._dense_bytes, **{name: variant.stored_bytes for name, variant in variants.items()}}
        rest = self._rest_bytes
        for branch in plan.dropped:
            standing, saved = self._without_branch(branch)
            modules |= standing
            rest -= saved
        return Stitch(modules, variants, rest + sum(size for name, size in sizes.items() if name not in gone), kept)

    def can_make(self, plan: Plan) -> bool:
        """Whether every group that the plan cuts is known by its slots, so that no new trace is needed; and all layers stay."""
        return not plan.collapsed and all(group.slots for group in self._graph.groups if group.root in plan.channels)

    def assemble(self, plan: Plan, calibration: Tensor) -> CompressedModel:
        """The candidate as a network of its own: batch norms estimated anew, 8-bit ranges as its activations are.

        Parameters
        ----------
        calibration
            Input of the network (N, C, H, W).

        Raises
        ------
        CandidateError
            Where a layer cannot be compressed so.
        """
        stitch = self.stitch(plan)
        modules = {**stitch.modules, **{name: variant.module for name, variant in stitch.variants.items()}}
        model = with_modules(self._model, modules)
        settle_and_quantize(plan, model, calibration)
        return CompressedModel(into_evaluation(model), plan)

    def variant(self, name: str, cuts: Cuts, techniques: tuple[Technique, ...]) -> Variant:
        """A layer with its groups' channels cut and its own techniques carried out.

        Raises
        ------
        CandidateError
            Where it cannot be compressed so; asked again, it fails at once.
        """
        key = (name, cuts, techniques)
        if key in self._failures:
            raise CandidateError(self._failures[key])
        variant = self._variants.get(key)
        if variant is None:
            try:
                variant = self._make(name, cuts, techniques)
            except CandidateError as error:
                self._failures[key] = str(error)
                raise
            self._variants.put(key, variant, _held_bytes(variant.module, variant.plain))
        return variant

    def _make(self, name: str, cuts: Cuts, techniques: tuple[Technique, ...]) -> Variant:
        dense, out = self._modules[name], self._cutter.lost(name, "out", cuts)
        digest = _digest(name, cuts, techniques)
        module, seen = self._from_file(digest, name, cuts, techniques) or self._made(name, cuts, techniques)
        plain = forms.plain(module)
        kept = [i for i in range(self._cutter.channels(name)) if i not in out]
        new, old = outputs_of(plain, seen, dense), self._seen.outputs(name)[kept]
        error, energy = (new - old).square().mean(1), old.square().mean(1)
        norm = self._norms.get(name)
        return Variant(
            digest,
            module,
            plain,
            {} if norm is None else {norm: self._norm(norm, cuts, old, new)},
            coded_bytes(module, self._coder),
            float(error.sum() / energy.sum().clamp_min(1e-12)),
            float((error * self._seen.squared_gradients[name][kept]).sum()),
        )

    def _made(self, name: str, cuts: Cuts, techniques: tuple[Technique, ...]) -> tuple[nn.Module, Calibration]:
        """The layer compressed anew, as its file has it: what training makes of it must not depend on who compressed it."""
        module, seen = self._stage(name, cuts, techniques)
        return self._read(layer_tensors(module), name, cuts, techniques) or (module, seen)

    def _from_file(
        self, digest: str, name: str, cuts: Cuts, techniques: tuple[Technique, ...]
    ) -> tuple[nn.Module, Calibration] | None:
        """The same from its file; ``None`` where there is none or it does not fit."""
        try:
            tensors = decode(self._files[digest]).tensors
        except (KeyError, FormatError):
            return None
        return self._read(tensors, name, cuts, techniques)

    def _read(
        self, tensors: Mapping[str, StoredTensor], name: str, cuts: Cuts, techniques: tuple[Technique, ...]
    ) -> tuple[nn.Module, Calibration] | None:
        """The layer from its stored form, and its inputs; ``None`` where it does not fit."""
        # Where more trains than is stored, the file has only what came out.
        if any(getattr(technique, "trains_more_than_it_stores", False) for technique in techniques):
            return None
        module, seen = self._cutter.layer(name, cuts)
        # Factors have shapes of their own, which only making them tells.
        for technique in techniques:
            if technique.phase <= Phase.FACTORIZE:
                asked = None if isinstance(technique, Outlined) else self._asked(name, cuts, technique, seen)
                module = _carry_out(technique, name, module, asked, shapes_alone=True)
        try:
            set_tensors(tensors, module, pruned=any(technique.phase == Phase.PRUNE for technique in techniques))
        except FormatError:
            return None
        for technique in techniques:
            if isinstance(technique, Resumable):
                technique.resume(module)
        return module, seen

    def _stage(self, name: str, cuts: Cuts, techniques: tuple[Technique, ...]) -> tuple[nn.Module, Calibration]:
        """The layer after these techniques, and its inputs; what came before the last one is kept for its other variants."""
        if not techniques:
            return self._cutter.layer(name, cuts)
        key = (name, cuts, techniques[:-1])
        stage = self._stages.get(key)
        if stage is None:
            stage = self._stage(*key)
            shared = stage[1].inputs is self._seen.calibrations[name].inputs
            own = 0 if shared else sum(call.inputs.nbytes for call in stage[1].calls)
            self._stages.put(key, stage, _held_bytes(stage[0]) + own)
        module, seen = stage
        asked = self._asked(name, cuts, techniques[-1], seen)
        return _carry_out(techniques[-1], name, copy.deepcopy(module), asked), seen

    def _asked(self, name: str, cuts: Cuts, technique: Technique, seen: Calibration) -> Calibration | None:
        """What the technique asks for; gradients are of the channels that are left, with the inputs of the same passes."""
        if not technique.needs_gradients:
            return seen if technique.needs_calibration else None
        return self._cutter.seen(name, cuts, self._seen.with_gradients(name))

    def _norm(self, name: str, cuts: Cuts, old: Tensor, new: Tensor) -> nn.Module:
        """The batch norm, its statistics moved by as much as its input's mean and variance have."""
        norm = self._cutter.module(name, cuts)
        assert isinstance(norm, _BatchNorm)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean += new.mean(1) - old.mean(1)
            norm.running_var *= (new.var(1, correction=0) + norm.eps) / (old.var(1, correction=0) + norm.eps)
        return norm.eval()

    def _other(self, name: str, cuts: Cuts) -> nn.Module:
        """A module without a weight of its own to compress, its channels cut."""
        if (name, cuts) not in self._others:
            self._others[name, cuts] = self._cutter.module(name, cuts)
        return self._others[name, cuts]

    def _without_branch(self, branch: Branch) -> tuple[dict[str, nn.Module], int]:
        """What stands in the place of its modules, and the bytes that its biases and batch norms took."""
        if branch.root not in self._without:
            absent = tuple(f"{name}." for name in branch.modules)
            left = {name: tensor for name, tensor in self._rest.items() if not name.startswith(absent)}
            self._without[branch.root] = (
                stand_ins(branch),
                self._rest_bytes - len(encode(left, {}, coder=self._coder)),
            )
        return self._without[branch.root]


def _digest(name: str, cuts: Cuts, techniques: tuple[Technique, ...]) -> str:
    done = [[technique.name, dict(spelled_out(technique).parameters)] for technique in techniques]
    return hashlib.sha256(json.dumps([name, cuts, done], sort_keys=True).encode()).hexdigest()


def coded_bytes(module: nn.Module, coder: Coder = "ans") -> int:
    """Bytes of a layer's weights, entropy-coded on their own."""
    tensors = {name or "w": forms.stored_weight(layer) for name, layer in forms.weighted_modules(module)}
    return len(encode(tensors, {}, coder=coder)) - _EMPTY_BYTES[coder]


def _carry_out(
    technique: Technique, name: str, module: nn.Module, asked: Calibration | None, shapes_alone: bool = False
) -> nn.Module:
    try:
        with torch.no_grad():
            return outline(technique, module, asked) if shapes_alone else technique.apply(module, asked)
    # A layer of the user's own kind may be refused only here, where its forward pass is known.
    except (PolicyError, RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise CandidateError(f"layer '{name}': {technique.name} failed: {error}") from error


def _rest(model: nn.Module, graph: ModelGraph) -> dict[str, StoredTensor]:
    """All that is no layer's weight, as it ships: batch norms written as scale and shift, vectors rounded."""
    shipped = with_modules(model, {})
    settle_statistics(shipped)
    round_vectors(shipped)
    skip = {f"{name}.weight" for name in graph.layers}
    return {
        name: to_dense(value)
        for name, value in tensors_of(shipped).items()
        if name not in skip and not name.endswith("num_batches_tracked")
    }


def _held_bytes(*modules: nn.Module) -> int:
    """Bytes of memory that the modules' tensors take, each once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())
