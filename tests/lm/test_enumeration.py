"""All answers of a small transformer, against full forward passes over answers written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators
from jdiv.alignment import tilts
from jdiv.lm import enumeration, tabular
from jdiv.lm.config import Config
from jdiv.lm.model import Transformer
from tests.checks import refused

CONFIG = Config(
    vocabulary=4, width=8, layers=2, heads=2, key_heads=1, head_width=4, hidden=8, windows=(None, 3)
)
PROMPT, LONGEST, END = np.array([3, 1, 2]), 3, 1


def written_out():
    """Every answer: it ends with the end token, or is as long as can be."""
    words = (w for n in range(1, LONGEST + 1) for w in itertools.product(range(4), repeat=n))
    return [w for w in words if END not in w[:-1] and (w[-1] == END or len(w) == LONGEST)]


def models(count):
    return [Transformer.random(CONFIG, jax.random.key(i), float) for i in range(count)]


def log_probs_by_forward_passes(model, words):
    """Of each answer, from one pass over the prompt and all of it, without a cache."""
    padded = np.array([[*w, *[0] * (LONGEST - len(w))] for w in words])
    mask = np.array([[1.0] * len(w) + [0.0] * (LONGEST - len(w)) for w in words])
    tokens = np.concatenate([np.tile(PROMPT, (len(words), 1)), padded], axis=1)
    logits = model.logits(model(tokens)[0])[:, len(PROMPT) - 1 : -1]
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), padded[..., None], axis=-1)[..., 0]
    return (each * mask).sum(axis=1)


def test_the_table_is_what_forward_passes_say_and_so_are_gradients():
    model, other = models(2)
    words = written_out()
    rewards = np.random.default_rng(0).normal(size=len(words))
    answers = enumeration.answers(tabular.table_shape(LONGEST, 4), end=END)
    found = [tuple(row[:n]) for row, n in zip(answers.tokens, answers.lengths, strict=True)]
    assert sorted(found) == sorted(words)
    order = [words.index(word) for word in found]

    def objective(log_p, log_q, rewards):
        p = jnp.exp(log_p)
        return p @ rewards - 0.3 * p @ (log_p - log_q)

    def enumerated(model, other):
        log_p, log_q = (
            tabular.sequence_log_probs(enumeration.table(m, PROMPT, longest=LONGEST, end=END))
            for m in (model, other)
        )
        return objective(log_p, log_q, rewards[order]), (log_p, log_q)

    def by_passes(model, other):
        log_p, log_q = (log_probs_by_forward_passes(m, words) for m in (model, other))
        return objective(log_p, log_q, rewards), (log_p, log_q)

    @jax.jit
    def both(model, other):
        return [jax.value_and_grad(f, has_aux=True)(model, other) for f in (enumerated, by_passes)]

    ((value, laws), grads), ((expected, expected_laws), expected_grads) = both(model, other)
    for law, wanted in zip(laws, expected_laws, strict=True):
        assert float(jnp.exp(law).sum()) == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(law, wanted[np.array(order)], rtol=1e-11)
    assert float(value) == pytest.approx(float(expected), rel=1e-11)
    leaves = [jax.tree.leaves(x) for x in (grads, expected_grads)]
    assert max(float(jnp.abs(x).max()) for x in leaves[1]) > 0.01
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_table_of_few_tokens_is_that_part_of_the_whole():
    """Rows of prefixes without the token that is left out, columns of the others."""
    (model,) = models(1)
    whole, few = jax.jit(lambda model: (
        enumeration.table(model, PROMPT, longest=LONGEST, end=END),
        enumeration.table_among(model, PROMPT, indices=np.array([0, 3, END]), longest=LONGEST),
    ))(model)  # fmt: skip
    prefixes = [p for n in range(LONGEST) for p in itertools.product((0, 2, 3), repeat=n)]
    rows = [i for i, prefix in enumerate(prefixes) if 2 not in prefix]
    np.testing.assert_allclose(few, np.asarray(whole)[rows][:, [0, 2, 3]], rtol=1e-11)


def test_an_optimum_over_answers_is_a_model_of_the_same_kind():
    """Its per-token conditionals give its answers their probabilities, for a row that excludes
    answers as well; KL's are those of exponentiated rewards; and no other law is better."""
    ref = np.random.default_rng(1).normal(size=tabular.table_shape(3, 4))
    rewards = 3 * np.random.default_rng(2).normal(
        size=len(tabular.enumerate_sequences(ref.shape)[2])
    )
    beta = 0.7

    @jax.jit
    def optima(ref):
        found = []
        log_ref = tabular.sequence_log_probs(ref)
        for row in (generators.kl(), generators.pearson_chi2()):
            law = tilts.tilted(rewards, log_ref, beta, generator=row).log_policy
            table = tabular.from_sequences(law, ref.shape)
            reward = tabular.expectation(table, rewards)
            cost = tabular.divergence(table, ref, generator=row)
            other = tabular.from_sequences(law + 0.1 * jnp.sin(jnp.arange(len(law))), ref.shape)
            worse = tabular.expectation(other, rewards) - beta * tabular.divergence(
                other, ref, generator=row
            )
            found.append((law, tabular.sequence_log_probs(table), reward - beta * cost, worse))
        return found

    (kl, kl_law, best, worse), (chi2, chi2_law, chi2_best, chi2_worse) = optima(ref)
    np.testing.assert_allclose(kl_law, kl, atol=1e-12)
    assert (chi2 == -np.inf).any()
    np.testing.assert_allclose(np.exp(chi2_law), np.exp(chi2), atol=1e-12)
    log_ref = np.asarray(tabular.sequence_log_probs(ref))
    free = np.log(np.exp(log_ref + rewards / beta).sum())
    assert float(best) == pytest.approx(beta * free, rel=1e-12)
    assert float(best) > float(worse) + 1e-4
    assert float(chi2_best) > float(chi2_worse) + 1e-4


def test_divergences_of_tokens_under_the_policy():
    """Each prefix by the product of probabilities that leads to it; KL obeys the chain rule."""
    logits, ref = np.random.default_rng(3).normal(size=(2, *tabular.table_shape(3, 3)))
    logits[0, 1] = -np.inf  # never written, and prefixes that begin with it never met
    prefixes = [p for n in range(3) for p in itertools.product(range(2), repeat=n)]
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, ref))
    reach = [np.prod([p[prefixes.index(w[:i]), t] for i, t in enumerate(w)]) for w in prefixes]

    @jax.jit
    def everything(logits, ref):
        rows = {"kl": generators.kl(), "hellinger": generators.squared_hellinger()}
        return (
            jnp.exp(tabular.prefix_log_probs(logits)),
            tabular.token_divergence(logits, ref, generator=rows["kl"]),
            tabular.kl(logits, ref),
            tabular.token_divergence(logits, ref, generator=rows["hellinger"]),
            tabular.divergence(logits, ref, generator=rows["hellinger"]),
            tabular.entropy(logits),
        )

    found, by_tokens, kl, hellinger, of_sequences, entropy = everything(logits, ref)
    np.testing.assert_allclose(found, reach, atol=1e-15)
    assert float(by_tokens) == pytest.approx(float(kl), rel=1e-12)
    each = 1 - np.sqrt(p * q).sum(axis=1)
    assert float(hellinger) == pytest.approx(reach @ each, rel=1e-12)
    whole = np.exp(np.asarray(tabular.sequence_log_probs(logits)))
    other = np.exp(np.asarray(tabular.sequence_log_probs(ref)))
    assert float(of_sequences) == pytest.approx(1 - np.sqrt(whole * other).sum(), rel=1e-12)
    kept = whole[whole > 0]
    assert float(entropy) == pytest.approx(-(kept * np.log(kept)).sum(), rel=1e-12)
    unmet = np.full_like(ref, np.inf * -1)
    unmet[:, 0] = 0  # the reference forbids nearly all, also where the policy never comes
    ref[prefixes.index((1,))] = unmet[0]
    unseen = tabular.token_divergence(logits, ref, generator=generators.kl())
    assert np.isfinite(float(unseen))


def test_refusals():
    (model,) = models(1)
    table = lambda prompt, **sizes: enumeration.table(model, prompt, **sizes)
    refused(ValueError, ["tokens", "prompt"], lambda: table(PROMPT[None], longest=2, end=1))
    refused(ValueError, ["end"], lambda: table(PROMPT, longest=2, end=4))
    refused(ValueError, ["longest"], lambda: table(PROMPT, longest=0, end=1))
    among = lambda tokens: enumeration.table_among(model, PROMPT, indices=tokens, longest=2)
    refused(ValueError, ["vocabulary"], lambda: among(np.array([END])))
    refused(TypeError, ["indices"], lambda: among(np.array([0.0, 1.0])))
    refused(ValueError, ["log_weights"], lambda: tabular.from_sequences(jnp.zeros(3), (7, 3)))
