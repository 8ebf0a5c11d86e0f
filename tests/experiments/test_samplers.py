"""Chains of `decoding/samplers`: rates against a long text, and what tempering of texts means."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.decoding import samplers

P = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
Q = np.array([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8], [0.8, 0.2, 0.0]])
WINDOW = 4


def test_rates_are_those_of_a_long_text():
    with np.errstate(divide="ignore"):
        log_q = np.log(Q)[None]
    config = ConfigDict({"window": WINDOW})
    found = jax.jit(lambda q, p: samplers.rates(config, q, p))(log_q, np.log(P)[None])
    uniform = np.random.default_rng(0).random(200_000)
    text, steps = [0], np.cumsum(Q, axis=1)
    for u in uniform:
        text.append(int(np.searchsorted(steps[text[-1]], u, side="right")))
    text = np.array(text)
    here = text[:-1], text[1:]
    seen = -np.log(Q[here]).mean(), np.log(Q[here] / P[here]).mean()
    again = np.mean([np.mean(text[s:] == text[:-s]) for s in range(1, WINDOW + 1)])
    np.testing.assert_allclose(np.ravel(found), [*seen, again], atol=5e-3)


def test_in_a_tempered_text_cycles_have_tempered_probabilities():
    """The mean of `log q - log p / T` along all cycles is one; not so that of tempered tokens."""
    log_p, x = np.log(P), np.log(1 / 0.6)
    tempered = jax.jit(lambda whole: samplers.tempered_chain(log_p[None], jnp.array([x]), whole))
    cycles = [c for n in (1, 2, 3) for c in itertools.product(range(3), repeat=n)]
    spread = []
    for whole in (1.0, 0.0):
        excess = np.asarray(tempered(whole))[0] - log_p / 0.6
        per_token = [
            np.mean([excess[a, b] for a, b in zip(c, (*c[1:], c[0]), strict=True)]) for c in cycles
        ]
        spread.append(np.ptp(per_token))
    assert spread[0] < 1e-12 < 1e-2 < spread[1]
