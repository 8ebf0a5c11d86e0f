"""Random problems of `regularized.greedy`, judged by its conditions of optimality in NumPy.

`python -m tests.search.greedy --problems=20000` solves half as many problems in both precisions:
every row with random parameters, 2 to 2,000 actions, references 1 to 100 wide, temperatures from
1e-4 to 1e4, ties, masks of four kinds. A policy is wrong if its value is below that of another one
(every single action, the reference, mixtures, the policy found in the other precision), or if it
has converged and misses `f'(pi/ref) = (v - c)/temperature`, with formulas of f' of its own.
"""

import argparse
import collections
import functools

import jax
import numpy as np

from jdiv import generators, regularized

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-11}


# f and f' by t = log u, up to f'(1), and the parameter.
def _power(t, a, scale):
    if a == 1:
        return scale * (t * np.exp(t) - np.expm1(t)), scale * t
    if a == 0:
        return scale * (np.expm1(t) - t), -scale * np.expm1(-t)
    value = (np.exp(a * t) - a * np.expm1(t) - 1) / (a * (a - 1))
    return scale * value, scale * np.expm1((a - 1) * t) / (a - 1)


def _jensen_shannon(t, w):
    over_m = -np.logaddexp(np.log(w), np.log1p(-w) - t)  # log u/m
    value = w * np.exp(t) * over_m - (1 - w) * np.logaddexp(np.log(w) + t, np.log1p(-w))
    return value, w * over_m


def _skew_kl(t, s):
    over_m = -np.logaddexp(np.log1p(-s), np.log(s) - t)
    share = (1 - s) * np.exp(over_m)
    return np.exp(t) * over_m - s * np.expm1(t), over_m - share + (1 - s)


def _sum(t, gamma):
    (a, b), (c, d) = _power(t, 2, 1), _power(t, 1, gamma)
    return a + c, b + d


ROWS = {
    "kl": lambda t, _: _power(t, 1, 1),
    "reverse_kl": lambda t, _: _power(t, 0, 1),
    "jeffreys": lambda t, _: (t * np.expm1(t), t - np.expm1(-t)),
    "jensen_shannon": _jensen_shannon,
    "skew_kl": _skew_kl,
    "total_variation": lambda t, _: (np.abs(np.expm1(t)) / 2, np.sign(t) / 2),
    "squared_hellinger": lambda t, _: _power(t, 0.5, 0.25),
    "pearson_chi2": lambda t, _: _power(t, 2, 2),
    "neyman_chi2": lambda t, _: _power(t, -1, 2),
    "le_cam": lambda t, _: (np.expm1(t) * np.tanh(t / 2) / 2, 0.5 - 2 / (1 + np.exp(t)) ** 2),
    "alpha": lambda t, a: _power(t, a, 1),
    "tsallis": lambda t, k: _power(t, k, k),
    "chi2_kl": _sum,
}
PARAMETERS = {
    "jensen_shannon": ("weight", lambda rng: rng.uniform(0.01, 0.99)),
    "skew_kl": ("skew", lambda rng: rng.uniform(0.01, 0.99)),
    "alpha": ("alpha", lambda rng: rng.choice([rng.uniform(-3, 4), 0, 1, 2, 3, 10, 20])),
    "tsallis": ("index", lambda rng: rng.uniform(0.1, 4)),
    "chi2_kl": ("gamma", lambda rng: np.exp(rng.uniform(-3, 3))),
}


def problems(name, rng, count, size):
    """Values, reference logits, mask and temperature of problems padded to this many actions."""
    n = np.exp(rng.uniform(np.log(2), np.log(size + 1), count)).astype(int)
    width = np.exp(rng.uniform(0, np.log(100), count))
    temperature = np.exp(rng.uniform(np.log(1e-4), np.log(1e4), count)).astype(np.float32)
    values = rng.normal(size=(count, size))
    ties = rng.random(count) < 0.3
    values[ties] = np.round(values[ties], 0 if rng.random() < 0.5 else 1)
    ref = width[:, None] * rng.normal(size=(count, size))
    masked = rng.random((count, size)) < rng.choice([0, 0.3], count)[:, None]
    masked[:, 0] = False
    kinds = np.array([-np.inf, -1e9, np.finfo(np.float32).min, 0])  # 0: only in where
    kind = kinds[rng.integers(0, 4, count)][:, None]
    beyond = np.arange(size) >= n[:, None]
    ref = np.where(masked & (kind != 0), kind, ref)
    where = ~beyond & ~(masked & (kind == 0))
    values[~where] = np.nan
    parameter = None
    if name in PARAMETERS:
        parameter = np.array([PARAMETERS[name][1](rng) for _ in range(count)], np.float32)
    log_ref = np.where(masked | beyond, -np.inf, ref.astype(np.float32).astype(float))
    return values.astype(np.float32), ref.astype(np.float32), where, temperature, parameter, log_ref


@functools.cache
def solver(name):
    def solve(values, ref, where, temperature, parameter):
        given = {} if parameter is None else {PARAMETERS[name][0]: parameter}
        generator = generators.get(name, **given)
        return regularized.greedy(values, ref, temperature, generator=generator, where=where)

    return jax.jit(solve)


def objective(row, parameter, values, log_ref, temperature, log_policy):
    """`<pi, v> - temperature D(pi‖ref)`, in double precision."""
    present = log_ref > -np.inf
    t = np.where(present, log_policy - log_ref, 0)
    cost = np.exp(log_ref) * row(t, parameter)[0]
    at_zero = row(np.array(-700.0), parameter)[0]  # f(0), or so large that it does not matter
    cost = np.where(log_policy == -np.inf, np.exp(log_ref) * at_zero, cost)
    cost = np.where(present, cost, 0)
    return np.sum(np.exp(log_policy) * np.where(present, values, 0)) - temperature * np.sum(cost)


def missed(row, parameter, values, log_ref, temperature, log_policy):
    """By how much a policy misses its conditions, relative to the rounding of what is compared."""
    total = abs(np.sum(np.exp(log_policy)) - 1)
    present = log_ref > -np.inf
    values, log_ref, log_policy = (x[present] for x in (values, log_ref, log_policy))
    kept = log_policy > -np.inf
    t = np.where(kept, log_policy - log_ref, -700)
    slope = row(t, parameter)[1]
    curvature = (row(t + 1e-4, parameter)[1] - row(t - 1e-4, parameter)[1]) / 2e-4
    size = np.maximum(np.maximum(np.abs(t), np.abs(log_ref)), 1)
    scale = temperature * (np.abs(slope) + np.where(kept, curvature * size, 0))
    normalizers = values - temperature * slope
    best = np.argmin(np.where(kept, scale, np.inf))
    difference = normalizers - normalizers[best]
    allowed = scale + scale[best] + np.abs(values - values[best])
    relative = np.where(kept, np.abs(difference), np.maximum(difference, 0))
    relative = relative / np.where(relative > 0, allowed, 1)
    return max(total, np.max(relative))


def others(row, parameter, values, log_ref, temperature, *found):
    """The best value of other policies."""
    present = np.flatnonzero(log_ref > -np.inf)
    tried = present[np.argsort(-values[present])][:20]
    policies = [np.where(np.arange(len(values)) == i, 0.0, -np.inf) for i in tried]
    policies += [np.logaddexp(policies[0], log_ref) - np.log(2), log_ref]
    policies += [p - np.logaddexp.reduce(p) for p in found]
    return max(objective(row, parameter, values, log_ref, temperature, p) for p in policies)


def judge(name, rng, count, size):
    """Problems of one row in both precisions: what is wrong with which, and a tally."""
    values, ref, where, temperature, parameter, exact = problems(name, rng, count, size)
    row, wrong, tally = ROWS[name], [], collections.Counter()
    found = {}
    for dtype in TOLERANCE:
        cast = [None if x is None else x.astype(dtype) for x in (values, ref, temperature)]
        own = None if parameter is None else parameter.astype(dtype)
        found[dtype] = jax.tree.map(np.asarray, solver(name)(cast[0], cast[1], where, cast[2], own))
    exact = exact - np.logaddexp.reduce(np.where(where, exact, -np.inf), axis=-1)[:, None]
    exact = np.where(where, exact, -np.inf)
    for i in range(count):
        own = None if parameter is None else float(parameter[i])
        v = np.where(exact[i] > -np.inf, values[i].astype(float), 0)
        problem = row, own, v, exact[i], float(temperature[i])
        log_policies = [x.log_policy[i].astype(float) for x in found.values()]
        best = others(*problem, *log_policies)
        for (dtype, tolerance), log_policy in zip(TOLERANCE.items(), log_policies, strict=True):
            at = found[dtype]
            tally[dtype.name, "problems"] += 1
            tally[dtype.name, "steps"] = max(tally[dtype.name, "steps"], int(at.iterations))
            reasons = []
            if not at.converged[i]:
                tally[dtype.name, "not converged"] += 1
            elif name != "total_variation" and not missed(*problem, log_policy) <= tolerance:
                reasons.append(f"converged, missed by {missed(*problem, log_policy):.1e}")
            value = objective(*problem, log_policy)
            spent = abs(np.sum(np.exp(log_policy) * v) - value) + np.ptp(v) + np.max(np.abs(v))
            # A policy is rounded: to first order that costs where the slope jumps at 1.
            spent += temperature[i] * (1e-4 if name != "total_variation" else 1)
            for kind, own_value in (("value", at.value[i]), ("policy", value)):
                if not own_value >= best - 10 * tolerance * spent:
                    reasons.append(f"{kind} {own_value:.6g} below {best:.6g}")
            if reasons:
                wrong.append((name, dtype.name, size, i, own, float(temperature[i]), reasons))
    return wrong, tally


def search(count, *, names=tuple(ROWS), sizes=(32, 2000), seed=0):
    """Half of `count` problems in both precisions; a tenth of them with up to the largest size."""
    rng, wrong, tally = np.random.default_rng(seed), [], {}
    for name in names:
        tally[name] = collections.Counter()
        for share, size in zip((0.9, 0.1), sizes, strict=False):
            some = max(1, round(share * count / 2 / len(names)))
            with np.errstate(all="ignore"):
                bad, counts = judge(name, rng, some, size)
            wrong += bad
            steps = {key: max(counts[key], tally[name][key]) for key in counts if "steps" in key}
            tally[name].update(counts)
            for key, value in steps.items():
                tally[name][key] = value
    return wrong, tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--sizes", default="32,2000")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for one in given.rows.split(","):
        bad, counts = search(
            given.problems * 1 // len(given.rows.split(",")), names=(one,), seed=given.seed,
            sizes=tuple(map(int, given.sizes.split(","))),
        )  # fmt: skip
        print(one, {" ".join(key): value for key, value in counts[one].items()}, flush=True)
        print(f"  {len(bad)} wrong", *bad[:8], sep="\n    ", flush=True)
