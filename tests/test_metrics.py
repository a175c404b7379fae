"""gkfast.metrics: values, what is kept and forgotten, pictures, and two processes that know as much as one."""

import subprocess
import sys

import pytest
import torch

import gkfast

pytest.importorskip("torchmetrics", reason='needs pip install "gkfast[metrics]"')
from torchmetrics import Metric, MetricCollection
from torchmetrics.image.kid import poly_mmd

from gkfast.metrics import KID, MMD


@pytest.fixture
def samples():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(40, 3, generator=rng), 1.5 * torch.randn(30, 3, generator=rng)


def updated(metric, real, fake, parts=1):
    for sample, flag in ((real, True), (fake, False)):
        for rows in sample.tensor_split(parts):
            metric.update(rows, real=flag)
    return metric


@pytest.mark.parametrize("parts", [1, 3])
def test_mmd_is_that_of_all_rows(samples, parts):
    real, fake = samples
    found = updated(MMD([0.5, 2.0]), real, fake, parts).compute()
    assert torch.equal(found, gkfast.mmd2(fake, real, [0.5, 2.0], weights=[0.5, 0.5]))
    assert found.shape == ()
    sigma = [float(gkfast.median_sigma(real)) * s for s in (0.5, 1.0)]
    found = updated(MMD(scales=(0.5, 1.0), estimator="biased"), real.double(), fake.double(), parts).compute()
    truth = gkfast.mmd2(fake.double(), real.double(), sigma, weights=[0.5, 0.5], estimator="biased")
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)


def test_kid_is_that_of_torchmetrics(samples):
    real, fake = (x[:30].double() for x in samples)
    mean, deviation = updated(KID(subsets=3, subset_size=30), real, fake).compute()
    assert mean.item() == pytest.approx(poly_mmd(real, fake).item(), rel=1e-12)
    # each subset has all rows
    assert deviation.item() == pytest.approx(0, abs=1e-14)
    found = updated(KID(subsets=5, subset_size=10, kernel="gaussian", sigma=1.0), real, fake).compute()
    assert found == updated(KID(subsets=5, subset_size=10, kernel="gaussian", sigma=1.0), real, fake).compute()


def test_features_are_of_the_given_network(samples):
    real, fake = (x.reshape(-1, 3, 1, 1) for x in samples)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 5))
    found = updated(MMD(1.0, feature=network), real, fake).compute()
    assert not found.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found, gkfast.mmd2(network(fake), network(real), 1.0))


def test_reset_forgets_what_it_should(samples):
    real, fake = samples
    metric = updated(MMD(1.0), real, fake)
    metric.reset()
    with pytest.raises(ValueError, match=r"got none of the real one; call update\(features, real=True\)"):
        metric.update(fake, real=False) or metric.compute()
    metric = updated(MMD(1.0, reset_real_features=False), real, fake)
    first = metric.compute()
    metric.reset()
    metric.update(fake[:20], real=False)
    assert metric.compute() == gkfast.mmd2(fake[:20], real, 1.0) != first


def test_they_go_where_metrics_go(samples):
    both = MetricCollection({"mmd": MMD(1.0), "kid": KID(subsets=2, subset_size=10)})
    updated(both, *samples)
    assert {*both.compute()} == {"mmd", "kid"}
    assert all(isinstance(metric, Metric) for metric in both.values())
    # forward gives the value of its batch, and adds to all
    metric = updated(MMD(1.0), *samples)
    assert metric.to("cpu").compute() == metric.clone().compute()


def test_plots(samples):
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    for metric in (MMD(1.0), KID(subsets=2, subset_size=10)):
        value = updated(metric, *samples).compute()
        for values in (None, [value, value, value]):
            figure, axes = metric.plot(values)
            assert axes.lines
            plt.close(figure)


PROCESS = """
import sys, torch, torch.distributed as dist
from gkfast.metrics import KID, MMD
rank, address = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + address, rank=rank, world_size=2)
rng = torch.Generator().manual_seed(0)
real, fake = torch.randn(40, 3, generator=rng), 1.5 * torch.randn(30, 3, generator=rng)
for metric in (MMD(1.0), KID(subsets=2, subset_size=30)):
    # uneven shares
    metric.update(real[:25] if rank == 0 else real[25:], real=True)
    metric.update(fake[:7] if rank == 0 else fake[7:], real=False)
    print(metric.compute())
    metric.update(fake, real=False)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_know_all_rows(samples, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROCESS]
    address = str(tmp_path / "store")
    started = [subprocess.Popen([*command, str(k), address], stdout=subprocess.PIPE, text=True) for k in (0, 1)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in started]
    alone = [updated(metric, *samples).compute() for metric in (MMD(1.0), KID(subsets=2, subset_size=30))]
    assert said[0] == said[1] == [str(value) for value in alone]


def test_a_missing_torchmetrics_is_named():
    code = "import sys; sys.modules['torchmetrics'] = None; import gkfast; gkfast.metrics"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    last = 'gkfast.metrics must have torchmetrics, got none; run pip install "gkfast[metrics]"'
    assert said.splitlines()[-1] == f"ImportError: {last}"


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MMD(-1.0), "sigma must be positive and finite"),
        (lambda: MMD("width"), "sigma must be median, mean or positive numbers"),
        (lambda: MMD(scales=[0]), "scales must be positive finite numbers"),
        (lambda: MMD(estimator="linear"), "estimator must be unbiased or biased"),
        (lambda: MMD(feature=3), "feature must be a module or function of samples, got int"),
        (lambda: MMD(1.0).update(X, real=2), "real must be True or False, got 2"),
        (lambda: MMD(1.0).update([1.0], real=True), "features must be a torch tensor"),
        (lambda: MMD(1.0).update(X.int(), real=True), "features must have a floating dtype"),
        (lambda: updated(MMD(1.0), X, X[:, :1]).compute(), "generated features must have as many coordinates as"),
        (lambda: updated(MMD(), X, X).compute(), "sigma must be positive numbers for rows whose distance"),
        (lambda: KID(subsets=0), "subsets must be a whole number of at least 1, got 0"),
        (lambda: KID(kernel="cubic"), "kernel must be polynomial or gaussian, got 'cubic'"),
        (lambda: updated(KID(), X, X).compute(), "subset_size must be at least 2 and at most the number of rows, 4"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
