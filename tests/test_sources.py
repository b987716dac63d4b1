"""What a transfer attack's images are made on, by name; and that a protocol refuses what does not exist."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from bench import sources
from bench.commands import look
from bench.errors import BenchError
from bench.protocol import AttackSpec, Protocol
from bench.sources import Source
from leaderboard.formats import knowledge


@pytest.mark.parametrize(
    ("name", "kind", "what", "is_net", "is_own"),
    [
        ("identity_vae", "defense", "identity_vae", False, False),
        ("classifier-B", "classifier", "B", True, False),
        ("substitute-B_madvae", "substitute", "B_madvae", True, False),
        ("imitation-E", "imitation", "E", True, True),
    ],
)
def test_a_name_says_kind_and_architecture_or_is_a_slug(name, kind, what, is_net, is_own):
    found = sources.parse(name)
    assert found == Source(kind, what)
    assert (found.is_net, found.is_own) == (is_net, is_own)
    spec = AttackSpec("fgsm", "transfer", "linf", 0.3, source=name)
    assert spec.slug == f"transfer.fgsm.from-{name}.linf-0.3"
    assert (spec.origin, spec.imitates_defense, spec.is_shared) == (found, is_own, not is_own)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("classifier-Z", "no classifier is called 'Z'"),
        ("substitut-B", "no kind of source is called 'substitut'; did you mean substitute"),
        ("defense-identity", "no kind of source"),
        ("imitation-", "no classifier is called ''"),
        ("Identity VAE", "is no defense's slug"),
    ],
)
def test_what_does_not_exist_is_refused_when_a_protocol_is_made(name, says):
    with pytest.raises(BenchError, match=says):
        sources.parse(name)
    with pytest.raises(ValueError, match=says):
        Protocol("tiny", "digits", 8, (AttackSpec("fgsm", "transfer", "linf", 0.3, source=name),), (0.3,))


def test_labels_are_predicted_or_true_and_never_the_attack_s_own_argument():
    given = AttackSpec("pgd", "gray_box", "linf", 0.3, (("eot", 4), ("labels", "predicted"), ("steps", 3)))
    assert given.predicts_labels and given.settings == {"steps": 3}
    assert not dataclasses.replace(given, params=()).predicts_labels
    odd = dataclasses.replace(given, params=(("labels", "guessed"),))
    with pytest.raises(ValueError, match="labels are 'guessed'; expected 'predicted'"):
        Protocol("tiny", "digits", 8, (odd,), (0.3,))


def test_words_for_people():
    assert sources.parse("identity_vae").words == "identity vae"
    spec = AttackSpec("fgsm", "transfer", "linf", 0.3, (("labels", "predicted"),), source="imitation-B")
    assert knowledge(spec) == "transfer, made on a substitute of the defense, B"
    line = look._about_spec(spec)
    assert line.startswith(spec.slug)
    assert line.endswith(" labels=predicted, made on a substitute of the defense, B")


def test_a_record_made_on_what_does_not_exist_is_no_record(make_cell):
    assert make_cell(source="substitute-B", source_queries=4800, source_agreement=0.9).record.source_queries == 4800
    with pytest.raises(ValueError, match="no kind of source is called 'thin'"):
        make_cell(source="thin-air")


def test_the_parser_needs_no_torch():
    code = "import bench.sources, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
