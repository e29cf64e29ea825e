"""A policy as text and data: canonical, hashable, and nothing but a policy is read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.policies.errors import PolicyError
from paretopress.policies.policy import MAX_POLICY_BYTES, POLICY_VERSION, Policy, Step

SAMPLE = Policy(
    {
        "fc1": (Step.of("svd", rank=8), Step.of("quantize", bits=4, activations="int8")),
        "conv1": (Step.of("prune_magnitude", sparsity=0.5),),
    }
)

names = st.text(min_size=1, max_size=12)
values = st.one_of(
    st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text()
)
steps = st.builds(lambda name, given: Step.of(name, **given), names, st.dictionaries(names, values, max_size=3))
policies = st.builds(Policy, st.dictionaries(names, st.lists(steps, max_size=3).map(tuple), max_size=3))


def test_json_is_canonical():
    assert SAMPLE.to_json() == (
        '{"layers":{"conv1":[{"prune_magnitude":{"sparsity":0.5}}],'
        '"fc1":[{"quantize":{"activations":"int8","bits":4}},{"svd":{"rank":8}}]},"version":1}'
    )


@given(policies)
@settings(max_examples=150, deadline=None)
def test_json_and_yaml_are_read_back_as_they_were(policy):
    for text in (policy.to_json(), policy.to_yaml(), json.dumps(policy.as_dict(), indent=1)):
        again = Policy.from_text(text)
        assert again == policy
        assert again.to_json() == policy.to_json()
        assert again.digest == policy.digest


@given(policies, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_layers_steps_and_parameters_is_of_no_account(policy, random):
    def shuffled(items):
        items = list(items)
        random.shuffle(items)
        return items

    layers = {
        name: [{s.technique: dict(shuffled(s.parameters))} for s in shuffled(steps)]
        for name, steps in shuffled(policy.layers.items())
    }
    # Two steps of one technique are never a valid policy; of those alone the order may matter.
    if all(len({step.technique for step in steps}) == len(steps) for steps in policy.layers.values()):
        again = Policy.from_dict({"layers": layers, "version": POLICY_VERSION})
        assert (again, hash(again), again.digest) == (policy, hash(policy), policy.digest)


def test_a_small_number_keeps_its_type_in_json():
    policy = Policy({"fc": (Step.of("prune_magnitude", sparsity=1e-05),)})
    assert "1e-05" in policy.to_json()
    assert Policy.from_text(policy.to_json()) == policy


def test_layers_without_steps_are_left_out():
    assert Policy({"fc": ()}) == Policy() == Policy.from_text("{}") == Policy.from_text("layers:\nversion: 1")


def test_a_technique_may_be_named_without_parameters():
    assert Policy.from_text("layers: {fc: [{quantize: }]}") == Policy({"fc": (Step.of("quantize"),)})


def test_a_layer_named_by_a_number_is_its_text():
    assert Policy.from_text("layers: {0: [{quantize: {bits: 8}}]}") == Policy({"0": (Step.of("quantize", bits=8),)})


def test_a_policy_cannot_be_changed():
    with pytest.raises(TypeError):
        SAMPLE.layers["fc1"] = ()
    with pytest.raises(AttributeError):
        SAMPLE.version = 2


def test_a_shape_is_written_where_there_is_one():
    shaped = Policy({"fc": (Step.of("quantize", bits=8),)}, shape={"width": 0.5, "family": "mobilenet_v1"})
    assert shaped.as_dict()["shape"] == {"family": "mobilenet_v1", "width": 0.5}
    for again in (Policy.from_text(shaped.to_yaml()), pickle.loads(pickle.dumps(shaped))):
        assert (again, again.digest) == (shaped, shaped.digest)
    assert shaped.digest != Policy(shaped.layers).digest
    assert "shape" not in SAMPLE.as_dict()
    for text in ("shape: [1]", "shape: {width: [1]}", "shape: {width: .nan}"):
        with pytest.raises(PolicyError, match="'shape' maps 'family' and knobs"):
            Policy.from_text(text)


def test_a_policy_travels_to_workers():
    again = pickle.loads(pickle.dumps(SAMPLE))
    assert again == SAMPLE
    assert again.id == SAMPLE.id == SAMPLE.digest[:12]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a policy is a mapping"),
        ("[]", "a policy is a mapping"),
        ("just text", "a policy is a mapping"),
        ("{", "cannot be read"),
        ("layers: {fc: [", "cannot be read"),
        ("\x00", "cannot be read"),
        ("layers: 2024-99-99", "cannot be read"),
        ("layer: {}", "unknown: 'layer'"),
        ("version: 2", "reads policies of version 1; this one says 2"),
        ("version: '1'", "reads policies of version 1"),
        ("version: true", "reads policies of version 1"),
        ("layers: []", "maps layer names to lists"),
        ("layers: false", "maps layer names to lists"),
        ("layers: {fc: {quantize: {bits: 8}}}", "expected a list of steps"),
        ("layers: {fc: quantize}", "expected a list of steps"),
        ("layers: {fc: [quantize]}", "a step is one technique"),
        ("layers: {fc: [{}]}", "a step is one technique"),
        ("layers: {fc: [{quantize: {}, svd: {rank: 3}}]}", "a step is one technique"),
        ("layers: {fc: [{quantize: 8}]}", "parameters are names"),
        ("layers: {fc: [{quantize: 0}]}", "parameters are names"),
        ("layers: {fc: [{quantize: []}]}", "parameters are names"),
        ("layers: {fc: [{quantize: {bits: [8]}}]}", "plain, finite values"),
        ("layers: {fc: [{quantize: {bits: null}}]}", "plain, finite values"),
        ("layers: {fc: [{quantize: {bits: 2024-01-01}}]}", "plain, finite values"),
        ("layers: {fc: [{prune_magnitude: {sparsity: .nan}}]}", "plain, finite values"),
        ('{"layers": {"fc": [{"prune_magnitude": {"sparsity": Infinity}}]}}', "plain, finite values"),
        ("layers: {fc: [{quantize: {bits: 0x" + "f" * 9000 + "}}]}", "plain, finite values"),
        ("layers: {fc: [{quantize: {bits: " + "9" * 9000 + "}}]}", "cannot be read"),
        ("layers: {0: [{svd: {rank: 2}}], '0': [{svd: {rank: 3}}]}", "same name as text and as a number"),
        ("layers: {fc: [{svd: {1: 2, '1': three}}]}", "same name as text and as a number"),
        ("layers: &a {fc: [*a]}", "plain, finite values"),
        ("layers: &a {fc: [[*a]]}", "a step is one technique"),
        ("!!python/object/apply:os.system ['false']", "cannot be read"),
        ("layers: !!python/object:builtins.dict {}", "cannot be read"),
        ("layers: {fc: [!!python/name:os.system ]}", "cannot be read"),
        ("--- {}\n--- {}", "cannot be read"),
    ],
)
def test_what_is_no_policy_is_refused(text, reason):
    with pytest.raises(PolicyError, match=reason):
        Policy.from_text(text)


@pytest.mark.parametrize("name", ["technique", "cls", "self", "parameters"])
def test_a_parameter_may_have_any_name(name):
    policy = Policy.from_text(f"layers: {{fc: [{{quantize: {{{name}: 3}}}}]}}")
    assert policy.layers["fc"][0].parameters == ((name, 3),)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", "\\\\host\\share", "a\nb"])
def test_names_never_reach_the_file_name(name):
    policy = Policy.from_text(json.dumps({"layers": {name: [{name: {name: name}}]}}))
    assert set(policy.id) <= set("0123456789abcdef")
    assert len(policy.id) == 12


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000, '{"a":' * 100_000])
def test_deep_nesting_is_refused_and_crashes_nothing(text):
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.from_text(text)


@pytest.mark.parametrize("letter", ["x", "ß", "\ud800"])
def test_a_huge_text_is_refused_by_its_bytes_before_it_is_parsed(letter):
    start = time.process_time()
    with pytest.raises(PolicyError, match="at most 1000000 bytes"):
        Policy.from_text(letter * (MAX_POLICY_BYTES // len(letter.encode(errors="surrogatepass")) + 1))
    assert time.process_time() - start < 1


def test_aliases_that_stand_for_millions_of_values_are_refused_in_a_short_message():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    bomb = "layers:\n  " + "\n  ".join(lines)
    with pytest.raises(PolicyError) as caught:
        Policy.from_text(bomb)
    assert len(str(caught.value)) < 1000


def test_policies_need_no_torch():
    code = "import sys, paretopress.policies.policy; print(sorted({'torch', 'onnx', 'timm', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
