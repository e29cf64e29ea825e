"""A search that may rewrite layers, on scikit-learn's digits, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.models import build_model
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import norms_after
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.stored_layers import write_layer
from paretopress.search import api
from paretopress.search.config import make_config
from paretopress.search.ledger import Ledger
from paretopress.search.progress import Silence
from paretopress.search.report.sensitivity_data import harshness
from paretopress.search.report.sensitivity_text import option_text
from paretopress.search.verifying import verify_bundle
from paretopress.spaces.steps import REWRITES
from paretopress.tests.search.runs import with_weights

torch.set_num_threads(1)

SPACE = {
    "precision": ["float32", "w8a8"],
    "rewrite": ["keep", "separable", "asymmetric", "flattened"],
    "channels": [1.0, 0.5],
    "rules": [{"layers": "fc1", "rewrite": ["pooled"]}, {"layers": "conv1", "rewrite": ["keep"]}],
}


@pytest.mark.usefixtures("one_core")
def test_a_search_over_rewrites_ends_with_a_candidate_that_agrees_with_its_bundle(
    trained: Path, tmp_path: Path
) -> None:
    config = with_weights(trained, space=SPACE, recovery__epochs=1, search__evaluations=8, budgets={"error": "+60"})
    front = api.run_search(make_config(config), tmp_path / "run", Silence())
    with Ledger.read(tmp_path / "run") as ledger:
        tried = {name for row in ledger.rows() for name in _techniques(row.policy_json)}
    assert {"rewrite_separable", "rewrite_asymmetric", "rewrite_flattened", "rewrite_pooled"} <= tried
    bundle = front.pick("knee").export(tmp_path / "bundle")
    assert "rewrite_pooled" in _techniques(json.dumps(front.pick("knee").policy.as_dict()))
    assert not [check for check in verify_bundle(bundle) if check.agrees is not True]


def _techniques(policy: str) -> set[str]:
    return {name for steps in json.loads(policy)["layers"].values() for step in steps for name in step}


def test_the_bank_makes_rewritten_layers_with_their_channels_cut_and_reads_them_again() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = build_model("family:digits_cnn").eval(), torch.rand(48, 1, 8, 8)
    graph = ModelGraph.trace(model, pictures[:1])
    steps = {
        "conv2": (Step.of("rewrite_flattened"), Step.of("prune_channels", sparsity=0.5), Step.of("quantize", bits=4)),
        "fc1": (Step.of("rewrite_pooled", positions=16), Step.of("prune_obs", sparsity=0.5)),
    }
    plan = make_plan(Policy(steps), graph)
    banks = [
        Bank(
            model,
            graph,
            Observations.of(model, graph, pictures),
            input_energies(model, pictures, graph.groups),
            norms_after(model),
        )
        for _ in range(2)
    ]
    made = banks[0].stitch(plan)
    assert [tuple(part.weight.shape) for part in made.variants["conv2"].plain] == [
        (32, 32, 1, 1),
        (32, 1, 3, 1),
        (32, 1, 1, 3),
    ]
    assert made.variants["fc1"].plain[1].weight.shape == (64, 32)
    assert made.variants["fc1"].relative_error < 1
    banks[1].adopt({variant.digest: write_layer(variant.module) for variant in made.variants.values()})
    again = banks[1].stitch(plan)
    assert again.stored_bytes == made.stored_bytes
    for name, variant in made.variants.items():
        assert torch.equal(variant.plain(_inputs(name)), again.variants[name].plain(_inputs(name)))


def _inputs(name: str) -> torch.Tensor:
    shape = (2, 32, 8, 8) if name == "conv2" else (2, 512)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("word", REWRITES)
def test_the_page_of_sensitivity_has_a_word_and_a_place_for_each_rewrite(word: str) -> None:
    assert option_text("rewrite", word) == ("not rewritten" if word == "keep" else word)
    assert harshness("rewrite", word) == list(REWRITES).index(word)
