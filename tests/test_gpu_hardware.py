"""The GPU kernels on a GPU: public functions, compilation, streams, graphs, devices, more than 2^31 entries."""

import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_samples import DEVICE, ONE, PRECISION, doubled, needs_gpu, sample

import gkfast
from gkfast.kernels import gpu, reference

pytestmark = [pytest.mark.gpu, needs_gpu]


# of x, y and a bandwidth
PUBLIC = {
    "rbf": lambda x, y, s: gkfast.rbf(x, y, s).square().sum(),
    "rbf_matmul": lambda x, y, s: gkfast.rbf_matmul(x, y, y, s).square().sum(),
    "mmd2": lambda x, y, s: gkfast.mmd2(x, y, s),
    "kernel_means": lambda x, y, s: torch.stack(gkfast.kernel_means(x, y, s)).sum(),
    "mmd2_and_variance": lambda x, y, s: torch.stack(gkfast.mmd2_and_variance(x, y, s)).sum(),
    "witness": lambda x, y, s: gkfast.witness(x, x + 1, y, s).square().sum(),
    "log_density": lambda x, y, s: gkfast.log_density(x, y, s).sum(),
    "score": lambda x, y, s: gkfast.score(x, y, s).square().sum(),
}


def two_samples(n=300, m=200, dims=17):
    x, y = sample(1, n, m, dims, torch.float32)
    return x[0].requires_grad_(), (y[0] + 0.3).requires_grad_()


def close(ours, truth, relative=1e-5):
    for found, exact in zip(ours, truth, strict=True):
        assert (found.detach().cpu() - exact.cpu()).norm() <= relative * exact.norm()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_on_the_device(name):
    x, y = two_samples()
    ours = torch.autograd.grad(PUBLIC[name](x, y, 0.9), (x, y))
    truth = torch.autograd.grad(PUBLIC[name](x.cpu().double(), y.cpu().double(), 0.9), (x, y))
    close(ours, truth)
    # the same bits again
    for found, again in zip(ours, torch.autograd.grad(PUBLIC[name](x, y, 0.9), (x, y)), strict=True):
        assert torch.equal(found, again)


def test_a_permutation_test_on_the_device():
    x, y = (t.detach() for t in two_samples())
    ours, truth = (gkfast.mmd_test(a, b, 0.9, permutations=200, seed=0) for a, b in ((x, y), (x.cpu(), y.cpu())))
    close(ours, truth)


# inductor warns of what torch deprecates, and of tensor cores that float32 does not use
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rbf", "rbf_matmul", "mmd2", "log_density"])
def test_compiled_on_the_device(name):
    torch._dynamo.reset()
    x, y = two_samples()
    compiled = torch.compile(lambda x, y: PUBLIC[name](x, y, 0.9), fullgraph=True)
    found = compiled(x, y)
    exact = PUBLIC[name](x, y, 0.9)
    close([found, *torch.autograd.grad(found, (x, y))], [exact, *torch.autograd.grad(exact, (x, y))])


def test_autocast_on_the_device():
    x, y = two_samples()
    layer = torch.nn.Linear(17, 16, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        features, others = layer(x), layer(y)
        assert features.dtype == torch.bfloat16
        loss = gkfast.mmd2(features, others, 0.9)
    assert loss.dtype == torch.float32
    exact = gkfast.mmd2(features.float(), others.float(), 0.9)
    ours, truth = ([t, *torch.autograd.grad(t, x, retain_graph=True)] for t in (loss, exact))
    close(ours, truth, 2**-7)


@pytest.mark.parametrize("place", sorted({0, max(0, torch.cuda.device_count() - 1)}))
def test_gradients_in_another_thread(place):
    """The gradient of what was computed here, and all of it; the thread's own device stays the first."""
    x, y = (t.detach().to(f"{DEVICE}:{place}").requires_grad_() for t in two_samples())
    value = PUBLIC["mmd2"](x, y, 0.9)
    expected = torch.autograd.grad(value, (x, y), retain_graph=True)
    found, failures = [], []

    def work():
        try:
            found.append(torch.autograd.grad(value, (x, y)))
            found.append(torch.autograd.grad(PUBLIC["mmd2"](x, y, 0.9), (x, y)))
            torch.cuda.synchronize(place)
        except Exception as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    for gradients in found:
        for ours, exact in zip(gradients, expected, strict=True):
            assert torch.equal(ours, exact)


@pytest.mark.parametrize("rule", ["median", [0.5, 1.0, 2.0]], ids=["median", "given"])
def test_a_captured_step_of_an_mmd_gan(rule):
    """Generator, critic, MMD^2 of its features, backward and the optimiser, replayed with other data."""

    def networks():
        torch.manual_seed(0)
        generator, critic = torch.nn.Linear(8, 17, device=DEVICE), torch.nn.Linear(17, 16, device=DEVICE)
        return generator, critic, gkfast.nn.MMDLoss(rule).to(DEVICE), torch.optim.SGD(generator.parameters(), lr=0.1)

    def step(networks, noise, real):
        generator, critic, loss, optimiser = networks
        optimiser.zero_grad(set_to_none=True)
        value = loss(critic(generator(noise)), critic(real))
        value.backward()
        optimiser.step()
        return value

    batches = [(torch.randn(64, 8, device=DEVICE), torch.randn(64, 17, device=DEVICE)) for _ in range(6)]
    eager, graphed = networks(), networks()
    expected = [step(eager, *batch).item() for batch in batches]
    noise, real = (t.clone() for t in batches[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = []
        for batch in batches[:3]:
            noise.copy_(batch[0])
            real.copy_(batch[1])
            found.append(step(graphed, noise, real).item())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step(graphed, noise, real)
    for batch in batches[3:]:
        noise.copy_(batch[0])
        real.copy_(batch[1])
        graph.replay()
        found.append(value.item())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for ours, exact in zip(graphed[0].parameters(), eager[0].parameters(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_bandwidth_on_the_device(name):
    x, y = two_samples()
    sigma = torch.tensor([0.8, 1.2], dtype=torch.float64)
    inputs = [x, y, sigma.to(DEVICE).requires_grad_()]
    ours = torch.autograd.grad(PUBLIC[name](*inputs), inputs)
    wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
    close(ours, torch.autograd.grad(PUBLIC[name](*wide), wide))


def needs_memory(gigabytes):
    if torch.cuda.mem_get_info()[0] < gigabytes << 30:
        pytest.skip(f"needs {gigabytes} GiB of a GPU's memory")


def test_more_than_2_31_entries():
    needs_memory(24)
    n = 46_400
    x, y = sample(1, n, n, 3, torch.bfloat16)
    k = gpu.rbf(x, y, ONE, ONE)
    assert k.numel() > 2**31
    rows = [0, n // 2, n - 1]
    exact = reference.rbf(doubled(x[:, rows]), doubled(y), ONE, ONE)
    assert (doubled(k[:, rows]) - exact).abs().max() <= 2**-8
    ones = torch.ones(1, n, 1, device=DEVICE, dtype=torch.bfloat16)
    g = ones.mT.expand(1, n, n).contiguous()
    dx = gpu.rbf_backward(g, x, y, ONE, ONE, wants=(True, False, False, False))[0]
    truth = gpu.rbf_matmul_backward(ones, x, y, ones, ONE, ONE, wants=(True, False, False, False, False))[0]
    assert (dx.float() - truth.float())[:, rows].norm() <= 2**-6 * truth[:, rows].float().norm()


@pytest.mark.parametrize("precision", PRECISION)
def test_more_than_2_31_coordinates(precision):
    needs_memory(40)
    n, dims = 2**22, 520
    x = torch.randn(1, n, dims, device=DEVICE, dtype=torch.bfloat16)
    y = torch.randn(1, 3, dims, device=DEVICE, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    v, sigma, rows = torch.ones(1, 3, 1, device=DEVICE, dtype=torch.bfloat16), 30 * ONE, [0, n // 2, n - 1]
    found = gpu.rbf_matmul(x, y, v, sigma, ONE, precision=precision)
    exact = reference.rbf_matmul(doubled(x[:, rows]), doubled(y), doubled(v), sigma, ONE)
    assert (doubled(found[:, rows]) - exact).abs().max() <= (2**-6 + 2 * PRECISION[precision][0]) * exact.max()


def test_streams_graphs_and_devices():
    x, y = sample(1, 300, 200, 17, torch.float32)
    v, a = torch.rand(1, 200, 1).to(DEVICE), torch.rand(1, 300).to(DEVICE)
    scale = torch.ones(1, 1, 3, dtype=torch.float64, device=DEVICE)
    wants = (True, True, False, False, False, False)

    def everything(x, y, v, a, scale):
        yield gpu.rbf(x, y, ONE, ONE)
        yield gpu.rbf_matmul(x, y, v, ONE, ONE)
        yield gpu.log_density(x, y, ONE, ONE, v[..., 0], leave_one_out=False)
        arguments = (scale, x, y, a, v[..., 0], ONE, ONE, ONE)
        yield from gpu.kernel_sums_with_gradients(*arguments, drop=1, wants=wants)[:4]

    expected = list(everything(x, y, v, a, scale))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = list(everything(x, y, v, a, scale))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = list(everything(x, y, v, a, scale))
    graph.replay()
    runs = [found, captured]
    if torch.cuda.device_count() > 1:
        # the current device stays the first
        runs.append(list(everything(*(t.to("cuda:1") for t in (x, y, v, a, scale)))))
    for run in runs:
        for ours, exact in zip(run, expected, strict=True):
            torch.testing.assert_close(ours.to(DEVICE), exact, rtol=1e-6, atol=0)
