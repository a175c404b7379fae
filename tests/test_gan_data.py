"""The data, the noise, the networks and the metrics, each against numbers known beforehand."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gkfast.gan import data, generate_data, metrics, networks


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
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -"):
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


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int16, np.float16])
def test_file_is_flattened_and_split(tmp_path, dtype):
    array = np.arange(30 * 4).reshape(30, 2, 2).astype(dtype)
    np.save(tmp_path / "mine.npy", array)
    mine = data.load(str(tmp_path / "mine.npy"))
    assert (mine.name, mine.shape) == ("mine", (2, 2))
    assert [len(part) for part in (mine.train, mine.validation, mine.test)] == [21, 3, 6]
    assert mine.train.dtype == torch.float32
    assert rows(torch.cat([mine.train, mine.validation, mine.test])) == rows(torch.tensor(array).float().flatten(1))


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
        case "archive":
            with open(path, "wb") as file:
                np.savez(file, good)
        case "empty file":
            path.touch()
        case "not numpy":
            path.write_text("1,2\n3,4\n")


BAD_FILES = {
    "missing": 'must be "digits", "ring" or an existing .npy file',
    "one axis": r"must hold an array of shape \(N, D\.\.\.\), got shape \(30,\)",
    "text": "must hold real numbers, got dtype <U",
    "bool": "must hold real numbers, got dtype bool",
    "complex": "must hold real numbers, got dtype complex128",
    "objects": "must be a .npy file of plain numbers",
    "nan": "must hold finite float32 numbers, got 1 that are not",
    "too large": "must hold finite float32 numbers, got 60 that are not",
    "few rows": "must hold at least 20 rows, got 19",
    "no columns": r"must hold at least one number per row, got shape \(30, 0\)",
    "constant": "must hold rows that differ, got 30 equal ones",
    "archive": "must be a .npy file, got an .npz archive",
    "empty file": "must be a .npy file of plain numbers",
    "not numpy": "must be a .npy file of plain numbers",
}


@pytest.mark.parametrize(("kind", "message"), BAD_FILES.items())
def test_bad_file_is_refused_in_one_sentence(tmp_path, kind, message):
    path = tmp_path / "bad.npy"
    save(kind, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        data.load(str(path))
    assert "\n" not in str(refusal.value)


def test_networks_fit_the_data():
    for real in (data.digits(), data.ring()):
        D = real.train.shape[1]
        samples = networks.generator(real, 5)(generate_data(64, 5))
        assert samples.shape == (64, D)
        assert networks.discriminator(real)(real.train[:7]).shape == (7, 1)
    # 4 hidden units per number, between 64 and 1024
    assert [networks.width(d) for d in (data.digits(), data.ring())] == [256, 64]


def test_generator_starts_in_the_units_of_the_data():
    x = 1e4 + 500 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mine = data.Data("mine", x, x, x, (3,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = networks.generator(mine, 4)(generate_data(500, 4))
        d = networks.discriminator(mine)(x)
    assert abs(samples.mean() - 1e4) < 1000
    assert d.abs().max() < 10


def test_mode_metrics_of_a_perfect_and_of_a_collapsed_ring():
    perfect = metrics.mode_metrics(data.ring_centres().repeat(100, 1))
    assert perfect == {"modes": 8, "strict_modes": 8, "high_quality": 1.0, "reverse_kl": pytest.approx(0, abs=1e-12)}
    collapsed = metrics.mode_metrics(data.ring_centres()[:1].repeat(800, 1))
    assert collapsed == {"modes": 1, "strict_modes": 1, "high_quality": 1.0, "reverse_kl": pytest.approx(math.log(8))}


def test_mode_metrics_count_only_good_samples():
    centres = data.ring_centres()
    # just inside 3 standard deviations, and just outside
    inside, outside = centres * (1 + 0.0299), centres * (1 + 0.0301)
    mixed = metrics.mode_metrics(torch.cat([inside[:4].repeat(10, 1), outside.repeat(40, 1), inside[4:]]))
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
    real = metrics.class_metrics(digits.train, digits.train, digits.train_labels)
    assert real["classes"] == 10
    assert real["class_kl"] < 1e-3
    zeros = digits.train_labels == 0
    one = metrics.class_metrics(digits.train[zeros], digits.train, digits.train_labels)
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
