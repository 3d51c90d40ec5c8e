"""The neural tangent kernel against autograd, and the theory's identities against plain algebra."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from everlearn import NTKCL, Frozen, Method
from everlearn.analysis.ntk import (
    Spectrum,
    adapters,
    block_norms,
    estimate_spectrum,
    learning_curve,
    leave_one_out,
    ntk,
    orthogonality,
    regress,
)

from ..conftest import coloured, digests, make_learner, pixels

Floats = NDArray[np.float64]


def method_and_images(view: str = "averaged", count: int = 2) -> tuple[Method, Tensor]:
    """A method in double precision whose adapters are far from their start, and images of three classes."""
    learner = make_learner(NTKCL(view=view, hidden=16, scale=0.1, patches=False))
    torch.manual_seed(0)
    for name, parameter in learner.method.named_parameters():
        if not name.startswith("backbone."):
            parameter.data.normal_(std=0.3)
    images = learner.backbone.normalise(torch.from_numpy(pixels(coloured("abc", count), learner)))
    return learner.method.double(), images.double()


def jacobian(method: Method, images: Tensor) -> Floats:
    """Of all features by all parameters that they depend on, (N, F, P), row by row with autograd."""
    chosen = [method.get_parameter(name).requires_grad_() for name in adapters(method, images)]
    rows = []
    for feature in method.features(images).flatten():
        gradients = torch.autograd.grad(feature, chosen, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    stacked: Floats = torch.stack(rows).view(len(images), -1, len(rows[0])).numpy()
    return stacked


@pytest.mark.parametrize("view", ["averaged", "hybrid"])
def test_the_kernel_is_the_product_of_explicit_jacobians(view: str) -> None:
    method, images = method_and_images(view, count=1)
    exact = jacobian(method, images)
    expected = np.einsum("ikp,jkp->ij", exact, exact) / exact.shape[1]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ntk(method, images), expected, atol=1e-10 * scale)
    np.testing.assert_allclose(ntk(method, images[:2], images[1:]), expected[:2, 1:], atol=1e-10 * scale)
    chosen = torch.randn(3, exact.shape[1], dtype=torch.float64)
    read = np.einsum("rk,ikp->irp", chosen.numpy(), exact)
    np.testing.assert_allclose(
        ntk(method, images, readouts=chosen), np.einsum("irp,jrp->ij", read, read) / 3, rtol=1e-9
    )


def test_a_step_on_one_image_moves_another_as_the_kernel_says() -> None:
    method, images = method_and_images()
    readout = torch.zeros(1, 48, dtype=torch.float64)
    readout[0, 7] = 1
    kernel = ntk(method, images, readouts=readout)
    chosen = [method.get_parameter(name).requires_grad_() for name in adapters(method, images)]
    before = method.features(images)[:, 7]
    gradients = torch.autograd.grad(before[0], chosen)
    with torch.no_grad():
        for parameter, gradient in zip(chosen, gradients, strict=True):
            parameter += 1e-6 * gradient
        change = (method.features(images)[:, 7] - before) / 1e-6
    np.testing.assert_allclose(change.numpy(), kernel[0], rtol=1e-3)


@pytest.mark.parametrize("view", ["averaged", "hybrid"])
def test_the_kernel_is_symmetric_and_positive(view: str) -> None:
    method, images = method_and_images(view)
    for readouts in (None, 3):
        kernel = ntk(method.float(), images.float(), readouts=readouts, memory=2_000_000)
        assert kernel.dtype == np.float64
        np.testing.assert_array_equal(kernel, kernel.T)
        assert np.linalg.eigvalsh(kernel)[0] > -1e-5 * np.abs(kernel).max()


@pytest.mark.parametrize(("chunk", "memory"), [(1, 2**28), (4, 1), (3, 700_000), (64, 3_000_000)])
def test_neither_chunk_nor_memory_changes_the_kernel(chunk: int, memory: int) -> None:
    method, images = method_and_images()
    whole = ntk(method, images, readouts=5)
    options: dict[str, Any] = {"readouts": 5, "chunk": chunk, "memory": memory}
    np.testing.assert_allclose(ntk(method, images, **options), whole, rtol=1e-9)
    np.testing.assert_allclose(ntk(method, images[:2], images, **options), whole[:2], rtol=1e-9)


def test_random_readouts_estimate_the_exact_kernel() -> None:
    method, images = method_and_images()
    exact = ntk(method, images)
    np.testing.assert_allclose(ntk(method, images, readouts=48), exact, rtol=1e-9)
    drawn = np.array([ntk(method, images, readouts=8, seed=seed) for seed in range(12)])
    spread = drawn.std(0, ddof=1) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(0) - exact) < 5 * spread).all()
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_array_equal(ntk(method, images, readouts=8, seed=1), drawn[1])


def test_by_default_it_is_of_what_the_features_depend_on() -> None:
    averaged, images = method_and_images()
    assert {name.rsplit(".", 3)[0] for name in adapters(averaged, images)} == {"pre.channel"}
    assert not any(averaged.get_parameter(name).requires_grad for name in adapters(averaged, images))
    hybrid, _ = method_and_images("hybrid")
    assert {name.split(".")[0] for name in adapters(hybrid, images)} == {"cur", "hybrid"}
    assert adapters(make_learner(Frozen()).method.double(), images) == ()


def test_parameters_can_be_chosen_and_their_kernels_add_up() -> None:
    method, images = method_and_images()
    names = adapters(method, images)
    parts = ntk(method, images, parameters=names[:3]) + ntk(method, images, parameters=names[3:])
    np.testing.assert_allclose(parts, ntk(method, images), rtol=1e-9)
    up = ntk(method, images, parameters=lambda name: "pre.channel" in name and ".up." in name)
    by_name = ntk(method, images, parameters=[name for name in names if ".up." in name])
    np.testing.assert_array_equal(up, by_name)


def test_the_method_is_left_as_it_was() -> None:
    method, images = method_and_images("hybrid")
    method.train()
    before = digests(method.state_dict()), [p.requires_grad for p in method.parameters()]
    modes = [module.training for module in method.modules()]
    random = torch.get_rng_state()
    ntk(method, images[:2], readouts=2)
    assert (digests(method.state_dict()), [p.requires_grad for p in method.parameters()]) == before
    assert [module.training for module in method.modules()] == modes
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"memory": 0}, "memory is 0"),
        ({"readouts": 0}, "readouts is 0; expected 1 to 48"),
        ({"readouts": 49}, "readouts is 49; expected 1 to 48"),
        ({"readouts": torch.ones(2, 5)}, r"readouts have shape \(2, 5\); expected \(K, 48\)"),
        ({"parameters": ["pre.chanel"]}, "no parameter 'pre.chanel'"),
        ({"parameters": lambda name: False}, "none was chosen"),
        ({"b": torch.ones(3, 32, 32)}, r"b has shape \(3, 32, 32\)"),
    ],
)
def test_a_kernel_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    method, images = method_and_images()
    with pytest.raises(ValueError, match=says):
        ntk(method, images, **options)


def test_frozen_features_have_no_kernel_of_adapters() -> None:
    _, images = method_and_images()
    with pytest.raises(ValueError, match=r"features @ features\.T"):
        ntk(make_learner(Frozen()).method.double(), images)


# Sequential regression.


def sequence(seed: int = 0) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Parameter-space features (N, P) of points in three tasks and of none, their tasks and targets."""
    rng = np.random.default_rng(seed)
    tasks = np.array([2, 0, 0, 1, -1, 1, 0, 2, 1, 2, 0, -1])
    return rng.normal(size=(len(tasks), 7)), tasks, rng.normal(size=(len(tasks), 2))


def test_the_recursion_is_ridge_regression_with_l2_to_the_previous_parameters() -> None:
    features, tasks, targets = sequence()
    parameters = np.random.default_rng(1).normal(size=(7, 2))
    ridges = [0.3, 2.0, 0.05]
    learned = regress(features @ features.T, tasks, targets, ridges, start=features @ parameters)
    np.testing.assert_array_equal(learned.functions[0], features @ parameters)
    for task, ridge in enumerate(ridges):
        here = features[tasks == task]
        normal = here.T @ here + ridge * np.eye(7)
        parameters = np.linalg.solve(normal, here.T @ targets[tasks == task] + ridge * parameters)
        np.testing.assert_allclose(learned.functions[task + 1], features @ parameters, atol=1e-9)


def test_the_residual_identity_gives_what_the_last_function_leaves() -> None:
    features, tasks, targets = sequence()
    kernel, ridge = features @ features.T, 0.4
    learned = regress(kernel, tasks, targets, ridge)
    ours = tasks >= 0
    np.testing.assert_allclose(learned.residuals[ours], (targets - learned.functions[-1])[ours], atol=1e-9)
    assert not learned.own[~ours].any()
    # Term by term, as it is written.
    for task in range(3):
        here, expected = tasks == task, np.zeros((1, 2))
        for k in range(task, 3):
            there = tasks == k
            missing = targets[there] - learned.functions[k][there]
            term = np.linalg.solve(kernel[np.ix_(there, there)] + ridge * np.eye(there.sum()), missing)
            expected = expected + (ridge * term if k == task else -kernel[np.ix_(here, there)] @ term)
        np.testing.assert_allclose(learned.residuals[here], expected, atol=1e-9)


def test_orthogonal_tasks_do_not_interfere() -> None:
    rng = np.random.default_rng(0)
    features = np.zeros((20, 8))
    features[:10, :4], features[10:, 4:] = rng.normal(size=(2, 10, 4))
    kernel, tasks = features @ features.T, [0] * 10 + [1] * 10
    assert not regress(kernel, tasks, rng.normal(size=(20, 1)), 0.1).interference.any()
    np.testing.assert_array_equal(orthogonality(kernel, tasks), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(block_norms(kernel, tasks)[0, 1], 0)


def test_orthogonality_is_zero_for_the_same_directions_and_falls_with_the_angle() -> None:
    rng = np.random.default_rng(0)

    def of_angle(angle: float) -> float:
        first = rng.normal(size=(40, 1)) * [1.0, 0.0]
        second = rng.normal(size=(40, 1)) * [np.cos(angle), np.sin(angle)]
        both = np.concatenate([first, second])
        return float(orthogonality(both @ both.T, [0] * 40 + [1] * 40)[0, 1])

    # Rank one: the cosine of second moments is that of the angle, squared; 40 draws, so about a tenth.
    for angle in (0.0, 0.5, 1.0, 1.5):
        assert of_angle(angle) == pytest.approx(np.sin(angle) ** 2, abs=0.15)


def test_block_norms_are_root_mean_squares_without_self_pairs() -> None:
    kernel = np.array([[9.0, 1.0, 2.0], [1.0, 9.0, 4.0], [2.0, 4.0, 9.0]])
    np.testing.assert_allclose(block_norms(kernel, [0, 0, 1]), [[1, 10**0.5], [10**0.5, 9]])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((np.ones((2, 3)), [0, 0], np.ones((2, 1)), 1.0), r"shape \(2, 3\)"),
        ((np.array([[1.0, 2.0], [0.0, 1.0]]), [0, 0], np.ones((2, 1)), 1.0), "not symmetric"),
        ((np.full((2, 2), np.nan), [0, 0], np.ones((2, 1)), 1.0), "not finite"),
        ((np.eye(2), [0], np.ones((2, 1)), 1.0), "expected 2 whole numbers"),
        ((np.eye(2), [0.5, 0.5], np.ones((2, 1)), 1.0), "whole numbers"),
        ((np.eye(2), [0, 2], np.ones((2, 1)), 1.0), "all of 0 to T - 1"),
        ((np.eye(2), [-1, -1], np.ones((2, 1)), 1.0), "at least one task"),
        ((np.eye(2), [0, 0], np.ones(2), 1.0), r"targets have shape \(2,\)"),
        ((np.eye(2), [0, 0], np.ones((2, 1)), 0.0), "regularisation is 0.0"),
        ((np.eye(2), [0, 0], np.ones((2, 1)), [1.0, 1.0]), "one for each of 1 tasks"),
        ((np.eye(2), [0, 0], np.ones((2, 1)), 1.0, np.ones((2, 2))), "start has shape"),
    ],
)
def test_a_regression_that_cannot_be_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        regress(*arguments)


# Learning curves.

ETA: Floats = np.arange(1, 201, dtype=np.float64) ** -1.5
WEIGHTS = np.random.default_rng(0).normal(size=200)


def simulated(samples: int, ridge: float, noise: float, draws: int) -> Floats:
    """Errors of real kernel regressions on Gaussian features of known spectrum; test error exact."""
    rng = np.random.default_rng(samples)
    errors = []
    for _ in range(draws):
        features = rng.normal(size=(samples, len(ETA))) * np.sqrt(ETA)
        labels = features @ WEIGHTS + noise**0.5 * rng.normal(size=samples)
        dual = np.linalg.solve(features @ features.T + ridge * np.eye(samples), labels)
        errors.append(ETA @ (features.T @ dual - WEIGHTS) ** 2 + noise)
    return np.array(errors)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize(("samples", "noise"), [(20, 0.0), (50, 0.1), (150, 0.1), (400, 0.5)])
def test_the_learning_curve_is_what_kernel_regression_does(samples: int, noise: float, ridge: float) -> None:
    """The mean over 40 draws is met to 4 standard errors and 3 %, the theory being one of large n."""
    errors = simulated(samples, ridge, noise, draws=40)
    tolerance = 4 * errors.std(ddof=1) / len(errors) ** 0.5 + 0.03 * errors.mean()
    assert learning_curve(ETA, WEIGHTS, samples, ridge, noise=noise) == pytest.approx(
        errors.mean(), abs=tolerance
    )


@pytest.mark.parametrize("samples", [0, 0.5, 7, 1e6])
@pytest.mark.parametrize("ridge", [1e-12, 1.0, 1e9])
def test_kappa_solves_its_equation(samples: float, ridge: float) -> None:
    spectrum = Spectrum(ETA, np.ones_like(ETA), ETA * WEIGHTS**2)
    kappa = spectrum.kappa(samples, ridge)
    assert kappa == pytest.approx(ridge + (kappa * ETA / (kappa + samples * ETA)).sum(), rel=1e-9)
    gamma = (samples * ETA**2 / (samples * ETA + kappa) ** 2).sum()
    formula = kappa**2 / (1 - gamma) * (ETA * WEIGHTS**2 / (samples * ETA + kappa) ** 2).sum()
    assert learning_curve(ETA, WEIGHTS, samples, ridge) == pytest.approx(formula, rel=1e-9)


def test_kappa_has_the_known_value_for_one_eigenvalue() -> None:
    # kappa = lambda + kappa eta / (kappa + n eta) is a quadratic equation.
    eta, n, ridge = 2.0, 3.0, 0.5
    b = n * eta - ridge - eta
    expected = (-b + (b**2 + 4 * ridge * n * eta) ** 0.5) / 2
    assert Spectrum(np.array([eta]), np.ones(1), np.ones(1)).kappa(n, ridge) == pytest.approx(expected)


def test_without_regularisation_the_limits_are_exact() -> None:
    assert learning_curve(ETA, WEIGHTS, 200, 0.0) == 0
    assert learning_curve(ETA, WEIGHTS, 200, 0.0, noise=0.1) == float("inf")
    assert learning_curve(ETA, WEIGHTS, 400, 0.0, noise=0.1) == pytest.approx(0.2)
    assert learning_curve(ETA, WEIGHTS, 0, 0.0, noise=0.1) == pytest.approx(0.1 + ETA @ WEIGHTS**2)
    near = learning_curve(ETA, WEIGHTS, 50, 1e-12)
    assert learning_curve(ETA, WEIGHTS, 50, 0.0) == pytest.approx(near, rel=1e-6)


def test_more_samples_never_hurt_at_the_best_regularisation() -> None:
    def best(samples: int) -> float:
        return min(
            learning_curve(ETA, WEIGHTS, samples, ridge, noise=0.3) for ridge in np.geomspace(1e-3, 100, 120)
        )

    errors = [best(samples) for samples in (1, 3, 10, 30, 100, 200, 300, 1000)]
    assert errors == sorted(errors, reverse=True)
    # At too little of it they do: the peak where samples and unknowns are as many.
    peak = learning_curve(ETA, WEIGHTS, 200, 1e-6, noise=0.3)
    assert peak > 10 * learning_curve(ETA, WEIGHTS, 60, 1e-6, noise=0.3)


def test_eigenvalues_may_be_grouped() -> None:
    whole = learning_curve([1.0, 0.1, 0.1, 0.1], [1.0, 0.5, 0.5, 1.0], 5, 0.2)
    grouped = Spectrum(np.array([1.0, 0.1]), np.array([1.0, 3.0]), np.array([1.0, 0.1 * 1.5]))
    assert grouped.error(5, 0.2) == pytest.approx(whole)


def test_what_the_kernel_cannot_express_is_noise() -> None:
    expressed = Spectrum(np.array([1.0, 0.0]), np.ones(2), np.array([1.0, 0.3]))
    noisy = Spectrum(np.array([1.0]), np.ones(1), np.array([1.0]), noise=0.3)
    assert expressed.error(5, 0.2) == pytest.approx(noisy.error(5, 0.2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0, -0.1], [1.0, 1.0], 5, 0.1), "eigenvalues must be finite and at least 0"),
        (([1.0, float("nan")], [1.0, 1.0], 5, 0.1), "eigenvalues must be finite"),
        (([1.0, 0.1], [1.0], 5, 0.1), "one weight for each"),
        (([[1.0]], [[1.0]], 5, 0.1), "as many of each"),
        (([1.0], [1.0], -1, 0.1), "samples is -1"),
        (([1.0], [1.0], 5, -0.1), "regularisation is -0.1"),
        (([1.0], [1.0], 5, float("inf")), "regularisation is inf"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        learning_curve(*arguments)


def test_leave_one_out_is_what_leaving_each_one_out_gives() -> None:
    features, _, targets = sequence()
    kernel, ridge = features @ features.T, 0.3
    errors = []
    for left in range(len(kernel)):
        others = np.arange(len(kernel)) != left
        dual = np.linalg.solve(kernel[np.ix_(others, others)] + ridge * np.eye(others.sum()), targets[others])
        errors.append(((targets[left] - kernel[left, others] @ dual) ** 2).sum())
    assert leave_one_out(kernel, targets, ridge) == pytest.approx(np.mean(errors), rel=1e-9)


def test_an_estimated_spectrum_foretells_the_error_of_more_samples() -> None:
    """From 80 samples those of 40 to 320: the mean of 40 estimates to 4 standard errors and 5 %."""
    rng, noise = np.random.default_rng(1), 0.1
    spectra = []
    for _ in range(40):
        features = rng.normal(size=(80, len(ETA))) * np.sqrt(ETA)
        labels = features @ WEIGHTS + noise**0.5 * rng.normal(size=80)
        spectra.append(estimate_spectrum(features @ features.T, labels[:, None]))
    for samples in (40, 80, 160, 320):
        foretold = np.array([spectrum.error(samples, 1.0) for spectrum in spectra])
        tolerance = 4 * foretold.std(ddof=1) / len(foretold) ** 0.5 + 0.05 * foretold.mean()
        assert tolerance < 0.25 * foretold.mean()
        true = learning_curve(ETA, WEIGHTS, samples, 1.0, noise=noise)
        assert foretold.mean() == pytest.approx(true, abs=tolerance), samples


def test_labels_of_noise_are_estimated_as_noise() -> None:
    """Of labels that are noise alone, at least four fifths in the mean over ten draws."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        features = rng.normal(size=(80, len(ETA))) * np.sqrt(ETA)
        found.append(estimate_spectrum(features @ features.T, rng.normal(size=(80, 3))).error(10_000, 1.0))
    assert np.mean(found) > 0.8 * 3


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "few": (lambda: estimate_spectrum(np.eye(3), np.ones((3, 1))), "3 samples are too few"),
    "zero": (lambda: estimate_spectrum(np.zeros((5, 5)), np.ones((5, 1))), "the kernel is zero"),
    "targets": (lambda: estimate_spectrum(np.eye(5), np.zeros((5, 1))), "targets are all zero"),
    "ridge": (lambda: leave_one_out(np.eye(5), np.ones((5, 1)), 0.0), "regularisation is 0.0"),
}


@pytest.mark.parametrize(("call", "says"), REFUSED.values(), ids=REFUSED)
def test_a_spectrum_that_cannot_be_estimated_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
