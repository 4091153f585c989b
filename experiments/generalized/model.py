"""Bases and energies of images, from a config's section."""

from collections.abc import Sequence

from ebmjax import networks
from ebmjax.objectives import generalized
from ebmjax.types import Network
from experiments.generalized.players import energy_floor
from experiments.judge import generators
from experiments.run.config import construct


def make_pair(base, energy):
    """Returns the constructor of a base and an energy with the same widths."""

    def make(
        shape,
        latent_dim,
        *,
        widths: Sequence[int],
        is_synchronized: bool = True,
        compute_dtype: str = "float32",
    ):
        options = {"widths": widths, "compute_dtype": compute_dtype}
        own = {"latent_dim": latent_dim, "is_synchronized": is_synchronized}
        return base(shape, **own, **options), energy(shape, **options)

    return make


def make_resnet(
    shape,
    latent_dim,
    *,
    width: int,
    num_blocks: int = 3,
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
):
    options = {"width": width, "compute_dtype": compute_dtype}
    return (
        networks.sngan_resnet_base(
            shape,
            latent_dim=latent_dim,
            num_blocks=num_blocks,
            is_synchronized=is_synchronized,
            **options,
        ),
        networks.sngan_resnet_energy(shape, **options),
    )


NETWORKS = {
    "sngan": make_pair(networks.sngan_base, networks.sngan_energy),
    "sngan_resnet": make_resnet,
    "dcgan": make_pair(networks.dcgan_base, networks.dcgan_energy),
    "strided": make_pair(networks.strided_generator, networks.strided_energy),
}


def make_networks(config, image_shape) -> dict[str, Network]:
    """Returns the base and the energy, neither of them with parameters."""
    shape = tuple(image_shape)
    base, energy = construct(
        "network", config.network, NETWORKS, shape, config.latent_dim
    )
    return {"base": base, "energy": energy}


def bind_networks(config, built: dict[str, Network], params, model_state):
    """Returns `energy_fn` of an image, with its floor, and `generator_fn` of a latent.

    The base normalises by its running statistics.
    """
    base_fn, energy_fn = (
        generators.bind(network, params[name], model_state.get(f"{name}_state"))
        for name, network in built.items()
    )
    return generalized.floored(energy_fn, energy_floor(config)), base_fn
