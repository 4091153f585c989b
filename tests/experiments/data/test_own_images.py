"""Images of the user: arrays and folders, their division, and what is refused."""

import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import digest, image_section, load_images, load_section
from experiments.data.own_images import shuffle

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 6, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (40, 6, 6, 3), np.uint8)
LABELS = np.arange(40) % 4


def section(path, **options):
    return image_section("arrays") | {"path": str(path), "size": 0} | options


def write_pictures(folder, images, name="{}.png"):
    for index, image in enumerate(images):
        path = folder / name.format(f"{index:03}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def both(data):
    return np.concatenate([data.train, data.held_out])


def rows_of(images, among):
    """Places of images among others, all of which differ."""
    flat = {image.tobytes(): index for index, image in enumerate(among)}
    return [flat[image.tobytes()] for image in images]


# What is read


def test_an_array_is_divided_once_and_no_image_is_lost(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    data = load_section(section(tmp_path / "a.npy"))
    assert data.train.shape == (36, 6, 6, 1) and data.train.dtype == np.uint8
    assert data.held_out.shape == (4, 6, 6, 1) and data.num_levels == 256
    assert data.labels_train is None and data.labels_held_out is None
    rows = [rows_of(x, GREY) for x in (data.train, data.held_out)]
    assert sorted(rows[0] + rows[1]) == list(range(40))
    assert rows[1] == sorted(np.random.RandomState(0).permutation(40)[:4])
    again = load_section(section(tmp_path / "a.npy", split_seed=1))
    assert rows_of(again.held_out, GREY) != rows[1]
    half = load_section(section(tmp_path / "a.npy", held_out_share=0.5))
    assert len(half.train) == len(half.held_out) == 20


@pytest.mark.quick
def test_a_folder_an_array_and_a_packed_file_are_the_same_images(tmp_path):
    """Labels are numbers in one and names in the other."""
    np.save(tmp_path / "a.npy", COLOUR)
    np.save(tmp_path / "a-labels.npy", LABELS)
    np.savez(tmp_path / "a.npz", images=COLOUR, labels=LABELS + 10)
    for label in range(4):
        name = f"class {label}/{{}}.png"
        write_pictures(tmp_path / "folder", COLOUR[LABELS == label], name)
    first, *others = (
        load_section(section(tmp_path / x)) for x in ("a.npy", "a.npz", "folder")
    )
    assert first.train.shape == (36, 6, 6, 3) and first.num_classes == 4
    assert first.labels_held_out.dtype == np.int32
    np.testing.assert_array_equal(sorted(first.labels_held_out), range(4))
    for labels, images in (
        (first.labels_train, first.train),
        (first.labels_held_out, first.held_out),
    ):
        np.testing.assert_array_equal(labels, LABELS[rows_of(images, COLOUR)])
    for found, expected in zip(others[0], first, strict=True):
        np.testing.assert_array_equal(found, expected)
    folder = others[1]
    np.testing.assert_array_equal(
        folder.labels_train, LABELS[rows_of(folder.train, COLOUR)]
    )
    assert sorted(rows_of(both(folder), COLOUR)) == list(range(40))


def test_every_class_has_its_share_of_the_images_held_out():
    labels = np.repeat([0, 1, 2], [100, 20, 1])
    order = shuffle(121, labels, seed=3)
    assert sorted(order) == list(range(121))
    for num in (12, 24, 60):
        counts = np.bincount(labels[order[:num]], minlength=3)
        expected = num * np.array([100, 20, 1]) / 121
        assert np.abs(counts - expected).max() <= 1


def test_held_out_images_can_be_given(tmp_path):
    np.savez(tmp_path / "train.npz", images=GREY[:30], labels=LABELS[:30])
    np.savez(tmp_path / "test.npz", images=GREY[30:], labels=LABELS[30:])
    data = load_section(
        section(tmp_path / "train.npz", held_out_path=str(tmp_path / "test.npz"))
    )
    np.testing.assert_array_equal(data.train[..., 0], GREY[:30])
    np.testing.assert_array_equal(data.held_out[..., 0], GREY[30:])
    np.testing.assert_array_equal(data.labels_train, LABELS[:30])
    np.testing.assert_array_equal(data.labels_held_out, LABELS[30:])


def test_one_class_and_labels_of_one_part_alone_are_no_labels(tmp_path):
    write_pictures(tmp_path / "photos", GREY, "all/{}.png")
    assert load_section(section(tmp_path / "photos")).labels_train is None
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS)
    np.savez(tmp_path / "test.npz", GREY)  # one array needs no name
    data = load_section(
        section(tmp_path / "train.npz", held_out_path=str(tmp_path / "test.npz"))
    )
    assert data.labels_train is None and data.labels_held_out is None


def test_pictures_of_several_sizes_are_cropped_and_resized(tmp_path):
    """A white square in the middle of black, wide or high; the average is exact."""
    wide = np.zeros((8, 20), np.uint8)
    wide[:, 6:14] = 255
    half = wide.copy()
    half[:, 10:] = 0
    write_pictures(tmp_path, [wide, wide.T, half, half])
    resized = load_section(section(tmp_path, held_out_share=0.5) | {"size": 4})
    assert resized.train.shape == (2, 4, 4, 1)
    images = both(resized)
    # The central 8 x 8 pixels are white in two of them, and left of the middle in two.
    whole = [image for image in images if image.min() == 255]
    assert len(whole) == 2
    left = [image[..., 0] for image in images if image.min() < 255]
    np.testing.assert_array_equal(np.array(left)[:, :, 0] > 200, True)
    np.testing.assert_array_equal(np.array(left)[:, :, 3] < 50, True)
    cropped = both(load_section(section(tmp_path, held_out_share=0.5, crop=2)))
    assert cropped.shape == (4, 2, 2, 1)
    assert sorted(cropped.sum((1, 2, 3)).tolist()) == [510, 510, 1020, 1020]


def test_a_crop_is_enlarged_to_the_size_that_the_images_had(tmp_path):
    images = np.zeros((4, 6, 6), np.uint8)
    images[:, 2:4, 2:4] = 200
    np.save(tmp_path / "a.npy", images)
    options = {"size": 6, "crop": 2, "held_out_share": 0.5}
    found = both(load_section(section(tmp_path / "a.npy") | options))
    np.testing.assert_array_equal(found, 200)


def test_grey_stays_grey_unless_there_are_colours_or_an_option_says_so(tmp_path):
    write_pictures(tmp_path, GREY[:20])
    assert load_section(section(tmp_path)).image_shape == (6, 6, 1)
    as_colour = load_section(section(tmp_path, channels=3))
    assert as_colour.image_shape == (6, 6, 3)
    np.testing.assert_array_equal(as_colour.train[..., 0], as_colour.train[..., 2])
    write_pictures(tmp_path, COLOUR[:20], "colour {}.png")
    assert load_section(section(tmp_path)).image_shape == (6, 6, 3)
    grey = both(load_section(section(tmp_path, channels=1)))
    assert grey.shape == (40, 6, 6, 1)
    with Image.open(tmp_path / "colour 000.png") as picture:
        expected = np.asarray(picture.convert("L"), int)
    # Pillow rounds its products to 16 bits.
    errors = np.abs(grey[..., 0].astype(int) - expected).max((1, 2))
    assert errors.min() <= 1


def test_a_camera_that_was_turned_is_turned_back(tmp_path):
    top = np.zeros((6, 6), np.uint8)
    top[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right of the picture
    for index in range(4):
        Image.fromarray(np.rot90(top)).save(tmp_path / f"{index}.png", exif=exif)
    data = load_section(section(tmp_path, held_out_share=0.5))
    np.testing.assert_array_equal(data.train[0, ..., 0], top)


def test_pixels_of_few_levels_keep_them(tmp_path):
    np.save(tmp_path / "a.npy", GREY > 127)
    data = load_section(section(tmp_path / "a.npy", num_levels=2))
    assert data.num_levels == 2 and set(np.unique(data.train)) == {0, 1}
    # A bicubic function overshoots edges by about a tenth of their height.
    np.save(tmp_path / "a.npy", 16 * (GREY > 127))
    enlarged = load_section(section(tmp_path / "a.npy", num_levels=17) | {"size": 12})
    assert enlarged.train.min() == 0 and enlarged.train.max() == 16


def test_a_changed_pixel_changes_the_digest(tmp_path):
    found = set()
    for changed in (0, 0, 1):
        GREY_CHANGED = GREY.copy()
        GREY_CHANGED[-1, -1, -1] += changed
        write_pictures(tmp_path, GREY_CHANGED)
        data = load_section(section(tmp_path))
        found.add(digest(data.train, data.held_out))
    assert len(found) == 2


# What is refused


def test_what_is_no_images_is_refused_by_its_name(tmp_path):
    cases = {
        "floats": (GREY / 255.0, r"floats.npy: .* from 0 to 255.*got float64"),
        "negative": (GREY.astype(int) - 300, "negative.npy: .* got -300 to -"),
        "flat": (GREY.reshape(40, 36), r"flat.npy: .*\[n, height, .* got \(40, 36\)"),
        "first": (
            GREY[:, None].repeat(3, 1),
            r"first.npy: .* channels come last.*got \(40, 3, 6, 6\)",
        ),
        "none": (GREY[:0], r"none.npy: .* got \(0, 6, 6, 1\)"),
        "few": (GREY[:10], "few.npy: at least 2 .*held_out_share=0.1 of 10 .* are 1$"),
    }
    for name, (array, message) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=message) as error:
            load_section(section(tmp_path / f"{name}.npy"))
        assert "\n" not in str(error.value)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="torn.npy cannot be read"):
        load_section(section(tmp_path / "torn.npy"))
    np.savez(tmp_path / "b.npz", x=GREY, y=LABELS)
    with pytest.raises(ValueError, match=r"b.npz .*hold 'images', got \['x', 'y'\]"):
        load_section(section(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", images=GREY, labels=LABELS[1:])
    with pytest.raises(ValueError, match=r"c.npz: 40 images, but labels \(39,\)"):
        load_section(section(tmp_path / "c.npz"))
    with pytest.raises(ValueError, match="must be a folder .* got .*c.txt"):
        (tmp_path / "c.txt").write_text("")
        load_section(section(tmp_path / "c.txt"))
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        load_section(section(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="data.path must be a folder .* got ''"):
        load_section(section(""))


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    write_pictures(tmp_path, GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match="000.png .*need Pillow: pip install pillow"):
        load_section(section(tmp_path))


def test_what_is_no_folder_of_images_is_refused_by_its_name(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"empty has no images"):
        load_section(section(empty))
    mixed = write_pictures(tmp_path / "mixed", GREY[:20])
    write_pictures(mixed, [np.zeros((8, 6), np.uint8)], "z {}.png")
    message = "data.size must be given: .*000.png is 6 x 6, but .*z 000.png is 8 x 6"
    with pytest.raises(ValueError, match=message):
        load_section(section(mixed))
    with pytest.raises(ValueError, match="000.png is 6 x 6: data.crop .* 6, got 7"):
        load_section(section(mixed, crop=7))
    (mixed / "z 000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="z 000.png cannot be read"):
        load_section(section(mixed))
    # What only the pixels tell: the head of the file is whole.
    whole = (mixed / "000.png").read_bytes()
    (mixed / "z 000.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(ValueError, match="z 000.png cannot be read"):
        load_section(section(mixed))
    deep = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1_000
    write_pictures(mixed, [deep], "z {}.png")
    with pytest.raises(ValueError, match="z 000.png .* 8 bits a channel.*'I;16'"):
        load_section(section(mixed))
    (mixed / "z 000.png").unlink()
    write_pictures(mixed, GREY[:3], "sub/{}.png")
    with pytest.raises(ValueError, match="mixed has images of its own and images in"):
        load_section(section(mixed))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"held_out_share": 1.0}, "data.held_out_share must be above 0 .* got 1.0"),
        ({"channels": 2}, "data.channels must be 0, 1 or 3, got 2"),
        ({"num_levels": 1}, "data.num_levels must be from 2 to 256, got 1"),
        ({"num_levels": 9}, "from 0 to data.num_levels - 1 = 8, got 0 to 255"),
        ({"data_dir": "x"}, "data: 'arrays' does not fit: .*'data_dir'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(ValueError, match=message):
        load_section(section(tmp_path / "a.npy", **options))


def test_the_name_is_among_those_that_are_known():
    with pytest.raises(ValueError, match="'array' is not .*'arrays'.* mean 'arrays'"):
        load_images("array")
