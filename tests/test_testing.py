"""Reports on losses: against automatic derivatives, our own losses, and planted mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators, testing
from jdiv.estimators import kl_k1, kl_k2, kl_k3
from jdiv.lm import tabular
from jdiv.policy import advantages, clipped, kl_terms, tokens

OWN, OLDER = testing.draw(), testing.draw(lag=0.5)
KL, OTHER, REWARD = testing.kl, testing.reverse_kl, testing.negative_reward
PROBLEMS = {"own": OWN, "older": OLDER}
ROWS = (generators.kl(), generators.jensen_shannon(), generators.get("alpha", alpha=1.7))


# -------------------------------------------------------------------------------- the objectives


def by_name(logits, ref, rewards):
    """Every known objective as a function of the policy's table, and the rows."""
    every = tabular.enumerate_sequences(logits.shape)
    lengths = jnp.asarray(every.lengths, float)
    visits = jax.lax.stop_gradient(jnp.exp(tabular.prefix_log_probs(logits)))
    each = lambda p, q: jax.vmap(lambda p, q: tabular.kl(p[None], q[None]))(p, q)
    mean = functools.partial(tabular.expectation, logits)
    known = (
        tabular.kl(logits, ref),
        tabular.kl(ref, logits),
        visits @ each(logits, ref),
        visits @ each(ref, logits),
        -mean(rewards),
        -mean(rewards / lengths),
        mean(lengths),
        mean(1 / lengths),
        -tabular.entropy(logits),
    )
    return jnp.stack([*known, *(tabular.divergence(logits, ref, generator=row) for row in ROWS)])


def test_objectives_have_the_gradients_of_automatic_derivatives():
    problem = testing.draw(3)
    arrays = problem.logits, problem.ref_logits, problem.rewards
    right = jax.jit(jax.jacrev(by_name))(*arrays)
    found = [f(problem) for f in testing.KNOWN.values()]
    found += [testing._asked(row, problem)[1] for row in ROWS]
    np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-14)


def test_draws_are_those_of_the_lag():
    assert np.array_equal(OWN.logits, OLDER.logits)
    assert np.array_equal(OWN.logits, OWN.old_logits)
    assert not np.array_equal(OLDER.logits, OLDER.old_logits)
    assert OWN.rewards.shape == (15,)
    assert testing.draw(longest=2, vocabulary=4).logits.shape == (4, 4)


# ------------------------------------------------------------------------------- our own losses


def own_losses(log_probs, batch):
    """Losses of jdiv, averaged as a trainer does."""
    old, ref, rewards, mask = batch
    whole = functools.partial(tokens.constant_mean, mask=mask, length=1.0)
    penalty = functools.partial(kl_terms.kl_penalty, log_probs, ref, mask)
    sequence = functools.partial(kl_terms.sequence_kl_penalty, log_probs, ref, mask)
    reinforce = lambda gains: clipped.reinforce(log_probs, gains, mask).loss
    paid = kl_terms.kl_rewards(log_probs, ref, jnp.zeros_like(rewards), mask, coefficient=1.0)
    prefix = {"old_log_probs": old, "log_weight": kl_terms.prefix_log_ratio}
    rloo = advantages.rloo_advantages(rewards[None])[0]
    centered = advantages.grpo_advantages(rewards[None], scale=False)[0]
    clip = functools.partial(clipped.ppo_clip, log_probs, old, rloo, mask)
    return {
        "reward to go, k1": whole(reinforce(tokens.to_go(paid, mask))),
        "sequence, k1": jnp.mean(sequence(estimator=kl_k1)),
        "sequence, k2": jnp.mean(sequence(estimator=kl_k2)),
        "sequence, k3": jnp.mean(sequence(estimator=kl_k3)),
        "sequence, weighted k1": jnp.mean(sequence(estimator=kl_k1, old_log_probs=old)),
        "sequence, weighted k3": jnp.mean(sequence(estimator=kl_k3, old_log_probs=old)),
        "prefixes, k1": whole(penalty(estimator=kl_k1, **prefix)),
        "prefixes, k3": whole(penalty(estimator=kl_k3, **prefix)),
        "tokens, weighted k1": whole(penalty(estimator=kl_k1, old_log_probs=old)),
        "tokens, weighted k3": whole(penalty(estimator=kl_k3, old_log_probs=old)),
        "tokens, k1": whole(penalty(estimator=kl_k1)),
        "tokens, k2": whole(penalty(estimator=kl_k2)),
        "tokens, k3": whole(penalty(estimator=kl_k3)),
        "averaged over each sequence, k1": tokens.sequence_mean(penalty(estimator=kl_k1), mask),
        "RLOO": whole(reinforce(rloo)),
        "RLOO, clipped": whole(clip().loss),
        "RLOO, ratio": whole(clip(low=1.0, high=jnp.inf).loss),
        "Dr. GRPO": whole(reinforce(centered)),
        "averaged over each sequence": tokens.sequence_mean(reinforce(rewards), mask),
    }


@functools.cache
def program():
    """Derivatives of all of them, for both problems; names are noted when it is traced."""
    names = []

    def stacked(log_probs, batch):
        losses = own_losses(log_probs, batch)
        names[:] = losses
        return jnp.stack(list(losses.values()))

    return jax.jit(jax.vmap(jax.jacrev(stacked))), names


@functools.cache
def own_derivatives(problem):
    """Derivatives `[batches, size, T]` by name."""
    kept = {}

    def keep(loss, log_probs, batches):
        derivatives, names = program()
        found = derivatives(*jax.tree.map(jnp.asarray, (log_probs, batches)))
        kept.update(zip(names, np.moveaxis(np.asarray(found), 1, 0), strict=True))
        return np.zeros(log_probs.shape)

    testing.gradient_report(None, KL, problem=PROBLEMS[problem], differentiate=keep)
    return kept


def of_own(name, objective, problem):
    """The report on a loss of jdiv."""

    def look_up(name, log_probs, batches):
        own = np.array_equal(log_probs[batches.mask], batches.old_log_probs[batches.mask])
        return own_derivatives("own" if own else "older")[name]

    where = {"problem": PROBLEMS[problem], "differentiate": look_up}
    return testing.gradient_report(name, objective, tolerance=1e-10, **where)


SAYS = (
    ("own", "reward to go, k1", KL, 1.0),
    ("own", "sequence, k2", KL, 1.0),
    ("own", "sequence, k3", OTHER, 1.0),
    ("own", "tokens, k2", testing.token_kl, 1.0),
    ("own", "tokens, k3", testing.token_reverse_kl, 1.0),
    ("own", "tokens, weighted k1", testing.token_kl, 1.0),
    ("own", "tokens, weighted k3", testing.token_kl, 1.0),
    ("own", "averaged over each sequence, k1", testing.inverse_length, 1.0),
    ("own", "RLOO", REWARD, 1.0),
    ("own", "RLOO, clipped", REWARD, 1.0),
    ("own", "Dr. GRPO", REWARD, 0.5),
    ("own", "averaged over each sequence", testing.negative_reward_per_token, 1.0),
    *((name, f"sequence, weighted {k}", KL, 1.0) for name in PROBLEMS for k in ("k1", "k3")),
    *((name, f"prefixes, {k}", KL, 1.0) for name in PROBLEMS for k in ("k1", "k3")),
)


@pytest.mark.parametrize(("problem", "name", "objective", "times"), SAYS)
def test_our_losses_have_the_gradients_that_their_docstrings_say(problem, name, objective, times):
    report = of_own(name, objective, problem)
    assert report.asked.aside < 1e-12
    assert report.asked.factor == pytest.approx(times, rel=1e-12)
    assert report.leak == 0
    start = "The" if times == 1 else f"{times} times the"
    assert report.message == f"{start} gradient of {report.asked.name}."


@pytest.mark.parametrize("name", ["sequence, k1", "tokens, k1"])
def test_k1_as_a_loss_has_no_gradient(name):
    report = of_own(name, KL, "own")
    assert report.message == "No gradient: those of the samples cancel, as E[grad log pi] = 0."
    assert report.length == 0
    assert not report.gradient.any()
    assert np.isnan(report.nearest.cosine)


ON_POLICY_ALONE = (
    ("sequence, k2", KL), ("reward to go, k1", KL), ("RLOO, clipped", REWARD),
    ("RLOO, ratio", REWARD),
)  # fmt: skip


@pytest.mark.parametrize(("name", "objective"), ON_POLICY_ALONE)
def test_what_is_right_on_policy_alone_is_told_so(name, objective):
    assert "from samples of the policy itself; from those of an older one not" in (
        of_own(name, objective, "older").message
    )


# ----------------------------------------------------------------------------- planted mistakes


def sums(x, mask):
    return np.where(mask, x, 0).sum(axis=1)


def ratio(log_probs, batch):
    return np.exp(sums(log_probs - batch.old_log_probs, batch.mask))


def policy_loss(log_probs, batch, *, mask=None):
    """Right: the gradient of -E[reward], on- and off-policy."""
    within = batch if mask is None else batch._replace(mask=mask)
    return -np.mean(ratio(log_probs, within) * batch.rewards)


def kl_loss(log_probs, batch):
    """Right on-policy: the gradient of KL(pi‖ref)."""
    return np.mean(sums(log_probs - batch.ref_log_probs, batch.mask) ** 2) / 2


def missing_ratio(log_probs, batch):
    return -np.mean(sums(log_probs, batch.mask) * batch.rewards)


def clamped_ratio(log_probs, batch):
    return -np.mean(np.minimum(ratio(log_probs, batch), 1.5) * batch.rewards)


def wrong_direction(log_probs, batch):
    log_ratio = sums(batch.ref_log_probs - log_probs, batch.mask)
    return np.mean(np.exp(log_ratio) - 1 - log_ratio)


def detached(log_probs, batch):
    return kl_loss(batch.old_log_probs, batch)


def mean_over_each(log_probs, batch):
    return -np.mean(sums(log_probs, batch.mask) / batch.mask.sum(axis=1) * batch.rewards)


def shifted(log_probs, batch):
    return policy_loss(log_probs, batch, mask=np.roll(batch.mask, 1, axis=1))


def not_masked(log_probs, batch):
    """Right at the tokens, and beside them a sum of all places."""
    return policy_loss(log_probs, batch) + np.where(batch.mask, 0, log_probs).sum()


def without_the_end(log_probs, batch):
    """The last token of each sequence is left out: no derivative behind the end tells."""
    inner = np.hstack([batch.mask[:, 1:], np.zeros((len(batch.mask), 1), bool)])
    return policy_loss(log_probs, batch, mask=inner)


def k1_as_a_loss(log_probs, batch):
    return np.mean(sums(log_probs - batch.ref_log_probs, batch.mask))


def counted_twice(log_probs, batch):
    return 2 * kl_loss(log_probs, batch)


def own_token(log_probs, batch):
    k1 = batch.old_log_probs - batch.ref_log_probs
    return np.mean(sums(k1 * log_probs, batch.mask))


def other_sequence(log_probs, batch):
    return policy_loss(log_probs, batch._replace(rewards=batch.rewards[::-1]))


def own_baseline(log_probs, batch):
    return policy_loss(log_probs, batch._replace(rewards=batch.rewards - batch.rewards.mean()))


def clamped_estimate(log_probs, batch):
    log_ratio = sums(log_probs - batch.ref_log_probs, batch.mask)
    return np.mean(np.minimum(log_ratio**2 / 2, 0.5))


WRONG = (
    ("own", lambda *x: -policy_loss(*x), REWARD, "-1 times .*with the wrong sign"),
    ("older", missing_ratio, REWARD, "itself; from those of an older one not, .* ratio pi/old"),
    ("older", clamped_ratio, REWARD, "itself; from those of an older one not, .* clipped"),
    ("own", wrong_direction, generators.kl(), "of KL\\(ref‖pi\\), the other direction; not"),
    ("own", detached, KL, "does not depend on the log-probabilities. Is one detached"),
    ("own", mean_over_each, REWARD, "of -E\\[reward/length\\]; not that of -E\\[reward\\]"),
    ("own", shifted, REWARD, "behind the end of a sequence: the mask is missing or shifted"),
    ("own", not_masked, REWARD, "behind the end of a sequence: the mask is missing or shifted"),
    ("own", without_the_end, REWARD, "Not the gradient of -E\\[reward\\]: cosine"),
    ("own", k1_as_a_loss, KL, "No gradient: those of the samples cancel"),
    ("own", counted_twice, generators.kl(), "^2 times the gradient of KL\\(pi‖ref\\).$"),
    ("own", own_token, KL, "of each next token, the tokens before held fixed; not that of KL"),
    ("own", other_sequence, REWARD, "No gradient: those of the samples cancel"),
    ("own", own_baseline, REWARD, "^0.5 times the gradient of -E"),
    ("own", clamped_estimate, KL, "Not the gradient of KL\\(pi‖ref\\): .* nearest known is"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "loss", "objective", "says"), WRONG, ids=[loss.__name__ for _, loss, *_ in WRONG]
)
def test_planted_mistakes_are_named(problem, loss, objective, says):
    with pytest.raises(AssertionError, match=says):
        testing.assert_gradient_of(
            loss,
            objective,
            problem=PROBLEMS[problem],
            differentiate=testing.by_differences,
        )


def test_without_the_mistakes_they_pass():
    check = functools.partial(
        testing.assert_gradient_of, differentiate=testing.by_differences, tolerance=1e-8
    )
    check(policy_loss, REWARD, problem=OLDER)
    check(kl_loss, generators.kl())
    check(wrong_direction, generators.reverse_kl())
    check(own_baseline, REWARD, times=0.5)
    # An objective of one's own.
    check(lambda *x: policy_loss(*x) + 0.1 * kl_loss(*x), lambda p: REWARD(p) + 0.1 * KL(p))


def test_where_the_objective_has_no_gradient_there_is_to_be_none():
    equal = OWN._replace(ref_logits=OWN.logits)
    check = functools.partial(testing.assert_gradient_of, differentiate=testing.by_differences)
    check(kl_loss, KL, problem=equal)
    with pytest.raises(AssertionError, match="-E"):
        check(missing_ratio, KL, problem=equal)


def test_lengths_tell_which_way_a_step_goes():
    longer = lambda log_probs, batch: (
        -policy_loss(log_probs, batch._replace(rewards=batch.mask.sum(axis=1) * 1.0))
    )
    report = testing.gradient_report(longer, KL, differentiate=testing.by_differences)
    assert report.nearest.name == "E[length]"
    assert report.length == pytest.approx(-np.linalg.norm(testing.length(OWN)), rel=1e-6)


def test_jax_and_differences_agree():
    """On a loss that couples its samples, off-policy, by a mean over all tokens."""

    def token_mean(log_probs, batch):
        weights = batch.mask / batch.mask.sum()
        return (weights * (log_probs - batch.ref_log_probs) ** 2 * batch.rewards[:, None]).sum()

    small = testing.draw(longest=2, lag=0.5)
    in_jax = lambda log_probs, batch: token_mean(
        log_probs, batch._replace(mask=batch.mask.astype(log_probs.dtype))
    )
    found = [
        testing.gradient_report(loss, KL, problem=small, differentiate=how).gradient
        for loss, how in ((in_jax, testing.by_jax), (token_mean, testing.by_differences))
    ]
    np.testing.assert_allclose(*found, rtol=1e-8, atol=1e-10)


class Torch:
    """As much of PyTorch as a loss of its kind needs."""

    def __init__(self, x, requires_grad=False):
        self.x, self.requires_grad, self.grad = np.array(x), requires_grad, None

    tensor = classmethod(lambda cls, x, requires_grad=False: cls(x, requires_grad))
    numpy = lambda self: self.x

    def times(self, weights):
        """The sum of products, whose derivative are the weights."""
        value = Torch(np.sum(self.x * weights.x), self.requires_grad)
        value.backward = lambda: setattr(self, "grad", Torch(weights.x * 1.0))
        return value


def test_a_loss_in_torch_by_the_module_of_the_caller():
    derivative = testing.by_torch(Torch)
    loss = lambda log_probs, batch: log_probs.times(Torch(batch.mask.x * batch.rewards.x[:, None]))
    testing.assert_gradient_of(loss, REWARD, times=-2.0, differentiate=derivative)
    nothing = lambda log_probs, batch: batch.ref_log_probs.times(batch.mask)
    report = testing.gradient_report(nothing, REWARD, differentiate=derivative)
    assert "Is one detached" in report.message


def test_wrong_use_is_refused():
    refused = functools.partial(testing.gradient_report, differentiate=testing.by_differences)
    with pytest.raises(TypeError, match="objective must be a row"):
        refused(kl_loss, "kl")
    with pytest.raises(ValueError, match="finite and of shape"):
        refused(lambda log_probs, batch: np.nan, KL)
    with pytest.raises(ValueError, match="finite and of shape"):
        testing.gradient_report(kl_loss, KL, differentiate=lambda *_: np.zeros(3))
    with pytest.raises(ValueError, match="size must be"):
        refused(kl_loss, KL, size=0)
    with pytest.raises(ValueError, match="problem must have finite logits"):
        refused(kl_loss, KL, problem=OWN._replace(ref_logits=OWN.logits - np.inf))
    with pytest.raises(ValueError, match="lag must be"):
        testing.draw(lag=-1.0)
