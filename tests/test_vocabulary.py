"""One name for one thing: every public signature of the library is read here.

A parameter has a name that stands below. A new word is added where its like stands, after a look
whether the thing has a name already.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

VOCABULARY = {
    "weights of a divergence, and steps": """
        temperature ref_temperature old_temperature beta coefficient kl_weight entropy_weight
        step_size share""",
    "divergences and rows": """
        generator p q p_logits q_logits log_p log_q axis where t s index alpha gamma order skew
        weight penalties invertible x y at_zero slope_at_zero slope_at_infinity""",
    "policies and references": """
        policy log_policy logits ref_logits old_logits old_log_policy other_logits main_logits
        first_logits second_logits target_logits log_target proposal_logits log_proposal
        log_opponent log_data log_occupancy ref_occupancy log_returns log_law log_scores
        logits_next old_logits_next other""",
    "tokens, sequences and pairs": """
        log_probs old_log_probs ref_log_probs proxy_log_probs log_ratio log_weight log_weights
        advantages rewards reward token_rewards returns mask lengths total chosen rejected
        ref_chosen ref_rejected old_chosen old_rejected sampled ref_sampled real generated ref_real
        ref_generated desirable old_real old_generated log_coverage old_log_coverage tokens""",
    "games": "preference win_probability wins pairs",
    "planning": """
        mdp discount horizon iterations evaluations scheme measure errors samples value values
        target greedy_step soft_step improvement reward action actions states branches length width
        height slip walls level degree depth children support choice visited outcomes nodes""",
    "bandits": """
        arms losses learner estimator means mean pulls confidence exploration prior optimistic
        features targets loss implicit oracle best_loss levels rules rounds ridge bonus precision
        center counts differences data given problem play curvature residual diameter dimension
        inputs offset gradient count_present uniform bias variance""",
    "recipes and trust regions": """
        low high ceiling lowest highest limit radius damping backtracks shrink parameters surrogate
        divergence direction scale threshold count eligible weights kl old_kl entropy
        initial_entropy accuracy correct penalized correctness reflections potential saturation
        shaping solved utilities change normalized phase steps as_released push pull rho kappa runs
        estimator penalty average positive negative by_sequence""",
    "preferences, best of n, rewards": """
        margin label_smoothing n c budget moments shift r_max proxy gold proxy_gain chi2 transform
        quantile cells exponent unbiased baseline window size policy_scores ref_scores members""",
    "estimators and transport": """
        scores p_scores q_scores log_baseline clip k chunk_size bandwidth kernel distances positions
        cost epsilon max_iterations covariance""",
    "networks": """
        hyper settings environment batch q_next layers sizes models train end state number
        vocabulary longest power shape""",
    "language models": """
        tile token_weights indices model config architecture dtype path slots remember max_tokens
        tokenizer optimizer grammar sequences prompt answer stop top_k top_p min_p positions
        segments rank pattern factors whole base vectors right answers inner""",
    "distillation": """
        student_logits teacher_logits student_temperature teacher_temperature weak_logits
        weak_weight student_features teacher_features centroid_logits teacher_log_probs labels
        classes bins buckets smoothing directions head crucial wrong teacher ranking tail""",
    "unlearning": "demotion outputs margins ref_margins product",
    "decoding": "price strength automaton accepts sampler memory rule",
    "randomness": "key keys seed seeds",
    "numerics and checks": """
        rows name closed allowed cls default example dtype f start newton tolerance kept expected a
        b r dtype times log_mass normalizers""",
    "gradients of any loss": "objective differentiate batches lag torch",
    "devices, files and collectives": """
        axis_name devices points shared optimized lanes tree program flag grads coordinator_address
        num_processes process_id timeout folder step arrays keep report""",
}
ALLOWED = {word for words in VOCABULARY.values() for word in words.split()}

REPLACED = {
    "eta": "temperature, beta or step_size",
    "tau": "temperature or beta",
    "rate": "step_size, or share for a mixture",
    "lr": "step_size",
    "log_reference": "ref_logits",
    "log_base": "ref_logits",
    "log_prior": "ref_logits",
    "log_ref": "ref_logits",
    "reference": "ref_logits",
    "ref": "ref_logits",
    "log_prob": "log_probs",
    "ref_log_prob": "ref_log_probs",
    "sequence_log_probs": "log_probs",
    "previous": "old_logits or old_log_probs",
    "previous_logits": "old_logits",
    "log_previous": "old_log_policy",
    "q_index": "index",
    "rng": "key",
    "eps": "nothing: no epsilon is added anywhere",
}
BRITISH = re.compile(
    r"(normal|regular|penal|optim|minim|maxim|factor|general|initial|discret|parametr)is(e|ed|er|ation)"
    r"|colour|behaviour|favour|centre"
)


def public_functions():
    """Name, file and syntax of every public function of a public module."""
    for path in sorted((ROOT / "jdiv").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{path.relative_to(ROOT)}: {node.name}", path, node


FUNCTIONS = list(public_functions())


def parameters(node):
    """Positional and keyword-only parameters."""
    return [*node.args.posonlyargs, *node.args.args], node.args.kwonlyargs


def every(node):
    """All parameters."""
    return [parameter for kind in parameters(node) for parameter in kind]


def test_every_parameter_is_in_the_vocabulary():
    unknown = [
        f"{where}({parameter.arg}): {REPLACED.get(parameter.arg, 'no word of the vocabulary')}"
        for where, _, node in FUNCTIONS
        for parameter in every(node)
        if parameter.arg not in ALLOWED
    ]
    assert unknown == []


def test_no_word_of_the_vocabulary_is_unused():
    used = {p.arg for *_, node in FUNCTIONS for p in every(node)}
    assert sorted(ALLOWED - used) == []
    assert sorted(ALLOWED & set(REPLACED)) == []


def test_every_parameter_and_result_has_a_type():
    bare = [
        f"{where}({parameter.arg})"
        for where, _, node in FUNCTIONS
        for parameter in every(node)
        if parameter.annotation is None
    ]
    bare += [f"{where} -> ?" for where, _, node in FUNCTIONS if node.returns is None]
    assert bare == []


def test_a_key_is_the_last_positional_parameter():
    wrong = [
        where
        for where, _, node in FUNCTIONS
        if "key" in [p.arg for p in parameters(node)[1]]
        or "key" in [p.arg for p in parameters(node)[0][:-1]]
    ]
    assert wrong == []


def test_a_generator_is_first_in_what_is_made_of_it_and_a_keyword_elsewhere():
    for where, path, node in FUNCTIONS:
        positional = [p.arg for p in parameters(node)[0]]
        if "generator" in positional:
            first = positional[0] == "generator"
            about_rows = path.parent.name in ("divergences", "estimators")
            assert first, where
            assert about_rows or node.name in FIRST, where


FIRST = ("ftrl", "online_mirror_descent", "exploring", "divergence", "penalty_reward")
"""Functions elsewhere of which a row is the subject."""


def identifiers(path):
    """Names of functions, classes, parameters and fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("package", ["jdiv", "experiments", "configs"])
def test_identifiers_are_spelt_as_in_jax(package):
    british = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in identifiers(path)
        if BRITISH.search(name)
    }
    assert sorted(british) == []
