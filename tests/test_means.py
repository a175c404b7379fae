"""Parts of kernel means, the mean kernel of each row, and MMD^2 between all pairs of groups."""

import numpy as np
import pytest
import torch

import gkfast

PARTS = [("xx",), ("yy",), ("xy",), ("xx", "xy"), ("yy", "xx")]


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u_statistic", "linear"])
@pytest.mark.parametrize("parts", PARTS)
def test_parts_are_those_of_all_three(rng, library, parts, estimator):
    x, y = library(rng.normal(size=(2, 9, 3))), library(rng.normal(size=(9, 3)) + 1)
    options = {"estimator": estimator, "weights": [0.3, 0.7]}
    whole = gkfast.kernel_means(x, y, [0.8, 2.0], **options)
    found = gkfast.kernel_means(x, y, [0.8, 2.0], parts=parts, **options)
    for name in ("xx", "yy", "xy"):
        part = getattr(found, name)
        assert (part is None) == (name not in parts)
        if part is not None:
            assert part.shape == (2,)
            np.testing.assert_allclose(part, getattr(whole, name), rtol=1e-13)


@pytest.mark.parametrize("parts", PARTS)
def test_parts_of_weighted_rows_have_gradients(rng, parts):
    x, y = (torch.from_numpy(rng.normal(size=(n, 2))).requires_grad_() for n in (5, 4))
    a, b = (torch.from_numpy(rng.uniform(0.5, 1, size=n)).requires_grad_() for n in (5, 4))

    def chosen(x, y, a, b, wanted=parts):
        means = gkfast.kernel_means(x, y, 0.9, parts=wanted, x_weights=a, y_weights=b)
        return tuple(getattr(means, name) for name in parts)

    assert torch.autograd.gradcheck(chosen, (x, y, a, b))
    assert torch.allclose(torch.stack(chosen(x, y, a, b)), torch.stack(chosen(x, y, a, b, ("xx", "yy", "xy"))))


def test_no_pair_of_other_parts_is_visited():
    x, y = np.zeros((3, 1)), np.full((4, 1), np.nan)
    assert gkfast.kernel_means(x, y, 1.0, parts="xx").xx == 1


def test_rows_add_up_to_the_means(rng, library, numpy_of):
    x, y, b = rng.normal(size=(12, 3)), rng.normal(size=(7, 3)) + 1, rng.uniform(size=7)
    means = gkfast.kernel_means(x, y, [0.8, 2.0], y_weights=b)
    own = numpy_of(gkfast.row_means(library(x), library(x), [0.8, 2.0], leave_one_out=True))
    other = numpy_of(gkfast.row_means(library(x), library(y), [0.8, 2.0], data_weights=library(b)))
    assert own.shape == other.shape == (12,)
    assert own.mean() == pytest.approx(means.xx, rel=1e-13)
    assert other.mean() == pytest.approx(means.xy, rel=1e-13)
    k = gkfast.rbf(x, sigma=[0.8, 2.0], backend="reference")
    np.testing.assert_allclose(own, (k.sum(1) - 2) / 11, rtol=1e-13)


def test_rows_left_out_with_their_weights(rng):
    x, b = torch.from_numpy(rng.normal(size=(2, 6, 2))), torch.from_numpy(rng.uniform(size=(2, 6)))
    found = gkfast.row_means(x, x, 1.1, leave_one_out=True, data_weights=b)
    k = gkfast.rbf(x, sigma=1.1) * (1 - torch.eye(6))
    torch.testing.assert_close(found, (k * b[:, None]).sum(-1) / (b.sum(-1, keepdim=True) - b))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gkfast.row_means(x, x, 1.1, leave_one_out=True), (x,))


LABELS = np.array([2, 0, 1, 0, 2, 1, 0, 1, 2, 2, 0, 1, 1])


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_pairs_of_groups_are_mmd2(rng, library, numpy_of, estimator, dtype, backend):
    x = rng.normal(size=(2, 13, 3)).astype(dtype)
    options = {"estimator": estimator, "weights": [0.3, 0.7]}
    # a wide bandwidth: its kernels are near 1, and lose nothing
    found = numpy_of(gkfast.pairwise_mmd2(library(x), LABELS, [0.9, 100.0], backend=backend, **options))
    assert found.shape == (2, 3, 3)
    assert found.dtype == dtype
    assert (found == found.swapaxes(1, 2)).all()
    assert (found.diagonal(axis1=1, axis2=2) == 0).all()
    wide = x.astype(float)
    for g, h in ((0, 1), (0, 2), (1, 2)):
        truth = gkfast.mmd2(*(wide[:, k == LABELS] for k in (g, h)), [0.9, 100.0], backend="reference", **options)
        np.testing.assert_allclose(found[:, g, h], truth, atol=1e-13 if dtype == np.float64 else 1e-6)


def test_groups_by_name_and_their_gradients(rng):
    x = torch.from_numpy(rng.normal(size=(13, 2))).requires_grad_()
    names = ["abc"[k] for k in LABELS]
    sigma = torch.tensor([0.7, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.equal(gkfast.pairwise_mmd2(x, names, 1.0), gkfast.pairwise_mmd2(x, torch.from_numpy(LABELS), 1.0))
    for estimator in ("unbiased", "biased"):
        assert torch.autograd.gradcheck(
            lambda x, s, e=estimator: gkfast.pairwise_mmd2(x, LABELS, s, estimator=e), (x, sigma)
        )


X = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gkfast.kernel_means(X, X, 1.0, parts=("xx", "zz")), "parts must be some of xx, yy, xy, got"),
        (lambda: gkfast.kernel_means(X, X, 1.0, parts=()), "parts must be some of xx, yy, xy, got"),
        (lambda: gkfast.row_means(X, X[:3], 1.0, leave_one_out=True), "x must have the rows of data"),
        (lambda: gkfast.row_means(X, X[:0], 1.0), "data must have at least 1 row"),
        (lambda: gkfast.row_means(X, X, 1.0, data_weights=np.ones(3)), "data_weights must have one entry per row"),
        (
            lambda: gkfast.pairwise_mmd2(X, [0, 1], 1.0),
            "labels must have one whole number or string for each of the 4",
        ),
        (lambda: gkfast.pairwise_mmd2(X, [0.5, 1, 2, 3], 1.0), "labels must have one whole number or string"),
        (
            lambda: gkfast.pairwise_mmd2(X, [0, 0, 0, 0], 1.0),
            "labels must name two groups or more of at least 2 rows",
        ),
        (
            lambda: gkfast.pairwise_mmd2(X, [0, 0, 0, 1], 1.0),
            "got 2 groups, the smallest of 1; leave small groups out",
        ),
        (lambda: gkfast.pairwise_mmd2(X, [0, 0, 1, 1], 1.0, estimator="linear"), "estimator must be unbiased or bia"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
