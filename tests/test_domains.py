"""Wrong arguments of planning, games and alignment: refused by name, and NaN where they are traced.

Each table is one compiled program.
"""

import jax
import numpy as np

from jdiv import generators
from jdiv.alignment import (
    a_star_po,
    asymptotics,
    averaging,
    best_of_n,
    f_dpg,
    gshf,
    inference_aware,
    preference,
    q_sharp,
    reference_free,
    rewards,
)
from jdiv.games import preferences, self_play
from jdiv.lm import tabular
from jdiv.mdp import environments, model, occupancy, operators, value_iteration
from tests.checks import domains, silent

NAN, INF, KL = np.nan, np.inf, generators.kl()
NO_WEIGHT = [0.0, -1.0, NAN, INF]
REWARDS = np.array([0.0, 1.0, 0.5])
LOGITS = np.log([0.5, 0.2, 0.3])
OTHER = np.log([0.2, 0.2, 0.6])
FOUR = {
    name: np.array(x)
    for name, x in (
        ("chosen", [-1.0, -3.0]),
        ("rejected", [-2.0, -1.0]),
        ("ref_chosen", [-1.5, -2.5]),
        ("ref_rejected", [-1.5, -2.0]),
    )
}
TWO = {name: FOUR[name] for name in ("chosen", "rejected")}
ONES = (np.ones(2), np.ones(2))
SAMPLED = {"sampled": np.array([[-1.0, -2.0]] * 2), "ref_sampled": np.array([[-1.5, -1.0]] * 2)}
TREE = np.array([[1, 2], [-1, -1], [-1, -1]])
LEAVES = {"children": TREE, "ref_logits": np.zeros((3, 2))}
RPS = np.array([[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
PROBLEM = gshf.LinearProblem(np.eye(3)[None, :, :2], np.array([1.0, 0.5]), LOGITS[None], 0.3)
DATA = gshf.Comparisons(np.array([[1.0, 0], [0, 1], [1, -1]]), np.array([1.0, 0, 1]), np.ones(3))


def aligned(beta, iterations=50):
    slope = lambda law: inference_aware.best_of_n_transform(REWARDS, law, LOGITS, 2)
    return inference_aware.aligned(slope, LOGITS, beta, generator=KL, iterations=iterations)


def regret(beta):
    return gshf.regularized_regret(PROBLEM._replace(beta=beta), LOGITS[None])


def test_alignment():
    answers = {"rewards": REWARDS, "ref_logits": LOGITS}
    draws = {"n": [0.5, NAN, INF]}
    beta = {"beta": NO_WEIGHT}
    plain = (
        preference.dpo, preference.ipo, preference.slic, preference.nca, preference.bco,
        preference.sppo_hard, preference.apo_zero, preference.apo_down, preference.aot,
        preference.aot_unpaired,
    )  # fmt: skip
    losses = [(f, {**FOUR, "beta": 0.3}, beta) for f in plain]
    smoothed = [
        (f, {**FOUR, "beta": 0.3, "label_smoothing": 0.1}, {"label_smoothing": [-0.1, 0.5, NAN]})
        for f in (preference.dpo, preference.robust, preference.exo, preference.aot)
    ]
    domains(
        *losses,
        *smoothed,
        (preference.f_dpo, {**FOUR, "beta": 0.3, "generator": generators.pearson_chi2()}, beta),
        (preference.discopop, {**FOUR, "beta": 0.3}, {"temperature": [0.0, 1.0, NAN], **beta}),
        (preference.h_dpo, {**FOUR, "beta": 0.3, "alpha": 0.5}, {"alpha": NO_WEIGHT, **beta}),
        (preference.bco, {**FOUR, "beta": 0.3, "shift": 0.1}, {"shift": [NAN, INF]}),
        (preference.chi2_po, {**FOUR, "beta": 0.3, "r_max": 1.0},
         {"gamma": [-1.0, NAN], "r_max": NO_WEIGHT[:3]}),
        (preference.rpo, {**FOUR, "beta": 0.3, "coefficient": 0.1}, {"coefficient": [-1.0, NAN]}),
        (preference.hypo, {**FOUR, **SAMPLED, "beta": 0.3, "coefficient": 0.1},
         {"coefficient": [-1.0, NAN]}),
        (preference.sigmoid_norm, {**FOUR, "beta": 0.3, "lengths": ONES},
         {"lengths": [(np.ones(2), np.zeros(2))], **beta}),
        (reference_free.cpo, {**TWO, "beta": 0.3}, {"coefficient": [-1.0, NAN], **beta}),
        (reference_free.simpo, {**TWO, "lengths": ONES, "beta": 0.3, "gamma": 0.1},
         {"gamma": [-0.1, NAN], **beta}),
        (reference_free.alpha_po, {**TWO, "lengths": ONES, "beta": 0.3, "gamma": 0.1, "alpha": 0.2},
         {"alpha": [NAN, INF], "gamma": [-0.1, NAN], **beta}),
        (reference_free.orpo, {**TWO, "lengths": ONES, "coefficient": 0.3},
         {"coefficient": [-1.0, NAN], "chosen": [np.array([0.1, -1.0])]}),
        (preference.xpo, {**FOUR, "sampled": -np.ones(2), "beta": 0.3, "coefficient": 0.1},
         {"coefficient": [-1.0, NAN], **beta}),
        (a_star_po.optimal_value_estimate, {"rewards": REWARDS, "beta": 0.3}, beta),
        (a_star_po.binary_value, {"accuracy": np.array([0.5, 1.0]), "beta": 0.5, "n": 3},
         {"accuracy": [np.array([1.5, 0.5]), np.array([-0.1, 0.5])], "n": [0], **beta}),
        (a_star_po.a_star_po_loss, {"log_probs": LOGITS, "ref_log_probs": OTHER,
         "rewards": REWARDS, "value": REWARDS, "beta": 0.5}, beta),
        (asymptotics.renyi_cross_entropy, {"p_logits": LOGITS, "q_logits": OTHER, "order": 0.5},
         {"order": [NAN, INF]}),
        (averaging.interpolate, {"start": LOGITS, "end": OTHER, "share": 0.5}, {"share": [NAN]}),
        (averaging.slerp, {"a": LOGITS, "b": OTHER, "share": 0.5}, {"share": [NAN, INF]}),
        (best_of_n.best_of_n, {**answers, "n": 2.0}, draws),
        (best_of_n.worst_of_n, {**answers, "n": 2.0}, draws),
        (best_of_n.kl_bound, {"n": 2.0}, draws),
        (best_of_n.kl_estimate, {"ref_log_probs": LOGITS, "n": 2.0},
         {"ref_log_probs": [LOGITS + 2], **draws}),
        (best_of_n.pool_mean, {"proxy": REWARDS, "gold": LOGITS, "n": 2.0}, {"n": [0.0, 4.0, NAN]}),
        (best_of_n.bonbon_beta, {"n": 2.0}, {"n": [1.0, NAN, INF]}),
        (f_dpg.quasi_rejection, {"log_target": LOGITS, "proposal_logits": OTHER, "beta": 1.0},
         beta),
        (f_dpg.log_acceptance, {"log_target": LOGITS, "log_proposal": OTHER, "beta": 1.0}, beta),
        (f_dpg.empty_window, {}, {"size": [0]}),
        (gshf.precision, {"differences": DATA[0], "counts": np.ones(3), "ridge": 0.1},
         {"counts": [-np.ones(3), np.ones(2)], "ridge": NO_WEIGHT}),
        (gshf.learned_policy, {"problem": PROBLEM, "data": DATA, "ridge": 0.1, "bonus": 0.1},
         {"ridge": NO_WEIGHT, "bonus": [NAN]}),
        (regret, {"beta": 0.3}, beta),
        (inference_aware.exponential_transform, {"quantile": REWARDS, "exponent": 2.0},
         {"quantile": [REWARDS + 1, -REWARDS], "exponent": [NAN]}),
        (inference_aware.log_transform, {"quantile": REWARDS + 0.0}, {"quantile": [REWARDS + 1]}),
        (inference_aware.best_of_n_win_rate, {"rewards": REWARDS, "log_policy": OTHER,
         "ref_logits": LOGITS, "n": 2.0}, draws),
        (inference_aware.quantiles, {"cells": 3}, {"cells": [1]}),
        (aligned, {"beta": 0.5}, {"iterations": [0], **beta}),
        (q_sharp.q_values, {"children": TREE, "log_law": np.log(np.full((3, 2), 0.5)),
         "support": np.arange(2.0), "beta": 0.5}, {"children": [TREE + 1], **beta}),
        (q_sharp.optimal_policy, {"q": np.ones((3, 2)), "ref_logits": np.zeros((3, 2)),
         "beta": 0.5}, beta),
        (q_sharp.regularized_values, {**LEAVES, "returns": REWARDS, "beta": 0.5, "generator": KL,
         "depth": 1}, {"children": [TREE + 1], "depth": [0, -1], **beta}),
        (rewards.bradley_terry, {"wins": 1 + np.eye(3)}, {"wins": [-np.ones((3, 3)), np.eye(3)]}),
        (rewards.linear_bradley_terry, {"differences": DATA[0], "wins": DATA[1], "counts": DATA[2],
         "ridge": 0.1},
         {"wins": [2 * DATA[1], -DATA[1]], "counts": [-DATA[2]], "ridge": NO_WEIGHT}),
        (rewards.uncertainty_weighted, {"rewards": np.eye(2)}, {"coefficient": [NAN, INF]}),
        (rewards.deviation_penalized, {"rewards": np.eye(2), "coefficient": 0.5},
         {"coefficient": [NAN, INF]}),
    )  # fmt: skip


def test_nan_in_alignment():
    pair = {"a": LOGITS, "b": OTHER}
    silent(
        (averaging.angle, pair, ["a", "b"]),
        (averaging.slerp, {**pair, "share": 0.3}, ["a", "b"]),
        (best_of_n.best_of_n, {"rewards": REWARDS, "ref_logits": LOGITS, "n": 2},
         ["rewards", "ref_logits"]),
        (best_of_n.pool_mean, {"proxy": REWARDS, "gold": LOGITS, "n": 2.0}, ["proxy"]),
        (f_dpg.dpg_loss, {"log_probs": LOGITS, "log_target": OTHER, "log_proposal": OTHER,
         "generator": KL}, ["log_probs", "log_target", "log_proposal"]),
        (f_dpg.quasi_rejection, {"log_target": LOGITS, "proposal_logits": OTHER, "beta": 1.0},
         ["log_target", "proposal_logits"]),
        (rewards.worst_case, {"rewards": np.eye(2)}, ["rewards"]),
        (rewards.linear_bradley_terry, {**DATA._asdict(), "ridge": 0.1},
         ["counts"]),
        (preference.f_dpo, {**FOUR, "beta": 0.3, "generator": generators.neyman_chi2()},
         ["chosen", "ref_rejected"]),
        (preference.aot, {**FOUR, "beta": 0.3}, ["chosen"]),
        (occupancy.trimmed_mean, {"x": np.arange(4.0), "share": 0.25}, ["x"]),
        (operators.greedy, {"q": np.eye(2)}, ["q"]),
        (operators.mellowmax, {"q": REWARDS, "temperature": 0.0}, ["q"]),
        (self_play.geometric_mixture, {"log_policy": LOGITS, "ref_logits": OTHER, "share": 0.5},
         ["log_policy", "ref_logits"]),
    )  # fmt: skip


def rspo(weight, step_size):
    return self_play.rspo(OTHER, RPS, LOGITS, step_size=step_size, penalties=((weight, KL),))


def test_games():
    game = {"log_policy": OTHER, "preference": RPS, "ref_logits": LOGITS}
    step = {"beta": 0.3, "step_size": 1.0}
    no_step = {"beta": NO_WEIGHT, "step_size": NO_WEIGHT}
    short = {"beta": [0.0, 1.5, NAN], "step_size": [0.0, 4.0, NAN]}
    no_share = {"share": [-0.1, 1.5, NAN]}
    no_game = [RPS + 0.1, RPS - 0.5, np.full((3, 3), NAN)]
    of_tokens = {"log_probs": LOGITS, "ref_log_probs": OTHER, "win_probability": np.full(3, 0.4)}
    no_rate = {"win_probability": [np.full(3, 1.5), np.full(3, -0.1)]}
    six = {**FOUR, "old_chosen": FOUR["chosen"], "old_rejected": FOUR["rejected"]}
    names = "real", "generated", "old_real", "old_generated", "ref_real", "ref_generated"
    domains(
        (preferences.nash, {"preference": RPS, "ref_logits": LOGITS, "beta": 0.3, "generator": KL},
         {"preference": no_game, "beta": [-0.3, 0.0, NAN]}),
        (preferences.regularized_exploitability, {**game, "beta": 0.3, "generator": KL},
         {"preference": no_game, "beta": NO_WEIGHT}),
        (preferences.sigmoid_game, {"scores": REWARDS, "skew": np.zeros((3, 3))},
         {"skew": [np.ones((3, 3)), np.zeros((2, 2))]}),
        (preferences.random_game, {"actions": 3, "key": jax.random.key(0)},
         {"actions": [0], "scale": [-1.0, NAN], "skew": [-1.0, NAN]}),
        (preferences.win_rate, {"log_policy": OTHER, "preference": RPS, "log_opponent": LOGITS},
         {"preference": no_game}),
        (self_play.proximal, {"values": REWARDS, "log_policy": OTHER, "ref_logits": LOGITS, **step},
         no_step),
        (self_play.online_mirror_descent, {**game, **step}, no_step),
        (self_play.mirror_prox, {**game, "beta": 0.3}, no_step),
        (self_play.nash_md, {**game, **step}, short),
        (self_play.inpo, {**game, **step}, short),
        (self_play.inpo_loss, {**six, **step}, short),
        (self_play.nash_md_loss, {**of_tokens, "beta": 0.3}, {"beta": NO_WEIGHT, **no_rate}),
        (self_play.sppo, {"log_policy": OTHER, "preference": RPS, "step_size": 1.0},
         {"step_size": NO_WEIGHT}),
        (self_play.sppo_loss, {"log_probs": LOGITS, "old_log_probs": OTHER,
         "win_probability": np.full(3, 0.4), "step_size": 1.0},
         {"step_size": NO_WEIGHT, **no_rate}),
        (rspo, {"weight": 0.1, "step_size": 1.0}, {"step_size": NO_WEIGHT}),
        (self_play.geometric_mixture, {"log_policy": OTHER, "ref_logits": LOGITS, "share": 0.5},
         no_share),
        (self_play.spin_loss, {**{name: FOUR["chosen"] for name in names}, "beta": 0.3}, no_share),
        (self_play.spin, {"log_policy": OTHER, "log_data": LOGITS, "ref_logits": LOGITS,
         "beta": 0.3}, {"beta": NO_WEIGHT, **no_share}),
    )  # fmt: skip


CHAIN = environments.chain(length=3)
EVEN = np.full((3, 2), 0.5)


def iterated(scheme):
    """Action values of the second iterate."""
    return value_iteration.run(CHAIN, scheme, 2).last.q


def md_vi(kl_weight, entropy_weight):
    return iterated(operators.md_vi(kl_weight, entropy_weight))


def da_vi(kl_weight, entropy_weight):
    return iterated(operators.da_vi(kl_weight, entropy_weight))


def munchausen(alpha, temperature):
    return iterated(operators.munchausen(alpha, temperature))


def cvi(alpha, temperature):
    return iterated(operators.cvi(alpha, temperature))


def mvi(alpha, temperature, index):
    return iterated(operators.mvi(alpha, temperature, index))


def conservative(share):
    return iterated(operators.conservative_iteration(share))


def mirror_descent(step_size, entropy_weight):
    return iterated(operators.policy_mirror_descent(step_size, entropy_weight))


def test_planning():
    negative = [-1.0, NAN]
    no_policy = {"policy": [np.log(EVEN), 2 * EVEN, np.full((3, 2), NAN)]}
    both = {"kl_weight": negative, "entropy_weight": negative}
    soft = {"alpha": [-0.1, 1.5, NAN], "temperature": negative}
    measure = {"ref_occupancy": EVEN / 3, "reward": np.eye(3)[:, :2], "proxy": np.eye(3)[:, 1:]}
    domains(
        (model.policy_value, {"mdp": CHAIN, "policy": EVEN}, no_policy),
        (model.occupancy, {"mdp": CHAIN, "policy": EVEN}, no_policy),
        (operators.mellowmax, {"q": REWARDS, "temperature": 0.0}, {"temperature": negative}),
        (operators.soft, {"q": REWARDS, "old_log_policy": LOGITS, "kl_weight": 0.1,
         "entropy_weight": 0.1}, both),
        (operators.tsallis, {"q": REWARDS, "temperature": 0.1, "index": 2.0},
         {"temperature": negative, "index": negative}),
        (md_vi, {"kl_weight": 0.1, "entropy_weight": 0.0}, both),
        (da_vi, {"kl_weight": 0.0, "entropy_weight": 0.1}, both),
        (munchausen, {"alpha": 0.5, "temperature": 0.0}, soft),
        (cvi, {"alpha": 0.5, "temperature": 0.0}, soft),
        (mvi, {"alpha": 0.5, "temperature": 0.0, "index": 2.0}, {**soft, "index": negative}),
        (conservative, {"share": 0.5}, {"share": [-0.1, 1.5, NAN]}),
        (mirror_descent, {"step_size": 1.0, "entropy_weight": 0.1},
         {"step_size": [-1.0, 0.0, NAN], "entropy_weight": negative}),
        (occupancy.action_regularized, {"mdp": CHAIN, "ref_logits": np.zeros((3, 2)),
         "temperature": 0.3, "generator": KL},
         {"temperature": NO_WEIGHT[:3], "ref_logits": [np.zeros((2, 2))]}),
        (occupancy.regularized, {"mdp": CHAIN, "ref_logits": np.zeros((3, 2)),
         "temperature": 0.3, "generator": KL},
         {"temperature": NO_WEIGHT[:3], "ref_logits": [np.zeros((2, 2))]}),
        (occupancy.reward_correlation, measure, {"ref_occupancy": [EVEN, -EVEN / 3]}),
        (occupancy.penalty_reward, {"log_ratio": LOGITS, "temperature": 0.3, "generator": KL},
         {"temperature": negative}),
        (occupancy.trimmed_mean, {"x": REWARDS}, {"share": [-1, 1]}),
        (tabular.expectation, {"logits": np.zeros((1, 2)), "values": np.ones(2)},
         {"values": [np.ones(3)]}),
        (tabular.mean_length, {"logits": np.zeros((2, 2)), "power": 2.0}, {"power": [NAN, INF]}),
        (tabular.normal_logits, {"seed": 1, "seeds": (0, 1), "longest": 1, "vocabulary": 2},
         {"seed": [7], "models": [0]}),
    )  # fmt: skip
