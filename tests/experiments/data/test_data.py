"""Data as a function of the step, and every way that images come in.

Real files are read where the environment says they are: `EBMJAX_DATA`, a folder of data
sets as published, and `EBMJAX_TFDS`, a prepared TFDS directory with mnist.
"""

import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ebmjax import targets
from experiments.data import (
    arrays,
    dequantize,
    digest,
    epoch_rows,
    image_batches,
    images,
    load_images,
    quantize,
    read_split,
    row_batches,
    target_batches,
)
from experiments.run.experiment import stack_batches

KEY = jax.random.key(0)


def numbered(num):
    """Images of which each is known by its pixels."""
    number = np.arange(num)
    return np.stack([number % 256, number // 256], -1).astype(np.uint8)[:, None, None]


def as_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


# Batches


@pytest.mark.quick
@pytest.mark.parametrize(
    "num_examples, size",
    [(12, 4), (10, 4), (7, 5), (5, 5), (3, 8)],
    ids=["divides", "straddles", "coprime", "whole", "larger_than_the_data"],
)
def test_every_example_comes_exactly_once_an_epoch(num_examples, size):
    rows = epoch_rows(KEY, num_examples, size)
    num_epochs = 2 * size  # so that a whole number of batches makes them up
    stream = np.concatenate([rows(s) for s in range(2 * num_examples)])
    epochs = stream.reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(
        np.sort(epochs, 1), np.tile(np.arange(num_examples), (num_epochs, 1))
    )


def test_epochs_have_orders_of_their_own_that_depend_on_the_key():
    """Two permutations of 50 agree in one place on average, and in 10 with 1e-7."""
    first, second = (epoch_rows(KEY, 50, 50)(epoch) for epoch in (0, 1))
    other = epoch_rows(jax.random.key(1), 50, 50)(0)
    assert np.sum(first == second) < 10
    assert np.sum(first == other) < 10
    assert np.sum(first == np.arange(50)) < 10


def test_a_step_gives_the_same_batch_whatever_came_before():
    """What resuming needs: steps out of order, from a function newly made."""
    x = numbered(10)
    options = dict(size=4, num_levels=256, noise_scale=0.1)
    straight = image_batches(KEY, x, **options)
    batches = [straight(step) for step in range(9)]
    resumed = image_batches(KEY, x, **options)
    for step in (7, 3, 8, 0):
        np.testing.assert_array_equal(resumed(step), batches[step])
    np.testing.assert_array_equal(resumed(jnp.int32(3)), batches[3])


def test_far_steps_do_not_overflow():
    """Places beyond 32 bits; the epoch, 2^33 / 7, is still below 2^32."""
    step = 2**33
    epoch, offset = divmod(step, 7)
    expected = jax.random.permutation(jax.random.fold_in(KEY, epoch), 7)[offset]
    assert epoch_rows(KEY, 7, 1)(step) == expected


def test_the_rows_of_two_processes_are_the_batch_of_one(monkeypatch):
    x, target = np.tile(numbered(10), (1, 1, 2, 1)), targets.rings()
    x[:, :, 1] += 7  # so that a mirror image is another

    def draw():
        make = image_batches
        plain = make(KEY, x, 6, num_levels=256, noise_scale=0.1, is_mirrored=True)
        toys = target_batches(KEY, target, 6)
        return [np.asarray(f(step)) for f in (plain, toys) for step in (0, 1, 5)]

    whole = draw()
    as_process(monkeypatch, 0, 2)
    first = draw()
    as_process(monkeypatch, 1, 2)
    second = draw()
    for together, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 3
        np.testing.assert_array_equal(np.concatenate([a, b]), together)


def test_batches_of_several_steps_are_those_of_each():
    """In any company; and the rows of a table are those of `epoch_rows`."""
    x = np.tile(numbered(10), (1, 1, 2, 1))
    options = {"num_levels": 256, "noise_scale": 0.1, "is_mirrored": True}
    for batch in (
        image_batches(KEY, x, 4, **options),
        target_batches(KEY, targets.rings(), 4),
        row_batches(KEY, x, 4),
    ):
        stacked = stack_batches(batch, [7, 0, 5])
        assert stacked.shape == (3, *batch(0).shape)
        for place, step in enumerate([7, 0, 5]):
            np.testing.assert_array_equal(stacked[place], batch(step))
        np.testing.assert_array_equal(stack_batches(batch, [0, 7])[1], stacked[0])
    rows = epoch_rows(KEY, 10, 4)(7)
    np.testing.assert_array_equal(row_batches(KEY, x, 4)(7), x[rows])


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    as_process(monkeypatch, 0, 4)
    with pytest.raises(ValueError, match="multiple of the 4 processes, got 6"):
        image_batches(KEY, numbered(10), 6, num_levels=256)


def test_bad_arguments_of_batches_are_named():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        epoch_rows(KEY, 0, 4)
    with pytest.raises(ValueError, match="size must be at least 1, got -4"):
        epoch_rows(KEY, 10, -4)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        epoch_rows(KEY, 10, 4)(-1)
    with pytest.raises(ValueError, match="noise_scale must not be negative, got -0.1"):
        image_batches(KEY, numbered(4), 2, num_levels=256, noise_scale=-0.1)


def test_targets_are_drawn_from_the_key_of_the_step():
    target = targets.rings()
    batch = target_batches(KEY, target, 5)
    expected = target.sample(jax.random.fold_in(KEY, 3), 5)
    np.testing.assert_allclose(batch(3), expected, rtol=1e-6, atol=1e-6)


# Dequantisation


@pytest.mark.parametrize("num_levels", [2, 17, 255, 256])
def test_dequantised_values_are_uniform_on_their_cells(num_levels):
    """Level k: mean (2 k + 1) / L - 1 and variance (2 / L)^2 / 12, for every k."""
    num = 4000
    levels = np.arange(num_levels, dtype=np.uint8)
    x = dequantize(KEY, np.tile(levels, (num, 1)), num_levels)
    assert x.dtype == jnp.float32
    width = 2 / num_levels
    centred = (np.asarray(x, np.float64) - ((levels + 0.5) * width - 1)) / width
    assert np.abs(centred).max() < 0.5
    # Of u - 1/2: standard error sqrt(1 / 12 num) for the mean, and sqrt(1 / 180 num)
    # for the variance, as the fourth moment is 1 / 80; five of them for all levels.
    assert np.abs(centred.mean(0)).max() < 5 * (1 / 12 / num) ** 0.5
    assert np.abs(centred.var(0) - 1 / 12).max() < 5 * (1 / 180 / num) ** 0.5


@pytest.mark.parametrize("num_levels", [2, 17, 255, 256])
def test_quantising_gives_back_the_very_integers(num_levels):
    """Two million draws: float32 noise of 23 bits fails here at the top levels.

    There 255 + u rounds to 256 for u > 1 - 2^-17, once in 131,072 draws, of which
    there are 250,000 here.
    """
    top = np.arange(max(0, num_levels - 4), num_levels, dtype=np.uint8)
    bottom = np.arange(min(4, num_levels), dtype=np.uint8)
    levels = np.tile(np.concatenate([bottom, top]), (1000, 2_000_000 // 8000))
    x = np.asarray(dequantize(KEY, levels, num_levels))
    assert -1 < x.min() and x.max() < 1
    np.testing.assert_array_equal(quantize(x, num_levels), levels)


def test_the_edges_of_cells_quantise_up_and_what_is_outside_is_clipped():
    x = np.array([-7.0, -1.0, -0.5001, -0.5, 0.0, 0.4999, 0.5, 1.0, 9.0])
    np.testing.assert_array_equal(
        quantize(x, 4), np.array([0, 0, 0, 1, 2, 2, 3, 3, 3], np.uint8)
    )


def test_dequantisation_and_data_noise_are_drawn_anew_for_every_pixel_and_step():
    """Of 4 black images of 16 x 16 pixels the noise has 14 bits.

    About (1024^2 / 2) / 2^14 = 32 pairs of values agree; 512 if rows or steps repeated.
    """
    black = np.zeros((2, 16, 16, 1), np.uint8)
    batch = image_batches(KEY, black, 2, num_levels=256)
    values = np.concatenate([np.ravel(batch(step)) for step in (0, 1)])
    assert len(values) - len(np.unique(values)) < 100
    noisy = image_batches(KEY, black, 2, num_levels=256, noise_scale=0.3)
    noise = np.concatenate([np.ravel(noisy(step)) for step in (0, 1)]) - values
    assert len(noise) - len(np.unique(noise)) < 100


def test_mirrored_images_are_turned_left_to_right_half_of_the_times():
    """1,000 of a black left half, a white right half and a grey top row."""
    image = np.zeros((4, 6, 1), np.uint8)
    image[:, 3:] = 255
    image[0] = 128
    images = np.stack([image] * 100)
    options = dict(size=100, num_levels=256)
    straight = image_batches(KEY, images, **options)
    batch = image_batches(KEY, images, is_mirrored=True, **options)
    is_turned = []
    for step in range(10):
        levels = quantize(batch(step), 256)
        # The noise is turned too: nothing else of the batch is new.
        plain, found = np.asarray(straight(step)), np.asarray(batch(step))
        turned = levels[:, 1, 0, 0] == 255
        expected = np.where(turned[:, None, None, None], plain[:, :, ::-1], plain)
        np.testing.assert_array_equal(found, expected)
        is_turned.append(turned)
    is_turned = np.stack(is_turned)
    assert abs(is_turned.mean() - 0.5) < 5 * 0.5 / is_turned.size**0.5
    assert len({tuple(row) for row in is_turned}) == 10


def test_data_noise_has_the_standard_deviation_asked():
    black = np.zeros((100, 16, 16, 1), np.uint8)
    options = dict(size=100, num_levels=256)
    quiet = image_batches(KEY, black, **options)(3)
    noise = image_batches(KEY, black, noise_scale=0.3, **options)(3) - quiet
    num = noise.size
    assert abs(noise.mean()) < 5 * 0.3 / num**0.5
    np.testing.assert_allclose(noise.std(), 0.3, rtol=5 * (1 / (2 * num)) ** 0.5)


def test_bad_arguments_of_dequantisation_are_named():
    with pytest.raises(ValueError, match="num_levels must be from 1 to 256, got 257"):
        dequantize(KEY, numbered(2), 257)
    with pytest.raises(TypeError, match="images must be integers, got float32"):
        dequantize(KEY, np.zeros((1, 2), np.float32), 256)


# Digits and names


def test_digits_are_split_once_for_all_and_no_image_is_lost():
    from sklearn import datasets

    digits, bunch = load_images("digits"), datasets.load_digits()
    assert digits.train.shape == (1500, *digits.image_shape)
    assert digits.held_out.shape == (297, 8, 8, 1)
    assert digits.num_classes == 10

    def rows(x, labels):
        table = np.column_stack([x.reshape(len(x), 64), labels])
        return table[np.lexsort(table.T)]

    both = np.concatenate([digits.train, digits.held_out])
    labels = np.concatenate([digits.labels_train, digits.labels_held_out])
    np.testing.assert_array_equal(rows(both, labels), rows(bunch.images, bunch.target))
    # Classes are as in the whole: 29.7 of each are held out.
    assert set(np.bincount(digits.labels_held_out)) == {29, 30}
    # The very split: a change of it makes old results incomparable.
    assert (
        hashlib.sha256(digits.held_out.tobytes()).hexdigest()[:16] == "5b755dd24da7389c"
    )
    # All 17 levels occur, and no more.
    np.testing.assert_array_equal(np.unique(both), np.arange(digits.num_levels))


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(
        ValueError, match="'minst' is not one of .*did you mean 'mnist'"
    ):
        load_images("minst")
    with pytest.raises(ValueError, match="'minst' is not one of .*'mnist'"):
        read_split("minst", "test")


@pytest.mark.quick
@pytest.mark.parametrize("num_bytes", [1, 24, 25, 10**6])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (7, 3), (5,)])
def test_a_digest_is_that_of_all_rows_at_once(shape, num_bytes, monkeypatch):
    """It takes so many bytes of an array at a time that a large one needs no copy."""
    x = np.random.default_rng(0).normal(size=shape)
    at_once = hashlib.sha256(f"{x.dtype.str}{x.shape}".encode() + x.tobytes())
    monkeypatch.setattr(arrays, "DIGEST_BYTES", num_bytes)
    assert digest(x) == at_once.hexdigest()
    assert digest(np.array(x, order="F")) == at_once.hexdigest()


def test_a_digest_is_of_every_byte_the_type_and_the_shape(tmp_path):
    x, path = np.arange(6, dtype=np.int32), tmp_path / "file"
    path.write_bytes(x.tobytes())
    found = {
        digest(x),
        digest(x[::-1]),
        digest(x.reshape(2, 3)),
        digest(x.astype("f4")),
    }
    found |= {digest(path), digest(x, x), digest(x[:3], x[3:]), digest()}
    path.write_bytes(x.tobytes()[:-1] + b"\1")
    found |= {digest(path)}
    assert len(found) == 9
    assert digest(x[::-1]) == digest(x[::-1].copy())


# Images from files


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def mnist_files(tmp_path):
    """A data directory with an MNIST of 6 and 4 images, as published."""
    for stem, num in (("train", 6), ("t10k", 4)):
        pixels = np.random.RandomState(num).randint(0, 256, (num, 28, 28), np.uint8)
        write_idx(tmp_path / "mnist" / f"{stem}-images-idx3-ubyte.gz", pixels)
        labels = np.arange(num, dtype=np.uint8)
        write_idx(tmp_path / "mnist" / f"{stem}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_files_as_published_are_read_pixel_by_pixel(mnist_files):
    data = load_images("mnist", data_dir=mnist_files)
    for x, labels, num in (
        (data.train, data.labels_train, 6),
        (data.held_out, data.labels_held_out, 4),
    ):
        pixels = np.random.RandomState(num).randint(0, 256, (num, 28, 28), np.uint8)
        np.testing.assert_array_equal(x, pixels[..., None])
        np.testing.assert_array_equal(labels, np.arange(num))
    assert data.num_levels == 256 and data.image_shape == (28, 28, 1)


def test_a_torn_file_is_refused_by_name(mnist_files):
    path = mnist_files / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(ValueError, match=f"{path} is not a complete idx file"):
        images.read_split("mnist", "test", data_dir=mnist_files)


def idx(folder, split, kind):
    dims = {"images": 3, "labels": 1}[kind]
    return folder / "mnist" / f"{split}-{kind}-idx{dims}-ubyte.gz"


@pytest.mark.quick
def test_labels_that_are_not_those_of_the_images_are_refused(mnist_files):
    path = idx(mnist_files, "train", "labels")
    for labels in (np.arange(5), np.arange(7), np.zeros((6, 1)), np.zeros(())):
        write_idx(path, labels.astype(np.uint8))
        with pytest.raises(ValueError, match=f"{path} must have a label|complete idx"):
            load_images("mnist", data_dir=mnist_files)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}, the labels of .* is missing"):
        load_images("mnist", data_dir=mnist_files)


def test_images_that_are_none_are_refused(mnist_files, tmp_path):
    path = idx(mnist_files, "t10k", "images")
    for shape in ((0, 28, 28), (28, 28), (4, 0, 28)):
        write_idx(path, np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=f"{path} must hold images"):
            load_images("mnist", data_dir=mnist_files)
    with zipfile.ZipFile(mnist_files / "empty.zip", "w"):
        pass
    path = tmp_path / "omniglot" / "images_background_small1.zip"
    path.parent.mkdir()
    (mnist_files / "empty.zip").rename(path)
    with pytest.raises(ValueError, match=f"{path} cannot be read: it holds no image"):
        images.read_split("omniglot", "small1", data_dir=tmp_path)


def test_splits_of_other_shapes_are_refused(tmp_path):
    for split, channels in (("train", 1), ("test", 3)):
        x = np.zeros((2, 32, 32, channels), np.uint8)
        np.savez(tmp_path / f"cifar10-{split}-32.npz", images=x)
    with pytest.raises(ValueError, match=r"'train' are \(32, 32, 1\), .*\(32, 32, 3\)"):
        load_images("cifar10", data_dir=tmp_path)
    x, labels = np.zeros((2, 32, 32, 1), np.uint8), np.zeros(2, np.int32)
    np.savez(tmp_path / "cifar10-test-32.npz", images=x, labels=labels)
    with pytest.raises(ValueError, match="only one of the two splits has labels"):
        load_images("cifar10", data_dir=tmp_path)


def test_every_damage_of_a_packed_file_is_refused_by_its_path(mnist_files, tmp_path):
    """Every byte in turn, and every length: read as it was, or the error has the path.
    A gzip's time and system and a zip's dates may change."""
    x = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    np.savez_compressed(tmp_path / "kmnist-test-28.npz", images=x)
    page = io.BytesIO()
    Image.fromarray(x[0, ..., 0]).save(page, "PNG")
    (tmp_path / "omniglot").mkdir()
    archive = tmp_path / "omniglot" / "images_background_small1.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", page.getvalue())
    for path, name, split in (
        (idx(mnist_files, "t10k", "labels"), "mnist", "test"),
        (tmp_path / "kmnist-test-28.npz", "kmnist", "test"),
        (archive, "omniglot", "small1"),
    ):
        whole = path.read_bytes()
        before = images.read_split(name, split, data_dir=tmp_path)
        num_refused = 0
        places = np.linspace(0, len(whole) - 1, 60).astype(int)
        damaged = [whole[:place] for place in places]
        for place in places:
            damaged.append(bytearray(whole))
            damaged[-1][place] ^= 0x41
        for content in damaged:
            path.write_bytes(content)
            try:
                found = images.read_split(name, split, data_dir=tmp_path)
            except (ValueError, FileNotFoundError) as error:
                assert str(path) in str(error)
                num_refused += 1
            else:
                np.testing.assert_array_equal(found[0], before[0])
                np.testing.assert_array_equal(found[1], before[1])
        assert num_refused > len(places)
        path.write_bytes(whole)


def test_emnist_is_turned_upright_and_its_labels_begin_at_zero(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (2, 28, 28), np.uint8)
    stem = tmp_path / "emnist_letters" / "emnist-letters-test"
    write_idx(pathlib.Path(f"{stem}-images-idx3-ubyte.gz"), pixels)
    write_idx(pathlib.Path(f"{stem}-labels-idx1-ubyte.gz"), np.array([1, 26], np.uint8))
    x, labels = images.read_split("emnist_letters", "test", data_dir=tmp_path)
    np.testing.assert_array_equal(x[..., 0], pixels.transpose(0, 2, 1))
    np.testing.assert_array_equal(labels, [0, 25])
    write_idx(pathlib.Path(f"{stem}-labels-idx1-ubyte.gz"), np.array([1, 0], np.uint8))
    with pytest.raises(ValueError, match="'test': labels .* at least 1, got 0"):
        images.read_split("emnist_letters", "test", data_dir=tmp_path)


@pytest.mark.parametrize("folder", ["omniglot", "omniglot_small"])
def test_omniglot_becomes_white_on_black(tmp_path, folder):
    """A black square on white, 30 of 105 pixels wide: white, and of 8 % of the area."""
    page = np.full((105, 105), 255, np.uint8)
    page[40:70, 40:70] = 0
    content = io.BytesIO()
    Image.fromarray(page).convert("1").save(content, "PNG")
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "images_background_small1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small1/Greek/character01/0001_01.png", content.getvalue())
    x, labels = images.read_split("omniglot", "small1", data_dir=tmp_path)
    assert x.shape == (1, 28, 28, 1) and labels is None
    assert x[0, 14, 14, 0] == 255 and x[0, 0, 0, 0] == 0
    # Resizing keeps the mean up to rounding to bytes (1/2) and the kernel's cut-off.
    np.testing.assert_allclose(x.mean() / 255, (30 / 105) ** 2, rtol=0.02)


def test_resizing_averages_and_does_not_pick_pixels(mnist_files):
    """A checkerboard of single pixels becomes grey at half the size."""
    board = (np.indices((28, 28)).sum(0) % 2 * 255).astype(np.uint8)
    path = mnist_files / "mnist" / "t10k-images-idx3-ubyte.gz"
    write_idx(path, board[None])
    labels = mnist_files / "mnist" / "t10k-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(1, np.uint8))
    x, _ = images.read_split("mnist", "test", data_dir=mnist_files, size=14)
    np.testing.assert_allclose(x[0, 2:-2, 2:-2, 0], 127.5, atol=1)


# The portable copy


@pytest.mark.parametrize("height, width", [(6, 10), (10, 6)])
def test_of_a_picture_that_is_no_square_the_middle_one_is_taken(height, width):
    """A column or row is bright by its number: the middle six of ten are left."""
    longer = np.arange(10, dtype=np.uint8)
    image = np.broadcast_to(
        longer[None] if width == 10 else longer[:, None], (height, width)
    )
    found = images.convert_images([image[..., None]], images.SOURCES["lsun"], 1, 6)
    middle = longer[2:8][None] if width == 10 else longer[2:8][:, None]
    np.testing.assert_array_equal(found[0, ..., 0], np.broadcast_to(middle, (6, 6)))


def test_the_npz_files_of_the_command_stand_for_the_data_set(
    mnist_files, tmp_path_factory, capsys
):
    images.main(["--name", "mnist", "--data_dir", str(mnist_files)])
    names = ["mnist-test-28.npz", "mnist-train-28.npz"]
    assert sorted(p.name for p in mnist_files.glob("*.*")) == names
    printed = capsys.readouterr().out
    assert all(f"{mnist_files / name}: " in printed for name in names)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in names:
        (elsewhere / name).write_bytes((mnist_files / name).read_bytes())
    original = load_images("mnist", data_dir=mnist_files)
    carried = load_images("mnist", data_dir=elsewhere)
    for a, b in zip(original, carried, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_module_is_a_program_without_warnings(mnist_files):
    """runpy warns where a package has already imported the module that it runs."""
    command = [sys.executable, "-W", "error", "-m", "experiments.data.images"]
    arguments = ["--name", "mnist", "--splits", "test", "--data_dir", mnist_files]
    root = pathlib.Path(__file__).parents[3]
    subprocess.run([*command, *arguments], check=True, cwd=root)
    assert (mnist_files / "mnist-test-28.npz").is_file()


def test_files_that_are_mapped_stand_for_the_data_set(mnist_files, capsys):
    """Their images are a map of the file, read only, and go before the packed ones."""
    original = load_images("mnist", data_dir=mnist_files)
    images.main(["--name", "mnist", "--data_dir", str(mnist_files)])
    for path in mnist_files.glob("*.npz"):
        path.write_bytes(b"not read")
        path.rename(path.with_suffix(".aside"))
    images.main(["--name", "mnist", "--data_dir", str(mnist_files), "--mapped"])
    for path in mnist_files.glob("*.aside"):
        path.rename(path.with_suffix(".npz"))
    stems = [f"mnist-{split}-28" for split in ("test", "train")]
    names = sorted(f"{stem}{end}.npy" for stem in stems for end in ("", "-labels"))
    assert sorted(path.name for path in mnist_files.glob("*.npy")) == names
    assert f"{mnist_files / 'mnist-test-28.npy'}: " in capsys.readouterr().out
    found = load_images("mnist", data_dir=mnist_files)
    for a, b in zip(original, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert type(found.train) is np.ndarray and isinstance(found.train.base, np.memmap)
    assert not found.train.flags.writeable
    assert digest(found.train) == digest(original.train)
    batches = [
        np.asarray(image_batches(KEY, x, 4, num_levels=256)(3))
        for x in (found.train, original.train)
    ]
    np.testing.assert_array_equal(*batches)


def test_what_is_wrong_with_mapped_files_is_named(mnist_files):
    path = images.write_split("mnist", "test", data_dir=mnist_files, is_mapped=True)
    labels = path.with_name("mnist-test-28-labels.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"^{path} cannot be read: "):
        read_split("mnist", "test", data_dir=mnist_files)
    path.write_bytes(whole)
    np.save(labels, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=rf"^{path}: 4 images, but labels \(3,\)"):
        read_split("mnist", "test", data_dir=mnist_files)
    labels.unlink()
    message = f"{labels}, the labels of {path}, is missing"
    with pytest.raises(FileNotFoundError, match=message):
        read_split("mnist", "test", data_dir=mnist_files)


def test_a_failed_write_leaves_the_old_file_and_no_other(mnist_files, monkeypatch):
    path = images.write_split("mnist", "test", data_dir=mnist_files)
    before = path.read_bytes()

    def torn(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", torn)
    with pytest.raises(OSError, match="disk full"):
        images.write_split("mnist", "test", data_dir=mnist_files)
    assert path.read_bytes() == before
    assert [p.name for p in mnist_files.iterdir() if p.is_file()] == [path.name]


def test_an_npz_of_another_size_is_refused(tmp_path):
    x = np.zeros((2, 14, 14, 1), np.uint8)
    np.savez(tmp_path / "mnist-test-28.npz", images=x)
    with pytest.raises(ValueError, match=r"\[n, 28, 28, channels\].*\(2, 14, 14, 1\)"):
        images.read_split("mnist", "test", data_dir=tmp_path)
    x = np.zeros((2, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "mnist-test-28.npz", images=x, labels=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"2 images, but labels \(3,\)"):
        images.read_split("mnist", "test", data_dir=tmp_path)


# TensorFlow Datasets


def test_without_tfds_the_error_says_what_to_install_or_bring(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError) as caught:
        load_images("cifar10", data_dir=tmp_path)
    for part in (
        f"cifar10, split 'train', is not in {tmp_path}",
        "cifar10-train-32.npz",
        "pip install tensorflow-datasets pillow",
        "python -m experiments.data.images --name cifar10 --data_dir",
    ):
        assert part in str(caught.value)


def test_without_tfds_an_npz_is_enough(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    x = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"cifar10-{split}-32.npz", images=x)
    data = load_images("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train, x)
    assert data.labels_train is None
    with pytest.raises(ValueError, match="no labels"):
        _ = data.num_classes


def test_data_that_are_not_prepared_are_asked_for_by_name_and_place(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError) as caught:
        load_images("cifar10", data_dir=tmp_path)
    for part in (
        f"cifar10, split 'train', is not in {tmp_path}",
        "python -m experiments.data.images --name cifar10 --data_dir",
    ):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())  # nothing was half made


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    """TFDS itself downloads by default. With TensorFlow there, and asked, it may."""
    tfds = pytest.importorskip("tensorflow_datasets")
    asked = []

    def data_source(name, *, download, **options):
        asked.append((download, options["builder_kwargs"]))
        raise OSError("not prepared")

    monkeypatch.setattr(tfds, "data_source", data_source)
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(FileNotFoundError, match="let download=True do so"):
        load_images("cifar10", data_dir=tmp_path)
    array_record = {"file_format": "array_record"}
    assert asked == [(False, array_record)]
    with pytest.raises(FileNotFoundError, match="could not download and prepare it"):
        load_images("cifar10", data_dir=tmp_path, download=True)
    assert asked[1:] == [(False, array_record), (True, array_record)]


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_images_of_tfds_come_as_they_are(tmp_path, name):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=5):
        source = tfds.data_source(
            images.SOURCES[name].tfds_name, split="test", data_dir=tmp_path
        )
        expected = [source[i] for i in range(5)]
        x, labels = images.read_split(name, "test", data_dir=tmp_path)
    np.testing.assert_array_equal(x, np.stack([e["image"] for e in expected]))
    np.testing.assert_array_equal(labels, [e["label"] for e in expected])
    assert x.dtype == np.uint8 and len(np.unique(x)) > 200


@pytest.mark.parametrize("size", [64, 128])
def test_celeb_a_is_the_middle_of_the_picture(monkeypatch, tmp_path, size):
    """Pictures of 218 x 178 with a marked square of 140 x 140 about the middle."""
    tfds = pytest.importorskip("tensorflow_datasets")
    image = np.zeros((218, 178, 3), np.uint8)
    image[39:179, 19:159] = (255, 128, 7)
    monkeypatch.setattr(tfds, "data_source", lambda *a, **k: [{"image": image}] * 2)
    x, labels = images.read_split("celeb_a", "test", data_dir=tmp_path, size=size)
    assert x.shape == (2, size, size, 3) and labels is None
    np.testing.assert_array_equal(x, np.broadcast_to([255, 128, 7], x.shape))


# Real files

needs_files = pytest.mark.skipif(
    "EBMJAX_DATA" not in os.environ,
    reason="EBMJAX_DATA, a folder of data sets as published, is not set",
)
needs_tfds = pytest.mark.skipif(
    "EBMJAX_TFDS" not in os.environ or "EBMJAX_DATA" not in os.environ,
    reason="EBMJAX_TFDS, a prepared TFDS directory, and EBMJAX_DATA are not both set",
)


@needs_files
@pytest.mark.parametrize(
    "name, mean, std",
    [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)],
)
def test_real_training_images_have_the_published_moments(name, mean, std):
    data = load_images(name, data_dir=os.environ["EBMJAX_DATA"])
    assert data.train.shape == (60_000, 28, 28, 1)
    assert data.held_out.shape == (10_000, 28, 28, 1)
    # Published to four digits.
    np.testing.assert_allclose(data.train.mean() / 255, mean, atol=5e-5)
    np.testing.assert_allclose(data.train.std() / 255, std, atol=5e-5)
    if name == "mnist":  # counts of the digits in the test set, from its authors
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        np.testing.assert_array_equal(np.bincount(data.labels_held_out), counts)


@needs_files
@pytest.mark.parametrize(
    "name, split, num_a_class, num_classes",
    [("kmnist", "test", 1000, 10), ("emnist_letters", "test", 800, 26)],
)
def test_real_sets_to_compare_with_are_balanced(name, split, num_a_class, num_classes):
    x, labels = images.read_split(name, split, data_dir=os.environ["EBMJAX_DATA"])
    assert x.shape == (num_a_class * num_classes, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(labels), [num_a_class] * num_classes)


@needs_files
@pytest.mark.parametrize("split, num", [("small1", 2720), ("small2", 3120)])
def test_real_omniglot_is_mostly_black(split, num):
    x, _ = images.read_split("omniglot", split, data_dir=os.environ["EBMJAX_DATA"])
    assert x.shape == (num, 28, 28, 1)
    # Pen strokes cover about a twelfth of the page; not inverted it would be 0.92.
    assert 0.05 < x.mean() / 255 < 0.12


@needs_tfds
def test_real_mnist_of_tfds_is_that_of_the_files_in_another_order():
    def rows(data_dir):
        x, labels = images.read_split("mnist", "test", data_dir=data_dir)
        table = np.column_stack([labels.astype(np.uint8), x.reshape(len(x), -1)])
        return sorted(row.tobytes() for row in table)

    assert rows(os.environ["EBMJAX_TFDS"]) == rows(os.environ["EBMJAX_DATA"])


def test_chunks_lie_on_all_accelerators():
    """Forced devices of a CPU, which share its cores, get no shares by default."""
    x = np.arange(32.0).reshape(16, 2)
    assert arrays.over_accelerators(x) is x
    devices = jax.local_devices()
    placed = arrays.over_accelerators(x, devices)
    assert len(placed.addressable_shards) == len(devices) == 8
    assert all(shard.data.shape == (2, 2) for shard in placed.addressable_shards)
    np.testing.assert_array_equal(placed, x)
    double = jax.jit(jax.vmap(lambda row: 2 * row))
    assert len(double(placed).sharding.device_set) == 8
    assert arrays.over_accelerators(x[:12], devices) is not placed
    np.testing.assert_array_equal(arrays.over_accelerators(x[:12], devices), x[:12])
