"""One, two and three processes over gloo: the same value and gradients, with batches of unequal size."""

import os
import socket
import warnings
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import gkfast
import gkfast.distributed

D = torch.float64
SIGMA = [0.7, 1.5]


def whole(dtype):
    torch.manual_seed(4)
    return torch.randn(17, 3, dtype=dtype), torch.randn(13, 3, dtype=dtype) + 0.5


def shares(count, rows):
    """Unequal parts, one after another; the last process may have few."""
    bounds = [rows * k * k // (count * count) for k in range(count + 1)]
    return [slice(*ends) for ends in pairwise(bounds)]


LOSSES = {
    "gathered mmd2": lambda x, y: gkfast.mmd2(*map(gkfast.distributed.gather, (x, y)), SIGMA),
    "gathered log_density": lambda x, y: gkfast.log_density(*map(gkfast.distributed.gather, (x, y)), 0.8).mean(),
    "mmd2": lambda x, y: gkfast.distributed.mmd2(x, y, SIGMA),
    "mmd2, biased": lambda x, y: gkfast.distributed.mmd2(x, y, SIGMA, weights=[0.2, 0.8], estimator="biased"),
}


class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 3, dtype=D)

    def forward(self, z):
        return torch.tanh(self.layer(z))


def work(rank, count, port, queue):
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    results = {}
    for dtype in (torch.float32, D):
        x, y = whole(dtype)
        x, y = x[shares(count, len(x))[rank]], y[shares(count, len(y))[rank]]
        for name, loss in LOSSES.items():
            x, y = (t.detach().clone().requires_grad_() for t in (x, y))
            value = loss(x, y)
            # what DistributedDataParallel does: the mean over processes
            gradients = [g / count for g in torch.autograd.grad(value, (x, y))]
            results[name, dtype] = (value.item(), *(g.tolist() for g in gradients))
    x, y = whole(D)
    x, y = x[shares(count, len(x))[rank]].requires_grad_(), y[shares(count, len(y))[rank]]
    (g,) = torch.autograd.grad(LOSSES["gathered mmd2"](x, y), x, create_graph=True)
    (second,) = torch.autograd.grad((g / count).square().sum(), x)
    results["second order"] = second.tolist()
    generator = torch.nn.parallel.DistributedDataParallel(Generator())
    gkfast.distributed.mmd2(generator(x.detach()), y, SIGMA).backward()
    results["network"] = generator.module.layer.weight.grad.tolist()
    queue.put((rank, results))
    queue.close()
    queue.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def run(count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, count, port, queue)) for rank in range(count)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [results[rank] for rank in range(count)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(request):
    return run(request.param)


def single(name, dtype):
    x, y = (t.requires_grad_() for t in whole(dtype))
    value = LOSSES[name](x, y)
    return value, *torch.autograd.grad(value, (x, y))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (D, 1e-12)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_those_of_one_process(results, name, dtype, rtol):
    value, dx, dy = single(name, dtype)
    ours = [result[name, dtype] for result in results]
    for one in ours:
        assert one[0] == pytest.approx(value.item(), rel=rtol, abs=rtol * 1e-2)
    for k, truth in ((1, dx), (2, dy)):
        joined = torch.cat([torch.tensor(one[k], dtype=dtype).reshape(-1, 3) for one in ours])
        assert (joined - truth).norm() <= rtol * truth.norm()


def test_second_derivatives_of_gathered_rows(results):
    x, y = whole(D)
    x.requires_grad_()
    (g,) = torch.autograd.grad(gkfast.mmd2(x, y, SIGMA), x, create_graph=True)
    (second,) = torch.autograd.grad(g.square().sum(), x)
    joined = torch.cat([torch.tensor(result["second order"], dtype=D).reshape(-1, 3) for result in results])
    torch.testing.assert_close(joined, second, rtol=1e-10, atol=1e-14)


def test_a_network_under_ddp_gets_the_global_gradient(results):
    x, y = whole(D)
    generator = Generator()
    gkfast.mmd2(generator(x), y, SIGMA).backward()
    for result in results:
        ours = torch.tensor(result["network"], dtype=D)
        torch.testing.assert_close(ours, generator.layer.weight.grad, rtol=1e-11, atol=1e-15)


def test_messages():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="estimator must be unbiased or biased on several processes"):
        gkfast.distributed.mmd2(x, x, 1.0, estimator="linear")
    with pytest.raises(ValueError, match=r"x must have shape \(N, D\) on several processes"):
        gkfast.distributed.mmd2(x[None], x[None], 1.0)
