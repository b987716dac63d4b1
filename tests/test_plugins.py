"""Plugins: found by name without an import, loaded one at a time, and a broken one stops nobody else."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from bench import plugins
from bench.defense import Defense
from bench.errors import BenchError


@pytest.fixture
def register(monkeypatch):
    """Replaces what is installed by (name, value, package) triples."""

    def replace(*triples):
        points = []
        for name, value, package in triples:
            point = EntryPoint(name, value, plugins.GROUP)
            vars(point)["dist"] = SimpleNamespace(name=package)
            points.append(point)

        def entry_points(*, group):
            assert group == "purifybench.defenses"
            return points

        monkeypatch.setattr(plugins, "entry_points", entry_points)

    return replace


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that can be imported for the length of a test; returns its name."""
    made = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in made:
        sys.modules.pop(name, None)


GOOD = """
from bench.defense import Defense

class Good(Defense):
    title, paper, year = "Good", "https://example.org", 2024

    def purify(self, images, generator):
        return images
"""


def test_our_own_defenses_are_registered_like_anyones():
    found = plugins.installed()
    assert {"identity", "kmeans"} <= set(found)
    assert found["identity"].value == "defenses.identity:Identity"
    assert found["identity"].dist.name == "purifybench"
    assert issubclass(plugins.load("identity"), Defense)


def test_every_registered_name_is_a_slug_and_its_class_loads():
    assert all(plugins.SLUG.fullmatch(name) for name in plugins.installed())
    classes, broken = plugins.load_all()
    assert broken == {}
    assert classes.keys() == plugins.installed().keys()


def test_names_are_sorted_and_nothing_is_imported_to_know_them(register, module):
    name = module("explodes", "raise AssertionError('imported')")
    register(("zeta", f"{name}:Zeta", "p"), ("alpha", f"{name}:Alpha", "p"))
    assert list(plugins.installed()) == ["alpha", "zeta"]
    assert name not in sys.modules


def test_two_packages_with_one_name_are_refused_and_both_are_named(register):
    register(("mine", "one:Mine", "first-package"), ("mine", "two:Mine", "second-package"))
    with pytest.raises(BenchError, match="two installed packages register the defense 'mine'") as caught:
        plugins.installed()
    assert "first-package (one:Mine) and second-package (two:Mine)" in str(caught.value)
    assert "uninstall one or rename" in str(caught.value)


def test_the_same_class_registered_twice_is_one_defense(register):
    register(("mine", "one:Mine", "package"), ("mine", "one:Mine", "package"))
    assert list(plugins.installed()) == ["mine"]


def test_a_class_is_loaded_by_its_name(register, module):
    register(("my_good_one", f"{module('good_module', GOOD)}:Good", "p"))
    assert plugins.load("my_good_one").__name__ == "Good"


def test_a_dash_reads_as_an_underscore(register, module):
    register(("my_good_one", f"{module('good_module', GOOD)}:Good", "p"))
    assert plugins.load("my-good-one") is plugins.load("my_good_one")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(BenchError, match=r"no defense is called 'identty'; did you mean .*identity.*list defenses"):
        plugins.load("identty")


@pytest.mark.parametrize("name", ["My_Defense", "x", "2fast", "my-defense", "trailing space ", "a" * 41])
def test_a_name_that_is_no_slug_is_refused_with_the_package_to_blame(name, register):
    register((name, "defenses.identity:Identity", "their-package"))
    with pytest.raises(BenchError, match=r"their-package: entry point .* is no slug; names match \[a-z\]"):
        plugins.load(name)


FAILURES = {
    "a missing package": ("import surely_not_installed", "ModuleNotFoundError: No module named 'surely_not_installed'"),
    "a mistake": ("1 / 0", "ZeroDivisionError: division by zero"),
    "a typing error": ("def broken(:", "SyntaxError"),
    "a missing class": ("", "AttributeError"),
    "a script": ("import sys; sys.exit('usage: ...')", "SystemExit: usage: ..."),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_import_that_fails_gives_the_reason_and_the_others_load(failure, register, module):
    text, reason = FAILURES[failure]
    good, bad = module("good_module", GOOD), module("bad_module", text)
    register(("broken", f"{bad}:Broken", "their-package"), ("sound", f"{good}:Good", "p"))
    with pytest.raises(BenchError, match="the defense 'broken' of their-package does not import") as caught:
        plugins.load("broken")
    assert reason in str(caught.value)
    classes, broken = plugins.load_all()
    assert list(classes) == ["sound"]
    assert list(broken) == ["broken"]
    assert reason in broken["broken"]


@pytest.mark.parametrize("text", ["Thing = 3", "class Thing: pass", "def Thing(classifier): pass"])
def test_what_is_not_a_defense_is_refused(text, register, module):
    register(("thing", f"{module('thing_module', text)}:Thing", "their-package"))
    with pytest.raises(BenchError, match="expected a subclass of bench.defense.Defense") as caught:
        plugins.load("thing")
    assert "thing_module:Thing of their-package" in str(caught.value)


def test_an_entry_point_of_no_package_is_still_named():
    assert plugins._owner(EntryPoint("x", "y:Z", plugins.GROUP)) == "an unknown package"
