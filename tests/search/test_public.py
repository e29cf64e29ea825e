from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paretopress
import pytest
from paretopress.policies.coding.press import encode
from paretopress.policies.coding.tensors import DenseTensor

NAMES = [
    "Candidate",
    "Front",
    "ParetopressError",
    "Policy",
    "__version__",
    "load",
    "open_front",
    "resume",
    "search",
    "slimmable",
]
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "optuna", "ray", "sklearn", "scipy", "plotly")


def without_heavy_modules(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints in which none of the heavy modules can be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", block + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert sorted(paretopress.__all__) == NAMES
    for name in NAMES:
        assert getattr(paretopress, name) is not None


def test_search_is_a_function_before_and_after_its_package_is_imported() -> None:
    code = (
        "import paretopress as pp\n"
        "for _ in range(2):\n"
        "    assert callable(pp.search)\n"
        "    import paretopress.search.seeds as seeds\n"
        "    assert seeds is pp.search.seeds"
    )
    without_heavy_modules(code)
    with pytest.raises(paretopress.ParetopressError, match=r"expected an nn\.Module"):
        paretopress.search(3)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serch'; it has Candidate, Front"):
        paretopress.serch  # noqa: B018


def test_the_package_and_its_errors_and_policies_need_no_torch() -> None:
    code = "import paretopress as pp; print(pp.__version__, pp.Policy().digest, pp.ParetopressError.__name__)"
    assert without_heavy_modules(code).split() == ["0.1.0", paretopress.Policy().digest, "ParetopressError"]


def test_a_stored_network_is_decoded_without_torch(tmp_path: Path) -> None:
    weight = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    (tmp_path / "model.press").write_bytes(encode({"fc.weight": DenseTensor(weight)}, {"note": "hello"}))
    code = (
        "from pathlib import Path\n"
        "from paretopress.policies.coding.press import decode\n"
        "content = decode(Path(sys.argv[1]).read_bytes())\n"
        "print(content.tensors['fc.weight'].decode().tobytes().hex())"
    )
    assert bytes.fromhex(without_heavy_modules(code, str(tmp_path / "model.press"))) == weight.tobytes()


def test_the_command_line_answers_questions_about_itself_without_torch() -> None:
    code = "from paretopress.search.cli import run; sys.exit(run(['search', '--help']))"
    assert "--out" in without_heavy_modules(code)
