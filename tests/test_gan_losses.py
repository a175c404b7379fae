"""The GAN losses against formulas written out by hand, in float64."""

import math
import subprocess
import sys

import pytest
import torch

import gkfast
import gkfast.nn
from gkfast.gan import (
    LOSSES,
    compute_distance,
    discriminator_loss,
    gan_loss,
    generator_loss,
    log_kde_ratio,
    losses,
    mmd,
    objective,
    objectives,
    similarity,
)

# float64 throughout: what is left is rounding
TOLERANCE = {"rtol": 1e-12, "atol": 1e-13}


def points(n, seed, dims=3):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def k(a, b, sigma):
    """One kernel value, spelled out."""
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * sigma**2))


def test_compute_distance_is_the_kernel_matrix():
    x, y = points(4, 0), points(3, 1)
    K = torch.tensor([[k(a, b, 0.8) for b in y] for a in x], dtype=torch.float64)
    torch.testing.assert_close(compute_distance(x, y, 0.8), K, **TOLERANCE)


def test_similarity_is_the_kernel_of_each_pair():
    x, y = points(5, 0), points(5, 1)
    s = torch.tensor([k(a, b, 1.3) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(similarity(x, y, 1.3), s, **TOLERANCE)
    torch.testing.assert_close(similarity(x[0], y[0], 1.3), s[0], **TOLERANCE)
    torch.testing.assert_close(torch.from_numpy(similarity(x.numpy(), y.numpy(), 1.3)), s, **TOLERANCE)


def test_similarity_wants_pairs():
    with pytest.raises(ValueError, match=r"x and y must have the same shape, got \(4, 3\) and \(5, 3\)"):
        similarity(points(4, 0), points(5, 0), 1.0)


def test_losses_from_logits_are_the_cross_entropies():
    real, fake = points(6, 0)[:, 0], points(6, 1)[:, 0]
    D = lambda d: [1 / (1 + math.exp(-v)) for v in d.tolist()]  # noqa: E731
    expected_d = -sum(map(math.log, D(real))) / 6 - sum(math.log(1 - p) for p in D(fake)) / 6
    expected_g = -sum(map(math.log, D(fake))) / 6
    assert discriminator_loss(real, fake).item() == pytest.approx(expected_d, rel=1e-12)
    assert generator_loss(fake).item() == pytest.approx(expected_g, rel=1e-12)


def test_losses_from_logits_stay_finite():
    far = torch.tensor([1e4, -1e4])
    assert discriminator_loss(far, far).item() == pytest.approx(1e4)
    assert generator_loss(far).item() == pytest.approx(5e3)


def test_mmd_is_unbiased_and_averaged_over_the_bandwidths():
    g, x, sigmas = points(5, 0), points(4, 1), [0.5, 2.0]
    expected = 0.0
    for s in sigmas:
        gg = sum(k(a, b, s) for i, a in enumerate(g) for j, b in enumerate(g) if i != j) / (5 * 4)
        xx = sum(k(a, b, s) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (4 * 3)
        gx = sum(k(a, b, s) for a in g for b in x) / (5 * 4)
        expected += (gg + xx - 2 * gx) / len(sigmas)
    assert mmd(g, x, sigmas).item() == pytest.approx(expected, rel=1e-11)


def test_log_kde_ratio_is_its_formula():
    g, x, sigmas = points(5, 0), points(7, 1), [0.6, 1.5]
    expected = 0.0
    for s in sigmas:
        for i, a in enumerate(g):
            q = sum(k(a, b, s) for j, b in enumerate(g) if j != i) / 4
            p = sum(k(a, b, s) for b in x) / 7
            expected += s**2 * (math.log(q) - math.log(p)) / 5 / len(sigmas)
    assert log_kde_ratio(g, x, sigmas).item() == pytest.approx(expected, rel=1e-11)


def test_gradient_of_log_kde_ratio_is_the_scaled_difference_of_scores():
    g, x, sigma = points(6, 0).requires_grad_(), points(8, 1), 0.9
    log_kde_ratio(g, x, [sigma]).backward()

    def score(at, data):
        """grad log sum_j k = mean shift / sigma^2, the others held constant."""
        weights = torch.tensor([k(at, b, sigma) for b in data], dtype=torch.float64)
        return ((weights[:, None] * data).sum(0) / weights.sum() - at) / sigma**2

    d = g.detach()
    expected = torch.stack([score(d[i], torch.cat([d[:i], d[i + 1 :]])) - score(d[i], x) for i in range(6)])
    torch.testing.assert_close(g.grad, sigma**2 / 6 * expected, **TOLERANCE)


def test_gan_loss_is_the_cross_entropy():
    y = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    d = torch.tensor([0.9, 0.2, 0.4, 0.7], dtype=torch.float64)
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.3)) / 4
    assert gan_loss(y, d).item() == pytest.approx(expected, rel=1e-14)


def test_gan_loss_takes_certain_discriminators():
    d = torch.tensor([0.0, 1.0], requires_grad=True)
    # right and certain costs nothing, wrong and certain the clamped 100
    assert gan_loss(torch.tensor([0.0, 1.0]), d).item() == 0
    wrong = gan_loss(torch.tensor([1.0, 0.0]), d)
    assert wrong.item() == 100
    wrong.backward()
    assert d.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-3, 0.7, 1e3])
def test_literal_term_is_exactly_zero(dtype, sigma):
    y, d = torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.3, 0.6], dtype=dtype)
    x = (4096 + 100 * points(11, 0)).to(dtype).requires_grad_()
    assert gan_loss(y, d, fake=x, sigma=sigma, lam=7.0) == gan_loss(y, d)
    (dx,) = torch.autograd.grad(gan_loss(y, d, fake=x, sigma=sigma, lam=7.0), x)
    assert (dx == 0).all()


def test_log_ratio_adds_lambda_times_the_ratio():
    y, d, g, x = torch.ones(3), torch.tensor([0.3, 0.6, 0.9]), points(6, 0), points(8, 1)
    loss = gan_loss(y, d, fake=g, real=x, sigma=0.9, lam=2.5, regularizer="log_ratio")
    expected = gan_loss(y, d).item() + 2.5 * log_kde_ratio(g, x, [0.9]).item()
    # the cross-entropy is float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": torch.ones(3)}, r"y and d must have the same shape, got \(2,\) and \(3,\)"),
        ({"regularizer": "kde"}, 'regularizer must be "literal" or "log_ratio", got \'kde\''),
        ({"lam": 1.0}, "fake and sigma must be given when lam is not 0, got None"),
        ({"lam": 1.0, "fake": torch.ones(2, 2)}, "fake and sigma must be given"),
        (
            {"lam": 1.0, "fake": torch.ones(2, 2), "sigma": 1.0, "regularizer": "log_ratio"},
            'real must be given for regularizer="log_ratio"',
        ),
        # labels of another convention, and a logit
        ({"y": torch.tensor([1.0, -1.0])}, r"y must lie in \[0, 1\], got values from -1 to 1; label real samples 1"),
        ({"d": torch.tensor([0.5, 3.0])}, r"d must lie in \[0, 1\], got values from 0.5 to 3; end D with a sigmoid"),
        ({"d": torch.tensor([0.5, math.nan])}, r"d must lie in \[0, 1\], got values from nan"),
    ],
)
def test_gan_loss_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        gan_loss(**{"y": torch.ones(2), "d": torch.ones(2), **arguments})


def test_objectives_are_made_of_the_losses():
    g, x, sigmas = points(6, 0), points(8, 1), [0.5, 1.0]
    assert objective("gan", sigmas).kernel is None
    assert objective("gan+mmd", sigmas, 3.0).lam == 3.0
    assert objective("gan+mmd", sigmas).kernel(g, x) == mmd(g, x, sigmas)
    only = objective("mmd", sigmas)
    assert only.discriminator is None
    assert only.generator is None
    ratio = objective("gan+logkde", sigmas).kernel(g, x)
    assert ratio.item() == pytest.approx(log_kde_ratio(g, x, sigmas).item() / ((0.25 + 1) / 2), rel=1e-12)


def linear(weight):
    """A critic whose outputs are products with a matrix."""
    return lambda samples: samples @ weight


def test_names_are_made_of_parts():
    assert [objectives.split_name(name) for name in ("gan", "mmd", "rpgan+mmd", "repulsive+gmmn")] == [
        ("gan", None),
        (None, "mmd"),
        ("rpgan", "mmd"),
        ("repulsive", "gmmn"),
    ]
    assert len(set(LOSSES)) == len(LOSSES) == 4 + 4 + 5 + 8 * 6
    assert [objectives.without_kernel(name) for name in ("hinge+mmd", "mmd", "smmd+logkde", "rpgan")] == [
        "hinge",
        "gan",
        "gan",
        "rpgan",
    ]
    assert [objectives.default_lam(name) for name in ("gan", "mmd", "gan+mmd")] == [0, 1, 30]


def test_article_is_the_gan_with_nothing_added():
    article = objective("article+literal", [1.0])
    x, g, D = points(6, 0), points(6, 1), linear(points(3, 2)[:, :1])
    # the article averages over both halves at once
    torch.testing.assert_close(article.discriminator(D, x, g), discriminator_loss(D(x), D(g)) / 2, **TOLERANCE)
    torch.testing.assert_close(article.generator(D, x, g), generator_loss(D(g)), **TOLERANCE)
    assert article.kernel(x, g) == 0


def test_relativistic_loss_is_its_formula():
    winner, loser = points(5, 0)[:, :1], points(5, 1)[:, :1]
    pairs = zip(winner[:, 0].tolist(), loser[:, 0].tolist(), strict=True)
    expected = sum(math.log(1 + math.exp(lost - won)) for won, lost in pairs) / 5
    assert losses.relativistic_loss(winner, loser).item() == pytest.approx(expected, rel=1e-12)
    goal, D = objective("rpgan", [1.0]), linear(points(3, 2)[:, :1])
    x, g = points(5, 3), points(5, 4)
    assert goal.discriminator(D, x, g) == losses.relativistic_loss(D(x), D(g))
    assert goal.generator(D, x, g) == losses.relativistic_loss(D(g), D(x))


def test_relativistic_loss_pairs_its_rows():
    with pytest.raises(ValueError, match=r"must have the same shape, got \(3, 1\) and \(3,\); give as many of each"):
        losses.relativistic_loss(torch.zeros(3, 1), torch.zeros(3))


def test_labels_are_floats():
    for y in (torch.tensor([1, 0]), torch.tensor([True, False])):
        with pytest.raises(
            TypeError, match=r"y must hold floating-point numbers, got torch\..*; cast it with .float"
        ):
            gan_loss(y, torch.tensor([0.5, 0.5]))


def test_gan_loss_keeps_its_graph_whole():
    y, d = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.2], [0.5, 0.25]])
    each = [gan_loss(*pair) for pair in zip(y, d, strict=True)]
    torch.testing.assert_close(torch.vmap(gan_loss)(y, d), torch.stack(each))
    compiled = torch.compile(gan_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y[0], d[0]), each[0])


def test_a_discriminator_may_return_numbers_without_an_axis():
    x, g, weight = points(6, 0), points(6, 1), points(3, 2)[:, :1]
    for name in ("gan", "rpgan", "hinge", "article"):
        goal = objective(name, [1.0], r1=3.0)
        flat, column = (goal.discriminator(D, x, g) for D in (lambda s: (s @ weight)[:, 0], linear(weight)))
        torch.testing.assert_close(flat, column, **TOLERANCE)
        flat, column = (goal.generator(D, x, g) for D in (lambda s: (s @ weight)[:, 0], linear(weight)))
        torch.testing.assert_close(flat, column, **TOLERANCE)


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    # (0 + 0.5 + 2) / 3 and (0 + 1) / 2
    assert losses.hinge_discriminator_loss(real, fake).item() == pytest.approx(2.5 / 3 + 0.5)
    assert losses.hinge_generator_loss(fake).item() == 1.5


def test_gradient_penalty_of_a_quadratic_critic():
    x, weight = points(7, 0), points(3, 1)

    def critic(samples):
        return torch.stack([samples.square().sum(1), (samples @ weight).sum(1)], dim=1)

    # |2 x|^2 + |sum of the columns|^2
    expected = (4 * x.square().sum(1)).mean() + weight.sum(1).square().sum()
    torch.testing.assert_close(losses.gradient_penalty(critic, x), expected, **TOLERANCE)


def test_penalties_are_added_to_the_discriminators_loss():
    x, g, weight = points(6, 0), points(6, 1), points(3, 2)[:, :1]
    D = linear(weight)
    goal = objective("rpgan", [1.0], r1=3.0, r2=5.0)
    expected = losses.relativistic_loss(D(x), D(g)) + (3 + 5) / 2 * weight.square().sum()
    torch.testing.assert_close(goal.discriminator(D, x, g), expected, **TOLERANCE)
    assert goal.generator(D, x, g) == losses.relativistic_loss(D(g), D(x))


def test_gmmn_is_the_root_of_the_biased_mmd():
    g, x, sigmas = points(5, 0), points(4, 1), [0.5, 2.0]
    squared = sum(gkfast.mmd2(g, x, s, estimator="biased") for s in sigmas) / 2
    expected = (squared + 1e-8).sqrt()
    torch.testing.assert_close(objective("gmmn", sigmas).kernel(g, x), expected, **TOLERANCE)


def test_mmdgan_plays_a_zero_sum_game_on_features():
    x, g, D = points(6, 0), points(6, 1), linear(points(3, 2))
    goal = objective("mmdgan", [9.0])
    loss = goal.discriminator(D, x, g)
    # the first look at the features sets the bandwidth: their median distance
    median = float(gkfast.median_sigma(D(g), D(x)))
    torch.testing.assert_close(
        -loss, mmd(D(g), D(x), [median * s for s in (1 / 4, 1 / 2, 1, 2, 4)]), rtol=1e-6, atol=0
    )
    assert goal.generator(D, x, g) == -loss
    assert goal.feature_mmd.sigma(D(g), D(x)) == pytest.approx([median * s for s in (1 / 4, 1 / 2, 1, 2, 4)])


@pytest.mark.parametrize(("name", "bounds"), [("repulsive", (0.0, math.inf)), ("bounded", (0.25, 4.0))])
def test_repulsive_critics_are_gkfast_nns(name, bounds):
    x, g, D = points(6, 0), points(6, 1), linear(points(3, 2))
    pairs = gkfast.nn.RepulsiveLoss(lower=bounds[0], upper=bounds[1])
    goal = objective(name, [9.0])
    assert goal.discriminator(D, x, g) == pairs.critic(D(x), D(g))
    torch.testing.assert_close(goal.generator(D, x, g), pairs.generator(D(x), D(g)), **TOLERANCE)


def test_scaled_mmd_by_hand():
    x, g, weight = points(6, 0), points(6, 1), points(3, 2)[:, :1]
    D, goal = linear(weight), objective("smmd", [9.0])
    expected = gkfast.mmd2(D(g), D(x), 1.0) / (1 + weight.square().sum())
    torch.testing.assert_close(goal.generator(D, x, g), expected, **TOLERANCE)
    torch.testing.assert_close(goal.discriminator(D, x, g), -expected, **TOLERANCE)
    # a critic that stretches its features gains nothing but what the kernel sees
    huge = objective("smmd", [9.0]).generator(linear(1e4 * weight), x, g)
    assert 0 <= abs(huge) < 1e-7


def test_bandwidths_of_a_rule_follow_the_steps_and_are_state():
    term = objective("mmd", "median", scales=[0.5, 1.0], momentum=0.5).kernel
    near, far = points(8, 0), 10 * points(8, 1)
    first, second = float(gkfast.median_sigma(near, near)), float(gkfast.median_sigma(far, far))
    term(near, near)
    assert term.sigma(near, near) == pytest.approx([first / 2, first])
    term(far, far)
    mean = (first + second) / 2
    # asking changes nothing
    assert term.sigma(near, near) == term.sigma(near, near) == pytest.approx([mean / 2, mean])
    other = objective("mmd", "median", scales=[0.5, 1.0], momentum=0.5).kernel
    other.load_state_dict(term.state_dict())
    assert other.sigma(near, near) == term.sigma(near, near)


@pytest.mark.parametrize("loss", objectives.KERNELS[:5])
def test_kernel_terms_have_no_units(loss):
    g, x = points(6, 0), points(8, 1)
    small, large = objective(loss, [0.5, 1.0], real=x), objective(loss, [50.0, 100.0], real=100 * x)
    torch.testing.assert_close(large.kernel(100 * g, 100 * x), small.kernel(g, x), **TOLERANCE)


def test_drift_and_landmarks_are_those_of_nn():
    g, x, whole = points(6, 0), points(8, 1), points(20, 2)
    drift = objective("drift", [0.5, 1.0]).kernel(g, x)
    assert drift.item() == pytest.approx(gkfast.nn.DriftLoss([0.5, 1.0])(g, x).item() / ((0.25 + 1) / 2), rel=1e-12)
    term = objective("gan+landmarks", [0.5, 1.0], real=whole).kernel
    expected = gkfast.nn.LandmarkMMDLoss(whole, [0.5, 1.0], landmarks=20)
    assert term(g, x).item() == pytest.approx(expected(g).item(), rel=1e-12)
    # of as many landmarks as rows: the plain biased estimator
    assert expected.mmd2(g).item() == pytest.approx(
        gkfast.mmd2(g, whole, [0.5, 1.0], weights=[0.5, 0.5], estimator="biased").item(), rel=1e-6
    )
    assert term.sigma(g, x) == [0.5, 1.0]


def test_landmarks_need_the_whole_data():
    with pytest.raises(ValueError, match='real must be given for "landmarks", got None'):
        objective("landmarks", [1.0])
    with pytest.raises(ValueError, match='on_features must be False for "landmarks"'):
        objective("gan+landmarks", [1.0], on_features=True, real=points(8, 1))


def test_unknown_objective_is_named():
    with pytest.raises(ValueError, match=r"loss must be an adversary .*, got 'wgan'; did you mean gan\?"):
        objective("wgan", [1.0])


def test_import_leaves_the_extra_alone():
    code = (
        "import sys, gkfast.gan; dir(gkfast.gan); gkfast.gan.train_gan; gkfast.gan.gan_loss; "
        "print([m for m in ('matplotlib', 'sklearn', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
