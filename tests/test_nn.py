"""The modules against their formulas, what they learn, keep and refuse."""

import copy
import math

import pytest
import torch

import gkfast
import gkfast.nn

D = torch.float64


@pytest.fixture
def samples():
    torch.manual_seed(2)
    return torch.randn(12, 3), torch.randn(9, 3) + 0.5


def test_rbf_is_the_function(samples):
    x, y = samples
    kernel = gkfast.nn.RBF([0.5, 2.0], weights=[0.3, 0.7])
    torch.testing.assert_close(kernel(x, y), gkfast.rbf(x, y, [0.5, 2.0], weights=[0.3, 0.7]))
    torch.testing.assert_close(kernel(x), gkfast.rbf(x, None, [0.5, 2.0], weights=[0.3, 0.7]))


def test_rbf_with_a_bandwidth_for_each_dimension(samples):
    x, y = samples
    kernel = gkfast.nn.RBF([0.5, 1.0, 2.0], dims=3)
    ell = torch.tensor([0.5, 1.0, 2.0])
    scaled = ((x[:, None] - y[None]) / ell).square().sum(-1)
    torch.testing.assert_close(kernel(x, y), torch.exp(-scaled / 2))
    assert gkfast.nn.RBF(1.5, dims=3).sigma.tolist() == pytest.approx([1.5] * 3)


@pytest.mark.parametrize("options", [{}, {"dims": 3}])
def test_rbf_learns_its_bandwidths(samples, options):
    x, y = samples
    target = gkfast.rbf(x, y, 1.7)
    kernel = gkfast.nn.RBF(0.6, **options)
    optimiser = torch.optim.Adam(kernel.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (kernel(x, y) - target).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(kernel.sigma, torch.full_like(kernel.sigma, 1.7), rtol=1e-2, atol=0)


def test_rbf_that_does_not_learn(samples):
    kernel = gkfast.nn.RBF(0.6, learnable=False)
    assert not list(kernel.parameters())
    assert "log_sigma" in kernel.state_dict()
    assert "sigma=[0.6]" in repr(kernel)


def test_rbf_gradients():
    x, y = torch.randn(2, 4, 3, dtype=D), torch.randn(5, 3, dtype=D)
    for kernel in (gkfast.nn.RBF([0.5, 2.0]), gkfast.nn.RBF(1.0, dims=3)):
        kernel.double()
        (log_sigma,) = kernel.parameters()
        assert torch.autograd.gradcheck(
            lambda p, kernel=kernel: torch.func.functional_call(kernel, {"log_sigma": p}, (x, y)), (log_sigma,)
        )


def test_mmd_loss_is_the_mean_over_bandwidths(samples):
    x, y = samples
    expected = torch.stack([gkfast.mmd2(x, y, s) for s in (0.5, 1.0)]).mean()
    torch.testing.assert_close(gkfast.nn.MMDLoss([0.5, 1.0])(x, y), expected)
    rooted = gkfast.nn.MMDLoss(1.0, estimator="biased", root=True)
    torch.testing.assert_close(rooted(x, y).square(), gkfast.mmd2(x, y, 1.0, estimator="biased") + 1e-8)
    # equal samples: a root without its epsilon would have no gradient there
    x = x.clone().requires_grad_()
    rooted(x, x.detach()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("rule", ["median", "mean"])
def test_bandwidths_that_follow_the_data(samples, rule):
    x, y = samples
    found = {"median": gkfast.median_sigma, "mean": gkfast.mean_sigma}[rule]
    loss = gkfast.nn.MMDLoss(rule, scales=(0.5, 2.0), momentum=0.25)
    first, second = found(x, y).double(), found(3 * x, 3 * y).double()
    expected = gkfast.mmd2(x, y, torch.stack([first / 2, first * 2]), weights=[0.5, 0.5])
    torch.testing.assert_close(loss(x, y), expected)
    loss(3 * x, 3 * y)
    torch.testing.assert_close(loss.bandwidth.running[0], first + 0.25 * (second - first))
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(9 * x, 9 * y)
    assert before.keys() == loss.state_dict().keys()
    assert loss.bandwidth.running.equal(before["bandwidth.running"])


def test_bandwidths_are_saved_and_constants(samples):
    x, y = samples
    loss = gkfast.nn.MMDLoss("median")
    x.requires_grad_()
    value = loss(x, y)
    (with_rule,) = torch.autograd.grad(value, x)
    sigma = loss.bandwidth.running * torch.tensor(loss.bandwidth.scales)
    (with_numbers,) = torch.autograd.grad(gkfast.mmd2(x, y, sigma, weights=[0.2] * 5), x)
    assert with_rule.equal(with_numbers)
    restored = gkfast.nn.MMDLoss("median")
    # in evaluation, without having seen anything, the batch at hand decides
    torch.testing.assert_close(restored.eval()(x, y), value)
    restored.load_state_dict(loss.state_dict())
    assert restored.eval()(2 * x, 2 * y).equal(loss.eval()(2 * x, 2 * y))


def test_equal_rows_leave_a_bandwidth_that_works():
    x = torch.ones(5, 2)
    assert gkfast.nn.MMDLoss("median")(x, x).item() == 0


def test_repulsive_loss_by_hand():
    # squared distances of the pairs: 1, 9, 16 (real), 0.01, 1, 1.21 (fake)
    real, fake = torch.tensor([[0.0], [1.0], [-3.0]]), torch.tensor([[0.0], [0.1], [-1.0]])
    loss = gkfast.nn.RepulsiveLoss()
    k = lambda d2: math.exp(-d2 / 2)  # noqa: E731
    expected = (k(1) + 2 * k(4)) / 3 - (k(0.25) + k(1) + k(1.21)) / 3
    critic, generator = loss(real, fake)
    assert critic.item() == pytest.approx(expected, rel=1e-6)
    assert generator.item() == pytest.approx(float(gkfast.mmd2(fake, real, 1.0)), rel=1e-6)


def test_bounded_pairs_have_no_gradient():
    real = torch.tensor([[0.0], [5.0]], requires_grad=True)
    fake = torch.tensor([[0.0], [0.1]], requires_grad=True)
    gkfast.nn.RepulsiveLoss().critic(real, fake).backward()
    assert real.grad.tolist() == fake.grad.tolist() == [[0.0], [0.0]]
    gkfast.nn.RepulsiveLoss(lower=0.0, upper=math.inf).critic(real, fake).backward()
    # a step down pushes real points apart and pulls generated ones together
    assert real.grad[1] < 0
    assert fake.grad[1] > 0


def test_kde_ratio_gradient_is_the_difference_of_scores():
    torch.manual_seed(0)
    fake, real = torch.randn(7, 2, dtype=D, requires_grad=True), torch.randn(8, 2, dtype=D)
    sigmas = (0.8, 1.6)
    (g,) = torch.autograd.grad(gkfast.nn.KDERatioLoss(sigmas)(fake, real), fake)
    expected = sum(
        s**2 / 7 * (gkfast.score(fake, fake.detach(), s, leave_one_out=True) - gkfast.score(fake, real, s)).detach()
        for s in sigmas
    ) / len(sigmas)
    torch.testing.assert_close(g, expected)


def test_article_regularizer(samples):
    fake, real = samples
    fake.requires_grad_()
    literal = gkfast.nn.ArticleRegularizer(0.7, form="literal")(fake, real)
    assert literal.item() == 0
    assert torch.autograd.grad(literal, fake)[0].abs().max() == 0
    torch.testing.assert_close(
        gkfast.nn.ArticleRegularizer(0.7)(fake, real), gkfast.nn.KDERatioLoss(0.7)(fake, real), rtol=0, atol=0
    )


@pytest.mark.parametrize("loss", [gkfast.nn.MMDLoss("median"), gkfast.nn.KDERatioLoss("mean")], ids=type)
def test_losses_train_a_generator_to_the_data(loss):
    torch.manual_seed(0)
    shift = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimiser = torch.optim.Adam([shift], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        loss(torch.randn(128, 2) + shift, torch.randn(128, 2)).backward()
        optimiser.step()
    assert shift.abs().max() < 0.3


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_modules_compile(samples):
    x, y = samples
    torch._dynamo.reset()
    for module in (gkfast.nn.RBF([0.5, 2.0]), gkfast.nn.MMDLoss([0.5, 1.0]), gkfast.nn.KDERatioLoss(1.0)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, y), module(x, y))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gkfast.nn.RBF(0.0), "sigma must be positive and finite"),
        (lambda: gkfast.nn.RBF([1.0, 2.0], dims=3), "sigma must be one number or one for each of 3 dimensions"),
        (lambda: gkfast.nn.RBF(1.0, dims=0), "dims must be a whole number of at least 1"),
        (lambda: gkfast.nn.RBF(1.0, dims=2, weights=[1.0]), "weights must be left out with dims"),
        (lambda: gkfast.nn.RBF(1.0, dims=2)(torch.zeros(4, 3)), "x must have 2 coordinates"),
        (lambda: gkfast.nn.MMDLoss("mode"), "sigma must be a number, a sequence, 'median' or 'mean'"),
        (lambda: gkfast.nn.MMDLoss("mean", scales=()), "scales must be positive numbers"),
        (lambda: gkfast.nn.MMDLoss("mean", momentum=2), r"momentum must lie in \[0, 1\]"),
        (lambda: gkfast.nn.MMDLoss(1.0, root=True), "estimator must be biased where root is True"),
        (lambda: gkfast.nn.RepulsiveLoss(lower=4.0, upper=1.0), "lower and upper must be squared distances"),
        (lambda: gkfast.nn.ArticleRegularizer(form="square"), "form must be log_ratio or literal"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
