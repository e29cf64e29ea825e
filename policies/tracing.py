"""Networks followed by torch.fx, down to the modules that a policy may replace."""

from __future__ import annotations

from torch import fx, nn

from .copying import sharing_copy
from .forms import WEIGHTED
from .slicing import PER_CHANNEL

REPLACEABLE = (*WEIGHTED, *PER_CHANNEL)


def follow(model: nn.Module) -> fx.GraphModule | None:
    """The network as a graph of calls, or ``None`` where it cannot be followed."""
    tracer = _Tracer()
    try:
        # A copy: what the forward pass keeps for later, as tables of attention biases, would be of symbols.
        shared = sharing_copy(model)
        return fx.GraphModule(shared, tracer.trace(shared))
    # The forward pass is the user's own code: control flow on values, for one, cannot be followed.
    except Exception:
        return None


class _Tracer(fx.Tracer):
    """Modules that a policy may replace are never looked into, whoever wrote them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, REPLACEABLE)
            or not any(True for _ in m.children())
            or super().is_leaf_module(m, module_qualified_name)
        )
