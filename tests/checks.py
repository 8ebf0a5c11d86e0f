"""What several test files share."""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jdiv import generators

PARAMETERS = {
    name: {key: known.example for key, known in make.parameters().items()}
    for name, make in generators.TABLE.items()
}
"""Every row of the table, with a value for its parameter that is no special case."""

FAST = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
"""Options of `jax.jit` for what computes so much that it is worth compiling to run fast."""


@contextlib.contextmanager
def raises(error, match=None):
    """`pytest.raises` of the library's own refusals: annotations are not checked before them."""
    checked = not jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=match) as caught:
            yield caught
    finally:
        jaxtyping.config.update("jaxtyping_disable", not checked)


def refused(error, words, call):
    """Asserts that the call is refused in one line that has all of the words."""
    with raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def domains(*table):
    """Asserts that wrong arguments are refused by their names, and make NaN where they are traced.

    A line of the table is a function, good arguments, and by the name of an argument its wrong
    values. What is a float, or an array of floats of the good one's shape, is traced as well: the
    first array of the result has a NaN then, and nothing has converged. All is one program, and
    with the good arguments it gives no NaN.
    """
    good, wrong = [], []
    for function, arguments, bad in table:
        known = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        known = {**known, **arguments}
        traced = []
        for name, values in bad.items():
            for value in values:
                call = functools.partial(function, **{**arguments, name: value})
                refused((ValueError, TypeError), [name], call)
                if _floats(value) and np.shape(value) == np.shape(known[name]):
                    traced.append((name, np.asarray(value)))
        good.append({name: np.asarray(known[name], float) for name, _ in traced})
        wrong.append([{**good[-1], name: value} for name, value in traced])

    @jax.jit
    def broken(numbers):
        return [
            _broken(function(**{**arguments, **given}))
            for (function, arguments, _), given in zip(table, numbers, strict=True)
        ]

    def names(found, expected):
        lines = zip(table, found, expected, strict=True)
        return [(f.__name__, given) for (f, *_), is_broken, given in lines if is_broken]

    assert names(broken(good), good) == []
    for i in range(max(map(len, wrong))):
        given = [cases[i % len(cases)] if cases else {} for cases in wrong]
        plausible = [cases and not x for cases, x in zip(wrong, broken(given), strict=True)]
        assert names(plausible, given) == []


def silent(*table):
    """Asserts that no NaN is swallowed, and none seen where a mask is False.

    A line of the table is a function, its arguments, and the names of those of which every number
    becomes NaN, one at a time.
    """

    def each(f, arguments, name, copies):
        return jax.vmap(lambda x: _broken(f(**{**arguments, name: x})))(copies)

    @jax.jit
    def broken(copies):
        return [
            {name: each(f, arguments, name, copies) for name, copies in of_function.items()}
            for (f, arguments, _), of_function in zip(table, copies, strict=True)
        ]

    copies = [{name: _poisoned(a[name]) for name in names} for _, a, names in table]
    swallowed = []
    for (f, arguments, names), found in zip(table, broken(copies), strict=True):
        for name in names:
            x, mask = np.asarray(arguments[name]), arguments.get("mask")
            matters = np.full(x.shape, True)
            if mask is not None:
                matters = np.asarray(mask, bool) if x.ndim == np.ndim(mask) else np.any(mask, -1)
            wrong = np.asarray(found[name]).reshape(x.shape) != matters
            if wrong.any():
                swallowed.append((f.__name__, name, np.argwhere(wrong).tolist()))
    assert swallowed == []


def _poisoned(x):
    """`[x.size, *x.shape]`: in each copy another number is NaN."""
    x = np.asarray(x, float)
    copies = np.tile(x.ravel(), (x.size, 1))
    np.fill_diagonal(copies, np.nan)
    return copies.reshape(x.size, *x.shape)


def _floats(value):
    return isinstance(value, float) or getattr(value, "dtype", None) in (np.float32, np.float64)


def _broken(result):
    """Whether the first array has a NaN, and `converged`, if there is one, is False."""
    arrays = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
    found = jnp.any(jnp.isnan(arrays[0]))
    return found & ~jnp.all(result.converged) if hasattr(result, "converged") else found
