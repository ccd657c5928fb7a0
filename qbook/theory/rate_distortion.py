"""R(D): the fewest bits per sample that any quantizer, of any dimension, needs for distortion D.

The minimum of I(x; x_hat) runs over conditional distributions p(x_hat | x), test channels, not over
deterministic quantizers Q: no rounding reaches it.  Shannon 1959; Cover & Thomas, Elements of
Information Theory, 2nd ed. 2006, theorem 10.3.2 (Gaussian), 10.3.3 (reverse water-filling).
Rates in bits.  Book: 2.3
"""

import numpy as np


def gaussian_rate(mse, variance=1.0):
    """R(D) = max(0, 0.5 log2(variance / mse)); mse broadcasts, > 0.  6.02 dB per bit."""
    _check_positive(mse=mse, variance=variance)
    return np.maximum(0.0, 0.5 * np.log2(np.asarray(variance) / mse))


def gaussian_mse(rate, variance=1.0):
    """D(R) = variance * 2^(-2 rate); rate broadcasts, >= 0."""
    _check_positive(variance=variance)
    if not np.all(np.asarray(rate) >= 0):
        raise ValueError(f"rate={rate} must not be negative")
    return variance * np.exp2(-2.0 * np.asarray(rate))


def gaussian_test_channel(x, mse, variance, rng):
    """One draw of the optimal channel from x to x_hat, for Gaussian x of mean 0 -> [...] as x.

        x_hat = a x + sqrt(a mse) n,   a = 1 - mse / variance,  n standard normal

    so that E (x - x_hat)^2 = mse and x - x_hat is independent of x_hat: read backwards, x = x_hat +
    noise of variance mse.  rng: numpy.random.Generator.  Raises ValueError unless
    0 < mse <= variance.
    """
    _check_positive(mse=mse, variance=variance)
    if not mse <= variance:
        raise ValueError(f"mse={mse} exceeds variance={variance}; at mse = variance, x_hat is 0")
    x = np.asarray(x, np.float64)
    gain = 1 - mse / variance
    return gain * x + np.sqrt(gain * mse) * rng.standard_normal(x.shape)


def gaussian_mutual_information(x, x_hat):
    """I = -0.5 log2(1 - rho^2) from the sample correlation rho of jointly Gaussian x and x_hat [n].

    Meaningless where the pair is not jointly Gaussian, such as for a quantizer's output.
    """
    rho = np.corrcoef(np.ravel(x), np.ravel(x_hat))[0, 1]
    return float(-0.5 * np.log2(1 - rho**2))


def shannon_lower_bound(dist, mse):
    """h(x) - 0.5 log2(2 pi e mse): at most R(D) for every density, equal for the Gaussian.

    dist: frozen distribution of scipy.stats.  May be negative.  Shannon 1959.
    """
    _check_positive(mse=mse)
    nats = float(dist.entropy())
    return nats / np.log(2) - 0.5 * np.log2(2 * np.pi * np.e * np.asarray(mse))


def reverse_water_filling(variances, mse):
    """The bits of independent Gaussians [n] under one total error -> (mses [n], rates [n]).

    mse: the sum over the components, 0 < mse <= sum(variances).  Every component gets the error
    min(level, variance): those below the water level get no bits.  The level solves
    sum(min(level, variance)) = mse, exactly, by filling the smallest variances first.
    Raises ValueError for an mse outside that range.
    """
    variances = np.asarray(variances, np.float64)
    _check_positive(mse=mse, variances=variances)
    if not mse <= variances.sum() * (1 + 1e-12):
        raise ValueError(f"mse={mse} exceeds the sum of the variances, {variances.sum()}")
    ordered = np.sort(variances)
    drowned = np.append(0.0, np.cumsum(ordered)[:-1])
    # The water level if the k smallest lie below it: the first that does not exceed the next one.
    levels = (mse - drowned) / np.arange(len(ordered), 0, -1)
    holds = levels <= ordered
    level = levels[np.argmax(holds)] if holds.any() else ordered[-1]
    mses = np.minimum(level, variances)
    return mses, gaussian_rate(mses, variances)


def _check_positive(**named):
    for name, value in named.items():
        if not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name}={value} must be positive")
