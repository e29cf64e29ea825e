"""Families by name: from a configuration to counts and a file, on small pictures; knobs that cannot be are refused."""

from __future__ import annotations

import functools

import pytest
import torch
from paretopress.evaluators.macs import profile
from paretopress.evaluators.models import build_model
from paretopress.evaluators.runtime import session
from paretopress.evaluators.sources import load_data
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import SHAPED
from paretopress.policies.architectures.knobs import scaled
from paretopress.policies.architectures.shufflenet import Shuffle
from paretopress.policies.errors import InputError, ModelError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.search.config import make_config
from paretopress.search.prepare import data_options, empty_network
from torch import Tensor, nn

torch.set_num_threads(1)

# One small network of each family for pictures of 28 or 32 pixels.
SMALL = {
    "densenet": {"side": 28, "depth": 10, "growth": 4, "bottleneck": True, "compression": 0.5},
    "inception": {"side": 32, "downsampling": 8, "width": 0.0625, "spatial": "stacked"},
    "mobilenet_v1": {"side": 28, "downsampling": 4, "width": 0.25, "repeats": 1},
    "mobilenet_v2": {"side": 32, "downsampling": 8, "width": 0.2, "multiple": 4, "resolution": 24},
    "plain": {"side": 32, "width": 0.125, "convolution": "flattened", "head": "linear"},
    "pocket": {"side": 28, "stem": 8, "blocks": "8-12", "kernel": 5, "norms": "each"},
    "shufflenet": {"side": 32, "downsampling": 8, "width": 0.25, "groups": 2},
    "squeezenet": {"side": 28, "downsampling": 4, "width": 0.125, "bypass": "complex", "batch_norm": True},
    "tied_resnet": {"side": 32, "width": 0.5},
    "xception": {"side": 32, "downsampling": 8, "width": 0.0625, "middle": 1},
}


@functools.cache
def small(name: str) -> tuple[nn.Module, ModelGraph, Tensor]:
    model = build_model(f"family:{name}", num_classes=10, in_channels=1, **SMALL[name]).eval()
    side = SMALL[name]["side"]
    x = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    return model, ModelGraph.trace(model, x[:1]), x


def computed(file: bytes, x: Tensor) -> Tensor:
    running = session(file)
    return torch.from_numpy(running.run(None, {running.get_inputs()[0].name: x.numpy()})[0])


def test_every_family_has_a_small_network_here():
    assert set(SMALL) == set(SHAPED)


@pytest.mark.parametrize("name", SMALL)
def test_it_is_traced_counted_and_exported(name):
    model, graph, x = small(name)
    counts = profile(model, x[:1])
    assert counts.unknown_operations == ()
    assert counts.macs == sum(layer.macs * layer.calls for layer in graph.layers.values())
    assert graph.coupling_error is None
    with torch.no_grad():
        expected = model(x)
    found = computed(export_onnx(model, x[:1], calibration=None), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "shufflenet"])
def test_its_channels_can_be_pruned(name):
    model, graph, x = small(name)
    root = next(group.root for group in graph.groups if group.refusal is None and group.channels >= 4)
    policy = Policy({root: (Step.of("prune_channels", sparsity=0.5, multiple=1),)})
    pruned = apply_plan(make_plan(policy, graph), graph, model, x).model
    assert profile(pruned, x[:1]).macs < profile(model, x[:1]).macs


@pytest.mark.parametrize("name", SMALL)
def test_all_its_layers_run_in_8_bit(name):
    model, graph, x = small(name)
    step = Step.of("quantize", bits=8, activations="int8")
    plan = make_plan(Policy(dict.fromkeys(graph.layers, (step,))), graph)
    found = computed(export_onnx(apply_plan(plan, graph, model, x).model, x[:1], calibration=x), x)
    with torch.no_grad():
        expected = model(x)
    assert float((found - expected).norm() / expected.norm()) < 0.2


@pytest.mark.parametrize("name", SMALL)
def test_it_learns(name):
    model = build_model(f"family:{name}", num_classes=4, in_channels=1, **SMALL[name]).train()
    side = SMALL[name]["side"]
    x = torch.randn(8, 1, side, side, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 3
    assert min(losses[-3:]) < 0.98 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_configuration_sets_the_knobs():
    config = make_config(
        {
            "model": {
                "name": "family:mobilenet_v1",
                "arguments": {"side": 32, "downsampling": 8, "width": 0.25, "repeats": 0},
                "train": {"epochs": 1},
            },
            "data": {"name": "digits", "image_size": 32},
        }
    )
    data = load_data("digits", directory=None, report=print, **data_options(config))
    model = empty_network(config, data).eval()
    example = data.preprocess(data.calibration.images[:1])
    assert example.shape == (1, 1, 32, 32)
    assert ModelGraph.trace(model, example).layers["stages.4.0.pointwise.conv"].output_shape == (256, 4, 4)
    assert computed(export_onnx(model, example, calibration=None), example).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("mobilenet_v1", {"width": 0.01}, "a width of 0.01 leaves a layer of 32 channels empty; take at least 0.0156"),
        ("mobilenet_v1", {"width": -1}, "width: expected a number above 0; got -1"),
        ("mobilenet_v1", {"width": "wide"}, "width: expected a number above 0; got 'wide'"),
        ("mobilenet_v1", {"width": float("nan")}, "width: expected a number above 0; got nan"),
        ("mobilenet_v1", {"widht": 1.0}, "unknown knob 'widht'; did you mean 'width'?"),
        ("mobilenet_v1", {"resolution": 100}, "strides of 32 in all do not divide 100 pixels; take a multiple of 32"),
        ("mobilenet_v2", {"side": 28, "downsampling": 8}, "strides of 8 in all do not divide 28 pixels"),
        ("mobilenet_v2", {"side": 32, "downsampling": 3}, "downsampling: expected one of 1, 2, 4, 8, 16, 32; got 3"),
        ("mobilenet_v2", {"expansion": True}, "expansion: expected a whole number of at least 1; got True"),
        ("squeezenet", {"squeeze_ratio": 0.001}, "fire module 2 of 128 filters: squeeze_ratio 0.001"),
        ("squeezenet", {"width": 0.02, "share_3x3": 0.9}, "leave a layer empty; take a larger width"),
        ("squeezenet", {"side": 16}, "the paper's stem and pools need 21 pixels; got 16"),
        ("squeezenet", {"bypass": "long"}, "bypass: expected one of none, simple, complex; got 'long'"),
        ("squeezenet", {"batch_norm": 1}, "batch_norm: expected true or false; got 1"),
        ("inception", {"bottleneck": 0.02}, "leaves a layer of 16 channels empty"),
        ("shufflenet", {"groups": 5}, "groups: expected one of 1, 2, 3, 4, 8; got 5"),
        ("shufflenet", {"groups": 8, "width": 0.01}, "leaves nothing of a layer in 8 groups"),
        ("densenet", {"depth": 41}, "depth: expected 4 more than a multiple of 3, as 22; got 41"),
        ("densenet", {"layout": "imagenet"}, "depth: on the imagenet layout one of 121, 169, 201, 264; got 40"),
        ("densenet", {"compression": 0.001}, "compression: 0.001 leaves no channel between blocks"),
        ("xception", {"middle": 2.5}, "middle: expected a whole number of at least 0; got 2.5"),
        ("xception", {"side": 5}, "the paper's stem needs 7 pixels; got 5"),
        ("plain", {"kernel": 4}, "kernel: expected one of 3, 5, 7; got 4"),
    ],
)
def test_knobs_that_cannot_be_are_refused(name, knobs, message):
    with pytest.raises(ModelError) as refused:
        build_model(f"family:{name}", **knobs)
    assert message in str(refused.value)
    with pytest.raises(InputError) as plainly:
        SHAPED[name].shape(**knobs)
    assert message in str(plainly.value)


@pytest.mark.parametrize(
    ("channels", "width", "multiple", "expected"),
    [(32, 0.75, 1, 24), (3, 0.5, 1, 2), (32, 0.35, 8, 16), (24, 0.35, 8, 8), (96, 0.75, 8, 72), (16, 0.01, 8, 8)],
)
def test_a_width_is_rounded_as_the_papers_do(channels, width, multiple, expected):
    assert scaled(channels, width, multiple) == expected


def test_the_first_strides_are_the_ones_that_small_pictures_lose():
    knobs = SHAPED["mobilenet_v1"].shape(side=28, downsampling=4)
    assert knobs.strides == (1, 1, 1, 2, 2)
    model = SHAPED["mobilenet_v1"](side=28, downsampling=4, width=0.25, repeats=0)
    maps = model.stages(model.stem(torch.zeros(1, 3, 28, 28)))
    assert maps.shape[2:] == (7, 7)


def test_a_resolution_scales_the_pictures_first():
    torch.manual_seed(0)
    model = SHAPED["mobilenet_v1"](side=32, resolution=16, downsampling=4, width=0.25, repeats=0).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.resize(x), nn.functional.avg_pool2d(x, 2))
    full = SHAPED["mobilenet_v1"](side=32, downsampling=4, width=0.25, repeats=0).eval()
    classifier = model.head.fc.weight.numel()
    assert 4 * (profile(model, x[:1]).macs - classifier) == profile(full, x[:1]).macs - classifier


def test_tied_blocks_are_stored_and_counted_once():
    tied, own = (SHAPED["tied_resnet"](share=share).eval() for share in ("stage", "none"))
    x = torch.zeros(1, 3, 32, 32)
    lost = sum(2 * 9 * channels**2 for channels in (16, 32, 64))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (own, tied)]
    assert sizes == [272_474, 272_474 - lost]
    assert profile(tied, x).macs == profile(own, x).macs
    layers = ModelGraph.trace(tied, x).layers
    assert {name: layer.calls for name, layer in layers.items() if layer.calls > 1} == {
        f"stages.{stage}.1.conv{conv}": 2 for stage in range(3) for conv in (1, 2)
    }


def test_shuffled_channels_come_from_every_group():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
def test_a_bypass_goes_around_the_modules_that_it_may(bypass):
    model = SHAPED["squeezenet"](side=32, downsampling=8, width=0.25, bypass=bypass)
    fires = [layer for layer in model.fires if hasattr(layer, "squeeze")]
    kinds = [type(fire.bypass).__name__ for fire in fires]
    changed, kept = {"none": ("NoneType",) * 2, "simple": ("NoneType", "Identity"), "complex": ("Conv2d", "Identity")}[
        bypass
    ]
    assert kinds == [changed, kept] * 4


@pytest.mark.parametrize(
    ("knobs", "parameters", "last_map"),
    [
        ({}, 2_610, 7),
        ({"stem": 8, "blocks": "16-16-24", "kernel": 5}, 2_346, 7),
        # Two depthwise layers of 8 channels more with batch norm, in all 32 numbers.
        ({"stem": 8, "blocks": "8-8", "norms": "each", "downsampling": 2}, 216 + 2 * (72 + 16 + 64 + 16) + 90, 14),
    ],
)
def test_pocket_networks_have_the_parameters_of_their_knobs(knobs, parameters, last_map):
    model = build_model("family:pocket", num_classes=10, in_channels=1, **knobs).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.blocks(model.stem(torch.zeros(1, 1, 28, 28))).shape[-1] == last_map


@pytest.mark.parametrize("blocks", ["", "16-", "16-0", "-8", "16 24", 16])
def test_widths_that_are_none_are_refused(blocks):
    with pytest.raises(ModelError, match="blocks: expected channels of each block"):
        build_model("family:pocket", blocks=blocks)
