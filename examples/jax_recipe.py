"""gkfast in JAX, on the CPU: MMD^2 and K @ v inside jit, grad and vmap.

    python examples/jax_recipe.py

JAX hands NumPy arrays to a callback; torch computes value and gradients there in one sweep, and custom_vjp gives
them back to JAX. First derivatives only. Points are moved by gradient descent on MMD^2 until they are distributed
like data.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch

import gkfast


# --8<-- [start:recipe]
def value_and_gradients(function, *arrays):
    """The value of a gkfast function, and the gradients of its sum to each array; NumPy in, NumPy out."""
    tensors = [torch.tensor(np.asarray(a), requires_grad=True) for a in arrays]
    value = function(*tensors)
    gradients = torch.autograd.grad(value.sum(), tensors)
    return tuple(t.detach().numpy() for t in (value, *gradients))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def mmd2(x, y, sigma):
    """gkfast.mmd2 of x (..., N, D) and y (..., M, D); sigma is a number or a tuple of numbers."""
    return mmd2_forward(x, y, sigma)[0]


def mmd2_forward(x, y, sigma):
    sigmas = sigma if isinstance(sigma, float) else list(sigma)
    batch = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shapes = jax.ShapeDtypeStruct(batch, x.dtype), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, y))
    call = partial(value_and_gradients, lambda x, y: gkfast.mmd2(x, y, sigmas))
    # gkfast takes batches, so vmap is one call
    value, dx, dy = jax.pure_callback(call, shapes, x, y, vmap_method="broadcast_all")
    return value, (dx, dy)


def mmd2_backward(sigma, gradients, g):
    return tuple(g[..., None, None] * d for d in gradients)


mmd2.defvjp(mmd2_forward, mmd2_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def rbf_matmul(x, y, v, sigma):
    """gkfast.rbf_matmul: K @ v of x (..., N, D), y (..., M, D) and v (..., M, E), without K."""
    shape = jax.ShapeDtypeStruct((*x.shape[:-1], v.shape[-1]), x.dtype)
    call = partial(gkfast.rbf_matmul, sigma=sigma)
    return jax.pure_callback(lambda *a: call(*map(np.asarray, a)), shape, x, y, v, vmap_method="broadcast_all")


def rbf_matmul_forward(x, y, v, sigma):
    return rbf_matmul(x, y, v, sigma), (x, y, v)


def rbf_matmul_backward(sigma, operands, g):
    def gradients(x, y, v, g):
        weighted = torch.tensor(np.asarray(g))
        return value_and_gradients(lambda x, y, v: gkfast.rbf_matmul(x, y, v, sigma) * weighted, x, y, v)[1:]

    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands)
    return jax.pure_callback(gradients, shapes, *operands, g, vmap_method="broadcast_all")


rbf_matmul.defvjp(rbf_matmul_forward, rbf_matmul_backward)
# --8<-- [end:recipe]


def run(steps=200, points=300, seed=0):
    """MMD^2 along the way; begin, end and data."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, (points, 1))
    data = jnp.asarray(np.hstack([np.cos(angle), np.sin(angle)]) + 0.1 * rng.normal(size=(points, 2)), jnp.float32)
    begin = jnp.asarray(0.1 * rng.normal(size=(points, 2)), jnp.float32)

    @jax.jit
    def step(x):
        value, gradient = jax.value_and_grad(mmd2)(x, data, (0.25, 0.5, 1.0))
        return x - 0.15 * points * gradient, value

    x, values = begin, []
    for _ in range(steps):
        x, value = step(x)
        values.append(float(value))
    return values, begin, x, data


def draw(begin, end, data, path):
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharex=True, sharey=True)
    for axis, points, title in ((axes[0], begin, "before"), (axes[1], end, "after descent in JAX")):
        axis.scatter(*np.asarray(data).T, s=5, color="0.7", label="data")
        axis.scatter(*np.asarray(points).T, s=5, color="tab:red", label="points")
        axis.set(title=title, aspect="equal")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("examples/pictures"))
    options = parser.parse_args()
    values, *points = run(options.steps)
    for k in sorted({0, len(values) // 4, len(values) - 1}):
        print(f"step {k:4}  MMD^2 {values[k]:8.5f}")
    draw(*points, options.out / "jax_recipe.png")
    print("picture", options.out / "jax_recipe.png")
