"""KL terms and losses of public trainers as losses of `jdiv.testing`: imported, and called.

A trainer's function stands in a function of `(log_probs, batch)`, with the defaults of its own
configuration but for what the option says. Advantages are the rewards, without a baseline. Where a
loss computes the log-probabilities itself, those of the batch are put in their place. `summed` is
the sum of what the trainer returns for each token, averaged over sequences; any other option is the
trainer's average.
"""

import importlib
import importlib.util
import sys
import tempfile
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from jdiv import testing

TOKENS = 3
"""The longest answer."""
KL, POLICY = "KL term", "policy loss"
SUM, SEQUENCE, TOKEN = "summed", "by sequence", "by token"
"""Tokens of a sequence are added up; each sequence's mean is averaged; all tokens of the batch."""


class Case(NamedTuple):
    """A loss to be audited."""

    function: str
    """What is called."""
    option: str
    """Of its parameters, and how its tokens are averaged."""
    kind: str
    """`KL` or `POLICY`: what it is meant to be the gradient of."""
    average: str
    """`SUM`, also if a constant divides it, `SEQUENCE` or `TOKEN`."""
    loss: testing.Loss
    default: bool = False
    """Whether all of this is what the trainer does if nothing is set."""


class Trainer(NamedTuple):
    """A package, what of it is audited, and how that is differentiated."""

    package: str
    cases: Callable[[], Iterator[Case]]
    torch: bool
    left_out: tuple[tuple[str, str], ...] = ()
    """Names and reasons of what else has a KL term or is a loss."""


def summed(x: Any, mask: Any) -> Any:
    """The sum over the tokens of each sequence, averaged over sequences."""
    return (x * mask).sum() / len(x)


# ------------------------------------------------------------------------------------------- TRL


def without_a_model(trainer: Any, args: Any, log_probs: Any) -> Any:
    """The attributes of a trainer that its loss reads, with these log-probabilities."""
    high = getattr(args, "epsilon_high", None)
    return types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, 0 * log_probs.detach(), 0),
        args=args, beta=args.beta, loss_type=getattr(args, "loss_type", None),
        importance_sampling_level=getattr(args, "importance_sampling_level", None),
        epsilon_low=args.epsilon, epsilon_high=args.epsilon if high is None else high,
        max_completion_length=TOKENS, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, vllm_importance_sampling_correction=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        get_gamma_weights=getattr(trainer, "get_gamma_weights", None),
        model=types.SimpleNamespace(training=True),
        accelerator=types.SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip


def of_trl(trainer: Any, args: Any, kind: str) -> testing.Loss:
    """A trainer's `_compute_loss`; of its KL term alone at advantages of 0."""

    def f(log_probs: Any, batch: Any) -> Any:
        mask = batch.mask.long()
        one = mask[:, :1]
        inputs = {
            "prompt_ids": one, "prompt_mask": one, "completion_ids": mask, "completion_mask": mask,
            "advantages": batch.rewards if kind == POLICY else 0 * batch.rewards,
            "old_per_token_logps": batch.old_log_probs, "ref_per_token_logps": batch.ref_log_probs,
            "num_items_in_batch": mask.sum(), "old_logps": (batch.old_log_probs * mask).sum(1),
        }  # fmt: skip
        return trainer._compute_loss(without_a_model(trainer, args, log_probs), None, inputs)

    return f


def trl() -> Iterator[Case]:
    """`_compute_loss` of the trainers, on a stand-in for the trainer without a model."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    folder = tempfile.mkdtemp()
    quiet = {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": False}

    def grpo(kind: str, options: dict) -> testing.Loss:
        return of_trl(GRPOTrainer, GRPOConfig(**quiet, steps_per_generation=1, **options), kind)

    sequence = {"importance_sampling_level": "sequence"}
    plain, weighted = ({"use_bias_correction_kl": given} for given in (False, True))
    terms = (
        {"loss_type": "dapo"} | weighted, {"loss_type": "dapo"} | plain,
        {"loss_type": "grpo"} | weighted, {"loss_type": "grpo"} | plain,
        {"loss_type": "dr_grpo"} | weighted, {"loss_type": "dr_grpo"} | plain,
        {"loss_type": "luspo"} | weighted | sequence,
    )  # fmt: skip
    average = {"grpo": SEQUENCE, "sapo": SEQUENCE, "dr_grpo": SUM, "luspo": SUM}
    for options in terms:
        how = average.get(options["loss_type"], TOKEN)
        f = grpo(KL, options | {"beta": 1.0})
        yield Case("GRPOTrainer._compute_loss", said(options), KL, how, f, options == terms[0])
    losses = (
        {"loss_type": "dapo"}, {"loss_type": "grpo"}, {"loss_type": "bnpo"},
        {"loss_type": "dr_grpo"}, {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo"}, {"loss_type": "vespo"}, {"loss_type": "luspo"} | sequence,
        {"loss_type": "grpo"} | sequence,
    )  # fmt: skip
    for options in losses:
        how = average.get(options["loss_type"], TOKEN)
        f = grpo(POLICY, options)
        yield Case("GRPOTrainer._compute_loss", said(options), POLICY, how, f, options == losses[0])
    f = of_trl(RLOOTrainer, RLOOConfig(**quiet), POLICY)
    yield Case("RLOOTrainer._compute_loss", "", POLICY, SUM, f, True)


def said(options: dict) -> str:
    """Options as they are written in a call."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


# ------------------------------------------------------------------------------------------ verl


def verl() -> Iterator[Case]:
    """`verl.trainer.ppo.core_algos`."""
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig, PolicyLossConfig

    config = ActorConfig(
        strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(dro_beta=1.0),  # It has no default.
    )  # fmt: skip

    def term(name: str, average: str | None) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            each = core_algos.kl_penalty(log_probs, batch.ref_log_probs, name)
            if average is None:
                return summed(each, batch.mask)
            return core_algos.agg_loss(each, batch.mask.double(), average)

        return f

    for name in ("low_var_kl", "kl", "mse", "abs", "k1+", "k3+"):
        yield Case("kl_penalty", f"{name}, summed", KL, SUM, term(name, None))
    modes = {"token-mean": TOKEN, "seq-mean-token-mean": SEQUENCE, "seq-mean-token-sum": SUM}
    for average in ("token-mean", "seq-mean-token-mean"):
        for name in ("low_var_kl", "kl", "k3+"):
            default = (name, average) == (config.kl_loss_type, config.loss_agg_mode)
            f = term(name, average)
            yield Case("kl_penalty", f"{name}, {average}", KL, modes[average], f, default)

    def in_reward(log_probs: Any, batch: Any) -> Any:
        scores = 0 * batch.old_log_probs
        paid = core_algos.compute_rewards(scores, batch.old_log_probs, batch.ref_log_probs, 1.0)
        to_go = (paid * batch.mask).flip(1).cumsum(1).flip(1)
        return -summed(to_go * log_probs, batch.mask)

    yield Case("compute_rewards", "to go, summed", KL, SUM, in_reward)

    def policy(name: str, average: str) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            advantages = batch.rewards[:, None] * batch.mask
            return core_algos.get_policy_loss_fn(name)(
                batch.old_log_probs, log_probs, advantages, batch.mask.double(), average, config
            )[0]

        return f

    rows = (
        ("vanilla", "token-mean"), ("vanilla", "seq-mean-token-mean"),
        ("vanilla", "seq-mean-token-sum"), ("gspo", "seq-mean-token-mean"),
        ("cispo", "token-mean"), ("sapo", "seq-mean-token-mean"), ("gpg", "token-mean"),
        ("geo_mean", "seq-mean-token-mean"), ("dppo_tv", "token-mean"), ("dppo_kl", "token-mean"),
        ("dro", "token-mean"),
    )  # fmt: skip
    for name, average in rows:
        default = (name, average) == rows[0]
        f = policy(name, average)
        yield Case("policy losses", f"{name}, {average}", POLICY, modes[average], f, default)


# -------------------------------------------------------------------------------------- OpenRLHF


def without_engine(package: str, engine: str, *names: str) -> list[types.ModuleType]:
    """Modules of a package, without the package's own imports; the engine is an empty module."""
    whole, part = package.split(".")
    folder = importlib.util.find_spec(whole).submodule_search_locations[0]
    bare = types.ModuleType(package)
    bare.__path__ = [f"{folder}/{part}"]
    sys.modules |= {engine: types.ModuleType(engine), package: bare}
    try:
        return [importlib.import_module(f"{package}.{name}") for name in names]
    finally:
        del sys.modules[engine], sys.modules[package]


def openrlhf() -> Iterator[Case]:
    """`openrlhf.models.utils` and `.loss`, which need none of DeepSpeed at what is called."""
    utils, losses = without_engine("openrlhf.models", "deepspeed", "utils", "loss")

    def term(name: str, unbiased: bool, tokens: bool | None) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            each = utils.compute_approx_kl(
                log_probs, batch.ref_log_probs, batch.old_log_probs, name, unbiased
            )
            if tokens is None:
                return summed(each, batch.mask)
            return losses.aggregate_loss(each, batch.mask, token_level_loss=tokens)

        return f

    for name in ("k1", "k2", "k3"):
        yield Case("compute_approx_kl", f"{name}, summed", KL, SUM, term(name, False, None))
    for name in ("k1", "k3"):
        option = f"{name}, unbiased_gradient, summed"
        yield Case("compute_approx_kl", option, KL, SUM, term(name, True, None))
    for name, unbiased in (("k1", False), ("k2", False), ("k3", False), ("k3", True)):
        option = f"{name}, {'unbiased_gradient, ' * unbiased}token_level_loss"
        yield Case("compute_approx_kl", option, KL, TOKEN, term(name, unbiased, True))
    yield Case("compute_approx_kl", "k3, by sequence", KL, SEQUENCE, term("k3", False, False))

    def in_reward(name: str) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            kl = utils.compute_approx_kl(batch.old_log_probs, batch.ref_log_probs, None, name)
            paid = utils.compute_reward(0 * batch.rewards, 1.0, kl, batch.mask)
            to_go = (paid * batch.mask).flip(1).cumsum(1).flip(1)
            return -summed(to_go * log_probs, batch.mask)

        return f

    for name in ("k1", "k3"):
        option = f"{name}, to go, summed"
        yield Case("compute_reward", option, KL, SUM, in_reward(name), name == "k1")

    def policy(**options: Any) -> testing.Loss:
        policy_loss = losses.PolicyLoss(**options)

        def f(log_probs: Any, batch: Any) -> Any:
            advantages = batch.rewards[:, None] * batch.mask
            return policy_loss(log_probs, batch.old_log_probs, advantages, batch.mask)[0]

        return f

    rows = (
        {}, {"token_level_loss": False}, {"dual_clip": 3.0}, {"policy_loss_type": "gspo"},
    )  # fmt: skip
    for options in rows:
        by_token = options.keys() <= {"dual_clip"}
        how = TOKEN if by_token else SEQUENCE
        yield Case("PolicyLoss", said(options), POLICY, how, policy(**options), not options)


# --------------------------------------------------------------------------------------- polgrad


def polgrad() -> Iterator[Case]:
    """`polgrad.kl` and the presets of `polgrad.registry`."""
    import dataclasses

    from polgrad import kl, losses, registry
    from polgrad.aggregate import Aggregation

    whole = Aggregation.SEQ_MEAN_TOKEN_SUM

    def term(kind: Any, average: Any) -> testing.Loss:
        return lambda log_probs, batch: kl.kl_loss(
            log_probs, batch.ref_log_probs, kind, average, response_mask=batch.mask
        )

    for kind in kl.KLEstimator:
        yield Case("kl_loss", f"{kind.value}, summed", KL, SUM, term(kind, whole))
    modes = {
        Aggregation.TOKEN_MEAN: TOKEN, Aggregation.SEQ_MEAN_TOKEN_MEAN: SEQUENCE,
        whole: SUM, Aggregation.TOKEN_SUM_NORM: SUM,
    }  # fmt: skip
    for average in (Aggregation.TOKEN_MEAN, Aggregation.SEQ_MEAN_TOKEN_MEAN):
        for kind in (kl.KLEstimator.K1, kl.KLEstimator.K3):
            option = f"{kind.value}, {average.value}"
            yield Case("kl_loss", option, KL, modes[average], term(kind, average))

    def surrogate(log_probs: Any, batch: Any) -> Any:
        return kl.reverse_kl_grad_surrogate(
            log_probs, batch.ref_log_probs, whole, response_mask=batch.mask
        )

    yield Case("reverse_kl_grad_surrogate", "summed", KL, SUM, surrogate)

    def in_reward(log_probs: Any, batch: Any) -> Any:
        paid = kl.kl_in_reward(
            0 * batch.old_log_probs, batch.old_log_probs, batch.ref_log_probs,
            kl.KLEstimator.K1, 1.0, response_mask=batch.mask,
        )  # fmt: skip
        return -summed(paid.flip(1).cumsum(1).flip(1) * log_probs, batch.mask)

    yield Case("kl_in_reward", "k1, to go, summed", KL, SUM, in_reward)

    def policy(config: Any) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            return losses.policy_loss(
                config, logprobs=log_probs, old_logprobs=batch.old_log_probs,
                advantages=batch.rewards, response_mask=batch.mask,
                rollout_logprobs=batch.old_log_probs,
            ).loss  # fmt: skip

        return f

    for name in ("ppo", "grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "rloo"):
        config = dataclasses.replace(registry.get(name).loss, kl=None)
        if config.aggregation is Aggregation.TOKEN_SUM_NORM:
            config = dataclasses.replace(config, norm_len=TOKENS)
        how = modes[config.aggregation]
        yield Case("policy_loss", f"preset {name}", POLICY, how, policy(config))


# ----------------------------------------------------------------------------------------- Tunix


def tunix() -> Iterator[Case]:
    """`tunix.rl.algo_core` and `tunix.rl.common`."""
    import jax.numpy as jnp
    from flax import nnx
    from tunix.rl import algo_core, common
    from tunix.rl.grpo import dapo_learner, drgrpo_learner, grpo_learner

    def term(name: str) -> testing.Loss:
        def f(log_probs: Any, batch: Any) -> Any:
            each = common.compute_kl_divergence(log_probs, batch.ref_log_probs, name)
            return summed(each, batch.mask)

        return f

    for name in ("kl", "mse_kl", "low_var_kl"):
        yield Case("compute_kl_divergence", f"{name}, summed", KL, SUM, term(name))

    def whole(config: Any, kind: str) -> testing.Loss:
        """The loss of a learner; a model without parameters stands in for the policy."""
        config.temperature = 1.0  # What the learner takes over from its sampler.

        def f(log_probs: Any, batch: Any) -> Any:
            gains = batch.rewards if kind == POLICY else jnp.zeros_like(batch.rewards)
            mask = batch.mask.astype(jnp.int32)
            example = common.TrainExample(
                prompt_ids=mask, prompt_mask=mask, completion_ids=mask, completion_mask=mask,
                advantages=gains, old_per_token_logps=batch.old_log_probs,
                ref_per_token_logps=batch.ref_log_probs if kind == KL else None,
            )  # fmt: skip
            given = lambda *_, **__: (log_probs, jnp.zeros((*log_probs.shape, 3)))
            with mock.patch.object(common, "compute_per_token_logps", given):
                return algo_core.grpo_loss_fn(nnx.Module(), example, config, 0, 2)[0]

        return f

    base = grpo_learner.GRPOConfig
    modes = {
        "token-mean": TOKEN, "sequence-mean-token-mean": SEQUENCE, "seq-mean-token-sum": SUM,
        "sequence-mean-token-scale": SUM,
    }  # fmt: skip
    for name, average in (
        ("kl", "sequence-mean-token-mean"), ("mse_kl", "sequence-mean-token-mean"),
        ("low_var_kl", "sequence-mean-token-mean"), ("kl", "token-mean"),
        ("low_var_kl", "token-mean"), ("low_var_kl", "seq-mean-token-sum"),
    ):  # fmt: skip
        config = base(beta=1.0, kl_loss_mode=name, loss_agg_mode=average)
        default = (name, average) == (base().kl_loss_mode, base().loss_agg_mode)
        f = whole(config, KL)
        yield Case("grpo_loss_fn", f"{name}, {average}", KL, modes[average], f, default)
    for learner, config in (
        ("GRPOConfig", base()), ("GRPOConfig, gspo-token", base(loss_algo="gspo-token")),
        ("DrGRPOConfig", drgrpo_learner.DrGRPOConfig()), ("DAPOConfig", dapo_learner.DAPOConfig()),
    ):  # fmt: skip
        default = "," not in learner
        how, f = modes[config.loss_agg_mode], whole(config, POLICY)
        yield Case("grpo_loss_fn", learner, POLICY, how, f, default)


ALL = {
    "trl": Trainer("trl", trl, True, (
        ("KL in the reward of RLOOTrainer and PPOTrainer",
         "inside of the method that also generates the answers"),
    )),
    "verl": Trainer("verl", verl, True, (
        ("policy losses clip_cov and kl_cov", "choose tokens at random or by the batch"),
        ("kl_penalty full", "raises NotImplementedError"),
    )),
    "openrlhf": Trainer("openrlhf", openrlhf, True, (
        ("PolicyLoss with is_correction_level", "corrects for a second engine that samples"),
    )),
    "polgrad": Trainer("polgrad", polgrad, True),
    "tunix": Trainer("google-tunix", tunix, False, (
        ("ppo_policy_loss_fn", "needs a critic's advantages; its KL term is compute_kl_divergence"),
    )),
}  # fmt: skip
