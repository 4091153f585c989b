"""A generator of 28x28 images and their energy, of the size of Kumar et al. (2019).

For measuring samplers in a latent space. The generator is the paper's as it is when one
samples with it: of its batch normalisations what is left is a scale and a shift for
every channel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ebmjax import networks
from ebmjax.networks.layer import conv, dense, initializers
from ebmjax.types import Array, Network

LATENT_DIM, IMAGE_SHAPE = 128, (28, 28, 1)


class Scale(nn.Module):
    """Batch normalisation with fixed statistics."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        ones = [1] * (x.ndim - 1)
        return x * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)


class TransposedConvolution(nn.Module):
    """5x5, stride 2, padding 2: from size n to 2 n - 1 + extra."""

    features: int
    extra: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = initializers(5 * 5 * self.features)
        shape = (5, 5, self.features, x.shape[-1])
        kernel = self.param("kernel", init["kernel_init"], shape)
        bias = self.param("bias", init["bias_init"], (self.features,))
        size = [2 * n - 1 + self.extra for n in x.shape[:2]]
        y = networks.transposed_convolution(
            x[None], kernel, (2, 2), ((2, 2), (2, 2)), size
        )
        return y[0] + bias[None, None]


class Generator(nn.Module):
    """A dense layer to 2x2, then transposed convolutions to 4, 7, 14 and 28."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        h = dense(z, 2 * 2 * 512).reshape(2, 2, 512)
        for features, extra in ((256, 1), (128, 0), (64, 1), (IMAGE_SHAPE[-1], 1)):
            h = nn.relu(Scale()(h))
            h = TransposedConvolution(features, extra)(h)
        return jnp.tanh(h)


class Energy(nn.Module):
    """Four 5x5 convolutions of stride 2, and a linear function of their 2x2 map."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features in (64, 128, 256, 512):
            x = jax.nn.leaky_relu(conv(x, features, 5, 2, 2), 0.2)
        return dense(x.reshape(-1), 1)[0]


def image_generator() -> Network:
    return networks.from_module(Generator(), (LATENT_DIM,))


def image_energy() -> Network:
    return networks.from_module(Energy(), IMAGE_SHAPE)
