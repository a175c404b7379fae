"""The thread driver: the same bits for any number of threads, safe among Python threads, after fork, in workers."""

import importlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import gkfast

N = 1100  # enough work for the driver to use its helpers


@pytest.fixture
def data(rng):
    return tuple(torch.from_numpy(rng.normal(size=(N, 6)).astype(np.float32)).requires_grad_() for _ in range(2))


def everything(x, y):
    """One of each operation, with gradients; no sum of torch's own, whose order follows its threads."""
    results = (
        gkfast.rbf(x, y, 1.5),
        gkfast.rbf_matmul(x, y, y[:, :2], 0.9),
        gkfast.log_density(x, y, 0.7),
        gkfast.mmd2(x, y, [0.5, 1.0, 2.0]),
    )
    gradients = [g for r in results for g in torch.autograd.grad(r, (x, y), torch.ones_like(r))]
    return [*(r.detach() for r in results), *gradients]


def test_same_bits_for_any_number_of_threads_and_from_run_to_run(data, threads):
    threads(1)
    expected = everything(*data)
    for count in (1, 2, 7):
        threads(count)
        for ours, one in zip(everything(*data), expected, strict=True):
            assert torch.equal(ours, one)


def test_several_python_threads_at_once(data, threads):
    threads(2)
    x, y = (a.detach().numpy() for a in data)
    expected = gkfast.rbf(x, y, 1.5), gkfast.mmd2(x, y, 1.5)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(lambda: (gkfast.rbf(x, y, 1.5), gkfast.mmd2(x, y, 1.5))) for _ in range(24)]
        for call in calls:
            k, value = call.result(timeout=60)
            np.testing.assert_array_equal(k, expected[0])
            assert value == expected[1]


def test_a_failing_task_is_reported_not_swallowed(threads):
    from gkfast.kernels.cpu.threads import run_rows

    threads(4)

    def task(start, stop):
        if start <= 700 < stop:
            raise RuntimeError("row 700")

    with pytest.raises(RuntimeError, match="row 700"):
        run_rows(task, 1000, 1 << 20)


def in_child(queue, x, y):
    torch.set_num_threads(2)
    queue.put(float(gkfast.mmd2(x, y, 1.0)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_computes(data, threads):
    threads(2)
    x, y = (a.detach().numpy() for a in data)
    expected = float(gkfast.mmd2(x, y, 1.0))  # the parent's helpers exist when it forks
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue, x, y))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(timeout=60)
    assert child.exitcode == 0


class Similarities(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return float(gkfast.rbf(self.x, self.x[i : i + 1]).sum())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_data_loader_workers(data):
    x = data[0].detach().numpy()
    gkfast.mmd2(x, x, 1.0)
    loader = torch.utils.data.DataLoader(Similarities(x), num_workers=2)
    expected = [Similarities(x)[i] for i in range(4)]
    assert [float(value) for value in loader] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [3, 70])
def test_one_call_and_tasks_agree(rng, monkeypatch, dims):
    # small problems run in one compiled call, larger ones in tasks: here the same problem both ways
    from gkfast.kernels import cpu

    rbf, sums = (importlib.import_module(f"gkfast.kernels.cpu.{name}") for name in ("rbf", "kernel_sums"))
    x, y = (rng.normal(size=(2, n, dims)) for n in (70, 90))
    x[:, 1] = x[:, 0] + 1e-3
    a, b = rng.uniform(size=(2, 70)), rng.uniform(size=(2, 90))
    sigma, weights = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.5], [0.2, 1.0]])
    scale, g = rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 70, 90))

    def everything():
        yield cpu.rbf(x, y, sigma, weights)
        yield from cpu.rbf_backward(g, x, y, sigma, weights, (True,) * 4)
        yield cpu.rbf(x, None, sigma, weights)
        dx, _, dsigma, dweights = cpu.rbf_backward(g[:, :, :70], x, None, sigma, weights, (True, False, True, True))
        yield from (dx, dsigma, dweights)
        for drop, minus_one in ((0, True), (1, False), (0, False)):
            arguments = (scale, x, y, a, b, sigma, weights, drop, minus_one)
            yield from cpu.kernel_sums_with_gradients(*arguments, (True,) * 6)
            yield from cpu.kernel_sums_with_gradients(*arguments, (True, False, False, False, False, False))[:3]

    in_one_call = list(everything())
    for module in (rbf, sums):
        monkeypatch.setattr(module, "SERIAL_WORK", 0)
    monkeypatch.setattr(rbf, "CHUNK_WORK", 0)
    in_tasks = list(everything())
    assert len(in_tasks) == len(in_one_call) == 42
    for ours, theirs in zip(in_one_call, in_tasks, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * np.abs(theirs).max())
