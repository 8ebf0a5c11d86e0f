"""Losses of self-play: what their mean gradient is, by enumeration of all answers.

Nash-MD (Munos et al. 2023, arXiv:2312.00886), SPPO (Wu et al. 2024, arXiv:2405.00675), RSPO
(arXiv:2503.00030), SPIN (Chen et al. 2024, arXiv:2401.01335) and fictitious play, as arXiv:
2404.04291 has it. The papers report language models; here answers are few and all of them are seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import at_least as least
from experiments.lab.axes import each, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_most, between, claim, equals, together
from experiments.lab.plots import Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, generators
from jdiv.games import preferences, self_play
from jdiv.lm import tabular

AXES = {"mixture": fraction, "seed": seeds}
FIELDS = {
    "answers": least(2),
    "beta": positive,
    "step_size": positive,
    "weights": each(non_negative),
    "spin_beta": positive,
    "spin_share": fraction,
    "rounds": least(1600),
}
TOKENS = 3
ITSELF = {"sweep.mixture": (0.0,)}
"""The opponent is the policy, not its mixture with the reference."""


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses a step that is too long for Nash-MD."""
    if config.beta * config.step_size >= 1:
        raise ValueError("config.beta * config.step_size must be below 1")


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """Errors of gradients and updates on one game; fictitious play."""
    of_game, of_laws = jax.random.split(key)
    game = preferences.random_game(config.answers, of_game)
    log_policy, log_ref, log_data = jax.nn.log_softmax(
        jax.random.normal(of_laws, (3, config.answers)), axis=-1
    )
    average, last = fictitious(config)
    rounds = range(config.rounds + 1)
    return {
        "nash_md": of_nash_md(config, point["mixture"], game, log_policy, log_ref),
        "by": of_tokens(),
        "sppo": of_sppo(config, game, log_policy),
        "rspo": of_rspo(config, game, log_policy, log_ref),
        "spin": of_spin(config, log_policy, log_ref, log_data),
        "exploitability": labelled(
            jnp.stack([average, last]), of=("average", "last"), round=rounds
        ),
        "even": jnp.abs(preferences.win_rate(log_policy, game, log_policy) - 0.5),
    }


def of_nash_md(config: ConfigDict, mixture, game, log_policy, log_ref) -> Labelled:
    """Error of the mean gradient, given probabilities to win and given who has won."""
    beta, step_size = config.beta, config.step_size
    share = mixture * beta * step_size
    opponent = self_play.geometric_mixture(log_policy, log_ref, share)
    first, second = (x.ravel() for x in np.indices(game.shape))
    drawn = jnp.exp(log_policy[first] + opponent[second])
    won = game[first, second]

    def mean_loss(logits, outcomes):
        log_probs = jax.nn.log_softmax(logits)[first]
        loss = lambda wins: self_play.nash_md_loss(log_probs, log_ref[first], wins, beta=beta)
        return jnp.sum(drawn * sum(chance * loss(wins) for chance, wins in outcomes))

    one = jnp.ones_like(won)
    outcomes = ((one, won),), ((won, one), (1 - won, 0 * one))
    slopes = jnp.stack([jax.grad(mean_loss)(log_policy, x) for x in outcomes])
    new = self_play.nash_md(log_policy, game, log_ref, beta=beta, step_size=step_size)
    direction, pi = (new - log_policy) / step_size, jnp.exp(log_policy)
    expected = -pi * (direction - pi @ direction)
    error = jnp.max(jnp.abs(slopes - expected[None]), axis=1)
    return labelled(error, given=("probability", "outcome"))


def of_tokens() -> Labelled:
    """Nash-MD's penalty alone on a model of a few tokens: error of its gradient, over its size."""
    logits, ref = np.random.default_rng(0).standard_normal((2, *tabular.table_shape(TOKENS)))
    logits, ref = jnp.asarray(logits), jnp.asarray(ref)
    mask = jnp.asarray(tabular.enumerate_sequences(logits.shape).mask)
    chance = jnp.exp(tabular.sequence_log_probs(logits))

    def loss(log_probs, ref_log_probs):
        even = jnp.full_like(log_probs, 0.5)
        return self_play.nash_md_loss(log_probs, ref_log_probs, even, beta=1.0)

    def by_sequence(x):
        return chance @ loss(tabular.sequence_log_probs(x), tabular.sequence_log_probs(ref))

    def by_token(x):
        each = loss(tabular.token_log_probs(x), tabular.token_log_probs(ref))
        return chance @ jnp.sum(jnp.where(mask, each, 0), axis=1)

    exact = jax.grad(tabular.kl)(logits, ref)
    errors = jnp.stack([jax.grad(f)(logits) - exact for f in (by_sequence, by_token)])
    size = jnp.sqrt(jnp.sum(errors**2, axis=(1, 2)) / jnp.sum(exact**2))
    return labelled(size, log_ratio=("of answers", "of tokens"))


def of_sppo(config: ConfigDict, game, log_policy) -> Array:
    """Derivative of the loss at the update before it is normalized, and the update's error."""
    wins = preferences.answer_win_rates(log_policy, game)
    at = log_policy + config.step_size * (wins - 0.5)
    mean = lambda x: (
        jnp.exp(log_policy) @ self_play.sppo_loss(x, log_policy, wins, step_size=config.step_size)
    )
    update = self_play.sppo(log_policy, game, step_size=config.step_size)
    apart = jnp.max(jnp.abs(jax.nn.log_softmax(at) - update))
    return jnp.maximum(jnp.max(jnp.abs(jax.grad(mean)(at))), apart)


def of_rspo(config: ConfigDict, game, log_policy, log_ref) -> Labelled:
    """Error of the mean gradient at the last policy: with its penalties, and if there were none."""
    step_size, rows = config.step_size, (generators.kl(), generators.reverse_kl())
    penalties = tuple(zip(config.weights, rows, strict=True))
    wins = preferences.answer_win_rates(log_policy, game)

    def mean_loss(logits):
        loss = self_play.rspo_loss(
            jax.nn.log_softmax(logits), log_policy, log_ref, wins,
            step_size=step_size, penalties=penalties,
        )  # fmt: skip
        return jnp.exp(log_policy) @ loss

    def objective(logits, scale):
        pay = sum(w * divergences.f_divergence(row, logits, log_ref) for w, row in penalties)
        return -2 * step_size * preferences.win_rate(logits, game, log_policy) + scale * pay

    slope = jax.grad(mean_loss)(log_policy)
    apart = [slope - jax.grad(objective)(log_policy, scale) for scale in (1.0, 0.0)]
    error = jnp.max(jnp.abs(jnp.stack(apart)), axis=1)
    return labelled(error, penalties=("given", "none"))


def of_spin(config: ConfigDict, log_policy, log_ref, log_data) -> Labelled:
    """Derivatives of the mean loss of real against generated answers, at the update and before."""
    options = {"beta": config.spin_beta, "share": config.spin_share}
    first, second = (x.ravel() for x in np.indices((config.answers,) * 2))
    weight = jnp.exp(log_data[first] + log_policy[second])

    def mean_loss(logits):
        laws = jax.nn.log_softmax(logits), log_policy, log_ref
        pairs = [law[x] for law in laws for x in (first, second)]
        return weight @ self_play.spin_loss(*pairs, **options)

    update = self_play.spin(log_policy, log_data, log_ref, **options)
    slope = jax.vmap(jax.grad(mean_loss))(jnp.stack([update, log_policy]))
    return labelled(jnp.max(jnp.abs(slope), axis=1), at=("update", "last policy"))


def fictitious(config: ConfigDict) -> tuple[Array, Array]:
    """Exploitability of the average and of the last policy of best replies, by round."""
    game = preferences.rock_paper_scissors()

    def reply(_, opponent):
        best = jnp.argmax(preferences.answer_win_rates(opponent, game))
        return jnp.log(jax.nn.one_hot(best, 3, dtype=opponent.dtype))

    start = self_play.first_history(jnp.log(jnp.array(config.start)))
    measure = lambda state: (
        preferences.exploitability(state.log_average, game),
        preferences.exploitability(state.log_policy, game),
    )
    step = lambda state: self_play.fictitious_play(state, reply)
    return self_play.play(step, start, config.rounds, measure)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Fictitious play."""
    gap = results.exploitability.isel(mixture=0, seed=0, round=slice(1, None))
    figure, axis = panels(1, width=6.4, height=3.8)
    for number, of in enumerate(gap.of.values):
        curve(axis, "round", gap.sel(of=of), label=f"{of} policy", **style(number))
    axis.set(xscale="log", yscale="log", xlabel="round", ylabel="exploitability, wins")
    axis.legend()
    return {
        "fictitious_play": Picture(
            figure,
            "Fictitious play of rock-paper-scissors: each policy is the best reply to the average"
            " of all before it and has a reply that wins for certain; the average approaches the"
            " equilibrium.",
        )
    }


ROUNDING = 1e-12
ANY = {"mixture": ..., "seed": ...}


@claim(source="Munos et al. 2023 (arXiv:2312.00886), section 7, Nash-MD-PG", reruns=(ITSELF,))
def nash_md_loss_has_the_step_for_gradient(results: xr.Dataset) -> Finding:
    """Mean over answers of the policy and of the mixture: gradient by the logits less -pi (d -
    <pi, d>), d = (Nash-MD's next log-policy - log pi) / step size, with probabilities to win and
    with outcomes; the policy wins half of the time against itself: largest errors."""
    return together(
        at_most(ROUNDING, results.nash_md.max(("mixture", "seed"))),
        at_most(ROUNDING, results.even.max()),
    )


@claim(
    source="The KL term of the Nash-MD trainer that TRL had (trl/experimental/nash_md), log-ratio"
    " times log-probability of each token; an independent computation",
    reference=0.545,
    wrong=({"tokens": "of answers"},),
    needs=ANY,
)
def tokens_make_another_penalty(results: xr.Dataset, tokens: str = "of tokens") -> Finding:
    """Error of the penalty's mean gradient against that of KL(pi‖ref), over its size, on a model of
    sequences of up to three tokens: 0 with the log-ratio of whole answers; .545 token by token."""
    by = results.by.isel(mixture=0, seed=0)
    return together(
        at_most(ROUNDING, by.sel(log_ratio="of answers")),
        equals(0.545, by.sel(log_ratio=tokens), decimals=3),
    )


@claim(
    source="Wu et al. 2024 (arXiv:2405.00675); RSPO (arXiv:2503.00030), abstract. Reconstructed:"
    " how its penalty is estimated",
    wrong=({"penalties": "none"},),
    needs=ANY,
)
def sppo_and_rspo_descend_what_they_should(
    results: xr.Dataset, penalties: str = "given"
) -> Finding:
    """SPPO: derivative at its update before that is normalized, and the error of the update. RSPO
    at the last policy: gradient less that of -2 s P(pi > pi_k) + sum w D(pi‖ref), s the step size.
    Largest over games."""
    return at_most(ROUNDING, [results.sppo.max(), results.rspo.sel(penalties=penalties).max()])


@claim(
    source="Chen et al. 2024 (arXiv:2401.01335); the closed form is derived here",
    wrong=({"at": "last policy"},),
    needs=ANY,
)
def spin_is_at_rest_at_its_update(results: xr.Dataset, at: str = "update") -> Finding:
    """Derivatives of the mean loss of all pairs of real and generated answers: the largest."""
    return at_most(ROUNDING, results.spin.sel(at=at).max())


@claim(
    source="Brown 1951; arXiv:2404.04291, abstract: an opponent that averages over the policies",
    wrong=({"of": "last"},),
    needs=ANY,
)
def the_average_of_best_replies_converges(results: xr.Dataset, of: str = "average") -> Finding:
    """Exploitability of the average after 1600 rounds, and over that after 100, of which it is at
    most half; of a best reply it is always 1/2."""
    gap = results.exploitability.isel(mixture=0, seed=0)
    late, early = (gap.sel(of=of, round=x) for x in (1600, 100))
    replies = gap.sel(of="last").isel(round=slice(1, None))
    return together(
        between(0, [late, late / early], (0.03, 0.5)),
        equals(0.5, [replies.min(), replies.max()], tolerance=ROUNDING),
    )
