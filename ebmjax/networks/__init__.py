"""Networks behind `Network(init, apply)`, as pure functions of one example."""

from ebmjax.networks.adapters import from_equinox, from_nnx
from ebmjax.networks.base import from_module
from ebmjax.networks.convolutions import convolution, transposed_convolution
from ebmjax.networks.dense import mlp, mlp_energy, mlp_statistics
from ebmjax.networks.flow import Flow, masked_autoregressive, real_nvp
from ebmjax.networks.generators import (
    convnet_generator,
    dcgan_base,
    sngan_base,
    sngan_resnet_base,
    strided_generator,
)
from ebmjax.networks.inception_v3 import inception, inception_params
from ebmjax.networks.max_entropy import (
    convnet_energy,
    convnet_statistics,
    strided_energy,
    strided_statistics,
)
from ebmjax.networks.resnet import resnet_energy, wide_resnet_energy
from ebmjax.networks.score import noise_mlp, unet
from ebmjax.networks.short_run import short_run_energy
from ebmjax.networks.sngan import (
    dcgan_energy,
    sngan_energy,
    sngan_resnet_energy,
)

__all__ = [
    "Flow",
    "convnet_energy",
    "convnet_generator",
    "convnet_statistics",
    "convolution",
    "dcgan_base",
    "dcgan_energy",
    "from_equinox",
    "from_module",
    "from_nnx",
    "inception",
    "inception_params",
    "masked_autoregressive",
    "mlp",
    "mlp_energy",
    "mlp_statistics",
    "noise_mlp",
    "real_nvp",
    "resnet_energy",
    "short_run_energy",
    "sngan_base",
    "sngan_energy",
    "sngan_resnet_base",
    "sngan_resnet_energy",
    "strided_energy",
    "strided_generator",
    "strided_statistics",
    "transposed_convolution",
    "unet",
    "wide_resnet_energy",
]
