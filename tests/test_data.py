"""Data sets: the right arrays from sound files, one line on how to mend any other, and splits that never move."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import urllib.request
from http.client import IncompleteRead
from types import MappingProxyType

import numpy as np
import pytest
import torch

from bench import data, places
from bench.errors import BenchError

PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, as LeCun's page defines it."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    """A tiny MNIST-like: 6 training images, 4 test images, of 3 x 5 pixels."""
    generator = np.random.default_rng(0)
    shapes = [(6, 3, 5), (6,), (4, 3, 5), (4,)]
    return {part: generator.integers(0, 256, shape, np.uint8) for part, shape in zip(PARTS, shapes, strict=True)}


@pytest.fixture
def published(arrays, monkeypatch):
    """The IDX files of `arrays` by name of the part, with `mnist` and `fmnist` redefined as these very files."""
    contents = {part: idx(array) for part, array in arrays.items()}
    md5 = {part: hashlib.md5(content, usedforsecurity=False).hexdigest() for part, content in contents.items()}
    tiny = {name: dataclasses.replace(source, md5=md5) for name, source in data.IDX.items()}
    monkeypatch.setattr(data, "IDX", MappingProxyType(tiny))
    monkeypatch.setattr(data, "VALIDATION", 2)
    return contents


@pytest.fixture
def root(published, tmp_path):
    """A data root with the four unpacked files in MNIST/raw."""
    folder = tmp_path / "root" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, content in published.items():
        (folder / f"{part}-ubyte").write_bytes(content)
    return tmp_path / "root"


@pytest.fixture
def mirror(published, tmp_path):
    """A folder with the four packed files, and its address."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for part, content in published.items():
        (folder / f"{part}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 5)])
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_an_idx_file_gives_its_array(shape, packed, tmp_path):
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    path = tmp_path / ("file.gz" if packed else "file")
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(data.read_idx(path), array)
    assert data.read_idx(path, hashlib.md5(idx(array), usedforsecurity=False).hexdigest()).dtype == np.uint8


SOUND = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
PACKED = gzip.compress(SOUND, mtime=0)  # without the time: the same bytes, thus the same test names, in every process
MD5 = hashlib.md5(SOUND, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x", SOUND[:-1], "it holds 23 values, its header promises 24"),
        ("x", SOUND + b"\0", "it holds 25 values, its header promises 24"),
        ("x", SOUND[:9], "truncated in its header"),
        ("x", b"", "it starts with nothing"),
        ("x", b"\x89PNG\r\n\x1a\n", "not an IDX file of bytes"),
        ("x", SOUND[:2] + b"\x0d" + SOUND[3:], "not an IDX file of bytes"),  # 0x0d: IDX of floats
        ("x", SOUND[:-1] + b"\xff", f"the published file has {MD5}: its content differs"),
        ("x.gz", PACKED[:-9], "truncated or corrupted"),
        ("x.gz", PACKED[:5], "truncated or corrupted"),
        ("x.gz", SOUND, "truncated or corrupted"),  # not packed at all
        ("x.gz", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "truncated or corrupted"),  # its own checksum
        ("x.gz", PACKED[:12] + b"\xff\xff" + PACKED[14:], "truncated or corrupted"),
        ("x.gz", b"", "it starts with nothing"),
    ],
)
def test_anything_but_the_published_file_is_refused_with_the_way_out(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BenchError) as caught:
        data.read_idx(path, MD5)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "delete it and run `purifybench data fetch mnist`" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        ("MNIST/raw", "mnist"),
        ("FashionMNIST/raw", "fmnist"),
        ("mnist", "mnist"),
        ("fmnist", "fmnist"),
        ("MNIST/FashionMNIST/raw", "fmnist"),  # a data root that is itself called MNIST
    ],
)
def test_the_advice_names_the_data_set_whose_file_it_is(folders, name, tmp_path):
    path = tmp_path / folders / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(BenchError, match=f"purifybench data fetch {name}`"):
        data.read_idx(path)


# ---------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "mnist"])
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte"])
def test_files_are_found_in_every_layout_that_people_have(folder, file, tmp_path):
    path = tmp_path / folder / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert data.find_idx("mnist", "t10k-images-idx3", tmp_path) == path
    assert data.find_idx("mnist", "train-images-idx3", tmp_path) is None
    assert data.find_idx("fmnist", "t10k-images-idx3", tmp_path) is None


def test_unpacked_files_come_before_packed_ones(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in ("train-labels-idx1-ubyte.gz", "train-labels-idx1-ubyte"):
        (folder / file).touch()
    assert data.find_idx("mnist", "train-labels-idx1", tmp_path) == folder / "train-labels-idx1-ubyte"


def test_the_argument_comes_before_the_environment_and_that_before_the_usual_places(monkeypatch, tmp_path):
    assert [path.resolve() for path in data.roots()] == [tmp_path / "data", places.home() / "data"]
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path / "named"))
    assert data.roots() == [tmp_path / "named"]
    assert data.roots(tmp_path / "argument") == [tmp_path / "argument"]


def test_a_named_root_is_the_only_one_searched(root, monkeypatch, tmp_path):
    assert len(data.load("mnist", root).test) == 4
    monkeypatch.setenv("PURIFYBENCH_DATA", str(root))
    assert len(data.load("mnist").test) == 4
    with pytest.raises(BenchError, match="missing"):
        data.load("mnist", tmp_path / "empty")


# ---------------------------------------------------------------------------------------------- loading


def test_a_data_set_is_scaled_and_split_with_the_last_training_images_for_validation(root, arrays):
    loaded = data.load("mnist", root)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (4, 2, 4)
    assert loaded.shape == (1, 3, 5)
    assert loaded.train.images.dtype == torch.float32
    assert loaded.train.labels.dtype == torch.int64
    images = arrays["train-images-idx3"]
    assert loaded.train.images[0, 0, 0, 0].item() == np.float32(images[0, 0, 0]) / np.float32(255)
    both = torch.cat([loaded.train.images, loaded.validation.images])
    assert np.array_equal((both.squeeze(1) * 255).round().numpy(), images)
    assert np.array_equal((loaded.test.images.squeeze(1) * 255).round().numpy(), arrays["t10k-images-idx3"])
    assert torch.cat([loaded.train.labels, loaded.validation.labels]).tolist() == arrays["train-labels-idx1"].tolist()
    assert loaded.test.labels.tolist() == arrays["t10k-labels-idx1"].tolist()


def test_packed_and_unpacked_files_give_the_same_data(root, mirror, tmp_path):
    (tmp_path / "packed").mkdir()
    mirror.rename(tmp_path / "packed" / "mnist")
    one, other = data.load("mnist", root), data.load("mnist", tmp_path / "packed")
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.test.labels, other.test.labels)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_says_where_we_looked_and_how_to_get_it(part, root):
    (root / "MNIST" / "raw" / f"{part}-ubyte").unlink()
    with pytest.raises(BenchError, match="run `purifybench data fetch mnist`") as caught:
        data.load("mnist", root)
    assert f"{part}-ubyte(.gz) is missing" in str(caught.value)
    assert str(root / "MNIST" / "raw") in str(caught.value)
    assert "--data-root or PURIFYBENCH_DATA" in str(caught.value)


def test_labels_of_another_order_are_noticed(root, arrays):
    """Well-formed files whose content was swapped: only the published checksum tells."""
    swapped = arrays["train-labels-idx1"][::-1].copy()
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(swapped))
    with pytest.raises(BenchError, match="train-labels-idx1-ubyte has MD5 .* its content differs"):
        data.load("mnist", root)


def test_test_images_in_place_of_training_images_are_noticed(root):
    folder = root / "MNIST" / "raw"
    (folder / "train-images-idx3-ubyte").write_bytes((folder / "t10k-images-idx3-ubyte").read_bytes())
    with pytest.raises(BenchError, match="its content differs"):
        data.load("mnist", root)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(BenchError, match="no dataset is called 'minst'; did you mean mnist"):
        data.load("minst")
    with pytest.raises(BenchError, match="did you mean fmnist"):
        data.fetch("fmnst")


# ---------------------------------------------------------------------------------------------- fetching


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_brings_all_files_from_a_mirror_into_the_cache(mirror):
    folder = data.fetch("mnist", url=mirror.as_uri())
    assert folder == places.home() / "data" / "MNIST" / "raw"
    assert files(folder) == sorted(f"{part}-ubyte.gz" for part in PARTS)
    assert len(data.load("mnist").train) == 4


def test_fetch_follows_the_data_root(mirror, tmp_path):
    assert (
        data.fetch("fmnist", tmp_path / "there", mirror.as_uri() + "/") == tmp_path / "there" / "FashionMNIST" / "raw"
    )
    assert len(data.load("fmnist", tmp_path / "there").test) == 4


def test_fetch_keeps_what_is_sound(root, tmp_path):
    said = []
    data.fetch("mnist", root, (tmp_path / "no such mirror").as_uri(), said.append)
    assert len(said) == 4
    assert all("is there and sound" in line for line in said)


@pytest.mark.parametrize("place", ["MNIST/raw/t10k-labels-idx1-ubyte", "mnist/t10k-labels.idx1-ubyte"])
def test_fetch_replaces_a_corrupted_file(place, root, mirror):
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    corrupted = root / place
    corrupted.parent.mkdir(exist_ok=True)
    corrupted.write_bytes(b"\0\0\x08\x01 torn")
    said = []
    data.fetch("mnist", root, mirror.as_uri(), said.append)
    assert any(str(corrupted) in line and "fetching it again" in line for line in said)
    assert not corrupted.exists()
    assert len(data.load("mnist", root).test) == 4


def test_fetch_replaces_a_corrupted_packed_file_in_place(mirror, tmp_path):
    root = tmp_path / "root"
    data.fetch("mnist", root, mirror.as_uri())
    packed = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-4])
    data.fetch("mnist", root, mirror.as_uri())
    assert len(data.load("mnist", root).train) == 4


def test_fetch_refuses_a_mirror_that_serves_something_else(mirror, tmp_path):
    other = idx(np.zeros((6, 3, 5), np.uint8))
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(other))
    with pytest.raises(BenchError, match="serves something else: .*its content differs"):
        data.fetch("mnist", tmp_path / "root", mirror.as_uri())
    assert files(tmp_path / "root") == []


def test_fetch_keeps_the_old_file_when_the_mirror_is_wrong(root, mirror):
    old = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    old.write_bytes(b"corrupted")
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(BenchError, match="serves something else"):
        data.fetch("mnist", root, mirror.as_uri())
    assert old.read_bytes() == b"corrupted"
    assert files(root) == sorted(f"{part}-ubyte" for part in PARTS)


@pytest.mark.parametrize("address", ["file:///no/such/folder", "no-such-scheme://x", "just/a/path", "http://["])
def test_an_address_that_does_not_answer_is_one_line(address, published, tmp_path):
    with pytest.raises(BenchError, match="cannot fetch .*; try again, or give a mirror .* --url") as caught:
        data.fetch("mnist", tmp_path / "root", address)
    assert "\n" not in str(caught.value)
    assert files(tmp_path / "root") == []


class _Breaks(io.BytesIO):
    """An answer that breaks off after some bytes."""

    def read(self, size=-1):
        if self.tell():
            raise self.broken
        return super().read(3)


@pytest.mark.parametrize(
    "broken", [ConnectionResetError("reset by peer"), IncompleteRead(b"", 9), TimeoutError("slow")]
)
def test_a_download_that_breaks_off_leaves_no_file(broken, published, tmp_path, monkeypatch):
    answer = _Breaks(b"some bytes")
    answer.broken = broken
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(BenchError, match="cannot fetch"):
        data.fetch("mnist", tmp_path / "root")
    assert files(tmp_path / "root") == []


def test_a_download_stopped_by_hand_leaves_no_file(published, tmp_path, monkeypatch):
    answer = _Breaks(b"some bytes")
    answer.broken = KeyboardInterrupt()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist", tmp_path / "root")
    assert files(tmp_path / "root") == []


def test_digits_need_no_fetching():
    with pytest.raises(BenchError, match="nothing to fetch"):
        data.fetch("digits")


# ---------------------------------------------------------------------------------------------- digits


def enlarged() -> np.ndarray:
    """scikit-learn's digits at 28 x 28 in their own order, by bilinear interpolation written as two matrices."""
    from sklearn.datasets import load_digits

    place = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, None)
    low = np.floor(place).astype(int)
    spread = np.zeros((28, 8))
    spread[np.arange(28), low] += 1 - (place - low)
    spread[np.arange(28), np.minimum(low + 1, 7)] += place - low
    return spread @ (load_digits().images / 16) @ spread.T  # (1797, 28, 28)


@pytest.fixture(scope="module")
def original_rows(digits):
    """For each digit in train, validation, test order: its row in scikit-learn's data."""
    ours = torch.cat([part.images for part in (digits.train, digits.validation, digits.test)]).flatten(1).double()
    theirs = torch.from_numpy(enlarged()).flatten(1)
    nearest = torch.cdist(ours, theirs).min(dim=1)
    assert nearest.values.max() < 1e-5, "an image that is not one of scikit-learn's, enlarged bilinearly"
    return nearest.indices.numpy()


def test_digits_are_28x28_in_0_1_and_cut_1000_297_500(digits):
    for part, n in ((digits.train, 1000), (digits.validation, 297), (digits.test, 500)):
        assert part.images.shape == (n, 1, 28, 28)
        assert part.images.dtype == torch.float32
        assert part.labels.shape == (n,)
        assert part.labels.unique().tolist() == list(range(10))
        assert part.images.min() >= 0
        assert part.images.max() == 1
    assert digits.shape == (1, 28, 28)


def test_every_digit_is_in_exactly_one_split(original_rows):
    assert np.array_equal(np.sort(original_rows), np.arange(1797))


def test_digits_keep_their_labels(digits, original_rows):
    from sklearn.datasets import load_digits

    ours = torch.cat([part.labels for part in (digits.train, digits.validation, digits.test)])
    assert np.array_equal(ours.numpy(), load_digits().target[original_rows])


def test_the_digits_split_is_pinned(original_rows):
    """Every published digits number hangs on this permutation; numpy does not promise it for ever, so it is held."""
    assert original_rows[:5].tolist() == [652, 882, 117, 750, 529]
    found = hashlib.sha256(original_rows.astype("<i2").tobytes()).hexdigest()
    assert found == "b19949c1dd6be7bbdde3c37162da952d631ff3f1dea7fc337d811755eba9740e"


# ---------------------------------------------------------------------------------------------- examples


def test_examples_are_the_first_of_one_permutation(digits):
    some, indices = digits.examples(64, seed=0)
    everything, order = digits.examples(500, seed=0)
    assert torch.equal(order[:64], indices)
    assert order.sort().values.tolist() == list(range(500))
    assert not torch.equal(order, order.sort().values)
    assert torch.equal(some.images, digits.test.images[indices])
    assert torch.equal(some.labels, digits.test.labels[indices])
    assert torch.equal(everything.labels[:64], some.labels)


def test_examples_depend_on_the_seed_and_not_on_the_global_one(digits):
    np.random.seed(5)
    first = digits.examples(50, seed=0)[1]
    np.random.seed(6)
    assert torch.equal(digits.examples(50, seed=0)[1], first)
    assert not torch.equal(digits.examples(50, seed=1)[1], first)


def test_the_examples_of_seed_0_are_pinned(digits):
    assert digits.examples(8, seed=0)[1].tolist() == [499, 377, 465, 406, 308, 336, 245, 253]


def test_more_examples_than_images_are_refused(digits):
    with pytest.raises(BenchError, match="digits has 500 test images, the protocol asks for 501"):
        digits.examples(501, seed=0)


# ---------------------------------------------------------------------------------------------- the real thing

MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
FACTS = {
    # name: first ten training labels, per-class counts (train with validation, test), mean and std (same)
    "mnist": ([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], (MNIST_TRAIN, MNIST_TEST), ((0.1307, 0.3081), (0.1325, 0.3105))),
    "fmnist": (
        [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], ([6000] * 10, [1000] * 10), ((0.2860, 0.3530), (0.2868, 0.3524)),
    ),
}  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("name", FACTS)
def test_the_real_data_sets_have_the_published_statistics(name):
    first_labels, counts, moments = FACTS[name]
    loaded = data.load(name)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (50_000, 10_000, 10_000)
    assert loaded.shape == (1, 28, 28)
    assert loaded.train.labels[:10].tolist() == first_labels
    training = data.Split(
        torch.cat([loaded.train.images, loaded.validation.images]),
        torch.cat([loaded.train.labels, loaded.validation.labels]),
    )
    for part, count, (mean, std) in zip((training, loaded.test), counts, moments, strict=True):
        assert part.labels.bincount().tolist() == count
        assert part.images.min() == 0
        assert part.images.max() == 1
        assert part.images.double().mean().item() == pytest.approx(mean, abs=5.1e-5)
        assert part.images.double().std().item() == pytest.approx(std, abs=5.1e-5)
