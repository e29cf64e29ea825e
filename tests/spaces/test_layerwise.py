"""The layerwise space: its contract on several networks, units of tied layers, rules and menus."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.architectures import DigitsCNN, LeNet5, ResNet20
from paretopress.policies.errors import ConfigError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques import Phase, build
from paretopress.search.prepare import make_space
from paretopress.search.sections.space import SpaceConfig, SpaceRule
from paretopress.spaces.groups import group_steps
from paretopress.spaces.layerwise import LayerwiseSpace, Menu, factor_step, make_units
from paretopress.spaces.precision import precision_step
from paretopress.tests.contracts.space import CONTRACT, Case, FixedTrial

torch.set_num_threads(1)

NETWORKS = {
    "digits": (DigitsCNN, (1, 8, 8)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "resnet20": (lambda: ResNet20(width=8), (3, 32, 32)),
    "mobilenet": (lambda: build_model("timm:mobilenetv2_035", num_classes=10), (3, 32, 32)),
}
RICH = SpaceConfig(
    sparsity=(0.0, 0.5, 0.9),
    precision=("float32", "w8a8", "w4", "k16"),
    rank=(1.0, 0.5, 0.25),
    channels=(1.0, 0.75, 0.5),
)


@functools.cache
def graph_of(name: str) -> ModelGraph:
    make, shape = NETWORKS[name]
    return ModelGraph.trace(make().eval(), torch.randn(1, *shape))


def rich(name: str, **changes) -> LayerwiseSpace:
    return make_space(RICH.model_copy(update=changes), graph_of(name))


CASES = {
    "digits": ("digits", {}),
    "digits, tucker": ("digits", {"factorize": "tucker2"}),
    "digits, cp": ("digits", {"factorize": "cp", "second_order": True}),
    "digits, channel, groups": ("digits", {"factorize": "svd_channel", "prune": "n_of_m", "sparsity": (0.0, 0.5, 0.9)}),
    "digits, structures": ("digits", {"precision": ("float32", "circulant4", "toeplitz8", "fastfood", "w8a8")}),
    "digits, dead dropped": ("digits", {"drop_dead": True, "rank": (1.0,), "channels": (1.0, 0.5)}),
    "digits, rewritten": (
        "digits",
        {"rewrite": ("keep", "separable", "asymmetric", "flattened", "pooled"), "tie": "none"},
    ),
    "lenet5, rewritten": ("lenet5", {"rewrite": ("stacked", "keep", "pooled"), "second_order": True, "tie": "all"}),
    "digits, merged": ("digits", {"drop": "merge", "prune": "obd"}),
    "digits, tied": ("digits", {"tie": (("conv*",), ("fc*",))}),
    "lenet5, all tied": ("lenet5", {"tie": "all"}),
    "lenet5, skipped": ("lenet5", {"skip": ("conv1", "fc2")}),
    "lenet5, never dense": ("lenet5", {"sparsity": (0.5, 0.9), "precision": ("k16", "w4a8"), "channels": (0.5, 0.25)}),
    "lenet5, ruled": ("lenet5", {"rules": (SpaceRule(layers="fc*", sparsity=(0.0,), rank=(1.0, 0.1)),)}),
    "resnet20, by stage": ("resnet20", {"multiple": 2}),
    "resnet20, untied": ("resnet20", {"tie": "none", "multiple": 4}),
    "mobilenet": ("mobilenet", {"multiple": 4}),
}


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name, check):
    network, changes = CASES[name]
    check(Case(rich(network, **changes), graph_of(network)))


@pytest.mark.parametrize(
    ("network", "tie", "units"),
    [
        ("lenet5", "none", {"conv1": 1, "conv2": 1, "fc1": 1, "fc2": 1}),
        ("lenet5", "auto", {"conv1": 1, "conv2": 1, "fc1": 1, "fc2": 1}),
        ("lenet5", "all", {"all": 4}),
        ("lenet5", [["conv*"], ["fc1", "fc2"]], {"conv*": 2, "fc1+fc2": 2}),
        ("lenet5", [["*2"]], {"conv1": 1, "*2": 2, "fc1": 1}),
        ("lenet5", [["fc2", "conv1"], ["*"]], {"fc2+conv1": 2, "*": 2}),
        ("resnet20", "auto", {"conv1": 1, "layer1": 6, "layer2": 7, "layer3": 7, "fc": 1}),
        ("resnet20", "stage", {"conv1": 1, "layer1": 6, "layer2": 7, "layer3": 7, "fc": 1}),
        (
            "mobilenet",
            "stage",
            {"conv_stem": 1, **{f"blocks.{i}": None for i in range(7)}, "conv_head": 1, "classifier": 1},
        ),
    ],
)
def test_tie_modes(network, tie, units):
    made = make_units(graph_of(network), tie, ())
    assert set(made) == set(units)
    assert all(count is None or len(made[unit]) == count for unit, count in units.items())
    assert sorted(name for names in made.values() for name in names) == sorted(graph_of(network).layers)


def test_tied_layers_share_their_choice():
    space = rich("lenet5", tie="all")
    policy = space.suggest(FixedTrial(dict.fromkeys(space.menu(), 1)))
    for name in ("conv1", "conv2", "fc1", "fc2"):
        assert Step.of("quantize", bits=8, activations="int8", rounding="nearest") in policy.layers[name]
        assert Step.of("prune_obs", sparsity=0.5) in policy.layers[name]


@pytest.mark.parametrize(
    ("word", "second_order", "technique"),
    [
        ("auto", True, "prune_obs"),
        ("auto", False, "prune_magnitude"),
        ("magnitude", True, "prune_magnitude"),
        ("obd", True, "prune_obd"),
        ("obd_inputs", False, "prune_obd"),
        ("obs", False, "prune_obs"),
    ],
)
def test_a_word_says_by_what_weights_are_pruned(word, second_order, technique):
    space = rich("lenet5", prune=word, second_order=second_order)
    (step,) = space.policy({"fc1/sparsity": 1}).layers["fc1"]
    assert step.technique == technique
    assert build(step).sparsity == 0.5


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("taylor", {"conv1": ("prune_channels", "taylor"), "fc1": ("prune_channels", "taylor")}),
        ("merge", {"conv1": ("prune_channels", None), "fc1": ("merge_neurons", None)}),
    ],
)
def test_a_word_says_which_channels_go(word, found):
    space = rich("digits", drop=word)
    layers = space.policy({f"{name}/channels": 2 for name in found}).layers
    steps = {name: step for name, (step,) in layers.items()}
    assert {name: (s.technique, dict(s.parameters).get("score")) for name, s in steps.items()} == found
    assert {dict(step.parameters)["sparsity"] for step in steps.values()} == {0.5}


def test_dead_channels_are_dropped_where_weights_are_pruned_and_not_beside_ranks():
    space = rich("digits", drop_dead=True, rank=(1.0,))
    layers = space.policy({"fc1/sparsity": 1, "fc2/sparsity": 1, "conv1/precision": 1}).layers
    assert [name for name, steps in layers.items() if Step.of("drop_dead") in steps] == ["fc1"]
    with pytest.raises(ConfigError, match=r"space\.drop_dead: channels of factorized layers cannot be dropped"):
        rich("digits", drop_dead=True)


def test_a_layer_that_a_pruner_refuses_is_pruned_by_magnitude():
    space = rich("lenet5", prune="obs")
    odd = replace(space.graph.layers["conv2"], output_shape=(50, 7, 7))
    graph = replace(space.graph, layers={**space.graph.layers, "conv2": odd})
    assert replace(space, graph=graph, _cache={}).policy({"conv2/sparsity": 1}).layers["conv2"] == (
        Step.of("prune_magnitude", sparsity=0.5),
    )


def test_skipped_layers_are_left_alone():
    space = rich("lenet5", skip=("conv*",))
    assert not any(name.startswith("conv") for name in space.menu())
    for choices in space.uniform():
        assert not {"conv1", "conv2"} & set(space.policy(choices).layers)


def test_a_rule_replaces_the_menus_it_names_and_the_last_one_stands():
    rules = (
        SpaceRule(layers="fc*", sparsity=(0.0, 0.99), precision=("k4", "k8")),
        SpaceRule(layers="fc2", sparsity=(0.0, 0.1)),
    )
    menu = rich("lenet5", rules=rules).menu()
    assert menu["conv2/sparsity"] == (0.0, 0.5, 0.9)
    assert menu["fc1/sparsity"] == (0.0, 0.99)
    assert (menu["fc2/sparsity"], menu["fc2/precision"]) == ((0.0, 0.1), ("k4", "k8"))
    assert menu["fc1/channels"] == (1.0, 0.75, 0.5)


@pytest.mark.parametrize(
    ("tie", "skip", "message"),
    [
        ("none", ("conv9",), "space.skip: 'conv9' matches no layer; the network has conv1, conv2, fc1, fc2"),
        ("none", ("conv1", "nothing*"), r"space.skip: 'nothing\*' matches no layer"),
        ("none", ("*",), "space.skip leaves no layer"),
        ([["conv1"], ["lstm*"]], (), r"space.tie: \['lstm\*'\] matches no layer that is still free"),
        ([["conv*"], ["conv1"]], (), r"space.tie: \['conv1'\] matches no layer that is still free"),
        ([["conv1"]], ("conv1",), r"space.tie: \['conv1'\] matches no layer"),
        ([[]], (), "matches no layer"),
    ],
)
def test_patterns_that_match_nothing_are_refused(tie, skip, message):
    with pytest.raises(ConfigError, match=message):
        make_units(graph_of("lenet5"), tie, skip)


@pytest.mark.parametrize(
    ("menu", "message"),
    [
        ({"sparsity": ()}, "space.sparsity: a menu needs at least one option"),
        ({"precision": ()}, "space.precision: a menu needs"),
        ({"rank": ()}, "space.rank: a menu needs"),
        ({"channels": ()}, "space.channels: a menu needs"),
        ({"rewrite": ()}, "space.rewrite: a menu needs"),
        (
            {"rewrite": ("keep", "dense")},
            "space.rewrite: expected words of keep, separable, stacked, asymmetric, flattened, pooled; got 'dense'",
        ),
        *(
            ({"precision": ("float32", text)}, "space.precision: ")
            for text in (
                "w1",
                "w9",
                "w16",
                "w8a4",
                "k1",
                "k0",
                "k257",
                "k",
                "int8",
                "",
                "w8\n",
                " w8",
                "W8",
                "k١٦",
                "pq0x4",
                "pq4",
                "rq4x4x9",
                "rq4x4x0",
                "hash1",
                "hash0",
                "soft1",
                "soft16z0",
                "soft16z8",
                "soft16s0",
                "soft16s3z5",
                "k2000",
            )
        ),
        *(
            ({"precision": (text,)}, "space.precision: expected float32; wB or wBa8")
            for text in ("w8_mse", "w8_adaptive", "fixed1", "fixed17", "dynamic", "binary_mean", "binary_")
        ),
        *(({"rank": (1.0, share)}, "space.rank: shares lie in") for share in (0.0, -0.5, 1.5, float("nan"))),
        *(({"channels": (1.0, share)}, "space.channels: shares lie in") for share in (0.0, 2.0, float("inf"))),
        *(({"sparsity": (0.0, share)}, "space.sparsity: shares lie in") for share in (1.0, -0.1, float("nan"))),
    ],
)
def test_bad_menus_are_refused(menu, message):
    with pytest.raises(ConfigError, match=message):
        Menu(**menu)


def test_a_rule_that_matches_no_layer_is_refused_with_those_there_are():
    rules = (SpaceRule(layers="fc*", rank=(1.0, 0.5)), SpaceRule(layers="nope", sparsity=(0.5, 0.2)))
    with pytest.raises(ConfigError, match=r"space.rules.1: 'nope' matches no layer; the network has conv1, conv2, fc1"):
        rich("lenet5", rules=rules)


def test_knobs_without_effect_are_not_offered():
    offered = set(rich("lenet5").menu())
    assert "fc2/channels" not in offered, "they are the network's outputs"
    assert {"conv1/channels", "conv2/channels", "fc1/channels", "fc1/rank", "conv2/rank"} <= offered
    assert "conv1/channels" not in set(rich("lenet5", channels=(1.0, 0.5), multiple=32).menu())
    assert "conv1/sparsity" not in set(rich("lenet5", sparsity=(0.0, 0.0005)).menu())
    assert not any(knob.endswith("/rank") for knob in rich("lenet5", rank=(1.0,)).menu())
    untied = rich("resnet20", tie="none", multiple=2).menu()
    assert "conv1/channels" in untied
    assert "layer1.0.conv2/channels" not in untied, "its channels follow conv1"
    assert "layer2.0.shortcut.0/rank" in untied, "a 1 x 1 kernel is a matrix"


def test_where_the_coupling_is_unknown_no_channels_are_offered():
    graph = graph_of("lenet5")
    unknown = ModelGraph(graph.layers, (), graph.input_shape, "RuntimeError: an operation")
    assert not any(knob.endswith("/channels") for knob in make_space(RICH, unknown).menu())


def test_a_space_without_a_choice_is_refused():
    with pytest.raises(ConfigError, match="every menu has one option or none fits a layer"):
        make_space(SpaceConfig(precision=("w8",)), graph_of("lenet5"))


def test_uniform_choices_start_with_the_first_options_and_treat_every_layer_alike():
    space = rich("lenet5")
    uniform = list(space.uniform())
    assert space.policy(uniform[0]) == Policy()
    alone = [{name.rpartition("/")[2] for name, index in choices.items() if index} for choices in uniform[1:8]]
    assert all(len(knobs) == 1 for knobs in alone)
    for choices in uniform:
        by_knob = {}
        for name, index in choices.items():
            by_knob.setdefault(name.rpartition("/")[2], set()).add(index)
        assert all(len(indices) == 1 for indices in by_knob.values())
    assert len(uniform) == 1 + 2 + 2 + 2 + 3 + 3 * (2 * 3)


def test_policies_outside_the_menus_have_no_choices():
    space = rich("lenet5")
    for step in (*precision_step("w3"), Step.of("prune_magnitude", sparsity=0.51), Step.of("svd", rank=3)):
        assert space.choices(Policy({"fc1": (step,)})) is None
    assert rich("lenet5", skip=("fc1",)).choices(Policy({"fc1": tuple(precision_step("k16"))})) is None


def test_the_normal_form_of_a_policy_has_the_same_choices():
    space = rich("lenet5", rank=(1.0,))
    for choices in space.uniform():
        policy = space.policy(choices)
        assert space.choices(make_plan(policy, graph_of("lenet5")).policy) == space.choices(policy)


def test_the_inverse_is_quick_on_a_deep_network():
    space = rich("mobilenet", tie="none", multiple=4)
    policy = space.suggest(FixedTrial({knob: len(options) - 1 for knob, options in space.menu().items()}))
    start = time.process_time()
    assert space.suggest(FixedTrial(space.choices(policy))) == policy
    assert time.process_time() - start < 5


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25, 0.1])
@pytest.mark.parametrize(
    ("layer", "factorize"),
    [("conv2", "svd_spatial"), ("conv2", "svd_channel"), ("conv2", "tucker2"), ("conv2", "cp"), ("fc1", "tucker2")],
)
def test_factors_hold_about_the_share_of_the_weights_that_was_asked(layer, factorize, share):
    info = graph_of("lenet5").layers[layer]
    kept = build(factor_step(info, share, factorize)).cost(info).weight_bits / (32 * info.weights)
    assert kept == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("factorize", ["svd_spatial", "svd_channel", "tucker2", "cp"])
def test_no_factors_are_offered_that_make_a_layer_no_cheaper(factorize):
    graph = graph_of("digits")
    space = rich("digits", factorize=factorize, rank=(1.0, 0.98, 0.5), tie="none")
    offered = 0
    for name, info in graph.layers.items():
        for index in range(3):
            for step in space.policy({f"{name}/rank": index}).layers.get(name, ()):
                technique = build(step)
                if technique.phase == Phase.FACTORIZE:
                    offered += 1
                    assert technique.cost(info).macs < info.macs
    assert offered >= len(graph.layers)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("float32", []),
        ("w8a8", [Step.of("quantize", bits=8, activations="int8", rounding="nearest")]),
        ("w3", [Step.of("quantize", bits=3, activations="float32", rounding="nearest")]),
        ("k16", [Step.of("share", clusters=16, rounding="nearest")]),
        ("w4a8_mse", [Step.of("quantize", bits=4, activations="int8", rounding="nearest", calibration="mse")]),
        ("w4_adaptive", [Step.of("quantize", bits=4, activations="float32", rounding="nearest")]),
        ("fixed12", [Step.of("fixed_point", bits=12, exponents="tensor", rounding="nearest")]),
        ("dynamic8_stochastic", [Step.of("fixed_point", bits=8, exponents="channel", rounding="stochastic")]),
        ("binary", [Step.of("binarize", method="mean")]),
        ("binary_connect_stochastic", [Step.of("binarize", method="connect_stochastic")]),
        ("circulant8", [Step.of("circulant", block=8, seed=0)]),
        ("toeplitz16", [Step.of("toeplitz", block=16)]),
        ("fastfood", [Step.of("fastfood", seed=1)]),
        ("k256", [Step.of("share", clusters=256, rounding="nearest")]),
        ("k16f", [Step.of("share", clusters=16, rounding="nearest", weighting="fisher")]),
        ("soft16", [Step.of("share_soft", clusters=16, zero=0.9, strength=1e-6)]),
        ("soft16s10", [Step.of("share_soft", clusters=16, zero=0.9, strength=1e-5)]),
        ("soft8z5s3", [Step.of("share_soft", clusters=8, zero=0.99999, strength=3e-6)]),
        ("soft8z3", [Step.of("share_soft", clusters=8, zero=0.999, strength=1e-6)]),
        ("pq4x8", [Step.of("product_quantize", clusters=16, dimension=8, codebooks="each")]),
        ("pq8x4s", [Step.of("product_quantize", clusters=256, dimension=4, codebooks="shared")]),
        ("rq4x8x2", [Step.of("residual_quantize", clusters=16, dimension=8, stages=2, codebooks="shared")]),
        ("hash8", [Step.of("hash_weights", share=0.125, seed=0)]),
    ],
)
def test_precisions_name_their_technique(text, steps):
    assert list(precision_step(text)) == steps
    for step in steps:
        build(step)


def test_learned_rounding_is_what_second_order_adds_to_its_word():
    adaptive = Step.of("quantize", bits=4, activations="float32", rounding="adaptive")
    assert rich("lenet5", precision=("w4_adaptive",), second_order=True).policy({}).layers["conv2"] == (adaptive,)
    plain = rich("lenet5", precision=("w4_adaptive",), second_order=False).policy({}).layers["conv2"]
    assert plain == tuple(precision_step("w4"))


def test_signs_of_inputs_are_offered_where_a_layer_can_have_them():
    policy = rich("lenet5", precision=("binary_xnor",)).policy({})
    assert policy.layers["conv2"] == (Step.of("binarize", method="xnor"),)


@pytest.mark.parametrize("text", ["circulant", "circulant1", "circulant08", "toeplitz0", "fastfood4", "Circulant8"])
def test_a_structure_that_is_misspelt_is_refused_with_the_known_words(text):
    with pytest.raises(ConfigError, match=r"circulantB .*toeplitzB .*fastfood; got"):
        Menu(precision=("float32", text))


@pytest.mark.parametrize(
    ("sparsity", "n", "m"),
    [(0.5, 2, 4), (0.75, 1, 4), (0.25, 3, 4), (0.875, 1, 8), (0.9375, 1, 16), (0.9, 3, 32), (0.99, 1, 32)],
)
def test_a_share_of_zeros_becomes_groups_of_inputs(sparsity, n, m):
    assert group_steps(sparsity)[0] == Step.of("prune_nm", n=n, m=m, saliency="magnitude")


def test_factors_are_those_of_the_outputs_where_second_order_is_wanted():
    space = rich("digits", factorize="svd_channel", second_order=True, rank=(0.5,))
    steps = space.policy({}).layers
    assert [dict(steps[name][0].parameters)["whitening"] for name in ("conv2", "fc1")] == ["activations"] * 2


def test_behind_cp_nothing_asks_for_a_hessian():
    space = rich("digits", factorize="cp", second_order=True, rank=(0.5,), sparsity=(0.5,), precision=("w3",))
    steps = space.policy({}).layers["conv2"]
    assert [step.technique for step in steps] == ["cp", "prune_magnitude", "quantize"]
    assert "prune_obs" in [step.technique for step in space.policy({}).layers["fc1"]]


def test_a_weight_made_from_few_parameters_is_not_pruned():
    steps = rich("digits", rank=(1.0,), sparsity=(0.5,), precision=("circulant4",)).policy({}).layers["fc1"]
    assert [step.technique for step in steps] == ["circulant"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("separable", {"conv1": "rewrite_separable", "conv2": "rewrite_separable", "fc1": "svd", "fc2": "svd"}),
        ("stacked", {"conv1": "rewrite_stacked", "conv2": "rewrite_stacked", "fc1": "svd", "fc2": "svd"}),
        ("pooled", {"conv1": "svd_spatial", "conv2": "svd_spatial", "fc1": "rewrite_pooled", "fc2": "svd"}),
    ],
)
def test_a_layer_is_rewritten_where_the_word_fits_and_factorized_elsewhere(word, found):
    layers = rich("lenet5", rewrite=(word,), rank=(0.5,)).policy({}).layers
    assert {name: steps[0].technique for name, steps in layers.items() if steps} == found


def test_rewrites_are_fitted_to_the_outputs_where_second_order_is_wanted():
    steps = [
        rich("lenet5", rewrite=("separable",), second_order=second_order).policy({}).layers["conv2"]
        for second_order in (True, False)
    ]
    assert steps == [(Step.of("rewrite_separable"),), (Step.of("rewrite_separable", fit="weights"),)]


def test_behind_depthwise_parts_nothing_asks_for_a_hessian_and_behind_others_it_does():
    def technique(word: str) -> str:
        space = rich("lenet5", rewrite=(word,), sparsity=(0.5,), second_order=True)
        return next(s.technique for s in space.policy({}).layers["conv2"] if s.technique.startswith("prune"))

    assert [technique(word) for word in ("flattened", "separable", "stacked")] == ["prune_magnitude"] * 2 + [
        "prune_obs"
    ]


def test_dead_channels_are_not_dropped_beside_rewrites():
    with pytest.raises(ConfigError, match=r"channels of factorized layers cannot be dropped; .*rank and rewrite"):
        rich("digits", drop_dead=True, rank=(1.0,), rewrite=("keep", "separable"))
