"""TwoSampleTest: it is mmd_test without a window, holds its level with one, and finds a change in a stream."""

import numpy as np
import pytest
import torch

import gkfast


def test_a_batch_without_a_window_is_the_permutation_test(rng, library):
    reference, batch = rng.normal(size=(40, 2)), rng.normal(size=(15, 2)) + 0.4
    test = gkfast.TwoSampleTest([0.5, 1.5], permutations=200, seed=3).fit(library(reference))
    found = test.test(library(batch))
    truth = gkfast.mmd_test(batch, reference, [0.5, 1.5], weights=[0.5, 0.5], permutations=200, seed=3)
    assert found.p_value == truth.p_value
    assert found.statistic == pytest.approx(float(truth.statistic), abs=1e-14)
    assert found.drift == (found.p_value <= 0.05) == (found.statistic > found.threshold)
    assert found.null_statistics.shape == (200,)


def test_null_statistics_on_demand(rng, library, numpy_of):
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(4, 2)) + 1
    for permutations, count in ((1000, 210), (50, 51)):
        found = gkfast.mmd_test(library(x), library(y), 1.0, permutations=permutations, seed=0, null_statistics=True)
        null = numpy_of(found.null_statistics)
        assert null.shape == (count,)
        assert null[0] == pytest.approx(float(found.statistic), abs=1e-14)
        assert (null >= null[0] - 1e-12).mean() == pytest.approx(float(found.p_value))
    statistic, p_value = found
    assert (statistic, p_value) == (found.statistic, found.p_value)
    assert gkfast.mmd_test(x, y, 1.0).null_statistics is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_window_is_compared_with_the_reference(rng, library, dtype):
    reference, batch = (rng.normal(size=(n, 3)).astype(dtype) for n in (60, 12))
    test = gkfast.TwoSampleTest("mean", scales=(1.0, 20.0), permutations=99, seed=0).fit(
        library(reference), window=12
    )
    assert test.sigma_ == pytest.approx([float(gkfast.mean_sigma(reference)) * s for s in (1, 20)])
    found = test.test(library(batch))
    truth = gkfast.mmd2(batch.astype(float), reference.astype(float), test.sigma_, weights=[0.5, 0.5])
    assert found.statistic == pytest.approx(float(truth), abs=1e-13)
    assert found.threshold == test.threshold_
    null = np.asarray(test.null_statistics_.tolist())
    assert found.p_value == (1 + (null >= found.statistic).sum()) / 101


def test_level_and_power_of_windows():
    rng = np.random.default_rng(0)
    alarms = []
    for seed in range(60):
        test = gkfast.TwoSampleTest(seed=seed, permutations=200, level=0.1).fit(rng.normal(size=(200, 2)), window=20)
        alarms += [found.drift for found in test.windows(rng.normal(size=(200, 2)))]
    # windows of one reference share its error: as many degrees of freedom as references, or more
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.05)
    assert test.test(rng.normal(size=(20, 2)) + 1).drift


def test_threshold_and_p_value_agree(rng):
    test = gkfast.TwoSampleTest(1.0, seed=0, permutations=99).fit(rng.normal(size=(60, 2)), window=10)
    for shift in np.linspace(0, 1, 30):
        found = test.test(rng.normal(size=(10, 2)) + shift)
        assert found.drift == (found.statistic > found.threshold)
    # a p-value this small needs more null statistics
    test.set_params(level=0.001).fit(test.reference_, window=10)
    assert test.threshold_ == np.inf


def test_windows_of_a_stream(rng):
    stream = torch.from_numpy(rng.normal(size=(103, 2)))
    stream[60:] += 3
    test = gkfast.TwoSampleTest(seed=0, permutations=199).fit(torch.from_numpy(rng.normal(size=(80, 2))), window=20)
    whole = list(test.windows(stream))
    assert [found.start for found in whole] == [0, 20, 40, 60, 80]
    assert [found.drift for found in whole] == [False, False, False, True, True]
    # chunks of any size, and windows that overlap
    parts = list(test.windows(stream.split(7), step=10))
    assert [found.start for found in parts] == list(range(0, 90, 10))
    assert parts[0].statistic == whole[0].statistic
    assert parts[5].drift


def test_it_is_an_estimator_of_scikit_learn(rng):
    base = pytest.importorskip("sklearn.base")
    test = gkfast.TwoSampleTest("mean", level=0.01, seed=4)
    copy = base.clone(test.fit(rng.normal(size=(20, 2))))
    assert copy.get_params() == test.get_params()
    assert not hasattr(copy, "reference_")


X = np.random.default_rng(0).normal(size=(20, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gkfast.TwoSampleTest("width").fit(X), "sigma must be median, mean or positive numbers, got 'width'"),
        (lambda: gkfast.TwoSampleTest(-1.0).fit(X), "sigma must be positive and finite"),
        (lambda: gkfast.TwoSampleTest(scales=()).fit(X), "scales must be positive finite numbers, got"),
        (lambda: gkfast.TwoSampleTest(level=5).fit(X), "level must be a number between 0 and 1, got 5"),
        (
            lambda: gkfast.TwoSampleTest().fit(X * 0),
            "sigma must be positive numbers for rows whose distance is 0.0, got 'median'",
        ),
        (lambda: gkfast.TwoSampleTest().fit(X[None]), "reference must have shape"),
        (lambda: gkfast.TwoSampleTest().fit(X[:3]), "reference must have at least 4 rows for a test, got 3"),
        (lambda: gkfast.TwoSampleTest().fit(X, window=11), "window must be a whole number from 2 to 10, half of"),
        (lambda: gkfast.TwoSampleTest().test(X), "fit must come before test"),
        (lambda: gkfast.TwoSampleTest().fit(X).test(X[:, :1]), "batch must have as many coordinates as reference"),
        (lambda: gkfast.TwoSampleTest().fit(X).test(X[:1]), "batch must have at least 2 rows for a test"),
        (lambda: gkfast.TwoSampleTest().fit(X, window=5).test(X[:4]), "batch must have the 5 rows of the window"),
        (lambda: list(gkfast.TwoSampleTest().fit(X).windows(X)), "windows must be called after fit with a window"),
        (
            lambda: list(gkfast.TwoSampleTest().fit(X, window=5).windows(X, step=6)),
            "step must be a whole number from",
        ),
        (lambda: gkfast.TwoSampleTest().set_params(sigmas=1), "set_params must get names among sigma, scales"),
        (lambda: gkfast.TwoSampleTest(seed=-1).fit(X).test(X), "seed must be a whole number"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
