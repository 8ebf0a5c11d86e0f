"""Every public function lowers for TPU and CUDA: the compiler's input is made, without hardware.

The arguments are made from the names of types in the signatures; a package is one program, traced
once. What is no program, or is made of Python functions, is listed with the reason.
"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiv import generators, numerics, parallel
from jdiv.alignment import f_dpg, gshf, margins
from jdiv.bandits import adversarial, contextual, stochastic, streaming
from jdiv.decoding import Automaton, automata
from jdiv.distillation import features
from jdiv.divergences import categorical, gaussian, sparse, vocabulary
from jdiv.games import self_play
from jdiv.lm import Config, Transformer, data, reward_model, tabular, train, weights
from jdiv.mdp import SparseMdp, deep, occupancy, operators, value_iteration
from jdiv.policy import tabular as policy_tabular
from jdiv.policy.recipes import safe
from jdiv.unlearning import Factors
from tests.test_vocabulary import FUNCTIONS, ROOT

PLATFORMS = ("tpu", "cuda")
BATCH, N, TOKENS, STATES, SAMPLES, WIDTH = 2, 3, 4, 3, 5, 2


def array(*shape, dtype=jnp.float32):
    """Shape and type: no program here is run."""
    return jax.ShapeDtypeStruct(shape, dtype)


def indices(*shape):
    return array(*shape, dtype=jnp.int32)


TABLE = array(*tabular.table_shape(3))
SCALAR, ROW, TOKEN, SAMPLE = array(), array(BATCH), array(BATCH, TOKENS), array(SAMPLES)
LOGITS, VALUES, POINTS = array(BATCH, N), array(STATES, N), array(SAMPLES, WIDTH)
MASK = array(BATCH, TOKENS, dtype=jnp.bool_)
KEY = jax.eval_shape(lambda: jax.random.key(0))
GENERATOR = generators.kl()  # closed forms where there are any; the solver is lowered where it is
MDP = SparseMdp(indices(STATES, N, 2), array(STATES, N, 2), VALUES, SCALAR, array(STATES))
SIDE = vocabulary.FromHidden(array(TOKENS, WIDTH), array(N, WIDTH))


def tabular_environment():
    """Two numbers that a move adds to."""

    def reset(key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(key, state, action):
        state = state + action.astype(state.dtype)
        ended = state[0] > 9
        return deep.TimeStep(state, state[0], ended, ended, state), state

    return deep.Environment(reset, step, 2, 2)


OF_TYPE = {
    "Scalar": SCALAR, "PerRow": SCALAR, "PerSequence | Scalar": ROW, "PerToken | Scalar": SCALAR,
    **dict.fromkeys(("Logits", "LogPolicy", "Probs", "Values", "Counts", "Logits | TopK"), LOGITS),
    **dict.fromkeys(("PerSequence", "SequenceLogProbs", "PerPair", "Rewards", "Advantages"), ROW),
    **dict.fromkeys(("PerToken", "LogProbs"), TOKEN),
    "Centroids": VALUES, "Features": array(BATCH, WIDTH),
    "RowMask": array(BATCH, dtype=jnp.bool_),
    "Mask": MASK, "PerSample": SAMPLE, "RandomKey": KEY, "StateActions": VALUES,
    "PerState": array(STATES), "Indices": indices(BATCH), "Lengths": ROW,
    "Temperature": lambda arms, time: jnp.sqrt(time), "Table": TABLE,
    "Tables": array(BATCH, 3, 3), "Right": array(BATCH, 7), "Answers": indices(BATCH, N),
    "Samples": POINTS, "OtherSamples": array(4, WIDTH), "Preference": array(N, N),
    "Scores": array(SAMPLES, SAMPLES), "Square": array(N, N), "CriticOfP": SAMPLE,
    "CriticOfQ": array(4), "Side": SIDE, "FromHidden | Logits": SIDE, "AnyMdp": MDP,
    "Gaussian | Diagonal": gaussian.Gaussian(array(WIDTH), array(WIDTH, WIDTH)),
    "Generator": GENERATOR, "generators.Generator": GENERATOR, "int": 2,
    "Array": SAMPLE, "ArrayLike": SCALAR, "Any": SAMPLE, "float": 0.5,
    "Scheme": operators.value_iteration(),
    "Model": {"weight": array(N), "bias": array(2)},
    "Learner": adversarial.hedge(1.0),
    "Margin": margins.logistic, "TopK": sparse.TopK(array(BATCH, 2), indices(BATCH, 2), ROW),
    "Normalizers": numerics.Normalizers(*[array(1)] * 5),
}  # fmt: skip
"""By the name of the type, as it stands in the signature."""

WHOLE = vocabulary.FromHidden(array(TOKENS, WIDTH), array(N, WIDTH))
TOP = sparse.TopK(array(BATCH, 2), indices(BATCH, 2), ROW)
PROBLEM = gshf.LinearProblem(array(STATES, N, WIDTH), array(WIDTH), array(STATES, N), SCALAR)
DATA = gshf.Comparisons(array(SAMPLES, WIDTH), SAMPLE, SAMPLE)
WINDOW = f_dpg.Window(SAMPLE, indices())
MODELS = {"weight": array(2, N), "bias": array(2, 2)}
LEVELS = streaming.Levels(array(2), array(2))
PENALTIES = ((0.1, generators.kl()),)
ENVIRONMENT = tabular_environment()
SETTINGS = deep.Settings(environments=2, capacity=8, batch=4, hidden=(4,))
HYPER = deep.Hyperparameters(SCALAR, SCALAR)
NETWORK = [{"weight": array(2, N), "bias": array(N)}]
MOVES = deep.Transition(
    array(BATCH, 2), indices(BATCH), ROW, array(BATCH, dtype=jnp.bool_), array(BATCH, 2)
)
GROUPS = array(BATCH, 4)
CHILDREN = np.array([[1, 2], [-1, -1], [-1, -1]])
GRAPH = {"children": CHILDREN, "ref_logits": array(3, 2)}


TRANSFORMER = jax.eval_shape(
    lambda key: Transformer.random(
        Config(vocabulary=N, width=4, layers=2, heads=2, key_heads=1, head_width=2, hidden=4), key
    ),
    KEY,
)
TENSORS = jax.eval_shape(lambda key: weights.initial(TRANSFORMER.config, key), KEY)
TEXT = train.Text(indices(BATCH, TOKENS), MASK)
LATER = array(BATCH, TOKENS - 1)
SCORED = jax.eval_shape(reward_model.begin, TRANSFORMER, KEY)
FACTORS = {"query.a": array(2, 1, 4), "query.b": array(2, 4, 1)}
READ = {"model": TRANSFORMER, "tokens": indices(BATCH, TOKENS)}


def learning():
    """A state of deep Q-learning, by its shapes."""
    return jax.eval_shape(lambda key: deep.init(SETTINGS, ENVIRONMENT, key), KEY)


AUTOMATON = Automaton(indices(2, N), array(2, dtype=jnp.bool_))
ALLOWED = {"where": array(BATCH, N, dtype=jnp.bool_)}
RULE = automata.rule(Automaton(np.zeros((1, N), np.int32), np.ones(1, bool)), max_tokens=2)
CHAIN = {"logits": array(N, N), "children": indices(N, N), "automaton": AUTOMATON, "horizon": 2}


OF_FUNCTION = {
    **{f"constrained.{name}": ALLOWED for name in (
        "exclude", "log_mass", "locally_constrained", "awrs_recursive", "awrs_geometric",
        "expected_calls")},
    "automata.lifted": {"automaton": AUTOMATON, "tokens": indices(BATCH, TOKENS)},
    "automata.reachable": {"automaton": AUTOMATON, "horizon": 2},
    **{f"automata.{name}": CHAIN for name in ("log_acceptance", "conditional")},
    "smc.smc": {"step": lambda memory, tokens: (memory, memory), "memory": LOGITS,
                "tokens": indices(BATCH), "automaton": AUTOMATON, "horizon": 2},
    "asymptotics.rate_function": {"rewards": array(N), "ref_logits": array(N)},
    "averaging.merge": {"models": MODELS},
    "averaging.average": {"models": MODELS},
    "averaging.warp": {"train": lambda model, key: model,
                       "keys": jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (2, 2)))},
    "f_dpg.push": {"window": WINDOW},
    "f_dpg.window_mean": {"window": WINDOW},
    "f_dpg.window_log_mean_exp": {"window": WINDOW},
    "gshf.tilt": {"problem": PROBLEM, "rewards": PROBLEM.ref_logits},
    "gshf.regularized_regret": {"problem": PROBLEM, "log_policy": PROBLEM.ref_logits},
    "gshf.compare": {"problem": PROBLEM, "first_logits": PROBLEM.ref_logits,
                     "second_logits": PROBLEM.ref_logits},
    "gshf.precision": {"differences": POINTS, "counts": SAMPLE},
    "gshf.width": {"features": POINTS, "center": array(WIDTH), "precision": array(WIDTH, WIDTH)},
    "gshf.pessimistic": {"rewards": SAMPLE, "features": POINTS, "center": array(WIDTH),
                         "precision": array(WIDTH, WIDTH)},
    "gshf.learned_policy": {"problem": PROBLEM, "data": DATA},
    "gshf.explorer": {"problem": PROBLEM, "data": DATA, "main_logits": PROBLEM.ref_logits},
    "gshf.online_regret": {"problem": PROBLEM, "given": DATA},
    "judges.posterior": {"features": POINTS, "targets": SAMPLE},
    "kernels.log_mahalanobis": {"precision": array(WIDTH, WIDTH)},
    "inference_aware.best_of_n_transform": dict.fromkeys(
        ("rewards", "log_policy", "ref_logits"), array(N)
    ),
    "inference_aware.worst_of_n_transform": dict.fromkeys(
        ("rewards", "log_policy", "ref_logits"), array(N)
    ),
    "inference_aware.aligned": {"transform": lambda log_policy: -log_policy},
    "inference_aware.aligned_to": {"ref_logits": array(N),
                                   "transform": lambda log_policy: -log_policy},
    **{name: {"lengths": (ROW, ROW)} for name in (
        "preference.sigmoid_norm", "preference.per_token", "reference_free.simpo",
        "reference_free.alpha_po", "reference_free.orpo")},
    "preference.f_sft": dict.fromkeys(("chosen", "ref_chosen", "sampled", "ref_sampled"), SAMPLE),
    "unpaired.kto": {"desirable": array(BATCH, dtype=jnp.bool_)},
    "unpaired.apo_zero_unpaired": {"desirable": array(BATCH, dtype=jnp.bool_)},
    "preference.hypo": {"sampled": array(BATCH, 4), "ref_sampled": array(BATCH, 4)},
    "q_sharp.return_laws": GRAPH | {"log_returns": array(3, 4)},
    "q_sharp.q_values": {"children": CHILDREN, "log_law": array(3, 4), "support": array(4)},
    "q_sharp.expected_returns": {"children": CHILDREN, "log_law": array(3, 4), "support": array(4)},
    "q_sharp.fit_return_laws": {"visited": indices(6), "outcomes": indices(6), "prior": array(4)},
    "q_sharp.regularized_values": GRAPH | {"returns": array(3)},
    "rewards.nuclear_diversity": {"members": array(3, 4)},
    "rewards.bradley_terry": {"wins": array(N, N)},
    "rewards.linear_bradley_terry": {"differences": POINTS, "wins": SAMPLE, "counts": SAMPLE},
    **{f"rewards.{name}": {"rewards": LOGITS} for name in (
        "mean_reward", "worst_case", "uncertainty_weighted", "deviation_penalized")},
    "tilts.with_moments": {"ref_logits": array(N), "features": array(N, 1), "moments": array(1)},
    "adversarial.linear": {"features": array(N, WIDTH)},
    "adversarial.magnitude_reduced": {"features": array(N, WIDTH)},
    "adversarial.bandit": {"estimator": adversarial.importance_weighting()},
    "adversarial.regret": {"play": adversarial.Play(POINTS, indices(SAMPLES), POINTS)},
    "adversarial.optimistic_descent": {"gradient": lambda x, c: c, "inputs": POINTS},
    "contextual.play": {"policy": contextual.greedy},
    "contextual.drawn": {"p": LOGITS, "uniform": ROW},
    "stochastic.play": {"policy": stochastic.ucb1()},
    **{f"streaming.{name}": {"arms": 5, "horizon": 100.0} for name in (
        "tolerance", "uniform", "naive", "log_space", "log_log_space", "log_star_space")},
    "streaming.pad_levels": {"levels": LEVELS, "count": 3},
    "streaming.tower": {"levels": LEVELS},
    "gaussian.from_covariance": {"mean": array(WIDTH), "covariance": array(WIDTH, WIDTH)},
    "sparse.from_log_probs": {"log_probs": array(BATCH, 2), "indices": indices(BATCH, 2)},
    "sparse.coarsened": {"indices": indices(BATCH, 2)},
    "sparse.retained_mass": {"indices": indices(BATCH, 2)},
    **{f"sparse.{name}": {"q": TOP} for name in ("with_tail", "renormalized", "truncated")},
    "transport.wasserstein_1": {"positions": array(N)},
    "vocabulary.log_probs": {"tokens": indices(TOKENS)},
    "vocabulary.retained_mass": {"indices": indices(TOKENS, 2)},
    "kernels.squared_distances": {"x": POINTS, "y": POINTS},
    "kernels.distances": {"x": POINTS, "y": POINTS},
    "neighbours.knn_kl": {"k": 2},
    "preferences.sigmoid_game": {"skew": array(BATCH, N, N)},
    "preferences.nash": {"ref_logits": array(N)},
    "self_play.play": {"step": lambda log_policy: log_policy, "start": LOGITS},
    "self_play.rspo": {"penalties": PENALTIES},
    "self_play.rspo_loss": {"penalties": PENALTIES},
    "self_play.fictitious_play": {"state": self_play.History(LOGITS, LOGITS, SCALAR),
                                  "step": lambda log_policy, log_opponent: log_opponent},
    "tabular.expectation": {"values": jax.eval_shape(
        tabular.sequence_log_probs, TABLE)},
    "tabular.normal_logits": {"seed": indices(), "seeds": (0, 1)},
    "tabular.from_sequences": {"log_weights": jax.eval_shape(
        tabular.sequence_log_probs, TABLE), "shape": tabular.table_shape(3)},
    "questions.train": {
        "loss": lambda batch, state: (jnp.sum(batch.log_probs), state), "steps": 2, "size": N},
    "enumeration.table": {"model": TRANSFORMER, "tokens": indices(2), "longest": 2, "end": 0},
    "enumeration.table_among": {
        "model": TRANSFORMER, "tokens": indices(2), "longest": 2, "indices": indices(2),
    },
    "model.empty_cache": {"config": TRANSFORMER.config},
    "weights.initial": {"config": TRANSFORMER.config},
    "weights.layer_vectors": {"config": TRANSFORMER.config, "model": TENSORS},
    "weights.from_layer_vectors": {"config": TRANSFORMER.config, "vectors": jax.eval_shape(
        lambda model: weights.layer_vectors(TRANSFORMER.config, model), TENSORS)},
    "sampling.generate": READ | {"max_tokens": 2, "rule": RULE},
    **{f"scoring.{name}": READ for name in ("logits", "log_probs", "entropies", "next_tokens")},
    "scoring.divergences": READ | {"other": TRANSFORMER},
    "data.sample": {"grammar": data.brackets(), "max_tokens": 3},
    "data.log_probs": {"grammar": data.brackets(), "tokens": indices(BATCH, TOKENS)},
    "train.log_probs": {"model": TRANSFORMER, "batch": TEXT},
    "train.sft": {"model": TRANSFORMER, "batch": TEXT},
    "train.distill": {"model": TRANSFORMER, "batch": TEXT, "other": TRANSFORMER},
    "train.f_dpo": {"model": TRANSFORMER, "batch": train.Pairs(TEXT, TEXT, ROW, ROW)},
    "train.kto": {"model": TRANSFORMER,
                  "batch": train.Judged(TEXT, ROW, array(BATCH, dtype=jnp.bool_), ROW)},
    "train.grpo": {"model": TRANSFORMER, "batch": train.Rollouts(TEXT, LATER, LATER, ROW)},
    "train.kl_rl": {"model": TRANSFORMER, "batch": train.Rollouts(TEXT, LATER, LATER, ROW)},
    "train.f_dpg": {"model": TRANSFORMER, "batch": train.Targets(TEXT, ROW, ROW, ROW)},
    "reward_model.begin": {"model": TRANSFORMER},
    "reward_model.scores": {"model": SCORED, "batch": TEXT},
    "reward_model.bradley_terry": {"model": SCORED,
                                   "batch": reward_model.Compared(TEXT, TEXT, ROW)},
    "lora.begin": {"model": TRANSFORMER, "rank": 2},
    "lora.merged": {"model": TRANSFORMER, "factors": FACTORS},
    **{f"features.{name}": {"student_features": POINTS, "teacher_features": POINTS}
       for name in ("cka_distance", "layer_scores")},
    "features.projections": {"labels": indices(SAMPLES), "classes": 2, "k": 1},
    "features.subclass_logits": {"directions": features.Projections(
        array(N, WIDTH), array(N, 1, WIDTH))},
    "features.class_logits": {"classes": 1},
    "on_policy.mixture": {"real": SAMPLE, "generated": SAMPLE},
    "on_policy.minillm": {
        "student_logits": array(BATCH, TOKENS, N), "teacher_logits": array(BATCH, TOKENS, N),
        "tokens": indices(BATCH, TOKENS)},
    "selection.hashed_counts": {"tokens": indices(BATCH, TOKENS), "mask": MASK, "buckets": 7},
    "selection.bucket_law": {"counts": VALUES},
    "selection.log_importance": {"counts": VALUES, "log_target": array(N), "ref_logits": array(N)},
    "deep.mlp_init": {"sizes": (2, 4, 2)},
    "deep.mlp": {"layers": NETWORK, "x": array(BATCH, 2)},
    "deep.bootstrapped": {"batch": MOVES},
    "deep.munchausen_target": {"hyper": HYPER, "batch": MOVES, "q": LOGITS, "q_next": LOGITS},
    "deep.tsallis_target": {"hyper": HYPER, "batch": MOVES, "q": LOGITS, "q_next": LOGITS},
    "deep.mirror_target": {"hyper": HYPER, "batch": MOVES},
    "deep.averaging_schedule": {"hyper": HYPER, "number": indices()},
    "deep.init": {"settings": SETTINGS, "environment": ENVIRONMENT},
    "deep.step": {"settings": SETTINGS, "environment": ENVIRONMENT, "hyper": HYPER,
                  "state": learning()},
    "deep.act": {"settings": SETTINGS, "state": learning()},
    "occupancy.gain_bound": {"moments": occupancy.RewardCorrelation(*[SCALAR] * len(
        occupancy.RewardCorrelation._fields))},
    "occupancy.discriminator_loss": {"ref_scores": SAMPLE},
    "occupancy.action_regularized": {"ref_logits": VALUES},
    "linear.solve": {"f": lambda x: x / 2, "b": ROW},
    "model.following": {"choice": indices(STATES)},
    "operators.modified_policy_iteration": {"greedy_step": lambda q, old: operators.greedy(q)},
    "operators.gap_increasing": {"soft_step": operators.greedy},
    **{f"advantages.{name}": {"rewards": GROUPS} for name in (
        "grouped", "grpo_advantages", "rloo_advantages", "varied", "pass_at_k_rewards",
        "pass_at_k_advantages")},
    "advantages.pass_at_k_grpo_advantages": {"correct": GROUPS},
    "advantages.opo_advantages": {"rewards": GROUPS, "lengths": GROUPS},
    "advantages.score_norms": {"logits": LOGITS, "tokens": indices(BATCH)},
    "advantages.optimal_token_advantages": dict.fromkeys(
        ("returns", "weights"), array(BATCH, 4, TOKENS)) | {
            "mask": array(BATCH, 4, TOKENS, dtype=jnp.bool_)},
    "clipped.scored": {"where": MASK},
    "arlcp.arlcp_rewards": dict.fromkeys(("correct", "lengths", "reflections"), GROUPS),
    "asymmetric_po.dads_weights": {"correct": GROUPS},
    "asymmetric_po.stcr_advantages": dict.fromkeys(("advantages", "correct", "lengths"), GROUPS),
    "difficulty.pass_rate": {"rewards": GROUPS},
    "difficulty.difficulty_filter": {"rewards": GROUPS},
    "dler.dler_rewards": {"rewards": GROUPS, "lengths": GROUPS},
    "dmpo.dmpo_loss": {"rewards": ROW},
    "dot.truncated_lengths": {"correct": GROUPS, "lengths": GROUPS},
    "grpo_care.care_bonus": {"rewards": GROUPS, "confidence": GROUPS},
    "recap.recap_weights": {"losses": GROUPS},
    "dph_rl.dph_rl_penalty": {"solved": array(BATCH, dtype=jnp.bool_)},
    "gtpo.conflict_weights": {"tokens": indices(BATCH, TOKENS)},
    "safe.safe_control": {"state": safe.SafeState(*[SCALAR] * len(safe.SafeState._fields))},
    "selection.share_of": {"dtype": jnp.float32, "count": indices()},
    "selection.kth_largest": {"count": indices(), "eligible": array(SAMPLES, dtype=jnp.bool_)},
    "selection.among_largest": {"count": indices(), "eligible": array(SAMPLES, dtype=jnp.bool_)},
    **{f"kl_terms.{name}": {"log_p": SAMPLE, "log_q": SAMPLE} for name in (
        "straight_through", "without_gradient", "linear_k3", "saturated")},
    **{f"metrics.{name}": {"correct": GROUPS, "rewards": GROUPS} for name in (
        "pass_at_k", "max_at_k")},
    "metrics.maj_at_k": {"labels": indices(BATCH, 4), "target": indices(BATCH)},
    "metrics.token_entropy": {"logits": array(BATCH, TOKENS, N)},
    "metrics.effective_sample_size": {"log_weights": TOKEN},
    "metrics.token_share": {"where": MASK},
    "ranking.plackett_luce": {"ranking": indices(BATCH, N)},
    "token.temperature_schedule": {"step": indices(), "steps": indices()},
    "tokens.bnpo_weights": {"mask": array(2, BATCH, TOKENS, dtype=jnp.bool_)},
    "tokens.kept": {"name": "x", "x": TOKEN, "mask": MASK},
    "trpo.conjugate_gradients": {"product": lambda x: 2 * x},
    "trpo.trpo_step": {"surrogate": jnp.sum, "divergence": lambda x: jnp.sum(x * x)},
    "demotion.demoted_target": {"tokens": indices(BATCH), "demotion": SCALAR},
    "demotion.forget_positions": {"share": SCALAR},
    "demotion.shred": dict.fromkeys(("logits", "ref_logits"), array(BATCH, TOKENS, N)) | {
        "tokens": indices(BATCH, TOKENS), "demotion": SCALAR, "share": SCALAR, "k": 2},
    "gauss_newton.uphill": {"loss": jnp.sum, "outputs": lambda x: x[None]},
    "gauss_newton.kronecker_factors": {"features": array(4, WIDTH), "logits": array(4, N)},
    "gauss_newton.kronecker_step": {"gradient": array(WIDTH, N), "factors": Factors(
        array(WIDTH, WIDTH), array(N, N))},
    "matching.leave_out": {"features": POINTS, "mask": array(SAMPLES, dtype=jnp.bool_)},
    "matching.datamodel": {"features": POINTS, "points": array(4, WIDTH)},
    "matching.margin": {"labels": indices(BATCH)},
    "matching.klom": {"margins": POINTS, "ref_margins": array(4, WIDTH)},
    "bregman.primal": {"k": indices()},
    "bregman.dual": {"k": indices()},
    "generators.from_f": {"f": lambda u: (u - 1) ** 2},
    "generators.weighted_sum": {"penalties": PENALTIES},
    **{f"regularized.{name}": {"generator": generators.jensen_shannon()} for name in (
        "greedy", "with_log_ratio", "greedy_between", "fenchel_young")},
    "roots.along": {"f": lambda x: x * x - 2, "x": (SCALAR,), "direction": (SCALAR,)},
    "roots.implicit": {"f": lambda x: x * x - 2, "start": SCALAR, "low": SCALAR, "high": SCALAR},
    "roots.bracketed_newton": {"f": lambda x: x * x - 2},
    "roots.decreasing": {"f": lambda x, kept: (2 - x, -jnp.ones_like(x), kept), "low": SCALAR,
                         "high": SCALAR},
    "roots.minimize": {"loss": lambda x: jnp.sum(x * x)},
    "roots.damped_newton": {"newton": lambda x: (-x, jnp.abs(x[0]), jnp.abs(x[0]) < 1)},
}  # fmt: skip
"""What the types do not say, by the last name of the module and the function's."""

NO_PROGRAMS = {
    "checks": "raises for arrays with values",
    "checkpoints": "reads and writes files",
    "generator": "makes classes",
    "generators.listed": "makes a class",
    "generators.get": "makes a row, of which every program here is",
    "environments.get": "makes what its name says, as the functions below it do",
    "deep.from_gymnax": "another library's environments",
    "deep.value_method": "makes the methods that deep.step is lowered with",
    "deep.policy_method": "makes the methods that deep.step is lowered with",
    "tomato.tomato": "a board of characters beside a process",
    "model.validate": "raises for arrays with values",
    "tabular.enumerate_sequences": "NumPy",
    "testing": "enumerates in NumPy",
    "metrics.chances_of_largest": "NumPy",
    **dict.fromkeys(("gguf", "storage"), "reads and writes files"),
    **{
        f"weights.{name}": "describes arrays"
        for name in ("tensors", "count", "stored_shapes", "from_stored", "to_stored")
    },
    "rewards": "functions of texts",
    "reward_model.reward": "a function of texts",
    **dict.fromkeys(("architectures.read", "architectures.written"), "describes arrays"),
    **dict.fromkeys(("enumeration.answers", "enumeration.columns"), "NumPy"),
    **dict.fromkeys(
        ("data.brackets", "data.entropy", "data.mean_length", "data.sums", "data.pack"), "NumPy"
    ),
    **dict.fromkeys(
        ("data.read_prompts", "data.read_preferences", "data.read_answers"), "reads files"
    ),
    **dict.fromkeys(("train.begin", "train.saved", "train.restored"), "copies arrays"),
    "lora.adapted": "describes arrays",
    "train.update": "takes a loss and an optimizer; the losses are lowered",
    "scoring.kept_log_probs": "reads and writes files",
    "numerics.by_rows": "applies a function; divergences are lowered with theirs",
    **dict.fromkeys(
        ("rules.as_rule", "automata.rule"), "makes a rule, which sampling.generate is lowered with"
    ),
    "tilts.checked_answers": "raises for arrays with values",
    "parallel": "devices and hosts; its programs are lowered below",
}
"""Modules and functions that are none, with the reason."""


def used(made):
    """What is made of Python functions, used once; other results as they are."""
    values = jnp.zeros((STATES, N), jnp.float32)
    mdp = SparseMdp(
        jnp.zeros((STATES, N, 2), jnp.int32), jnp.full((STATES, N, 2), 0.5, jnp.float32), values,
        jnp.float32(0.5), jnp.full(STATES, 1 / STATES, jnp.float32),
    )  # fmt: skip
    if isinstance(made, operators.Scheme):
        return value_iteration.run(mdp, made, 2).last
    if isinstance(made, policy_tabular.Scheme):
        return policy_tabular.update(mdp, made, values)
    if isinstance(made, adversarial.Learner):
        return adversarial.full_information(made, values)
    if isinstance(made, Transformer):
        return [x[...] for x in made.tensors.values()]
    if isinstance(made, generators.Generator):
        return categorical.f_divergence(made, values, values)
    return made


def called(function, made):
    """What a function that was made gives; other results as they are used."""
    if not callable(made) or isinstance(made, (tuple, Transformer)):
        return used(made)
    vector = jnp.ones(N, jnp.float32)
    module = function.__module__
    if module.endswith("stochastic"):
        return stochastic.play(made, vector / 2, 3, jax.random.key(0)).regret
    if module.endswith("adversarial"):
        return made(-vector, jnp.int32(1), jnp.float32(0.5))
    if module.endswith("value_iteration"):
        policy = jnp.ones((STATES, N), jnp.float32) / N
        of_iterate = function.__name__ == "suboptimality"
        return made(operators.Iterate(policy, jnp.log(policy)) if of_iterate else policy)
    return made(vector)


def arguments(name, function):
    """What a function has to be given."""
    parameters = inspect.signature(function).parameters
    given = {key: x for key, x in OF_FUNCTION.get(name, {}).items() if key in parameters}
    found = {}
    for parameter in parameters.values():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variable:
            known = parameter.name in given
            found[parameter.name] = None if known else OF_TYPE[parameter.annotation]
    return found | given


def public():
    """Names, functions and arguments by package; what is no program is left out."""
    packages, seen = {}, set()
    for _, path, node in FUNCTIONS:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        short = f"{name.split('.')[-1]}.{node.name}"
        reason = {short, short.split(".")[0]} & set(NO_PROGRAMS)
        seen |= reason | {short}
        if not reason:
            function = getattr(importlib.import_module(name), node.name)
            package = packages.setdefault(name.split(".")[1], {})
            package[f"{name}.{node.name}"] = function, arguments(short, function)
    for name, row in categorical.TABLE.items():
        packages["divergences"][f"gradient of {name}"] = (
            lambda pair, row=row: jax.value_and_grad(lambda pair: jnp.sum(row(*pair)))(pair),
            {"pair": (LOGITS, LOGITS)},
        )  # fmt: skip
    unknown = (set(OF_FUNCTION) | set(NO_PROGRAMS)) - seen
    assert not unknown, f"no functions: {unknown}"
    return packages


PUBLIC = public()


def program(functions):
    """All functions as one of a list of arrays, and shapes and types of these."""
    leaves, plan = [], []
    for function, given in functions.values():
        values, tree = jax.tree.flatten(given)
        places = []
        for value in values:
            traced = isinstance(value, jax.ShapeDtypeStruct)
            places.append((traced, len(leaves) if traced else value))
            leaves += [value] if traced else []
        plan.append((function, tree, places))

    def whole(*arrays):
        results = []
        for function, tree, places in plan:
            given = tree.unflatten([arrays[x] if traced else x for traced, x in places])
            results.append(called(function, function(**given)))
        return results

    return whole, leaves


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_every_public_program_lowers(package):
    whole, leaves = program(PUBLIC[package])
    with jax.enable_x64(False):
        # One module for both: an operation that one of them has no rule for raises.
        lowered = jax.jit(whole).trace(*leaves).lower(lowering_platforms=PLATFORMS)
    assert len(jax.tree.leaves(lowered.out_info)) >= len(PUBLIC[package]) // 2


# ------------------------------------------------------------------------------------ sharded ones


def averaged(weight, x):
    """A step of training on a part of a batch."""
    slope = parallel.mean_grads(jax.grad(lambda w: jnp.mean(w * x**2))(weight))
    spread = parallel.max_over(jnp.max(x)) + parallel.sum_over(x.sum()) + parallel.mean_over(weight)
    return weight - slope, spread


def test_sharded_programs_lower():
    """By pmap, as `parallel` has them, and by what shard_map makes of the same."""
    devices = jax.device_count()
    weight, x = array(), array(devices, 3)
    training = jax.pmap(averaged, axis_name=parallel.BATCH, in_axes=(None, 0), out_axes=None)
    points = jax.pmap(jax.vmap(lambda x: categorical.TABLE["kl"](x, -x)))
    axis = jax.sharding.PartitionSpec(parallel.BATCH)
    mesh = jax.make_mesh((devices,), (parallel.BATCH,), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.PartitionSpec()
    twin = jax.shard_map(
        lambda weight, x: averaged(weight, x[0]), mesh=mesh, in_specs=(whole, axis),
        out_specs=whole, check_vma=False,
    )  # fmt: skip
    with jax.enable_x64(False):
        for f, given, collective in (
            (jax.jit(training), (weight, x), True),
            (jax.jit(points), (array(devices, 2, N),), False),
            (jax.jit(twin), (weight, x), True),
        ):
            text = f.trace(*given).lower(lowering_platforms=PLATFORMS).as_text()
            assert ("all_reduce" in text) == collective
