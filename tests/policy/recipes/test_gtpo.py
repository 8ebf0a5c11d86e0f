import jax
import jax.numpy as jnp
import numpy as np

from jdiv.policy.recipes.gtpo import conflict_weights, gtpo
from tests.policy.batches import GROUP, ROWS, TOKENS, batch


def conflicts_by_hand(tokens, advantages, mask, places):
    """Weights when completion i's token t stands at places[i, t]."""
    weights = np.ones(tokens.shape)
    where = [{p: t for t, p in enumerate(row)} for row in places]
    for i in range(len(tokens)):
        for t in range(tokens.shape[1]):
            for j in range(len(tokens)):
                other = where[j].get(places[i][t])
                if other is None or not (mask[i, t] and mask[j, other]):
                    continue
                if advantages[i] * advantages[j] < 0 and tokens[i, t] == tokens[j, other]:
                    weights[i, t] = 2.0 if advantages[i] > 0 else 0.0
    return weights


def test_conflict_weights():
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 2, (6, GROUP, TOKENS))
    advantages = rng.choice([-1.0, 0.0, 2.0], (6, GROUP))
    lengths = rng.integers(1, TOKENS + 1, (6, GROUP, 1))
    mask = np.arange(TOKENS) < lengths
    found = conflict_weights(tokens, advantages, mask)
    runs = conflict_weights(tokens, advantages, mask, runs=True)
    starts = np.broadcast_to(np.arange(TOKENS), (GROUP, TOKENS))
    for k in range(6):
        at_start = conflicts_by_hand(tokens[k], advantages[k], mask[k], starts)
        at_end = conflicts_by_hand(tokens[k], advantages[k], mask[k], starts - lengths[k])
        assert np.array_equal(found[k], at_start)
        for i in range(GROUP):
            for t in range(lengths[k, i, 0]):
                expected = 1.0
                if (at_start[i, : t + 1] != 1).all():
                    expected *= at_start[i, t]
                if (at_end[i, t : lengths[k, i, 0]] != 1).all():
                    expected *= at_end[i, t]
                assert runs[k, i, t] == expected
    assert 4.0 in np.asarray(runs)


def test_gtpo_on_a_shared_prefix():
    """Two completions with opposite rewards: the prefix is 0 for GRPO, doubled for GTPO."""
    tokens = jnp.array([[3, 1, 4, 1], [3, 1, 5, 9]])
    mask = jnp.full((2, 4), True)
    advantages = jnp.array([1.0, -1.0])

    def gradient(weights):
        def total(prefix):  # the same two numbers in both
            own = jnp.full((2, 2), -0.7)
            log_probs = jnp.concatenate([jnp.stack([prefix, prefix]), own], axis=1)
            out = gtpo(
                log_probs, jax.lax.stop_gradient(log_probs), jnp.zeros((2, 4)), advantages,
                weights, mask, initial_entropy=1.0, coefficient=0.0,
            )  # fmt: skip
            return jnp.sum(out.loss)

        return jax.grad(total)(jnp.array([-0.5, -1.0]))

    assert np.array_equal(gradient(jnp.ones((2, 4))), [0.0, 0.0])
    weights = conflict_weights(tokens, advantages, mask)
    assert np.array_equal(gradient(weights), [-2.0, -2.0])


def test_gtpo_drops_the_uncertain():
    log_probs, old, advantages, mask = batch(6)
    entropy = np.random.default_rng(7).uniform(0, 1.4, log_probs.shape)
    mean = np.where(mask, entropy, 0).sum(axis=1) / mask.sum(axis=1)
    ones = np.ones_like(log_probs)
    given = (log_probs, old, entropy, advantages, ones, mask)
    certain = gtpo(*given, initial_entropy=0.5)
    free = gtpo(*given, initial_entropy=0.8)
    kept = mean <= np.log(2)
    assert 0 < kept.sum() < ROWS
    assert np.array_equal(certain.aux.kept, kept)
    assert np.asarray(free.aux.kept).all()
    gain = advantages - 0.1 * mean
    expected = np.where(mask, -gain[:, None] * np.exp(log_probs - old), 0)
    assert np.allclose(free.loss, expected)
    assert np.allclose(certain.loss, np.where(kept[:, None], expected, 0))
    # Why log 2: no distribution without a majority has less entropy.
    p = np.random.default_rng(8).dirichlet(np.full(3, 0.5), 5000)
    level = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    assert (p.max(axis=1)[level < np.log(2)] > 0.5).all()


def test_groups_are_the_same_everywhere(same_everywhere):
    rng = np.random.default_rng(12)
    tokens = rng.integers(0, 2, (8, GROUP, TOKENS))
    log_probs, old, entropy = rng.uniform(-2, 0, (3, 8, GROUP, TOKENS))
    advantages = rng.choice([-1.0, 2.0], (8, GROUP))
    mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (8, GROUP, 1))

    def lose(tokens, log_probs, old, entropy, advantages, mask):
        weights = conflict_weights(tokens, advantages, mask, runs=True)
        return gtpo(log_probs, old, entropy, advantages, weights, mask, initial_entropy=0.5).loss

    same_everywhere(lose, tokens, log_probs, old, entropy, advantages, mask)
