import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv.unlearning import demotion

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7))
LOGITS[0, 0, 3] = -np.inf
TOKENS = RNG.integers(7, size=(3, 5))
DEMOTIONS = np.array([0.0, 0.7, 5.0, np.inf])


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def at(p):
    return np.take_along_axis(p, TOKENS[..., None], axis=-1)


def test_the_target_is_the_closed_form_and_other_ratios_stay():
    target = jax.jit(
        jax.vmap(lambda d: jnp.exp(demotion.demoted_target(LOGITS, TOKENS, demotion=d)))
    )(DEMOTIONS)
    p = softmax(LOGITS)
    for found, d in zip(np.asarray(target), DEMOTIONS, strict=True):
        lowered = at(p) * np.exp(-d)
        np.testing.assert_allclose(at(found), lowered / (1 - at(p) + lowered), rtol=1e-12)
        given_others = lambda x: np.where(np.arange(7) == TOKENS[..., None], 0, x) / (1 - at(x))
        np.testing.assert_allclose(given_others(found), given_others(p), rtol=1e-12)
        assert found[0, 0, 3] == 0


def test_edges_of_the_target():
    one = jnp.zeros((1,), jnp.bfloat16)
    alone = demotion.demoted_target(one, jnp.array(0), demotion=3.0)
    assert (alone.dtype, alone.tolist()) == (jnp.float32, [0.0])
    with pytest.raises(ValueError, match="demotion leaves no token"):
        demotion.demoted_target(one, jnp.array(0), demotion=np.inf)
    traced = jax.jit(lambda x: demotion.demoted_target(x, jnp.array(0), demotion=jnp.inf))(one)
    assert np.isnan(traced).all()
    with pytest.raises(ValueError, match="demotion must be not negative"):
        demotion.demoted_target(one, jnp.array(0), demotion=-1.0)
    with pytest.raises(ValueError, match="tokens must be"):
        demotion.demoted_target(LOGITS, TOKENS[0], demotion=1.0)


@pytest.mark.parametrize("share", [0.0, 0.34, 0.5, 1.0])
def test_positions_are_those_of_least_probability(share):
    log_probs = RNG.normal(size=(4, 6))
    mask = RNG.random((4, 6)) < 0.8
    mask[3] = False
    found = np.asarray(demotion.forget_positions(log_probs, mask, share=share))
    for row, counts, own in zip(log_probs, mask, found, strict=True):
        count = max(1, int(share * counts.sum()))
        least = np.argsort(np.where(counts, row, np.inf))[:count]
        assert set(np.nonzero(own)[0]) == (set(least) if counts.any() else set())
    ties = demotion.forget_positions(jnp.zeros(4), share=0.25)
    assert ties.tolist() == [True] * 4


def test_shred_is_the_divergence_to_its_target():
    """The loss against sums in NumPy; its gradient vanishes at the target, for any k."""
    mask = np.ones(TOKENS.shape, bool)
    mask[1, 2:] = False
    student = np.random.default_rng(7).normal(size=LOGITS.shape)
    options = dict(demotion=1.5, share=0.4)

    @jax.jit
    def compute(student):
        log_p = jax.nn.log_softmax(LOGITS)
        positions = demotion.forget_positions(
            jnp.take_along_axis(log_p, TOKENS[..., None], axis=-1)[..., 0], mask, share=0.4
        )
        target = demotion.demoted_target(LOGITS, TOKENS, demotion=1.5, mask=positions)
        losses, slopes = [], []
        for k in (2, 7):
            loss = lambda x, base=LOGITS, k=k: demotion.shred(x, base, TOKENS, mask, k=k, **options)
            losses.append(loss(student))
            slopes += [jax.grad(lambda x, loss=loss: loss(x).sum())(target)]
            slopes += [jax.grad(lambda base, loss=loss: loss(student, base).sum())(LOGITS)]
        return positions, target, losses, slopes

    positions, target, losses, slopes = jax.tree.map(np.asarray, compute(student))
    p, q = np.exp(target), softmax(student)
    demoted = np.where(positions[..., None], TOKENS[..., None], -1) == np.arange(7)
    expected = softmax(LOGITS - 1.5 * demoted)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    for k, loss in zip((2, 7), losses, strict=True):
        top = np.argsort(-LOGITS, axis=-1)[..., :k]
        parts = [np.take_along_axis(x, top, axis=-1) for x in (p, q)]
        rests = [1 - x.sum(-1, keepdims=True) for x in parts]
        if k < 7:
            parts = [np.concatenate(x, axis=-1) for x in zip(parts, rests, strict=True)]
        ratio = np.log(np.where(parts[0] > 0, parts[0] / parts[1], 1))
        np.testing.assert_allclose(
            loss, np.where(mask, (parts[0] * ratio).sum(-1), 0), rtol=1e-9, atol=1e-15
        )
    assert max(np.abs(x).max() for x in slopes) < 1e-14
