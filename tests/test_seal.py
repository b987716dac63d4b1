"""The seal of a folder of records: what was edited, replaced, added or removed after the run is named."""

from __future__ import annotations

import json

import pytest

from bench import seal
from bench.record import SEAL, Store, checksum
from leaderboard.gather import gather

CELL = "A.gray_box.fgsm.linf-0.1.seed0"


@pytest.fixture
def cells(make_cell):
    spec = {"track": "gray_box", "attack": "fgsm", "norm": "linf", "eps": 0.1}
    return [make_cell(images_sha256="a" * 64), make_cell(**spec, key="another", images_sha256="b" * 64)]


@pytest.fixture
def folder(tmp_path, cells):
    store = Store(tmp_path / "records")
    for cell in cells:
        store.save(cell)
    seal.write(store, "tiny-v1", "identity")
    return store.folder("tiny-v1", "identity")


def replaced(folder, **changes):
    payload = json.loads((folder / f"{CELL}.json").read_text()) | changes
    payload.pop("checksum")
    (folder / f"{CELL}.json").write_text(json.dumps(payload | {"checksum": checksum(payload)}))


def test_a_folder_that_nobody_touched_is_as_it_was_sealed(folder):
    assert list(seal.problems(folder)) == []
    assert sorted(json.loads((folder / SEAL).read_text())["cells"]) == ["A.clean.none.seed0", CELL]
    assert len(list(Store(folder.parent.parent).cells())) == 2, "a seal is no record"
    written = (folder / SEAL).stat().st_mtime_ns
    seal.write(Store(folder.parent.parent), "tiny-v1", "identity")
    assert (folder / SEAL).stat().st_mtime_ns == written


def rename(folder):
    (folder / f"{CELL}.json").rename(folder / "A.other.seed0.json")


def forge_the_chain(folder):
    sealed = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps(sealed | {"chain": "0" * 64}))


CHANGES = {
    f"removed after the run: {CELL}": lambda folder: (folder / f"{CELL}.json").unlink(),
    "added after the run: x": lambda folder: (folder / "x.json").write_text("{}"),
    f"replaced after the run: {CELL}": lambda folder: replaced(folder, error="none of it"),
    "added after the run: A.other.seed0": rename,
    "its chain is not that of the records": forge_the_chain,
    "it cannot be read": lambda folder: (folder / SEAL).write_bytes(b"\xff"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_was_changed_after_the_run_is_named(said, folder):
    CHANGES[said](folder)
    assert said in list(seal.problems(folder))
    assert any(f"{SEAL}: {said}" in line for line in gather([folder.parent.parent]).problems), "the site says it"


def test_what_the_harness_writes_takes_the_seal_off_until_it_is_done(folder, cells):
    store = Store(folder.parent.parent)
    before = seal.chain(folder)
    store.save(cells[0])
    assert not (folder / SEAL).exists() and list(seal.problems(folder)) == [] and seal.chain(folder) == ""
    seal.write(store, "tiny-v1", "identity")
    assert seal.chain(folder) == before != ""


def test_the_chain_is_of_what_two_honest_runs_share(folder, cells):
    before = seal.chain(folder)
    replaced(folder, run=json.loads((folder / f"{CELL}.json").read_text())["run"] | {"attack_seconds": 99.0})
    store = Store(folder.parent.parent)
    seal.write(store, "tiny-v1", "identity")
    assert seal.chain(folder) == before
    chains = {before}
    for part in ("key", "protocol_hash", "images_sha256"):
        replaced(folder, **{part: "other"})
        seal.write(store, "tiny-v1", "identity")
        chains.add(seal.chain(folder))
    assert len(chains) == 4


def test_torn_records_and_empty_folders_are_not_sealed(folder, tmp_path):
    (folder / f"{CELL}.json").write_text("{")
    seal.write(Store(folder.parent.parent), "tiny-v1", "identity")
    assert list(json.loads((folder / SEAL).read_text())["cells"]) == ["A.clean.none.seed0"]
    seal.write(Store(tmp_path / "nothing"), "tiny-v1", "identity")
    assert not (tmp_path / "nothing").exists()
