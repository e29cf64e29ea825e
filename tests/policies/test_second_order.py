"""The Hessian is that of the outputs; pruning, rounding and reconstruction find what least squares says."""

from __future__ import annotations

import itertools

import pytest
import torch
from paretopress.policies import second_order
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.second_order import (
    Pruning,
    damped,
    layer_hessian,
    output_error,
    prune,
    reconstruct,
    round_with_feedback,
)
from paretopress.policies.techniques.prune_magnitude import largest
from paretopress.policies.techniques.quantize_uniform import channel_scales
from paretopress.policies.techniques.share_kmeans import kmeans_1d
from torch import nn

torch.set_num_threads(1)

LAYERS = {
    "linear": (nn.Linear(7, 5, bias=False), (9, 7)),
    "tokens": (nn.Linear(7, 5, bias=False), (4, 6, 7)),
    "conv": (nn.Conv2d(3, 5, 3, padding=1, bias=False), (4, 3, 8, 6)),
    "valid": (nn.Conv2d(3, 5, (3, 2), padding="valid", bias=False), (4, 3, 8, 6)),
    "strided": (nn.Conv2d(3, 5, (5, 3), stride=(2, 3), padding=(2, 0), bias=False), (4, 3, 9, 8)),
    "dilated": (nn.Conv2d(3, 5, 3, padding="same", dilation=(1, 2), bias=False), (4, 3, 8, 7)),
    "even kernel": (nn.Conv2d(3, 5, (2, 4), padding="same", bias=False), (4, 3, 8, 7)),
    "reflecting": (nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect", bias=False), (4, 3, 8, 6)),
    "pointwise": (nn.Conv2d(6, 5, 1, bias=False), (4, 6, 3, 3)),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(count, features, seed, rank=None):
    """Inputs of a fixed mixing of a few sources with a little noise, cut at 0 as after a ReLU."""
    sources = normal(count, rank or features // 3, seed=seed)
    return (
        sources @ normal(rank or features // 3, features, seed=99) + 0.3 * normal(count, features, seed=seed + 1)
    ).relu()


def problem(outputs=24, features=60, count=600):
    """A weight, the Hessian it is compressed by, and that of other inputs."""
    layer = nn.Linear(features, outputs)
    hessians = [layer_hessian(layer, correlated(count, features, seed)) for seed in (1, 11)]
    return normal(outputs, features, seed=5), *hessians


def nearest_of(values):
    ordered = torch.as_tensor(values, dtype=torch.float64).sort().values
    return lambda x, _: ordered[torch.bucketize(x, (ordered[1:] + ordered[:-1]) / 2)]


def grid(weight, bits):
    scale, limit = channel_scales(weight, bits).double(), 2 ** (bits - 1) - 1
    return lambda x, _: (x / scale).round().clamp(-limit, limit) * scale


def rounded_to_nearest(weight, project):
    flat = weight.flatten(1).double()
    return torch.stack([project(flat[:, j].contiguous(), j) for j in range(flat.shape[1])], 1).view_as(weight).float()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_hessian_gives_the_mean_square_of_the_outputs(layer, shape):
    inputs, weight = normal(*shape), layer.weight.detach().flatten(1).double()
    hessian = layer_hessian(layer, inputs)
    outputs = layer(inputs).detach()
    outputs = outputs.transpose(0, 1).flatten(1) if outputs.ndim == 4 else outputs.flatten(0, -2).T
    expected = outputs.double() @ outputs.double().T / outputs.shape[1]
    assert torch.equal(hessian, hessian.T)
    assert torch.allclose(weight @ hessian @ weight.T, expected, atol=1e-5)


def test_of_many_positions_some_are_drawn_the_same_ones_every_time():
    layer, inputs = nn.Conv2d(2, 3, 3, padding=1), normal(80, 2, 32, 32)
    random_state = torch.get_rng_state()
    drawn = layer_hessian(layer, inputs)
    assert torch.equal(drawn, layer_hessian(layer, inputs))
    assert torch.equal(torch.get_rng_state(), random_state)
    windows = nn.functional.unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    whole = windows.T @ windows / len(windows)
    assert 0 < float((drawn - whole).abs().max()) < 0.03


@pytest.mark.parametrize(
    ("layer", "inputs", "error", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), torch.ones(1, 4, 5, 5), PolicyError, "convolution of one group"),
        (nn.ReLU(), torch.ones(1, 4), PolicyError, "got ReLU"),
        (nn.Linear(4, 2), torch.ones(0, 4), PolicyError, r"calibration inputs of the layer, got shape \(0, 4\)"),
        (nn.Linear(2, 2), torch.tensor([[1.0, torch.inf]]), CandidateError, "finite"),
    ],
    ids=str,
)
def test_layers_and_inputs_without_a_hessian_are_refused(layer, inputs, error, message):
    with pytest.raises(error, match=message):
        layer_hessian(layer, inputs)


def test_the_output_error_is_that_of_the_outputs():
    x, old, new = correlated(50, 12, 3), normal(4, 12), normal(4, 12, seed=1)
    expected = (x @ (new - old).T).square().sum() / (x @ old.T).square().sum()
    assert output_error(new, old, layer_hessian(nn.Linear(12, 4), x)) == pytest.approx(float(expected), rel=1e-4)
    zeros = torch.zeros(4, 12)
    assert output_error(zeros, zeros, torch.eye(12)) == 0
    assert output_error(new, zeros, torch.eye(12)) == float("inf")


@pytest.mark.parametrize("keep", [0, 1, 7, 333, 719, 720, 1439, 1440])
def test_exactly_as_many_weights_are_kept_as_asked(keep):
    weight, hessian, _ = problem()
    mask, pruned = prune(weight, hessian, keep)
    assert int(mask.sum()) == keep
    assert not pruned[~mask].any()
    assert pruned.isfinite().all()
    assert (mask.dtype, pruned.dtype, pruned.shape) == (torch.bool, torch.float32, weight.shape)


def test_keeping_all_changes_nothing():
    weight, hessian, _ = problem()
    assert torch.equal(prune(weight, hessian, weight.numel())[1], weight)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.05])
def test_pruning_errs_less_than_by_magnitude_on_other_inputs(share):
    weight, hessian, other = problem()
    keep = int(share * weight.numel())
    by_magnitude = output_error(weight * largest(weight, keep), weight, other)
    assert output_error(prune(weight, hessian, keep)[1], weight, other) < 0.65 * by_magnitude


@pytest.mark.parametrize("chunk", [1, 3000, 2**18])
def test_kept_weights_are_the_optimum_however_the_rows_are_batched(chunk, monkeypatch):
    monkeypatch.setattr(second_order, "SOLVED_VALUES", chunk)
    weight, hessian, _ = problem()
    mask, pruned = prune(weight.double(), hessian, 300)
    h = damped(hessian)
    gradient = (pruned - weight) @ h
    assert float(gradient[mask].abs().max()) < 1e-9 * float((weight.double() @ h).abs().max())
    assert float(gradient[~mask].abs().max()) > 0.1


def test_masks_are_near_the_best_of_all():
    ratios = []
    for seed in range(12):
        weight = normal(1, 10, seed=seed).double()
        hessian = damped(layer_hessian(nn.Linear(10, 1), correlated(200, 10, seed)))
        found = output_error(prune(weight, hessian, 4)[1], weight, damped(hessian))
        best = min(
            output_error(torch.zeros(1, 10).double().index_copy(1, kept, solved), weight, damped(hessian))
            for kept in map(torch.tensor, itertools.combinations(range(10), 4))
            for solved in (reconstruct(weight, hessian, kept),)
        )
        assert found >= best * (1 - 1e-9)
        ratios.append(found / best)
    assert sum(ratios) / len(ratios) < 1.3


def test_a_diagonal_hessian_gives_the_order_of_optimal_brain_damage_and_moves_no_weight():
    # LeCun 1990: the saliency is h_jj w_j^2 / 2.
    weight, diagonal = normal(9, 16), torch.rand(16, generator=torch.Generator().manual_seed(4)) + 0.1
    mask, pruned = prune(weight, diagonal.diag(), 40)
    assert torch.equal(mask, largest(damped(diagonal.diag()).diagonal().sqrt() * weight, 40))
    assert torch.allclose(pruned, weight * mask, atol=1e-6)


def test_weights_on_dead_inputs_go_first_however_large():
    inputs = correlated(300, 20, 2)
    inputs[:, 3:7] = 0
    layer, weight = nn.Linear(20, 8), normal(8, 20)
    weight[:, 3:7] *= 1000
    mask, _ = prune(weight, layer_hessian(layer, inputs), 8 * 16)
    assert not mask[:, 3:7].any()
    mask, pruned = prune(weight, layer_hessian(layer, inputs), 8 * 16 + 5)
    assert mask[:, :3].all() and mask[:, 7:].all()
    assert torch.equal(mask[:, 3:7], largest(weight[:, 3:7], 5))
    assert torch.equal(pruned[mask][pruned[mask].abs() > 100], weight[mask][weight[mask].abs() > 100])


@pytest.mark.parametrize(
    "hessian", [torch.zeros(12, 12), torch.ones(12, 12), torch.eye(12)[:1].T @ torch.eye(12)[:1]], ids=["0", "1", "e"]
)
def test_singular_hessians_are_safe(hessian):
    weight = normal(5, 12)
    mask, pruned = prune(weight, hessian, 20)
    rounded = round_with_feedback(pruned, hessian, grid(pruned, 4), mask)
    rest = reconstruct(weight, hessian, torch.arange(6))
    assert all(tensor.isfinite().all() for tensor in (pruned, rounded, rest))
    assert (int(mask.sum()), bool(rounded[~mask].any())) == (20, False)


def test_a_layer_of_one_input_is_pruned_and_rounded():
    weight, hessian = normal(6, 1), torch.tensor([[2.0]])
    mask, pruned = prune(weight, hessian, 2)
    assert torch.equal(mask, largest(weight, 2))
    assert torch.allclose(pruned, weight * mask)
    project = grid(weight, 3)
    assert torch.equal(round_with_feedback(weight, hessian, project), rounded_to_nearest(weight, project))


@pytest.mark.parametrize("order", [(60, 900, 250, 1000, 61), (1000, 61, 60)])
def test_a_share_is_the_same_whichever_were_asked_for_before(order):
    weight, hessian = normal(20, 50), layer_hessian(nn.Linear(50, 20), normal(64, 50, seed=1))
    pruning = Pruning(weight, hessian)
    for keep in order:
        for found, alone in zip(pruning.to(keep), prune(weight, hessian, keep)):
            assert torch.equal(found, alone)


def test_the_same_every_time():
    weight, hessian, _ = problem()
    (mask, pruned), again = prune(weight, hessian, 400), prune(weight, hessian, 400)
    assert torch.equal(mask, again[0]) and torch.equal(pruned, again[1])
    project = grid(pruned, 3)
    first, second = (round_with_feedback(pruned, hessian, project, mask) for _ in range(2))
    assert torch.equal(first, second)


def by_the_paper(weight, hessian, project):
    """GPTQ as its paper writes it: the inverse's Cholesky factor, errors fed to all columns that remain."""
    w, h = weight.double().clone(), damped(hessian)
    order = h.diagonal().argsort(descending=True, stable=True)
    factor = torch.linalg.cholesky(torch.linalg.inv(h[order][:, order]), upper=True)
    w, out = w[:, order], torch.zeros_like(w)
    for j in range(len(h)):
        value = project(w[:, j], int(order[j]))
        out[:, order[j]] = value
        w[:, j:] -= torch.outer((w[:, j] - value) / factor[j, j], factor[j, j:])
    return out.to(weight.dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_is_that_of_the_papers_algorithm(bits, monkeypatch):
    monkeypatch.setattr(second_order, "SWEEPS", 0)
    weight, hessian, _ = problem()
    project = grid(weight, bits)
    expected = by_the_paper(weight, hessian, project)
    assert torch.allclose(round_with_feedback(weight, hessian, project), expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2**21])
def test_each_row_of_a_pruned_layer_is_rounded_as_if_it_had_only_its_own_inputs(chunk, monkeypatch):
    monkeypatch.setattr(second_order, "SWEEPS", 0)
    monkeypatch.setattr(second_order, "ROUNDED_VALUES", chunk)
    monkeypatch.setattr(second_order, "damped", lambda hessian: hessian)
    weight, hessian, _ = problem(features=30)
    hessian = damped(hessian)
    mask, pruned = prune(weight, hessian, 250)
    project = nearest_of([-2.0, -0.7, 0.1, 0.9, 2.2])
    rounded = round_with_feedback(pruned, hessian, project, mask)
    for row in range(len(weight)):
        kept = mask[row].nonzero()[:, 0]
        alone = round_with_feedback(pruned[row : row + 1, kept], hessian[kept][:, kept], project)
        assert torch.equal(rounded[row : row + 1, kept], alone)
    assert not rounded[~mask].any()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_rounding_to_a_grid_errs_less_than_the_nearest_on_other_inputs(bits, kept):
    weight, hessian, other = problem()
    mask, pruned = prune(weight, hessian, int(kept * weight.numel()))
    project = grid(pruned, bits)
    nearest = rounded_to_nearest(pruned, project)
    rounded = round_with_feedback(pruned, hessian, project, mask)
    assert output_error(rounded, pruned, other) < 0.8 * output_error(nearest, pruned, other)
    assert torch.equal(rounded_to_nearest(rounded, project), rounded)
    assert not rounded[~mask].any()


@pytest.mark.parametrize("clusters", [4, 8])
@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_rounding_to_a_codebook_errs_less_than_the_nearest_on_other_inputs(clusters, kept):
    weight, hessian, other = problem()
    mask, pruned = prune(weight, hessian, int(kept * weight.numel()))
    centroids, _ = kmeans_1d(pruned[mask].numpy(), clusters)
    project = nearest_of(centroids)
    nearest = rounded_to_nearest(pruned, project) * mask
    rounded = round_with_feedback(pruned, hessian, project, mask)
    assert output_error(rounded, pruned, other) < 0.8 * output_error(nearest, pruned, other)
    assert set(rounded[mask].tolist()) <= set(torch.tensor(centroids).float().tolist())
    assert not rounded[~mask].any()


def test_sweeps_only_lower_the_error(monkeypatch):
    weight, hessian, _ = problem()
    project, errors = grid(weight, 2), []
    for sweeps in range(4):
        monkeypatch.setattr(second_order, "SWEEPS", sweeps)
        errors.append(output_error(round_with_feedback(weight, hessian, project), weight, damped(hessian)))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.95 * errors[0]


def test_weights_that_are_allowed_values_stay_as_they_are():
    weight, hessian, _ = problem()
    project = grid(weight, 4)
    allowed = rounded_to_nearest(weight, project)
    assert torch.equal(round_with_feedback(allowed, hessian, project), allowed)


def test_a_convolution_is_rounded_in_its_own_shape_by_the_index_of_each_input():
    layer = nn.Conv2d(3, 6, 3, padding=1)
    hessian, seen = layer_hessian(layer, normal(8, 3, 9, 9)), []

    def project(values, index):
        seen.append(index)
        return torch.full_like(values, float(index))

    rounded = round_with_feedback(layer.weight, hessian, project)
    assert torch.equal(rounded.flatten(1), torch.arange(27.0).expand(6, 27))
    assert sorted(seen[:27]) == list(range(27))
    assert rounded.shape == layer.weight.shape


def test_reconstruction_is_the_least_squares_solution():
    x, weight, keep = correlated(400, 20, 3), normal(6, 20), torch.tensor([2, 3, 5, 8, 13, 17])
    solved = reconstruct(weight, layer_hessian(nn.Linear(20, 6), x), keep)
    ridge = (second_order.DAMPING * float(x.square().mean())) ** 0.5
    whole = torch.cat([x, 400**0.5 * ridge * torch.eye(20)]).double()
    expected = torch.linalg.lstsq(whole[:, keep], whole @ weight.T.double()).solution.T
    assert torch.allclose(solved.double(), expected, atol=1e-5)


def test_reconstruction_errs_less_than_leaving_inputs_out():
    weight, hessian, other = problem()
    keep = torch.arange(0, 60, 2)
    dropped, solved = torch.zeros_like(weight), torch.zeros_like(weight)
    dropped[:, keep], solved[:, keep] = weight[:, keep], reconstruct(weight, hessian, keep)
    assert output_error(solved, weight, other) < 0.5 * output_error(dropped, weight, other)


def test_reconstruction_on_all_inputs_or_none():
    weight, hessian, _ = problem()
    assert torch.allclose(reconstruct(weight, hessian, torch.arange(60)), weight, atol=1e-5)
    assert reconstruct(weight, hessian, torch.arange(0)).shape == (24, 0)
