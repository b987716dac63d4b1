"""Breaks: numbered rules that refuse what is made for each, hostile files, the harness's scoring, its repetition."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import broken
import fake_records
import fakes
import numpy as np
import pytest
import submitted
import torch
from submitted import CARD, NAME, PROTOCOL, TINY

from bench import data, protocols, threat
from bench import plugins as installed
from bench.attacks import get
from bench.breaks import add, arrays, effect, rules, schema, score
from bench.draws import ImageDraws
from bench.errors import BenchError
from bench.progress import Progress
from bench.record import Store
from bench.statistics import robustness
from bench.submissions import places

INDICES = [7, 3, 20]


@pytest.fixture(scope="module", autouse=True)
def _a_small_protocol() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, TINY.id: TINY})
        yield


@pytest.fixture(scope="module")
def _sound(tmp_path_factory: pytest.TempPathFactory, _a_small_protocol: None) -> Path:
    """A folder of submissions with one entry in it, and a break of it that keeps every rule."""
    root = submitted.make(tmp_path_factory.mktemp("sound"))
    store = Store(root / NAME / "records")
    fake_records.save(store, protocols.get(PROTOCOL), [NAME], card=CARD, seed=0)
    broken.save(root, broken.description(), list(store.cells()), INDICES)
    return root


@pytest.fixture
def root(_sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(_sound, tmp_path / "submissions")
    return tmp_path / "submissions"


def _folder(root: Path) -> Path:
    return root / "breaks" / NAME / "ada_pgd"


def found(root: Path, folder: Path | None = None) -> list[rules.Finding]:
    return rules.examine(folder or _folder(root), root, lambda dataset: broken.CLEAN)[1]


def test_a_sound_break_keeps_every_rule_and_is_no_submission(root):
    assert [str(finding) for finding in found(root)] == []
    assert places.names(root) == [NAME]
    shutil.copytree(root / NAME, root / "breaks", dirs_exist_ok=True)  # whatever lies in it
    assert places.names(root) == [NAME]


def test_no_submission_can_be_called_breaks(root, tmp_path, command):
    from bench.submissions import add as adding
    from bench.submissions import rules as of_submissions
    from bench.submissions import scaffold

    with pytest.raises(BenchError, match="no submission is called 'breaks'"):
        places.folder("breaks", root)
    assert any(one.number == 101 for one in of_submissions.examine(["breaks"], root)["breaks"])
    package = scaffold.new("breaks", tmp_path)
    with pytest.raises(BenchError, match="that folder holds breaks; rename it"):
        adding.add(str(package), root, authors=["Ada"])
    assert command("submission", "check", "--root", str(root))[1].startswith(f"{NAME}: ")


def test_rules_have_numbers_and_meanings_of_their_own():
    numbers = [rule.number for rule in rules.ALL]
    assert numbers == list(range(501, 501 + len(numbers))) and len({rule.meaning for rule in rules.ALL}) == len(numbers)
    assert f"an npz by {len(numbers)} numbered rules" in (Path(__file__).parent.parent / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------------------------------------- a spoiled break a rule


def _edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: submitted.edit(folder / schema.DESCRIPTION, old, new)


def _npz(**changes: object) -> Callable[[Path], None]:
    """Replaces arrays; a None leaves one out, a function changes what is there."""

    def spoil(folder: Path) -> None:
        with np.load(folder / schema.IMAGES) as file:
            given = dict(file)
        for name, value in changes.items():
            given[name] = value(given[name]) if callable(value) else value
        kept = {name: value for name, value in given.items() if value is not None}
        np.savez_compressed(folder / schema.IMAGES, **kept)

    return spoil


def _result(**changes: object) -> Callable[[Path], None]:
    """A result with other fields, and a checksum that fits."""

    def spoil(folder: Path) -> None:
        one = schema.read_result(folder / schema.RESULT)
        in_score = {name: value for name, value in changes.items() if name in schema.Score.model_fields}
        scores = tuple(score.model_copy(update=in_score) for score in one.scores)
        others = {name: value for name, value in changes.items() if name not in in_score}
        broken.rewrite(folder, one.model_copy(update={"scores": scores, **others}))

    return spoil


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _one_pixel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(images: np.ndarray) -> np.ndarray:
        images = images.copy()
        images[1, 0, 5, 5] = value
        return images

    return changed


def _refuses(folder: Path) -> None:
    """Makes one of the entry's records that of a defense that may refuse."""
    store = Store(folder.parents[2] / NAME / "records")
    cell = next(store.cells())
    store.save(type(cell)(cell.record.model_copy(update={"thresholds": {"1%": 1.0}}), cell.outcomes))


def _refuses_all(**changes: object) -> Callable[[Path], None]:
    """Makes the entry one that may refuse, and its result one of images that it refused."""
    refused = {"accepted": (0.0,) * 3, "selection": (0.5,) * 3}

    def spoil(folder: Path) -> None:
        _refuses(folder)
        _result(**{**refused, **changes})(folder)

    return spoil


SPOILED: dict[str, Callable[[Path], None]] = {
    "501": lambda folder: folder.rename(folder.with_name("Ada PGD")) and None,
    "501 another entry": _edit('entry = "soft_focus"', 'entry = "kmeans"'),
    "502 a file too many": _write("notes.txt", b"x"),
    "502 a link": lambda folder: (folder / "data").symlink_to("/etc/passwd"),
    "502 no result": lambda folder: (folder / schema.RESULT).unlink(),
    "503": _write(schema.IMAGES, bytes(arrays.LARGEST_FILE + 1)),
    "504": _edit("eps = 0.1", "eps = -0.1"),
    "504 an unknown field": _edit("eps = 0.1", 'eps = 0.1\nrank = 1'),
    "504 an address": _edit("eps = 0.1", 'eps = 0.1\npaper = "javascript:alert(1)"'),
    "504 no TOML": _write(schema.DESCRIPTION, b"["),
    "505": _write(schema.IMAGES, b"no archive"),
    "505 another array": _npz(labels=np.zeros(3)),
    "505 no indices": _npz(indices=None),
    "505 objects": _npz(indices=np.array([1, 2, {}], dtype=object)),
    "506": _npz(images=lambda images: images.astype(np.float64)),
    "506 a size": _npz(images=lambda images: images[..., :27]),
    "506 no image": _npz(images=lambda images: images[:0], indices=np.zeros(0, dtype=int)),
    "507": _npz(indices=np.array([7.0, 3.0, 20.0])),
    "507 a number": _npz(indices=np.array([7, 3])),
    "508": _npz(images=_one_pixel(np.nan)),
    "508 infinity": _npz(images=_one_pixel(np.inf)),
    "509": _npz(images=_one_pixel(-0.25)),
    "509 not divided": _npz(images=lambda images: (255 * images).astype(np.float32)),
    "510": _npz(indices=np.array([7, 3, 500])),
    "510 below": _npz(indices=np.array([7, 3, -1])),
    "510 huge": _npz(indices=np.array([7, 3, 2**63], dtype=np.uint64)),
    "510 twice": _npz(indices=np.array([7, 3, 7])),
    "511": _edit("eps = 0.1", "eps = 0.09"),
    "511 another image": _npz(indices=np.array([7, 4, 20])),
    "512": _edit("eps = 0.1", "eps = 25.5"),
    "513": _edit('entry = "soft_focus"', 'entry = "no_such_entry"'),
    "514": _edit('dataset = "digits"', 'dataset = "mnist"'),
    "514 a classifier": _edit('classifier = "A"', 'classifier = "B"'),
    "515": lambda folder: submitted.edit(folder / schema.RESULT, '"correct": [0.0', '"correct": [1.0'),
    "515 no JSON": _write(schema.RESULT, b"{" * 100_000),
    "515 a list": _write(schema.RESULT, b"[]"),
    "516": _npz(images=lambda images: images * np.float32(0.999)),
    "516 a radius": _result(eps=0.2),
    "517": _result(labels=(1, 2)),
    "517 a share": _result(correct=(0.0, 0.0, 1.5)),
    "517 a contradiction": _result(correct=(0.0, 0.0, 1.0), selection=(0.0, 0.0, 1.0)),
    "517 too far": _result(linf=(0.1, 0.1, 0.11)),
    "518": _result(labels=(0, 0, 0), predicted=(1, 1, 1)),
    "519": _edit('author = "Ada"', 'author = "Ada\u202egnp.exe"'),
    "517 right and refused": _refuses_all(correct=(1.0, 0.0, 0.0)),
    "517 refused by half": _refuses_all(selection=(0.0, 0.5, 0.5)),
    "520": _refuses,
    "520 of one that always answers": _result(accepted=(1.0, 1.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_break_is_refused_by_the_rule_made_for_it(what, root):
    SPOILED[what](_folder(root))
    (folder,) = (root / "breaks" / NAME).iterdir()
    mine = [finding for finding in found(root, folder) if finding.number == int(what[:3])]
    assert mine
    for finding in found(root, folder):
        assert str(finding).startswith(f"S{finding.number} submissions/breaks/") and "\n" not in str(finding)
        assert finding.found and finding.expected and finding.fix and "no rule foresaw" not in str(finding)
    assert rules.kept(root, [NAME])[0] == [] or what[:3] == "511", (
        "the site has no clean images, and believes the result"
    )


def test_every_rule_has_a_break_made_for_it():
    assert {int(what[:3]) for what in SPOILED} == {rule.number for rule in rules.ALL}


# ---------------------------------------------------------------------------------------------- hostile files


def _archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text.encode()


class Evil:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (Path("loaded").write_text, ("x",))


ONE = _npy(np.zeros((1, 1, 28, 28), np.float32))
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 1, 28, 28), }\n"
HOSTILE = {
    "a pickle": pickle.dumps(Evil()),
    "pickled objects": _archive(images=_npy(np.array([Evil()], dtype=object)), indices=_npy(np.array([0]))),
    "objects in a structure": _archive(images=_npy(np.zeros(1, dtype=[("a", object)])), indices=_npy(np.array([0]))),
    "a bomb": _archive(images=bytes(arrays.LARGEST_ARRAYS + 1), indices=_npy(np.array([0]))),
    "a header that promises more": _archive(images=_header(HUGE), indices=_npy(np.array([0]))),
    "negative lengths": _archive(images=_header(HUGE.replace("99999999", "-1")), indices=_npy(np.array([0]))),
    "a header of code": _archive(images=_header("__import__('os').system('touch loaded')"), indices=ONE),
    "a header too long": _archive(images=_header("(" * 60_000), indices=ONE),
    "another version": _archive(images=_header(HUGE, (9, 0)), indices=ONE),
    "an array cut short": _archive(images=ONE[:-10], indices=_npy(np.array([0]))),
    "no arrays": _archive(images=b"", indices=b""),
    "one name twice": _archive(images=ONE, indices=_npy(np.array([0])))[:-30],
    "empty": b"",
    "zeros": bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_file_is_one_line_and_nothing_of_it_is_run(what, root, tmp_path):
    path = tmp_path / "hostile.npz"
    path.write_bytes(HOSTILE[what])
    with pytest.raises(BenchError) as refused:
        arrays.read(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
    shutil.copyfile(path, _folder(root) / schema.IMAGES)
    assert 505 in {finding.number for finding in found(root)}
    assert not list(Path().rglob("loaded"))


def test_a_damaged_archive_is_never_a_traceback(root, tmp_path):
    whole = (_folder(root) / schema.IMAGES).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            content[place] = rng.integers(0, 256)
        (tmp_path / "x.npz").write_bytes(
            bytes(content)[: rng.integers(1, len(whole))] if rng.random() < 0.3 else content
        )
        try:
            arrays.read(tmp_path / "x.npz")
        except BenchError as refused:
            assert "\n" not in str(refused)


def test_a_link_is_not_followed(root, tmp_path):
    (tmp_path / "x.npz").symlink_to(_folder(root) / schema.IMAGES)
    with pytest.raises(BenchError, match="no regular file"):
        arrays.read(tmp_path / "x.npz")


def test_bytes_are_images_divided_by_255(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.full((1, 1, 2, 2), 51, np.uint8), indices=np.array([0]))
    pixels = arrays.read(tmp_path / "x.npz").pixels
    assert pixels.dtype == np.float32 and (pixels == np.float32(51) / 255).all()


def test_a_refused_image_breaks_nothing_and_an_accepted_one_does(root):
    _refuses_all(accepted=(1.0, 0.0, 1.0), selection=(0.0, 0.5, 0.0))(_folder(root))
    case, problems = rules.examine(_folder(root), root, lambda dataset: broken.CLEAN)
    assert problems == [] and case.may_refuse
    tried = effect.tried(case.result, case.cells)
    assert [tried.correct[i] for i in sorted(INDICES)] == [0, 1, 0]
    assert [tried.selection[i] for i in sorted(INDICES)] == [0, 1, 0]


def test_a_description_survives_writing_and_reading(tmp_path):
    said = broken.description(
        author='Zoë "<b>" \\ 吴', note="PGD-1000, 20 restarts", paper="https://arxiv.org/abs/1706.06083"
    )
    (tmp_path / "break.toml").write_text(schema.as_toml(said))
    assert schema.read(tmp_path / "break.toml") == said


@pytest.mark.parametrize(
    "name", [add._name("Ada Example", "linf", 0.1), add._name("<script>", "l2", 1.5), add._name("吴", "linf", 0.3),
             add._name("9 lives" * 40, "linf", 0.05), add._name("_", "l2", 1)],
)  # fmt: skip
def test_a_name_is_made_of_whatever_the_author_is_called(name):
    assert installed.SLUG.fullmatch(name)


# ---------------------------------------------------------------------------------------------- what counts


def test_a_result_counts_for_the_nets_that_it_is_of_and_no_others(root):
    cells = list(Store(root / NAME / "records").cells())
    one = schema.read_result(_folder(root) / schema.RESULT)
    assert effect.mismatch(one, cells) == ""

    def of(**changes: object) -> str:
        return effect.mismatch(one.model_copy(update=changes), cells)

    assert of(code="older") == "of other code"
    assert of(classifier_weights="other") == "of another classifier net"
    assert of(harness=one.harness + 1) == "scored by another version of the harness"
    assert of(labels=(0, 0, 0)) == "of other images"
    for field in ({"weights": "x"}, {"seed": 1}, {"recipe": "x"}, {"settings": {}}):
        assert of(scores=(one.scores[0].model_copy(update=field),)) == "of other weights"


def test_images_are_matched_by_index_in_whatever_order_they_came(root):
    cells = list(Store(root / NAME / "records").cells())
    shown = schema.read_result(_folder(root) / schema.RESULT)
    assert shown.indices == (3, 7, 20)
    one = effect.tried(shown.model_copy(update={"linf": (0.03, 0.07, 0.1)}), cells)
    assert np.flatnonzero(np.isfinite(one.linf)).tolist() == [3, 7, 20]
    assert one.linf[[3, 7, 20]].tolist() == [0.03, 0.07, 0.1] and one.correct[[0, 3]].tolist() == [1, 0]


def test_the_first_images_of_a_quick_protocol_are_those_of_the_full_one(digits):
    full, order = digits.examples(500, 0)
    quick, first = digits.examples(200, 0)
    assert torch.equal(order[:200], first) and torch.equal(full.images[:200], quick.images)
    for dataset in ("digits", "mnist", "fmnist"):
        asked = schema.protocol_of(dataset)
        others = [one for one in protocols.known().values() if one.dataset == dataset]
        assert all((one.seed, one.n_examples <= asked.n_examples) == (asked.seed, True) for one in others)


def test_the_images_written_for_researchers_are_the_protocols(digits, tmp_path, command):
    status, out, _ = command("break", "images", "digits", "clean.npz")
    assert status == 0 and "500 images" in out
    expected, _ = digits.examples(500, 0)
    with np.load("clean.npz") as file:
        assert np.array_equal(file["images"], expected.images.numpy()) and file["indices"].tolist() == list(range(500))
        assert np.array_equal(file["labels"], expected.labels.numpy())


def test_researchers_are_told_which_images_still_stand(root, command):
    words = ("break", "images", "digits", "clean.npz", "--root", str(root), "--eps", "0.1", "--against")
    status, out, err = command(*words, "soft-focus")
    assert status == 0, err
    expected = robustness(list(Store(root / NAME / "records").cells()), "linf", (0.1,))[1] > 0.5
    with np.load("clean.npz") as file:
        assert file["standing"][:24].tolist() == expected.tolist() and not file["standing"][24:].any()
    assert f"{int(expected.sum())} of them are right in the worst case of soft-focus at linf 0.1" in out
    for more, message in (
        (("nobody",), "S513"),
        ((NAME, "--classifier", "B"), "S514"),
        ((NAME, "--norm", "l1"), "norm"),
    ):
        status, _, err = command(*words, *more)
        assert status == 2 and message in err and err.count("\n") == 1


def test_a_linked_folder_is_refused(root, tmp_path):
    shutil.move(root / "breaks" / NAME, tmp_path / "elsewhere")
    (root / "breaks" / NAME).symlink_to(tmp_path / "elsewhere")
    assert 502 in {finding.number for finding in found(root)}


# ---------------------------------------------------------------------------------------------- the real defense

KMEANS = Path(__file__).parent.parent / "submissions" / "kmeans" / places.FILE


@pytest.fixture(scope="module")
def _measured(_trained_home, digits, tmp_path_factory):
    """k-means measured on 24 digits, and images that break some of what stood: root, npz, indices."""
    from bench import campaign, classifiers, planning

    top = tmp_path_factory.mktemp("measured")
    shutil.copytree(_trained_home[0], top / "home")
    (top / "submissions" / "kmeans").mkdir(parents=True)
    shutil.copyfile(KMEANS, top / "submissions" / "kmeans" / places.FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(top / "home"))
        patch.setattr(classifiers, "RECIPE", _trained_home[1])
        store = Store(top / "submissions" / "kmeans" / "records")
        cells = campaign.run(planning.plan(["kmeans"], TINY), store)
        net, _ = classifiers.trained("A", digits, Progress())
    clean, _ = digits.examples(24, 0)
    result = get("apgd_ce")(threat.gray_box(net), clean.images, clean.labels, eps=0.3, norm="linf", steps=10,
                            draws=ImageDraws.derived(torch.arange(24), "break"))  # fmt: skip
    rows = torch.arange(23, -1, -1)  # from the last to the first
    np.savez_compressed(top / "found.npz", images=result.images[rows].numpy(), indices=rows.numpy())
    return top, cells


@pytest.fixture
def measured(_measured, _trained_home, tmp_path, monkeypatch):
    """A copy of the same that a test may change, with the home that it was measured in."""
    from bench import classifiers

    monkeypatch.setenv("PURIFYBENCH_HOME", str(_measured[0] / "home"))
    monkeypatch.setattr(classifiers, "RECIPE", _trained_home[1])
    shutil.copytree(_measured[0] / "submissions", tmp_path / "submissions")
    return tmp_path / "submissions", _measured[0] / "found.npz", _measured[1]


def _words(npz, *more):
    return ("break", "add", str(npz), "--against", "kmeans", "--dataset", "digits", "--norm", "linf", "--eps", "0.3",
            "--author", "Ada Example", *more)  # fmt: skip


@pytest.mark.slow
def test_a_break_is_checked_scored_kept_shown_and_confirmed(measured, command, tmp_path):
    root, npz, cells = measured
    status, out, err = command(*_words(npz))
    assert status == 0, err
    before, after = robustness(cells, "linf", (0.3,))[1], schema.read_result(
        root / "breaks" / "kmeans" / "ada_example_linf_0_3" / schema.RESULT
    )  # fmt: skip
    wrong = np.array(after.scores[0].correct) == 0
    assert after.indices == tuple(range(24)) and wrong.sum() > 12, "the order of the npz does not matter"
    lost = int(((before > 0.5) & wrong).sum())
    assert lost > 0
    assert (
        f"24 of the images are among its own; {int(before.sum())} of these were still right at linf 0.3, and {lost}"
        in out
    )
    assert command("break", "check")[:2] == (0, "kmeans/ada_example_linf_0_3: keeps all rules\n")
    assert command("break", "verify", "kmeans")[:2] == (0, "kmeans/ada_example_linf_0_3: confirmed\n")
    first = {path.name: path.read_bytes() for path in (root / "breaks" / "kmeans" / "ada_example_linf_0_3").iterdir()}
    shutil.rmtree(root / "breaks")
    assert command(*_words(npz))[0] == 0
    assert first == {path.name: path.read_bytes() for path in (root / "breaks").rglob("*.*")}, "the same bytes"
    status, _, err = command(*_words(npz))
    assert status == 2 and "exists already; choose another --name" in err


@pytest.mark.slow
def test_a_result_edited_by_hand_is_found(measured, command):
    root, npz, _ = measured
    assert command(*_words(npz, "--name", "mine"))[0] == 0
    folder = root / "breaks" / "kmeans" / "mine"
    one = schema.read_result(folder / schema.RESULT)
    right = (
        next(i for i, share in enumerate(one.scores[0].correct) if share == 1) if 1.0 in one.scores[0].correct else 0
    )
    other = 0.0 if one.scores[0].correct[right] else 1.0
    said = one.labels[right] if other else (one.labels[right] + 1) % 10

    def put(values, value):
        return tuple(value if i == right else v for i, v in enumerate(values))

    score_ = one.scores[0]
    forged = score_.model_copy(update={
        "correct": put(score_.correct, other), "selection": put(score_.selection, other),
        "predicted": put(score_.predicted, said), "margin": put(score_.margin, 2 * other - 1),
    })  # fmt: skip
    broken.rewrite(folder, one.model_copy(update={"scores": (forged,)}))
    assert command("break", "check")[0] == 0, "it contradicts nothing"
    status, out, _ = command("break", "verify", "kmeans/mine")
    assert (status, out) == (1, "kmeans/mine: 1 of 24 images come out otherwise\n")
    text = (folder / schema.RESULT).read_text()
    (folder / schema.RESULT).write_text(text.replace('"draws": 1', '"draws": 2'))
    status, out, _ = command("break", "verify")
    assert status == 1 and "refused: S515" in out and "checksum" in out


@pytest.mark.slow
def test_other_nets_than_the_records_neither_count_nor_confirm(measured, command, monkeypatch, tmp_path):
    from bench import classifiers

    root, npz, _ = measured
    assert command(*_words(npz, "--name", "mine"))[0] == 0
    monkeypatch.setattr(classifiers, "RECIPE", {**classifiers.RECIPE, "epochs": 1})
    status, out, _ = command("break", "verify")
    assert status == 3 and "cannot be confirmed: other code or weights are here" in out
    status, _, err = command(*_words(npz, "--name", "another"))
    assert (
        status == 2 and "is of another classifier net" in err and not (root / "breaks" / "kmeans" / "another").exists()
    )


@pytest.mark.slow
def test_what_cannot_be_added_is_one_line_and_leaves_nothing(measured, command, tmp_path):
    root, npz, _ = measured
    for words, message in (
        (("--eps", "0.2"), "S511"), (("--against", "nobody"), "S513"), (("--dataset", "imagenet"), "S514"),
        (("--norm", "l7"), '"linf" or "l2"'), (("--name", "../up"), "name"), (("--author", "\x1b[31m"), "author"),
        (("--paper", "javascript:alert(1)"), "paper"), (("--classifier", "Z"), "S514"), (("--eps", "nan"), "eps"),
    ):  # fmt: skip
        status, _, err = command(*_words(npz, *words))
        assert status == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1, (words, err)
    status, _, err = command(*_words(tmp_path / "missing.npz"))
    assert status == 2 and "S505" in err and err.count("\n") == 1
    assert not (root / "breaks").exists()
    status, _, err = command("break", "verify", "kmeans/none")
    assert status == 2 and "no break is called" in err


# ---------------------------------------------------------------------------------------------- failing and random ones


@pytest.fixture
def scored(monkeypatch, trained_home, root):
    """Scores the images of the made-up break on a class that stands in for the submitted one."""

    def run(cls, indices=(2, 5, 9)):
        @contextmanager
        def opened(name, root, data_root=None, limits=None):
            assert limits.failures >= 2 * len(indices) + 4, "a process may end at each image, alone and among others"
            yield type("S", (), {"weights": ()})(), cls

        monkeypatch.setattr(score.run, "opened", opened)
        clean = score.clean_images("digits")[0]
        path = root.parent / "x.npz"
        images = np.clip(clean[list(indices)] + np.float32(0.05), 0, 1)
        images[1, 0, 0, 0] = MARK
        np.savez(path, images=images, indices=indices)
        case = rules.Case(_folder(root), root, lambda d: clean, {}, given=broken.description(eps=0.05), npz=path)
        assert rules.findings(case) == []
        return lambda sha="0" * 64: score.score(case, sha)

    return run


MARK = np.float32(0.03)  # a corner that no other image has


class RaisesOnOne(fakes.Fake):
    """Raises where an image is the one that it cannot bear, whatever else is in the batch."""

    def purify(self, images, generator):
        if (images[:, 0, 0, 0] == MARK).any():
            raise RuntimeError("cannot bear it")
        return images


class NaNOnOne(fakes.Fake):
    """NaN for the same image."""

    def purify(self, images, generator):
        return torch.where(images[:, :1, :1, :1] == MARK, torch.nan, images)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [RaisesOnOne, NaNOnOne])
def test_an_image_on_which_the_defense_fails_is_wrong_and_speaks_for_no_other(cls, scored):
    before = scored(fakes.Fake)().scores[0]
    assert sum(before.correct) > 0

    after = scored(cls)().scores[0]
    assert after.predicted[1] == -1 and after.correct[1] == 0 and after.error
    assert [after.correct[i] for i in (0, 2)] == [before.correct[i] for i in (0, 2)]


class RefusesTheMark(fakes.Fake):
    """Refuses where the corner is that of the second image."""

    def rejection_score(self, images, generator):
        return (images[:, 0, 0, 0] - MARK).abs().mul(-1e4).exp() + 1e-3 * images.flatten(1).mean(dim=1)


@pytest.mark.slow
def test_an_entry_that_may_refuse_is_scored_by_its_own_protocol(scored, root):
    _refuses(_folder(root))
    result = scored(RefusesTheMark)()
    (one,) = result.scores
    assert one.accepted == (1, 0, 1) and one.correct[1] == 0 and one.selection[1] == 0.5
    broken.rewrite(_folder(root), result)
    assert not [found for found in rules.examine(_folder(root), root)[1] if found.number in (517, 520)]


@pytest.mark.slow
def test_a_random_defense_is_scored_on_many_draws_that_follow_from_the_images(scored):
    run = scored(fakes.Noise)
    one = run()
    (shares,) = one.scores
    assert one.stochastic and shares.draws == 100 and set(shares.margin) != {0}
    assert run() == one
    other = run("1" * 64).scores[0]
    assert other.margin != shares.margin, "draws are not known before the images are"


def test_comparing_bears_rounding_and_nothing_else(root):
    one = schema.read_result(_folder(root) / schema.RESULT)

    def with_score(**changes):
        return one.model_copy(update={"scores": (one.scores[0].model_copy(update=changes),)})

    assert add.compared(one, one) == ("", False)
    assert add.compared(one, with_score(margin=(-1.0001, -1.0, -1.0))) == ("", False)
    assert add.compared(one, with_score(margin=(-0.9, -1.0, -1.0)))[0] == "1 of 3 images come out otherwise"
    edge = with_score(margin=(-0.0002, -1.0, -1.0))
    over = with_score(margin=(0.0002, -1.0, -1.0), correct=(1.0, 0.0, 0.0), selection=(1.0, 0.0, 0.0))
    assert add.compared(edge, over) == ("", False)
    assert add.compared(one, one.model_copy(update={"linf": (0.1, 0.1, 0.09)})) == ("the distances differ", False)
    assert add.compared(one, one.model_copy(update={"labels": (9, 9, 9)})) == ("labels differ", False)
    assert add.compared(one, with_score(weights="x"))[1]


def test_commands_import_no_torch_before_there_is_work(tmp_path):
    import subprocess
    import sys

    code = "import bench.breaks.commands, bench.breaks.rules, bench.breaks.effect, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_data_that_are_not_here_are_said(root, command, monkeypatch):
    def missing(dataset, data_root=None):
        raise BenchError("digits are missing")

    monkeypatch.setattr(data, "load", missing)
    status, out, err = command("break", "check")
    assert (status, out) == (0, f"{NAME}/ada_pgd: keeps all rules\n")
    assert err == "distances are not measured again: digits are missing\n"


def test_a_result_is_json_of_one_field_a_line(root):
    text = (_folder(root) / schema.RESULT).read_text()
    assert json.loads(text)["entry"] == NAME and text.count("\n") == len(json.loads(text)) + 2


OWN = Path(__file__).parent.parent / "submissions"


def test_the_projects_own_breaks_keep_every_rule():
    kept, problems = rules.kept(OWN, places.names(OWN))
    assert [str(finding) for finding in problems] == []
    assert len(kept) == len(list(schema.folders(OWN))) >= 1


@pytest.mark.data
def test_the_projects_own_breaks_are_in_their_balls():
    clean = add.clean(None)
    for folder in schema.folders(OWN):
        case, found = rules.examine(folder, OWN, clean)
        assert found == []
        away = rules.distances(case.pixels, clean(case.said.dataset)[case.indices], case.said.norm)
        kept = dict(zip(case.result.indices, case.result.distance(case.said.norm), strict=True))
        assert [kept[int(i)] for i in case.indices] == pytest.approx(away, abs=1e-6)
