"""A small classifier, trained in place, to look at samples through.

It gives features for a Frechet distance, labels for a histogram, and confidence. It is
trained on the same data as the model under test and is no Inception network: its
numbers compare samples with each other and with the references of `reference_table`,
and with nothing that is published.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ebmjax import metrics
from ebmjax.types import Array, Key
from experiments import _data

__all__ = ["Classifier", "accuracy", "reference_table", "sample_quality", "train"]

NUM_FEATURES = 64
_BLOCK = 500  # examples at a time through the network


class Classifier(NamedTuple):
    """A trained classifier: two functions of a batch `[n, height, width, channels]`.

    Attributes:
      features: `features(x) -> [n, 64]`: the layer before the last, after its ReLU.
      log_probs: `log_probs(x) -> [n, num_classes]`.
    """

    features: Callable[[Array], np.ndarray]
    log_probs: Callable[[Array], np.ndarray]


class _Network(nn.Module):
    """3x3 convolutions; every stage but the first halves the sides, and all double."""

    num_stages: int
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        for stage in range(1, self.num_stages):
            width = self.width * 2**stage
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        x = nn.Dropout(DROP1, deterministic=not train)(x.reshape(x.shape[0], -1))
        features = nn.relu(nn.Dense(NUM_FEATURES)(x))
        x = nn.Dropout(DROP2, deterministic=not train)(features)
        return features, nn.Dense(self.num_classes)(x)


def _network_for(image_shape: tuple[int, int, int], num_classes: int) -> _Network:
    """Halves the sides down to 8 or less: 8x8 in 2 stages, 28x28 and 32x32 in 3."""
    num_stages = max(2, 1 + math.ceil(math.log2(max(image_shape[:2]) / 8)))
    return _Network(num_stages, WIDTH, num_classes)

WIDTH = 16
DROP1=0.
DROP2=0.
SHIFT=0
WD=0.


def train(
    key: Key,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    num_levels: int,
    noise_scale: float = 0.0,
    num_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Classifier:
    image_shape = images.shape[1:]
    network = _network_for(image_shape, num_classes)
    init_key, order_key, dequantize_key, noise_key = jax.random.split(key, 4)
    params = jax.jit(network.init)(init_key, jnp.zeros((1, *image_shape)))
    optimizer = optax.adamw(weight_decay=WD,learning_rate=optax.cosine_decay_schedule(learning_rate, num_steps))
    rows = _data.epoch_rows(order_key, len(images), batch_size)

    def loss(params, key, x, labels):
        logits = network.apply(params, x, True, rngs={'dropout':key})[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, step, x, labels):
        x = _data.dequantize(jax.random.fold_in(dequantize_key, step), x, num_levels)
        x = _data.add_noise(jax.random.fold_in(noise_key, step), x, noise_scale)
        if SHIFT:
            pad = jnp.pad(x, [(0,0),(SHIFT,SHIFT),(SHIFT,SHIFT),(0,0)], mode="edge")
            sk = jax.random.fold_in(jax.random.fold_in(noise_key, 7), step)
            off = jax.random.randint(sk, (x.shape[0], 2), 0, 2*SHIFT+1)
            x = jax.vmap(lambda im, o: jax.lax.dynamic_slice(im, (o[0], o[1], 0), x.shape[1:]))(pad, off)
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(order_key,step), x, labels)
        change, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, change), opt_state, value

    opt_state = optimizer.init(params)
    for step in range(num_steps):
        chosen = rows(step)
        params, opt_state, value = update(
            params, opt_state, step, images[chosen], labels[chosen]
        )

    @jax.jit
    def apply(params, x):
        features, logits = network.apply(params, x)
        return features, jax.nn.log_softmax(logits)

    def evaluate(x):
        blocks = []
        for first in range(0, len(x), _BLOCK):
            block = jnp.asarray(x[first : first + _BLOCK])
            num = len(block)
            pad = [(0, _BLOCK - num)] + [(0, 0)] * 3
            out = apply(params, jnp.pad(block, pad))
            blocks.append([np.asarray(o[:num]) for o in out])
        return [np.concatenate(parts) for parts in zip(*blocks)]

    return Classifier(lambda x: evaluate(x)[0], lambda x: evaluate(x)[1])


def accuracy(classifier, x, labels):
    return float(np.mean(classifier.log_probs(x).argmax(-1) == labels))
