"""The modules against their formulas, what they learn, keep and refuse."""

import copy
import io
import math
import pickle

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


def two_wide_samples(dims=3):
    torch.manual_seed(5)
    return torch.randn(9, dims, dtype=D), torch.randn(7, dims, dtype=D) + 0.3


def test_float64_data_get_float64_bandwidths():
    x, y = two_wide_samples()
    distances = (x[:, None] - y[None]).square()
    exact = {"rtol": 1e-14, "atol": 0}
    kernel = gkfast.nn.RBF([0.3, 1.7], weights=[0.2, 0.7])
    expected = sum(w * torch.exp(-distances.sum(-1) / (2 * s * s)) for s, w in ((0.3, 0.2), (1.7, 0.7)))
    torch.testing.assert_close(kernel(x, y), expected, rtol=1e-14, atol=1e-15)
    ell = torch.tensor([0.3, 0.7, 1.1], dtype=D)
    ard = gkfast.nn.RBF(ell, dims=3)
    torch.testing.assert_close(ard(x, y), torch.exp(-(distances / ell**2).sum(-1) / 2), rtol=1e-13, atol=1e-15)

    def pairs(z):
        return torch.nn.functional.pdist(z).square()

    loss, s = gkfast.nn.RepulsiveLoss(0.7, lower=0.3, upper=1.9), 0.7
    k = lambda d2: torch.exp(-d2 / (2 * s * s))  # noqa: E731
    expected = k(pairs(x).clamp(max=1.9)).mean() - k(pairs(y).clamp(min=0.3)).mean()
    torch.testing.assert_close(loss.critic(x, y), expected, rtol=1e-13, atol=1e-15)
    for rule, found in (("median", gkfast.median_sigma), ("mean", gkfast.mean_sigma)):
        loss = gkfast.nn.MMDLoss(rule, scales=(0.3, 1.0))
        loss(x, y)
        torch.testing.assert_close(loss.bandwidth.running, found(x, y)[None], rtol=0, atol=0)
        sigma = torch.stack([found(x, y) * 0.3, found(x, y)])
        torch.testing.assert_close(loss(x, y), gkfast.mmd2(x, y, sigma, weights=[0.5, 0.5]), **exact)


@pytest.mark.parametrize("options", [{"sigma": [0.3, 1.7]}, {"sigma": [0.3, 0.7, 1.1], "dims": 3}])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_rbf_of_halves_is_computed_in_float32(options, half):
    x, y = (t.to(half) for t in two_wide_samples())
    kernel = gkfast.nn.RBF(**options)
    assert kernel(x, y).dtype == half
    # the rounding of the result, and none of the divided points
    torch.testing.assert_close(kernel(x, y), kernel(x.double(), y.double()).to(half), rtol=0, atol=1e-6)


def test_repulsive_loss_of_halves_has_more_pairs_than_float16_numbers():
    torch.manual_seed(0)
    real, fake = 0.1 * torch.randn(2, 300, 2).half()
    loss = gkfast.nn.RepulsiveLoss()
    critic, generator = loss(real, fake)
    assert critic.dtype == generator.dtype == torch.float32
    expected = loss(real.double(), fake.double())
    assert (critic.item(), generator.item()) == pytest.approx([e.item() for e in expected], rel=1e-4, abs=1e-7)


def test_narrow_bandwidths_leave_nothing_at_the_bounds():
    real = torch.tensor([[0.0], [1.0]])
    assert gkfast.nn.RepulsiveLoss(1e-200).critic(real, real).item() == 0


# a module of each kind of bandwidth, and where it keeps them
STATEFUL = {
    "RBF": (lambda: gkfast.nn.RBF([0.3, 1.7]), lambda m: m.sigma),
    "RBF that does not learn": (lambda: gkfast.nn.RBF([0.3, 1.7], learnable=False), lambda m: m.sigma),
    "given": (lambda: gkfast.nn.MMDLoss([0.3, 1.7]), lambda m: m.bandwidth.running),
    "median": (lambda: gkfast.nn.MMDLoss("median"), lambda m: m.bandwidth.running),
    "densities": (lambda: gkfast.nn.KDERatioLoss("mean", scales=(0.3, 1.0)), lambda m: m.bandwidth.running),
}
CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float": lambda m: m.float(),
    "type": lambda m: m.type(torch.float16),
    "device and dtype": lambda m: m.to("cpu", torch.float16),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "cpu": lambda m: m.cpu(),
    "shared": lambda m: m.share_memory(),
    "in a sequence": lambda m: torch.nn.Sequential(torch.nn.Linear(1, 1), m).half()[1],
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", STATEFUL)
def test_no_cast_rounds_or_loses_bandwidths(name, cast):
    x, y = two_wide_samples()
    make, bandwidths = STATEFUL[name]
    module = make()
    module(x, y)
    with torch.no_grad():
        for parameter in module.parameters():
            # as after learning
            parameter.add_(1 / 3)
            parameter.grad = torch.ones_like(parameter)
    before, value = bandwidths(module).clone(), module.eval()(x, y)
    changed = CASTS[cast](module)
    assert bandwidths(changed).dtype == D
    assert bandwidths(changed).equal(before)
    assert changed(x, y).equal(value)
    for parameter in changed.parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype


def test_a_cast_leaves_an_optimiser_its_parameter():
    x, y = two_wide_samples()
    cast, left = gkfast.nn.RBF(0.6), gkfast.nn.RBF(0.6)
    for kernel in (cast, left):
        optimiser = torch.optim.Adam(kernel.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            kernel(x, y).sum().backward()
            if kernel is cast:
                kernel.half()
            optimiser.step()
    assert cast.sigma.item() < 0.5
    assert cast.sigma.equal(left.sigma)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_bandwidths_of_a_rule_go_to_the_samples():
    x, y = (t.cuda() for t in two_wide_samples())
    there, moved = gkfast.nn.MMDLoss("median"), gkfast.nn.MMDLoss("median").cuda()
    for k in range(3):
        torch.testing.assert_close(there((1 + k) * x, y), moved((1 + k) * x, y), rtol=0, atol=0)
    assert there.bandwidth.running.device == x.device


@pytest.mark.parametrize("load", ["nothing", "copy", "assign", "assign first"])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_start_on_the_meta_device(name, load):
    x, y = two_wide_samples()
    make, bandwidths = STATEFUL[name]
    saved = make()
    saved(x, y)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1 / 3)
    with torch.device("meta"):
        module = make()
    assert "meta" in repr(module)
    if name != "RBF that does not learn":
        with pytest.raises(ValueError, match="must have its bandwidths in memory, got a module on the meta device; "):
            module(x, y)
    if load == "assign first":
        module.load_state_dict(saved.state_dict(), assign=True)
    else:
        module.to_empty(device="cpu")
    if load == "nothing":
        # a new one
        assert bandwidths(module).equal(bandwidths(make()))
        assert module(x, y).equal(make()(x, y))
        return
    module.load_state_dict(saved.state_dict(), assign=load == "assign")
    assert bandwidths(module).equal(bandwidths(saved))
    assert module.eval()(2 * x, 2 * y).equal(saved.eval()(2 * x, 2 * y))
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def test_a_loss_on_the_meta_device_and_back():
    x, y = two_wide_samples()
    given, found = gkfast.nn.MMDLoss([0.3, 1.7]), gkfast.nn.MMDLoss("median")
    fresh = found(x, y)
    assert given.to("meta").to_empty(device="cpu")(x, y).equal(gkfast.nn.MMDLoss([0.3, 1.7])(x, y))
    # an average that is gone is found anew
    assert found.to("meta").to_empty(device="cpu")(x, y).equal(fresh)
    # what was loaded counts as given
    given.load_state_dict(gkfast.nn.MMDLoss([0.5, 0.9]).state_dict())
    assert given.to("meta").to_empty(device="cpu").bandwidth.running.tolist() == [0.5, 0.9]


def test_states_go_through_files_and_averages():
    x, y = two_wide_samples()
    for make, bandwidths in STATEFUL.values():
        module = make()
        module(x, y)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        restored = make()
        restored.load_state_dict(torch.load(file, weights_only=True))
        assert bandwidths(restored).equal(bandwidths(module))
        average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True, multi_avg_fn=average_of_weights())
        for _ in range(3):
            average.update_parameters(module)
        restored.load_state_dict(average.module.state_dict())
        torch.testing.assert_close(bandwidths(restored), bandwidths(module), rtol=1e-12, atol=0)


def average_of_weights():
    return torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)


@pytest.mark.parametrize("saved", ["median", "mean", 1.5])
@pytest.mark.parametrize("into", ["median", "mean", 1.5])
@pytest.mark.parametrize("seen", [True, False])
def test_a_state_of_other_bandwidths_does_not_load(samples, saved, into, seen):
    source, target = (torch.nn.ModuleDict({"loss": gkfast.nn.MMDLoss(s)}) for s in (saved, into))
    if seen:
        source["loss"](*samples)
    before = target["loss"].bandwidth.running.clone()
    if saved == into:
        target.load_state_dict(source.state_dict())
        assert target["loss"].bandwidth.running.equal(source["loss"].bandwidth.running)
        return
    named = {"median": "found by the rule 'median'", "mean": "found by the rule 'mean'", 1.5: "given"}
    message = rf"loss\.bandwidth must load bandwidths that are {named[into]}, got a state .* {named[saved]}; make the"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message):
            target.load_state_dict(source.state_dict(), strict=strict)
    assert target["loss"].bandwidth.running.equal(before)


def test_states_from_before_rules_were_saved(samples):
    old = {"bandwidth.running": torch.tensor([1.25], dtype=D)}
    for sigma in (1.0, "median"):
        loss = gkfast.nn.MMDLoss(sigma)
        loss.load_state_dict(old)
        assert loss.bandwidth.running.item() == 1.25
    with pytest.raises(RuntimeError, match=r"bandwidth must load positive bandwidths, got .*; make the"):
        gkfast.nn.MMDLoss(1.0).load_state_dict({"bandwidth.running": torch.zeros(1, dtype=D)})
    # float32 parameters of older versions
    kernel = gkfast.nn.RBF(1.0)
    kernel.load_state_dict({"log_sigma": torch.tensor([2.0]).log()})
    assert kernel.sigma.item() == pytest.approx(2, rel=1e-7)


def test_a_batch_with_infinite_rows_does_not_stay(samples):
    x, y = samples
    loss = gkfast.nn.MMDLoss("median")
    loss(x, y)
    before = loss.bandwidth.running.clone()
    # with so many more than half of the distances are infinite
    broken = torch.cat([torch.full((7, 3), math.inf), x[7:]])
    loss(broken, y)
    assert loss.bandwidth.running.equal(before)


def test_samples_that_do_not_fit_leave_the_bandwidths(samples):
    x, y = samples
    for loss in (gkfast.nn.MMDLoss(), gkfast.nn.KDERatioLoss()):
        for wrong in (x[:1], x[:, :2], x.reshape(12, 1, 3)):
            with pytest.raises(ValueError, match=" must "):
                loss(wrong, y)
        assert not loss.bandwidth.seen


def test_images_are_flattened_by_the_caller():
    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 4, 4), torch.randn(5, 1, 4, 4)
    for loss in (gkfast.nn.MMDLoss(2.0), gkfast.nn.KDERatioLoss(2.0), gkfast.nn.RepulsiveLoss(), gkfast.nn.MMDLoss()):
        with pytest.raises(
            ValueError, match=r"one sample per row, \(N, D\), got shape \(6, 1, 4, 4\); .*flatten\(1\)"
        ):
            loss(x, y)
    value = gkfast.nn.MMDLoss(2.0)(x.flatten(1), y.flatten(1))
    assert value.item() == pytest.approx(float(gkfast.mmd2(x.reshape(6, 16), y.reshape(5, 16), 2.0)), rel=1e-6)
    # a kernel matrix has a meaning for batches, as the function's has
    assert gkfast.nn.RBF(2.0)(x, y[:1]).shape == (6, 1, 4, 4)


def test_a_kernel_of_each_dimension_sees_other_coordinates():
    kernel = gkfast.nn.RBF(1.0, dims=3)
    with pytest.raises(ValueError, match=r"y must have as many coordinates as x \(3\), got 1"):
        kernel(torch.zeros(4, 3), torch.zeros(2, 1))


def test_autocast_of_one_half_sample(samples):
    x, y = samples
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (gkfast.nn.MMDLoss("median"), gkfast.nn.KDERatioLoss("median"), gkfast.nn.RBF(1.0, dims=3)):
            assert loss(x.bfloat16(), y).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
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
        (lambda: gkfast.nn.MMDLoss("mean", scales=()), "scales must be a number or a non-empty 1-D sequence"),
        (lambda: gkfast.nn.MMDLoss("mean", momentum=2), r"momentum must lie in \[0, 1\]"),
        (lambda: gkfast.nn.MMDLoss(estimator="x"), "estimator must be one of biased, unbiased"),
        (lambda: gkfast.nn.MMDLoss(1.0, root=True), "estimator must be biased where root is True"),
        (lambda: gkfast.nn.RepulsiveLoss(lower=4.0, upper=1.0), "lower and upper must be squared distances"),
        (lambda: gkfast.nn.ArticleRegularizer(form="square"), "form must be log_ratio or literal"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
