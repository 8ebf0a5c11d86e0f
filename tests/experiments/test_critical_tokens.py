"""Sums with a carry against all answers, written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lm import critical_tokens

RNG = np.random.default_rng(0)
BASE, DIGITS = 2, 2
END = BASE * BASE  # the pair that is no digits


def test_success_and_penalty_are_sums_over_all_answers():
    sums = critical_tokens.task(BASE, DIGITS)
    shape = (*sums.read.shape[:3], 2 * BASE + 1)
    p, ref = np.asarray(jax.nn.softmax(RNG.normal(size=(2, *shape))))
    weights = RNG.random(shape[:3])

    def right(pairs):
        mass, carry = 1.0, 0
        for place, pair in enumerate(pairs):
            token = pair // BASE + pair % BASE + carry
            mass, carry = mass * p[place, pair, carry, token], int(token >= BASE)
        return mass * p[DIGITS, END, carry, 2 * BASE]

    def penalty(pairs, place=0, carry=0, mass=1.0):
        here = place, (*pairs, END)[place], carry
        own = mass * weights[here] * np.sum(p[here] * np.log(p[here] / ref[here]))
        texts = range(2 * BASE) if place < DIGITS else ()
        return own + sum(
            penalty(pairs, place + 1, int(token >= BASE), mass * p[here][token]) for token in texts
        )

    problems = list(itertools.product(range(BASE * BASE), repeat=DIGITS))
    each = np.array([right(pairs) for pairs in problems])
    log_p = jnp.log(p)
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-12)
    close(critical_tokens.success(sums, log_p, DIGITS), each.mean())
    close(np.sort(critical_tokens.of_prompts(sums, log_p)), np.sort(each))
    paid = critical_tokens.paid(sums, log_p, jnp.log(ref), jnp.asarray(weights))
    close(paid.sum(), np.mean([penalty(pairs) for pairs in problems]))
