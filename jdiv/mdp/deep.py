"""Deep regularized Q-learning: the schemes of `operators` with networks, replay and environments.

`init` and `step` are pure functions of a state of arrays. The hyperparameters that a sweep varies
are traced (`Hyperparameters`), so all cells of a heat map and all their seeds are one vmapped
program; a `Method` of the table `METHODS` is static, and one's own is a pair of functions. One step
is one move in each of the parallel environments and one gradient step. With weight and temperature
0 Munchausen's method is DQN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.mdp import operators
from jdiv.types import Indices, Logits, PerSequence, RandomKey, Scalar, Values


class Hyperparameters(NamedTuple):
    """Traced hyperparameters: the penalty is `kl_weight KL(pi‖old) - entropy_weight H(pi)`.

    Fields:
        weight: `kl_weight / temperature`: 0 is entropy alone, 1 is KL alone; Munchausen's alpha.
        temperature: `kl_weight + entropy_weight`; with 0, weight 0 is DQN and weight > 0 advantage
            learning.
        index: Tsallis' index, as in `operators.tsallis`: 1 is softmax, 2 sparsemax.
        floor: Least value of the Munchausen bonus before its weight.
        evaluation: Mirror descent and dual averaging: 1 if targets contain the penalty, 0 if not.
    """

    weight: ArrayLike
    temperature: ArrayLike
    index: ArrayLike = 2.0
    floor: ArrayLike = -1.0
    evaluation: ArrayLike = 1.0

    @property
    def kl_weight(self) -> Array:
        """Weight of KL to the old policy."""
        return jnp.asarray(self.weight * self.temperature)

    @property
    def entropy_weight(self) -> Array:
        """Weight of the entropy."""
        return jnp.asarray((1 - self.weight) * self.temperature)


class TimeStep(NamedTuple):
    """Observation, reward and end of an episode after a move in an environment.

    Fields:
        observation: The next one to act on: of a new episode if this one has ended.
        reward: `[]` of the move.
        terminated: The episode is over, and nothing follows.
        truncated: The episode was cut: its value goes on.
        final: The observation that this move led to, before any reset.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final: Array


class Environment(NamedTuple):
    """An environment that starts again by itself.

    Fields:
        reset: `reset(key) -> (observation, state)`
        step: `step(key, state, action) -> (time_step, state)`
        features: Length of an observation.
        actions: The number of actions.
    """

    reset: Callable[[Array], tuple[Array, Any]]
    step: Callable[[Array, Any, Array], tuple[TimeStep, Any]]
    features: int
    actions: int


class Transition(NamedTuple):
    """Moves, as the replay buffer keeps them: `[..., features]` twice, and numbers.

    Fields:
        observation: `[..., features]` before the move.
        action: `[...]` integers.
        reward: `[...]`
        terminated: `[...]` whether the episode ended there.
        final: `[..., features]` where the move led.
    """

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    final: Array


class State(NamedTuple):
    """Everything that a run needs to go on.

    Fields:
        params: Weights of the online networks.
        target: Weights of the target networks.
        optimizer: State of the optimizer.
        updates: `[]` gradient steps so far.
        replay: `[capacity, ...]`
        world: States of the environments.
        observation: `[environments, features]`
        running: `[environments]` return of the episode so far.
        score: `[environments]` return of the last whole episode; of the first one so far until its
            end.
        episodes: `[environments]` episodes that have ended.
    """

    params: dict[str, Any]
    target: dict[str, Any]
    optimizer: Any
    updates: Array
    replay: Transition
    world: Any
    observation: Array
    running: Array
    score: Array
    episodes: Array


# -------------------------------------------------------------------------------------- networks


def mlp_init(sizes: tuple[int, ...], key: RandomKey) -> list[dict[str, Array]]:
    """Layers of a perceptron, with He's normal weights and zero biases.

    >>> [layer["weight"].shape for layer in mlp_init((4, 16, 2), jax.random.key(0))]
    [(4, 16), (16, 2)]
    """
    shapes = list(itertools.pairwise(sizes))
    counts = [rows * columns for rows, columns in shapes]
    # One draw for all layers: a draw is most of what there is to compile.
    normal = jnp.split(jax.random.normal(key, (sum(counts),)), np.cumsum(counts)[:-1])
    return [
        {"weight": draws.reshape(shape) * (2 / shape[0]) ** 0.5, "bias": jnp.zeros(shape[1])}
        for draws, shape in zip(normal, shapes, strict=True)
    ]


def mlp(layers: list[dict[str, Array]], x: Array) -> Array:
    """`[..., features]` to `[..., outputs]`, with rectified linear units in between.

    >>> layers = [{"weight": jnp.eye(2), "bias": jnp.zeros(2)}] * 2
    >>> mlp(layers, jnp.array([3.0, -1.0]))
    Array([3., 0.], dtype=float32)
    """
    for number, layer in enumerate(layers):
        x = x @ layer["weight"]
        x = x + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        x = x if number == len(layers) - 1 else jax.nn.relu(x)
    return x


# --------------------------------------------------------------------------------------- targets


def bootstrapped(batch: Transition, value: PerSequence, discount: float) -> Array:
    """`r + discount v(final)`, `[batch]`: no value after a terminal state, one after a cut."""
    return batch.reward + discount * jnp.where(batch.terminated, 0, value)


def munchausen_target(
    hyper: Hyperparameters, batch: Transition, q: Values, q_next: Values, discount: float
) -> Array:
    """`r + alpha max(T log pi(a|s), floor) + discount <pi', q' - T log pi'>`, `pi = softmax(q/T)`.

    `T log pi = q - v` and `<pi, q - T log pi> = v` with the soft maximum v, which at T = 0 is the
    maximum. The released code also clips the bonus at 1 from above: it is never positive.
    Shapes: q and q_next `[batch, actions]` to `[batch]`.

    Reference: Vieillard, Pietquin and Geist 2020 (arXiv:2007.14430), equation 1 and section 4.
    """
    both = jnp.stack([q, q_next])
    now, after = operators.soft(both, jnp.zeros_like(both), 0.0, hyper.temperature).value
    bonus = entry_of_action(q, batch.action) - now
    bonus = hyper.weight * jnp.maximum(bonus, hyper.floor)
    return bootstrapped(batch, after, discount) + bonus


def tsallis_target(
    hyper: Hyperparameters, batch: Transition, q: Values, q_next: Values, discount: float
) -> Array:
    """MVI(q): `r + alpha max(q(s, a) - <pi, q>, floor) + discount (<pi', q'> + T H(pi'))`.

    Policy and entropy are those of `operators.tsallis`, greedy at temperature 0.

    Reference: Zhu et al. 2023 (arXiv:2301.11476), MVI(q).
    Reconstructed: the bonus, from a secondary source.
    """
    both = operators.tsallis(jnp.stack([q, q_next]), hyper.temperature, hyper.index)
    mean = jnp.sum(jnp.exp(both.log_policy[0]) * q, axis=-1)
    bonus = entry_of_action(q, batch.action) - mean
    bonus = hyper.weight * jnp.maximum(bonus, hyper.floor)
    return bootstrapped(batch, both.value[1], discount) + bonus


def mirror_target(
    hyper: Hyperparameters,
    batch: Transition,
    logits_next: Logits,
    old_logits_next: Logits,
    q_next: Values,
    discount: float,
) -> Array:
    """`r + discount (<pi', q'> - evaluation (kl_weight KL(pi'‖old) - entropy_weight H(pi')))`.

    Shapes: logits of the policy and of the one before, and action values, `[batch, actions]`.

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 2.
    """
    weights = hyper.evaluation * hyper.kl_weight, hyper.evaluation * hyper.entropy_weight
    value = penalized_value(*weights, logits_next, old_logits_next, q_next)
    return bootstrapped(batch, value, discount)


def penalized_value(
    kl_weight: Scalar, entropy_weight: Scalar, logits: Logits, old_logits: Logits, q: Values
) -> Array:
    """`<pi, q> - kl_weight KL(pi‖old) + entropy_weight H(pi)`, `[..., actions]` to `[...]`.

    >>> even = jnp.zeros(2)
    >>> print(f"{penalized_value(0.0, 1.0, even, even, jnp.array([0.0, 1.0])):.4f}")
    1.1931
    """
    policy = jnp.exp(numerics.log_softmax(logits))
    most = jnp.log(jnp.asarray(q.shape[-1], q.dtype))
    entropy = most - categorical.kl(logits, jnp.zeros_like(logits))
    # A greedy policy may leave the support of the old one, which without a penalty is free.
    distance = jnp.where(kl_weight == 0, 0, categorical.kl(logits, old_logits))
    return jnp.sum(policy * q, axis=-1) - kl_weight * distance + entropy_weight * entropy


def averaging_schedule(
    hyper: Hyperparameters, number: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """`(keep, add, temperature, old temperature)` of dual averaging at update `number`.

    `h_k = keep h_(k-1) + add q_k`, `pi_(k+1) = softmax(h_k / temperature)`. With entropy h is a
    moving average, at temperature `entropy_weight`; without, the plain average of all k + 1 action
    values, at `kl_weight / (k + 1)`; without both, q itself.

    >>> [x.item() for x in averaging_schedule(Hyperparameters(1.0, 2.0), jnp.asarray(3))]
    [0.75, 0.25, 0.5, 0.6666666865348816]

    Reference: Vieillard et al. 2020 (arXiv:2003.14089), equation 4.
    """
    kl_weight, entropy_weight = hyper.kl_weight, hyper.entropy_weight
    count = jnp.asarray(number).astype(kl_weight.dtype)
    plain = entropy_weight == 0
    keep = jnp.where(plain, count / (count + 1), hyper.weight)
    keep = jnp.where(kl_weight == 0, 0, keep)
    temperature = jnp.where(plain, kl_weight / (count + 1), entropy_weight)
    old_temperature = jnp.where(plain, kl_weight / jnp.maximum(count, 1), entropy_weight)
    return keep, 1 - keep, temperature, old_temperature


def entry_of_action(x: Values, action: Indices) -> Array:
    """`x[..., action]`, `[..., actions]` and `[...]` to `[...]`.

    >>> entry_of_action(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0]))
    Array([2., 3.], dtype=float32)
    """
    return jnp.take_along_axis(x, action[..., None], axis=-1)[..., 0]


# ---------------------------------------------------------------------------------------- losses


def td_loss(q: Values, action: Indices, target: PerSequence) -> Array:
    """Mean Huber loss of the action values of the actions taken.

    >>> td_loss(jnp.array([[0.0, 3.0]]), jnp.array([1]), jnp.array([1.0])).item()
    1.5
    """
    return jnp.mean(optax.huber_loss(entry_of_action(q, action), target))


class Method(NamedTuple):
    """A member of the family: the loss of a batch, and whether the policy has a network.

    Fields:
        loss: `loss(hyper, params, target, batch, number, discount)`: the loss of a batch in which
            the target network was updated `number` times, and the action values `[batch, actions]`.
        actor: Whether the policy has a network of its own.
    """

    loss: Callable[..., tuple[Array, Array]]
    actor: bool


def value_method(target: Callable[..., Array]) -> Method:
    """Regression to `target(hyper, batch, q, q_next, discount)`; the policy follows from q."""

    def loss(hyper, params, target_params, batch, number, discount):
        q = mlp(params["q"], batch.observation)
        q_old, q_next = mlp(target_params["q"], _both(batch))
        wanted = target(hyper, batch, q_old, q_next, discount)
        return td_loss(q, batch.action, wanted), q

    return Method(loss, actor=False)


def policy_method(improvement: Callable[..., tuple[Array, Array, Array]]) -> Method:
    """Regression to `mirror_target`, with a network for the policy that has a loss of its own.

    `improvement(hyper, actor, old_actor, q, number)` takes what the network of the policy and its
    target give for observations and final ones, `[2, batch, actions]`, and the action values of the
    first, to the loss and the logits of both policies.
    """

    def loss(hyper, params, target_params, batch, number, discount):
        both = _both(batch)
        q, (q_old, q_next) = mlp(params["q"], batch.observation), mlp(target_params["q"], both)
        actor, old_actor = mlp(params["actor"], both), mlp(target_params["actor"], both)
        actor_loss, logits, old_logits = improvement(hyper, actor, old_actor, q_old, number)
        logits_next = jax.lax.stop_gradient(logits[1])
        wanted = mirror_target(hyper, batch, logits_next, old_logits[1], q_next, discount)
        return td_loss(q, batch.action, wanted) + actor_loss, q

    return Method(loss, actor=True)


def _both(batch: Transition) -> Array:
    """`[2, batch, features]` observations before and after the moves."""
    return jnp.stack([batch.observation, batch.final])


def _direct(hyper, actor, old_actor, q, number):
    """Ascent of the penalized value itself."""
    value = penalized_value(hyper.kl_weight, hyper.entropy_weight, actor[0], old_actor[0], q)
    return -jnp.mean(value), actor, old_actor


def _indirect(hyper, actor, old_actor, q, number):
    """Cross-entropy to the policy that maximizes the penalized value."""
    old_log_policy = numerics.log_softmax(old_actor[0])
    best = operators.soft(q, old_log_policy, hyper.kl_weight, hyper.entropy_weight).log_policy
    cross_entropy = -jnp.sum(jnp.exp(best) * numerics.log_softmax(actor[0]), axis=-1)
    return jnp.mean(cross_entropy), actor, old_actor


def _dual_averaging(hyper, actor, old_actor, q, number):
    """Regression to the average of the action values, of which the policy is a softmax."""
    keep, add, temperature, old_temperature = averaging_schedule(hyper, number)
    old_actor = jnp.where(number == 0, 0, old_actor)
    wanted = keep * old_actor[0] + add * q
    loss = jnp.mean(jnp.sum(optax.huber_loss(actor[0], wanted), axis=-1))
    return loss, _divided(actor, temperature), _divided(old_actor, old_temperature)


def _divided(values: Array, temperature: Array) -> Array:
    """Logits `values / temperature`; at temperature 0 those of the greedy policy."""
    hard = temperature == 0
    logits = values / jnp.where(hard, 1, temperature)
    return jnp.where(hard, operators.greedy(values).log_policy, logits)


METHODS: dict[str, Method] = {
    "munchausen": value_method(munchausen_target),
    "tsallis": value_method(tsallis_target),
    "mirror_direct": policy_method(_direct),
    "mirror_indirect": policy_method(_indirect),
    "dual_averaging": policy_method(_dual_averaging),
}
"""The methods by name: M-DQN, MVI(q), and the two kinds of MD-VI and DA-VI of Vieillard et al."""


# ---------------------------------------------------------------------------------------- training


class Settings(NamedTuple):
    """Static hyperparameters; changing one recompiles.

    Fields:
        method: A member of the family, as in `METHODS`.
        hidden: Widths of the hidden layers.
        environments: Environments that run in parallel: moves per gradient step.
        capacity: Moves that the replay buffer holds.
        batch: Moves in a batch.
        target_every: Gradient steps between updates of the target network.
        learning_rate: Of Adam.
        adam_epsilon: Of Adam.
        discount: In [0, 1).
        exploration: Probability of a uniform action, constant.
    """

    method: Method = METHODS["munchausen"]
    hidden: tuple[int, ...] = (64, 64)
    environments: int = 8
    capacity: int = 8192
    batch: int = 32
    target_every: int = 50
    learning_rate: float = 1e-3
    adam_epsilon: float = 3.125e-4
    discount: float = 0.99
    exploration: float = 0.05


def init(settings: Settings, environment: Environment, key: RandomKey) -> State:
    """Random networks, an empty buffer, all environments at their start."""
    if not isinstance(settings.method, Method):
        raise TypeError(f"method must be a Method, as in METHODS, got {settings.method!r}")
    checks.in_range("discount", settings.discount, 0, 1, "from 0 to 1", closed="both")
    checks.in_range("exploration", settings.exploration, 0, 1, "from 0 to 1", closed="both")
    checks.positive("learning_rate", settings.learning_rate)
    checks.not_negative("adam_epsilon", settings.adam_epsilon)
    for name in ("environments", "capacity", "batch", "target_every"):
        checks.in_range(name, getattr(settings, name), 1, np.inf, "at least 1", closed="low")
    if settings.capacity % settings.environments:
        raise ValueError(
            f"capacity must be a multiple of environments, got {settings.capacity} and"
            f" {settings.environments}"
        )
    q_key, actor_key, world_key = jax.random.split(key, 3)
    sizes = (environment.features, *settings.hidden, environment.actions)
    params = {"q": mlp_init(sizes, q_key)}
    if settings.method.actor:
        params["actor"] = mlp_init(sizes, actor_key)
    keys = jax.random.split(world_key, settings.environments)
    observation, world = jax.vmap(environment.reset)(keys)
    zeros = jnp.zeros(settings.environments)
    count, rows = settings.capacity, jnp.zeros((settings.capacity, environment.features))
    return State(
        params=params,
        target=params,
        optimizer=_optimizer(settings).init(params),
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
    settings: Settings,
    environment: Environment,
    hyper: Hyperparameters,
    state: State,
    key: RandomKey,
) -> tuple[State, dict[str, Array]]:
    """A move in every environment and a gradient step.

    Metrics: `score`, the mean over the environments of the return of the last whole episode;
    `gap`, the mean difference between the best and the second best action value; `loss`.
    """
    act_key, world_key, sample_key = jax.random.split(key, 3)
    action = act(settings, state, act_key)
    keys = jax.random.split(world_key, settings.environments)
    time_step, world = jax.vmap(environment.step)(keys, state.world, action)
    ended = time_step.terminated | time_step.truncated
    moves = Transition(
        observation=state.observation,
        action=action,
        reward=time_step.reward,
        terminated=time_step.terminated,
        final=time_step.final,
    )
    replay = _stored(state.replay, moves, state.updates * settings.environments)

    held = jnp.minimum((state.updates + 1) * settings.environments, settings.capacity)
    chosen = _any_below(held, jax.random.uniform(sample_key, (settings.batch,)))
    batch = jax.tree.map(lambda x: x[chosen], replay)
    number = state.updates // settings.target_every
    loss = lambda params: settings.method.loss(
        hyper, params, state.target, batch, number, settings.discount
    )
    (value, q), slope = jax.value_and_grad(loss, has_aux=True)(state.params)
    with _lenient():
        change, optimizer = _optimizer(settings).update(slope, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    updates = state.updates + 1
    due = updates % settings.target_every == 0
    target = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, state.target)

    running = state.running + time_step.reward
    first = state.episodes == 0
    following = State(
        params=params,
        target=target,
        optimizer=optimizer,
        updates=updates,
        replay=replay,
        world=_typed(world),
        observation=time_step.observation,
        running=jnp.where(ended, 0, running),
        score=jnp.where(ended | first, running, state.score),
        episodes=state.episodes + ended.astype(jnp.int32),
    )
    return following, {"score": jnp.mean(state.score), "gap": jnp.mean(_gap(q)), "loss": value}


def _gap(q: Array) -> Array:
    """The best action value minus the second best, `[..., actions]` to `[...]`; without sorting.

    >>> _gap(jnp.array([[-3.0, -9.0, -5.0], [2.0, 2.0, 1.0]]))
    Array([2., 0.], dtype=float32)
    """
    best = jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=bool)
    return jnp.max(q, axis=-1) - jnp.max(jnp.where(best, -jnp.inf, q), axis=-1)


def act(settings: Settings, state: State, key: RandomKey) -> Array:
    """Actions `[environments]`: the best ones of the policy, or with some probability any."""
    network = state.params.get("actor", state.params["q"])
    preferences = mlp(network, state.observation)
    count, actions = preferences.shape
    best = jnp.argmax(preferences, axis=-1).astype(jnp.int32)
    explores, which = jax.random.uniform(key, (2, count))
    return jnp.where(explores < settings.exploration, _any_below(actions, which), best)


def _any_below(count: ArrayLike, uniform: Array) -> Array:
    """Uniform integers below the count; a number that rounds up to it is the last."""
    count = jnp.asarray(count, jnp.int32)
    return jnp.minimum((uniform * count.astype(uniform.dtype)).astype(jnp.int32), count - 1)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate, eps=settings.adam_epsilon)


def _stored(replay: Transition, moves: Transition, written: Array) -> Transition:
    """The buffer with the moves in the place of the oldest."""

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

    def step(key: Array, state: Any, action: Array) -> tuple[TimeStep, Any]:
        with _lenient():
            observation, state, reward, terminated, truncated, info = made.step(
                key, state, action, jax.tree.map(jnp.asarray, default)
            )
        final = _flat(info["final_observation"])
        reward = jnp.asarray(reward, final.dtype)
        return TimeStep(_flat(observation), reward, terminated, truncated, final), state

    observation, _ = jax.eval_shape(reset, jax.random.key(0))
    return Environment(reset, step, observation.size, made.num_actions)


def _flat(observation: Array) -> Array:
    return jnp.asarray(observation, float).reshape(-1)


def _lenient():
    """For code that mixes integers with floats: gymnax and optax."""
    return jax.numpy_dtype_promotion("standard")
