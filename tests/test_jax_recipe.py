"""The JAX recipe of docs/guides/jax.md: values and gradients under jit, grad and vmap."""

import numpy as np
import pytest
import torch

import gkfast

jax = pytest.importorskip("jax", reason='needs pip install "gkfast[jax]"')
jnp = jax.numpy
recipe = pytest.importorskip("examples.jax_recipe", reason='needs pip install "gkfast[train]"')


@pytest.fixture
def sets(rng):
    return (rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 3), (2, 9, 3), (2, 9, 2)))


def test_mmd2_has_the_value_and_gradients_of_torch(sets):
    x, y, _ = sets
    value, gradients = jax.jit(jax.value_and_grad(recipe.mmd2, (0, 1)), static_argnums=2)(x[0], y[0], (0.5, 1.0))
    tensors = [torch.tensor(a[0], requires_grad=True) for a in (x, y)]
    theirs = gkfast.mmd2(*tensors, [0.5, 1.0])
    theirs.backward()
    assert float(value) == theirs.item()
    for here, there in zip(gradients, tensors, strict=True):
        np.testing.assert_array_equal(np.asarray(here), there.grad.numpy())


def test_rbf_matmul_has_the_gradients_of_its_matrix(sets):
    x, y, v = sets

    def dense(x, y, v):
        d2 = ((x[:, None] - y[None]) ** 2).sum(2)
        return (jnp.exp(-d2 / (2 * 1.5**2)) @ v * jnp.arange(14.0).reshape(7, 2)).sum()

    def ours(x, y, v):
        return (recipe.rbf_matmul(x, y, v, 1.5) * jnp.arange(14.0).reshape(7, 2)).sum()

    one = [jnp.asarray(a[0]) for a in (x, y, v)]
    for here, there in zip(jax.jit(jax.grad(ours, (0, 1, 2)))(*one), jax.grad(dense, (0, 1, 2))(*one), strict=True):
        np.testing.assert_allclose(here, there, rtol=2e-4, atol=2e-5)


def test_vmap_is_one_call_of_a_batch(sets):
    x, y, v = (jnp.asarray(a) for a in sets)
    mapped = jax.vmap(jax.grad(lambda x, y: recipe.mmd2(x, y, 1.0)))(x, y)
    for k in range(2):
        alone = jax.grad(lambda x, y: recipe.mmd2(x, y, 1.0))(x[k], y[k])
        np.testing.assert_array_equal(mapped[k], alone)
    mapped = jax.vmap(lambda x, v: recipe.rbf_matmul(x, y[0], v, 1.0))(x, v)
    np.testing.assert_array_equal(mapped[1], recipe.rbf_matmul(x[1], y[0], v[1], 1.0))


def test_points_come_to_the_data():
    values, *_ = recipe.run(steps=20, points=60)
    assert values[-1] < 0.1 * values[0]
