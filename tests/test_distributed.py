"""One, two and three processes over gloo: the same value and gradients, with batches of unequal size.

Of gkfast.distributed's functions, of every GAN loss, and of whole trainings, stopped and resumed ones too.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import gkfast
import gkfast.distributed
from gkfast.cli import main
from gkfast.gan import objectives, train_gan
from gkfast.gan.checkpoint import Stopped
from gkfast.gan.networks import Discriminator
from gkfast.gan.train import Training

pytestmark = pytest.mark.slow
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
    # of kernels far below 1: no process sums 1 less than they are, nor the diagonal of its rows
    "mmd2, narrow": lambda x, y: 1e9 * gkfast.distributed.mmd2(x, y, 0.08),
    "mmd2, biased": lambda x, y: gkfast.distributed.mmd2(x, y, SIGMA, weights=[0.2, 0.8], estimator="biased"),
}


class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 3, dtype=D)

    def forward(self, z):
        return torch.tanh(self.layer(z))


def gan_networks(outputs=1):
    torch.manual_seed(1)
    G = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(D)
    critic = Discriminator(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh()), torch.nn.Linear(8, outputs))
    return G, critic.to(D)


# as they are named on the command line; the kernel on data and, with a star, on the discriminator's features
GAN_LOSSES = [
    *objectives.LOSSES[:8],
    "mmd",
    "gmmn",
    "logkde",
    "drift",
    "landmarks",
    "gan+mmd*",
    "rpgan+gmmn",
    "smmd+logkde*",
]


def gan_gradients(name, dtype, part):
    """Both losses of a share of the global batch, and their gradients to the networks' weights."""
    G, critic = (
        network.to(dtype) for network in gan_networks(1 if name.split("+")[0] in objectives.ADVERSARIES else 5)
    )
    rng = torch.Generator().manual_seed(2)
    noise, real = torch.randn(17, 4, generator=rng, dtype=D), torch.randn(17, 3, generator=rng, dtype=D)
    fake, real = G(noise.to(dtype)[part]), real.to(dtype)[part]
    on_features = name.endswith("*")
    sigma = "median" if on_features else SIGMA
    options = {"scales": [0.5, 1.0], "on_features": on_features, "real": torch.randn(30, 3, generator=rng, dtype=D)}
    goal = objectives.objective(name.rstrip("*"), sigma, **options, r1=0.3, r2=0.7)
    results = []
    if goal.discriminator is not None:
        loss = goal.discriminator(critic, real, fake.detach())
        results.append((loss, torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)))
    loss = fake.new_zeros(()) if goal.generator is None else goal.generator(critic, real, fake)
    if goal.kernel is not None:
        rows = (critic.features(fake), critic.features(real)) if on_features else (fake, real)
        loss = loss + goal.lam * goal.kernel(*rows)
    results.append((loss, torch.autograd.grad(loss, list(G.parameters()))))
    return results


def flat(gradients):
    return torch.cat([g.flatten().to(D) for g in gradients if g is not None])


def train(**options):
    G, critic = gan_networks()
    y = torch.randn(50, 3, generator=torch.Generator().manual_seed(3), dtype=D)
    # 17 rows: no two or three processes have equal shares
    options = {"loss": "rpgan+mmd", "output": "logit", "r1": 0.1, "r2": 0.1, "critic_steps": 2, "ema": 0.5, **options}
    result = train_gan(G, critic, None, y, SIGMA, 4, 17, noise_dim=3, **options)
    return [w.tolist() for network in (G, critic, result.average) for w in network.parameters()]


def stopped_and_resumed(folder, rank, count):
    """A signal comes to the last process alone, and all of them stop at the same step."""
    advance = Training.advance

    def advancing(training):
        record = advance(training)
        if training.step == 3 and rank == count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    Training.advance = advancing
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 3"):
        train(checkpoints=folder)
    Training.advance = advance
    return train(checkpoints=folder, resume=True)


def group_threads():
    """The threads of gloo, which abort a process that ends while it has them."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def work(rank, count, port, queue, folder):
    results = compute(rank, count, port, folder)
    queue.put((rank, results))
    queue.close()
    queue.join_thread()
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()
    assert not group_threads()


def compute(rank, count, port, folder):
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # as torchrun says it
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
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
    for dtype in (torch.float32, D):
        for name in GAN_LOSSES:
            found = gan_gradients(name, dtype, shares(count, 17)[rank])
            for _, gradients in found:
                for g in gradients:
                    if g is not None:
                        dist.all_reduce(g)
            results[name, dtype] = [(loss.item(), (flat(g) / count).tolist()) for loss, g in found]
    results["training"] = train()
    results["resumed"] = stopped_and_resumed(folder, rank, count)
    return results


def run(count, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, count, port, queue, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [results[rank] for rank in range(count)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(request, tmp_path_factory):
    return run(request.param, tmp_path_factory.mktemp("checkpoints"))


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


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (D, 1e-12)], ids=str)
@pytest.mark.parametrize("name", GAN_LOSSES)
def test_gan_losses_and_their_gradients_are_those_of_one_process(results, name, dtype, rtol):
    for (value, gradients), *ours in zip(
        gan_gradients(name, dtype, slice(None)), *(result[name, dtype] for result in results), strict=True
    ):
        truth = flat(gradients)
        # the slope of the repulsive critic's pairs cancels to far below its terms
        floor = 0.05 if name in ("repulsive", "bounded") else 0.0
        for one_value, one_gradients in ours:
            assert one_value == pytest.approx(value.item(), rel=rtol, abs=rtol * 0.1)
            assert (torch.tensor(one_gradients, dtype=D) - truth).norm() <= rtol * max(truth.norm(), floor)


def test_a_training_is_that_of_one_process(results):
    alone = train()
    for result in results:
        for ours, truth in zip(result["training"], alone, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(truth), rtol=1e-9, atol=1e-11)


def test_a_stopped_training_goes_on_to_the_same_bits(results):
    for result in results:
        assert result["resumed"] == result["training"]
    assert all(result["training"] == results[0]["training"] for result in results)


def test_the_command_line_under_torchrun(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(90, 2)))
    options = ["train", "--data", str(tmp_path / "mine.npy"), "--loss", "gan+mmd", "--steps", "5", "--batch", "33"]
    options += ["--no-control", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "command.py")]
    # what python -m gkfast does, and a look at what is left of the group
    (tmp_path / "command.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom gkfast.cli import main\nstatus = main()\n"
        "assert 'gloo' not in ''.join(path.read_text() for path in Path('/proc/self/task').glob('*/comm'))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, *launch, *options, str(tmp_path / "two")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # only one of them speaks
    assert done.stdout.count("report.html") == 1
    assert main([*options, str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for key in ("mmd2", "k_xx", "k_xy", "coverage"):
        assert two[key] == pytest.approx(one[key], rel=1e-3)


def test_bad_arguments_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="estimator must be unbiased or biased on several processes"):
        gkfast.distributed.mmd2(x, x, 1.0, estimator="linear")
    with pytest.raises(ValueError, match=r"x must have shape \(N, D\) on several processes"):
        gkfast.distributed.mmd2(x[None], x[None], 1.0)
