"""Divergences from hidden states: equal to those of all logits, in the memory of one tile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import divergences as dv
from jdiv import generators
from jdiv.divergences import sparse, vocabulary
from jdiv.divergences.vocabulary import FromHidden
from tests.checks import refused
from tests.search import vocabulary as search

KL = generators.kl()


@pytest.mark.parametrize(
    ("name", "size"),
    [("kl", 1), ("kl", 211), ("jensen_shannon", 7), ("total_variation", 211), ("alpha", 211)],
)
def test_it_is_the_plain_divergence(name, size):
    """Values and all gradients; `python -m tests.search.vocabulary` takes every row and size."""
    value, gradient = search.distances(name, size)
    assert value <= 1e-6
    assert gradient <= 1e-5


def arrays(tokens, width, size, dtype, seed=0):
    """Hidden states and heads of two models."""
    rng = np.random.default_rng(seed)
    shapes = (tokens, width), (size, width), (tokens, width), (size, width)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def test_half_precision_adds_up_in_single():
    """Identical models are at 0 exactly; the head's gradient is as good as its type can hold.

    With one token a tile a sum of 600 gradients in bfloat16 would be off by a tenth.
    """
    hidden, head, *ref = arrays(600, 8, 50, jnp.bfloat16)

    @jax.jit
    def both(hidden, head):
        same = vocabulary.divergence(
            generators.jensen_shannon(), FromHidden(hidden, head), FromHidden(hidden, head), tile=7
        )
        total = lambda f: lambda head: jnp.sum(f(FromHidden(hidden, head), FromHidden(*ref)))
        tiled = lambda p, q: vocabulary.divergence(KL, p, q, tile=1)
        wide = lambda p, q: dv.kl(*(
            jnp.dot(h.astype(float), w.astype(float).T) for h, w, *_ in (p, q)
        ))  # fmt: skip
        return same, jax.grad(total(tiled))(head), jax.grad(total(wide))(head)

    same, gradient, exact = both(hidden, head)
    assert same.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(same, 0)
    error = np.asarray(gradient, float) - np.asarray(exact, float)
    assert np.max(np.abs(error)) < 2**-7 * np.max(np.abs(np.asarray(exact, float)))


def losses(seed):
    """Inputs of the two ways to a weighted loss, of eleven tokens of two batches."""
    rng = np.random.default_rng(seed)
    hidden, head, ref_hidden, ref_head = arrays(11, 3, 6, float, seed)
    tokens = rng.integers(0, 6, 11)
    tokens[3] = -100  # the customary mark of a token that is none, masked below
    weights, token_weights = rng.normal(size=(2, 11))
    return dict(hidden=hidden, head=head, ref_hidden=ref_hidden, ref_head=ref_head,
                weights=weights, token_weights=token_weights), tokens  # fmt: skip


def test_a_weighted_loss_is_the_sum_and_has_its_gradients():
    """Gradients made along with the value against those of the plain functions.

    Those that count are in no order, and a whole tile of four is masked.
    """
    given, tokens = losses(0)
    mask = np.isin(np.arange(11), (1, 4, 5, 8, 10))

    @jax.jit
    def both(given):
        def plain(given):
            p, q = given["hidden"] @ given["head"].T, given["ref_hidden"] @ given["ref_head"].T
            of_token = jnp.take_along_axis(jax.nn.log_softmax(p), tokens[:, None] % 6, -1)[:, 0]
            value = given["weights"] * dv.reverse_kl(p, q) - given["token_weights"] * of_token
            return jnp.sum(jnp.where(mask, value, 0))

        def tiled(given):
            p = FromHidden(given["hidden"].at[3].set(jnp.nan), given["head"])
            q = FromHidden(given["ref_hidden"], given["ref_head"])
            loss = vocabulary.weighted_loss(
                generators.swapped(KL), p, q, given["weights"], tokens=tokens,
                token_weights=given["token_weights"], mask=mask, tile=4,
            )  # fmt: skip
            return loss.total, loss

        return jax.value_and_grad(plain)(given), jax.value_and_grad(tiled, has_aux=True)(given)

    (value, gradients), ((total, loss), made) = both(given)
    np.testing.assert_allclose(total, value, rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(made[name], gradient, atol=1e-12, err_msg=name)
    parts = given["weights"] * loss.divergence + given["token_weights"] * loss.cross_entropy
    np.testing.assert_allclose(parts.sum(), value, rtol=1e-12)
    for part in (loss.divergence, loss.cross_entropy):
        np.testing.assert_array_equal(part == 0, ~mask)


def test_scores_of_tokens():
    """Log-probabilities and entropies of a batch `[2, 3]`, against NumPy; a wrong token is NaN.

    With a mask, of which the last tile has nothing, the same where it counts and their gradient.
    """
    hidden, head, *_ = arrays(6, 3, 5, float, seed=1)
    tokens = np.array([[0, 4, 2], [1, 5, -1]])
    p = FromHidden(hidden.reshape(2, 3, 3), head, temperature=2.0)
    scores = jax.jit(lambda p: (vocabulary.log_probs(p, tokens), vocabulary.entropy(p, tile=4)))(p)
    logits = np.asarray(hidden @ head.T).reshape(2, 3, 5) / 2
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, tokens[..., None] % 5, axis=-1)[..., 0]
    expected = np.where((tokens >= 0) & (tokens < 5), chosen, np.nan)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-12)
    np.testing.assert_allclose(scores[1], -(np.exp(log_p) * log_p).sum(-1), rtol=1e-12)

    mask = np.array([[False, True, True], [True, False, False]])
    numbers = np.arange(1.0, 7).reshape(2, 3)

    def masked(head, tile):
        of_each = vocabulary.log_probs(p._replace(head=head), tokens % 5, mask=mask, tile=tile)
        return (numbers * of_each).sum(), of_each

    by_head = jax.jit(
        lambda head: [jax.value_and_grad(masked, has_aux=True)(head, tile) for tile in (2, 6)]
    )
    tiled, whole = by_head(head)
    np.testing.assert_allclose(tiled[0][1], np.where(mask, chosen, 0), rtol=1e-12)
    np.testing.assert_allclose(tiled[1], whole[1], atol=1e-12)


def test_a_teacher_of_k_tokens_or_of_logits():
    """Tile by tile it is `sparse.with_tail`, and the divergence of logits, with their gradients."""
    hidden, head, ref_hidden, ref_head = arrays(5, 3, 8, float, seed=2)
    teacher = ref_hidden @ ref_head.T
    where = np.arange(8) < 7

    @jax.jit
    def both(hidden, teacher):
        masked = jnp.where(where[None], teacher, -jnp.inf)
        top = sparse.top_k(masked, 3)
        p = FromHidden(hidden, head)
        logits = jnp.where(where[None], hidden @ head.T, -jnp.inf)
        return (
            (sparse.with_tail(KL, top, logits), dv.kl(masked, logits),
             sparse.retained_mass(logits, top.indices)),
            (vocabulary.divergence(KL, top, p, where=where, tile=2),
             vocabulary.divergence(KL, teacher, p, where=where, tile=2),
             vocabulary.retained_mass(p, top.indices, where=where, tile=2)),
        )  # fmt: skip

    plain, tiled = both(hidden, teacher)
    for a, b in zip(plain, tiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)

    def total(which, hidden, teacher):
        return sum(x.sum() for x in both(hidden, teacher)[which])

    gradients = [
        jax.jit(jax.grad(functools.partial(total, which), (0, 1)))(hidden, teacher)
        for which in (0, 1)
    ]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_all_tokens_masked():
    """Values and gradients are 0, whatever the hidden states are."""
    hidden, head, ref_hidden, ref_head = arrays(4, 3, 5, float)
    hidden = hidden.at[:].set(jnp.nan)

    def total(hidden, head):
        values = vocabulary.divergence(
            KL, FromHidden(hidden, head), FromHidden(ref_hidden, ref_head), mask=np.zeros(4)[:] > 0
        )
        return values.sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, head)
    for x in (value, *gradients):
        np.testing.assert_array_equal(x, 0)


def compiled(tokens, tile, *, frozen=False):
    """The program of a loss and its gradients, with a vocabulary far larger than the width."""
    hidden, head, ref_hidden, ref_head = arrays(tokens, 8, 4000, np.float32)

    def total(hidden, head):
        p, q = FromHidden(hidden, head), FromHidden(ref_hidden, ref_head)
        return vocabulary.weighted_loss(KL, p, q, 1.0, tile=tile).total

    gradient = jax.grad(total, 0 if frozen else (0, 1))
    return jax.jit(gradient).lower(hidden, head).compile()


def test_memory_follows_the_tile_and_a_frozen_head_costs_nothing():
    """Four times the tokens, the same memory but for the hidden states; and fewer products."""
    small, large = compiled(64, 16), compiled(256, 16)
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
    assert sizes[1] - sizes[0] < 192 * 4000 * 4 / 10
    assert sizes[1] < 256 * 4000 * 4  # one array of all logits
    work = [x.cost_analysis()["flops"] for x in (large, compiled(256, 16, frozen=True))]
    product = 2 * 16 * 8 * 4000  # of a tile; the analysis counts a loop's body once
    assert work[0] - work[1] > 0.9 * product


def test_tiles_are_told():
    assert vocabulary.tiles(1000, 50_257, 128) == (8, 128, 128 * 50_257 * 4)
    assert vocabulary.tiles(10, 10**9).tokens == 1
    assert vocabulary.tiles(10, 100).count == 1


def test_wrong_use_is_refused():
    hidden, head, *_ = arrays(4, 3, 5, float)
    p, top = FromHidden(hidden, head), sparse.top_k(jnp.zeros((4, 5)), 2)
    call = vocabulary.divergence
    refused(ValueError, ["axes of tokens"], lambda: call(KL, p, FromHidden(hidden[:3], head)))
    refused(
        ValueError, ["vocabulary", "p 5, q 4"], lambda: call(KL, p, FromHidden(hidden, head[:4]))
    )
    refused(ValueError, ["head", "width"], lambda: call(KL, p, FromHidden(hidden, head[:, :2])))
    refused(TypeError, ["TopK"], lambda: call(KL, top, top))
    refused(ValueError, ["where", "(5,)"], lambda: call(KL, p, p, where=np.ones((4, 5), bool)))
    refused(ValueError, ["mask", "(4,)"], lambda: call(KL, p, p, mask=np.ones(5, bool)))
    refused(ValueError, ["temperature"], lambda: call(KL, p, p._replace(temperature=0.0)))
    refused(ValueError, ["temperature"], lambda: call(KL, p, p._replace(temperature=np.ones(5))))
    refused(TypeError, ["hidden"], lambda: call(KL, p, FromHidden(np.ones((4, 3), int), head)))
    refused(ValueError, ["tile"], lambda: call(KL, p, p, tile=0))
    refused(TypeError, ["generator"], lambda: call("kl", p, p))
    refused(TypeError, ["tokens", "integers"], lambda: vocabulary.log_probs(p, np.zeros(4)))
    refused(ValueError, ["tokens", "(4,)"], lambda: vocabulary.log_probs(p, np.zeros(3, int)))
