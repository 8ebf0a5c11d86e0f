"""Losses of tokens: TRL's numbers, NumPy formulas and their differences, identities, edges."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jdiv import generators
from jdiv.distillation import token
from tests.checks import refused

FILE = pathlib.Path(__file__).parents[1] / "data" / "distillation_losses.json"
RNG = np.random.default_rng(3)
N = 6

# ------------------------------------------------------------------------- in NumPy, by the letter


def log_softmax(x):
    """Of `[n]` logits."""
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def times(weight, cost):
    """`sum weight * cost` with 0 times anything 0."""
    return sum(w * c for w, c in zip(weight, cost, strict=True) if w > 0)


def kl(log_p, log_q):
    """KL(p‖q) of log-probabilities."""
    with np.errstate(invalid="ignore"):
        return times(np.exp(log_p), log_p - log_q)


def mixed(log_p, log_q, weight):
    """`log((1 - weight) p + weight q)`."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-weight) + log_p, np.log(weight) + log_q)


def gkd(s, t, beta):
    m = mixed(s, t, beta)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def gkd_continuous(s, t, beta):
    m = mixed(s, t, beta)
    return (1 - beta) * kl(t, m) + beta * kl(s, m)


def conditioned(logits, kept):
    """Log-probabilities given the categories that are kept; None if they have no mass."""
    left = np.where(kept, logits, -np.inf)
    return None if left.max() == -np.inf else log_softmax(left)


def of_others(s, t, y, cost):
    """`cost(S^, T^)`: 0 if T has none, infinite if S alone has none."""
    s, t = (conditioned(x, np.arange(N) != y) for x in (s, t))
    return 0.0 if t is None else np.inf if s is None else cost(s, t)


def cross_entropy(s, t):
    return times(np.exp(t), -s)


def decoupled(s, t, y, temperature):
    s, t = log_softmax(s / temperature), log_softmax(t / temperature)
    others = np.arange(N) != y
    pair = lambda x: np.array([x[y], np.logaddexp.reduce(x[others])])
    parts = kl(pair(t), pair(s)), of_others(s, t, y, lambda s, t: kl(t, s))
    return temperature**2 * (0.7 * parts[0] + 1.3 * parts[1])


def nkd(s, t, y, temperature):
    s, t = log_softmax(s), log_softmax(t)
    rest = of_others(s / temperature, t / temperature, y, cross_entropy)
    return times([np.exp(t[y])], [-s[y]]) + 1.2 * temperature**2 * rest


def uskd(s, w, y, mean):
    s, w = log_softmax(s), log_softmax(w)
    exists = (s > -np.inf) | (w > -np.inf)
    smooth = np.where(exists, 0.9 * (np.arange(N) == y) + 0.1 / exists.sum(), 0)
    given = of_others(s, w, y, np.logaddexp)
    score = given if np.ndim(given) else np.zeros(N)
    ranked = [i for i in np.argsort(-score, kind="stable") if i != y and exists[i]]
    zipf = np.full(N, -np.inf)
    zipf[ranked] = -np.log(1 + np.arange(len(ranked)))
    rest = of_others(s, zipf, y, cross_entropy)
    share = np.exp(2 * s[y]) + 0.8 - mean
    return times([share], [-s[y]]) + 0.1 * rest + 0.5 * times(smooth, -w)


def clipped(s, t):
    p = np.exp(t)
    kept = conditioned(t, (p >= 0.05) & (p <= 0.8))
    return 0.0 if kept is None else kl(kept, s)


def latent(s, t, temperature):
    s, t = log_softmax(s / temperature), log_softmax(t / temperature)
    kept = np.isin(np.arange(N), np.argsort(-t, kind="stable")[:3])
    return temperature**2 * kl(conditioned(t, kept), s)


def two(f):
    """A reference with log-probabilities at both temperatures."""
    return lambda s, t, y, hot, cold: f(log_softmax(s / hot), log_softmax(t / cold))


REFERENCE = {
    "reverse KL": two(kl),
    "forward KL": two(lambda s, t: kl(t, s)),
    "alpha": two(lambda s, t: 4 * (1 - np.exp((s + t) / 2).sum())),
    "gkd": two(lambda s, t: gkd(s, t, 0.3)),
    "gkd_continuous": two(lambda s, t: gkd_continuous(s, t, 0.3)),
    "skew_forward_kl": two(lambda s, t: kl(t, mixed(t, s, 0.9))),
    "skew_reverse_kl": two(lambda s, t: kl(s, mixed(s, t, 0.8))),
    "clipped": two(clipped),
    "decoupled": lambda s, t, y, hot, cold: decoupled(s, t, y, hot),
    "nkd": lambda s, t, y, hot, cold: nkd(s, t, y, hot),
    "latent_sft": lambda s, t, y, hot, cold: latent(s, t, hot),
}


def losses(y, hot, cold, **options):
    """All losses of the module at the reference's parameters, functions of both sides."""
    both = {"student_temperature": hot, "teacher_temperature": cold, **options}
    one = {"temperature": hot, **options}
    of = functools.partial
    row = lambda name, **parameters: of(
        token.divergence, generator=generators.get(name, **parameters), **both
    )
    return {
        "reverse KL": row("kl"),
        "forward KL": row("reverse_kl"),
        "alpha": row("alpha", alpha=0.5),
        "gkd": of(token.gkd, beta=0.3, **both),
        "gkd_continuous": of(token.gkd_continuous, beta=0.3, **both),
        "skew_forward_kl": of(token.skew_forward_kl, **both),
        "skew_reverse_kl": of(token.skew_reverse_kl, skew=0.8, **both),
        "clipped": of(token.clipped, low=0.05, high=0.8, **both),
        "decoupled": lambda s, t: token.decoupled(s, t, y, alpha=0.7, beta=1.3, **one),
        "nkd": lambda s, t: token.nkd(s, t, y, gamma=1.2, **one),
        "latent_sft": of(token.latent_sft, k=3, **one),
        "uskd": lambda s, t: token.uskd(s, t, y, share=0.8, weak_weight=0.5, **options),
    }


@jax.jit
def values_and_gradients(s, t, y, hot, cold, mask, where):
    """By name the values `[rows]` and the gradients by both sides, `[rows, N]` each."""
    found = {}
    for name, loss in losses(y, hot, cold, mask=mask, where=where).items():
        value, pull = jax.vjp(loss, s, t)
        found[name] = value, *pull(jnp.ones_like(value))
    return found


# ------------------------------------------------------------------------------------ edges, values

INF, NAN = np.inf, np.nan
EDGES = {  # student, teacher, label, temperatures, mask, where
    "plain": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25], 3),
    "colder": ([0.5, -1.5, 1.25, 1.0, -1.0, 0.5], [1.5, 1.0, 2.0, -1.5, 0.0, -0.25], 0),
    "equal": ([1.0, 0.5, -2.0, 1.5, 0.0, -0.25],) * 2 + (1,),
    "frozen": ([1.5, -0.5, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, -0.25], 3, 0.05, 0.05),
    "student zero": ([1.5, -INF, 0.25, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 1.5, 0.0, 0.5], 3),
    "teacher zero": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [1.5, -INF, 0.25, 2.0, -INF, 0.0], 3),
    "zeros of both": ([0.5, -INF, -2.0, 1.5, 0.0, 0.5], [1.5, -INF, 0.25, 2.0, -1.0, 0.0], 3),
    "label's zero": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [1.5, -INF, 0.25, 2.0, -1.0, 0.0], 1),
    "sure teacher": ([0.5, 1.0, -2.0, 1.5, 0.0, 0.5], [-INF, -INF, 0.0, -INF, -INF, -INF], 2),
    "sure student": ([-INF, -INF, 0.0, -INF, -INF, -INF], [0.5, 1.0, -2.0, 1.5, 0.0, 0.5], 2),
    "disjoint": ([0.0, 1.0, -INF, -INF, -INF, -INF], [-INF, -INF, 0.0, 1.0, 0.0, 1.0], 2),
    "tails": ([0.0, -112, -110, -120, -108, -130], [0.0, -110, -120, -112, -125, -106], 0),
    "tails, other": ([0.0, -112, -110, -120, -108, -130], [-110, 0.0, -120, -112, -125, -106], 0),
    "far": ([1000, -1000, 500, 0.0, -500, 100], [-1000, 1000, 0.0, 500, 100, -500], 1),
    "masked": ([NAN] * 6, [NAN, INF, 0.0, 0.0, 0.0, 0.0], -100, 1.0, 1.0, False),
    "nothing left": ([1.0] * 6, [0.0] * 6, 4, 1.0, 1.0, True, [False] * 6),
    "one left": ([1.0] * 6, [0.0] * 6, 4, 1.0, 1.0, True, [False] * 4 + [True, False]),
}


def columns():
    """The cases as arrays: student, teacher, labels, temperatures, mask, where."""
    defaults = None, None, None, 1.0, 1.0, True, [True] * N
    rows = [[*case, *defaults[len(case) :]] for case in EDGES.values()]
    rows[1][3:5] = 1.75, 0.5
    return [np.array(column) for column in zip(*rows, strict=True)]


def expected():
    """By name of the loss the references of all cases; masked ones are 0."""
    columns_ = columns()
    student, _, labels, _, _, mask, where = columns_
    counted = mask & where.any(-1)
    logs = [log_softmax(np.where(w, x, -INF))[y] for x, y, w, c in zip(student, labels, where,
            counted, strict=True) if c]  # fmt: skip
    mean = np.mean(np.exp(2 * np.array(logs)))
    found = {name: [] for name in (*REFERENCE, "uskd")}
    for s, t, y, hot, cold, counts, left in zip(*columns_[:5], counted, where, strict=True):
        s, t = (np.where(left, x, -INF) for x in (s, t))
        for name, f in REFERENCE.items():
            found[name].append(f(s, t, y, hot, cold) if counts else 0.0)
        found["uskd"].append(uskd(s, t, y, mean) if counts else 0.0)
    return found


def test_edges_are_right_in_double_precision_and_in_half():
    """Values are those of NumPy and infinite where they are; gradients are finite with them."""
    student, teacher, labels, hot, cold, mask, where = columns()
    exact = values_and_gradients(student, teacher, labels, hot, cold, mask, where)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    single = [np.float32(x) for x in (hot, cold)]
    rounded = values_and_gradients(*half, labels, *single, mask, where)
    names = list(EDGES)
    for name, values in expected().items():
        value, *gradients = exact[name]
        np.testing.assert_allclose(value, values, rtol=1e-11, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(rounded[name][0], values, rtol=2e-5, atol=1e-6, err_msg=name)
        assert rounded[name][0].dtype == jnp.float32
        finite = np.isfinite(value)
        for given, gradient, low in zip(
            (student, teacher), gradients, rounded[name][1:], strict=True
        ):
            kept = np.asarray(gradient)[finite]
            assert np.isfinite(kept).all(), name
            assert np.all(kept[~np.isfinite(given[finite])] == 0), name
            np.testing.assert_allclose(np.asarray(low, float)[finite], kept, rtol=0.02, atol=1e-5)
    equal, off = names.index("equal"), [names.index("masked"), names.index("nothing left")]
    for name, (value, *gradients) in exact.items():
        assert not np.any(value[np.array(off)]), name
        assert not any(np.any(gradient[np.array(off)]) for gradient in gradients), name
        if name not in ("nkd", "clipped", "latent_sft", "uskd"):
            assert value[equal] == 0, name
            assert not any(np.any(gradient[equal]) for gradient in gradients), name


def test_gradients_are_differences_of_the_plain_formulas():
    """Central differences in NumPy; where the teacher is a constant its gradient is 0."""
    cases = columns()
    exact = values_and_gradients(*cases)
    for i in (list(EDGES).index(name) for name in ("plain", "colder")):
        s, t, *others = (x[i] for x in cases[:5])
        for name, f in REFERENCE.items():
            slopes = differences(f, s, t, *others)
            if name in ("decoupled", "nkd"):
                slopes[1] = 0
            for gradient, slope in zip(exact[name][1:], slopes, strict=True):
                np.testing.assert_allclose(gradient[i], slope, rtol=1e-7, atol=1e-9, err_msg=name)


def differences(f, s, t, *others):
    """Central differences by both sides, `[2, N]`."""
    step = 1e-5 * np.eye(N)
    by_s = [f(s + h, t, *others) - f(s - h, t, *others) for h in step]
    by_t = [f(s, t + h, *others) - f(s, t - h, *others) for h in step]
    return np.array([by_s, by_t]) / 2e-5


def test_self_distillation_has_its_targets_for_constants():
    """USKD's gradients by their formulas: `P (S - e_y) + b (S^ - Z)`, and `w (W - Y)`."""
    student, weak, labels, _, _, mask, where = columns()
    _, by_s, by_w = values_and_gradients(*columns())["uskd"]
    rows = np.flatnonzero(mask & where.any(-1))
    at_label = [log_softmax(np.where(where[i], student[i], -INF))[labels[i]] for i in rows]
    mean = np.mean(np.exp(2 * np.array(at_label)))
    for i in (list(EDGES).index(name) for name in ("plain", "colder")):
        s, w, label = (
            np.exp(log_softmax(student[i])),
            np.exp(log_softmax(weak[i])),
            np.eye(N)[labels[i]],
        )
        s_others, w_others = (x * (1 - label) / (1 - x @ label) for x in (s, w))
        rank = np.argsort(np.argsort(-(s_others + w_others - 9 * label)))
        zipf = (1 - label) / (1 + rank)
        share = (s @ label) ** 2 + 0.8 - mean
        by_hand = share * (s - label) + 0.1 * (s_others - zipf / zipf.sum())
        np.testing.assert_allclose(by_s[i], by_hand, rtol=1e-11)
        np.testing.assert_allclose(by_w[i], 0.5 * (w - 0.9 * label - 0.1 / N), rtol=1e-11)


def test_gkd_is_that_of_trl():
    """Eighteen rows of TRL's own losses and gradients, summed over the tokens that count."""
    rows = json.loads(FILE.read_text())
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def total(student, teacher, mask, beta, temperature):
        both = {"student_temperature": temperature, "teacher_temperature": temperature}
        return jnp.sum(token.gkd(student, teacher, beta=beta, mask=mask, **both))

    names = ("student_logits", "teacher_logits", "mask", "beta", "temperature")
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(*(table[x] for x in names))
    assert len(rows) == 18
    np.testing.assert_allclose(values, table["value"], rtol=1e-10)
    np.testing.assert_allclose(gradients, table["grad_student"], rtol=1e-10, atol=1e-15)


def test_ends_and_limits_of_gkd():
    """D/b tends to KL(T‖S), D/(1-b) to KL(S‖T); the continuous one needs no quotient."""
    s, t = RNG.normal(size=(2, 50)) * 1.5
    betas = np.array([0.0, 1e-8, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-8, 1.0])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def both(s, beta):
        return [
            jax.value_and_grad(lambda s, f=f: f(s, t, beta=beta))(s)
            for f in (token.gkd, token.gkd_continuous)
        ]

    (jumping, _), (continuous, _) = both(s, betas)
    forward, reverse = kl(log_softmax(t), log_softmax(s)), kl(log_softmax(s), log_softmax(t))
    np.testing.assert_allclose([jumping[0], jumping[1] / 1e-8, *continuous[:2]], forward, rtol=1e-6)
    np.testing.assert_allclose([jumping[-1], *continuous[5:]], reverse, rtol=1e-6)
    np.testing.assert_allclose(jumping[5] / 1e-8, reverse, rtol=1e-6)
    np.testing.assert_allclose(continuous[3], jumping[3], rtol=1e-14)
    assert np.isnan(both(s, np.full(7, 1.5))[0][0]).all()
    static = token.gkd(s, t, beta=0.0), token.gkd_continuous(s, t, beta=1.0)
    np.testing.assert_allclose(static, [forward, reverse], rtol=1e-12)
    s[7] = -INF  # forward KL is infinite, and no derivative of another beta suffers from it
    for values, slopes in both(s, betas):
        np.testing.assert_array_equal(np.isfinite(values), betas > 0)
        assert np.isfinite(slopes[1:]).all()


def test_chain_rule_of_the_label_and_the_others():
    """KL(T‖S) = KL(b_T‖b_S) + (1 - T_y) KL(T^‖S^), the second 0 for two categories."""

    @jax.jit
    def parts(s, t, y):
        rest = -jnp.expm1(jnp.take_along_axis(jax.nn.log_softmax(t), y[:, None], axis=-1)[:, 0])
        of = lambda alpha, beta: token.decoupled(s, t, y, alpha=alpha, beta=beta)
        return of(1.0, rest), of(0.0, 1.0), token.latent_sft(s, t)

    s, t = 3 * RNG.normal(size=(2, 8, 5))
    y = RNG.integers(5, size=8)
    whole, _, full = parts(s, t, y)
    np.testing.assert_allclose(whole, full, rtol=1e-12)
    two_of = np.where(np.arange(5) < 2, [s, t], -INF)
    whole, others, full = parts(*two_of, y % 2)
    np.testing.assert_allclose(whole, full, rtol=1e-12)
    assert not np.any(others)


def test_a_temperature_has_a_derivative_beside_zeros():
    s, t = np.array([0.5, -INF, 1.0]), np.array([1.0, -INF, 0.0])
    of = lambda hot: token.latent_sft(s, t, temperature=hot)
    slope = jax.grad(of)(1.5)
    np.testing.assert_allclose(slope, (of(1.5 + 1e-6) - of(1.5 - 1e-6)) / 2e-6, rtol=1e-7)


def test_schedule_and_refusals():
    steps = jax.vmap(lambda step: token.temperature_schedule(step, 8, high=3.0))(np.arange(10))
    np.testing.assert_allclose(steps, np.maximum(3 - np.arange(10) / 4, 1))
    s, wide = np.zeros((2, 3)), np.zeros((2, 4))
    row = functools.partial(token.divergence, generator=generators.kl())
    for words, call in (
        (["student_logits", "teacher_logits", "(2, 4)"], lambda: row(s, wide)),
        (["student_temperature", "positive"], lambda: row(s, s, student_temperature=0.0)),
        (["mask", "(3,)"], lambda: row(s, s, mask=np.ones(3, bool))),
        (["where"], lambda: row(s, s, where=np.ones(4, bool))),
        (["beta", "from 0 to 1"], lambda: token.gkd(s, s, beta=1.5)),
        (["labels", "one label"], lambda: token.nkd(s, s, np.zeros(3, int))),
        (["k", "from 1 to 3"], lambda: token.latent_sft(s, s, k=4)),
    ):
        refused(ValueError, words, call)
    assert np.isnan(token.nkd(s, s, np.array([-1, 3]))).all()
