"""Wrong arguments of every function of the package, and NaN in what is right."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import generators
from jdiv.mdp import environments
from jdiv.policy import (
    advantages,
    awr,
    clipped,
    dppo,
    kl_terms,
    metrics,
    mpo,
    ppo,
    ratio_weights,
    reps,
    selection,
    tabular,
    tokens,
    trpo,
)
from jdiv.policy import regularized_gradient as rpg
from jdiv.policy.recipes import (
    ace,
    aer,
    anchored_policy_optimization,
    arlcp,
    asymmetric_po,
    difficulty,
    dler,
    dmpo,
    dot,
    dph_rl,
    entropy_mechanism,
    fg_expo,
    grpo_care,
    grpo_lambda,
    gtpo,
    haepo,
    ibro,
    lp_reg,
    rapo,
    recap,
    safe,
    spae,
    tpo,
)
from tests.checks import domains, refused, silent

NAN = np.nan
RNG = np.random.default_rng(0)
NEW = np.log(RNG.uniform(0.2, 0.9, (2, 3)))
OLD = NEW + RNG.normal(size=(2, 3)) / 9
PAID = np.array([1.5, -0.5])
MASK = np.array([[True, True, True], [True, True, False]])
LOGITS, OTHERS = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
REWARDS = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
RATES, HALVES = np.array([0.25, 0.5]), np.array([0.5, 0.5])

# Wrong values of a number: also a word, and one for each token or category in place of each row.
WORD, EACH = "a few", np.ones(3)
POSITIVE = [0.0, -1.0, np.inf, NAN, WORD, EACH]
NOT_NEGATIVE = [-0.5, np.inf, NAN, WORD, EACH]
SHARE = [-0.1, 1.5, NAN, WORD, EACH]
BOUNDS = {name: [-0.5, NAN, WORD, EACH] for name in ("low", "high")}

SAMPLED = {"log_probs": NEW, "old_log_probs": OLD, "advantages": PAID, "mask": MASK}
CHANGED = {"log_ratio": NEW - OLD, "advantages": OTHERS}
WEIGHED = {**CHANGED, "mask": MASK}
REFERRED = {"log_probs": NEW, "ref_log_probs": OLD, "mask": MASK}
ROW = {"coefficient": 0.1, "generator": generators.kl()}
PENALIZED = {"log_probs": NEW, "old_log_probs": OLD, "rewards": PAID, "mask": MASK, **ROW}
GAINS = {**SAMPLED, **ROW}
WEIGHTED = {"coefficient": NOT_NEGATIVE, "generator": ["kl", None]}
SHAPES = {
    "old_log_probs": [OLD[:1], None],
    "advantages": [EACH, "up"],
    "mask": [MASK[:1], 2 * MASK],
}
MDP = environments.chain(length=3, slip=0.1)
PAIR = np.full((3, 2), 0.5)
ANCHORED = {**SAMPLED, "log_coverage": NEW, "old_log_coverage": OLD}
ENTROPIES = {"entropy": -OLD, "weights": np.ones((2, 3)), "initial_entropy": 1.0}
KEY = jax.random.key(0)


def quadratic_step(radius, damping=0.0, slope=1.0, **options):
    """TRPO with two parameters."""
    return trpo.trpo_step(
        lambda x: slope * jnp.sum(x), lambda x: jnp.sum(x * x), jnp.zeros(2), radius,
        damping=damping, **options,
    ).parameters  # fmt: skip


def gradient_ascent(step_size):
    """One step of it."""
    return tabular.update(MDP, tabular.gradient_ascent(step_size), jnp.zeros((3, 2)))


def natural_ascent(step_size):
    """One step of it."""
    return tabular.update(MDP, tabular.natural_ascent(step_size), jnp.zeros((3, 2)))


def control(state_kl=0.1, kl=0.2, reward=1.0, phase=1.0):
    """The threshold of SAFE."""
    state = safe.SafeState(*(jnp.asarray(x, float) for x in (state_kl, 0.0, 0.0, 0.0, 0.0)))
    return safe.safe_control(state, kl, reward, phase=phase)[1]


def test_losses_of_tokens():
    domains(
        (clipped.clipped_surrogate, {"log_ratio": NEW, "advantages": OLD, "low": 0.2, "high": 0.2},
         {**BOUNDS, "ceiling": [0.5, NAN], "advantages": [PAID]}),
        (clipped.ppo_clip, SAMPLED, {**BOUNDS, **SHAPES}),
        (clipped.gspo, SAMPLED, BOUNDS),
        (clipped.cispo, {**SAMPLED, "high": 2.0}, BOUNDS),
        (clipped.vespo, SAMPLED, SHAPES),
        (clipped.dual_clip, SAMPLED, {**BOUNDS, "ceiling": [0.5, NAN, WORD]}),
        (clipped.sapo, SAMPLED, {"positive": POSITIVE[:-1], "negative": POSITIVE[:-1]}),
        (clipped.gmpo, SAMPLED, BOUNDS), (clipped.luspo, SAMPLED, BOUNDS),
        (clipped.dro, SAMPLED, {"beta": POSITIVE}),
        (clipped.importance, SAMPLED, {"ceiling": [0.5, NAN, WORD]}),
        (clipped.off_policy_masked, SAMPLED, {**BOUNDS, "threshold": NOT_NEGATIVE}),
        (ratio_weights.clipped, {**CHANGED, "low": 0.2, "high": 0.2},
         {**BOUNDS, "ceiling": [0.5, NAN], "advantages": [PAID]}),
        (ratio_weights.cispo, {**CHANGED, "high": 2.0}, BOUNDS),
        (ratio_weights.sapo, CHANGED, {"positive": POSITIVE[:-1], "negative": POSITIVE[:-1]}),
        (ratio_weights.dro, CHANGED, {"beta": POSITIVE}),
        (ratio_weights.gspo, WEIGHED, BOUNDS), (ratio_weights.luspo, WEIGHED, BOUNDS),
        (ratio_weights.gmpo, WEIGHED, BOUNDS),
        (ratio_weights.importance, WEIGHED, {"ceiling": [0.5, NAN, WORD]}),
        (ratio_weights.off_policy_masked, WEIGHED, {**BOUNDS, "threshold": NOT_NEGATIVE}),
        (ratio_weights.vespo, WEIGHED, {"mask": [MASK * 2]}),
        (dppo.dppo, {**SAMPLED, "divergence": -OLD, "threshold": 0.1},
         {"threshold": [-0.5, NAN, WORD, EACH], "ceiling": [0.5, NAN], "divergence": [EACH]}),
        (dppo.dppo_weight, {**CHANGED, "divergence": -OLD, "threshold": 0.1},
         {"threshold": [-0.5, NAN, WORD, EACH], "ceiling": [0.5, NAN]}),
        (dppo.binary_divergence, {"log_probs": NEW, "old_log_probs": OLD,
                                  "generator": generators.kl()},
         {"generator": ["kld"], "old_log_probs": [PAID]}),
        (tokens.constant_weights, {"mask": MASK, "length": 2.0}, {"length": POSITIVE}),
        (tokens.token_weights, {"mask": MASK}, {"mask": [MASK * 2, None]}),
        (tokens.sequence_weights, {"mask": MASK}, {"mask": [MASK * 2]}),
        (tokens.bnpo_weights, {"mask": MASK[None]}, {"mask": [MASK[None] * 2]}),
        (clipped.reinforce, {"log_probs": NEW, "advantages": PAID, "mask": MASK},
         {"log_probs": ["new"], "mask": [MASK * 2]}),
        (kl_terms.kl_rewards, {**REFERRED, "rewards": PAID, "coefficient": 0.1},
         {"coefficient": NOT_NEGATIVE, "estimator": ["k3"], "rewards": [EACH, np.array([1, 2])]}),
        (kl_terms.kl_penalty, REFERRED, {"estimator": ["k3", None], "ref_log_probs": [OLD[:1]]}),
        (kl_terms.sequence_kl_penalty, REFERRED, {"estimator": ["k3"]}),
        (kl_terms.linear_k3, {"log_p": NEW, "log_q": OLD, "limit": 2.0},
         {"limit": [0.0, -1.0, 1e4, NAN, WORD]}),
        (kl_terms.clamped_log_ratio, {"log_ratio": NEW, "ceiling": 2.0},
         {"ceiling": [0.0, -1.0, np.inf, NAN, WORD]}),
        (ppo.ppo_kl, {**SAMPLED, "coefficient": 0.1}, {"coefficient": NOT_NEGATIVE}),
        (ppo.adapt_coefficient, {"coefficient": 1.0, "kl": RATES, "target": 0.1},
         {"coefficient": NOT_NEGATIVE[:-1], "target": POSITIVE[:-1]}),
        (awr.awr_weights, {"advantages": OLD, "temperature": 1.0},
         {"temperature": POSITIVE, "limit": [0.0, NAN, WORD, EACH]}),
        (awr.awr, {"log_probs": NEW, "advantages": PAID, "mask": MASK, "temperature": 1.0},
         {"temperature": POSITIVE, "limit": [-1.0]}),
        (rpg.rpg, PENALIZED, WEIGHTED),
        (rpg.rpg, {**PENALIZED, "total": 1.5}, {"total": POSITIVE}),
        (rpg.rpg_reinforce, {**PENALIZED, "total": 1.5}, {**WEIGHTED, "total": POSITIVE}),
        (rpg.regularized_advantages, GAINS, WEIGHTED),
        (rpg.rpg_reinforce_clip, {**GAINS, "total": 1.5},
         {**WEIGHTED, **BOUNDS, "ceiling": [0.5, NAN], "total": POSITIVE}),
        (tokens.constant_mean, {"x": NEW, "mask": MASK, "length": 2.0},
         {"length": POSITIVE, "x": ["x", PAID], "mask": [MASK * 2, None]}),
        (tokens.token_mean, {"x": NEW, "mask": MASK}, {"x": [clipped.ppo_clip(**SAMPLED)]}),
        (advantages.batch_advantages, {"returns": NEW, "mask": MASK}, {"mask": [MASK[0]]}),
    )  # fmt: skip


def test_groups_and_recipes():
    correct = {"correct": REWARDS, "lengths": 9 + REWARDS, "reflections": 60 + OTHERS}
    domains(
        (advantages.grpo_advantages, {"rewards": REWARDS}, {"rewards": [EACH, 3 * MASK, "r"]}),
        (advantages.rloo_advantages, {"rewards": REWARDS}, {"rewards": [EACH]}),
        (advantages.mean_of_others, {"rewards": REWARDS}, {"rewards": [REWARDS[:, :1]]}),
        (ace.ace_advantages, {"advantages": PAID, "log_ratio": PAID}, {"alpha": NOT_NEGATIVE}),
        (aer.aer_coefficients, {"accuracy": RATES, "scale": 2.0, "rho": 1.0},
         {"accuracy": [-RATES, 9 * RATES, NAN * RATES], "scale": NOT_NEGATIVE[:-1],
          "rho": NOT_NEGATIVE}),
        (aer.aer_scale, {"scale": 1.0, "entropy": RATES, "initial_entropy": 1.0, "step_size": 0.1},
         {"scale": [-1.0, NAN], "initial_entropy": [-1.0], "target": [-1.0],
          "step_size": [-1.0, NAN]}),
        (anchored_policy_optimization.anchored_policy_optimization, ANCHORED,
         {**BOUNDS, "push": NOT_NEGATIVE, "pull": NOT_NEGATIVE}),
        (arlcp.arlcp_rewards, correct,
         {"lengths": [-REWARDS], "reflections": [-1 - REWARDS], "correct": [EACH, 3 * MASK]}),
        (difficulty.kl_to_optimum, {"accuracy": 0.3, "beta": 1.0},
         {"accuracy": SHARE[:-2], "beta": POSITIVE[:-2]}),
        (difficulty.kl_from_optimum, {"accuracy": 0.3, "beta": 1.0},
         {"accuracy": SHARE[:-2], "beta": POSITIVE[:-2]}),
        (difficulty.learnability, {"accuracy": 0.3, "beta": 1.0},
         {"accuracy": SHARE[:-2], "beta": POSITIVE[:-2]}),
        (dler.dler_rewards, {"rewards": REWARDS, "lengths": 9 * REWARDS, "limit": 5.0},
         {"limit": POSITIVE, "lengths": [-REWARDS, EACH]}),
        (dler.dler_advantages, {"rewards": REWARDS}, {"rewards": [EACH]}),
        (asymmetric_po.dads_weights, {"correct": REWARDS}, {"correct": [2.0 * REWARDS, EACH]}),
        (asymmetric_po.stcr_advantages,
         {"advantages": OTHERS, "correct": REWARDS, "lengths": 9 * REWARDS},
         {"correct": [2.0 * REWARDS, EACH], "lengths": [-REWARDS, EACH],
          "coefficient": NOT_NEGATIVE, "advantages": [EACH]}),
        (dmpo.dmpo_target, {"rewards": REWARDS, "temperature": 1.0},
         {"rewards": ["r", 1.0], "temperature": POSITIVE}),
        (dmpo.dmpo_loss, {"log_probs": NEW, "rewards": RATES, "mask": MASK, "temperature": 1.0},
         {"rewards": [EACH], "temperature": POSITIVE}),
        (dot.truncated_lengths, {"correct": REWARDS, "lengths": 9 * REWARDS},
         {"correct": [2.0 * REWARDS, EACH], "lengths": [-REWARDS, EACH], "scale": NOT_NEGATIVE,
          "margin": NOT_NEGATIVE}),
        (grpo_care.care_bonus, {"rewards": REWARDS, "confidence": REWARDS / 2},
         {"rewards": [EACH], "confidence": [9 * REWARDS, EACH], "coefficient": NOT_NEGATIVE,
          "margin": NOT_NEGATIVE, "threshold": NOT_NEGATIVE, "ceiling": SHARE}),
        (ibro.information_bottleneck, {"entropy": -NEW, "advantages": PAID, "mask": MASK},
         {"advantages": [EACH]}),
        (recap.recap_weights, {"losses": np.exp(NEW[:, :2])},
         {"losses": [NEW[:, :2], EACH], "temperature": POSITIVE}),
        (dph_rl.dph_rl_penalty, {"log_probs": NEW, "ref_log_probs": OLD, "solved": MASK,
                                 "generator": generators.kl()},
         {"solved": [MASK * 2, MASK[0]], "generator": ["kl"], "log_probs": [PAID]}),
        (entropy_mechanism.predicted_entropy_change,
         {"log_policy": jax.nn.log_softmax(LOGITS), "change": OTHERS},
         {"log_policy": [np.zeros((2, 3)), LOGITS], "change": [EACH]}),
        (entropy_mechanism.kl_cov, SAMPLED, {"share": SHARE, "coefficient": NOT_NEGATIVE}),
        (entropy_mechanism.clip_cov, {**SAMPLED, "key": KEY},
         {**BOUNDS, "share": SHARE, "lowest": [6.0, NAN], "highest": [0.5, NAN]}),
        (fg_expo.fg_expo_weights, {"accuracy": RATES, "width": 0.3},
         {"width": [0.0, NAN, EACH], "accuracy": [-RATES]}),
        (fg_expo.fg_expo_coefficient, {"accuracy": RATES, "low": 0.1, "high": 0.2},
         {"low": [-1.0, NAN], "high": [0.05, NAN, np.inf], "accuracy": [9 * RATES]}),
        (grpo_lambda.grpo_lambda_rewards, {"correct": REWARDS, "penalized": OTHERS, "share": 0.5},
         {"share": SHARE[:-1], "correct": [EACH]}),
        (gtpo.conflict_weights, {"tokens": np.array(MASK, int), "advantages": PAID, "mask": MASK},
         {"advantages": [EACH], "mask": [MASK * 2, MASK[:1]]}),
        (gtpo.gtpo, {**SAMPLED, **ENTROPIES},
         {"initial_entropy": [-1.0, NAN], "coefficient": [-1.0, NAN, EACH],
          "threshold": [-1.0, NAN], "advantages": [EACH]}),
        (haepo.haepo, {"log_probs": PAID, "ref_log_probs": PAID, "rewards": RATES},
         {"entropy_weight": NOT_NEGATIVE, "kl_weight": NOT_NEGATIVE}),
        (lp_reg.min_p_proxy, {"logits": LOGITS}, {"kappa": SHARE}),
        (lp_reg.lp_reg, {**SAMPLED, "proxy_log_probs": OLD},
         {**BOUNDS, "share": SHARE, "coefficient": NOT_NEGATIVE}),
        (rapo.rapo_penalty, {"log_probs": PAID, "ref_log_probs": PAID, "weights": RATES},
         {"weights": [-RATES, EACH]}),
        (safe.softmin, {"values": OTHERS}, {"temperature": POSITIVE, "axis": [5]}),
        (safe.safe_penalty, {"kl": RATES, "entropy": RATES, "threshold": 0.1},
         {"threshold": [-1.0, NAN], "entropy": [-RATES]}),
        (safe.safe_penalty_asymmetric, {"kl": RATES, "old_kl": RATES}, {"steps": [0.0, NAN]}),
        (control, {}, {"phase": [0.0, -1.0, NAN]}),
        (spae.step_potential, {"correctness": RATES, "confidence": RATES},
         {"correctness": [-RATES], "confidence": [9 * RATES]}),
        (spae.spae_advantages,
         {"advantages": PAID, "potential": OTHERS, "damping": 0.5, "shaping": 1.0},
         {"saturation": [NAN, EACH], "damping": SHARE, "shaping": [np.inf, NAN],
          "advantages": [EACH]}),
        (tpo.group_forward_kl, {"log_probs": OTHERS, "log_target": jax.nn.log_softmax(LOGITS)},
         {"log_target": [LOGITS, EACH]}),
    )  # fmt: skip
    for low, high in ((-0.1, 0.5), (0.5, 0.4), (0.1, 1.5)):
        refused(ValueError, ["from"], lambda low=low, high=high: (
            difficulty.difficulty_filter(REWARDS, low=low, high=high)))  # fmt: skip
    for size in (0, 4, 1.5, "all"):
        refused((TypeError, ValueError), ["size"], lambda size=size: (
            anchored_policy_optimization.support(LOGITS, size=size)))  # fmt: skip
    refused(ValueError, ["share"], lambda: selection.share_of(jnp.array(3), 1.5, jnp.float32))


def test_trust_regions_and_processes():
    rates = np.array([[0.25, 0.75]] * 3)
    domains(
        (mpo.e_step, {"values": OTHERS, "ref_logits": LOGITS, "radius": 0.1, "weights": HALVES},
         {"radius": POSITIVE, "weights": [RATES, -RATES, EACH], "values": ["v", EACH]}),
        (mpo.m_step, {"target_logits": OTHERS, "old_logits": LOGITS, "radius": 0.1},
         {"radius": POSITIVE}),
        (mpo.m_step_loss, {"logits": OTHERS, "target_logits": LOGITS, "old_logits": LOGITS,
                           "coefficient": 1.0}, {"coefficient": NOT_NEGATIVE}),
        (reps.reps, {"mdp": MDP, "ref_logits": PAIR, "radius": 0.1},
         {"radius": POSITIVE[:-1], "ref_logits": [EACH]}),
        (quadratic_step, {"radius": 0.1, "damping": 0.1},
         {"radius": POSITIVE[:-1], "damping": NOT_NEGATIVE[:-1]}),
        (gradient_ascent, {"step_size": 1.0}, {"step_size": POSITIVE[:-1]}),
        (natural_ascent, {"step_size": 1.0}, {"step_size": POSITIVE[:-1]}),
        (tabular.advantages, {"mdp": MDP, "policy": PAIR}, {"policy": [np.log(PAIR), 2 * PAIR]}),
        (tabular.improvement, {"mdp": MDP, "policy": PAIR, "other": rates},
         {"policy": [np.log(PAIR)], "other": [rates - 1, 2 * rates]}),
        (tabular.surrogate, {"mdp": MDP, "policy": PAIR, "other": rates},
         {"other": [np.log(PAIR)]}),
        (tabular.conservative_gain, {"mdp": MDP, "policy": PAIR, "target": rates, "share": 0.5},
         {"share": SHARE[:-1], "target": [rates + 1]}),
        (tabular.safe_mixing, {"mdp": MDP, "policy": PAIR, "target": rates},
         {"target": [np.log(PAIR)]}),
    )  # fmt: skip
    for name, wrong in (
        ("shrink", 1.0),
        ("iterations", 0),
        ("backtracks", -1),
        ("backtracks", 1.5),
    ):
        refused((TypeError, ValueError), [name], lambda name=name, wrong=wrong: (
            quadratic_step(0.1, **{name: wrong})))  # fmt: skip


def test_nan_is_never_swallowed():
    tokens_of = ("log_probs", "old_log_probs", "advantages")
    rewards_of = ("log_probs", "old_log_probs", "rewards")
    weights_of = ("log_ratio", "advantages")
    correct = {"correct": REWARDS, "lengths": 9 + REWARDS, "reflections": 60 + OTHERS}
    flat = {**SAMPLED, "advantages": np.zeros(2)}
    silent(
        (clipped.ppo_clip, SAMPLED, tokens_of), (clipped.ppo_clip, flat, tokens_of),
        (clipped.dual_clip, SAMPLED, tokens_of), (clipped.gspo, SAMPLED, tokens_of),
        (clipped.cispo, {**SAMPLED, "high": 2.0}, tokens_of), (clipped.vespo, SAMPLED, tokens_of),
        (clipped.reinforce, {"log_probs": NEW, "advantages": PAID, "mask": MASK},
         ("log_probs", "advantages")),
        (clipped.sapo, SAMPLED, tokens_of), (clipped.gmpo, SAMPLED, tokens_of),
        (clipped.luspo, SAMPLED, tokens_of), (clipped.dro, SAMPLED, tokens_of),
        (clipped.importance, SAMPLED, tokens_of),
        (clipped.off_policy_masked, SAMPLED, tokens_of),
        *((weight, WEIGHED, weights_of) for weight in (
            ratio_weights.gspo, ratio_weights.luspo, ratio_weights.gmpo, ratio_weights.vespo,
            ratio_weights.importance, ratio_weights.off_policy_masked)),
        (ratio_weights.clipped, {**CHANGED, "low": 0.2, "high": 0.2}, weights_of),
        (ratio_weights.cispo, {**CHANGED, "high": 2.0}, weights_of),
        (ratio_weights.sapo, CHANGED, weights_of), (ratio_weights.dro, CHANGED, weights_of),
        (dppo.dppo, {**SAMPLED, "divergence": -OLD, "threshold": 0.1}, (*tokens_of, "divergence")),
        (dppo.binary_divergence, {"log_probs": NEW, "old_log_probs": OLD,
                                  "generator": generators.kl()}, ("log_probs", "old_log_probs")),
        (kl_terms.kl_rewards, {**REFERRED, "rewards": PAID, "coefficient": 0.1},
         ("log_probs", "ref_log_probs", "rewards")),
        (kl_terms.kl_penalty, {**REFERRED, "old_log_probs": OLD},
         ("log_probs", "ref_log_probs", "old_log_probs")),
        (kl_terms.linear_k3, {"log_p": NEW, "log_q": OLD, "limit": 2.0}, ("log_p", "log_q")),
        (kl_terms.straight_through, {"log_p": NEW, "log_q": OLD}, ("log_p", "log_q")),
        (kl_terms.clamped_log_ratio, {"log_ratio": NEW, "ceiling": 2.0}, ("log_ratio",)),
        (kl_terms.sequence_kl_penalty, {**REFERRED, "old_log_probs": OLD},
         ("log_probs", "ref_log_probs", "old_log_probs")),
        (ppo.ppo_kl, {**SAMPLED, "coefficient": 0.0}, tokens_of),
        (ppo.adapt_coefficient, {"coefficient": 1.0, "kl": RATES, "target": 0.1}, ("kl",)),
        (awr.awr, {"log_probs": NEW, "advantages": PAID, "mask": MASK, "temperature": 1.0},
         ("log_probs", "advantages")),
        (rpg.rpg, PENALIZED, rewards_of), (rpg.rpg_reinforce, PENALIZED, rewards_of),
        (rpg.regularized_advantages, GAINS, tokens_of), (rpg.rpg_reinforce_clip, GAINS, tokens_of),
        (tokens.sequence_mean, {"x": NEW, "mask": MASK}, ("x",)),
        (tokens.to_go, {"token_rewards": NEW, "mask": MASK}, ("token_rewards",)),
        (advantages.batch_advantages, {"returns": NEW, "mask": MASK}, ("returns",)),
        (advantages.grpo_advantages, {"rewards": REWARDS}, ("rewards",)),
        (advantages.rloo_advantages, {"rewards": REWARDS}, ("rewards",)),
        (advantages.mean_of_others, {"rewards": REWARDS}, ("rewards",)),
        (advantages.pass_at_k_rewards, {"rewards": REWARDS, "k": 2}, ("rewards",)),
        (advantages.pass_at_k_advantages, {"rewards": REWARDS, "k": 2}, ("rewards",)),
        (advantages.pass_at_k_grpo_advantages, {"correct": REWARDS, "k": 2}, ("correct",)),
        (advantages.opo_advantages, {"rewards": REWARDS, "lengths": 9 * REWARDS}, ("rewards",)),
        (advantages.optimal_token_advantages,
         {"returns": NEW[None], "weights": -OLD[None], "mask": MASK[None] | True},
         ("returns", "weights")),
        (metrics.pass_at_k, {"correct": REWARDS, "k": 2}, ("correct",)),
        (metrics.max_at_k, {"rewards": REWARDS, "k": 2}, ("rewards",)),
        (metrics.effective_sample_size, {"log_weights": NEW, "mask": MASK}, ("log_weights",)),
        (metrics.sampler_mismatch, {"log_probs": NEW, "old_log_probs": OLD, "mask": MASK},
         ("log_probs", "old_log_probs")),
        (ace.ace_advantages, {"advantages": PAID, "log_ratio": PAID}, ("advantages", "log_ratio")),
        (aer.aer_scale, {"scale": 1.0, "entropy": RATES, "initial_entropy": 1.0, "step_size": 0.1},
         ("entropy",)),
        (anchored_policy_optimization.anchored_policy_optimization, ANCHORED,
         (*tokens_of, "log_coverage", "old_log_coverage")),
        (arlcp.arlcp_rewards, correct, ("correct",)),
        (difficulty.pass_rate, {"rewards": REWARDS}, ("rewards",)),
        (dler.dler_rewards, {"rewards": REWARDS, "lengths": 9 * REWARDS, "limit": 5.0},
         ("rewards", "lengths")),
        (dler.dler_advantages, {"rewards": REWARDS}, ("rewards",)),
        (asymmetric_po.dads_weights, {"correct": REWARDS}, ("correct",)),
        (asymmetric_po.stcr_advantages,
         {"advantages": OTHERS, "correct": REWARDS, "lengths": 9 * REWARDS},
         ("advantages", "correct", "lengths")),
        (dmpo.dmpo_target, {"rewards": REWARDS, "temperature": 1.0}, ("rewards",)),
        (dmpo.dmpo_loss, {"log_probs": NEW, "rewards": RATES, "mask": MASK, "temperature": 1.0},
         ("log_probs", "rewards")),
        (dot.truncated_lengths, {"correct": REWARDS, "lengths": 9 * REWARDS},
         ("correct", "lengths")),
        (grpo_care.answer_likelihood, {"ref_log_probs": NEW, "mask": MASK}, ("ref_log_probs",)),
        (grpo_care.care_bonus, {"rewards": REWARDS, "confidence": REWARDS / 2},
         ("rewards", "confidence")),
        (ibro.information_bottleneck, {"entropy": -NEW, "advantages": PAID, "mask": MASK},
         ("entropy", "advantages")),
        (recap.recap_weights, {"losses": np.exp(NEW[:, :2])}, ("losses",)),
        (entropy_mechanism.predicted_entropy_change,
         {"log_policy": jax.nn.log_softmax(LOGITS), "change": OTHERS}, ("log_policy", "change")),
        (entropy_mechanism.kl_cov, SAMPLED, tokens_of),
        (entropy_mechanism.clip_cov, {**SAMPLED, "key": KEY}, tokens_of),
        (fg_expo.fg_expo_weights, {"accuracy": RATES, "width": 0.3}, ("accuracy",)),
        (fg_expo.fg_expo_coefficient, {"accuracy": RATES, "low": 0.1, "high": 0.2}, ("accuracy",)),
        (grpo_lambda.grpo_lambda_rewards, {"correct": REWARDS, "penalized": OTHERS, "share": 0.5},
         ("correct",)),
        (gtpo.conflict_weights, {"tokens": np.array(MASK, int), "advantages": PAID, "mask": MASK},
         ("advantages",)),
        (gtpo.gtpo, {**SAMPLED, **ENTROPIES}, (*tokens_of, "entropy", "weights")),
        (gtpo.gtpo, {**SAMPLED, **ENTROPIES, "initial_entropy": 0.0, "threshold": 0.1}, tokens_of),
        (haepo.haepo, {"log_probs": PAID, "ref_log_probs": PAID, "rewards": RATES},
         ("log_probs", "ref_log_probs", "rewards")),
        (lp_reg.min_p_proxy, {"logits": LOGITS}, ("logits",)),
        (lp_reg.lp_reg, {**SAMPLED, "proxy_log_probs": OLD}, (*tokens_of, "proxy_log_probs")),
        (rapo.rapo_penalty, {"log_probs": PAID, "ref_log_probs": PAID, "weights": RATES},
         ("log_probs", "ref_log_probs", "weights")),
        (safe.softmin, {"values": OTHERS}, ("values",)),
        (safe.safe_penalty, {"kl": RATES, "entropy": RATES, "threshold": 0.9}, ("kl", "entropy")),
        (safe.safe_penalty_asymmetric, {"kl": RATES, "old_kl": RATES}, ("kl", "old_kl")),
        (control, {}, ()),
        (spae.spae_advantages,
         {"advantages": PAID, "potential": OTHERS, "damping": 0.5, "shaping": 0.0},
         ("advantages", "potential")),
        (tpo.tpo_target, {"old_log_probs": OTHERS, "utilities": LOGITS},
         ("old_log_probs", "utilities")),
        (tpo.group_forward_kl, {"log_probs": OTHERS, "log_target": jax.nn.log_softmax(LOGITS)},
         ("log_probs", "log_target")),
        (selection.kth_largest, {"scores": OTHERS, "eligible": np.full((2, 3), True), "count": 2},
         ("scores",)),
    )  # fmt: skip


def test_nan_in_trust_regions_and_processes():
    rates = np.array([[0.25, 0.75]] * 3)
    steps = ({"mdp": MDP, "policy": PAIR, "other": rates}, ("policy", "other"))
    silent(
        (mpo.e_step, {"values": OTHERS, "ref_logits": LOGITS, "radius": 0.1, "weights": HALVES},
         ("values", "ref_logits", "weights")),
        (mpo.e_step, {"values": OTHERS, "ref_logits": LOGITS, "radius": 9.0}, ("values",)),
        (mpo.m_step, {"target_logits": OTHERS, "old_logits": LOGITS, "radius": 0.1},
         ("target_logits", "old_logits")),
        (mpo.m_step_loss, {"logits": OTHERS, "target_logits": LOGITS, "old_logits": LOGITS,
                           "coefficient": 0.0}, ("logits", "target_logits", "old_logits")),
        (quadratic_step, {"radius": 0.1, "slope": 1.0}, ("slope",)),
        (tabular.improvement, *steps), (tabular.surrogate, *steps),
        (tabular.policy_gradient, {"mdp": MDP, "logits": PAIR}, ("logits",)),
        (tabular.safe_mixing, {"mdp": MDP, "policy": PAIR, "target": rates}, ("policy", "target")),
    )  # fmt: skip
