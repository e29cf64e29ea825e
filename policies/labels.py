"""Channels followed number by number: each gets a label, and labels go where the numbers of one forward pass go.

Views, slices, joins and shuffles are carried out on the labels as they are on the numbers, so that no shape has to be
guessed. Labels that meet (in a sum, at a layer that reads them) hang together. What is not followed is lost with a reason:
its channels are refused, those elsewhere are not.

Symbols: ``n`` pictures (one), ``C`` channels, ``o`` and ``i`` outputs and inputs of a layer; label 0 stands for none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from .channel_labels import Labels, find_varying, keeps_order
from .forms import WEIGHTED
from .slicing import scaled_channels

OUTPUTS = "its channels are the network's outputs"
# Operators of torch by what they do to numbers; what is no family's, and not marked as pointwise by torch, is not followed.
MOVES = """alias cat channel_shuffle clone constant_pad_nd detach expand flip index_select lift_fresh
    native_channel_shuffle permute pixel_shuffle pixel_unshuffle repeat roll select slice split split_with_sizes squeeze
    stack t transpose unbind unsqueeze"""
RESHAPES = "view _unsafe_view reshape _reshape_alias"
SPATIAL = """_adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d_with_indices upsample_bicubic2d upsample_bilinear2d
    upsample_nearest2d"""
REDUCTIONS = "amax amin linalg_vector_norm mean std sum var var_mean"
ONE_BY_ONE = """_prelu_kernel _to_copy copy_ dropout elu gelu hardsigmoid hardsigmoid_ hardswish hardswish_
    hardtanh hardtanh_ leaky_relu leaky_relu_ mish mish_ native_dropout relu relu_ silu silu_"""
NORMS = "_native_batch_norm_legit_no_training native_batch_norm native_layer_norm native_group_norm"
PRODUCTS = "bmm mm matmul"
SHARES = "_log_softmax _softmax"
# Moves that say by numbers which channels are meant.
COUNTED = """channel_shuffle constant_pad_nd index_select native_channel_shuffle pixel_shuffle pixel_unshuffle roll
    select slice split split_with_sizes unbind"""


def follow_channels(model: nn.Module, example: Tensor, labels: Labels | None = None) -> Labels:
    """Run the network once on an example (1, C, H, W) and follow the channels of its layers.

    Parameters
    ----------
    labels
        What gives modules their labels and notes what becomes of these; fresh ones where it is left out.
    """
    follower = _Follower(model, Labels() if labels is None else labels)
    with torch.no_grad(), follower:
        output = model(example)
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor) and tensor in follower.labels:
            follower.found.lose(follower.labels[tensor], OUTPUTS)
    return follower.found


class _Follower(TorchDispatchMode):
    """Carries labels along while a network runs."""

    def __init__(self, model: nn.Module, labels: Labels) -> None:
        super().__init__()
        self.found = labels
        self.labels: Any = WeakIdKeyDictionary()
        # What was taken over several channels: these must stay once a number that goes on is computed from it.
        self.mixed: Any = WeakIdKeyDictionary()
        self.layers: dict[int, list[str]] = {}
        self.tensors: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            self._label_scales(name, module)
            if isinstance(module, (*WEIGHTED, _BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                tensors = (module._parameters.get("weight"), module._buffers.get("running_mean"))
                self.tensors[name] = [tensor for tensor in tensors if tensor is not None]
                for tensor in self.tensors[name]:
                    self.layers.setdefault(tensor.data_ptr(), []).append(name)

    def _label_scales(self, name: str, module: nn.Module) -> None:
        """Numbers that a module holds one a channel are its channels wherever it multiplies or adds them."""
        slopes = module.num_parameters if isinstance(module, nn.PReLU) else 1
        is_other = not isinstance(module, (*WEIGHTED, _BatchNorm, nn.GroupNorm, nn.LayerNorm))
        known = self.found.scaled(name, module) if is_other else 0
        if channels := slopes if slopes > 1 else scaled_channels(module) or known:
            for tensor in [*module.parameters(), *module.buffers()]:
                self.labels[tensor] = self.found.own(name, "out", channels).view(tensor.shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in ("convolution", "addmm", "linear", *PRODUCTS.split()) or any(x in self.labels for x in inputs):
            self._rule(name, func)(func, args, kwargs, out)
        if any(_is_number(x) for x in tree_leaves(out)):
            for labels, reason in [self.mixed[x] for x in inputs if x in self.mixed]:
                self.found.lose(labels, reason)
        return out

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor's labels, of its shape."""
        found = self.labels.get(tensor)
        return torch.zeros(tensor.shape, dtype=torch.int32) if found is None else cast(Tensor, found)

    def _rule(self, name: str, func: Any) -> Callable[..., None]:
        rules: dict[str, Callable[..., None]] = {
            "convolution": self._convolution,
            "addmm": self._biased_product,
            "linear": self._linear,
            "_scaled_dot_product_flash_attention_for_cpu": self._attention,
            "as_strided_": self._restride,
        }
        families = {
            PRODUCTS: self._product,
            RESHAPES: self._reshape,
            MOVES: self._move,
            SPATIAL: self._spatial,
            REDUCTIONS: self._reduce,
            NORMS: self._norm,
            SHARES: self._share,
            ONE_BY_ONE: self._one_by_one,
        }
        rules |= {member: rule for family, rule in families.items() for member in family.split()}
        return rules.get(name, self._one_by_one if torch.Tag.pointwise in func.tags else self._lose_all)

    def _lose_all(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        reason = f"it passes through '{func._overloadpacket.__name__}', which is not followed"
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.found.lose(self.of(tensor), reason)

    def _set(self, out: Any, labels: Any) -> None:
        for tensor, own in zip(tree_leaves(out), tree_leaves(labels), strict=True):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.labels[tensor] = own

    def _move(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        def moved(x: Any) -> Any:
            return self.of(x) if isinstance(x, Tensor) and x.is_floating_point() else x

        labels = func(*tree_map(moved, args), **tree_map(moved, kwargs))
        self._set(out, labels)
        if func._overloadpacket.__name__ in COUNTED.split():
            self._note_counted(self.of(args[0]), [x for x in tree_leaves(labels) if isinstance(x, Tensor)])

    def _note_counted(self, labels: Tensor, parts: list[Tensor]) -> None:
        """Note a move that tells channels apart: some of its results have not all of them, or not in their old places."""
        dims = find_varying(labels)
        for part in parts:
            if part.shape == labels.shape:
                is_moved = not torch.equal(part, labels)
            elif part.ndim == labels.ndim:
                is_moved = any(part.shape[dim] != labels.shape[dim] for dim in dims)
            else:
                is_moved = not torch.equal(part.unique(), labels.unique())
            if is_moved:
                self.found.moved.append(labels.unique())

    def _reshape(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        labels = self.of(args[0])
        self._set(out, labels.reshape(out.shape))
        if not all(keeps_order(labels.shape, dim, out.shape) for dim in find_varying(labels)):
            self.found.moved.append(labels.unique())

    def _share(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        labels = self.of(args[0])
        if self._uniform(labels, args[1]) is None:
            rows = labels.movedim(args[1], -1).flatten(0, -2).unique(dim=0)
            self.found.shares.append(rows)
        self._one_by_one(func, args, kwargs, out)

    def _restride(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        # Pooling only lays a map of one place out anew; the labels stay with the tensor.
        if out.shape != self.of(args[0]).shape:
            self._lose_all(func, args, kwargs, out)

    def _one_by_one(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        result = next(x for x in tree_leaves(out) if isinstance(x, Tensor))
        labels = torch.zeros(result.shape, dtype=torch.int32)
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor in self.labels:
                other = self.labels[tensor].expand(result.shape)
                self.found.meet(labels, other)
                labels = torch.where(labels > 0, labels, other)
        if result in self.labels:
            # In place: a tensor that this one is a view of has the labels too.
            self.labels[result].copy_(labels)
        elif result.is_floating_point():
            self.labels[result] = labels

    def _spatial(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        labels, result = self.of(args[0]), tree_leaves(out)[0]
        first = self._uniform(labels, -2, -1)
        if first is None:
            self._lose_all(func, args, kwargs, out)
        else:
            self.labels[result] = first.expand(result.shape).contiguous()

    def _reduce(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        labels = self.of(args[0])
        dims = kwargs.get("dim", args[1] if len(args) > 1 and not isinstance(args[1], (bool, float)) else None)
        if func._overloadpacket.__name__ == "linalg_vector_norm":
            dims = args[2] if len(args) > 2 else kwargs.get("dim")
        every = list(range(labels.ndim))
        over = every if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
        if (kept := self._uniform(labels, *over)) is None:
            labels = self.found.settled(labels)
            highest = labels.amax(over, keepdim=True)
            if self.found.are_of_one_layer(labels, over):
                # What is taken over different channels is none of them.
                kept = torch.where(((labels == highest) | (labels == 0)).all(over, keepdim=True), highest, 0)
                for tensor in tree_leaves(out):
                    self.mixed[tensor] = (labels, f"'{func._overloadpacket.__name__}' is taken over its channels")
            else:
                # Maps of several layers lie on each other: their channels go on together, as those of a sum do.
                self.found.meet(labels, highest.expand(labels.shape))
                kept = highest
        for tensor in tree_leaves(out):
            self.labels[tensor] = kept.reshape(tensor.shape)

    def _norm(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._overloadpacket.__name__
        labels, result = self.of(args[0]), tree_leaves(out)[0]
        tensors = args[2:3] if name == "native_layer_norm" else (args[1], *args[3:4])
        module = next((m for t in tensors if isinstance(t, Tensor) for m in self._named(t)), None)
        channels = self._along(labels, -1 if name == "native_layer_norm" else 1)
        if module is None or channels is None:
            self._lose_all(func, args, kwargs, out)
            return
        self.found.meet(self.found.own(module, "out", len(channels)), channels)
        if name == "native_layer_norm" or (name == "native_group_norm" and args[6] < len(channels)):
            self.found.lose(labels, f"'{module}' takes mean and variance over its channels")
        self.labels[result] = labels.clone()

    def _named(self, weight: Tensor) -> list[str]:
        """The modules whose tensor this is, transposed or not; none for a part of it."""
        names = self.layers.get(weight.data_ptr(), [])
        return [name for name in names if any(x.numel() == weight.numel() for x in self.tensors[name])]

    def _layer(self, weight: Tensor, labels: Tensor) -> str | None:
        """The one layer whose weight this is; of a weight that two layers have, the channels are lost."""
        names = self._named(weight)
        if len(names) == 1:
            return names[0]
        for name in names:
            for lost in (labels, self.found.own(name, "out", len(self.tensors[name][0]))):
                self.found.lose(lost, "a parameter of it stands in two layers")
        return None

    def _convolution(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        x, weight, groups = args[0], args[1], args[8]
        if weight.shape[:2] == (1, 1) and out.shape == x.shape and not self._named(weight):
            # A window that slides over channels weighs them by their neighbours (ECA, 1910.03151) and renames none.
            if weight.numel() > 1:
                self.found.lose(self.of(x), "a convolution over its channels weighs each by its neighbours")
            self.labels[out] = self.of(x).clone()
            return
        name, labels = self._layer(weight, self.of(x)), self._along(self.of(x), 1)
        if name is None or labels is None or weight.ndim != 4 or args[6]:
            self._lose_all(func, args, kwargs, out)
            return
        made = self.found.own(name, "out", len(weight))
        if groups == 1:
            self.found.meet(self.found.own(name, "in", len(labels)), labels)
        elif groups == len(labels) == len(weight):
            self.found.meet(made, labels)
        else:
            for lost in (made, labels):
                self.found.lose(lost, f"'{name}' is a grouped convolution that is not depthwise")
        self.labels[out] = made.view(1, -1, 1, 1).expand(out.shape).contiguous()

    def _biased_product(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        self._read_by(func, args[1], args[2], out, (args, kwargs))

    def _linear(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        self._read_by(func, args[0], args[1], out, (args, kwargs))

    def _read_by(self, func: Any, x: Tensor, weight: Tensor, out: Tensor, given: tuple[Any, Any]) -> None:
        """A linear layer reads ``x`` (..., i) and makes ``out`` (..., o)."""
        labels = self.of(x)
        name = self._layer(weight, labels)
        if name is None:
            self._lose_all(func, *given, out)
            return
        made, channels = self.found.own(name, "out", out.shape[-1]), self._along(labels, -1)
        if channels is not None:
            self.found.meet(self.found.own(name, "in", len(channels)), channels)
            self.labels[out] = made.expand(out.shape).contiguous()
            return
        beside = self._uniform(labels, -1)
        if beside is None:
            self._lose_all(func, *given, out)
            return
        # A layer over positions: the channels beside each other go through it, its own outputs lie across them.
        self.found.lose(made, f"'{name}' works on positions, across channels")
        self.labels[out] = beside.expand(out.shape).contiguous()

    def _product(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """(..., r, k) times (..., k, c): what is summed over hangs together, what is not passes."""
        if self._named(args[1]):
            self._read_by(func, args[0], args[1], out, (args, kwargs))
            return
        left, right = self.of(args[0]), self.of(args[1])
        rows, columns = self._uniform(left, -1), self._uniform(right, -2)
        if rows is None or columns is None:
            inner_left, inner_right = self._uniform(left, -2), self._uniform(right, -1)
            if rows is None and columns is None and inner_left is not None and inner_right is not None:
                self._contract(inner_left.transpose(-1, -2), inner_right)
            else:
                self._lose_all(func, args, kwargs, out)
            return
        if bool(rows.any()) and bool(columns.any()):
            self._lose_all(func, args, kwargs, out)
            return
        self.labels[out] = (rows + columns).expand(out.shape).contiguous()

    def _attention(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Queries, keys and values (n, heads, positions, channels)."""
        query, key, value = (self._uniform(self.of(x), -2) for x in args[:3])
        if query is None or key is None or value is None:
            self._lose_all(func, args, kwargs, out)
            return
        self._contract(query, key)
        if kwargs.get("scale") is None:
            self.found.lose(query, "an attention is scaled by their number")
        result = tree_leaves(out)[0]
        self.labels[result] = value.expand(result.shape).contiguous()

    def _contract(self, one: Tensor, other: Tensor) -> None:
        """Note that products of these channels are added up."""
        self.found.meet(one, other)
        self.found.contracted.append(torch.cat([one.flatten(), other.flatten()]).unique())

    def _uniform(self, labels: Tensor, *dims: int) -> Tensor | None:
        """The labels with these dimensions shrunk to 1, where they are the same all along; padding has none and fits all."""
        highest = labels.amax(dims, keepdim=True)
        if bool(((labels == highest) | (labels == 0)).all()):
            return highest
        # Different labels may hang together by now.
        settled = self.found.settled(labels)
        highest = settled.amax(dims, keepdim=True)
        return highest if bool(((settled == highest) | (labels == 0)).all()) else None

    def _along(self, labels: Tensor, dim: int) -> Tensor | None:
        """The labels (C,) of a dimension, where they are the same at every place."""
        kept = dim % labels.ndim
        others = [d for d in range(labels.ndim) if d != kept]
        shared = self._uniform(labels, *others) if others else labels
        return None if shared is None else shared.flatten()


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())
