"""The thread driver: the same bits for any number of threads, safe among Python threads, after fork, in workers."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import gkfast
from gkfast.kernels import cpu
from gkfast.kernels.cpu import threads as driver
from gkfast.kernels.cpu.arrays import part, within
from gkfast.kernels.cpu.calls import parallel_for
from gkfast.kernels.cpu.compiled import compiled

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


@parallel_for(lambda dtype: (np.zeros(1, dtype), 0))
def count_rows(memory, start, stop, rows, failing):
    """Marks rows; at one of them there is no memory."""
    for row in range(start, stop):
        rows[row] += 1
        if row == failing:
            raise MemoryError


@compiled
def count_all(pointer, workers, rows, failing):
    rows = within(rows)
    half = len(rows) // 2
    count_rows(
        pointer,
        workers,
        (half, 0, len(rows) - half),
        ((part(rows, 0, half), failing), (rows, failing), (part(rows, half, len(rows)), failing - half)),
    )


@pytest.fixture(params=["torch's team", "a pool", "this thread"])
def workers(request, monkeypatch, threads):
    """(where the team begins, threads) for much work."""
    threads(1 if request.param == "this thread" else 3)
    if request.param == "a pool":
        monkeypatch.setattr(driver, "_gnu_openmp", lambda: 0)
    return driver.thread_team(1 << 30)


def test_every_row_is_done_once(workers):
    pointer = count_rows.pointer(np.int64)
    for count in (0, 1, 2, 5, 1000):
        rows = np.zeros(count, np.int64)
        count_all(pointer, workers, rows, -1)
        assert (rows == 1).all()


def test_a_failing_piece_is_reported_and_the_others_are_done(workers):
    rows = np.zeros(1000, np.int64)
    pointer = count_rows.pointer(np.int64)
    with pytest.raises(MemoryError):
        count_all(pointer, workers, rows, 700)
    # without threads there is one piece
    assert (rows[:701] == 1).all()
    assert (rows <= 1).all()
    assert (rows[800:] == 1).all() == (workers[1] > 1)
    count_all(pointer, workers, rows, -1)


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
def test_few_pairs_too_are_the_same_on_a_team(rng, monkeypatch, threads, dims):
    x, y = (rng.normal(size=(2, n, dims)) for n in (70, 90))
    x[:, 1] = x[:, 0] + 1e-3
    a, b = rng.uniform(size=(2, 70)), rng.uniform(size=(2, 90))
    sigma, weights = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.5], [0.2, 1.0]])
    scale, g = rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 70, 90))

    def everything():
        yield cpu.rbf(x, y, sigma, weights)
        yield from cpu.rbf_backward(g, x, y, sigma, weights, wants=(True,) * 4)
        yield cpu.rbf(x, None, sigma, weights)
        square, wants = g[:, :, :70], (True, False, True, True)
        dx, _, dsigma, dweights = cpu.rbf_backward(square, x, None, sigma, weights, wants=wants)
        yield from (dx, dsigma, dweights)
        for drop, baseline in ((0, np.array([[0.0, 1.0], [1.0, 1.0]])), (1, None), (0, None)):
            arguments = (scale, x, y, a, b, sigma, weights, baseline)
            yield from cpu.kernel_sums_with_gradients(*arguments, drop=drop, wants=(True,) * 6)
            of_x = (True, False, False, False, False, False)
            yield from cpu.kernel_sums_with_gradients(*arguments, drop=drop, wants=of_x)[:3]

    threads(3)
    alone = list(everything())
    monkeypatch.setattr(driver, "SERIAL_WORK", 0)
    together = list(everything())
    assert len(together) == len(alone) == 42
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_array_equal(ours, theirs)
