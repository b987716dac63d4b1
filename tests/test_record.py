"""The store: what was saved comes back, and what was torn, edited or moved is named and never trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pydantic import ValidationError

from bench.errors import BenchError
from bench.protocol import AttackSpec, Protocol
from bench.record import ImagesHash, Record, Store, checksum

TINY = Protocol(id="tiny-v1", dataset="digits", n_examples=4, attacks=(AttackSpec("none", "clean"),), linf_radii=(0.1,))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "records")


@pytest.fixture
def clean(make_cell):
    return make_cell({"label": [3, 1, 4, 1], "correct": [1, 0, 0.5, 1], "margin": [2, np.nan, -1, 0.25]})


@pytest.fixture
def attacked(make_cell):
    return make_cell(
        {"label": [3, 1, 4, 1], "correct": [0, 0, 0, 1], "linf": [0.1] * 4}, track="gray_box", attack="pgd",
        norm="linf", eps=0.1, params={"steps": 40, "step_size": 0.01}, loss_curve=(0.1, 2 / 3), key="another key",
    )  # fmt: skip


def names(store):
    return [cell.record.cell for cell in store.cells()]


def same(one, other):
    """Equal records, and arrays equal bit by bit (nan equals nan)."""
    return one.record == other.record and all(
        array.dtype == other.outcomes.arrays()[name].dtype
        and np.array_equal(array, other.outcomes.arrays()[name], equal_nan=array.dtype.kind == "f")
        for name, array in one.outcomes.arrays().items()
    )


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock" and path.is_file()
    }


# ---------------------------------------------------------------------------------------------- sound files


def test_what_was_saved_comes_back(store, clean, attacked):
    path = store.save(clean)
    store.save(attacked)
    assert path == store.root / "tiny-v1" / "identity" / "A.clean.none.seed0.json"
    found = {cell.record.cell: cell for cell in Store(store.root).cells()}
    assert list(found) == ["A.clean.none.seed0", "A.gray_box.pgd.linf-0.1.seed0"]
    assert same(found["A.clean.none.seed0"], clean)
    assert same(found["A.gray_box.pgd.linf-0.1.seed0"], attacked)


def test_a_missing_number_survives(store, clean):
    store.save(clean)
    (cell,) = store.cells()
    assert np.isnan(cell.outcomes.margin).tolist() == [False, True, False, False]


def test_cells_are_found_by_protocol_and_defense(store, make_cell):
    for protocol in ("tiny-v1", "tiny-v1+limit2"):
        for defense in ("identity", "kmeans"):
            store.save(make_cell(protocol=protocol, defense=defense))
    count = lambda *wanted: sum(1 for _ in store.cells(*wanted))  # noqa: E731
    assert (count(), count("tiny-v1"), count(None, "kmeans"), count("tiny-v1+limit2", "kmeans")) == (4, 2, 2, 1)
    assert count("tiny-v2") == 0


def test_an_empty_or_missing_folder_holds_no_cells(store):
    assert list(store.cells()) == []
    assert store.problems == []


def test_the_same_cells_make_the_same_bytes_in_any_order(tmp_path, clean, attacked):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    for cell in (clean, attacked):
        one.save(cell)
    for cell in (attacked, clean, attacked):
        other.save(cell)
    assert len(content(one.root)) == 3
    assert content(one.root) == content(other.root)


def test_no_clock_is_read_into_the_arrays(store, clean):
    store.save(clean)
    with zipfile.ZipFile(store.root / "tiny-v1" / "identity" / "outcomes.npz") as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_cell_of_the_same_name_replaces_the_older_one(store, make_cell):
    store.save(make_cell({"correct": [0, 0, 0, 0]}))
    newer = make_cell({"correct": [1, 1, 1, 0]}, key="newer")
    store.save(newer)
    (cell,) = store.cells()
    assert same(cell, newer)


def test_the_json_is_for_people_too(store, clean):
    text = store.save(clean).read_text()
    assert text.endswith("}\n")
    payload = json.loads(text)
    assert payload["card"]["title"] == "No defense"
    assert list(payload) == sorted(payload)


def test_lasting_leaves_out_what_may_differ_between_honest_runs(make_cell):
    fast, slow = make_cell().record, make_cell().record
    slow = slow.model_copy(update={"run": slow.run.model_copy(update={"attack_seconds": 99.0, "device": "another"})})
    assert fast != slow
    assert fast.lasting() == slow.lasting()
    assert "run" not in fast.lasting()
    assert set(fast.lasting()) | {"run"} == set(Record.model_fields)


def test_the_hash_of_outcomes_covers_every_array(clean):
    hashes = {clean.outcomes.sha256()}
    for name, array in clean.outcomes.arrays().items():
        changed = array.copy()
        changed.flat[-1] = ~changed.flat[-1] if changed.dtype == bool else 7
        hashes.add(dataclasses.replace(clean.outcomes, **{name: changed}).sha256())
    assert len(hashes) == 1 + len(clean.outcomes.arrays())


def test_the_hash_of_images_knows_pixels_places_and_order_and_not_chunks():
    images = np.random.default_rng(0).random((4, 1, 2, 2), dtype=np.float32)
    rows = [0, 2, 3, 7]

    def hashed(rows, images, size):
        state = ImagesHash()
        for start in range(0, len(rows), size):
            state.add(rows[start : start + size], images[start : start + size])
        return state.sha256()

    assert len({hashed(rows, images, size) for size in (1, 2, 3, 4)}) == 1
    by_hand = b"".join(row.to_bytes(8, "little") + image.tobytes() for row, image in zip(rows, images, strict=True))
    assert hashed(rows, images, 4) == hashlib.sha256(by_hand).hexdigest()
    changed = images.copy()
    changed[3, 0, 1, 1] = np.nextafter(changed[3, 0, 1, 1], np.float32(2))
    others = [([0, 2, 3, 6], images), (rows, images[::-1]), (rows, changed), (rows[:3], images[:3])]
    assert len({hashed(*other, 4) for other in others} | {hashed(rows, images, 4)}) == 5


# ---------------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0.9}, {"n_examples": 0}, {"eps": -0.1}, {"draws": 0}, {"norm": "l1"}, {"status": "fine"},
        {"schema_version": 2}, {"forward_rows": -1},
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_refuses(change, clean):
    with pytest.raises(ValidationError):
        Record.model_validate(clean.record.model_dump() | change)


@pytest.mark.parametrize("block", ["card", "run"])
def test_the_schema_refuses_unknown_fields_in_its_blocks(block, clean):
    payload = clean.record.model_dump()
    payload[block]["extra"] = 1
    with pytest.raises(ValidationError, match="extra"):
        Record.model_validate(payload)


# ---------------------------------------------------------------------------------------------- files not to be trusted


def rewrite(path, **changes):
    """Edit a record and mend its checksum, as a forger would."""
    payload = json.loads(path.read_text()) | changes
    payload.pop("checksum")
    path.write_text(json.dumps(payload | {"checksum": checksum(payload)}))


def edit_a_number(path):
    text = path.read_text()
    assert '"n_examples": 4' in text
    path.write_text(text.replace('"n_examples": 4', '"n_examples": 5'))


def tear(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def not_text(path):
    path.write_bytes(b"\xff\xfe\x00")


def a_list(path):
    path.write_text("[1, 2]")


def no_checksum(path):
    path.write_text("{}")


def unknown_field(path):
    rewrite(path, score=0.99)


def more_images(path):
    rewrite(path, n_examples=1000)


def other_arrays(path):
    rewrite(path, outcomes_sha256="0" * 64)


def another_defense(path):
    rewrite(path, defense="kmeans")


def another_attack(path):
    rewrite(path, attack="fgsm")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edit_a_number, "checksum does not match"), (tear, ""), (empty, ""), (not_text, ""), (a_list, ""),
        (no_checksum, "checksum"), (unknown_field, "1 invalid fields"), (more_images, "holds 4 images, expected 1000"),
        (other_arrays, "arrays in outcomes.npz were edited"), (another_defense, "it belongs at"),
        (another_attack, "it belongs at"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_damaged_record_is_named_and_the_others_survive(damage, said, store, clean, attacked):
    path = store.save(attacked)
    store.save(clean)
    damage(path)
    assert names(store) == ["A.clean.none.seed0"]
    assert len(store.problems) == 1
    assert store.problems[0].startswith(f"{path}: ")
    assert said in store.problems[0]
    assert "run the cell again" in store.problems[0]
    assert "\n" not in store.problems[0]


def test_a_damaged_record_is_mended_by_saving_it_again(store, attacked):
    edit_a_number(store.save(attacked))
    store.save(attacked)
    assert names(Store(store.root)) == [attacked.record.cell]


def test_a_record_moved_to_another_defense_is_not_trusted(store, clean, make_cell):
    path = store.save(clean)
    store.save(make_cell(defense="kmeans", classifier="B"))
    moved = path.parent.parent / "kmeans" / path.name
    path.rename(moved)
    assert names(store) == ["B.clean.none.seed0"]
    assert f"it belongs at {path}" in store.problems[0]


def test_a_copied_folder_is_not_a_second_entry(store, clean):
    folder = store.save(clean).parent
    (folder.parent / "copycat").mkdir()
    for path in folder.glob("*.*"):
        (folder.parent / "copycat" / path.name).write_bytes(path.read_bytes())
    assert [cell.record.defense for cell in store.cells()] == ["identity"]


def test_a_record_without_its_arrays_is_not_trusted(store, clean):
    (store.save(clean).parent / "outcomes.npz").unlink()
    assert names(store) == []
    assert "A.clean.none.seed0" in store.problems[0]


def test_edited_arrays_are_not_trusted(store, clean, attacked):
    """Somebody turns every image of the attacked cell right; the clean cell beside it stays sound."""
    for cell in (clean, attacked):
        path = store.save(cell).parent / "outcomes.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays[f"{attacked.record.cell}/correct"] = np.ones(4, np.float32)
    np.savez_compressed(path, **arrays)
    assert names(store) == ["A.clean.none.seed0"]
    assert "arrays in outcomes.npz were edited" in store.problems[0]


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_torn_arrays_void_the_cells_of_their_folder_and_no_others(keep, store, clean, make_cell):
    path = store.save(clean).parent / "outcomes.npz"
    store.save(make_cell(defense="kmeans"))
    path.write_bytes(path.read_bytes()[:keep])
    assert [cell.record.defense for cell in store.cells()] == ["kmeans"]
    assert store.problems[0].startswith(f"{path}: ")
    assert "computed again" in store.problems[0]


def test_no_flipped_byte_in_the_arrays_goes_unnoticed_or_crashes(store, clean):
    """Whatever byte of outcomes.npz changes, the cell comes back whole or it does not come back."""
    path = store.save(clean).parent / "outcomes.npz"
    sound = path.read_bytes()
    refused = 0
    for position in range(0, len(sound), 13):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x55]) + sound[position + 1 :])
        cells = list(store.cells())
        assert all(same(cell, clean) for cell in cells)
        refused += not cells
    assert refused > len(sound) / 13 / 2


def test_after_torn_arrays_new_cells_can_be_saved(store, clean, attacked):
    path = store.save(clean).parent / "outcomes.npz"
    tear(path)
    store.save(attacked)
    assert names(Store(store.root)) == [attacked.record.cell]


# ---------------------------------------------------------------------------------------------- disks and neighbours


def test_threads_that_save_cells_of_one_defense_lose_nothing(store, make_cell):
    cells = [make_cell(seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda cell: Store(store.root).save(cell), cells))
    assert sorted(cell.record.seed for cell in store.cells()) == list(range(12))
    assert store.problems == []


SAVE_THEM = """
import pickle, sys
from bench.record import Store
for cell in pickle.load(sys.stdin.buffer):
    Store(sys.argv[1]).save(cell)
"""


def test_processes_that_save_cells_of_one_defense_lose_nothing(store, make_cell):
    halves = [[make_cell(seed=seed) for seed in range(start, 20, 2)] for start in (0, 1)]
    started = [
        subprocess.Popen([sys.executable, "-c", SAVE_THEM, str(store.root)], stdin=subprocess.PIPE) for _ in halves
    ]
    for process, cells in zip(started, halves, strict=True):
        process.stdin.write(pickle.dumps(cells))
        process.stdin.close()
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert sorted(cell.record.seed for cell in store.cells()) == list(range(20))
    assert store.problems == []


def test_a_reader_beside_a_writer_sees_no_false_problem(store, make_cell, monkeypatch):
    """A cell that is saved while the folder is being read is seen or not, but never called broken."""
    from bench import record

    store.save(make_cell(seed=0))
    read = record._read_arrays
    late = [make_cell(seed=1)]

    def read_while_another_writes(path, problems):
        arrays = read(path, problems)
        if late:
            Store(store.root).save(late.pop())
        return arrays

    reader = Store(store.root)
    monkeypatch.setattr(record, "_read_arrays", read_while_another_writes)
    assert names(reader)[0] == "A.clean.none.seed0"
    assert reader.problems == []


def test_records_that_cannot_be_written_are_one_line(tmp_path, clean):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(BenchError, match=r"cannot write .*taken.*--records") as caught:
        Store(tmp_path / "taken").save(clean)
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_cells_that_were_there(store, clean, attacked, monkeypatch):
    store.save(clean)
    before = content(store.root)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BenchError, match="No space left on device"):
        store.save(attacked)
    assert content(store.root) == before


def test_runs_that_start_at_once_in_one_folder_do_not_stop_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for made in [pool.submit(Store(tmp_path / "records").prepare) for _ in range(400)]:
            made.result()
    assert list((tmp_path / "records").iterdir()) == []
