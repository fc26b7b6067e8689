"""Paired metrics: known values, an independent SSIM, and what they refuse."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate

from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.psnr import IDENTICAL_DB, psnr
from bitbrush.bench.metrics.ssim import ssim

Images = NDArray[np.uint8]
ImageMetric = Callable[[Images, Images], NDArray[np.float64]]
IMAGE_METRICS: list[ImageMetric] = [image_mse, psnr, ssim]


def noisy_pairs(count: int = 3, *, amplitude: int = 20, seed: int = 0) -> tuple[Images, Images]:
    """Smooth images and the same with uniform noise: numbers in the range where the metrics are used."""
    rng = np.random.default_rng(seed)
    row = np.linspace(30, 220, 24)
    smooth = (row[:, None] * 0.5 + row[None, :18] * 0.5)[None, :, :, None] + rng.uniform(-25, 25, size=(count, 1, 1, 3))
    noise = rng.integers(-amplitude, amplitude + 1, size=(count, 24, 18, 3))
    return smooth.clip(0, 255).astype(np.uint8), (smooth + noise).clip(0, 255).astype(np.uint8)


def slow_ssim(x: Images, y: Images) -> float:
    """SSIM of one pair from the definition: a full 2-d window, centred moments, every position by itself."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        a, b = x[..., channel].astype(float), y[..., channel].astype(float)
        means = correlate(a, window)[5:-5, 5:-5], correlate(b, window)[5:-5, 5:-5]
        for i, j in np.ndindex(*means[0].shape):
            m1, m2 = means[0][i, j], means[1][i, j]
            d1, d2 = a[i : i + 11, j : j + 11] - m1, b[i : i + 11, j : j + 11] - m2
            v1, v2, c = (window * d1 * d1).sum(), (window * d2 * d2).sum(), (window * d1 * d2).sum()
            values.append((2 * m1 * m2 + c1) * (2 * c + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2)))
    return float(np.mean(values))


def test_ssim_agrees_with_its_definition() -> None:
    reference, candidate = noisy_pairs()
    expected = [slow_ssim(x, y) for x, y in zip(reference, candidate, strict=True)]
    np.testing.assert_allclose(ssim(reference, candidate), expected, rtol=1e-9)


def test_errors_of_known_size() -> None:
    black = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    white, gray = np.full_like(black, 255), np.full_like(black, 51)
    np.testing.assert_allclose(image_mse(black, white), 1.0)
    np.testing.assert_allclose(image_mse(black, gray), 0.04)
    np.testing.assert_allclose(psnr(black, white), 0.0, atol=1e-12)
    np.testing.assert_allclose(psnr(black, gray), 13.979400086720377)
    np.testing.assert_allclose(ssim(black, white), 6.5025 / (255**2 + 6.5025))


def test_one_pixel_channel_is_seen() -> None:
    reference = np.full((1, 64, 64, 3), 100, dtype=np.uint8)
    candidate = reference.copy()
    candidate[0, 5, 6, 1] += 1
    assert image_mse(reference, candidate)[0] == 1 / (255**2 * 64 * 64 * 3)
    assert psnr(reference, candidate)[0] < IDENTICAL_DB


def test_identical_pairs() -> None:
    images, _ = noisy_pairs()
    assert image_mse(images, images).tolist() == [0.0] * 3
    assert psnr(images, images).tolist() == [IDENTICAL_DB] * 3
    assert ssim(images, images).tolist() == [1.0] * 3


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_each_pair_by_itself_and_either_way_round(metric: ImageMetric) -> None:
    reference, candidate = noisy_pairs()
    values = metric(reference, candidate)
    assert values.shape == (3,)
    assert values.dtype == np.float64
    assert values.tolist() == [metric(reference[i : i + 1], candidate[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(metric(candidate, reference), values, rtol=1e-12)


@pytest.mark.parametrize(("metric", "sign"), [(image_mse, 1), (psnr, -1), (ssim, -1)])
def test_more_noise_is_worse(metric: ImageMetric, sign: int) -> None:
    little, much = (metric(*noisy_pairs(amplitude=amplitude)) for amplitude in (5, 50))
    assert np.all(sign * (much - little) > 0)


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_images_that_do_not_fit_are_refused(metric: ImageMetric) -> None:
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 16, 16, 3\), candidate \(1, 16, 16, 3\)"):
        metric(images, images[:1])  # numpy would broadcast it
    with pytest.raises(ValueError, match=r"\(16, 16, 3\) and \(16, 16, 3\)"):
        metric(images[0], images[0])
    with pytest.raises(ValueError, match=r"\(2, 0, 16, 3\)"):
        metric(images[:, :0], images[:, :0])
    with pytest.raises(ValueError, match="uint8"):
        metric(images, images.astype(np.float32))  # type: ignore[arg-type]


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    images = np.zeros((1, 10, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(images, images)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_latent_mse(dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    reference, candidate = rng.normal(size=(2, 3, 4, 8, 8)).astype(dtype)
    expected = [np.mean((x.astype(float) - y.astype(float)) ** 2) for x, y in zip(reference, candidate, strict=True)]
    values = latent_mse(reference, candidate)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert latent_mse(reference, reference).tolist() == [0.0] * 3


def test_latent_mse_keeps_a_broken_pair_apart() -> None:
    reference = np.zeros((3, 4, 8, 8), dtype=np.float32)
    candidate = reference.copy()
    reference[1], candidate[1, 0, 0, 0] = np.inf, np.inf
    candidate[2, 0, 0, 0] = np.nan
    assert np.isfinite(latent_mse(reference, candidate)).tolist() == [True, False, False]


def test_latents_that_do_not_fit_are_refused() -> None:
    latents = np.zeros((2, 4, 8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\), candidate \(2, 1, 8, 8\)"):
        latent_mse(latents, latents[:, :1])
    with pytest.raises(ValueError, match=r"\(8, 8\) and \(8, 8\)"):
        latent_mse(latents[0, 0], latents[0, 0])
    with pytest.raises(ValueError, match="int64"):
        latent_mse(latents, latents.astype(np.int64))  # type: ignore[arg-type]
