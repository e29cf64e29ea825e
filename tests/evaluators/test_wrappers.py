"""Wrapped networks, networks that cannot be copied, and where workers look for modules."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paretopress.evaluators.models import load_weights
from paretopress.evaluators.paths import ModulePath, package_variables
from paretopress.evaluators.ray_pool import pickle_without_tensors
from paretopress.evaluators.torchvision_guard import import_torchvision
from paretopress.evaluators.training.task import TrainingTask
from paretopress.evaluators.wrappers import check_copies, unwrap
from paretopress.policies.errors import ModelError
from torch import nn
from torch.optim.swa_utils import AveragedModel

torch.set_num_threads(1)
PICTURES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*layers).eval()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        lambda module: module,
    ],
)
def test_the_network_is_taken_out_of_its_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = network()
    assert unwrap(wrap(inner)) is inner


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: compiled(nn.DataParallel(module))])
def test_copies_side_by_side_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"a DataParallel, .*give model\.module"):
        unwrap(wrap(network()))


def test_parts_of_several_devices_are_plain_in_a_copy() -> None:
    model = network()
    model[0] = nn.DataParallel(model[0])
    assert type(unwrap(model)[0]) is nn.Conv2d  # type: ignore[index]


def test_averages_of_weights_give_the_averaged_network() -> None:
    import_torchvision()
    from timm.utils import ModelEmaV2, ModelEmaV3

    for average in (AveragedModel(network()), ModelEmaV2(network()), ModelEmaV3(network())):
        assert type(unwrap(average)) is nn.Sequential
        assert torch.equal(unwrap(average).eval()(PICTURES), network()(PICTURES))


def test_compiled_parts_are_plain_in_a_copy_that_shares_the_weights() -> None:
    model = network()
    model[0] = compiled(model[0])
    model[5].compile(backend="eager")
    plain = unwrap(model)
    assert type(plain[0]) is nn.Conv2d and plain[5]._compiled_call_impl is None  # type: ignore[index]
    assert plain[0].weight is network_weight(model)  # type: ignore[index]
    assert type(model[0]) is not nn.Conv2d and model[5]._compiled_call_impl is not None
    assert torch.equal(plain(PICTURES), network()(PICTURES))


def network_weight(model: nn.Module) -> torch.Tensor:
    return dict(model.named_parameters())["0._orig_mod.weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_refused_as_a_whole_and_as_a_part() -> None:
    with pytest.raises(ModelError, match="the network is a TorchScript program"):
        unwrap(torch.jit.trace(network(), PICTURES))
    model = network()
    model[2] = torch.jit.script(nn.ReLU())
    with pytest.raises(ModelError, match="its part '2' is a TorchScript program"):
        unwrap(model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_that_a_wrapper_saved_are_loaded(tmp_path: Path, prefix: str) -> None:
    saved: dict[str, Any] = {f"{prefix}{name}": value for name, value in network().state_dict().items()}
    torch.save(saved | {"n_averaged": torch.tensor(3)}, tmp_path / "w.pt")
    model = nn.Sequential(*(type(m)(3, 4, 3) if isinstance(m, nn.Conv2d) else m for m in network())).eval()
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model(PICTURES), network()(PICTURES))


def test_attributes_that_can_be_copied_are_no_hindrance() -> None:
    model = network()
    model.rule, model.generator, model.names = (lambda x: x + 1), torch.Generator(), {"a": [1, 2]}
    check_copies(model, pickle_without_tensors)


@pytest.mark.parametrize("make", [threading.Lock, lambda: (n for n in range(3)), lambda: open(__file__)])  # noqa: PTH123, SIM115
def test_an_attribute_that_cannot_be_copied_is_named(make: Callable[[], Any]) -> None:
    model, held = network(), make()
    model[2].held = held
    with pytest.raises(ModelError, match=rf"cannot be copied: its attribute '2\.held' is a {type(held).__name__}: "):
        check_copies(model)
    getattr(held, "close", lambda: None)()


class SentBadly:
    """Can be copied, but not sent."""

    def __deepcopy__(self, memo: object) -> SentBadly:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("not over the wire")


def test_an_attribute_that_cannot_be_sent_is_named_where_there_are_workers() -> None:
    model = network()
    model[2].held = SentBadly()
    check_copies(model)
    with pytest.raises(ModelError, match=r"cannot be sent to workers: its attribute '2\.held' .* not over the wire"):
        check_copies(model, pickle_without_tensors)


def test_folders_of_the_driver_are_searched_where_its_path_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = str(tmp_path / "first é"), str(tmp_path / "last")
    monkeypatch.setattr(sys, "path", [first, *sys.path, last])
    sent = pickle.dumps(ModulePath.here())
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in (first, last)])
    pickle.loads(sent)
    assert sys.path[0] == first and sys.path[-1] == last
    before = list(sys.path)
    pickle.loads(sent)
    assert sys.path == before


def test_folders_of_the_interpreter_stay_where_they_are() -> None:
    path = ModulePath.here()
    assert not [folder for folder in (*path.before, *path.after) if "site-packages" in folder]


def test_a_package_that_only_the_path_of_the_run_knows_is_known_to_its_workers(tmp_path: Path) -> None:
    package = Path(sys.modules["paretopress"].__file__ or "").parent
    (tmp_path / "of_a_copy").mkdir()
    (tmp_path / "of_a_copy" / "paretopress").symlink_to(package)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'of_a_copy')!r})\n"
        "from paretopress.evaluators.paths import package_variables; print(package_variables()['PYTHONPATH'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert printed.stdout.strip().endswith(str(tmp_path / "of_a_copy"))
    assert set(package_variables()) <= {"PYTHONPATH"}


def test_a_network_of_a_module_that_only_the_driver_finds_is_unpickled_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own modules"
    folder.mkdir()
    (folder / "found_by_the_driver_alone.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    pass\ndef carry_out(checkpoint, on_epoch):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("found_by_the_driver_alone")
    (tmp_path / "task").write_bytes(pickle.dumps(TrainingTask(module.Net(2, 3), module.carry_out, 1)))
    code = "import pickle, sys; print(type(pickle.load(open(sys.argv[1], 'rb')).model).__module__)"
    command = [sys.executable, "-c", code, str(tmp_path / "task")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert printed.stdout.strip() == "found_by_the_driver_alone"
