"""The deployed form computes what the compressed network computes, with the policy's own codes."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from paretopress.evaluators.runtime import session_options
from paretopress.policies import forms
from paretopress.policies.architectures import DigitsCNN, LeNet300100, ResNet20
from paretopress.policies.coding.tensors import UniformTensor
from paretopress.policies.errors import CandidateError, ModelError
from paretopress.policies.export.onnx import export_onnx
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


class DepthwiseNet(nn.Module):
    """What mobile networks are made of: ReLU6, depthwise convolutions, sums, and padding computed from the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        missing = (-(x.shape[-1] // -2) - 1) * 2 + 3 - x.shape[-1]
        x = functional.pad(x, [missing // 2, missing - missing // 2] * 2)
        x = functional.relu6(self.bn1(self.stem(x)))
        y = functional.relu6(self.bn2(self.depthwise(x)))
        x = self.bn3(self.pointwise(y)) + x
        return self.fc(x.mean((2, 3)).reshape(x.shape[0], -1))


def pictures(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures (count, channels, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    return functional.interpolate(coarse, (side, side), mode="bilinear") * 2


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The network in evaluation mode with batch norms that have something to fold, some factors negative."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            sign = torch.where(torch.rand(module.num_features, generator=generator) < 0.2, -1.0, 1.0)
            module.weight.data = sign * (0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data = 0.3 * torch.randn(module.num_features, generator=generator)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def quantized(model: nn.Module, x: Tensor, names: set[str] | None = None, bits: int = 8) -> nn.Module:
    """A copy with 8-bit layers: weights of ``bits`` per channel, inputs over the range that the pictures give."""
    model = copy.deepcopy(model)
    chosen = [(n, m) for n, m in forms.weighted_modules(model) if names is None or n in names]
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})) for _, m in chosen]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for _, module in chosen:
        scale = module.weight.detach().abs().flatten(1).amax(1).clamp_min(1e-8) / (2 ** (bits - 1) - 1)
        forms.set_form(module, forms.UniformWeight(scale, bits, None))
        forms.set_input_range(module, float(inputs[module].min()), float(inputs[module].max()))
    return model


def run(data: bytes, x: Tensor, optimized: Path | None = None) -> np.ndarray:
    options = session_options()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": x.numpy()})[0]


def forward(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


def operators(data: bytes | Path) -> Counter[str]:
    model = onnx.load(data) if isinstance(data, Path) else onnx.load_from_string(data)
    return Counter(node.op_type for node in model.graph.node)


def values(data: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}


NETWORKS = {
    "digits": (DigitsCNN, 1, 8),
    "lenet": (LeNet300100, 1, 28),
    "resnet": (lambda: ResNet20(width=8), 3, 32),
    "depthwise": (DepthwiseNet, 3, 20),
}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, channels, side = NETWORKS[request.param]
    x = pictures(96, channels, side)
    return settled(build(), x), x


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = pictures(96, 3, 32)
    return settled(ResNet20(width=8), x), x


def test_float_network_computes_what_torch_computes(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    data = export_onnx(model, x[:1], calibration=None)
    for batch in (x[:1], x[:5]):
        np.testing.assert_allclose(run(data, batch), forward(model, batch), rtol=0, atol=1e-4)


def test_batch_norm_and_padding_are_folded_and_shapes_are_settled(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    found = operators(export_onnx(model, x[:1], calibration=None))
    folded = {"BatchNormalization", "Cast", "Concat", "Gather", "Pad", "Shape", "Slice", "Unsqueeze"}
    assert not folded & set(found)


def test_number_of_pictures_is_left_open(resnet: tuple[nn.Module, Tensor]) -> None:
    model, x = resnet
    graph = onnx.load_from_string(export_onnx(model, x[:1], calibration=None)).graph
    ends = [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*graph.input, *graph.output)
    ]
    assert ends == [("input", ["N", 3, 32, 32]), ("logits", ["N", 10])]


def test_eight_bit_network_agrees_with_its_simulation(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    model = quantized(model, x)
    data, fresh = export_onnx(model, x[:1], calibration=x), pictures(200, *x.shape[1:3], seed=7)
    expected, computed = forward(model, fresh), run(data, fresh)
    assert (computed.argmax(1) == expected.argmax(1)).mean() >= 0.97
    assert np.sqrt(((computed - expected) ** 2).mean()) < 0.15 * expected.std()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_the_policys_and_scales_carry_batch_norm(resnet: tuple[nn.Module, Tensor], bits: int) -> None:
    model, x = resnet
    model = quantized(model, x, bits=bits)
    stored = values(export_onnx(model, x[:1], calibration=x[:16]))
    norms = {
        "conv1": model.bn1,
        "layer2.0.shortcut.0": model.layer2[0].shortcut[1],
        "layer3.2.conv2": model.layer3[2].bn2,
    }
    for name, norm in norms.items():
        own = forms.stored_weight(model.get_submodule(name))
        assert isinstance(own, UniformTensor)
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
        assert (factor < 0).any()
        codes = stored[f"{name}.weight_quantized"]
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes, own.codes * np.sign(factor).astype(np.int8)[:, None, None, None])
        np.testing.assert_allclose(stored[f"{name}.weight_scale"], own.scales * np.abs(factor), rtol=1e-5)
    linear = forms.stored_weight(model.fc)
    assert isinstance(linear, UniformTensor)
    np.testing.assert_array_equal(stored["fc.weight_quantized"], linear.codes)
    np.testing.assert_array_equal(stored["fc.weight_scale"], linear.scales)


def test_runtime_runs_a_fully_quantized_network_on_integers(resnet: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, x = resnet
    run(export_onnx(quantized(model, x), x[:1], calibration=x[:16]), x[:1], tmp_path / "optimized.onnx")
    found = operators(tmp_path / "optimized.onnx")
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (21, 9, 1)
    assert not {"Conv", "Add", "Relu", "Gemm", "DequantizeLinear", "BatchNormalization"} & set(found)


def test_float_layer_between_eight_bit_layers_stays_float() -> None:
    x = pictures(32, 1, 8)
    model = quantized(settled(DigitsCNN(), x), x, {"conv1", "fc1"})
    graph = onnx.load_from_string(export_onnx(model, x[:1], calibration=x)).graph
    produced = {name: node for node in graph.node for name in node.output}
    initializers = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [initializers.get(name) for name in weights] == [None, onnx.TensorProto.FLOAT, None, onnx.TensorProto.FLOAT]
    assert [produced[weights[i]].op_type for i in (0, 2)] == ["DequantizeLinear"] * 2
    # Two inputs and the output of the convolution, whose integer kernel writes 8 bit; the linear layer's output is float.
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 3


def test_other_forms_are_exported_as_float_with_their_effective_weight() -> None:
    x = pictures(8, 1, 28)
    model = LeNet300100().eval()
    weight = model.fc1.weight.detach()
    forms.set_form(model.fc1, forms.MaskedWeight(weight.abs() > 0.01))
    codes = (model.fc2.weight.detach() > 0).int()
    forms.set_form(model.fc2, forms.SharedWeight(codes, torch.tensor([-0.05, 0.05]), None))
    forms.set_form(model.fc3, forms.UniformWeight(model.fc3.weight.detach().abs().amax(1) / 7, 4, None))
    data = export_onnx(model, x[:1], calibration=x)
    assert "QuantizeLinear" not in operators(data)
    stored = values(data)
    for name in ("fc1", "fc2", "fc3"):
        np.testing.assert_array_equal(stored[f"{name}.weight"], model.get_submodule(name).weight.detach().numpy())
    np.testing.assert_allclose(run(data, x), forward(model, x), rtol=0, atol=1e-5)


def test_bias_of_a_channel_of_zeros_survives() -> None:
    x = pictures(32, 1, 8)
    model = settled(DigitsCNN(), x)
    model.conv1.weight.data[::2] = 0
    model.bn1.running_var.data[::2] = 1.0
    model.bn1.bias.data[::2] = 5.0
    model = quantized(model, x)
    data = export_onnx(model, x[:1], calibration=x)
    assert np.abs(values(data)["conv1.weight_quantized"][::2]).max() == 0
    expected = forward(model, x)
    assert np.abs(run(data, x) - expected).max() < 0.1 * np.abs(expected).max()


def test_model_is_left_as_it_was(resnet: tuple[nn.Module, Tensor]) -> None:
    model = quantized(*resnet).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, resnet[1][:1], calibration=resnet[1][:8])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_network_that_cannot_be_exported_is_refused_with_the_cause() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("the cause\nand a long trace")

    with pytest.raises(ModelError, match=r"Broken cannot be exported .* \(1, 1, 8, 8\): the cause; check"):
        export_onnx(Broken(), pictures(1, 1, 8), calibration=None)


def test_sums_need_calibration_pictures(resnet: tuple[nn.Module, Tensor]) -> None:
    model, x = resnet
    with pytest.raises(ModelError, match="give calibration pictures"):
        export_onnx(quantized(model, x), x[:1], calibration=None)


def test_chain_of_layers_needs_no_calibration_pictures() -> None:
    x = pictures(32, 1, 28)
    data = export_onnx(quantized(LeNet300100().eval(), x), x[:1], calibration=None)
    assert operators(data)["QuantizeLinear"] == 3


def test_eight_bit_layer_whose_weight_is_used_otherwise_is_refused() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    x = pictures(8, 1, 8)
    model = nn.Sequential(Standardised(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.raises(ModelError, match="layer '0' cannot be exported as 8 bit"):
        export_onnx(quantized(model, x), x[:1], calibration=x)
    np.testing.assert_allclose(run(export_onnx(model, x[:1], calibration=None), x), forward(model, x), atol=1e-5)


def test_diverged_network_is_the_candidates_fault(resnet: tuple[nn.Module, Tensor]) -> None:
    model, x = resnet
    model = quantized(model, x)
    model.layer1[0].bn2.bias.data[0] = float("nan")
    with pytest.raises(CandidateError, match="no finite range"):
        export_onnx(model, x[:1], calibration=x[:8])
