"""Unlearning against retraining: demoted tokens, Gauss-Newton steps, matched predictions.

SHRED (Hu et al. 2026, arXiv:2605.07482) on a bigram model with planted secrets, K-FADE (McKinney et
al. 2026, arXiv:2602.10568) on softmax regression, and datamodel matching with KLoM (Georgiev et al.
2025, arXiv:2410.23232) on ridge and logistic regression. All models are small enough to be
retrained without the forgotten, so that each is compared with the exact answer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from ml_collections import ConfigDict

from experiments.lab.axes import count, each, fraction, non_negative, positive, seeds
from experiments.lab.claims import Finding, at_least, at_most, claim, equals, together
from experiments.lab.plots import COLORS, Picture, curve, panels, style
from experiments.lab.results import Labelled, labelled
from jdiv import divergences, roots
from jdiv.divergences import generators, sparse
from jdiv.unlearning import demotion, gauss_newton, matching

AXES = {"seed": seeds, "share": fraction, "damping": non_negative, "predicted": fraction}


def samples(name: str) -> dict:
    """The fields of a regression."""
    sizes = {f"{name}.{size}": count for size in ("width", "retained", "forgotten")}
    return sizes | {f"{name}.ridge": positive}


FIELDS = {
    "vocabulary": count,
    "planted": positive,
    "demotions": each(non_negative),
    "newton_steps": count,
    "k": count,
    "softmax.classes": count,
    **samples("softmax"),
    "steps": count,
    "radius": positive,
    **samples("linear"),
    **samples("logistic"),
    "iterations": count,
    "models": count,
    "bins": count,
    "unseen": count,
}
STEPS = ("Gauss-Newton", "K-FAC", "ascent")
METHODS = ("nothing", "descent", "ascent", "both", "matching")
POINTS = ("retained", "forgotten", "unseen")
ASCENT = 1e9
"""A damping far above any curvature."""
SHRED = "SHRED (Hu et al. 2026, arXiv:2605.07482)"
K_FADE = "K-FADE (McKinney et al. 2026, arXiv:2602.10568)"
DMM = "Georgiev et al. 2025 (arXiv:2410.23232)"


def run(config: ConfigDict, point: dict, key: Array) -> dict[str, Array | Labelled]:
    """The four models; each has a key of its own."""
    keys = jax.random.split(key, 4)
    return {
        **bigram(config, point["share"], keys[0]),
        **softmax_regression(config, point["damping"], keys[1]),
        **ridge_regression(config, point["predicted"], keys[2]),
        **logistic_regressions(config, point["predicted"], keys[3]),
    }


# ------------------------------------------------------------------------------------------- SHRED


def secret_places(config: ConfigDict) -> np.ndarray:
    """Which tokens of the text `1, 2, ..., V - 1`, each after the one before, are secrets."""
    return np.arange(config.vocabulary - 1) % 3 == 1


def bigram(config: ConfigDict, share: Array, key: Array) -> dict[str, Array | Labelled]:
    """A model that would write the text's common tokens anyway, and its secrets since it saw them.

    The retrained one does not have their log-odds; SHRED starts from the model and sees the text.
    """
    size, secret = config.vocabulary, secret_places(config)
    tokens = jnp.arange(1, size)
    common = jax.nn.one_hot(tokens, size)
    natural = jnp.where(secret, 0.0, 10.0)[:, None] * common
    retrained = jax.random.normal(key, (size - 1, size)) + natural
    base = retrained + jnp.where(secret, config.planted, 0.0)[:, None] * common

    def unlearned(amount):
        def loss(x):
            x = x.reshape(base.shape)
            each = demotion.shred(x, base, tokens, demotion=amount, share=share, k=size)
            return jnp.sum(each)

        return roots.minimize(loss, base.ravel(), config.newton_steps).x.reshape(base.shape)

    amounts = jnp.array(config.demotions)
    found = jax.nn.log_softmax(jax.vmap(unlearned)(amounts))
    away = divergences.kl(jnp.broadcast_to(retrained, found.shape), found)
    by = {"demotion": config.demotions, "place": range(size - 1)}
    return {
        "law": labelled(jnp.exp(found), **by, token=range(size)),
        "base_law": labelled(jax.nn.softmax(base), place=by["place"], token=range(size)),
        "shred_distance": labelled(jnp.sum(away, axis=-1), demotion=config.demotions),
        "pull": labelled(pulls(config, base, tokens), kept=("base", "target")),
    }


def pulls(config: ConfigDict, base: Array, tokens: Array) -> Array:
    """The least slope of the loss by a secret's logit, at the model: what drives it out.

    With the base's k most probable tokens and a tail, and with the target's k renormalized.
    """
    secret, amount = jnp.array(secret_places(config)), jnp.max(jnp.array(config.demotions))
    target = demotion.demoted_target(base, tokens, demotion=amount, mask=secret)
    share = (secret_places(config).sum() + 0.5) / secret.size

    def own(x):
        return jnp.sum(demotion.shred(x, base, tokens, demotion=amount, share=share, k=config.k))

    def renormalized(x):
        top = sparse.top_k(target, config.k)
        return jnp.sum(sparse.renormalized(generators.reverse_kl(), x, top))

    slopes = [jnp.take_along_axis(jax.grad(f)(base), tokens[:, None], axis=-1)[:, 0]
              for f in (own, renormalized)]  # fmt: skip
    return jnp.stack([jnp.min(jnp.where(secret, jnp.abs(x), jnp.inf)) for x in slopes])


# ------------------------------------------------------------------------------------------ K-FADE


def newton(loss: Callable[[Array], Array], start: Array, steps: int = 12) -> Array:
    """The minimum of a strongly convex loss of a vector."""

    def step(x, _):
        return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x)), None

    return jax.lax.scan(step, start, length=steps)[0]


def softmax_regression(config: ConfigDict, damping: Array, key: Array) -> dict[str, Labelled]:
    """Steps uphill on samples with wrong labels, and what they do to the retained outputs."""
    c = config.softmax
    total = c.retained + c.forgotten
    draws = jax.random.split(key, 4)
    # Features of different sizes: their curvatures differ by a factor of a hundred.
    scales = jnp.logspace(0.5, -0.5, c.width)[None]
    x = scales * jax.random.normal(draws[0], (total, c.width))
    unseen = scales * jax.random.normal(draws[1], (config.unseen, c.width))
    teacher = jax.random.normal(draws[2], (c.width, c.classes))
    labels = jax.random.categorical(draws[3], x @ teacher)
    gone = np.arange(total) >= c.retained
    labels = jnp.where(gone, (labels + 1) % c.classes, labels)
    shape = (c.width, c.classes)

    def losses(w):
        return -jnp.take_along_axis(jax.nn.log_softmax(x @ w), labels[:, None], axis=-1)[:, 0]

    def fit(weights):
        whole = lambda w: jnp.sum(weights * losses(w.reshape(shape))) + c.ridge * w @ w / 2
        return newton(whole, jnp.zeros(c.width * c.classes)).reshape(shape)

    start, retrained = jax.vmap(fit)(jnp.stack([jnp.ones(total), jnp.where(gone, 0.0, 1.0)]))
    kept = x[: c.retained]
    forget_loss = lambda w: jnp.mean(losses(w)[c.retained :])
    mean_kl = lambda v, w, x: jnp.mean(divergences.kl(x @ v, x @ w))

    def uphill(w, damping):
        return gauss_newton.uphill(
            forget_loss, lambda w: kept @ w, w, radius=config.radius, damping=damping,
            iterations=c.width * c.classes,
        ).parameters  # fmt: skip

    def factored(w, damping):
        factors = gauss_newton.kronecker_factors(kept, kept @ w)
        return w + gauss_newton.kronecker_step(
            jax.grad(forget_loss)(w), factors, radius=config.radius, damping=damping
        )

    def step(ws, _):
        dampings = jnp.stack([damping, jnp.full_like(damping, ASCENT)])
        exact = jax.vmap(uphill)(ws[::2], dampings)
        ws = jnp.stack([exact[0], factored(ws[1], damping), exact[1]])
        return ws, ws

    start_of_all = jnp.broadcast_to(start, (3, *shape))
    path = jax.lax.scan(step, start_of_all, length=config.steps)[1]
    path = jnp.concatenate([start_of_all[None], path])
    measured = lambda f: labelled(
        jax.vmap(jax.vmap(f))(path), step=range(config.steps + 1), uphill=STEPS
    )
    return {
        "forget_loss": measured(forget_loss),
        "retained_kl": measured(lambda w: mean_kl(start, w, kept)),
        "distance": measured(lambda w: mean_kl(retrained, w, unseen)),
        "retrained_at": labelled(
            jnp.stack([mean_kl(start, retrained, kept), forget_loss(retrained)]),
            of=("retained KL", "forget loss"),
        ),
    }


# -------------------------------------------------------------------------------------- regression


def ridge_regression(config: ConfigDict, predicted: Array, key: Array) -> dict[str, Labelled]:
    """Distances to the retrained weights along four iterations, of which matching has targets."""
    c = config.linear
    draws = jax.random.split(key, 2)
    x = jax.random.normal(draws[0], (c.retained + c.forgotten, c.width))
    y = jax.random.normal(draws[1], (len(x),))
    gone = np.arange(len(x)) >= c.retained
    keep = jnp.where(gone, 0.0, 1.0)
    eye, ones = jnp.eye(c.width), jnp.ones(len(x))
    fit = lambda weights: jnp.linalg.solve(
        (x.T * weights[None]) @ x + c.ridge * eye, x.T @ (weights * y)
    )
    start, retrained = jax.vmap(fit)(jnp.stack([ones, keep]))
    residual = x @ start - y
    change = matching.leave_out(x, residual, ones, gone, ridge=c.ridge)
    attributions = matching.datamodel(x, residual, ones, x, ridge=c.ridge)
    additive = -jnp.sum(attributions[c.retained :], axis=0)
    targets = x @ (start + predicted * change)
    largest = jnp.linalg.eigvalsh(x @ x.T)[-1]
    step_size = 1 / (largest + c.ridge)

    def squared(w, weights):
        return jnp.sum(weights * (x @ w - y) ** 2) / 2 + c.ridge * w @ w / 2

    objectives = {
        "descent": lambda w: squared(w, keep),
        "ascent": lambda w: -jnp.sum((1 - keep) * (x @ w - y) ** 2) / 2,
        "both": lambda w: squared(w, keep - 0.1 * (1 - keep)),
        "matching": lambda w: jnp.sum(matching.datamodel_matching(x @ w, targets)),
    }

    def step(ws, _):
        ws = jnp.stack([w - step_size * jax.grad(f)(w)
                        for w, f in zip(ws, objectives.values(), strict=True)])  # fmt: skip
        return ws, ws

    path = jax.lax.scan(step, jnp.broadcast_to(start, (4, c.width)), length=config.iterations)[1]
    far = jnp.linalg.norm(start - retrained)
    inside = jnp.linalg.qr(x[: c.retained].T)[0]
    across = lambda w: jnp.linalg.norm(w - retrained - inside @ (inside.T @ (w - retrained)))
    off = lambda change: (
        jnp.linalg.norm(x @ (start - retrained) + change) / jnp.linalg.norm(x @ (start - retrained))
    )
    return {
        "error": labelled(
            jnp.linalg.norm(path - retrained[None, None], axis=-1) / far,
            iteration=range(1, config.iterations + 1), unlearning=tuple(objectives),
        ),
        "slowness": labelled(
            jnp.stack([across(path[-1, 0]) / across(start),
                       (1 - step_size * c.ridge) ** config.iterations]),
            of_descent=("measured", "formula"),
        ),
        "prediction_error": labelled(
            jnp.stack([off(predicted * (x @ change)), off(predicted * additive)]),
            prediction=("leave out", "additive"),
        ),
    }  # fmt: skip


def logistic_regressions(config: ConfigDict, predicted: Array, key: Array) -> dict[str, Labelled]:
    """KLoM of models that differ by random weights of their samples, before retrained ones."""
    c = config.logistic
    total = c.retained + c.forgotten
    draws = jax.random.split(key, 4)
    x = jax.random.normal(draws[0], (total + config.unseen, c.width))
    teacher = jax.random.normal(draws[1], (c.width,))
    positive = jax.random.uniform(draws[2], (len(x),)) < jax.nn.sigmoid(x @ teacher)
    seen, y = x[:total], positive[:total].astype(x.dtype)
    gone = np.arange(total) >= c.retained
    weights = jax.random.exponential(draws[3], (3, config.models, total))
    weights = weights.at[1:].multiply(jnp.where(gone, 0.0, 1.0)[None, None])
    fit = lambda weights: regularized_logistic(seen, y, weights, c.ridge)
    start, retrained, again = jax.vmap(jax.vmap(fit))(weights)
    logits_at = lambda w: jnp.stack([jnp.zeros(len(x)), x @ w], axis=-1)
    margins = lambda ws: jax.vmap(
        lambda w: matching.margin(logits_at(w), positive.astype(jnp.int32))
    )(ws)
    klom = lambda ws: matching.klom(margins(ws), margins(retrained), bins=config.bins, lowest=1e-5)
    largest = jnp.linalg.eigvalsh(seen @ seen.T)[-1]

    def unlearned(w, weights):
        p = jax.nn.sigmoid(seen @ w)
        change = matching.leave_out(
            seen, weights * (p - y), weights * p * (1 - p), gone, ridge=c.ridge
        )
        targets = seen @ (w + predicted * change)
        keep = jnp.where(gone, 0.0, weights)

        def step(ws, _):
            slopes = (
                jax.grad(logistic_loss)(ws[0], seen, y, keep, c.ridge),
                -jax.grad(logistic_loss)(ws[1], seen, y, weights - keep, 0.0),
                jax.grad(logistic_loss)(ws[2], seen, y, keep - 0.1 * (weights - keep), c.ridge),
                jax.grad(lambda w: jnp.sum(matching.datamodel_matching(seen @ w, targets)))(ws[3]),
            )
            ws = ws - jnp.stack(slopes) / largest
            return ws, ws

        path = jax.lax.scan(step, jnp.broadcast_to(w, (4, len(w))), length=CHECKS[-1])[1]
        return path[np.array(CHECKS) - 1]

    paths = jnp.transpose(jax.vmap(unlearned)(start, weights[0]), (1, 2, 0, 3))
    measured = jax.vmap(jax.vmap(klom))(paths)
    parts = np.split(np.arange(len(x)), [c.retained, total])
    mean = lambda values: jnp.stack([jnp.mean(values[..., part], axis=-1) for part in parts], -1)
    # Each iteration where it is best on average, as nobody without retrained models could stop it.
    best = jnp.argmin(jnp.mean(measured, axis=-1), axis=0)
    chosen = mean(measured[best, jnp.arange(4)])
    return {
        "klom": labelled(jnp.concatenate([mean(klom(start))[None], chosen]),
                         models=METHODS, points=POINTS),
        "klom_of_retrained": labelled(mean(klom(again)), points=POINTS),
    }  # fmt: skip


CHECKS = (1, 2, 5, 10, 20, 50, 100)
"""Iterations after which margins are compared."""


def logistic_loss(w: Array, x: Array, y: Array, weights: Array, ridge: float) -> Array:
    """Weighted cross-entropy of `sigmoid(x'w)` with a ridge."""
    return jnp.sum(weights * (jax.nn.softplus(x @ w) - y * (x @ w))) + ridge * w @ w / 2


def regularized_logistic(x: Array, y: Array, weights: Array, ridge: float) -> Array:
    """Its minimum. In the span of the samples, where there are as many unknowns as those."""
    gram = x @ x.T

    def step(a, _):
        p = jax.nn.sigmoid(gram @ a)
        # Newton's step of w = X'a, with X cancelled from both sides.
        slope = weights * (p - y) + ridge * a
        curvature = (weights * p * (1 - p))[:, None] * gram + ridge * jnp.eye(len(a))
        return a - jnp.linalg.solve(curvature, slope), None

    return x.T @ jax.lax.scan(step, jnp.zeros(len(y)), length=15)[0]


# ------------------------------------------------------------------------------------------ figures


def of_one(results: xr.Dataset) -> xr.Dataset:
    """The results by seed: the other axes have one value each."""
    return results.isel(share=0, damping=0, predicted=0)


def figures(config: ConfigDict, results: xr.Dataset) -> dict[str, Picture]:
    """Demotions and uphill steps; matched predictions and KLoM."""
    results = of_one(results)
    return {
        "forgetting": Picture(
            forgetting_figure(config, results),
            "Left: the demoted model's distance from the retrained one, a line for each seed: none"
            " at the log-odds of the secrets (1e-16 is drawn for less), some on both sides. Right:"
            " forget loss against what the retained outputs pay, means over seeds, a marker for"
            " each step: Gauss-Newton gets most for the same KL, K-FAC nearly as much.",
        ),
        "matching": Picture(
            matching_figure(config, results),
            "Left: distance from the retrained weights of ridge regression, geometric means over"
            " seeds; matching goes to zero, descent moves in the directions of retained samples"
            " only, ascent and both pass by and leave. Right: KLoM of logistic regressions, means"
            " over seeds; bars from two sets of retrained models show the noise.",
        ),
    }


def forgetting_figure(config: ConfigDict, results: xr.Dataset):
    """Distance by demotion, and forget loss by retained KL."""
    figure, (left, right) = panels(2)
    distance = results.shred_distance.clip(min=1e-16)
    for seed in results.seed.values:
        look = style(0, marker=True) | {"alpha": 0.6}
        curve(left, "demotion", distance.sel(seed=seed), **look)
    left.axvline(config.planted, color="black", linewidth=0.8, linestyle=":")
    left.set(yscale="log", ylim=(1e-17, 10), xlabel="demotion, nats")
    left.set(ylabel="KL(retrained‖unlearned), nats")
    mean = results.mean("seed")
    for number, name in enumerate(STEPS):
        at = mean.sel(uphill=name)
        right.plot(at.retained_kl, at.forget_loss, label=name, **style(number, marker=True))
    right.set(xlabel="retained KL(before‖after), nats", ylabel="forget loss, nats")
    right.legend(loc="upper left")
    return figure


def matching_figure(config: ConfigDict, results: xr.Dataset):
    """Distances along the iterations, and KLoM by kind of point."""
    figure, (left, right) = panels(2)
    error = np.exp(np.log(results.error).mean("seed"))
    for number, name in enumerate(error.unlearning.values):
        curve(left, "iteration", error.sel(unlearning=name), label=name, **style(number))
    left.set(yscale="log", xscale="log", ylim=(1e-13, 1e3), xlabel="iteration")
    left.set(ylabel="relative distance from the retrained")
    left.legend(loc="lower left")
    rows = {name: results.klom.sel(models=name) for name in METHODS}
    rows["retrained"] = results.klom_of_retrained
    for number, points in enumerate(POINTS):
        heights = [float(row.sel(points=points).mean("seed")) for row in rows.values()]
        places = np.arange(len(rows)) + 0.27 * (number - 1)
        right.bar(places, heights, 0.25, color=COLORS[number], label=points)
    right.set(ylabel="KLoM, nats", yscale="log", ylim=(0.03, 60))
    right.set_xticks(np.arange(len(rows)), list(rows), fontsize="small")
    right.grid(False, axis="x")
    right.legend(loc="upper center", ncols=3, fontsize="small")
    return figure


# ------------------------------------------------------------------------------------------- claims

# All tokens demoted, no curvature, nothing predicted: one run refutes what needs any of them.
WITHOUT = {"sweep.share": (1.0,), "sweep.damping": (ASCENT,), "sweep.predicted": (0.0,)}


@claim(
    source=f"{SHRED}; the closed form by algebra",
    wrong=({"normalized": False},),
)
def demotion_has_a_closed_form(
    results: xr.Dataset, config: ConfigDict, normalized: bool = True
) -> Finding:
    """Of the model distilled by the loss, the largest error of the secrets' mass against
    p e^-d/(1 - p + p e^-d), and of the ratios of all other tokens against those before."""
    found = of_one(results)
    secret = np.nonzero(secret_places(config))[0]
    amounts = np.exp(-found.demotion.values)
    own = lambda law: np.stack([law.sel(place=i, token=i + 1) for i in secret])
    law = found.law.transpose("place", "token", "seed", "demotion")
    p = own(found.base_law)[..., None]
    expected = p * amounts / (1 - p + p * amounts if normalized else 1)
    ratios = []
    for place in secret:
        others = [token for token in found.token.values if token != place + 1]
        after, base = (x.sel(place=place, token=others) for x in (law, found.base_law))
        ratios.append(np.abs(after / after.sum("token") - base / base.sum("token")).max())
    return at_most(1e-9, (np.abs(own(law) - expected).max(), np.max(ratios)))


@claim(source=f"{SHRED}; planted secrets", reruns=(WITHOUT,), wrong=({"offset": 1.5},))
def the_right_demotion_is_retraining(
    results: xr.Dataset, config: ConfigDict, offset: float = 0.0
) -> Finding:
    """KL(retrained‖unlearned) over all places of the text, common tokens included, is zero at the
    demotion that is the secrets' log-odds: the largest over seeds."""
    distance = of_one(results).shred_distance
    return at_most(1e-12, distance.sel(demotion=config.planted + offset).max())


@claim(
    source=f"{SHRED}. Reconstructed: whose k tokens the loss compares",
    wrong=({"kept": "target"},),
)
def the_tokens_kept_are_those_before_the_demotion(
    results: xr.Dataset, kept: str = "base"
) -> Finding:
    """The least slope of the loss by a secret's logit where learning starts, with the two most
    probable tokens of the law before the demotion and a tail. With those of the target alone, from
    which the secret is gone, nothing drives it out: exactly 0."""
    return at_least(1e-4, of_one(results).pull.sel(kept=kept).min())


def at_equal_kl(results: xr.Dataset, what: str) -> xr.DataArray:
    """A result by step as a function of retained KL, at those that all reach but for small ones."""
    results = of_one(results)
    top = float(results.retained_kl.isel(step=-1).min())
    grid = np.linspace(0.2, 1, 5) * top
    reach = lambda x, y: np.interp(grid, x, y)
    return xr.apply_ufunc(
        reach, results.retained_kl, results[what], input_core_dims=[["step"], ["step"]],
        output_core_dims=[["at"]], vectorize=True,
    )  # fmt: skip


@claim(source=f"{K_FADE}, on language models", reruns=(WITHOUT,))
def more_is_forgotten_at_the_same_kl(results: xr.Dataset) -> Finding:
    """The forget loss of Gauss-Newton steps less that of gradient ascent, and of K-FAC's less that
    of ascent, at the same KL of retained outputs: the least over seeds and KLs."""
    loss = at_equal_kl(results, "forget_loss")
    gains = loss.sel(uphill=list(STEPS[:2])) - loss.sel(uphill="ascent")
    return at_least(1e-3, gains.min(("seed", "at")).values)


@claim(source=f"{K_FADE}: approximates retraining in output space", reruns=(WITHOUT,))
def steps_lead_towards_retraining(results: xr.Dataset) -> Finding:
    """KL(retrained‖unlearned) on inputs that no model has seen, at the same retained KL: that of
    Gauss-Newton steps over that of gradient ascent, means over seeds; the largest over KLs."""
    distance = at_equal_kl(results, "distance").mean("seed")
    ratio = distance.sel(uphill="Gauss-Newton") / distance.sel(uphill="ascent")
    return at_most(0.99, ratio.max())


@claim(
    source="The leave-out formula (Pregibon 1981); retraining",
    reruns=(WITHOUT,),
    wrong=({"prediction": "additive"},),
)
def predictions_of_ridge_regression_are_exact(
    results: xr.Dataset, prediction: str = "leave out"
) -> Finding:
    """The relative error of what a retrained model is predicted to say, against retraining; the sum
    of single leave-one-outs misses what the forgotten samples do together."""
    error = of_one(results).prediction_error
    return at_most(1e-9, error.sel(prediction=prediction).max())


@claim(source=f"{DMM}, its convex setting", reruns=(WITHOUT,))
def matching_reaches_the_retrained_model(results: xr.Dataset) -> Finding:
    """Distance to the retrained weights, relative to the start: of matching after the last
    iteration, the largest over seeds; and of descent on the retained, ascent on the
    forgotten and both, the closest that any comes at its best iteration."""
    error = of_one(results).error
    last = error.sel(unlearning="matching").isel(iteration=-1).max()
    others = error.sel(unlearning=["descent", "ascent", "both"]).min()
    return together(at_most(1e-9, last), at_least(0.1, others))


@claim(source="Gradient descent on a ridge, by algebra", wrong=({"share": 0.5},))
def descent_forgets_at_the_pace_of_the_ridge(results: xr.Dataset, share: float = 1.0) -> Finding:
    """Across the retained samples, descent on them shrinks the distance to the retrained weights by
    (1 - step size x ridge) to the number of iterations: the largest error."""
    slowness = of_one(results).slowness
    formula = slowness.sel(of_descent="formula") ** share
    return equals(0, np.abs(slowness.sel(of_descent="measured") - formula).max(), tolerance=1e-9)


@claim(source=f"{DMM}: KLoM, on neural networks", reruns=(WITHOUT,))
def matched_models_cannot_be_told_from_retrained_ones(results: xr.Dataset) -> Finding:
    """KLoM over that of another set of retrained models, means over seeds: of matching on retained,
    forgotten and unseen points, at most 2; of all others on forgotten points, at their best
    iteration, at least 5."""
    found = of_one(results).mean("seed")
    ratio = found.klom / found.klom_of_retrained
    others = ratio.sel(points="forgotten", models=["nothing", "descent", "ascent", "both"])
    return together(at_most(2, ratio.sel(models="matching")), at_least(5, others))
