"""The numbered checks of submissions: each refuses a submission made for it, and a sound one keeps them all."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_records
import numpy as np
import pytest
import submitted
from submitted import CARD, NAME, PROTOCOL, TINY

from bench import protocols, seal
from bench.record import SEAL, Store, checksum
from bench.submissions import places, rules
from bench.submissions.rules import base


@pytest.fixture(scope="module", autouse=True)
def _a_small_protocol() -> Iterator[None]:
    """One more published protocol, with few cells: reading records is most of the work here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, TINY.id: TINY})
        yield


@pytest.fixture(scope="module")
def _sound(tmp_path_factory: pytest.TempPathFactory, _a_small_protocol: None) -> Path:
    """A folder of submissions with one in it that keeps every rule."""
    top = tmp_path_factory.mktemp("sound")
    root = submitted.make(top)
    _measure(root)
    return root


def _measure(root: Path, **changes: object) -> None:
    known = protocols.get(PROTOCOL)
    store = Store(root / NAME / "records")
    fake_records.save(store, known, [NAME], card=changes.pop("card", CARD), seed=0, **changes)
    for lock in root.rglob(".lock"):
        lock.unlink()


@pytest.fixture
def root(_sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(_sound, tmp_path / "submissions")
    return tmp_path / "submissions"


def found(root: Path, name: str = NAME) -> list[rules.Finding]:
    return rules.examine([name], root)[name]


def test_a_sound_submission_keeps_every_rule(root):
    assert [str(finding) for finding in found(root)] == []


def test_there_are_at_least_thirty_rules_with_numbers_and_meanings_of_their_own():
    numbers = [rule.number for rule in rules.ALL]
    assert len(numbers) == len(set(numbers)) >= 30
    assert len({rule.meaning for rule in rules.ALL}) == len(numbers)


def _toml(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: submitted.edit(root / NAME / places.FILE, old, new)


def _project(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: submitted.edit(root / NAME / "plugin" / "pyproject.toml", old, new)


def _file(path: str, content: bytes = b"x\n") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        target = root / NAME / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    return write


def _records(root: Path) -> Path:
    return root / NAME / "records" / PROTOCOL / NAME


def _again(slug: str = "gray_box.fgsm.linf-0.1", **changes: object) -> Callable[[Path], None]:
    """Replaces one cell by a well-formed one with other fields or arrays."""

    def spoil(root: Path) -> None:
        store = Store(root / NAME / "records")
        cell = next(cell for cell in store.cells() if cell.record.spec.slug == slug)
        arrays = {key: value(cell.outcomes) for key, value in changes.items() if callable(value)}
        outcomes = type(cell.outcomes)(**(cell.outcomes.arrays() | arrays))
        fields = {key: value for key, value in changes.items() if not callable(value)}
        fields["outcomes_sha256"] = outcomes.sha256()
        store.save(type(cell)(cell.record.model_copy(update=fields), outcomes))

    return spoil


def _member(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        with zipfile.ZipFile(_records(root) / "outcomes.npz", "a") as archive:
            archive.writestr(name, content)

    return spoil


def _npy_of_objects() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def _twin(root: Path) -> None:
    shutil.copytree(root / NAME, root / "twin")
    submitted.edit(root / "twin" / places.FILE, 'name = "soft_focus"', 'name = "twin"')
    folder = root / "twin" / "records" / PROTOCOL
    (folder / NAME).rename(folder / "twin")
    for path in (folder / "twin").glob("*.json"):
        payload = json.loads(path.read_text())
        payload.pop("checksum")
        payload["defense"] = "twin"
        payload["checksum"] = checksum(payload)
        path.write_text(json.dumps(payload))


def _rename_folder(root: Path) -> None:
    (root / NAME).rename(root / "Soft-Focus")


def _flip(outcomes):
    return np.where(outcomes.attacked, (outcomes.label + 1) % 10, outcomes.predicted).astype(np.int16)


def _link(root: Path) -> None:
    (root / NAME / "plugin" / "data.py").symlink_to("/etc/passwd")


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _bomb(root: Path) -> None:
    _member("A.x/big.npy", b"\x93NUMPY" + bytes(100))(root)
    path = _records(root) / "outcomes.npz"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last member's entry in the directory: its size, unpacked
    content[at + 24 : at + 28] = (3_000_000_000).to_bytes(4, "little")
    path.write_bytes(bytes(content))


CLAIM = (
    '\n[[claims]]\ndataset = "{}"\nnorm = "linf"\neps = {}\naccuracy = 0.9\nattack = "PGD"\nwhere = "Table 1"\n'
)  # fmt: skip
WEIGHTS = (
    '\n[[weights]]\nfile = "{}-0123456789abcdef.safetensors"\nurl = "https://a.org/w"\nsha256 = "' + 64 * "0" + '"\n'
)
CLEAN = "clean.none"
SPOILED: dict[str, Callable[[Path], None]] = {
    "101": _rename_folder,
    "102": lambda root: (root / NAME / places.FILE).unlink(),
    "103": _link,
    "103 a record": lambda root: _endless(_records(root) / "A.endless.seed0.json"),
    "103 a seal": lambda root: _endless(_records(root) / SEAL),
    "104": _file("notes/idea.txt"),
    "104 in records": _file("records/readme.md"),
    "105": _file("plugin/table.py", b"#" * 1_000_001),
    "106": lambda root: [_file(f"plugin/p{i}.py")(root) for i in range(rules.files.MOST_FILES)] and None,
    "107 by suffix": _file("plugin/weights.pt"),
    "107 by content": _file("plugin/table.txt", pickle.dumps({"a": 1})),
    "107 an archive": _file("plugin/table.txt", b"PK\x03\x04xxxx"),
    "107 a program": _file("plugin/helper.txt", b"\x7fELFxxxx"),
    "108": _file("plugin/a b.py"),
    "108 hidden": _file("plugin/.hidden"),
    "108 an option": _file("plugin/-rf"),
    "109": _file("plugin/SOFT_FOCUS.py"),
    "110 not text": _file("plugin/readme.txt", b"\xff\xfe\xfa"),
    "110 reordered": _file("plugin/trick.py", "x = 1  # \u202e } if admin".encode()),
    "111 a path": _member("../../evil.npy", b"\x93NUMPY"),
    "111 objects": _member("A.x/evil.npy", _npy_of_objects()),
    "111 a bomb": _bomb,
    "111 no archive": lambda root: (_records(root) / "outcomes.npz").write_bytes(b"zip"),
    "201": _toml("year = 2026", "year = 26"),
    "202": _toml('name = "soft_focus"', 'name = "other_name"'),
    "203": _toml('datasets = ["digits"]', 'datasets = ["digits", "imagenet"]'),
    "204": _toml('classifiers = ["A"]', 'classifiers = ["A", "Z"]'),
    "204 a paper's own": _toml('classifiers = ["A"]', 'classifiers = ["A", "cnet"]'),
    "205": _toml('classifiers = ["A"]', 'classifiers = ["A", "A"]'),
    "206": _toml("[install]", CLAIM.format("imagenet", 0.1) + "[install]"),
    "207": _toml("[install]", CLAIM.format("digits", 8) + "[install]"),
    "208": _twin,
    "209": _toml("https://arxiv.org/abs/1805.06605", "https://example.org/paper"),
    "210": _toml("[install]", WEIGHTS.format("kmeans") + "[install]"),
    "301": lambda root: shutil.rmtree(root / NAME / "plugin"),
    "302": _project('name = "soft-focus"', 'nme = "soft-focus"'),
    "302 no TOML": _project("[project]", "[project"),
    "303": _project('soft_focus = "soft', 'other = "soft'),
    "304": _project("soft_focus:SoftFocus", "soft_focus:Other"),
    "305": lambda root: submitted.edit(root / NAME / "plugin" / "soft_focus.py", ", 2026", ", 2025"),
    "306": _project("[tool.setuptools]", '[project.entry-points.pytest11]\nx = "x"\n\n[tool.setuptools]'),
    "306 a command": _project("[tool.setuptools]", '[project.scripts]\nls = "x:y"\n\n[tool.setuptools]'),
    "307": _project("setuptools.build_meta", "mine"),
    "307 a path": _project("[project]\n", 'backend-path = ["."]\n[project]\n'),
    "307 a script": _file("plugin/setup.py"),
    "308": _project('["purifybench"]', '["purifybench", "x @ http://example.org/x.tar.gz"]'),
    "309": _file("plugin/start.pth"),
    "310": _toml('folder = "plugin"', "included = true"),
    "311": _file("plugin/torch.py"),
    "401": lambda root: submitted.edit(_records(root) / f"A.{CLEAN}.seed0.json", '"draws": 1', '"draws": 2'),
    "401 not JSON": lambda root: (_records(root) / f"A.{CLEAN}.seed0.json").write_text("["),
    "402": _file(f"records/{PROTOCOL}/kmeans/x.json"),
    "403": _file(f"records/{PROTOCOL}+limit8/{NAME}/x.json"),
    "404": _again(protocol_hash="0" * 64),
    "405": _again(card=CARD.model_copy(update={"stochastic": True})),
    "406": _again(code="other"),
    "406 weights": _again(weights="other"),
    "407": lambda root: _again(variant="mine")(root),
    "408": lambda root: (_records(root) / f"A.{CLEAN}.seed0.json").unlink(),
    "409": _again(linf=lambda outcomes: outcomes.linf + np.float32(0.01)),
    "410": _again(selection=lambda outcomes: outcomes.selection + 2),
    "411": _again(predicted=_flip),
    "411 margins": _again(margin=lambda outcomes: -outcomes.margin),
    "412": _again(label=lambda o: (o.label + 1) % 10, predicted=lambda o: (o.predicted + 1) % 10),
    "413": lambda root: _fewer(root),
    "414": _again(attack_version=99),
    "415": _again(status="failed"),
    "415 a gain": _again(predicted=lambda o: np.full_like(o.predicted, -1)),
    "416": _toml('datasets = ["digits"]', 'datasets = ["mnist"]'),
    "416 classifier": _toml('classifiers = ["A"]', 'classifiers = ["B"]'),
    "417": _again(units=50.0),
    "418": _again(CLEAN, linf=lambda outcomes: outcomes.linf + np.float32(0.01)),
    "419": _twin,
    "420": _again(classifier_weights="other"),
    "421": _again(images_sha256="0" * 63 + "x"),
    "421 clean": lambda root: _other_images(root),
    "422 removed": lambda root: _seal(root, lambda: (_records(root) / f"A.{CLEAN}.seed0.json").unlink()),
    "422 replaced": lambda root: _replaced_after_the_run(root),
    "422 edited": lambda root: _edited_after_the_run(root),
    "422 added": lambda root: _seal(root, lambda: (_records(root) / "x.json").write_text("{}")),
    "422 torn": lambda root: (_records(root) / SEAL).write_text("["),
    "422 absent": _again(images_sha256="0" * 64),
}


def _seal(root: Path, then: Callable[[], object] = lambda: None) -> None:
    seal.write(Store(root / NAME / "records"), PROTOCOL, NAME)
    assert found(root) == []
    then()


def _edited_after_the_run(root: Path) -> None:
    _seal(root)
    path = next(_records(root).glob("A.gray_box.fgsm.*.json"))
    payload = json.loads(path.read_text()) | {"blocked": 0.5}
    payload.pop("checksum")
    path.write_text(json.dumps(payload | {"checksum": checksum(payload)}))


def _replaced_after_the_run(root: Path) -> None:
    """One record and its arrays are those of a kinder run, and nothing else is changed."""
    _seal(root)
    sealed = (_records(root) / SEAL).read_bytes()
    _again(correct=lambda o: np.ones_like(o.correct))(root)
    (_records(root) / SEAL).write_bytes(sealed)


def _other_images(root: Path) -> None:
    for seed in (1, 2):  # what most cells of clean images say
        fake_records.save(
            Store(root / f"other_{seed}" / "records"), TINY, [f"other_{seed}"], seed=0, images_sha256="a" * 64
        )
    _again(CLEAN, images_sha256="b" * 64)(root)


def _fewer(root: Path) -> None:
    shutil.rmtree(root / NAME / "records")
    known = protocols.get(PROTOCOL)
    fewer = dataclasses.replace(known, n_examples=20, whole=known.hash)
    fake_records.save(Store(root / NAME / "records"), fewer, [NAME], card=CARD, seed=0)


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_submission_is_refused_by_the_rule_made_for_it(what, root):
    SPOILED[what](root)
    for lock in root.rglob(".lock"):
        lock.unlink()
    name = next(path.name for path in root.iterdir() if path.name.lower().replace("-", "_") == NAME)
    (rule,) = (rule for rule in rules.ALL if rule.number == int(what[:3]))
    mine = rules.examine([name], root, [rule])[name]
    assert mine
    for finding in mine:
        assert finding.file.startswith("submissions/") and finding.found and finding.expected and finding.fix
        assert "\n" not in str(finding) and "no rule foresaw" not in str(finding)
        assert str(finding).startswith(f"S{what[:3]} submissions/{name}")


@pytest.mark.parametrize("what", ["103 a record", "103 a seal", "111 a bomb"])
def test_what_cannot_be_borne_is_read_by_no_rule(what, root):
    SPOILED[what](root)
    assert {finding.number for finding in found(root)} == {int(what[:3])}


def test_every_rule_has_a_submission_made_for_it():
    assert {int(what[:3]) for what in SPOILED} == {rule.number for rule in rules.ALL}


def _blamed(root: Path, *names: str) -> list[str]:
    """The submissions that are told to be like another, of those that are looked at."""
    alike = [rule for rule in rules.ALL if rule.number in (208, 419)]
    found = {name: {one.number for one in told} for name, told in rules.examine(names, root, alike).items()}
    assert set(map(frozenset, found.values())) <= {frozenset(), frozenset({208, 419})}, found
    return [name for name, numbers in found.items() if numbers]


def test_of_two_submissions_that_are_alike_only_the_later_is_refused(root, monkeypatch):
    _twin(root)
    assert _blamed(root, "twin") == ["twin"], "the other is on the board"
    assert _blamed(root, NAME) == [NAME], "so it is the other way round"
    assert _blamed(root, NAME, "twin") == _blamed(root, "twin", NAME) == ["twin"], "by name"
    submitted.edit(root / "twin" / places.FILE, "year = 2026", "year = 2025")
    assert _blamed(root, NAME, "twin") == [NAME], "by year"
    submitted.edit(root / NAME / places.FILE, 'folder = "plugin"', "included = true")
    assert _blamed(root, NAME, "twin") == [NAME], "not because it says that it comes with PurifyBench"
    monkeypatch.setattr(base, "ours", lambda: {NAME})
    assert _blamed(root, NAME, "twin") == ["twin"] and _blamed(root, NAME) == []


def test_a_copy_with_more_or_fewer_cells_is_a_copy(root):
    _twin(root)
    (root / "twin" / "records" / PROTOCOL / "twin" / "A.gray_box.fgsm.linf-0.1.seed0.json").unlink()
    assert _blamed(root, NAME, "twin") == ["twin"]
    _again("gray_box.pgd.linf-0.1", correct=lambda o: 1 - o.correct)(root)
    (rule,) = (rule for rule in rules.ALL if rule.number == 419)
    assert rules.examine(["twin"], root, [rule])["twin"] == []


def test_a_file_that_a_rule_cannot_bear_is_a_finding(root, monkeypatch):
    def crash(case):
        raise TypeError("surprised")

    broken = base.Rule(999, "breaks", crash)
    monkeypatch.setattr(rules, "ALL", (broken,))
    (finding,) = found(root)
    assert "no rule foresaw (TypeError: surprised)" in finding.found


def test_pickles_are_refused_without_loading(root, tmp_path):
    marker = tmp_path / "loaded"

    class Evil:
        def __reduce__(self):
            return (Path(marker).write_text, ("x",))

    _file("plugin/weights.pkl", pickle.dumps(Evil()))(root)
    assert any(finding.number == 107 and "pickle" in finding.found for finding in found(root))
    assert not marker.exists()


# ---------------------------------------------------------------------------------------------- command line and site


def test_the_command_says_what_is_wrong_and_how_many(root, command):
    status, out, err = command("submission", "check", "--root", str(root))
    assert (status, err) == (0, "")
    assert out == f"{NAME}: keeps all {len(rules.ALL)} rules\n"
    _file("plugin/setup.py")(root)
    status, out, err = command("submission", "check", "soft-focus", "--root", str(root))
    assert status == 1
    assert "refused, 1 findings" in out
    assert err.startswith(f"S307 submissions/{NAME}/plugin/setup.py: found ")
    status, out, _ = command("submission", "check", "--list")
    assert out.count("\n") == len(rules.ALL)
    status, _, err = command("submission", "check", "nobody", "--root", str(root))
    assert status == 2 and "no submission is called 'nobody'" in err
    assert "no submission is called" in command("submission", "check", "../..", "--root", str(root))[2]


@pytest.mark.slow
def test_the_site_leaves_out_what_is_refused(root, command, tmp_path):
    _twin(root)
    submitted.edit(root / "twin" / places.FILE, 'title = "Soft focus"', 'title = "Twin"')
    _measure(root, strength=0.3)  # other records than the twin's
    status, out, err = command("site", "build", "--out", str(tmp_path / "site"))
    assert status == 0 and "index.html" in out
    assert "twin is left out: S405" in err and "soft_focus is left out" not in err
    page = (tmp_path / "site" / "index.html").read_text()
    board, told = page.split('class="bounds problems"')
    assert "soft_focus" in board and "twin" not in board
    assert "twin is left out: S405" in told and str(tmp_path) not in told


def test_the_readmes_count_the_rules():
    checkout = Path(__file__).parent.parent
    for name in ("README.md", "submissions/README.md", "CHANGELOG.md"):
        assert f"{len(rules.ALL)} numbered rules" in (checkout / name).read_text()


def test_the_projects_own_submissions_keep_every_rule():
    own = Path(__file__).parent.parent / "submissions"
    kept = rules.examine(places.names(own), own)
    assert {name: [str(finding) for finding in findings] for name, findings in kept.items() if findings} == {}
    assert len(kept) >= 6
