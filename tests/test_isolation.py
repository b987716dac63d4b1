"""A defense in a child process: the same answers and gradients as in this one, and nobody else is harmed."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import hostile
import pytest
import torch

from bench import campaign, checks, classifiers, draws, planning, protocols, subjects, threat, training
from bench.defense import settings as defense_settings
from bench.defense import source_hash
from bench.errors import BenchError
from bench.facts import facts
from bench.isolation import Limits, box, isolated, wire
from bench.isolation.channel import ChildError
from bench.isolation.wire import Message, WireError
from bench.progress import Progress
from bench.record import Store
from defenses.identity_vae import SampledIdentityVAE

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
LIMITS = Limits(call_seconds=20, memory_mb=2500, threads=64, failures=100)
SHAPE = (1, 28, 28)
QUICK = {"width": 8, "epochs": 1, "minimum_steps": 2, "batch_size": 64}
BOXED = pytest.mark.skipif("--mount" not in box.namespaces(), reason="this system lets nobody make namespaces")


@pytest.fixture(scope="module")
def classifier():
    with training.global_seed(0):
        return classifiers.build("A", SHAPE).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def hostile_class():
    cls = isolated("hostile", "hostile:Hostile", path=[HERE], limits=LIMITS)
    yield cls
    cls.channel.close()


@pytest.fixture(scope="module")
def sampled():
    cls = isolated("sampled_identity_vae", "defenses.identity_vae:SampledIdentityVAE", limits=LIMITS)
    yield cls
    cls.channel.close()


@pytest.fixture(scope="module")
def tells():
    cls = isolated("tells", "hostile:Tells", path=[HERE], limits=LIMITS)
    yield cls
    cls.channel.close()


@pytest.fixture(scope="module")
def hurries():
    cls = isolated("hurries", "hostile:Hurries", path=[HERE], limits=LIMITS)
    yield cls
    cls.channel.close()


def images(n=4):
    return checks.sixteen_digits()[:n]


def purify(defense, batch=None, **kept):
    with torch.no_grad():
        return defense.purify(images() if batch is None else batch, draws.generator("cpu", "test"))


# ---------------------------------------------------------------------------------------------- the same as in process


def test_the_parent_never_imports_the_plugin_and_knows_what_it_declares(sampled):
    assert (sampled.title, sampled.stochastic, sampled.kind) == (SampledIdentityVAE.title, True, "purifier")
    assert dict(sampled.recipes) == {name: dict(recipe) for name, recipe in SampledIdentityVAE.recipes.items()}
    assert source_hash(sampled) == source_hash(SampledIdentityVAE)
    assert "bench.isolation" in sampled.__module__


def test_answers_weights_and_gradients_are_those_of_the_same_class_in_process(sampled, classifier):
    settings = defense_settings(SampledIdentityVAE, None, SHAPE)[1]
    assert defense_settings(sampled, None, SHAPE)[1] == settings
    built = []
    for cls in (SampledIdentityVAE, sampled):
        with training.global_seed(5):
            built.append(cls(classifier, **settings).eval())
    here, there = built
    assert training.weights_hash(here) == training.weights_hash(there)
    for route in ("autograd", "bpda"):
        found = []
        for defense in built:
            attacked = images().requires_grad_()
            target = threat.white_box(defense, route, eot=2, seed_parts=("x",))
            logits = target(attacked)
            found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), attacked)))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert found[0][1].abs().max() > 0
    first, second = draws.generator("cpu", "a"), draws.generator("cpu", "a")
    assert torch.equal(here.purify(images(), first), there.purify(images(), second))
    assert torch.equal(first.get_state(), second.get_state())
    assert torch.equal(here.encode(images()), there.encode(images()))


def test_a_training_in_the_child_gives_the_weights_of_a_training_here(sampled, classifier, digits):
    few = subjects._own_copy(digits)
    few = type(few)(few.name, few.train[:128], few.validation[:32], few.test, few.class_names, few.split)
    quick = defense_settings(SampledIdentityVAE, None, SHAPE)[1] | QUICK
    hashes, said = [], []

    class Heard(Progress):
        def task(self, label, total, done=0):
            said.append(label)
            return super().task(label, total, done)

    for cls in (SampledIdentityVAE, sampled):
        with training.global_seed(5):
            defense = cls(classifier, **quick)
        untrained = training.weights_hash(defense)
        defense.fit(few, draws.generator("cpu", "fit"), Heard())
        hashes.append(training.weights_hash(defense))
        assert hashes[-1] != untrained
    assert hashes[0] == hashes[1]
    assert said[0] == said[1] and len(said) == 2


def test_a_submission_is_not_proved_on_less_than_what_is_measured(hostile_class):
    assert hostile.Hostile.brief and not hostile_class.brief


def test_the_contract_is_proved_through_the_seam(hostile_class):
    assert [finding.problem for finding in checks.run(hostile_class) if finding.problem] == []


def test_graphs_that_nobody_needs_are_let_go(hostile_class, classifier):
    defense = hostile_class(classifier)
    for _ in range(3):
        attacked = images().requires_grad_()
        out = defense.logits(attacked, draws.generator("cpu", "x"))
        first = torch.autograd.grad(out.sum(), attacked, retain_graph=True)
        assert torch.equal(first[0], torch.autograd.grad(out.sum(), attacked)[0])
    del out
    gc.collect()
    assert len(defense.channel.dropped) >= 1
    purify(defense)
    assert defense.channel.dropped == []


def test_a_value_without_a_gradient_has_none_here(hostile_class, classifier):
    defense = hostile_class(classifier, act="detach")
    attacked = images().requires_grad_()
    assert not defense.purify(attacked, draws.generator("cpu", "x")).requires_grad


def test_facts_are_those_of_the_same_class_here_from_a_process_that_ends_with_them(tells, classifier):
    labels, correct = torch.arange(16) % 3, (torch.arange(16) % 2).float()
    told = []
    for cls in (hostile.Tells, tells):
        defense = cls(classifier)
        defense.load_state_dict({"weight": torch.full((1,), 0.5)})
        told.append(facts(defense, images(16), images(16) * 0.5, labels, correct, Progress()))
        told.append(facts(defense, images(16), images(16) * 0.5, labels, correct, Progress()))
    hostile.ASKED.clear()
    of_codes = {"silhouette", "codes_moved", "codes_astray"}
    assert set(told[0]) == {*of_codes, "moved", "right", "drawn", "asked"} and told[0]["moved"] > 0
    assert told[0] == told[2] == told[3], "what the child heard is not known to the next one"
    assert told[1]["asked"] == 2


@pytest.mark.parametrize(("act", "said"), [("text", "TypeError: a fact is a number"), ("os._exit", "with status 3")])
def test_facts_that_are_none_are_left_out_and_harm_no_cell(act, said, tells, classifier):
    defense, heard = tells(classifier, act=act), []
    before = purify(tells(classifier))
    listening = Progress()
    listening.say = heard.append
    found = facts(defense, images(16), images(16), torch.arange(16) % 3, torch.ones(16), listening)
    assert set(found) == {"silhouette", "codes_moved", "codes_astray"} and len(heard) == 1 and said in heard[0]
    assert torch.equal(purify(tells(classifier)), before) and tells.channel.failures == 0


def test_a_hurried_form_answers_and_draws_codes_as_in_process(hurries, classifier):
    here, there = hostile.Hurries(classifier).eval(), hurries(classifier).eval()
    for defense in (here, there):
        defense.load_state_dict({"weight": torch.full((1,), 0.95)})
    found = []
    for defense in (here, there):
        attacked, target = images().requires_grad_(), threat.white_box(defense, "autograd", eot=1, seed_parts=())
        logits = target.hurried(attacked)
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), attacked), target(images())))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][2])
    codes = [defense.start_codes(images(), draws.generator("cpu", "x")) for defense in (here, there)]
    assert torch.equal(*codes) and torch.equal(here.decode(codes[0]), there.decode(codes[1]))
    assert torch.equal(purify(there.hurried()), purify(here.hurried()))


def test_the_contract_of_a_hurry_is_proved_through_the_seam(hurries):
    checks.check_hurried(hurries, images(16))
    checks.check_start_codes(hurries, images(16))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("raise", "RuntimeError: no time"), ("os._exit", "ended itself with status 3"),
        ("number", "hurried returned int, expected a Defense"), ("other classifier", "brought another classifier"),
    ],
)  # fmt: skip
def test_a_hurry_that_is_none_is_an_error_of_the_child(act, says, hurries, classifier):
    defense, other = hurries(classifier, act=act), hurries(classifier)
    other.load_state_dict({"weight": torch.full((1,), 0.95)})
    quick, before = other.hurried(), purify(other.hurried())
    with pytest.raises(ChildError, match=says):
        defense.hurried()
    assert torch.equal(purify(quick), before), "made again where the child has ended, with the weights of its whole"


# ---------------------------------------------------------------------------------------------- the gallery

ENDINGS = {
    "segfault": "was killed by signal 11",
    "memory": "used more than 2,500 MB of memory and was ended",
    "fork": "(ran more than 64 threads and processes|used more than 2,500 MB of memory) and was ended",
    "print": r"ended itself with status 5; it printed last:  \[31mbefore the end",
    "forge": "sent 2,305,843,009,213,693,952 bytes, at most 16,777,216 were expected",
}


@pytest.mark.parametrize("act", ENDINGS)
def test_what_ends_the_child_is_an_error_and_the_next_call_has_a_new_child(act, hostile_class, classifier):
    calm = hostile_class(classifier)
    before = purify(calm)
    with pytest.raises(ChildError, match=f"the process of hostile {ENDINGS[act]}"):
        purify(hostile_class(classifier, act=act))
    assert torch.equal(purify(calm), before)


def test_a_child_that_hangs_is_ended_with_all_that_it_started(hostile_class, classifier, monkeypatch):
    calm = hostile_class(classifier)
    calm.load_state_dict({"weight": torch.full((1,), 0.5)})
    process = hostile_class.channel._process
    monkeypatch.setattr(hostile_class.channel, "limits", Limits(call_seconds=2, failures=100))
    hanging = hostile_class(classifier, act="hang")
    with pytest.raises(ChildError, match="gave no answer within 2 s and was ended"):
        purify(hanging)
    assert process.poll() is not None and box.usage(process.pid).processes == ()
    monkeypatch.setattr(hostile_class.channel, "limits", LIMITS)
    assert torch.equal(purify(calm), images() * 0.5), "the new child has the weights of the old one"


def test_many_answers_that_each_come_in_time_end_with_the_time_of_their_cell(hostile_class, classifier, monkeypatch):
    calm, slow = hostile_class(classifier), hostile_class(classifier, act="slow", detail="0.3")
    monkeypatch.setattr(hostile_class.channel, "limits", Limits(cell_seconds=2, failures=100))
    purify(slow)
    generation, failures, answers = hostile_class.channel.generation, hostile_class.channel.failures, 0
    with hostile_class.channel.one_cell():
        with pytest.raises(ChildError, match="the process of hostile took more than 2 s over one cell and was ended"):
            for _ in range(8):
                purify(slow)
                answers += 1
        assert 1 <= answers < 7
        with pytest.raises(ChildError, match="took more than 2 s over one cell"):
            purify(calm)
    assert hostile_class.channel.failures == failures + 1
    with hostile_class.channel.one_cell():
        assert torch.equal(purify(calm), images()), "the next cell has time of its own"
    assert hostile_class.channel.generation == generation + 1
    for _ in range(8):  # outside any cell only each answer has a limit
        purify(slow)


FAULTS = {
    "raise": "ZeroDivisionError: division by zero",
    "sys.exit": "SystemExit: enough",
    "no tensor": "TypeError: purify returned str, expected a tensor",
    "write": "wrote to its input images",
}


@pytest.mark.parametrize("act", FAULTS)
def test_what_the_child_does_wrong_is_an_error_of_that_call_alone(act, hostile_class, classifier):
    generation = hostile_class.channel.generation
    with pytest.raises((ChildError, ValueError), match=FAULTS[act]):
        purify(hostile_class(classifier, act=act))
    purify(hostile_class(classifier))
    assert hostile_class.channel.generation == generation


@pytest.mark.parametrize("act", ["shape", "type", "NaN", "range", "global numbers", "batch"])
def test_wrong_answers_are_found_by_the_contract_that_is_proved_here(act, hostile_class, classifier):
    spoiled = type(hostile_class)("spoiled", (hostile_class,), {})

    def __init__(self, classifier):
        hostile_class.__init__(self, classifier, act=act)

    spoiled.__init__ = __init__
    broken = {finding.check for finding in checks.run(spoiled) if finding.problem}
    expected = {"global numbers": "same_seed_same_output", "batch": "rows_are_independent"}
    assert expected.get(act, "images_come_back") in broken


def test_an_answer_far_larger_than_the_question_is_refused(hostile_class, classifier):
    with pytest.raises(ChildError, match=r"sent .* bytes, at most .* were expected"):
        purify(hostile_class(classifier, act="huge"))


def test_settings_threads_and_memory_of_this_process_are_untouched(hostile_class, classifier):
    purify(hostile_class(classifier))  # a child runs, and so does the thread that watches it
    before = torch.get_default_dtype(), torch.is_grad_enabled(), threading.active_count(), torch.get_rng_state()
    for act in ("settings", "thread", "global numbers"):
        purify(hostile_class(classifier, act=act))
    after = torch.get_default_dtype(), torch.is_grad_enabled(), threading.active_count(), torch.get_rng_state()
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    assert torch.equal(purify(hostile_class(classifier)), images())


def attempt(hostile_class, classifier, act, detail=""):
    with torch.no_grad():
        return bool(purify(hostile_class(classifier, act=act, detail=detail)).min() == 1)


@BOXED
def test_the_network_is_out_of_reach(hostile_class, classifier):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert attempt(hostile_class, classifier, "network", f"127.0.0.1:{server.getsockname()[1]}")


@BOXED
def test_files_are_read_only_and_the_data_is_not_to_be_found(hostile_class, classifier, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    assert attempt(hostile_class, classifier, "write a file", str(victim)) and victim.read_text() == "mine"
    assert attempt(hostile_class, classifier, "write a file", str(HERE / "new_file.py"))
    assert not attempt(hostile_class, classifier, "write a file", "own.txt"), "its own folder is its own"
    assert not attempt(hostile_class, classifier, "write a file", "/dev/null"), "devices, so also GPUs, can be used"


@BOXED
def test_test_images_are_hidden_from_the_child(tmp_path, classifier, monkeypatch):
    chunks = Path(os.environ["PURIFYBENCH_HOME"]) / "chunks"
    chunks.mkdir(parents=True)
    (chunks / "images.npz").write_text("test images")
    cls = isolated("hostile", "hostile:Hostile", path=[HERE], limits=LIMITS)
    assert attempt(cls, classifier, "data", str(chunks))
    cls.channel.close()


@BOXED
def test_secrets_processes_and_capabilities_stay_outside(hostile_class, classifier, monkeypatch):
    monkeypatch.setenv("A_SECRET", "x")
    assert attempt(hostile_class, classifier, "secret", "A_SECRET")
    assert attempt(hostile_class, classifier, "capabilities")
    assert attempt(hostile_class, classifier, "processes", str(os.getpid()))


@BOXED
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's child has a number to lose")
def test_the_child_of_root_is_another_user(hostile_class, classifier, tmp_path):
    assert box.hindrance(hostile_class.channel.trees) == ""
    private = tmp_path / "private"
    private.write_text("root's")
    private.chmod(0o600)
    assert attempt(hostile_class, classifier, "private file", str(private))
    assert not attempt(hostile_class, classifier, "private file", str(HERE / "hostile.py"))
    assert attempt(hostile_class, classifier, "user", str(2 * LIMITS.threads))


@BOXED
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's child has a number to lose")
def test_code_that_only_root_may_read_runs_with_root_s_number_and_it_is_said(classifier, tmp_path):
    (tmp_path / "plugin.py").write_text((HERE / "hostile.py").read_text())
    tmp_path.chmod(0o700)
    cls = isolated("hostile", "plugin:Hostile", path=[tmp_path], limits=LIMITS)
    assert not attempt(cls, classifier, "user", str(2 * LIMITS.threads))
    assert attempt(cls, classifier, "capabilities")
    assert f"root's user number NOT taken away ({tmp_path} is private)" in box.describe(cls.channel.trees)
    cls.channel.close()


@BOXED
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's child has a number to lose")
def test_where_temporary_files_are_root_s_alone_it_keeps_the_number_and_it_is_said(classifier, tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cls = isolated("hostile", "hostile:Hostile", path=[HERE], limits=LIMITS)
    assert not attempt(cls, classifier, "user", str(2 * LIMITS.threads))
    assert "root's user number NOT taken away" in box.describe(cls.channel.trees)
    cls.channel.close()


def test_a_child_that_keeps_ending_is_given_up(classifier):
    limits = Limits(failures=1)
    cls = isolated("hostile", "hostile:Hostile", path=[HERE], limits=limits)
    with pytest.raises(ChildError, match="status 3"):
        cls(classifier, act="exit when built")
    with pytest.raises(ChildError, match="not started again after 1 ends; the last: .*status 3"):
        cls(classifier)


def test_a_child_does_not_outlive_its_parent_even_if_it_hangs(hostile_class, classifier):
    hanging = hostile_class(classifier, act="hang")
    channel, generator = hostile_class.channel, draws.generator("cpu", "x")
    process = channel._process
    header = {"op": "call", "id": hanging._number, "door": "purify", "call": 1, "grad": False, "seed": 1}
    wire.send(channel._socket, Message({**header, "device": "cpu"}, [generator.get_state(), images()]))
    channel._socket.close()
    process.wait(timeout=60)
    channel.close()


def test_what_cannot_be_imported_is_one_line():
    with pytest.raises(BenchError, match="does not start in its own process: ModuleNotFoundError"):
        isolated("nothing", "surely_not_there:X")
    with pytest.raises(BenchError, match="expected a subclass of bench.defense.Defense"):
        isolated("nothing", "pathlib:Path")


def test_a_campaign_goes_on_past_a_defense_that_ends_its_process(trained_home, tmp_path):
    cls = isolated("exits", "hostile:ExitsUnderAttack", path=[HERE], limits=LIMITS)
    asked = planning.plan(
        [cls], protocols.get("digits-v1-quick").limited(8), tracks=["clean", "white_box"], attacks=["none", "fgsm"],
        contract=False,
    )  # fmt: skip
    cells = campaign.run(asked, Store(tmp_path / "records"))
    statuses = {cell.record.spec.slug: cell.record.status for cell in cells}
    assert statuses["clean.none"] == "ok"
    assert statuses["white_box.fgsm.autograd.linf-0.3"] == "failed"
    (failed,) = (cell for cell in cells if cell.record.status == "failed")
    assert "ended itself with status 7" in failed.record.error and failed.outcomes.accuracy == 0
    assert all(cell.record.defense == "exits" for cell in cells)


def test_a_cell_that_takes_too_long_has_failed_and_the_campaign_goes_on(trained_home, tmp_path):
    limits = Limits(cell_seconds=6, call_seconds=60, failures=2)
    cls = isolated("hangs", "hostile:HangsUnderAttack", path=[HERE], limits=limits)
    wanted = ("clean.none", "white_box.fgsm.autograd.linf-0.3", "gray_box.fgsm.linf-0.1")
    chosen = protocols.get("digits-v1-quick").limited(8)
    chosen = replace(chosen, attacks=tuple(a for a in chosen.every_attack if a.slug in wanted), efforts=())
    cells = campaign.run(planning.plan([cls], chosen, contract=False), Store(tmp_path / "records"))
    cls.channel.close()
    found = {cell.record.spec.slug: cell.record for cell in cells}
    assert set(found) == set(wanted)
    failed = found.pop("white_box.fgsm.autograd.linf-0.3")
    assert failed.status == "failed" and "took more than 6 s over one cell and was ended" in failed.error
    assert {record.status for record in found.values()} == {"ok"}
    assert cls.channel.failures == 1


def test_two_children_at_once_do_not_disturb_each_other(hostile_class, sampled, classifier):
    calm = sampled(classifier, **defense_settings(sampled, None, SHAPE)[1])
    before = purify(calm)
    ended = hostile_class(classifier, act="os._exit")
    problems = []

    def try_it():
        try:
            purify(ended)
        except ChildError as problem:
            problems.append(str(problem))

    thread = threading.Thread(target=try_it)
    thread.start()
    for _ in range(5):
        assert torch.equal(purify(calm), before)
    thread.join()
    assert "status 3" in problems[0]


# ---------------------------------------------------------------------------------------------- messages


def over_a_wire(content: bytes) -> Message:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(content)
        theirs.close()
        return wire.receive(ours, time.monotonic() + 5, most=10_000)


def test_messages_arrive_as_they_were_sent():
    ours, theirs = socket.socketpair()
    sent = [torch.rand(2, 3), torch.tensor([True, False]), torch.tensor(3), torch.empty(0, 4), torch.arange(3).half()]
    with ours, theirs:
        wire.send(theirs, Message({"a": [1, "x"]}, sent, b"blob"))
        got = wire.receive(ours, time.monotonic() + 5)
    assert got.header == {"a": [1, "x"]} and got.blob == b"blob"
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(sent, got.tensors, strict=True))


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b'{"tensors": []}', b'{"tensors": [["float32", [-1]]], "blob": 0}', b"null",
        b'{"tensors": [["float32", [99]]], "blob": 0}', b'{"tensors": [["object", [1]]], "blob": 0}',
        b'{"tensors": [["float32", ["a"]]], "blob": 0}', b'{"tensors": [], "blob": 7}', b"\xff", b"[" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(header):
    with pytest.raises(WireError, match="no message"):
        over_a_wire(len(header).to_bytes(8, "big") + (8).to_bytes(8, "big") + header + bytes(8))


def test_sizes_are_refused_before_memory_is_taken_and_ends_are_noticed():
    with pytest.raises(WireError, match="at most"):
        over_a_wire((2**62).to_bytes(8, "big") + bytes(8))
    with pytest.raises(WireError, match="at most"):
        over_a_wire((8).to_bytes(8, "big") + (10_001).to_bytes(8, "big"))
    with pytest.raises(EOFError):
        over_a_wire(bytes(5))


def test_a_random_stream_of_bytes_never_gives_more_than_a_wire_error():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        body = bytes(torch.randint(0, 256, (40,), generator=generator).tolist())
        with pytest.raises((WireError, EOFError)):
            over_a_wire((20).to_bytes(8, "big") + (20).to_bytes(8, "big") + body)


def test_the_module_of_acts_is_complete():
    assert set(ENDINGS) | set(FAULTS) <= set(hostile.ACTS)


def test_a_boolean_is_true_or_false_whatever_its_byte():
    header = b'{"tensors": [["bool", [3]]], "blob": 0}'
    got = over_a_wire(len(header).to_bytes(8, "big") + (3).to_bytes(8, "big") + header + bytes([0, 2, 255]))
    assert got.tensors[0].tolist() == [False, True, True] and int(got.tensors[0].sum()) == 2
