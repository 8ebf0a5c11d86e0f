"""Best of n against the tilt for a memoryless source, exactly by types, and for random sources.

Yang et al. 2024 (arXiv:2404.01730): reward log q, reference p, the tilt phi ∝ p q^alpha at a KL of
Delta, and the best of N blocks of m letters. A law over blocks is one over types, the counts of
each letter, as reward and reference depend on nothing else.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jax import Array
from jax.scipy.special import gammaln
from ml_collections import ConfigDict

from experiments.lab.claims import Claim
from experiments.lab.plots import Picture
from jdiv import divergences, generators
from jdiv.alignment import asymptotics, best_of_n, tilts

TRACED = ("seed",)
LETTERS = 3
PAIRS = tuple(f"{a}{b}" for a in range(LETTERS) for b in range(LETTERS))
DESIGNS = ("uniform", "dirichlet", "normal")
TILT = ("alpha", "phi 0", "phi 1", "phi 2", "reward", "base reward", "kl at 1", "most kl")
DIMS = {
    "table": ("block", "pair"),
    "tilt": ("of", "what"),
    "type": ("trial", "letter"),
    "type_kl": ("trial",),
    "matched": ("trial", "letter"),
    "per_letter": ("to", "length"),
    "reward": ("length",),
    "mass": ("law", "length"),
    "curve_kl": ("step",),
    "curve_reward": ("step",),
    "trial_reward": ("trial",),
    "excess": ("policy", "term"),
    "rate": ("of",),
    "source_kl": ("source", "design", "draw"),
}
SOURCE = "Yang et al. 2024 (arXiv:2404.01730)"
COMPUTED = f"{SOURCE}; an independent computation"
# Example 2: m = N = 2, p = (.2, .3, .5), r = (log 6, 0, log 2).
TABLE = {
    "00": Fraction(49, 625), "01": Fraction(21, 250), "02": Fraction(43, 250),
    "10": Fraction(21, 250), "11": Fraction(81, 10000), "12": Fraction(9, 125),
    "20": Fraction(43, 250), "21": Fraction(9, 125), "22": Fraction(103, 400),
}  # fmt: skip
MARGINAL = Fraction(209, 625)
AT_BUDGET = (0.709138, 0.389396, 0.163933, 0.446670, -1.189911, -1.492299, 0.221013, 1.609438)
PER_LETTER = {10: 0.02831, 20: 0.02015, 40: 0.01515, 80: 0.01104, 160: 0.00746}
REWARD = {10: -1.3241, 20: -1.2811, 40: -1.2461, 80: -1.2231, 160: -1.2092}
EXAMPLE = (0.29747, 0.21209, 0.49044)
MATCHED = (0.31319, 0.20954, 0.47727)
ALPHAS = np.linspace(0, 6, 121)[1:]


def coordinates(config: ConfigDict) -> dict[str, object]:
    """Labels of all tables."""
    return {
        "block": ("best of 2", "best of 1", "product"),
        "pair": PAIRS,
        "of": ("log q", "q"),
        "what": TILT,
        "trial": config.draws,
        "letter": tuple(range(LETTERS)),
        "to": ("same budget", "half of it"),
        "length": config.lengths,
        "law": ("log space", "powers"),
        "term": ("kl", "gap"),
        "source": tuple(map(_source, config.source)),
        "design": DESIGNS,
    }


def validate(config: ConfigDict, point: dict) -> None:
    """Refuses sources of other than three letters, and blocks that the claims miss."""
    for name in ("base", "target"):
        law = config[name]
        if len(law) != LETTERS or min(law) <= 0 or abs(sum(law) - 1) > 1e-12:
            raise ValueError(f"config.{name} must be {LETTERS} probabilities, got {law}")
    if not set(PER_LETTER) <= set(config.lengths):
        raise ValueError(f"config.lengths must have {list(PER_LETTER)}, got {config.lengths}")
    if 3 not in config.draws:
        raise ValueError(f"config.draws must have 3, got {config.draws}")


def _source(source: tuple[int, int]) -> str:
    """Its label."""
    return f"{source[0]} letters, best of {source[1]}"


def types(longest: int) -> Array:
    """Counts of the first two letters of blocks of up to `longest`: `[types, 2]`."""
    first, second = np.indices((longest + 1, longest + 1)).reshape(2, -1)
    kept = first + second <= longest
    return jnp.asarray(np.stack([first[kept], second[kept]], axis=1))


def of_length(counts: Array, length: Array) -> tuple[Array, Array]:
    """All three counts of blocks of a length, and which of the types there are."""
    last = length - jnp.sum(counts, axis=-1)
    there = last >= 0
    counts = jnp.concatenate([counts, last[:, None]], axis=-1)
    return jnp.where(there[:, None], counts, 0).astype(jnp.result_type(float)), there


def log_ways(counts: Array, there: Array) -> Array:
    """Logarithm of the number of blocks of each type; -inf for what is none."""
    length = jnp.max(jnp.sum(counts, axis=-1))
    ways = gammaln(length + 1) - jnp.sum(gammaln(counts + 1), axis=-1)
    return jnp.where(there, ways, -jnp.inf)


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array]:
    """Laws of blocks first, as the tilts at their KL come with all other tilts in one search."""
    log_p, log_q = jnp.log(jnp.array(config.base)), jnp.log(jnp.array(config.target))
    of_policies, of_sources = jax.random.split(key)
    lengths = jnp.asarray(config.lengths + (10,) * len(config.draws))
    rates = jnp.exp(config.budget * lengths[: len(config.lengths)].astype(log_p.dtype))
    n = jnp.concatenate([rates, jnp.asarray(config.draws, log_p.dtype)])
    each = types(max(config.lengths))
    blocks = jax.vmap(block, (None, 0, 0, None, None))(each, lengths, n, log_p, log_q)
    long = {name: value[: len(config.lengths)] for name, value in blocks.items()}
    short = {name: value[len(config.lengths) :] for name, value in blocks.items()}

    spent = jnp.where(short["kl"] > 0, short["kl"] / 10, 1)  # the best of one is the base
    rewards, budgets = random_policies(config, of_policies)
    fixed = jnp.stack([log_q, jnp.exp(log_q), log_q])
    budget = jnp.asarray(config.budget, log_p.dtype)
    rewards = jnp.concatenate([fixed, _rows(log_q, len(spent)), rewards])
    budgets = jnp.concatenate([jnp.stack([budget, budget, budget / 2]), spent, budgets])
    found = tilts.tilted_to(rewards, _rows(log_p, len(rewards)), budgets, generator=generators.kl())
    phi, _, half = found.log_policy[:3]
    psi = found.log_policy[3 + len(spent) :]

    # Tilts at given temperatures, ref exp(alpha r): alpha = 1 for both rewards, and the family.
    by = jnp.concatenate([fixed[:2], jnp.asarray(ALPHAS)[:, None] * log_q[None]])
    base = _rows(log_p, len(by))
    family = tilts.pointwise(base, by)
    kl = divergences.kl(family, base)
    tilt = jnp.exp(found.log_policy[:2])
    numbers = [
        1 / found.beta[:2, None], tilt, (tilt @ log_q)[:, None],
        _rows(jnp.exp(log_p) @ log_q[:, None], 2), kl[:2, None],
        _rows(-log_p[jnp.argmax(log_q)][None], 2),
    ]  # fmt: skip

    def per_letter(law: Array, ways: Array, counts: Array, letters: Array) -> Array:
        return divergences.kl(law, ways + counts @ letters)

    to = jax.vmap(jax.vmap(per_letter, (0, 0, 0, None)), (None, None, None, 0))
    to_tilts = to(long["law"], long["log_ways"], long["counts"], jnp.stack([phi, half]))
    level = jnp.exp(phi) @ log_q
    return of_pairs(log_p) | {
        "tilt": jnp.concatenate(numbers, axis=1),
        "curve_kl": kl[2:],
        "curve_reward": jnp.exp(family[2:]) @ log_q,
        "per_letter": to_tilts / jnp.asarray(config.lengths, log_p.dtype)[None],
        "reward": long["type"] @ log_q,
        "mass": long["mass"].T,
        "type": short["type"],
        "type_kl": short["kl"],
        "trial_reward": short["type"] @ log_q,
        "matched": jnp.exp(found.log_policy[3 : 3 + len(spent)]),
        "rate": jax.vmap(asymptotics.rate_function, (None, None, 0))(
            log_q, log_p, tilt @ log_q
        ).divergence,
        "excess": jnp.stack([divergences.kl(psi, _rows(phi, len(psi))),
                             level - jnp.exp(psi) @ log_q], axis=-1),
        "source_kl": of_random_sources(config, of_sources),
    }  # fmt: skip


def _rows(row: Array, number: int) -> Array:
    """The same row several times."""
    return jnp.broadcast_to(row, (number, *row.shape))


def of_pairs(log_p: Array) -> dict[str, Array]:
    """Example 2: laws of pairs of letters for the best of two and of one, and of the marginals."""
    reward = jnp.log(jnp.array([6.0, 1.0, 2.0]))
    log_ref = (log_p[:, None] + log_p[None]).ravel()
    rewards = (reward[:, None] + reward[None]).ravel()
    best = jnp.exp(best_of_n.best_of_n(_rows(rewards, 2), _rows(log_ref, 2), jnp.array([2.0, 1.0])))
    marginal = jnp.sum(best[0].reshape(3, 3), axis=1)
    product = (marginal[:, None] * marginal[None]).ravel()
    return {"table": jnp.concatenate([best, product[None]])}


def block(counts: Array, length: Array, n: Array, log_p: Array, log_q: Array) -> dict[str, Array]:
    """The best of n blocks: its law over types, KL, mean type, and mass computed in two ways."""
    counts, there = of_length(counts, length)
    ways = log_ways(counts, there)
    rewards, log_ref = counts @ log_q, ways + counts @ log_p
    law = best_of_n.best_of_n(rewards, log_ref, n)
    at_most = jnp.cumsum(jnp.exp(log_ref)[jnp.argsort(rewards)])
    powers = jnp.diff(jnp.concatenate([jnp.zeros(1, at_most.dtype), at_most]) ** n)
    return {
        "counts": counts,
        "log_ways": ways,
        "law": law,
        "kl": divergences.kl(law, log_ref),
        "type": jnp.exp(law) @ counts / length.astype(law.dtype),
        "mass": jnp.stack([jnp.sum(jnp.exp(law)), jnp.sum(powers)]),
    }


def random_policies(config: ConfigDict, key: Array) -> tuple[Array, Array]:
    """For lemma 2: rewards to tilt by, and budgets, every other one the whole."""
    of_reward, of_share = jax.random.split(key)
    rewards = jax.random.normal(of_reward, (config.policies, LETTERS))
    share = jax.random.uniform(of_share, (config.policies,), minval=0.01)
    inside = jnp.arange(config.policies) % 2 == 0
    return rewards, config.budget * jnp.where(inside, share, 1)


def of_random_sources(config: ConfigDict, key: Array) -> Array:
    """KL of the best of n from the tilt at its own KL, for p and q drawn in three ways."""
    letters, n = jnp.asarray(config.source).T
    width = max(letters for letters, _ in config.source)

    def source(key: Array, letters: Array) -> Array:
        """Logits by design: uniform and exponential weights (Dirichlet(1)), normal logits."""
        of_uniform, of_exponential, of_normal = jax.random.split(key, 3)
        logits = jnp.stack([
            jnp.log(jax.random.uniform(of_uniform, (width,))),
            jnp.log(jax.random.exponential(of_exponential, (width,))),
            jax.random.normal(of_normal, (width,)),
        ])  # fmt: skip
        return jnp.where(jnp.arange(width)[None] < letters, logits, -jnp.inf)

    def distance(key: Array, letters: Array, n: Array) -> Array:
        log_p, log_q = (source(k, letters) for k in jax.random.split(key))
        reward = jnp.where(log_q > -jnp.inf, log_q, 0)
        law = best_of_n.best_of_n(reward, log_p, n.astype(reward.dtype))
        spent = divergences.kl(law, log_p)
        tilt = tilts.tilted_to(reward, log_p, spent, generator=generators.kl()).log_policy
        # A law of one letter but for rounding has no tilt to be compared with.
        return jnp.where(jnp.max(law, axis=-1) < -1e-9, divergences.kl(law, tilt), jnp.nan)

    each = jax.vmap(distance, (0, None, None), 1)
    keys = jax.random.split(key, config.sources)
    return jax.vmap(each, (None, 0, 0))(keys, letters, n)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Reward against KL, and the distance per letter."""
    only = results.isel(seed=0)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.6, 3.8))
    left.plot(only.curve_kl, only.curve_reward, "-", label="tilts of one letter")
    left.plot(only.type_kl / 10, only.trial_reward, "o", label="best of n, 10 letters")
    at_budget = only.tilt.sel(of="log q", what="reward")
    left.plot(config.budget, at_budget, "k*", markersize=11, label="φ at Δ")
    for n in (3, 30, 1000):
        at = only.sel(trial=n)
        left.annotate(
            f"n = {n}", (float(at.type_kl) / 10, float(at.trial_reward)), xytext=(8, -10),
            textcoords="offset points", fontsize="small",
        )  # fmt: skip
    left.set(xlabel="KL per letter, nats", ylabel="reward per letter", xlim=(-0.02, 0.75))
    left.legend(loc="lower right")
    for to, style in (("same budget", "o-"), ("half of it", "s--")):
        middle.plot(only.length, only.per_letter.sel(to=to), style, label=f"tilt at {to}")
    middle.set(
        xscale="log", yscale="log", xlabel="letters m of a block",
        ylabel="KL(best of $e^{m\\Delta}$‖tilt) per letter",
    )  # fmt: skip
    middle.set_xticks(only.length.values, [f"{m}" for m in only.length.values])
    middle.set_yticks([0.005, 0.01, 0.02, 0.03], ["0.005", "0.01", "0.02", "0.03"])
    middle.minorticks_off()
    middle.legend()
    for design, style in zip(DESIGNS, "os^", strict=True):
        spread = only.source_kl.sel(design=design)
        position = np.arange(spread.sizes["source"]) + 0.2 * (DESIGNS.index(design) - 1)
        median, low, high = (spread.quantile(q, "draw") for q in (0.5, 0.0, 1.0))
        right.errorbar(
            position, median, [median - low, high - median], fmt=style, label=f"{design} p, q"
        )
    right.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    names = [f"K={k}\nN={n}" for k, n in config.source]
    right.set(yscale="log", ylabel="KL(best of N‖tilt at its KL)", ylim=(1e-5, 30))
    right.set_xticks(range(len(names)), names, fontsize="small")
    right.legend(fontsize="small")
    return {
        "asymptotics": Picture(
            figure,
            "Left: best of n lies close to the family of tilts. Middle: for blocks of m letters its"
            " distance per letter from the tilt at the same rate goes to 0, from another it does"
            " not. Right: for random sources of K letters the distance depends on how they are"
            " drawn; medians and ranges, dotted the published .01 for K > 1000.",
        )
    }


def claims(config: ConfigDict, results: xr.Dataset) -> list[Claim]:
    """Table 1, the tilt, the example, the limit, lemma 2, and what depends on the source."""
    only, chosen = results.isel(seed=0), config.claims
    table = only.table.sel(block=chosen.block)
    exact = np.array([float(TABLE[pair]) for pair in PAIRS])
    first = float(table.sel(pair=["00", "01", "02"]).sum())
    dependence = float(TABLE["00"] - MARGINAL**2)
    of_one = ({"claims.block": "best of 1"},)
    tilt = only.tilt.sel(of=chosen.reward).values
    phi = only.tilt.sel(of="log q", what=["phi 0", "phi 1", "phi 2"]).values
    ten = only.sel(trial=3)

    def distance(law: np.ndarray) -> float:
        return float(np.abs(ten.type.values - law).sum() / 2)

    example = [*ten.type.values, float(ten.type_kl), distance(phi), distance(ten.matched.values)]
    numbers = np.array([*EXAMPLE, 0.43063, 0.0919, 0.0157])
    digits = np.array([5.1e-6] * 4 + [5.1e-5] * 2)
    unlike = ({"claims.matched": False},)
    if not chosen.matched:
        example[-1] = example[-2]
    to = only.per_letter.sel(to=chosen.tilt)
    other = ({"claims.tilt": "half of it"},)
    published = to.sel(length=list(PER_LETTER)).values
    reward = only.reward.sel(length=list(REWARD)).values
    limit = float(only.tilt.sel(of="log q", what="reward"))
    alpha = float(only.tilt.sel(of="log q", what="alpha"))
    kl, gap = (only.excess.sel(term=term) for term in ("kl", "gap"))
    excess = kl - chosen.multiplier * alpha * gap
    bound = np.log(3) - 2 / 3
    few, two, sixteen, thousand = (only.source_kl.sel(source=_source(s)) for s in config.source)
    close = xr.concat([two, sixteen], "n").sel(design=chosen.close)
    far = sixteen.sel(design=list(chosen.far)).median("draw")
    small = (few, two)[chosen.few]
    return [
        Claim(
            "table-1-in-fractions",
            f"{SOURCE}, example 2 and Table 1, for p = (.2, .3, .5)",
            "Probabilities of the nine pairs under the best of two, to 1e-15 of the fractions."
            " Controls: the best of one, and the product of the marginals.",
            table.values - exact,
            low=-1e-15,
            high=1e-15,
            published=exact,
            controls=(*of_one, {"claims.block": "product"}),
        ),
        Claim(
            "best-of-n-has-memory",
            f"{SOURCE}, example 2",
            "P(0, 0) less P(0)^2 is 49/625 - 43681/390625: the letters of the best of two blocks"
            " depend on each other. Those of the best of one do not.",
            float(table.sel(pair="00")) - first**2,
            low=dependence - 1e-15,
            high=dependence + 1e-15,
            published=dependence,
            controls=of_one,
        ),
        Claim(
            "the-tilt-at-delta",
            f"{SOURCE}, example 1; values of an independent computation",
            "alpha, phi, E log q under phi and under p, the KL of alpha = 1, and the most there can"
            " be, at Delta = .11, to six digits. The control has reward q.",
            tilt,
            low=np.array(AT_BUDGET) - 5.1e-7,
            high=np.array(AT_BUDGET) + 5.1e-7,
            controls=({"claims.reward": "q"},),
        ),
        Claim(
            "remarkably-close-to-the-family-not-to-phi",
            f"{SOURCE}, Fig. 1, m = 10 and N = 3: remarkably close; values of an independent"
            " computation",
            "Mean type of the best of three blocks of ten, its KL, its total variation from phi at"
            " Delta = .11 and from the tilt at its own KL. The statement holds in part: for the"
            " family at matched KL. The control puts phi in the place of the matched tilt.",
            example,
            low=numbers - digits,
            high=numbers + digits,
            controls=unlike,
        ),
        Claim(
            "kl-below-log-n",
            f"{SOURCE}, Lemma 6, and log n - (n - 1)/n of Beirami et al. 2024",
            "KL of the best of three, .43063, over log 3 - 2/3 = .4319, and the least over all n of"
            " log n less the KL. The control doubles the KL.",
            [
                float(ten.type_kl) / bound,
                float((np.log(only.trial) - chosen.copies * only.type_kl).min()),
            ],
            low=(0.99, -1e-12),
            high=(1, np.inf),
            controls=({"claims.copies": 2},),
        ),
        Claim(
            "per-letter-kl",
            f"{COMPUTED}; the paper has the limit 0, Theorem 2",
            "KL of the best of e^(.11 m) blocks from phi, per letter, for m = 10, 20, 40, 80, 160,"
            " and their reward per letter, to the reference's digits; for m = 40 and 80 it has"
            " .01516 and .01105, where 60 digits give .0151545 and .0110445. The control has the"
            " tilt at half the budget.",
            [*published, *reward],
            low=[
                *(v - 5.1e-6 for v in PER_LETTER.values()),
                *(v - 5.1e-5 for v in REWARD.values()),
            ],
            high=[
                *(v + 5.1e-6 for v in PER_LETTER.values()),
                *(v + 5.1e-5 for v in REWARD.values()),
            ],
            controls=other,
        ),
        Claim(
            "best-of-n-becomes-the-tilt",
            f"{SOURCE}, Theorem 2: KL per letter tends to 0 (only the limit is published)",
            "What each doubling of m leaves of the KL per letter, up to the longest block, and of"
            " the distance of the reward from that of phi.",
            [
                *(to.values[1:] / to.values[:-1]),
                *np.diff(only.reward.values - limit) / (only.reward.values - limit)[:-1] + 1,
            ],
            low=0,
            high=0.8,
            controls=other,
        ),
        Claim(
            "log-space-is-needed",
            "The law F^n - F_<^n for n = e^(.11 m), up to the longest block",
            "Largest deviation of its mass from 1; the control takes powers of cumulative sums.",
            float(np.abs(only.mass.sel(law=chosen.law) - 1).max()),
            high=1e-9,
            controls=({"claims.law": "powers"},),
        ),
        Claim(
            "lemma-2",
            f"{SOURCE}, Lemma 2: KL(psi‖phi) <= alpha(Delta) eps for every psi within the budget"
            " whose reward is at least that of phi less eps",
            f"KL(psi‖phi) less alpha times the missing reward, largest of {config.policies} random"
            " policies, which reach 0 at the whole budget. The control has half of alpha.",
            [float(excess.max()), float(np.abs(excess[1::2]).max())],
            low=(-np.inf, 0),
            high=(1e-10, 1e-10),
            controls=({"claims.multiplier": 0.5},),
        ),
        Claim(
            "the-rate-function-at-phi-is-the-budget",
            f"{SOURCE}: J as the KL of the tilt at a cross-entropy",
            "J at the mean log q of the tilt at Delta; the control is the tilt by q, which has less"
            " of it for the same KL.",
            float(only.rate.sel(of=chosen.reward)),
            low=config.budget - 1e-10,
            high=config.budget + 1e-10,
            controls=({"claims.reward": "q"},),
        ),
        Claim(
            "random-sources-are-close-if-uniform",
            f"{SOURCE}: KL at most .01 for K > 1000 and N up to 1000. How it draws p and q is not"
            " known to us",
            "Largest KL of the best of 2 and of 16 from the tilt at its own KL, for K = 1000 and p,"
            f" q of {config.sources} normalised uniform draws. The control has Dirichlet(1).",
            close.max().item(),
            high=0.01,
            published=0.01,
            controls=({"claims.close": "dirichlet"},),
        ),
        Claim(
            "and-not-in-general",
            f"{SOURCE}; a finding: the statement for K > 1000 depends on how p and q are drawn",
            "Medians of that KL for K = 1000: Dirichlet(1) and softmax of normals at N = 16, and"
            " uniform at N = 1000 all exceed the published .01. The control has uniform at N = 16.",
            [*far.values, float(thousand.sel(design="uniform").median("draw"))],
            low=0.01,
            controls=({"claims.far": ("uniform", "normal")},),
        ),
        Claim(
            "few-letters-exceed-the-published-bound",
            f"{SOURCE}: less than .5 for K < 10. A finding: not for every source",
            "Largest KL of the best of 16 from the tilt at its own KL, for K = 9 and three ways to"
            " draw p and q. The control has K = 1000 and N = 2.",
            small.max().item(),
            low=0.5,
            controls=({"claims.few": 1},),
        ),
    ]
