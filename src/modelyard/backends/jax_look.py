"""Norm and sampled values of gradients, inside a compiled JAX program of a step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from modelyard.backends.sampled_values import counts, places, stride


def looked_at(
    gradients: Sequence[jax.Array], look: jax.Array | bool
) -> tuple[jax.Array, jax.Array]:
    """Norm () and sampled values (values,), float32; zeros unless ``look``."""
    looked = [gradients[place] for place in places(len(gradients))]

    def seen() -> tuple[jax.Array, jax.Array]:
        parts = [gradient.reshape(-1)[:: stride(gradient.size)] for gradient in looked]
        values = jnp.concatenate(parts or [jnp.zeros(0)]).astype(jnp.float32)
        return norm_of(gradients), values

    def unseen() -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(()), jnp.zeros(sum(counts([gradient.size for gradient in gradients])))

    found: tuple[jax.Array, jax.Array] = jax.lax.cond(look, seen, unseen)
    return found


def norm_of(gradients: Sequence[jax.Array]) -> jax.Array:
    """Of all of them together, ()."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in gradients), jnp.float32(0)))
