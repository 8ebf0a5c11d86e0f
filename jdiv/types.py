"""Named array types of the public signatures: what an array holds, and its shape.

They are `jaxtyping` annotations: documentation to a reader, checked when a test run asks for it.
`*batch` stands for any leading axes, `n` for categories, `tokens` for the positions of a sequence;
a name that occurs twice in one signature has the same size both times. Input may also be a NumPy
array; half precision is widened to float32 (`checks.as_float`).
"""

from __future__ import annotations

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key, Real, Shaped

# Categories last.
Logits = Float[Array | np.ndarray, "*batch n"]
"""Unnormalized log-probabilities; `-inf` is an exact zero."""
LogPolicy = Float[Array | np.ndarray, "*batch n"]
"""Normalized log-probabilities of a policy over n actions."""
Probs = Float[Array | np.ndarray, "*batch n"]
"""Probabilities, which sum to one over the last axis."""
Counts = Real[Array | np.ndarray, "*batch n"]
"""How often each of n categories was seen."""
Values = Float[Array | np.ndarray, "*batch n"]
"""Values of n actions, in the units of the reward."""

# Tokens and sequences.
PerToken = Float[Array | np.ndarray, "*batch tokens"]
"""One number for each token of a sequence."""
LogProbs = Float[Array | np.ndarray, "*batch tokens"]
"""Log-probabilities of the sampled tokens."""
Mask = Shaped[Array | np.ndarray, "*batch tokens"]
"""1 or True for the tokens that count."""
PerSequence = Float[Array | np.ndarray, "*batch"]
"""One number for each sequence, or for each row of logits."""
SequenceLogProbs = Float[Array | np.ndarray, "*batch"]
"""Log-probabilities of whole sequences, sums over their tokens."""
RowMask = Shaped[Array | np.ndarray, "*batch"]
"""1 or True for the rows of logits that count."""
PerPair = Float[Array | np.ndarray, "*batch"]
"""One number for each pair of a chosen and a rejected answer."""
PerSample = Float[Array | np.ndarray, "*samples"]
"""One number for each sample: log-probabilities, weights, estimates."""
Hidden = Float[Array | np.ndarray, "*batch tokens width"]
"""States of a language model after its last layer."""
Features = Float[Array | np.ndarray, "*batch width"]
"""States of one layer of a network, one a row."""
Head = Float[Array | np.ndarray, "vocabulary width"]
"""The matrix that makes logits of hidden states; tied, it is the embedding."""
RowMask = Shaped[Array | np.ndarray, "*batch"]
"""1 or True for the rows that count."""
Centroids = Float[Array | np.ndarray, "classes n"]
"""Logits of the mean answer of each class."""
Rewards = Shaped[Array | np.ndarray, "*batch"]
"""One reward for each sequence, sample or answer: a number, a boolean, or an integer 0 or 1."""

# Parameters.
Scalar = Real[ArrayLike, ""]
"""One number: a Python number, or an array without axes, which may be traced."""
PerRow = Scalar | PerSequence
"""A parameter of rows `[..., n]`: one number, or one for each row, never one for each of the n."""

# Everything else.
Categories = Shaped[Array | np.ndarray, "..."]
"""1 or True for the categories that count; broadcast against the logits."""
Reduced = Float[Array, "..."]
"""The shape of the logits without their axis of categories."""
RandomKey = Key[Array, ""]
"""A key of `jax.random.key`."""
Samples = Float[Array | np.ndarray, "samples dimension"]
"""Points of a space, one a row."""
OtherSamples = Float[Array | np.ndarray, "others dimension"]
"""Points of the same space, maybe of another number."""
Scores = Float[Array | np.ndarray, "*batch n n"]
"""`f(x_i, y_j)`, a critic on every pair of n joint samples."""
CriticOfP = Float[Array | np.ndarray, "*batch n"]
"""A critic's values at n samples of p."""
CriticOfQ = Float[Array | np.ndarray, "*batch m"]
"""A critic's values at m samples of q."""
Square = Float[Array | np.ndarray, "n n"]
"""A symmetric matrix between the n categories: cost, kernel, distances."""
Preference = Float[Array | np.ndarray, "... n n"]
"""`P[i, j]`, the probability that answer i is preferred to answer j."""
Transition = Float[Array | np.ndarray, "states actions states"]
"""`P[s, a, s']`, probabilities of the next state."""
StateActions = Float[Array | np.ndarray, "*batch states actions"]
"""One number for each state and action: rewards, values, a policy."""
PerState = Float[Array | np.ndarray, "*batch states"]
"""One number for each state."""
Indices = Int[Array | np.ndarray, "*batch"]
"""One index for each row: an action, an arm, a token."""
