"""What the tests of the GPU kernels share: samples, and checks against the reference.

conftest.py turns Triton's interpreter on before Triton is loaded, unless there is a GPU. It is slow, so samples are
small and few.
"""

import pytest
import torch

pytest.importorskip("triton", minversion="3.6", reason="no Triton on this platform")

from gkfast.kernels import gpu, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {  # kernel absolute, gradients relative to the norm
    torch.float32: (1e-6, 1e-5),
    torch.float64: (1e-14, 1e-12),
    # a unit in the last place of results between 1 and 2 (the interpreter truncates), and of gradients
    torch.bfloat16: (2**-7, 2**-7),
    torch.float16: (2**-10, 2**-10),
}
ONE = torch.ones(1, 1, dtype=torch.float64)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


def sample(batch, n, m, dims, dtype, scale=1.0, offset=0.0):
    torch.manual_seed(n + dims)
    spread = scale / max(dims, 1) ** 0.5
    x, y = (torch.randn(batch, rows, dims) * spread + offset for rows in (n, m))
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def doubled(t):
    """As the oracle takes it: on the CPU, where bandwidths are, in float64."""
    return t.detach().cpu().double()


def columns(batch, rows, count, dtype):
    return torch.randn(batch, rows, count).to(DEVICE, dtype)


def two_bandwidths(batch):
    """Another pair for each of the batch."""
    sigma = torch.tensor([0.8, 1.7]).double() * torch.arange(1, batch + 1)[:, None] ** 0.5
    return sigma, torch.tensor([[1.0, 0.4]]).double().expand(batch, 2).contiguous()


# the interpreter is NumPy, which warns where a GPU only returns infinity or NaN
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN):RuntimeWarning")
# error of value and gradients relative in norm, sigma at the data's scale: bits that two pieces, or one, lack
PRECISION = {"highest": (1e-6, 2e-6), "high": (1e-4, 1e-4), "medium": (2e-2, 2e-2)}
# which of x, y, a, b, sigma, weights have a gradient
OF_X, OF_BOTH, OF_Y = (True,) + (False,) * 5, (True,) * 6, (False, True, False, False, True, True)
# two bandwidths, of which the sums subtract 1 from the second one's kernel
MIXED = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2, 2)


def check(x, y, sigma, weights):
    """Kernel and all gradients against float64; sigma and weights (S,) serve the whole batch."""
    sigma, weights = (t.expand(x.shape[0], -1).contiguous() for t in (sigma, weights))
    absolute, relative = TOLERANCE[x.dtype]
    wide = [doubled(t).requires_grad_() for t in ((x, sigma, weights) if y is None else (x, y, sigma, weights))]
    truth = reference.rbf(wide[0], None if y is None else wide[1], *wide[-2:])
    ours = gpu.rbf(x, y, sigma, weights)
    assert ours.dtype == x.dtype
    if truth.numel():
        assert (doubled(ours) - truth).abs().max() <= absolute * float(weights[0].abs().sum())
    g = torch.randn_like(truth).to(DEVICE, x.dtype)
    # without coordinates nothing depends on x
    expected = torch.autograd.grad((truth * doubled(g)).sum(), wide, allow_unused=True, materialize_grads=True)
    gradients = gpu.rbf_backward(g, x, y, sigma, weights, wants=(True, y is not None, True, True))
    for gradient, exact in zip((t for t in gradients if t is not None), expected, strict=True):
        assert (doubled(gradient) - exact).norm() <= relative * exact.norm()
        assert not gradient.isnan().any()


def check_gradients(ours, truth, inputs, relative):
    expected = torch.autograd.grad(truth, inputs, allow_unused=True, materialize_grads=True)
    for gradient, exact in zip(ours, expected, strict=True):
        assert gradient.shape == exact.shape
        assert (doubled(gradient) - exact).norm() <= relative * exact.norm()


def three_sums(x, y, a, b, sigma, weights, baseline, drop):
    """xx, yy and xy of K or, where baseline is given, of K - sum_s w_s baseline_s, (B, 3), by the reference."""
    given = {"x": x, "y": y, "a": a, "b": b, "sigma": sigma, "weights": weights, "drop": drop}
    if baseline is None:
        return reference.kernel_sums(**given)
    each = torch.eye(3, dtype=torch.float64).expand(len(x), 3, 3)
    return torch.stack([reference.mmd2(scale=each[:, k], baseline=baseline, **given) for k in range(3)], -1)


def check_matmul(x, y, v, sigma, weights, shift=None, relative=None, **modes):
    """K v and its gradients against float64."""
    relative = TOLERANCE[x.dtype][1] if relative is None else relative
    wide = [doubled(t).requires_grad_() for t in (x, y, v, sigma, weights)]
    truth = reference.log_kernels(*wide[:2], wide[3])
    if shift is not None:
        truth = truth - doubled(shift).mT[..., None]
    k = truth.exp()
    if "baseline" in modes:
        k = truth.expm1().where(doubled(modes["baseline"])[..., None, None] > 0, k)
    k = torch.einsum("bs,bsnm->bnm", wide[4], k)
    if modes.get("skip_diagonal"):
        k = k * reference.off_diagonal(x.shape[1], y.shape[1], k.device)
    truth = k @ wide[2]
    ours = gpu.rbf_matmul(x, y, v, sigma, weights, shift, **modes)
    assert ours.dtype == x.dtype
    assert (doubled(ours) - truth).norm() <= relative * truth.norm()
    g = torch.randn_like(truth).to(DEVICE, x.dtype)
    gradients = gpu.rbf_matmul_backward(g, x, y, v, sigma, weights, shift, wants=(True,) * 5, **modes)
    check_gradients(gradients, (truth * doubled(g)).sum(), wide, relative)


def check_sums(x, y, sigma, weights, drop=1, less=True, relative=2e-6):
    """The sums, with weights and without gradients, so by halves; the same bits again."""
    a, b = (torch.rand(t.shape[:2]).to(DEVICE, t.dtype) for t in (x, y))
    wide = [doubled(t) for t in (x, y, a, b)]
    baseline = torch.ones_like(sigma) if less else None
    truth = three_sums(*wide, sigma, weights, baseline, drop)
    arguments, modes = (None, x, y, a, b, sigma, weights, baseline), {"drop": drop, "wants": (False,) * 6}
    sums = gpu.kernel_sums_with_gradients(*arguments, **modes)[1]
    assert ((doubled(sums) - truth).abs() <= relative * truth.abs()).all()
    assert torch.equal(sums, gpu.kernel_sums_with_gradients(*arguments, **modes)[1])


def score(x, y, sigma, log_weights, data_weights, *, leave_one_out, precision="highest"):
    """The gradient of a log-density at x, of the kernels that the operators call for it."""
    modes = {"leave_one_out": leave_one_out, "precision": precision}
    log_p = gpu.log_density(x, y, sigma, log_weights, data_weights, **modes)
    of_shift = torch.float64 if precision == "highest" or x.dtype == torch.float64 else torch.float32
    of_points = torch.float64 if of_shift == torch.float64 and x.shape[2] <= 4 else x.dtype
    arguments = (torch.ones_like(log_p)[..., None], x, y, data_weights[..., None])
    shift = log_p[..., None] - log_weights.to(log_p)[:, None, :]
    return gpu.rbf_matmul_backward(
        *(t.to(of_points) for t in arguments),
        sigma,
        torch.ones_like(sigma),
        shift.to(of_shift),
        skip_diagonal=leave_one_out,
        wants=(True, False, False, False, False),
        precision=precision,
    )[0].to(x.dtype)


def check_density(x, y, sigma, weights, leave_one_out):
    log_weights = weights.log() - x.shape[2] * sigma.log()
    data_weights = torch.rand(y.shape[:2]).to(DEVICE, x.dtype)
    # a row without weight counts for nothing
    data_weights[:, 0] = 0
    wide = (doubled(x), doubled(y), sigma, log_weights, doubled(data_weights))
    truth = reference.log_density(*wide, leave_one_out=leave_one_out)
    arguments = (x, y, sigma, log_weights, data_weights)
    ours = gpu.log_density(*arguments, leave_one_out=leave_one_out)
    assert ours.dtype == torch.float64
    # products of float32 points are right to that much of the greatest exponent
    greatest = (torch.cdist(*wide[:2]) / sigma.min(1).values[:, None, None]).square().max() / 2
    bound = 2e-7 * (1 + greatest) if x.dtype == torch.float32 and x.shape[2] > 4 else 1e-13 * (1 + truth.abs().max())
    assert (doubled(ours) - truth).abs().max() <= bound
    each = gpu.log_density_by_bandwidth(x, y, sigma, data_weights, leave_one_out=leave_one_out)
    truth = reference.log_density_by_bandwidth(*wide[:3], wide[4], leave_one_out=leave_one_out)
    bound = bound if bound > 1e-8 else 1e-13 * (1 + truth.abs().max())
    assert ((doubled(each) - truth).abs() <= bound).all()
    exact = reference.score(*wide, leave_one_out=leave_one_out)
    found = score(*arguments, leave_one_out=leave_one_out)
    assert (doubled(found) - exact).norm() <= TOLERANCE[x.dtype][1] * exact.norm()


def poison_what_is_allocated(monkeypatch):
    """NaN, or a greatest integer, wherever memory is allocated but not set."""

    def poisoned(allocate):
        def call(*arguments, **options):
            found = allocate(*arguments, **options)
            return found.fill_(torch.nan if found.is_floating_point() else torch.iinfo(found.dtype).max)

        return call

    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
