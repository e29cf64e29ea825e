"""Write into a file of weights which pictures its training saw and left out, after measuring that it is so.

For files that were made before trainings wrote this themselves; the tensors stay bit for bit as they are.

    python -m paretopress.tests.bench.provenance configs/cifar10_resnet20.yaml configs/weights/cifar10_resnet20.safetensors \
        --set "model.train={epochs: 18, batch_size: 128, lr: 0.2, weight_decay: 0.0005, augment: {shift: 4, flip: true}}"

The configuration gives network, data and split, and with ``--set`` the recipe. The network has to err on validation pictures
as it errs on test pictures (within chance, 99.9 %), and more than on as many training pictures (by more than chance): a
network that had learned the validation pictures would err on them as it does on training pictures. Otherwise the exit code
is 1 and the file stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from paretopress.evaluators.accuracy import file_error
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.holdout import differ_by_more_than_chance
from paretopress.evaluators.models import load_weights
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.files import write_atomically
from paretopress.search.config import Config, load_config
from paretopress.search.prepare import empty_network, read_data
from paretopress.search.splits import describe_recipe, trained_here
from safetensors.torch import load_file, save_file

MAX_TRAINING = 20_000
"""Training pictures that are measured: enough to tell their error from that of validation pictures."""


def main() -> int:
    """Measure, say what was found, and write the metadata where it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="A.B=C")
    arguments = parser.parse_args()
    config = load_config(arguments.config, tuple(arguments.changes))
    data = read_data(config, lambda line: print(line, file=sys.stderr))
    errors = measure_errors(config, data, arguments.weights)
    counts = {
        "train": min(len(data.train), MAX_TRAINING),
        "validation": len(data.validation),
        "test": len(data.test or ()),
    }
    print(json.dumps({"error_pct": errors, "pictures": counts}))
    if not is_left_out(errors, counts):
        print("the figures do not show that the validation pictures were left out; nothing is written", file=sys.stderr)
        return 1
    write_metadata(config, data, arguments.weights)
    return 0


def measure_errors(config: Config, data: DataSet, weights: Path) -> dict[str, float]:
    """Measure the errors in per cent of the network with these weights on training, validation and test pictures."""
    model = empty_network(config, data).eval()
    load_weights(model, weights)
    onnx = export_onnx(model, data.preprocess(data.calibration.images[:1]), calibration=None)
    parts = {"train": data.train.take(slice(0, MAX_TRAINING)), "validation": data.validation, "test": data.test}
    return {name: file_error(onnx, data, part, 1) for name, part in parts.items() if part is not None}


def is_left_out(errors: dict[str, float], counts: dict[str, int]) -> bool:
    """Tell whether the network errs on validation pictures as on test pictures, and more than on training pictures."""
    validation = (errors["validation"], counts["validation"])
    as_test = not differ_by_more_than_chance(*validation, errors["test"], counts["test"])
    apart = differ_by_more_than_chance(*validation, errors["train"], counts["train"])
    return as_test and apart and errors["train"] < errors["validation"]


def write_metadata(config: Config, data: DataSet, weights: Path) -> None:
    """Write the same tensors with the recipe and the digests of the pictures beside them."""
    assert config.model.train is not None, "give the recipe: --set 'model.train={...}'"
    trainings = {"train": config.model.train.model_dump(mode="json")}
    if config.space.shape is not None:
        trainings["supernet"] = config.space.shape.supernet.model_dump(mode="json", exclude={"weights"})
    metadata = trained_here(data, describe_recipe(config, **trainings)).metadata()
    tensors = load_file(weights)
    write_atomically(weights, lambda temporary: save_file(tensors, temporary, metadata))
    again = load_file(weights)
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[name], again[name]) for name in tensors)


if __name__ == "__main__":
    sys.exit(main())
