"""Published measures of images: Frechet distance and score through Inception v3.

Its weights are a file that the user gives; there are none here.
"""

import pathlib

import jax
import numpy as np

from ebmjax import metrics, networks
from experiments.data import in_chunks

__all__ = ["Inception", "read_weights"]

BLOCK = 50  # images that go through the network at once


def read_weights(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns arrays by their PyTorch names, from a `.npz`, or a PyTorch file of a
    state dict.

    Raises:
      FileNotFoundError: If there is no such file.
      ImportError: For a PyTorch file where PyTorch is not installed.
      ValueError: If the file is damaged, or holds something else.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: evaluation.inception_weights must be the weights"
            " of Inception v3, such as pt_inception-2015-12-05-6726825d.pth, as .pth or"
            " .npz with the same names"
        )
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return dict(file)
        return _read_torch(path)
    except ImportError:
        raise
    except Exception as error:  # whatever the two readers raise for what is no file
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is read by PyTorch: pip install torch, or save its arrays by name"
            " with numpy.savez"
        ) from error
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: array.numpy() for name, array in weights.items()}


class Inception:
    """The network with its weights, and the data's features.

    Made before training, so that what is wrong with the file is said before.
    """

    def __init__(self, path: str | pathlib.Path, num_levels: int = 256):
        weights = read_weights(path)
        self._params = networks.inception_params(weights)
        network = networks.inception(num_classes=len(weights["fc.bias"]))

        def one(params, levels):
            x = levels * (2 / (num_levels - 1)) - 1
            # Colours of what is grey; no antialiasing, as the published ones have none.
            size = (299, 299, x.shape[-1])
            x = jax.image.resize(x, size, "bilinear", antialias=False)
            return network.apply(params, jax.numpy.broadcast_to(x, (299, 299, 3)))

        self._of_block = jax.jit(jax.vmap(one, (None, 0)))
        self._of_data = None

    def _outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return in_chunks(lambda x: self._of_block(self._params, x), x, BLOCK)

    def measure(self, samples: np.ndarray, data: np.ndarray) -> dict[str, float]:
        """Frechet distance, and the score with its deviation over ten parts.

        Args:
          samples: `[n, height, width, channels]`, integers below `num_levels`, as a
            file has them: the published numbers are of files.
          data: `[m, height, width, channels]`, likewise; looked at once.
        """
        if self._of_data is None:
            self._of_data = self._outputs(data)[0]
        features, logits = self._outputs(samples)
        mean, deviation = metrics.inception_score(logits)
        return {
            "frechet_inception_distance": metrics.frechet_distance(
                features, self._of_data
            ),
            "inception_score": mean,
            "inception_score_deviation": deviation,
        }
