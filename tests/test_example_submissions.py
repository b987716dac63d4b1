"""The two entries that show how: a folder with its code (`bit_depth`), and a package of its own (`tv_minimization`),
whose wheel is built, served and installed here as a package index would serve it."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import submitted
import torch

from bench import checks, protocols
from bench.defense import source_hash
from bench.errors import BenchError
from bench.record import Store
from bench.submissions import environment, schema

CHECKOUT = Path(__file__).parent.parent
ROOT = CHECKOUT / "submissions"
PACKAGE = CHECKOUT / "tests" / "packages" / "tv-minimization"
SOURCES = {
    "bit_depth": (ROOT / "bit_depth" / "plugin" / "bit_depth.py", "BitDepth"),
    "tv_minimization": (PACKAGE / "tv_minimization.py", "TVMinimization"),
}


@pytest.fixture(scope="module", params=sorted(SOURCES))
def name(request):
    return request.param


@pytest.fixture
def modules(monkeypatch):
    """The two modules, by name."""
    found = {}
    for name, (path, _) in SOURCES.items():
        spec = importlib.util.spec_from_file_location(name, path)
        found[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found[name])
        spec.loader.exec_module(found[name])
    return found


def test_an_entry_has_whole_records_of_both_quick_protocols(name):  # that it keeps the rules: test_submission_rules.py
    store = Store(ROOT / name / "records")
    for protocol_id in ("digits-v1-quick", "mnist-v1-quick"):
        cells = list(store.cells(protocol_id, name))
        assert len(cells) > 30 and {cell.record.status for cell in cells} == {"ok"}


def test_the_code_that_is_here_is_the_code_that_was_measured(name, modules):
    cls = getattr(modules[name], SOURCES[name][1])
    assert {cell.record.code for cell in Store(ROOT / name / "records").cells()} == {source_hash(cls)}
    assert [finding.problem for finding in checks.run(cls) if finding.problem] == []


@pytest.mark.parametrize("bits", [1, 3])
def test_bit_depth_leaves_so_many_values_and_its_stand_in_goes_through_them(bits, modules):
    defense = modules["bit_depth"].BitDepth(torch.nn.Identity(), bits=bits)
    images = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28).requires_grad_()
    levels = defense.purify(images.detach(), None).unique()
    assert torch.allclose(levels, torch.linspace(0, 1, 2**bits))
    exact = levels.reshape(1, 1, 1, -1)
    assert torch.allclose(defense.approximate(exact, None), exact, atol=1e-6)
    (slope,) = torch.autograd.grad(defense.approximate(images, None).sum(), images)
    assert 0.09 < float(slope.min()) < 0.11 and 1.89 < float(slope.max()) < 1.91
    assert abs(float(images.detach().flatten()[slope.argmax()] * (2**bits - 1)) % 1 - 0.5) < 0.02, "where it jumps"


def test_differences_and_divergence_are_adjoint(modules):
    tv, generator = modules["tv_minimization"], torch.Generator().manual_seed(0)
    image, down, right = (torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    below, beside = tv.differences(image)
    assert math.isclose(
        float((below * down + beside * right).sum()), -float((image * tv.divergence(down, right)).sum())
    )


def test_total_variation_is_minimised_and_what_was_dropped_is_filled_in(modules, digits):
    tv, generator = modules["tv_minimization"], torch.Generator().manual_seed(0)
    images = digits.test.images[:16]
    kept = (torch.rand(images.shape, generator=generator) >= 0.5).float()
    found, best = (tv.minimize(images, kept, 0.03, steps) for steps in (40, 2000))
    reached, least = (tv.objective(z, images, kept, 0.03).mean() for z in (found, best))
    assert least < reached < 1.03 * least
    nearby = (best + 0.01 * torch.randn(images.shape, generator=generator) for _ in range(20))
    assert all(bool(tv.objective(z, images, kept, 0.03).mean() > least) for z in nearby)
    changed = torch.where(kept > 0, images, 1 - images)
    assert torch.equal(tv.minimize(changed, kept, 0.03, 40), found), "what was dropped is not looked at"
    assert float((best - images).abs().mean()) < 0.1
    even = torch.full((1, 1, 28, 28), 0.7)
    assert torch.allclose(tv.minimize(even, kept[:1], 0.03, 400), even, atol=1e-2)


# ---------------------------------------------------------------------------------------------- from a wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with the package's wheel, which pip takes for all that there is."""
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return wheels


@pytest.mark.slow
def test_a_package_from_outside_is_installed_from_its_wheel_and_measured(index, trained_home, command, monkeypatch):
    monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, submitted.TINY.id: submitted.TINY})
    status, out, err = command(
        "submission", "run", "tv-minimization", "-p", submitted.PROTOCOL, "--limit", "2", "--verify", "0",
        "--root", str(ROOT),
    )  # fmt: skip
    assert status == 0, (out, err)
    assert "4 cells in" in out and "0 failed" in out and "in a process of its own" in out
    assert "the gradient is the slope of the answers" in out
    assert "tv_minimization" not in sys.modules, "the parent never imports the plugin"
    records = list(Store(Path("results")).cells())
    measured = {cell.record.code for cell in Store(ROOT / "tv_minimization" / "records").cells()}
    assert {cell.record.code for cell in records} == measured, "the wheel holds the code that was measured"
    (page,) = Path("site-preview", "defense").glob(f"{submitted.PROTOCOL}*limit2/tv_minimization.html")
    assert f"purifybench submission run tv_minimization --protocol {submitted.PROTOCOL} --limit 2" in page.read_text()


def test_a_package_that_is_on_no_index_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    described = schema.read(ROOT / "tv_minimization" / "submission.toml")
    with pytest.raises(BenchError, match=r"tv_minimization does not install: .*purifybench-tv-minimization"):
        environment.prepare(described, ROOT / "tv_minimization")
