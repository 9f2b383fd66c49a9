"""Patch similarity: cosines, densities and entropies, by hand."""

import itertools
import math

import pytest
import torch

from dghlib.generators.patch_similarity import cosine_similarities, kernel_density, patch_similarity_entropy


def test_cosines_of_all_pairs_by_hand():
    patches = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1, 0, half], [0, 1, half], [half, half, 1]]])
    torch.testing.assert_close(cosine_similarities(patches), expected)


def test_a_patch_of_zeros_has_no_similarity():
    assert cosine_similarities(torch.zeros(1, 2, 3)).tolist() == [[[0, 0], [0, 0]]]


def test_density_of_two_values_by_hand():
    height = 1 / (0.5 * math.sqrt(2 * math.pi))
    at_a_distance = height * math.exp(-0.5 * (1 / 0.5) ** 2)
    density = kernel_density(torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 0.5, 1.0]), bandwidth=0.5)
    middle = height * math.exp(-0.5)
    outer = (height + at_a_distance) / 2
    torch.testing.assert_close(density, torch.tensor([[outer, middle, outer]]))


def test_a_density_integrates_to_one():
    points = torch.linspace(-2, 2, 2001)
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.trapezoid(kernel_density(values, points), points, dim=1), torch.ones(3))


def test_entropy_is_that_of_a_gaussian():
    """If all patches are equal, there is one kernel at similarity 1, whose entropy is known."""
    points = torch.linspace(0.5, 1.5, 4001)
    entropy = patch_similarity_entropy(torch.ones(2, 4, 3), points, bandwidth=0.02)
    known = 0.5 * math.log(2 * math.pi * math.e * 0.02**2)
    torch.testing.assert_close(entropy, torch.full((2,), known), atol=2e-3, rtol=0)


def test_entropy_with_the_authors_constants_equals_a_plain_loop():
    patches = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    similarities = cosine_similarities(patches).flatten(1).tolist()
    low, high = min(map(min, similarities)), max(map(max, similarities))
    points = [low + (high - low) * k / 9 for k in range(10)]
    for values, entropy in zip(similarities, patch_similarity_entropy(patches).tolist(), strict=True):
        terms = []
        for point in points:
            kernels = [math.exp(-0.5 * ((value - point) / 0.01) ** 2) for value in values]
            density = sum(kernels) / len(kernels) / (0.01 * math.sqrt(2 * math.pi)) + 1e-4
            terms.append(-density * math.log(density))
        steps = [(before + after) / 2 * (high - low) / 9 for before, after in itertools.pairwise(terms)]
        assert entropy == pytest.approx(sum(steps), rel=1e-5)


def test_different_patches_have_more_entropy_than_similar_ones():
    draws = torch.Generator().manual_seed(0)
    kinds = torch.randn(1, 6, 16, generator=draws).repeat_interleave(6, dim=1)
    alike = torch.randn(1, 1, 16, generator=draws) + 0.05 * torch.randn(1, 36, 16, generator=draws)
    varied, uniform = patch_similarity_entropy(torch.cat([kinds, alike]), torch.linspace(-1, 1, 201)).tolist()
    assert varied > uniform


def test_with_given_points_images_are_independent():
    patches = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    points = torch.linspace(-1, 1, 51)
    torch.testing.assert_close(
        patch_similarity_entropy(patches, points)[:1], patch_similarity_entropy(patches[:1], points)
    )


def test_the_gradient_equals_finite_differences():
    patches = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    points = torch.linspace(-1, 1, 21, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: patch_similarity_entropy(x, points, bandwidth=0.2), patches)


def test_identical_patches_have_a_finite_gradient():
    patches = torch.ones(2, 4, 3, requires_grad=True)
    patch_similarity_entropy(patches).sum().backward()
    assert patches.grad is not None
    assert patches.grad.isfinite().all()


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"patches must be \(N, P, D\).*got shape \(2, 3\)"):
        patch_similarity_entropy(torch.zeros(2, 3))
