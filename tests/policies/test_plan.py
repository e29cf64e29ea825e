"""From a policy to a plan: every complaint at once, one normal form, and shapes that come true."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.evaluators.models import build_model
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN, LeNet5, ResNet20
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import before_rising_sparsity, make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques import Phase, PruneChannels
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform
from torch import Tensor, nn

torch.set_num_threads(1)


class Concat(nn.Module):
    """Two branches of different widths, joined twice, read by a convolution and, flattened, by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.left = nn.Conv2d(12, 8, 1)
        self.right = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.mix = nn.Conv2d(36, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc1, self.fc2 = nn.Linear(32, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        y = self.pool(self.mix(torch.cat([x, y], 1)))
        return self.fc2(self.fc1(y.flatten(1)).relu())


NETWORKS = {
    "lenet5": (LeNet5, (1, 28, 28)),
    "resnet20": (lambda: ResNet20(width=8), (3, 32, 32)),
    "digits": (DigitsCNN, (1, 8, 8)),
    "concat": (Concat, (3, 8, 8)),
    "depthwise": (lambda: build_model("timm:mobilenetv2_035", num_classes=10), (3, 32, 32)),
}


@functools.cache
def network(name: str) -> tuple[nn.Module, ModelGraph, Tensor]:
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = make().eval(), torch.randn(2, *shape)
    return model, ModelGraph.trace(model, example[:1]), example


def plan_of(name: str, layers: dict[str, list[Step]]):
    return make_plan(Policy({layer: tuple(steps) for layer, steps in layers.items()}), network(name)[1])


def complaint(name: str, layers: dict[str, list[Step]]) -> str:
    with pytest.raises(PolicyError) as caught:
        plan_of(name, layers)
    return str(caught.value)


def channels(sparsity: float, multiple: int = 8) -> Step:
    return Step.of("prune_channels", sparsity=sparsity, multiple=multiple)


def test_every_complaint_is_listed_at_once():
    text = complaint(
        "lenet5",
        {
            "conv3": [Step.of("quantize", bits=8)],
            "conv1": [Step.of("svd", rank=4), Step.of("quantise", bits=8), Step.of("quantize", bits=9)],
            "conv2": [Step.of("prune_magnitude", sparsity=1.5), Step.of("quantize", bit=8)],
            "fc1": [Step.of("svd_spatial", rank=4), Step.of("share", clusters=8), Step.of("quantize", bits=8)],
            "fc2": [channels(0.5, 1)],
            "../../etc/passwd": [Step.of("quantize", bits=8)],
        },
    )
    expected = [
        "layer 'conv3' is unknown: did you mean 'conv",
        "layer 'conv1': svd cannot be applied: 'conv1' is a conv2d layer",
        "layer 'conv1': unknown technique 'quantise'; did you mean 'quantize'?",
        "layer 'conv1': quantize: expected bits as a whole number from 2 to 8, got 9",
        "layer 'conv2': prune_magnitude: expected 0 <= sparsity < 1, got 1.5",
        "layer 'conv2': quantize: unknown parameter 'bit'; did you mean 'bits'?",
        "layer 'fc1': svd_spatial cannot be applied: 'fc1' is a linear layer",
        "layer 'fc1': quantize and share exclude each other; keep one",
        "layer 'fc2': prune_channels cannot be applied: its channels are the network's outputs",
        "layer '../../etc/passwd' is unknown: the network has conv1, conv2, fc1, fc2",
    ]
    assert [line for line in expected if line not in text] == []
    assert len(text.splitlines()) == 1 + len(expected)


def test_techniques_are_ordered_by_phase_whatever_the_order_of_the_steps():
    steps = [Step.of("quantize", bits=4), Step.of("svd", rank=40), Step.of("prune_magnitude", sparsity=0.5)]
    plans = [plan_of("lenet5", {"fc1": order}) for order in (steps, steps[::-1])]
    assert plans[0] == plans[1]
    phases = [technique.phase for technique in plans[0].layers[0].techniques]
    assert phases == [Phase.FACTORIZE, Phase.PRUNE, Phase.QUANTIZE]


def test_layers_are_planned_in_the_order_of_the_forward_pass():
    names = ["fc2", "conv2", "fc1", "conv1"]
    plan = plan_of("lenet5", {name: [Step.of("quantize", bits=4)] for name in names})
    assert [layer.layer.name for layer in plan.layers] == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        ("fc1", Step.of("svd", rank=500)),
        ("fc1", Step.of("svd", rank=10_000)),
        ("conv2", Step.of("svd_spatial", rank=100)),
        ("conv2", Step.of("tucker2", rank_in=20, rank_out=50)),
        ("fc1", Step.of("prune_magnitude", sparsity=0.0)),
        ("conv1", Step.of("prune_magnitude", sparsity=0.0009)),
        ("conv2", channels(0.0)),
        ("conv2", channels(0.9, 64)),
    ],
    ids=str,
)
def test_a_step_without_effect_is_left_out(layer, step):
    plan = plan_of("lenet5", {layer: [step]})
    assert plan.policy == Policy()
    assert (plan.layers, dict(plan.channels)) == ((), {})


def test_a_rank_that_is_full_once_channels_are_dropped_is_left_out():
    rank = Step.of("svd", rank=260)
    assert plan_of("lenet5", {"fc1": [rank]}).policy == Policy({"fc1": (rank,)})
    assert plan_of("lenet5", {"fc1": [rank, channels(0.5)]}).policy == Policy({"fc1": (channels(0.5),)})
    assert plan_of("lenet5", {"fc1": [rank], "conv2": [channels(0.7)]}).policy == Policy({"conv2": (channels(0.7),)})


def test_a_default_left_out_makes_no_other_candidate():
    spelled = plan_of("lenet5", {"fc1": [Step.of("quantize", bits=8, activations="float32")], "conv2": [channels(0.5)]})
    short = plan_of("lenet5", {"fc1": [Step.of("quantize")], "conv2": [Step.of("prune_channels", sparsity=0.5)]})
    assert spelled.policy.digest == short.policy.digest
    assert spelled == short


def test_a_channel_step_on_any_member_moves_to_the_root_of_its_group():
    wanted = plan_of("resnet20", {"conv1": [channels(0.5, 2)]})
    assert wanted.policy == Policy({"conv1": (channels(0.5, 2),)})
    for member in ("layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"):
        assert plan_of("resnet20", {member: [channels(0.5, 2)]}) == wanted
    every = ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]
    assert plan_of("resnet20", {name: [channels(0.5, 2)] for name in every}) == wanted


def test_the_roots_other_steps_stay_beside_a_channel_step_that_moves_there():
    share = Step.of("share", clusters=8, rounding="nearest")
    plan = plan_of("resnet20", {"conv1": [share], "layer1.2.conv2": [channels(0.5, 2)]})
    assert plan.policy == Policy({"conv1": (share, channels(0.5, 2))})


def test_coupled_layers_that_are_given_different_channel_steps_are_refused():
    text = complaint("resnet20", {"conv1": [channels(0.5, 2)], "layer1.2.conv2": [channels(0.25, 2)]})
    assert "layers 'conv1' and 'layer1.2.conv2' share their channels" in text


@pytest.mark.parametrize("name", NETWORKS)
def test_the_channels_of_the_output_are_refused(name):
    last = list(network(name)[1].layers)[-1]
    assert f"layer '{last}': prune_channels cannot be applied: its channels are the network's" in complaint(
        name, {last: [channels(0.5, 1)]}
    )


def test_a_depthwise_convolution_is_refused_as_the_one_that_drops():
    graph = network("depthwise")[1]
    layer = next(name for name, info in graph.layers.items() if info.groups > 1)
    assert "a grouped convolution that follows one" in complaint("depthwise", {layer: [channels(0.5)]})


def test_where_the_coupling_is_unknown_channel_steps_are_refused_and_others_are_not():
    graph = network("lenet5")[1]
    unknown = ModelGraph(graph.layers, (), graph.input_shape, "RuntimeError: some operation")
    with pytest.raises(PolicyError, match=r"could not be found \(RuntimeError: some operation\)"):
        make_plan(Policy({"conv1": (channels(0.5),)}), unknown)
    plan = make_plan(Policy({"conv1": (Step.of("quantize", bits=4),)}), unknown)
    assert plan.layers[0].techniques == (QuantizeUniform(4),)


shares = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 0.95])
multiples = st.sampled_from([1, 2, 3, 8])


@st.composite
def channel_policies(draw, name: str) -> Policy:
    groups = [group for group in network(name)[1].groups if group.refusal is None]
    chosen = draw(st.lists(st.sampled_from(groups), unique_by=lambda group: group.root))
    layers = network(name)[1].layers
    steps = {}
    for group in chosen:
        dense = [producer for producer in group.producers if layers[producer].groups == 1]
        steps[draw(st.sampled_from(dense))] = (channels(draw(shares), draw(multiples)),)
    return Policy(steps)


def assert_the_plan_comes_true(name: str, policy: Policy) -> None:
    model, graph, example = network(name)
    # Every layer is named, so that the plan tells the shape of every one.
    quantized = {layer: (Step.of("quantize", bits=4), *policy.layers.get(layer, ())) for layer in graph.layers}
    plan = make_plan(Policy(quantized), graph)
    pruned = apply_plan(make_plan(policy, graph), graph, model, example).model
    real = ModelGraph.trace(pruned, example[:1])
    assert {layer.layer.name: layer.layer for layer in plan.layers} == real.layers
    for root, technique in plan.channels.items():
        assert isinstance(technique, PruneChannels)
        assert real.layers[root].weight_shape[0] == technique.keep(graph.layers[root].weight_shape[0])


@pytest.mark.parametrize(("name", "examples"), [("lenet5", 8), ("resnet20", 6), ("digits", 12), ("concat", 25)])
def test_predicted_shapes_are_those_of_the_pruned_network(name, examples):
    @given(channel_policies(name))
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def check(policy):
        assert_the_plan_comes_true(name, policy)

    check()


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_shapes_hold_where_every_group_is_halved(name):
    groups = [group for group in network(name)[1].groups if group.refusal is None]
    assert_the_plan_comes_true(name, Policy({group.root: (channels(0.5, 1),) for group in groups}))


LAYER_STEPS = [
    Step.of("prune_magnitude", sparsity=0.0),
    Step.of("prune_magnitude", sparsity=0.5),
    Step.of("quantize"),
    Step.of("quantize", bits=4, activations="int8"),
    Step.of("share", clusters=4),
    Step.of("svd", rank=3),
    Step.of("svd", rank=10),
    Step.of("svd_spatial", rank=8),
    Step.of("tucker2", rank_in=4, rank_out=4),
    Step.of("tucker2", rank_in=99, rank_out=99),
]


@st.composite
def any_policies(draw, name: str) -> Policy:
    layers = {layer: draw(st.lists(st.sampled_from(LAYER_STEPS), max_size=3)) for layer in network(name)[1].layers}
    dropped = draw(channel_policies(name)).layers
    return Policy({layer: (*steps, *dropped.get(layer, ())) for layer, steps in layers.items()})


@given(any_policies("concat"))
@settings(max_examples=150, deadline=None)
def test_normalisation_is_idempotent_or_the_policy_is_refused(policy):
    graph = network("concat")[1]
    try:
        plan = make_plan(policy, graph)
    except PolicyError as error:
        assert str(error).startswith("the policy does not fit the network:")
        return
    again = make_plan(plan.policy, graph)
    assert again == plan
    assert again.policy.to_json() == plan.policy.to_json()


@pytest.mark.parametrize(
    ("layer", "steps", "complaint"),
    [
        (
            "fc1",
            [Step.of("circulant", block=4), Step.of("share", clusters=4)],
            "circulant and share exclude each other",
        ),
        ("fc1", [Step.of("fastfood"), Step.of("quantize", bits=4)], "fastfood stores the parameters"),
        ("fc1", [Step.of("toeplitz", block=4), Step.of("prune_nm")], "exclude each other; keep one"),
        ("conv2", [Step.of("cp", rank=8), Step.of("prune_obs", sparsity=0.5)], "cp and prune_obs exclude each other"),
        (
            "conv2",
            [Step.of("cp", rank=8), Step.of("quantize", bits=3, rounding="second_order")],
            "cp leaves depthwise layers, of which each channel has a Hessian of its own",
        ),
    ],
)
def test_techniques_that_undo_each_other_are_refused_with_the_reason(layer, steps, complaint):
    graph = ModelGraph.trace(LeNet5().eval(), torch.randn(1, 1, 28, 28))
    with pytest.raises(PolicyError, match=complaint):
        make_plan(Policy({layer: tuple(steps)}), graph)


def test_what_is_not_pruned_step_by_step_is_done_before_it():
    graph = ModelGraph.trace(LeNet5().eval(), torch.randn(1, 1, 28, 28))
    steps = {
        "conv2": (Step.of("svd_channel", rank=8), Step.of("prune_nm"), Step.of("quantize", bits=4)),
        "fc1": (Step.of("prune_magnitude", sparsity=0.5), Step.of("share", clusters=4)),
        "fc2": (Step.of("circulant", block=4),),
    }
    early = before_rising_sparsity(make_plan(Policy(steps), graph))
    done = {layer.layer.name: [technique.name for technique in layer.techniques] for layer in early.layers}
    assert done == {"conv2": ["svd_channel", "prune_nm"], "fc2": ["circulant"]}


class Positions(nn.Module):
    """A layer whose weight tells the type of what it is given, as in EdgeNeXt's encoding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.project(torch.ones_like(x, dtype=self.project.weight.dtype))).mean((2, 3))


def test_factors_are_refused_for_a_layer_that_the_network_reads_itself():
    graph = ModelGraph.trace(Positions().eval(), torch.randn(1, 3, 8, 8))
    steps = {"stem": [Step.of("svd_channel", rank=4)], "project": [Step.of("svd", rank=4)]}
    with pytest.raises(PolicyError) as caught:
        make_plan(Policy(steps), graph)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "layer 'project': svd cannot be applied: the network itself reads weight of 'project'" in lines[1]


def test_factors_that_do_not_pay_on_what_is_left_of_a_layer_are_left_out():
    _, graph, _ = network("lenet5")
    steps = {
        "conv2": [Step.of("prune_channels", sparsity=0.8), Step.of("svd_spatial", rank=30)],
        "fc1": [Step.of("svd", rank=160)],
    }
    plan = make_plan(Policy(steps), graph)
    assert plan.layers == ()
    assert list(plan.policy.layers) == ["conv2"]
    assert make_plan(plan.policy, graph) == plan
    with pytest.raises(PolicyError, match="'fc1' takes 400000 MACs and its factors would take 520000"):
        make_plan(Policy({"fc1": [Step.of("svd", rank=400)]}), graph)
