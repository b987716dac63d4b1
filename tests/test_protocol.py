"""Protocols are data: frozen, hashed, honest about what they are; and every name in them exists and fits."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from models import shown, taught

from bench import attacks, catalog, classifiers, cost, data, protocols
from bench.boards import PROTOCOLS
from bench.draws import ImageDraws
from bench.errors import BenchError
from bench.protocol import ROUTES, THRESHOLDS, TRACKS, AttackSpec, Effort, Protocol, Thresholds

SPECS = [pytest.param(spec, id=f"{p.id}:{spec.slug}") for p in PROTOCOLS.values() for spec in p.every_attack]

TINY = Protocol(
    id="tiny-v1",
    dataset="digits",
    n_examples=100,
    attacks=(
        AttackSpec("none", "clean"),
        AttackSpec("fgsm", "gray_box", "linf", 0.1),
        AttackSpec("pgd", "gray_box", "linf", 0.1, (("steps", 3),)),
        AttackSpec("pgd", "gray_box", "linf", 0.2, (("steps", 3),)),
    ),
    linf_radii=(0.1, 0.2),
    ranked=True,
    purpose="A test.",
)


def fresh_python(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("chosen", PROTOCOLS.values(), ids=lambda p: p.id)
def test_slugs_are_unique_within_a_protocol(chosen):
    slugs = [spec.slug for spec in chosen.attacks]
    assert len(set(slugs)) == len(slugs)


def test_a_slug_says_track_attack_and_radius():
    assert AttackSpec("pgd", "gray_box", "linf", 0.3).slug == "gray_box.pgd.linf-0.3"
    assert AttackSpec("none", "clean").slug == "clean.none"


def test_protocols_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.attacks[0].eps = 1.0
    with pytest.raises(TypeError):
        PROTOCOLS["tiny-v1"] = TINY


CHANGED = {
    "id": "tiny-v2", "dataset": "mnist", "n_examples": 99, "attacks": TINY.attacks[:-1], "linf_radii": (0.1,),
    "l2_radii": (0.5,), "classifiers": ("B",), "selection_draws": 11, "scoring_draws": 11, "seed": 1, "ranked": False,
    "efforts": (Effort("cheap", True, 50, TINY.attacks[:1]),), "thresholds": Thresholds(gap=0.02),
    "headline_radii": (0.1,),
}  # fmt: skip


def test_the_hash_covers_every_field_but_the_purpose():
    assert set(CHANGED) | {"purpose", "whole"} == {field.name for field in dataclasses.fields(Protocol)}
    hashes = {dataclasses.replace(TINY, **{name: value}).hash for name, value in CHANGED.items()}
    assert len(hashes | {TINY.hash}) == len(CHANGED) + 1
    assert dataclasses.replace(TINY, purpose="Other prose.").hash == TINY.hash


@pytest.mark.parametrize(
    "change",
    [
        {"attack": "fgsm"},
        {"track": "clean"},
        {"norm": "l2"},
        {"eps": 0.11},
        {"params": (("steps", 4),)},
        {"route": "bpda"},
        {"source": "identity"},
        {"n_examples": 10},
        {"cascade": True},
        {"variant": "cold"},
    ],
    ids=str,
)
def test_the_hash_covers_every_field_of_every_attack(change):
    altered = (*TINY.attacks[:-1], dataclasses.replace(TINY.attacks[-1], **change))
    assert dataclasses.replace(TINY, attacks=altered).hash != TINY.hash


def test_hashes_are_the_same_in_a_fresh_interpreter():
    code = "from bench.boards import PROTOCOLS; print(*(p.id + '=' + p.hash for p in PROTOCOLS.values()))"
    assert fresh_python(code).split() == [f"{p.id}={p.hash}" for p in PROTOCOLS.values()]


def test_two_cells_of_one_name_and_odd_radii_are_refused():
    twice = (*TINY.attacks, dataclasses.replace(TINY.attacks[-1], params=(("steps", 40),)))
    with pytest.raises(ValueError, match="two cells called gray_box.pgd.linf-0.2"):
        dataclasses.replace(TINY, attacks=twice)
    for radii in ((0.2, 0.1), (0.0, 0.1), (0.1, 0.1)):
        with pytest.raises(ValueError, match="must grow from above 0"):
            dataclasses.replace(TINY, linf_radii=radii)


RANDOM = Effort("cheap", True, 50, TINY.attacks[:2], selection_draws=3, scoring_draws=4)
SEARCH = Effort("search", True, 25, TINY.attacks[:3])


def test_each_kind_of_defense_meets_its_own_effort_under_the_same_id_and_hash():
    whole = dataclasses.replace(TINY, efforts=(RANDOM, SEARCH))
    cheap = whole.effort("cheap", stochastic=False)
    assert (cheap.attacks, cheap.n_examples) == (TINY.attacks, 100)
    random = whole.effort("cheap", stochastic=True)
    assert (random.attacks, random.n_examples, random.looks(stochastic=True)) == (RANDOM.attacks, 50, 7)
    for stochastic in (True, False):  # one list for both
        assert whole.effort("search", stochastic=stochastic).attacks == SEARCH.attacks
    assert {view.hash for view in (cheap, random, whole.effort("search", stochastic=True))} == {whole.hash}
    assert {view.id for view in (cheap, random)} == {whole.id}
    assert cheap.effort("cheap", stochastic=False) == cheap
    assert whole.limited(30).effort("cheap", stochastic=True).n_examples == 30
    assert whole.limited(30).effort("search", stochastic=True).n_examples == 25


def test_every_attack_holds_each_slug_of_every_effort_once():
    extra = AttackSpec("square", "query", "linf", 0.1)
    whole = dataclasses.replace(TINY, efforts=(dataclasses.replace(RANDOM, attacks=(TINY.attacks[0], extra)),))
    assert whole.every_attack == (*TINY.attacks, extra)


def test_budget_classes_are_by_units():
    assert [cost.budget(units) for units in (0, 20, 20.1, 1000, 1e9)] == [
        "cheap",
        "cheap",
        "medium",
        "medium",
        "search",
    ]


def test_no_two_protocols_share_a_hash():
    assert len({p.hash for p in PROTOCOLS.values()}) == len(PROTOCOLS)


def test_a_limited_protocol_is_another_one_and_never_ranked():
    limited = TINY.limited(32)
    assert (limited.id, limited.n_examples, limited.ranked) == ("tiny-v1+limit32", 32, False)
    assert limited.hash != TINY.hash
    assert limited.attacks == TINY.attacks
    assert limited.purpose.startswith("A test. Limited to 32 images")


@pytest.mark.parametrize("n", [100, 1000])
def test_a_limit_that_limits_nothing_is_the_same_protocol(n):
    assert TINY.limited(n) is TINY


@pytest.mark.parametrize("n", [0, -3])
def test_a_limit_below_one_is_refused(n):
    with pytest.raises(BenchError, match=f"--limit must be at least 1, got {n}"):
        TINY.limited(n)


def test_select_without_wishes_gives_all_in_order():
    assert tuple(TINY.select()) == TINY.attacks


def test_select_keeps_tracks_and_attacks_that_are_both_wanted():
    assert tuple(TINY.select(("clean",))) == TINY.attacks[:1]
    assert tuple(TINY.select((), ("pgd",))) == TINY.attacks[2:]
    assert tuple(TINY.select(("gray_box",), ("pgd", "none"))) == TINY.attacks[2:]


def test_select_refuses_what_the_protocol_does_not_hold_at_once():
    with pytest.raises(BenchError, match="no track of tiny-v1 is called 'grey_box'; did you mean gray_box"):
        TINY.select(("grey_box",))
    with pytest.raises(BenchError, match="no attack of tiny-v1 is called 'pdg'; did you mean pgd"):
        TINY.select((), ("pdg",))
    with pytest.raises(BenchError, match="no attack of tiny-v1 is called 'uniform_noise'"):
        TINY.select((), ("uniform_noise",))  # exists, but not here


def test_tracks_come_in_the_order_of_the_field_and_only_those_that_occur():
    assert dataclasses.replace(TINY, attacks=TINY.attacks[::-1]).tracks == ("clean", "gray_box")
    assert dataclasses.replace(TINY, attacks=TINY.attacks[1:]).tracks == ("gray_box",)


def test_a_draft_stays_a_draft_when_it_is_limited():
    draft = dataclasses.replace(TINY, id="tiny-v1-draft")
    assert draft.is_draft
    assert draft.limited(3).is_draft
    assert not TINY.is_draft
    assert not TINY.limited(3).is_draft


def test_get_suggests_the_nearest_protocol():
    assert protocols.get("digits-v1") is PROTOCOLS["digits-v1"]
    with pytest.raises(BenchError, match=r"no protocol is called 'minst-v1'; did you mean mnist-v1"):
        protocols.get("minst-v1")


@pytest.mark.parametrize("chosen", PROTOCOLS.values(), ids=lambda p: p.id)
def test_every_protocol_is_consistent(chosen):
    assert PROTOCOLS[chosen.id] is chosen
    assert chosen.dataset in catalog.DATASETS
    assert set(chosen.classifiers) <= set(catalog.CLASSIFIERS)
    assert chosen.purpose.endswith(".")
    assert "clean.none" in [spec.slug for spec in chosen.attacks], "robustness needs the clean cell"
    for radii in (chosen.linf_radii, chosen.l2_radii):
        assert list(radii) == sorted(set(radii))
        assert all(radius > 0 for radius in radii)
    for view in (chosen, *(chosen.effort(one.budget, stochastic=one.stochastic) for one in chosen.efforts)):
        attacked = {
            spec.eps
            for spec in view.attacks
            if spec.norm == "linf" and spec.track != "clean" and spec.variant != "wide"
        }
        assert attacked == set(chosen.linf_radii)
        order = [spec.eps for spec in view.attacks if spec.cascade and spec.norm == "linf"]
        assert order == sorted(order), "a cascade goes from the smallest ball to the largest"


@pytest.mark.parametrize("chosen", PROTOCOLS.values(), ids=lambda p: p.id)
def test_quick_and_digits_protocols_are_never_ranked(chosen):
    assert not (chosen.ranked and ("quick" in chosen.id or chosen.dataset == "digits"))


@pytest.mark.parametrize("dataset", catalog.DATASETS)
def test_every_data_set_has_a_protocol_that_its_test_split_can_fill(dataset):
    images = {"digits": 500, "mnist": 10_000, "fmnist": 10_000}[dataset]
    sizes = [p.n_examples for p in PROTOCOLS.values() if p.dataset == dataset]
    assert sizes
    assert max(sizes) <= images


# ---------------------------------------------------------------------------------------------- the catalog


@pytest.mark.parametrize("spec", SPECS)
def test_every_attack_of_every_protocol_exists_and_takes_its_parameters(spec):
    info = catalog.ATTACKS[spec.attack]
    assert spec.track in TRACKS
    assert (spec.norm is None) == (spec.eps is None) or (info.minimum_norm and spec.eps is None)
    assert spec.norm in (info.norms or (None,))
    radius = {} if spec.eps is None else {"eps": spec.eps}
    own, learning = attacks.split_settings(spec.attack, {**radius, **spec.settings})
    given = {"learned": "learned"} if info.learns else {}
    inspect.signature(attacks.get(spec.attack)).bind("logits", "images", "labels", draws="draws", **own, **given)
    assert set(learning) <= {"eps", *spec.settings}
    assert (spec.track in ("white_box", "latent", "rejection")) == (spec.route in ROUTES)
    assert catalog.ATTACKS[spec.attack].past_detector or spec.track != "rejection"
    assert spec.track in ("rejection", "query") or not catalog.ATTACKS[spec.attack].past_detector
    assert (spec.track == "latent") == catalog.ATTACKS[spec.attack].through_codes
    assert spec.threshold in THRESHOLDS
    assert (spec.track == "transfer") == bool(spec.source)
    assert not spec.cascade or spec.track == "white_box"
    forward, backward = info.cost(**dict(spec.params))
    classes = 10 if info.minimum_norm else 1 + info.past_detector  # DeepFool goes backward for each class
    assert forward * classes >= backward >= 0


def test_a_latent_protocol_compares_codes_with_pixels_in_the_same_balls_with_as_many_steps():
    for chosen in (one for one in PROTOCOLS.values() if "-latent-" in one.id):
        for view in (chosen, *(chosen.effort(one.budget, stochastic=one.stochastic) for one in chosen.efforts)):
            by_attack = {
                name: {(s.norm, s.eps, s.route, s.params) for s in view.attacks if s.attack == name}
                for name in ("apgd_margin", "latent_ball")
            }
            assert by_attack["latent_ball"] == by_attack["apgd_margin"] != set()
            without = view.effort("cheap", stochastic=False, doors=())
            assert not [spec for spec in without.attacks if spec.track == "latent"]


def linear(images):
    return images.flatten(1)[:, :3]


@pytest.mark.parametrize("name", catalog.ATTACKS)
def test_every_attack_of_the_catalog_imports_and_runs(name):
    images, labels = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 1])
    radius = {"eps": 0.1} if catalog.ATTACKS[name].norms else {}
    given = radius | taught(name, linear, images, labels, **radius)
    result = attacks.get(name)(shown(name, linear, (1, 3, 3)), images, labels, draws=ImageDraws(labels), **given)
    assert result.images.shape == images.shape
    assert not radius or (result.images - images).abs().max() <= 0.1 + 1e-6


def test_an_unknown_attack_suggests_the_nearest():
    with pytest.raises(BenchError, match="no attack is called 'fgms'; did you mean fgsm"):
        attacks.get("fgms")


@pytest.mark.parametrize("name", catalog.CLASSIFIERS)
def test_every_classifier_of_the_catalog_builds(name):
    assert classifiers.build(name)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", catalog.DATASETS)
def test_every_data_set_of_the_catalog_loads_or_says_that_it_is_missing(name, tmp_path):
    if name == "digits":
        assert data.load(name).name == "digits"
    else:
        with pytest.raises(BenchError, match=f"^{name}: .* is missing, looked in"):
            data.load(name, tmp_path)


def test_what_names_and_records_need_is_free_of_torch():
    code = "import bench.protocol, bench.record, bench.statistics, bench.catalog, bench.plugins, bench.report, sys"
    assert fresh_python(code + "; bench.plugins.installed(); print('torch' in sys.modules)") == "False"


def test_a_limited_id_names_the_limited_protocol():
    assert protocols.get("digits-v1+limit20") == protocols.get("digits-v1").limited(20)
    for wrong in ("digits-v1+limitx", "digits-v9+limit20"):
        with pytest.raises(BenchError, match="no protocol is called"):
            protocols.get(wrong)


# ---------------------------------------------------------------------------------------------- published

PUBLISHED = {
    "digits-v1": "ba1c5c2b4ac1e3ac3d4d2437573ff4ff8b1b24a7945ac9c5a71056c8a9904536",
    "digits-v1-quick": "03fbb8df5a7479c7f0c98ac9d43c037f6baf2afdeec0f129eb879f416f2e1592",
    "mnist-v1": "e7d811bde8a2ecc249694442fbe3035ca58e210307bc8b4d2ffee967fa0a6abe",
    "mnist-v1-quick": "bad860980ffc483769591bc5e0065be3fd63894bf74a33e49c1dada9d342f0c1",
    "fmnist-v1": "e5ad9256fee9cddcbe3eba7af03dcce2cb1456b1debe1068701047857053d70c",
    "fmnist-v1-quick": "393437399ef29150c5d34a06e703944476ba55b6c4e7f01a2c0f70431283ae4e",
    "papers-v1-gm-vae-mnist": "6b62dc5337624210ee5bad0f5da83c547a1868c6ddbea095624ea94fe6b39462",
    "papers-v1-lq-vae-mnist": "adb9c9a473e04ea5292a7d6e8f6d98ed3273fc9f321075db41bcb767115dbf63",
    "papers-v1-lq-vae-fmnist": "bd97cd584ff275168cc5398a6f7762ab589e678994a835d17e2976583e176362",
    "papers-v1-mad-vae-mnist": "47219b881fd3b0b37a24a7702847ab83693d1ecf0ba74a051ee2c3287cfa2734",
    "papers-v1-mad-vae-overpowered-mnist": "ae07ae01b2d0bda3b8b87d73b123e0c0be1aec4e801063e236bdc3f9d07e0d3c",
    "papers-v1-mad-vae-black-box-mnist": "dcf2261c3de2824057fce6a87ad3bfa7c3a426ad250edafa7ee21fdc7e549538",
    "papers-v1-vq-vae-mnist": "3afae73b3ef1525d1d898652357fcc1961a02c78fb11ed7a85e91eb36dc54b8c",
    "papers-v1-defense-gan-mnist": "25f813c66d69ab49a917d47f16bdd135dd1768be070d65d37bf5211b719b381a",
    "papers-v1-defense-gan-fmnist": "bcdc1d3c847ffcc7012b0a4987de070f561514ae7929083b52940c5177b8e0b4",
}


def test_a_published_protocol_never_changes():
    """A new hash here means a new number for everyone: make a new version beside the old one instead."""
    published = {name: one.hash for name, one in protocols.known().items() if not one.is_draft}
    assert published == PUBLISHED
