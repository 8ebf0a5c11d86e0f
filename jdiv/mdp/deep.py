"""Deep regularised Q-learning: the schemes of `operators` with networks, replay and environments.

`init` and `step` are pure functions of a state of arrays. What a sweep varies is traced (`Hyper`),
so all cells of a heat map and all their seeds are one vmapped program. One step is one move in each
of the parallel environments and one gradient step. With weight and temperature 0 the Munchausen
variant is DQN.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jdiv import numerics
from jdiv.divergences import categorical
from jdiv.mdp import operators

VARIANTS = ("munchausen", "tsallis", "mirror_direct", "mirror_indirect", "dual_averaging")


class Hyper(NamedTuple):
    """What may be traced; the penalty on policies is `kl KL(pi‖previous) - entropy H(pi)`."""

    weight: ArrayLike
    """`kl / (kl + entropy)`: 0 is entropy alone, 1 is KL alone; Munchausen's alpha."""
    temperature: ArrayLike
    """`kl + entropy`; with 0, weight 0 is DQN and weight > 0 advantage learning."""
    index: ArrayLike = 2.0
    """Of Tsallis' entropy, in the entmax convention: 1 is softmax, 2 sparsemax."""
    floor: ArrayLike = -1.0
    """Least value of the Munchausen bonus before its weight."""
    evaluation: ArrayLike = 1.0
    """Mirror descent and dual averaging: 1 if targets contain the penalty, 0 if not."""

    @property
    def kl(self) -> Array:
        """Coefficient of KL to the previous policy."""
        return jnp.asarray(self.weight * self.temperature)

    @property
    def entropy(self) -> Array:
        """Coefficient of the entropy."""
        return jnp.asarray((1 - self.weight) * self.temperature)


class Settings(NamedTuple):
    """What shapes the program."""

    variant: str = "munchausen"
    hidden: tuple[int, ...] = (64, 64)
    environments: int = 8
    """That run in parallel: moves per gradient step."""
    capacity: int = 8192
    """Moves that the replay buffer holds."""
    batch: int = 32
    target_every: int = 50
    """Gradient steps between updates of the target network."""
    learning_rate: float = 1e-3
    adam_epsilon: float = 3.125e-4
    discount: float = 0.99
    exploration: float = 0.05
    """Probability of a uniform action, constant."""


class Moved(NamedTuple):
    """What a move in an environment leads to."""

    observation: Array
    """The next one to act on: of a new episode if this one has ended."""
    reward: Array
    terminated: Array
    """The episode is over, and nothing follows."""
    truncated: Array
    """The episode was cut: its value goes on."""
    final: Array
    """The observation that this move led to, before any reset."""


class Environment(NamedTuple):
    """An environment that starts again by itself."""

    reset: Callable[[Array], tuple[Array, Any]]
    """`reset(key) -> (observation, state)`"""
    step: Callable[[Array, Any, Array], tuple[Moved, Any]]
    """`step(key, state, action) -> (moved, state)`"""
    features: int
    """Length of an observation."""
    actions: int


class Transition(NamedTuple):
    """Moves, as the replay buffer keeps them: `[..., features]` twice, and numbers."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    final: Array


class State(NamedTuple):
    """All that a run needs to go on."""

    params: dict[str, Any]
    target: dict[str, Any]
    optimiser: Any
    updates: Array
    replay: Transition
    """`[capacity, ...]`"""
    world: Any
    """States of the environments."""
    observation: Array
    """`[environments, features]`"""
    running: Array
    """`[environments]` return of the episode so far."""
    score: Array
    """`[environments]` return of the last whole episode; of the first one so far until its end."""
    episodes: Array
    """`[environments]` episodes that have ended."""


# -------------------------------------------------------------------------------------- networks


def mlp_init(key: Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    """Layers of a perceptron, with He's normal weights and zero biases."""
    shapes = list(itertools.pairwise(sizes))
    counts = [rows * columns for rows, columns in shapes]
    # One draw for all layers: a draw is most of what there is to compile.
    normal = jnp.split(jax.random.normal(key, (sum(counts),)), np.cumsum(counts)[:-1])
    return [
        {"weight": draws.reshape(shape) * (2 / shape[0]) ** 0.5, "bias": jnp.zeros(shape[1])}
        for draws, shape in zip(normal, shapes, strict=True)
    ]


def mlp(layers: list[dict[str, Array]], x: Array) -> Array:
    """`[..., features]` to `[..., outputs]`, with rectified linear units in between."""
    for number, layer in enumerate(layers):
        x = x @ layer["weight"]
        x = x + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        x = x if number == len(layers) - 1 else jax.nn.relu(x)
    return x


# --------------------------------------------------------------------------------------- targets


def bootstrapped(batch: Transition, value: Array, discount: float) -> Array:
    """`r + discount v(final)`, `[batch]`: no value after a terminal state, one after a cut."""
    return batch.reward + discount * jnp.where(batch.terminated, 0, value)


def munchausen_target(
    hyper: Hyper, batch: Transition, q: Array, q_next: Array, discount: float
) -> Array:
    """`r + alpha max(T log pi(a|s), floor) + discount <pi', q' - T log pi'>`, `pi = softmax(q/T)`.

    `T log pi = q - v` and `<pi, q - T log pi> = v` with the soft maximum v, which at T = 0 is the
    maximum. The released code also clips the bonus at 1 from above: it is never positive.
    Shapes: q and q_next `[batch, actions]` to `[batch]`.

    Reference: Vieillard, Pietquin and Geist 2020 (arXiv:2007.14430), equation 1 and section 4.
    """
    here, after = (
        operators.soft(x, jnp.zeros_like(x), 0.0, hyper.temperature) for x in (q, q_next)
    )
    bonus = taken(q, batch.action) - here.value
    bonus = hyper.weight * jnp.maximum(bonus, hyper.floor)
    return bootstrapped(batch, after.value, discount) + bonus


def tsallis_target(
    hyper: Hyper, batch: Transition, q: Array, q_next: Array, discount: float
) -> Array:
    """MVI(q): `r + alpha max(q(s, a) - <pi, q>, floor) + discount (<pi', q'> + T H(pi'))`.

    The policy is entmax of q/T, and H is Tsallis' entropy with the same index.

    Reference: Zhu et al. 2023 (arXiv:2301.11476), MVI(q), with the entmax convention.
    """
    here, after = (_sparse(hyper, x) for x in (q, q_next))
    bonus = taken(q, batch.action) - jnp.sum(jnp.exp(here.log_policy) * q, axis=-1)
    bonus = hyper.weight * jnp.maximum(bonus, hyper.floor)
    return bootstrapped(batch, after.value, discount) + bonus


def _sparse(hyper: Hyper, q: Array) -> operators.Step:
    """`argmax <pi, q> + T H(pi)` with its value, greedy at temperature 0."""
    hard = jnp.asarray(hyper.temperature) == 0
    best = operators.tsallis(q, jnp.where(hard, 1, hyper.temperature), hyper.index)
    return jax.tree.map(lambda hard_x, x: jnp.where(hard, hard_x, x), operators.greedy(q), best)


def mirror_target(
    hyper: Hyper,
    batch: Transition,
    logits_next: Array,
    previous_next: Array,
    q_next: Array,
    discount: float,
) -> Array:
    """`r + discount (<pi', q'> - evaluation (kl KL(pi'‖previous') - entropy H(pi')))`.

    Shapes: logits of the policy and of the one before, and action values, `[batch, actions]`.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 2.
    """
    paid = hyper.evaluation
    value = penalised(paid * hyper.kl, paid * hyper.entropy, logits_next, previous_next, q_next)
    return bootstrapped(batch, value, discount)


def penalised(kl: ArrayLike, entropy: ArrayLike, logits: Array, previous: Array, q: Array) -> Array:
    """`<pi, q> - kl KL(pi‖previous) + entropy H(pi)`, `[..., actions]` to `[...]`."""
    policy = jnp.exp(numerics.log_softmax(logits))
    most = jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    spread = most - categorical.kl(logits, jnp.zeros_like(logits))
    # A greedy policy may leave the support of the previous one, which without a penalty is free.
    moved = jnp.where(kl == 0, 0, categorical.kl(logits, previous))
    return jnp.sum(policy * q, axis=-1) - kl * moved + entropy * spread


def averaging(hyper: Hyper, number: Array) -> tuple[Array, Array, Array, Array]:
    """`(keep, add, temperature, previous temperature)` of dual averaging at update `number`.

    `h_k = keep h_(k-1) + add q_k`, `pi_(k+1) = softmax(h_k / temperature)`. With entropy h is a
    moving average, at temperature `entropy`; without, the plain average of all k + 1 action
    values, at `kl / (k + 1)`; without both, q itself.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 4.
    """
    kl, entropy = hyper.kl, hyper.entropy
    count = number.astype(kl.dtype)
    plain = entropy == 0
    keep = jnp.where(plain, count / (count + 1), hyper.weight)
    keep = jnp.where(kl == 0, 0, keep)
    previous = jnp.where(plain, kl / jnp.maximum(count, 1), entropy)
    return keep, 1 - keep, jnp.where(plain, kl / (count + 1), entropy), previous


def taken(x: Array, action: Array) -> Array:
    """Of `[..., actions]` the entry of the action, `[...]`."""
    return jnp.take_along_axis(x, action[..., None], axis=-1)[..., 0]


# ---------------------------------------------------------------------------------------- losses


def td_loss(q: Array, action: Array, target: Array) -> Array:
    """Mean Huber loss of the action values of the actions taken."""
    return jnp.mean(optax.huber_loss(taken(q, action), target))


def _loss(
    settings: Settings,
    hyper: Hyper,
    params: dict[str, Any],
    target: dict[str, Any],
    batch: Transition,
    number: Array,
) -> tuple[Array, Array]:
    """The loss of a batch in which the target network was updated `number` times, and its q."""
    both = jnp.stack([batch.observation, batch.final])
    q, (q_old, q_next) = mlp(params["q"], batch.observation), mlp(target["q"], both)
    if settings.variant in ("munchausen", "tsallis"):
        td_target = {"munchausen": munchausen_target, "tsallis": tsallis_target}[settings.variant]
        wanted = td_target(hyper, batch, q_old, q_next, settings.discount)
        return td_loss(q, batch.action, wanted), q

    # The actor's two networks: the policy that is learned, and the previous one.
    actor, previous = mlp(params["actor"], both), mlp(target["actor"], both)
    if settings.variant == "dual_averaging":
        keep, add, temperature, temperature_before = averaging(hyper, number)
        previous = jnp.where(number == 0, 0, previous)
        wanted = keep * previous[0] + add * q_old
        improvement = jnp.mean(jnp.sum(optax.huber_loss(actor[0], wanted), axis=-1))
        actor, previous = _over(actor, temperature), _over(previous, temperature_before)
    elif settings.variant == "mirror_direct":
        payoff = penalised(hyper.kl, hyper.entropy, actor[0], previous[0], q_old)
        improvement = -jnp.mean(payoff)
    else:
        log_previous = numerics.log_softmax(previous[0])
        best = jnp.exp(operators.soft(q_old, log_previous, hyper.kl, hyper.entropy).log_policy)
        improvement = -jnp.mean(jnp.sum(best * numerics.log_softmax(actor[0]), axis=-1))
    actor = jax.lax.stop_gradient(actor[1])
    wanted = mirror_target(hyper, batch, actor, previous[1], q_next, settings.discount)
    return td_loss(q, batch.action, wanted) + improvement, q


def _over(values: Array, temperature: Array) -> Array:
    """Logits `values / temperature`; at temperature 0 those of the greedy policy."""
    hard = temperature == 0
    logits = values / jnp.where(hard, 1, temperature)
    return jnp.where(hard, operators.greedy(values).log_policy, logits)


# ---------------------------------------------------------------------------------------- training


def init(settings: Settings, environment: Environment, key: Array) -> State:
    """Random networks, an empty buffer, all environments at their start."""
    if settings.variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {settings.variant!r}")
    if settings.capacity % settings.environments:
        raise ValueError(
            f"capacity must be a multiple of environments, got {settings.capacity} and"
            f" {settings.environments}"
        )
    q_key, actor_key, world_key = jax.random.split(key, 3)
    sizes = (environment.features, *settings.hidden, environment.actions)
    params = {"q": mlp_init(q_key, sizes)}
    if settings.variant not in ("munchausen", "tsallis"):
        params["actor"] = mlp_init(actor_key, sizes)
    keys = jax.random.split(world_key, settings.environments)
    observation, world = jax.vmap(environment.reset)(keys)
    zeros = jnp.zeros(settings.environments)
    count, rows = settings.capacity, jnp.zeros((settings.capacity, environment.features))
    return State(
        params=params,
        target=params,
        optimiser=_optimiser(settings).init(params),
        updates=jnp.zeros((), jnp.int32),
        replay=Transition(
            observation=rows,
            action=jnp.zeros(count, jnp.int32),
            reward=jnp.zeros(count),
            terminated=jnp.zeros(count, bool),
            final=rows,
        ),
        world=_typed(world),
        observation=observation,
        running=zeros,
        score=zeros,
        episodes=jnp.zeros(settings.environments, jnp.int32),
    )


def step(
    settings: Settings, environment: Environment, hyper: Hyper, state: State, key: Array
) -> tuple[State, dict[str, Array]]:
    """A move in every environment and a gradient step.

    Metrics: `score`, the mean over the environments of the return of the last whole episode;
    `gap`, the mean difference between the best and the second best action value; `loss`.
    """
    act_key, world_key, sample_key = jax.random.split(key, 3)
    action = act(settings, state, act_key)
    keys = jax.random.split(world_key, settings.environments)
    moved, world = jax.vmap(environment.step)(keys, state.world, action)
    moves = Transition(state.observation, action, moved.reward, moved.terminated, moved.final)
    replay = _stored(state.replay, moves, state.updates * settings.environments)

    held = jnp.minimum((state.updates + 1) * settings.environments, settings.capacity)
    chosen = _any_below(held, jax.random.uniform(sample_key, (settings.batch,)))
    batch = jax.tree.map(lambda x: x[chosen], replay)
    number = state.updates // settings.target_every
    loss = lambda params: _loss(settings, hyper, params, state.target, batch, number)
    (value, q), slope = jax.value_and_grad(loss, has_aux=True)(state.params)
    with _lenient():
        change, optimiser = _optimiser(settings).update(slope, state.optimiser, state.params)
    params = optax.apply_updates(state.params, change)
    updates = state.updates + 1
    due = updates % settings.target_every == 0
    target = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, state.target)

    ended = moved.terminated | moved.truncated
    running = state.running + moved.reward
    first = state.episodes == 0
    following = State(
        params=params,
        target=target,
        optimiser=optimiser,
        updates=updates,
        replay=replay,
        world=_typed(world),
        observation=moved.observation,
        running=jnp.where(ended, 0, running),
        score=jnp.where(ended | first, running, state.score),
        episodes=state.episodes + ended.astype(jnp.int32),
    )
    top = jax.lax.top_k(q, 2)[0]
    gap = jnp.mean(top[:, 0] - top[:, 1])
    return following, {"score": jnp.mean(state.score), "gap": gap, "loss": value}


def act(settings: Settings, state: State, key: Array) -> Array:
    """Actions `[environments]`: the best ones of the policy, or with some probability any."""
    judge = state.params.get("actor", state.params["q"])
    preferences = mlp(judge, state.observation)
    count, actions = preferences.shape
    best = jnp.argmax(preferences, axis=-1).astype(jnp.int32)
    explores, which = jax.random.uniform(key, (2, count))
    return jnp.where(explores < settings.exploration, _any_below(actions, which), best)


def _any_below(count: ArrayLike, uniform: Array) -> Array:
    """Uniform integers below the count; a number that rounds up to it is the last."""
    count = jnp.asarray(count, jnp.int32)
    return jnp.minimum((uniform * count.astype(uniform.dtype)).astype(jnp.int32), count - 1)


def _optimiser(settings: Settings) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate, eps=settings.adam_epsilon)


def _stored(replay: Transition, moves: Transition, written: Array) -> Transition:
    """With the moves in the place of the oldest."""

    def store(buffer: Array, rows: Array) -> Array:
        at = written % len(buffer)
        return jax.lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), at, 0)

    return jax.tree.map(store, replay, moves)


def _typed(tree: Any) -> Any:
    """The same arrays without weak types, which programs compiled ahead tell apart."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


# ------------------------------------------------------------------------------------ environments


def from_gymnax(name: str) -> Environment:
    """An environment of gymnax 1.0 by its name, `CartPole-v1`; needs the extra `environments`."""
    import gymnax  # seconds: it imports matplotlib and seaborn

    # Also from within a trace these are plain numbers, and constants of every later program.
    with jax.ensure_compile_time_eval():
        made, default = gymnax.make(name)
        default = jax.tree.map(np.asarray, default)

    def reset(key: Array) -> tuple[Array, Any]:
        with _lenient():
            observation, state = made.reset(key, jax.tree.map(jnp.asarray, default))
        return _flat(observation), state

    def step(key: Array, state: Any, action: Array) -> tuple[Moved, Any]:
        with _lenient():
            observation, state, reward, terminated, truncated, info = made.step(
                key, state, action, jax.tree.map(jnp.asarray, default)
            )
        final = _flat(info["final_observation"])
        reward = jnp.asarray(reward, final.dtype)
        return Moved(_flat(observation), reward, terminated, truncated, final), state

    observation, _ = jax.eval_shape(reset, jax.random.key(0))
    return Environment(reset, step, observation.size, made.num_actions)


def _flat(observation: Array) -> Array:
    return jnp.asarray(observation, float).reshape(-1)


def _lenient():
    """For code that mixes integers with floats: gymnax and optax."""
    return jax.numpy_dtype_promotion("standard")
