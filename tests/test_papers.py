"""The papers' own evaluations as protocols: found by name, quirks in their data, ranked never."""

from __future__ import annotations

import inspect

import pytest

from bench import attacks, catalog, protocols
from bench.errors import BenchError
from bench.papers import PROTOCOLS
from bench.protocol import ROUTES, AttackSpec

SPECS = [pytest.param(spec, id=f"{p.id}:{spec.slug}") for p in PROTOCOLS.values() for spec in p.attacks]


def spec_of(name: str, slug: str) -> AttackSpec:
    (found,) = (spec for spec in PROTOCOLS[f"papers-v1-{name}"].attacks if spec.slug == slug)
    return found


def test_they_are_found_like_every_protocol_and_apart_from_the_boards():
    assert set(protocols.known()) == {*protocols.PROTOCOLS, *PROTOCOLS}
    assert not set(protocols.PROTOCOLS) & set(PROTOCOLS)
    chosen = protocols.get("papers-v1-lq-vae-mnist")
    assert chosen is PROTOCOLS["papers-v1-lq-vae-mnist"]
    assert protocols.get("papers-v1-lq-vae-mnist+limit10") == chosen.limited(10)
    with pytest.raises(BenchError, match="did you mean papers-v1-lq-vae-mnist"):
        protocols.get("papers-v1-lqvae-mnist")


@pytest.mark.parametrize("chosen", PROTOCOLS.values(), ids=lambda p: p.id)
def test_every_one_is_consistent_and_never_ranked(chosen):
    assert chosen.id.startswith("papers-v1-") and chosen.id.endswith(chosen.dataset)
    assert not chosen.ranked and not chosen.is_draft
    assert chosen.purpose.endswith("never ranked.")
    assert chosen.attacks[0] == AttackSpec("none", "clean")
    attacked = {spec.eps for spec in chosen.attacks if spec.norm == "linf" and spec.eps is not None}
    assert attacked == set(chosen.linf_radii)
    assert chosen.n_examples == 1000
    for kind in ("cheap", "medium", "search"):
        view = chosen.effort(kind, stochastic=True)
        assert view.attacks == chosen.attacks and view.n_examples == (1000 if kind == "cheap" else 250)


def test_no_two_protocols_share_a_hash_with_those_of_the_boards():
    assert len({p.hash for p in protocols.known().values()}) == len(protocols.known())


@pytest.mark.parametrize("spec", SPECS)
def test_every_attack_that_is_there_takes_its_parameters(spec):
    if spec.attack not in catalog.ATTACKS:
        pytest.skip(f"the attack {spec.attack} is not installed yet")
    own = {name: value for name, value in spec.params if name not in ("labels", "threshold")}  # the harness's
    if spec.eps is not None:
        own["eps"] = spec.eps
    inspect.signature(attacks.get(spec.attack)).bind("logits", "images", "labels", draws="draws", **own)
    assert spec.norm in (catalog.ATTACKS[spec.attack].norms or (None,))
    forward, backward = catalog.ATTACKS[spec.attack].cost(**dict(spec.params))
    assert forward > 0 or spec.attack == "none"
    assert backward >= 0


@pytest.mark.parametrize("spec", SPECS)
def test_tracks_routes_and_sources_go_together(spec):
    assert (spec.track in ("white_box", "latent", "rejection")) == (spec.route in ROUTES)
    assert (spec.track == "transfer") == bool(spec.source)
    assert not spec.cascade


def test_quirks_are_data():
    for eps in (0.001, 0.005, 0.2, 0.3):
        for attack in ("i_fgsm", "mi_fgsm"):
            params = dict(spec_of("vq-vae-mnist", f"gray_box.{attack}.linf-{eps:g}").params)
            assert params["one_gradient"] and params["steps"] == 9
            assert params["step_size"] * 9 == pytest.approx(0.9 * eps)
    unsigned = spec_of("mad-vae-mnist", "gray_box.r_fgsm")
    assert unsigned.eps is None, "its images may leave the ball, so no ball is checked"
    assert dict(unsigned.params) == {"alpha": 0.05, "eps": 0.3, "signed": False}
    assert spec_of("mad-vae-mnist", "gray_box.cw_l2").n_examples == 100
    for spec in PROTOCOLS["papers-v1-defense-gan-mnist"].attacks[1:]:
        assert dict(spec.params)["labels"] == "predicted"


def test_minimum_norm_attacks_have_a_norm_and_no_radius():
    for chosen in PROTOCOLS.values():
        for spec in chosen.attacks:
            if spec.attack in ("deepfool", "cw_l2"):
                assert (spec.norm, spec.eps) == ("l2", None)
                assert spec.slug.count(".") == 1 + bool(spec.source)


def test_the_substitutes_of_lq_vae_cover_every_pair_that_the_slides_print():
    chosen = PROTOCOLS["papers-v1-lq-vae-fmnist"]
    sources = {spec.source for spec in chosen.attacks if spec.attack == "deepfool" and spec.track == "transfer"}
    assert chosen.classifiers == ("A", "B", "C")
    assert sources == {"substitute-A", "substitute-B", "substitute-C"}
