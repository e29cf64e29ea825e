"""What a bundle says to whoever is handed it: its files, its figures, and how to run it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluators.exact_integers import ADVICE, EXACT_INTEGERS

_OPTION = f'options.add_session_config_entry("{EXACT_INTEGERS[0]}", "{EXACT_INTEGERS[1]}")'


def bundle_readme(card: Mapping[str, Any]) -> str:
    """The text of a bundle's README.md from its report card."""
    metrics, has_8_bit = card["metrics"], "session_options" in card
    option = [f"{_OPTION}  # x86-64 without VNNI alone"] if has_8_bit else []
    lines = [
        f"# {card['id']}",
        "",
        f"A compressed network by paretopress {card['paretopress']}: {metrics['error_pct']:.2f} % error,"
        f" {metrics['stored_bytes']:,} bytes stored, {metrics['latency_ratio']:.3f}x the dense network's latency.",
        "",
        "| file | what |",
        "|---|---|",
        "| `model.onnx` | the network for ONNX Runtime, the file that was measured |",
        "| `model.press` | the same entropy-coded; `paretopress.load` or `paretopress verify` read it |",
        "| `reference.onnx` | the dense network that latency is relative to |",
        "| `policy.yaml`, `config.yaml` | what was done to each layer, and the configuration of the run |",
        "| `card.json` | every figure, budgets, digests of the files, and the machine |",
        "",
        "```python",
        "import onnxruntime",
        "",
        "options = onnxruntime.SessionOptions()",
        *option,
        'session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])',
        '(logits,) = session.run(None, {"input": pictures})  # (N, C, H, W) float32, preprocessed as config.yaml says',
        "```",
        *(["", ADVICE] if has_8_bit else []),
        "",
        "`paretopress verify DIR` measures all of it again.",
    ]
    return "\n".join(lines) + "\n"
