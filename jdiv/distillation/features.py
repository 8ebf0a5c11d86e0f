"""Losses of hidden layers, and classes made of a teacher's hidden layer (LELP).

Features are `[..., width]`, the states of one layer. Those of student and teacher have one width:
where they do not, a map that is trained along brings the student's to the teacher's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jdiv import checks, numerics
from jdiv.divergences import categorical
from jdiv.estimators import variational
from jdiv.types import (
    Features,
    Head,
    Indices,
    Logits,
    OtherSamples,
    RandomKey,
    Reduced,
    Samples,
    Scalar,
    Scores,
)

# ------------------------------------------------------------------------------- of hidden layers


def _pair(student_features: ArrayLike, teacher_features: ArrayLike) -> tuple[Array, Array]:
    """Features of one width in one precision; the teacher's are constants."""
    student, teacher = checks.alike(
        student_features=student_features, teacher_features=teacher_features
    )
    return student, jax.lax.stop_gradient(teacher)


def squared_error(student_features: Features, teacher_features: Features) -> Reduced:
    """`mean (s - t)^2` over the width.

    The gradient is `2 (s - t)/width`; the teacher is a constant.
    Shapes: `[..., width]` twice to `[...]`.

    >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0

    Reference: Romero et al. 2015 (arXiv:1412.6550), equation 3, a mean in place of half a sum.
    """
    student, teacher = _pair(student_features, teacher_features)
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def _unit(x: Array) -> Array:
    """`x/|x|` of rows, 0 of a row of zeros; no square over- or underflows."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def cosine_distance(student_features: Features, teacher_features: Features) -> Reduced:
    """`1 - cos(s, t)`: blind to the length of both. The teacher is a constant.

    The gradient is `-(t/|t| - cos s/|s|)/|s|`. A row of zeros is at the distance 1 from all.
    Shapes: `[..., width]` twice to `[...]`. Range: 0 to 2.

    >>> print(cosine_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])))
    1.0

    Reference: Sanh et al. 2019 (arXiv:1910.01108), who align hidden states by it.
    """
    student, teacher = _pair(student_features, teacher_features)
    # Half the squared distance of unit vectors: no difference from 1, and 0 for equal ones.
    student, teacher = _unit(student), _unit(teacher)
    empty = jnp.all(student == 0, axis=-1) | jnp.all(teacher == 0, axis=-1)
    return jnp.where(empty, 1, jnp.sum(jnp.square(student - teacher), axis=-1) / 2)


def cka_distance(student_features: Samples, teacher_features: Features) -> Scalar:
    """`1 - CKA`, linear centered kernel alignment of a batch: `|S'T|^2/(|S'S| |T'T|)`, centered.

    Frobenius norms. Blind to rotations and the scale of either side; the widths may differ. A
    number of a batch: `[b, width]` and `[b, other]` to `[]`. Range: 0 to 1; 1 where a side is
    constant. The teacher is a constant.

    >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
    >>> print(f"{cka_distance(x, -2 * x[:, ::-1]):.4f}")
    0.0000

    Reference: Kornblith et al. 2019 (arXiv:1905.00414), section 3.
    """
    student = checks.as_float("student_features", student_features)
    teacher = checks.as_float("teacher_features", teacher_features)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student_features and teacher_features must be [rows, ...], got {shapes}")
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    grams = []
    for x in (student.astype(dtype), jax.lax.stop_gradient(teacher).astype(dtype)):
        x = x - jnp.mean(x, axis=0, keepdims=True)
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
        x = x / jnp.where(largest > 0, largest, 1)
        # |S'T|^2 is the product of the two matrices between rows, summed.
        gram = jnp.matmul(x, x.T, precision="highest")
        square = jnp.sum(jnp.square(gram))
        grams.append(gram / jnp.sqrt(jnp.where(square > 0, square, 1)))
    empty = jnp.all(grams[0] == 0) | jnp.all(grams[1] == 0)
    return jnp.where(empty, 1, jnp.sum(jnp.square(grams[0] - grams[1])) / 2)


def layer_scores(
    student_features: Samples, teacher_features: OtherSamples, *, temperature: Scalar = 0.1
) -> Scores:
    """`cos(s_i, t_j)/temperature`, a critic of every pair of a batch without parameters.

    Shapes: `[b, width]` twice to `[b, b]`. The teacher is a constant.

    >>> print(layer_scores(jnp.eye(2), jnp.eye(2), temperature=0.5))
    [[2. 0.]
     [0. 2.]]

    Reference: Chen et al. 2020 (arXiv:2002.05709), section 2.1, for the form.
    """
    student, teacher = _pair(student_features, teacher_features)
    temperature = jnp.asarray(checks.positive("temperature", temperature), student.dtype)
    return jnp.matmul(_unit(student), _unit(teacher).T, precision="highest") / temperature


def mi_alpha(scores: Scores, log_baseline: ArrayLike, *, share: Scalar) -> Reduced:
    """MI-alpha, minus the interpolated lower bound of the information between two layers.

    The scores are a critic's of every pair of a batch, `layer_scores` or one that is trained along;
    share is alpha: 1 is InfoNCE, of little variance and at most log of the batch, 0 is TUBA, whose
    variance has no bound. A number of a batch, which falls as the layers share more.
    Shapes: `[..., b, b]` to `[...]`; log_baseline as in `jdiv.estimators.interpolated`. The
    gradient is that of the bound, by the scores and the baseline.

    >>> print(mi_alpha(jnp.array([[2.0, 1.0], [1.0, 2.0]]), 1.0, share=0.0))
    -1.0

    Reference: He et al. 2021, Distiller: A Systematic Study of Model Distillation Methods in
    Natural Language Processing (arXiv:2109.11105); Poole et al. 2019 (arXiv:1905.06922), section
    2.3.
    """
    return -variational.interpolated(scores, log_baseline, share=share)


# ---------------------------------------------------------------------------------------- of LELP


class Projections(NamedTuple):
    """Directions in a teacher's features along which each class is divided.

    Fields:
        center: `[classes, width]` the mean of each class.
        directions: `[classes, k, width]` orthonormal ones of most variance, rotated at random.
    """

    center: Array
    directions: Array


def projections(
    teacher_features: Samples,
    labels: Indices,
    classes: int,
    k: int,
    key: RandomKey,
    *,
    head: Head | None = None,
) -> Projections:
    """The k directions of most variance within each class, turned by a random rotation.

    With the head that makes the teacher's logits, `[outputs, width]`, only directions count that it
    does not see: the logits tell the rest already. The rotation spreads the variance over the
    directions, so that no one of them decides alone.
    Shapes: features `[b, width]`, labels `[b]`. No gradient flows.

    >>> x = jnp.array([[-1.0, 0.1], [1.0, -0.1], [-1.0, 0.0], [1.0, 0.0]])
    >>> found = projections(x, jnp.zeros(4, int), 1, 1, jax.random.key(0))
    >>> print(abs(found.directions).round(1))
    [[[1.  0.1]]]

    Reference: Loo et al. 2024, LELP: Linear Projections of Teacher Embeddings for Few-Class
    Distillation (arXiv:2409.20449).
    Reconstructed: that a class has directions of its own, from its own mean.
    """
    features = jax.lax.stop_gradient(checks.as_float("teacher_features", teacher_features))
    labels = checks.as_integers("labels", labels)
    width = features.shape[-1]
    k = checks.whole("k", k, 1, width, f"from 1 to {width}, the width")
    of_class = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    count = jnp.maximum(jnp.sum(of_class, axis=0), 1)
    product = lambda *x: jnp.einsum(*x, precision="highest")
    center = product("bc,bi->ci", of_class, features) / count[:, None]
    away = features - center[labels]
    if head is not None:
        head = jax.lax.stop_gradient(checks.as_float("head", head)).astype(features.dtype)
        away = away - product("bi,ij,jk->bk", away, jnp.linalg.pinv(head), head)
    covariance = product("bc,bi,bj->cij", of_class, away, away) / count[:, None, None]
    widest = jnp.swapaxes(jnp.linalg.eigh(covariance)[1][:, :, ::-1][:, :, :k], 1, 2)
    rotation = jnp.linalg.qr(jax.random.normal(key, (classes, k, k), features.dtype))[0]
    return Projections(center, product("ckl,clw->ckw", rotation, widest))


def subclass_logits(
    teacher_logits: Logits,
    teacher_features: Features,
    directions: Projections,
    *,
    temperature: Scalar = 1.0,
) -> Array:
    """`log p_c + log softmax(+-u_c/temperature)`: each class divided into 2k, by both signs of u.

    `u_c` are the coordinates of the features along the directions of class c. The subclasses of a
    class have its probability, divided among them: little at a high temperature, all to one at a
    low one.
    Shapes: `[..., classes]` and `[..., width]` to `[..., classes * 2k]`, class by class. No
    gradient flows.

    >>> along = Projections(jnp.zeros((1, 1)), jnp.ones((1, 1, 1)))
    >>> parts = subclass_logits(jnp.zeros(1), jnp.array([1.0]), along)
    >>> [f"{p:.4f}" for p in jnp.exp(parts)]
    ['0.8808', '0.1192']

    Reference: Loo et al. 2024, LELP: Linear Projections of Teacher Embeddings for Few-Class
    Distillation (arXiv:2409.20449).
    Reconstructed: that a direction makes two subclasses, one for each of its signs.
    """
    logits, features = jax.lax.stop_gradient(
        (
            checks.as_float("teacher_logits", teacher_logits),
            checks.as_float("teacher_features", teacher_features),
        )
    )
    center, axes = (x.astype(features.dtype) for x in directions)
    batch = (1,) * (features.ndim - 1)
    away = features[..., None, :] - center.reshape(*batch, *center.shape)
    along = jnp.einsum("...cw,ckw->...ck", away, axes, precision="highest")
    temperature = jnp.asarray(checks.positive("temperature", temperature), features.dtype)
    parts = numerics.log_softmax(jnp.concatenate([along, -along], axis=-1) / temperature)
    log_p = numerics.log_softmax(logits).astype(parts.dtype)
    return (log_p[..., None] + parts).reshape(*log_p.shape[:-1], -1)


def class_logits(logits: Logits, classes: int) -> Array:
    """`log sum exp` over the subclasses of each class: what a student says of the classes.

    Shapes: `[..., classes * parts]` to `[..., classes]`.

    >>> logits = jnp.log(jnp.array([0.1, 0.3, 0.4, 0.2]))
    >>> [f"{p:.2f}" for p in jnp.exp(class_logits(logits, 2))]
    ['0.40', '0.60']
    """
    logits = checks.as_float("logits", logits)
    n = logits.shape[-1]
    if n % checks.whole("classes", classes, 1, n, f"from 1 to {n}, the logits"):
        raise ValueError(f"classes must divide the {n} logits, got {classes}")
    parts = logits.reshape(*logits.shape[:-1], classes, n // classes)
    top = jax.lax.stop_gradient(jnp.max(parts, axis=-1, keepdims=True))
    some = top != -jnp.inf
    total = jnp.sum(jnp.exp(parts - jnp.where(some, top, 0)), axis=-1, keepdims=True)
    sums = jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)
    return sums[..., 0]


def lelp(student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 1.0) -> Reduced:
    """LELP, `temperature^2 KL(teacher‖student)` over subclasses, both sides at that temperature.

    The teacher's logits are `subclass_logits`; the student has as many outputs, and says what it
    thinks of the classes by `class_logits`. By the chain rule it is KL of the classes and, weighed
    by the teacher, of the parts within each: what labels and soft labels do not have. KL is the
    field's forward KL. The gradient is `temperature (student - teacher)`, probabilities at that
    temperature; the teacher is a constant. The paper uses no hard labels beside it.
    Shapes: `[..., n]` twice to `[...]`. Range: 0 to inf.

    >>> a, b = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{lelp(a, b):.4f}")
    0.3681

    Reference: Loo et al. 2024, LELP: Linear Projections of Teacher Embeddings for Few-Class
    Distillation (arXiv:2409.20449).
    """
    student, teacher = checks.alike(student_logits=student_logits, teacher_logits=teacher_logits)
    temperature = jnp.asarray(checks.positive("temperature", temperature), student.dtype)
    teacher = jax.lax.stop_gradient(teacher)
    kl = categorical.TABLE["reverse_kl"](student / temperature, teacher / temperature)
    return temperature**2 * kl
