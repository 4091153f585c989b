"""Flax networks behind `Network(init, apply)`: pure functions of one example."""

from ebmjax.networks.base import from_module
from ebmjax.networks.convolution import convolution, transposed_convolution
from ebmjax.networks.flow import Flow, real_nvp
from ebmjax.networks.mlp import mlp, mlp_energy
from ebmjax.networks.resnet import resnet_energy, wide_resnet_energy
from ebmjax.networks.short_run import short_run_energy

__all__ = [
    "Flow",
    "convolution",
    "from_module",
    "mlp",
    "mlp_energy",
    "real_nvp",
    "resnet_energy",
    "short_run_energy",
    "transposed_convolution",
    "wide_resnet_energy",
]
