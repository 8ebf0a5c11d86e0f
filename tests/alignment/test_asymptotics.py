import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import optimize

from jdiv import generators
from jdiv.alignment import asymptotics, tilts

KL = generators.kl()
RNG = np.random.default_rng(0)


@functools.cache
def compiled(f):
    return jax.jit(f)


def test_cumulants_are_derivatives_of_the_generating_function():
    mpmath.mp.dps = 40
    ref, rewards, t = RNG.dirichlet(np.ones(5)), RNG.normal(size=5), 0.7
    function = lambda t: mpmath.log(
        sum(mpmath.mpf(q) * mpmath.exp(t * r) for q, r in zip(ref, rewards, strict=True))
    )
    derivatives = [float(mpmath.diff(function, t, k)) for k in (1, 2, 3, 4)]
    target = tilts.tilted(jnp.asarray(rewards), jnp.log(ref), 1 / t, generator=KL)
    np.testing.assert_allclose(
        asymptotics.cumulants(jnp.asarray(rewards), target.log_policy), derivatives, rtol=1e-10
    )
    assert t * target.normalizer == pytest.approx(float(function(t)), rel=1e-13)


def test_the_renyi_cross_entropy():
    mpmath.mp.dps = 40
    p, q = RNG.dirichlet(np.ones(4), 2)
    orders = np.array([-3.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-7, 2.0, 60.0])
    expected = []
    for t in map(mpmath.mpf, orders):
        if t == 1:
            expected.append(-(p @ np.log(q)))
        else:
            total = sum(mpmath.mpf(a) * mpmath.mpf(b) ** (t - 1) for a, b in zip(p, q, strict=True))
            expected.append(float(mpmath.log(total / mpmath.fsum(map(mpmath.mpf, p))) / (1 - t)))
    same = lambda x: jnp.broadcast_to(jnp.log(x), (7, 4))
    got = compiled(asymptotics.renyi_cross_entropy)(same(p), same(q), jnp.asarray(orders))
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    zero = jnp.log(jnp.array([[0.5, 0.5, 0.0, 0.0]] * 7))
    got = compiled(asymptotics.renyi_cross_entropy)(same(p), zero, jnp.asarray(orders))
    assert np.isinf(got).tolist() == [t <= 1 for t in orders]
    assert got[5] == pytest.approx(-np.log((p[0] + p[1]) / 2))


def test_the_rate_is_the_legendre_transform():
    """Cramér: `J(x) = sup_s (s x - log sum ref e^(s r))`."""
    ref, rewards = RNG.dirichlet(np.ones(5)), RNG.normal(size=5)
    levels = np.quantile(rewards, [0.3, 0.6, 0.9])
    found = compiled(jax.vmap(asymptotics.rate_function, (None, None, 0)))(
        jnp.asarray(rewards), jnp.log(ref), jnp.asarray(levels)
    )
    assert found.converged.all()
    for level, measured in zip(levels, found.divergence, strict=True):
        dual = optimize.minimize_scalar(
            lambda s, x=level: np.log(ref @ np.exp(s * (rewards - x))), bracket=(-1, 1), tol=1e-10
        )
        assert measured == pytest.approx(-dual.fun, rel=1e-10)
