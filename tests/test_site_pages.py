"""The pages beside the board: sentences, what broke a defense, comparisons, attacks, archives, counted by hand."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import json
import re
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import fake_records
import fake_timing
import numpy as np
import pytest
from sites import DEEP, QUICK, TINY, deep_cells, pages, row_of, text_of, tiny_cells

from bench import boards, protocols, statistics, timing_record, verdicts
from bench.catalog import ATTACKS
from bench.evidence import Verdict
from bench.protocol import Protocol
from bench.record import Cell, Store
from bench.submissions import places
from leaderboard import (
    archive,
    attack_page,
    breakers,
    commands,
    compare,
    defense_page,
    latency,
    protocol_history,
    sentences,
    tables,
)  # fmt: skip
from leaderboard.build import build
from leaderboard.paper_tables import paper_tables
from leaderboard.watch import Watcher

ALL, NONE, HALF = [1] * 10, [0] * 10, [1] * 5 + [0] * 5


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small protocols are the only ones, and made-up numbers get no verdicts."""
    monkeypatch.setattr(protocols, "PROTOCOLS", {TINY.id: TINY, DEEP.id: DEEP})
    monkeypatch.setattr(verdicts, "verdicts", lambda *_: ())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "records")


def rows(protocol: Protocol, store: Store) -> dict[str, tables.Row]:
    return {row.defense: row for row in tables.board(protocol.id, store.cells(protocol.id)).rows}


def test_two_sentences_say_what_blind_attackers_leave_and_what_the_worst_does(store: Store) -> None:
    tiny_cells(store, "identity", [ALL, NONE, NONE])
    tiny_cells(store, "good", [ALL, ALL, HALF])
    tiny_cells(store, "same", [ALL, NONE, NONE])
    tiny_cells(store, "worse", [NONE, NONE, NONE])
    found = {name: " ".join(sentences.verdict_in_two(row)) for name, row in rows(TINY, store).items()}
    low, high = statistics.wilson(5, 10)
    half = f"50.0\u202f% of the images right ({100 * low:.1f}–{100 * high:.1f}, n\u00a0=\u00a010) at ε\u00a0=\u00a00.2"
    # identity: 0.25; good: (1 + 1) / 2 * 0.1 + (1 + 0.5) / 2 * 0.1 over 0.2 = 0.875
    assert found["good"].startswith(
        f"Attackers who do not know the defense leave {half}. The worst attack on each image"
    )
    assert "it gains 0.625 of mean robust radius (difference +0." in found["good"]
    assert "it cannot be told from no defense: +0.000" in found["same"]
    assert "it is worse than no defense, by 0.250" in found["worse"]
    assert found["identity"].startswith("This is the classifier without a defense.")


def test_images_made_on_the_defense_itself_are_no_transfer(store: Store) -> None:
    deep_cells(store)
    deep_cells(store, "identity_vae")
    found = rows(DEEP, store)
    assert found["kmeans"].tracks["transfer"][1].value == pytest.approx(0.8)
    assert found["identity_vae"].tracks["transfer"] == (None, None), "they are white-box images of the Identity VAE"


def test_a_board_comes_to_a_few_sentences_made_from_its_records(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = (Verdict("jitter", "warning", "Why.", {}, ()),)
    monkeypatch.setattr(verdicts, "verdicts", lambda cells, *_: warned if cells[0].record.defense == "doubted" else ())
    assert sentences.summary(tables.board(DEEP.id, ())) is None
    for name in ("identity", "kmeans", "doubted"):
        deep_cells(store, name)
    hardened = fake_records.card("hard", kind="hardened")
    for cell in list(store.cells()):
        if cell.record.defense == "kmeans":
            store.save(Cell(cell.record.model_copy(update={"defense": "hard", "card": hardened}), cell.outcomes))
    said = sentences.summary(tables.board(DEEP.id, store.cells()))
    assert said is not None
    best, gap, hard, doubted = said.sentences
    # the cascade leaves images 4 and 5 of ten at 0.2; FGSM alone 2 to 8
    assert best.startswith("Of 1 purifiers the best keeps 20.0\u202f% of the images against attackers who know of it")
    assert gap == "Attackers who do not know the defense make Kmeans look like 70.0\u202f%; it is 20.0\u202f%."
    assert hard == "Hard, a hardened classifier and no purifier, keeps 20.0\u202f%."
    assert doubted == "20.0\u202f% for Doubted is an upper bound, unverified."
    assert best.split(".")[0] in text_of(build([store], tmp_path / "site").read_text())


def test_where_no_attacker_knows_the_defense_a_board_comes_to_nothing(store: Store) -> None:
    tiny_cells(store, "kmeans", [ALL, ALL, HALF])
    assert sentences.summary(tables.board(TINY.id, store.cells())) is None


def test_every_draft_says_what_became_of_it_and_every_published_protocol_that_it_stays() -> None:
    for one in boards.PROTOCOLS.values():
        steps = protocol_history.history(one)
        assert steps and (len(steps) == 1) >= (not one.is_draft), one.id
        assert [step.day for step in steps] == sorted(step.day for step in steps)
    assert protocol_history.history(QUICK.limited(3)) == ()


def test_times_on_a_board_are_of_one_machine_and_of_the_same_settings(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, NONE, NONE], settings={})
    tiny_cells(store, "good", [ALL, ALL, HALF], settings={"width": 4})
    board = tables.board(TINY.id, store.cells())
    good = next(row for row in board.rows if row.defense == "good")
    other = fake_timing.run(fake_timing.times("good", settings={"width": 8}))
    one = fake_timing.run(fake_timing.times("good", settings={"width": 4}, seconds=0.25))
    assert latency.times([other], board) is None, "another net was timed"
    found = latency.times([other, one], board)
    assert found is not None and found.timing is one and found.of(good).median == 0.25
    timing_record.save(one, store.root)
    html = build([store], tmp_path / "site").read_text()
    assert 'data-order="0.25" data-export="250"' in html and "250 250–250" in row_of(html, "good")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "an upper bound, unverified (jitter)"), ({"budget": "search"}, "an upper bound, from a reduced budget")],
)
def test_the_verdict_says_why_it_may_be_too_good(
    changes: dict[str, Any], said: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = (Verdict("jitter", "warning", "Why.", {}, ()),)
    monkeypatch.setattr(verdicts, "verdicts", lambda *_: () if changes else warned)
    tiny_cells(store, "kmeans", [ALL, ALL, HALF], **changes)
    assert sentences.verdict_in_two(rows(TINY, store)["kmeans"])[-1].endswith(f"; even that is {said}.")


def test_a_row_without_numbers_has_no_sentence(store: Store) -> None:
    fake_records.save(store, TINY, ["torn"], skip=["gray_box.pgd.linf-0.2"])
    assert sentences.verdict_in_two(rows(TINY, store)["torn"]) == ()


def test_every_broken_image_is_put_down_to_the_first_attack(store: Store, tmp_path: Path) -> None:
    deep_cells(store)
    found = breakers.breakers(rows(DEEP, store)["kmeans"])
    assert found is not None
    # at .1: FGSM 0, the cascade 2; at .2: FGSM 0 and 1, transfer 5, cold 2 and 3, the cascade 7 and 8
    assert {(one.kind.attack, one.kind.track, one.kind.route): one.broken for one in found.attacks} == {
        ("fgsm", "gray_box", ""): (1, 2), ("apgd_margin", "transfer", ""): (0, 1),
        ("apgd_margin", "white_box", "autograd"): (0, 2), ("apgd_margin", "white_box", "bpda"): (1, 2),
    }  # fmt: skip
    assert (found.total, found.right, found.most) == ((2, 7), 9, (1, 2))
    detail = text_of(pages(build([store], tmp_path / "site").parent)["defense/deep-v1/kmeans.html"])
    assert "What broke it first" in detail and "7 of 9" in detail


def test_the_toll_of_an_attack_is_summed_over_the_defenses_of_a_board(store: Store, tmp_path: Path) -> None:
    deep_cells(store, "kmeans")
    deep_cells(store, "other")
    deep_cells(store, "identity")  # not a defense
    found = breakers.toll([tables.board(DEEP.id, store.cells())])
    assert found is not None
    assert (found.eps, dict(found.broken), found.total) == (0.2, {"fgsm": 4, "apgd_margin": 10}, 14)
    shown = text_of((build([store], tmp_path / "site").parent / "attacks.html").read_text())
    assert "of the 14 images" in shown
    assert breakers.toll([]) is None


def test_two_defenses_are_compared_image_by_image(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    tiny_cells(store, "strong", [ALL, ALL, ALL])
    tiny_cells(store, "other", [ALL, HALF[::-1], NONE])
    board = tables.board(TINY.id, store.cells())
    found = {one.row.defense: one for one in compare.comparisons(board)}
    strong, bare, other = (found[name].row for name in ("strong", "identity", "other"))
    against = found["strong"].against(bare)
    assert against is not None and strong.radius is not None and bare.radius is not None
    assert (against.n, against.mrr.value) == (10, pytest.approx(0.5))  # 1 minus (0.75 + 0.25) / 2
    assert (against.mrr.low, against.mrr.high) == pytest.approx(statistics.bootstrap(strong.radius - bare.radius))
    assert [gap.value for gap in against.accuracy] == pytest.approx([0, 0.5, 1])
    assert (against.mrr.word, against.counts) == ("better", (compare.Counts(5, 5, 0, 0), compare.Counts(0, 10, 0, 0)))
    back = found["identity"].against(strong)
    assert back is not None and (back.mrr.word, back.mrr.p) == ("worse", pytest.approx(against.mrr.p))
    tied = found["other"].against(bare)
    assert tied is not None and (tied.mrr.value, tied.mrr.p, tied.mrr.word) == (0, 1, "tied")
    assert tied.counts[0] == compare.Counts(0, 5, 5, 0) and other is found["other"].row
    out = build([store], tmp_path / "site").parent
    assert "▲ +0.500" in pages(out)["compare.html"]
    page = text_of(pages(out)["compare/tiny-v1/strong.html"])
    assert "▲ better" in page and "+100.0" in page and "10, 0" in page


def test_the_test_of_a_comparison_is_that_of_the_ranks() -> None:
    first = np.random.default_rng(0).random((2, 50))
    gap = first[0] - first[1]
    means = statistics.resampled_means(first)
    assert statistics.resampled_means(gap) == pytest.approx(means[:, 0] - means[:, 1])
    p = statistics.p_value(float(gap.mean()), means[:, 0] - means[:, 1])
    better = statistics.ranks({"a": first[0], "b": first[1]}, level=p * 1.01)
    assert sorted(better.values()) == [1, 2]
    assert statistics.ranks({"a": first[0], "b": first[1]}, level=p * 0.99) == {"a": 1, "b": 1}


def test_defenses_on_other_classifier_weights_are_not_compared(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    tiny_cells(store, "kmeans", [ALL, ALL, ALL], classifier_weights="another")
    assert all(one.others == () for one in compare.comparisons(tables.board(TINY.id, store.cells())))
    assert "No board holds two defenses" in text_of(
        (build([store], tmp_path / "site").parent / "compare.html").read_text()
    )


def test_an_attack_page_counts_over_defenses(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    tiny_cells(store, "strong", [ALL, ALL, ALL])
    tiny_cells(store, "third", [ALL, ALL, HALF])
    deep_cells(store)
    boards = [tables.board(name, store.cells(name)) for name in (TINY.id, DEEP.id)]
    found = {page.name: page for page in attack_page.attack_pages(boards)}
    assert list(found) == ["none", "fgsm", "pgd", "apgd_margin"]  # the catalogue's order
    (pgd,) = found["pgd"].boards
    small, large = pgd.settings
    assert small.left and large.left
    assert (small.spec.eps, [one.value for one in small.left], small.defenses) == (0.1, [0.5, 1, 1], 3)
    assert ([one.value for one in large.left], large.broke, large.linf) == ([0, 0.5, 1], None, pytest.approx(0.2))
    assert small.images == (10, 10) and large.left[1].low < 0.5 < large.left[1].high and large.left[1].n == 10
    assert (large.forward, large.backward) == (4, 3)
    (kind,) = pgd.kinds
    assert kind.eps == 0.2 and [one.left[0].value for one in pgd.rows if one.left[0]] == [1, 0.5, 0]
    (deep,) = found["apgd_margin"].boards
    assert [setting.broke for setting in deep.settings if setting.broke] == [(1, 8), (2, 4)]
    assert {(kind.track, kind.route) for kind in deep.kinds} == {("transfer", ""), ("white_box", "autograd")}
    out = build([store], tmp_path / "site").parent
    assert "broke 2 of 4" in text_of(pages(out)["attack/apgd_margin.html"])
    assert 'href="attack/pgd.html"' in pages(out)["attacks.html"]
    shown = text_of(pages(out)["attack/pgd.html"])
    assert "3 10 50.0\u202f% 23.7–76.3" in shown and " 0.0\u202f%" not in shown  # defenses, images, median
    assert "Parameters, unless a protocol sets others" in shown and "random_start True" in shown


def test_the_defaults_of_every_attack_are_those_of_its_function() -> None:
    read = {name: attack_page.defaults(info) for name, info in ATTACKS.items()}
    assert read["apgd_margin"]["loss"] == "margin" and not attack_page.defaults(None)
    for name, info in ATTACKS.items():
        module, _, function = info.function.partition(":")
        signature = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        known = {key: one.default for key, one in signature.items() if one.kind is one.KEYWORD_ONLY}
        known = {key: value for key, value in known.items() if value not in (None, inspect.Parameter.empty)}
        assert {**known, **info.fixed}.keys() == read[name].keys(), name
        plain = {key: value for key, value in read[name].items() if key not in ("variance",)}
        assert plain == {key: {**known, **info.fixed}[key] for key in plain}, name
    assert read["towards_class"]["variance"] == "1 / 3000"


def test_an_archive_is_a_folder_of_the_same_records(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    tiny_cells(store, "kmeans", [ALL, ALL, NONE])
    out = build([store], tmp_path / "site").parent
    with zipfile.ZipFile(out / "records/all.zip") as file:
        file.extractall(tmp_path / "taken")
    again = Store(tmp_path / "taken")
    assert [cell.record for cell in again.cells()] == [cell.record for cell in store.cells()]
    assert again.problems == []
    first, second = (sorted(path.rglob("*.json")) for path in (store.root, again.root))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with zipfile.ZipFile(out / "records/tiny-v1/kmeans.zip") as file:
        assert {name.split("/")[1] for name in file.namelist()} == {"kmeans"} and len(file.namelist()) == 4


def test_an_archive_does_not_depend_on_the_order(store: Store) -> None:
    tiny_cells(store, "kmeans", [ALL, HALF, NONE])
    cells = list(store.cells())
    packed = archive.zipped([archive.folder(cells)])
    assert packed == archive.zipped([archive.folder(cells[::-1])])
    assert zipfile.ZipFile(io.BytesIO(packed)).testzip() is None


def test_commands_make_a_cell_again() -> None:
    def record(**changes: Any) -> Any:
        spec = changes.pop("spec", TINY.attacks[1])
        return fake_records.cell(TINY.limited(5), "my_defense", spec, recipe="fast", **changes).record

    whole = "purifybench run my_defense --protocol tiny-v1 --limit 5 --recipe fast"
    assert commands.of_row(record(), 1, "A") == whole
    assert commands.of_cell(record(), 3, "A") == f"{whole} --seeds 3 --tracks gray_box --attacks pgd"
    assert commands.of_row(record(classifier="B"), 1, "A") == f"{whole} --classifier B"
    assert commands.of_cell(record(spec=DEEP.attacks[-1]), 1, "A") == whole  # a cascade needs what came before it
    hostile = fake_records.cell(TINY, "x; rm -rf ~", TINY.attacks[1], recipe="$(reboot)").record
    assert commands.of_row(hostile, 1, "A") == "purifybench run 'x; rm -rf ~' --protocol tiny-v1 --recipe '$(reboot)'"
    assert commands.of_row(record(), 1, "A", submitted=True) == (
        "purifybench submission run my_defense --protocol tiny-v1 --limit 5"
    )
    assert commands.of_cell(hostile, 1, "A", submitted=True) == (
        f"purifybench submission verify 'x; rm -rf ~' --protocol tiny-v1 --cell {hostile.cell}"
    )


def test_the_commands_of_a_submission_are_those_that_install_it(tmp_path: Path) -> None:
    committed = (Path(__file__).parent.parent / "submissions" / "kmeans" / places.FILE).read_text()
    assert "included = true" in committed
    folder = tmp_path / "kmeans"

    def shown(install: str) -> str:
        store = Store(folder / "records")
        tiny_cells(store, "kmeans", [ALL, HALF, NONE])
        (folder / places.FILE).write_text(committed.replace("included = true", install))
        out = build([store], tmp_path / "site").parent
        return (out / "defense" / "tiny-v1" / "kmeans.html").read_text()

    assert "purifybench run kmeans" in shown("included = true")
    foreign = shown('folder = "plugin"')
    assert "purifybench submission run kmeans --protocol tiny-v1" in foreign
    assert "purifybench submission verify kmeans" in foreign and "purifybench run" not in text_of(foreign)


def test_a_defense_names_the_tables_that_print_it() -> None:
    found = defense_page.printed(paper_tables([]), "mad_vae_vanilla")
    assert {one.defense for one in found} == {"MAD-VAE vanilla (Defense-VAE)"}
    assert sum(one.numbers for one in found) == 13 and not any(one.measured for one in found)
    assert defense_page.printed(paper_tables([]), "kmeans") == []


def test_a_board_is_exported_with_the_same_numbers_thrice(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    tiny_cells(store, "kmeans", [ALL, ALL, HALF], card=fake_records.card("kmeans", title="a_b & 50% \\x{"))
    out = build([store], tmp_path / "site").parent
    data = json.loads((out / "board/tiny-v1.json").read_text())
    assert (data["protocol"], data["hash"]) == (TINY.id, TINY.hash)
    first = data["rows"][0]
    assert (first["defense"], first["rank"], first["robust_accuracy_at_0.2"]) == ("kmeans", 1, 0.5)
    lines = list(csv.DictReader(io.StringIO((out / "board/tiny-v1.csv").read_text())))
    assert list(lines[0]) == list(first)
    assert float(lines[1]["mean_robust_radius"]) == data["rows"][1]["mean_robust_radius"] == 0.5
    table = (out / "board/tiny-v1.tex").read_text()
    assert r"a\_b \& 50\% \textbackslash{}x\{ & 100.0 & 100.0 & 50.0 & 0.875 [" in table
    assert rf"No defense & 100.0 & 50.0 & $\leq${100 * statistics.wilson(0, 10)[1]:.1f} & 0.500 [" in table


def test_a_random_defense_is_also_counted_over_its_draws_and_no_other_is(store: Store, tmp_path: Path) -> None:
    """Two seeds, whose counts are averaged: at .1 two and four images are right on all five draws."""
    clean, never = [1.0] * 9 + [0.8], [0.0] * 10
    first, second = [1.0] * 2 + [0.6] * 5 + [0.4] * 3, [1.0] * 4 + [0.4] * 6
    card = fake_records.card("noisy", stochastic=True)
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    for seed, attacked in enumerate((first, second)):
        tiny_cells(store, "noisy", [clean, attacked, never], card=card, draws=5, seed=seed)  # type: ignore[list-item]
    out = build([store], tmp_path / "site").parent
    found = {row["defense"]: row for row in json.loads((out / "board/tiny-v1.json").read_text())["rows"]}
    row = found["noisy"]
    assert row["scoring_draws"] == 5 and row["robust_accuracy_at_0.1"] == pytest.approx(0.63)
    assert (row["any_of_k_clean_accuracy"], row["majority_of_k_clean_accuracy"]) == (0.9, 1)
    assert (row["any_of_k_accuracy_at_0.1"], row["majority_of_k_accuracy_at_0.1"]) == (0.3, 0.55)
    low, high = statistics.bootstrap(np.array([1.0] * 2 + [0.5] * 2 + [0.0] * 6))
    ends = row["any_of_k_accuracy_at_0.1_low"], row["any_of_k_accuracy_at_0.1_high"]
    assert ends == pytest.approx((low, high), abs=1e-6)
    assert found["identity"]["scoring_draws"] == 1
    assert not any(value for name, value in found["identity"].items() if "_of_k_" in name)
    page = text_of(pages(out)["defense/tiny-v1/noisy.html"]).replace("\u202f", " ")
    assert "fresh draws of the defense" in page and "majority-of-5 10 100.0 %" in page
    ends = [f"{100 * end:.1f}" for end in (*statistics.wilson(9, 10), low, high)]
    assert "any-of-5 10 90.0 % {}–{} 30.0 % {}–{}".format(*ends) in page
    assert "any-of-" not in text_of(pages(out)["defense/tiny-v1/identity.html"])


def test_what_is_not_known_is_empty_in_the_exports(store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["torn"], skip=["gray_box.pgd.linf-0.2"])
    out = build([store], tmp_path / "site").parent
    (row,) = json.loads((out / "board/tiny-v1.json").read_text())["rows"]
    assert (row["rank"], row["mean_robust_radius"], row["state"]) == (None, None, "incomplete")
    assert "torn" not in (out / "board/tiny-v1.tex").read_text().lower()


def test_citations_cannot_be_broken_out_of(store: Store, tmp_path: Path) -> None:
    card = fake_records.card("kmeans", title="}, note={evil", paper="https://arxiv.org/abs/1001.00001")
    tiny_cells(store, "kmeans", [ALL, ALL, ALL], card=card)
    text = (build([store], tmp_path / "site").parent / "purifybench.bib").read_text()
    assert text.count("@misc{") == 2 and TINY.hash[:16] in text and "eprint = {1001.00001}" in text
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}") and "note={evil" not in plain
    assert "title = {The paper of the defense {" in text and "neither the paper's title nor its authors" in text


def test_the_dispute_page_links_the_project_where_the_package_names_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cells(store, "kmeans", [ALL, ALL, ALL])
    for named, said in (
        (["Issues, https://example.org/issues"], '<a href="https://example.org/issues"'),
        (["Source, javascript:alert(1)"], "the repository that your copy of PurifyBench came from"),
        (None, "the repository that your copy of PurifyBench came from"),
    ):
        about = Message()
        for one in named or ():
            about["Project-URL"] = one
        monkeypatch.setattr(metadata, "metadata", lambda _, about=about: about)
        html = pages(build([store], tmp_path / "site").parent)["dispute.html"]
        assert said in html and "javascript:" not in html


def test_the_site_opens_with_the_first_board_that_has_filled_up(store: Store, tmp_path: Path) -> None:
    fake_records.save(store, TINY, ["identity", "kmeans", "identity_vae"])
    opened = []
    for protocol, name in ((DEEP, "identity"), (DEEP, "kmeans"), (TINY, "trained")):
        fake_records.save(store, protocol, [name])
        page = build([store], tmp_path / protocol.id / name).read_text()
        opened += re.findall(r'<span class="name">([^<]+)</span>', page)
    assert opened[:2] == [TINY.id, DEEP.id], "one row beside three is too few to open with, two are not"
    assert opened[2:] == [TINY.id], "four ranks are enough, whatever else there is"


def test_every_protocol_has_a_page_with_its_data(store: Store, tmp_path: Path) -> None:
    tiny_cells(store, "kmeans", [ALL, ALL, ALL])
    out = build([store], tmp_path / "site").parent
    for protocol in (TINY, DEEP):  # DEEP has no records
        data = json.loads((out / f"protocol/{protocol.id}.json").read_text())
        assert data["hash"] == protocol.hash and len(data["attacks"]) == len(protocol.attacks)
        assert protocol.hash in (out / f"protocol/{protocol.id}.html").read_text()
    assert "none yet" in text_of((out / "protocols.html").read_text())


def test_the_warnings_page_names_whom_a_rule_concerns(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = (Verdict("jitter", "warning", "Why.", {}, ()), Verdict("jitter", "warning", "Again.", {}, ()))
    monkeypatch.setattr(verdicts, "verdicts", lambda cells, *_: warned if cells[0].record.defense == "bad" else ())
    for name in ("identity", "bad"):
        tiny_cells(store, name, [ALL, ALL, ALL])
    page = (build([store], tmp_path / "site").parent / "warnings.html").read_text()
    assert page.count("Today:") == 1 and page.count('href="defense/tiny-v1/bad.html"') == 1


def test_a_watched_site_is_built_when_records_change(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    watcher = Watcher([store.root], tmp_path / "site", said.append)
    assert not watcher.look() and said[-1].startswith("not built: there are no records")
    assert not watcher.look() and len(said) == 1  # said once
    tiny_cells(store, "identity", [ALL, HALF, NONE])
    assert watcher.look() and said[-1] == "built from 4 files"
    assert not watcher.look()
    tiny_cells(store, "kmeans", [ALL, ALL, NONE])
    assert watcher.look() and (tmp_path / "site/defense/tiny-v1/kmeans.html").exists()
    (tmp_path / "site/.purifybench-site.json").write_text("{")
    (store.root / "tiny-v1/kmeans/A.clean.none.seed0.json").unlink()
    assert not watcher.look() and "not made by PurifyBench" in said[-1]
