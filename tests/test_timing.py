"""The timing track: the clock waits for the device, everybody takes turns, what is derived or noisy says so."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Generator, Tensor, nn

from bench import cost, plugins, stopwatch, timing, timing_record
from bench.defense import Defense
from bench.errors import BenchError
from bench.progress import Progress
from bench.stopwatch import Ask, Runner, Stopwatch, contest, measure
from bench.timing_record import CLASSIFIER, REFERENCE, Entrant, Machine, Measure, Timing

IMAGES = torch.rand(4, 1, 28, 28, generator=Generator().manual_seed(0))


class Asynchronous:
    """A device that takes orders at once and works them off later, with the only clock there is."""

    def __init__(self) -> None:
        self.now = self.idle_at = 0.0

    def order(self, seconds: float) -> None:
        self.now += 0.001  # the launch
        self.idle_at = max(self.now, self.idle_at) + seconds

    def wait(self) -> None:
        self.now = max(self.now, self.idle_at)

    def watch(self) -> Stopwatch:
        return Stopwatch(self.wait, lambda: self.now)


def runner(name: str, device: Asynchronous, seconds: float, kind="defense", **facts) -> Runner:
    def answer(images: Tensor, generator: Generator) -> Tensor:
        device.order(seconds * len(images))
        return images.flatten(1)

    return Runner(name, kind, name, answer, **facts)


def test_the_clock_waits_for_the_device_before_and_after():
    device = Asynchronous()
    device.order(50.0)  # of somebody else
    assert device.watch().seconds(lambda: device.order(2.0)) == pytest.approx(2.001)
    impatient = Stopwatch(lambda: None, lambda: device.now)
    assert impatient.seconds(lambda: device.order(2.0)) == pytest.approx(0.001), "what a clock without waiting shows"


def test_on_a_gpu_the_track_waits_for_the_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda place: waited.append(place))
    place = torch.device("cuda")
    timing.watch(place).seconds(lambda: waited.append("work"))
    assert waited == [place, "work", place]
    timing.watch(torch.device("cpu")).seconds(lambda: None)
    assert len(waited) == 3


def test_times_are_those_of_the_work_and_everybody_takes_turns():
    device = Asynchronous()
    order: list[str] = []

    def noted(one: Runner) -> Runner:
        answer = one.answer
        one.answer = lambda images, generator: (order.append(one.name), answer(images, generator))[1]
        return one

    runners = [noted(runner(name, device, seconds)) for name, seconds in (("a", 1), ("b", 2), ("c", 4))]
    rounds = {"a": 4, "b": 4, "c": 4}
    spent = contest(runners, IMAGES, rounds, device.watch(), Progress())
    assert spent["c"] == pytest.approx([16.001] * 4) and spent["a"] == pytest.approx([4.001] * 4)
    turns = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(turns) == 5 and all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({turn[0] for turn in turns}) == 3, "another first every round"


def test_who_is_sure_drops_out_and_the_classifier_stays():
    device = Asynchronous()
    noisy = iter([1.0, 3.0, 1.0, 9.0, 2.0, 7.0, 1.0, 5.0, 2.0, 8.0, 1.0, 6.0] * 9)
    restless = runner("restless", device, 0)
    restless.answer = lambda images, generator: (device.order(next(noisy)), images)[1]
    runners = [runner(CLASSIFIER, device, 1, "classifier"), runner("steady", device, 2), restless]
    spent = contest(runners, IMAGES, {one.name: 12 for one in runners}, device.watch(), Progress())
    assert {name: len(seconds) for name, seconds in spent.items()} == {"classifier": 12, "steady": 5, "restless": 12}


def test_each_answer_gets_a_fresh_copy_of_the_images():
    device = Asynchronous()

    def spoil(images: Tensor, generator: Generator) -> Tensor:
        assert torch.equal(images, IMAGES)
        return images.zero_()

    contest([Runner("spoiler", "defense", "", spoil)], IMAGES, {"spoiler": 5}, device.watch(), Progress())


def test_slow_ones_are_timed_at_small_batches_and_derived_beyond():
    device = Asynchronous()
    runners = [
        runner(CLASSIFIER, device, 1, "classifier"), runner("search", device, 3, slow=True), runner("quick", device, 2)
    ]  # fmt: skip
    ask = Ask(rounds=7, slow_rounds=2, batches=(1, 16, 64), slow_batch=4)
    found = {one.name: one for one in measure(runners, IMAGES, ask, device.watch(), Progress())}
    assert [(m.batch, len(m.seconds), m.derived_from) for m in found["search"].measures] == [
        (1, 2, 0), (4, 2, 0), (16, 2, 4), (64, 2, 4),
    ]  # fmt: skip
    assert found["search"].at(16).median == pytest.approx(4 * found["search"].at(4).median)
    assert [(m.batch, m.derived_from) for m in found["quick"].measures] == [(1, 0), (4, 0), (16, 0), (64, 0)]
    assert found["quick"].first_seconds == pytest.approx(2.001)
    assert found["search"].peak_memory_batch == 4


@pytest.mark.parametrize("option", ["rounds", "slow_rounds", "slow_batch"])
def test_senseless_numbers_are_refused(option):
    with pytest.raises(BenchError, match=f"--{option.replace('_', '-')} must be at least 1, got 0"):
        Ask(**{option: 0})


def test_the_largest_batch_is_the_last_that_fits():
    def answer(images: Tensor, generator: Generator) -> Tensor:
        if len(images) > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    assert stopwatch.largest_batch(Runner("full", "defense", "", answer), IMAGES[..., :1, :1], most=4096) == 512
    assert stopwatch.largest_batch(Runner("full", "defense", "", answer), IMAGES[..., :1, :1], most=256) == 256


# ---------------------------------------------------------------------------------------------- counted, not timed


class Searching(Defense):
    """Encodes, and improves the code by three steps of descent on two copies."""

    title, paper, year = "Searching", "https://example.org", 2020

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 784), nn.Sigmoid())

    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        codes = self.encoder(images).repeat(2, 1)
        with torch.enable_grad():
            for _ in range(3):
                codes = codes.detach().requires_grad_()
                loss = (self.decoder(codes) - images.flatten(1).repeat(2, 1)).square().sum()
                codes = codes - 0.01 * torch.autograd.grad(loss, codes)[0]
        return self.decoder(codes.detach()[: len(images)]).view_as(images)


def test_rows_are_counted_by_net_forward_and_backward():
    defense = Searching(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    counted = cost.passes(defense, IMAGES, Generator())
    assert counted == {"encoder": (1, 0), "decoder": (7, 6), "classifier": (1, 0)}
    assert not any(module._forward_hooks for module in defense.modules()), "no hook is left"


def test_memory_is_what_is_alive_at_once():
    megabyte = 2**18  # floats
    given = torch.zeros(megabyte)
    with cost.Held() as held:
        first = torch.zeros(2 * megabyte)
        second = first + 1
        del first
        third = second.view(2, -1)[0] + given  # 1 beside 2
        del second
        _ = given.add_(1), third.mul_(2)
    assert held.peak == 16 * megabyte
    assert held._alive == 4 * megabyte


# ---------------------------------------------------------------------------------------------- the record


def times(name: str, kind: str, *measures: Measure, **facts) -> Entrant:
    given = {"title": name, "first_seconds": 1.0, "peak_memory_mb": 1.0, "peak_memory_batch": 1}
    return Entrant(name=name, kind=kind, measures=measures, **given | facts)


def whole(*entrants: Entrant, **facts) -> Timing:
    place = Machine(
        device="cpu", name="Some processor", cores=2, threads=1, system="Linux", tf32=False, amp=False,
        heap_pinned=True, versions={"torch": "2"},
    )  # fmt: skip
    bare = times(CLASSIFIER, "classifier", Measure(batch=1, seconds=(1, 2, 1, 2)), Measure(batch=8, seconds=(4,)))
    given = {"dataset": "digits", "classifier": "A", "classifier_weights": "w", "machine": place}
    return Timing(entrants=(bare, *entrants), **given | facts)


def test_summaries_are_those_of_the_rounds():
    one = Measure(batch=10, seconds=(1.0, 2.0, 3.0, 4.0, 100.0))
    assert (one.median, one.quartiles, one.images_per_second) == (3.0, (2.0, 4.0), pytest.approx(10 / 3))
    assert one.p95 == pytest.approx(80.8) and one.spread == pytest.approx(2 / 3) and one.is_noisy
    assert one.interval == pytest.approx(2 * 1.57 * (2 / 3) / 5**0.5)
    steady = Measure(batch=1, seconds=(1.0, 1.01, 1.02, 1.03, 1.04))
    assert not steady.is_noisy and steady.interval > stopwatch.CLOSE_ENOUGH


def test_ratios_are_of_rounds_and_of_medians_where_derived():
    search = times(REFERENCE, "reference", Measure(batch=1, seconds=(10, 40)))
    slow = times("slow", "defense", Measure(batch=1, seconds=(3, 8, 3)), Measure(batch=8, seconds=(8,), derived_from=1))
    run = whole(search, slow)
    assert run.ratio(slow, CLASSIFIER, 1) == 3  # of 3, 4, 3
    assert run.ratio(slow, REFERENCE, 1) == pytest.approx((0.3 + 0.2) / 2)
    assert run.ratio(slow, CLASSIFIER, 8) == 2
    assert run.ratio(slow, REFERENCE, 8) is None and run.ratio(search, CLASSIFIER, 8) is None
    assert run.batches == (1, 8)


def test_a_record_comes_back_and_bears_no_edit(tmp_path):
    run = whole(times("slow", "defense", Measure(batch=1, seconds=(3.0, 8.0))))
    path = timing_record.save(run, tmp_path)
    assert path == tmp_path / "timing" / run.file_name and timing_record.read(path) == run
    text = path.read_text()
    for edited, complaint in (
        (text.replace("3.0", "0.3"), "checksum"),
        (text[:-40], "Expecting|Unterminated|delimiter"),
        ("[]", ".*"),
    ):
        path.write_text(edited)
        with pytest.raises(BenchError, match=f"{path.name}: .*{complaint}.*; run purifybench timing again"):
            timing_record.read(path)
    path.write_text(text)
    elsewhere = path.with_name("digits-A-00000000.json")
    path.rename(elsewhere)
    with pytest.raises(BenchError, match=f"it should be called {run.file_name}"):
        timing_record.read(elsewhere)


@pytest.mark.parametrize(
    "change",
    [{"entrants": []}, {"entrants": [0, 0]}, {"seconds": [0.0]}, {"seconds": []}, {"seconds": ["nan"]}, {"odd": 1}],
    ids=str,
)
def test_senseless_records_are_refused(change):
    payload = json.loads(whole().model_dump_json())
    if "entrants" in change:
        payload["entrants"] = [payload["entrants"][row] for row in change["entrants"]]
    elif "seconds" in change:
        payload["entrants"][0]["measures"][0] |= change
    else:
        payload |= change
    with pytest.raises(ValueError):
        Timing.model_validate(payload)


def test_other_threads_are_another_machine():
    one = whole().machine
    assert one.digest == whole().machine.digest != one.model_copy(update={"threads": 2}).digest


def test_every_sound_run_is_found_once_and_the_others_are_named(tmp_path):
    run = whole()
    for folder in ("one", "two"):
        timing_record.save(run, tmp_path / folder)
    (tmp_path / "two" / "timing" / "torn.json").write_text("{")
    sound, torn = list(timing_record.found([tmp_path / "one", tmp_path / "two", tmp_path / "none"]))
    assert sound == run and isinstance(torn, BenchError)


# ---------------------------------------------------------------------------------------------- a whole run


class Tiny(Searching):
    """Stands for Defense-GAN: a search with settings of those names."""

    recipes = {"fast": {"search_steps": 6}, "paper": {}}

    def __init__(self, classifier: nn.Module, *, search_steps: int = 8, restarts: int = 1) -> None:
        super().__init__(classifier)

    def fit(self, data, generator, progress) -> None:
        nn.init.zeros_(self.decoder[0].weight)


class Warming(nn.Module):
    """Orders `first` seconds at its first call, which compiles, and one at all others."""

    def __init__(self, device: Asynchronous, first: float) -> None:
        super().__init__()
        self.order, self.first = lambda seconds: device.order(seconds), first  # a function is not copied with it
        self.is_warm = False

    def forward(self, images: Tensor) -> Tensor:
        self.order(1.0 if self.is_warm else self.first)
        self.is_warm = True
        return images


def timed_alone(monkeypatch, device: Asynchronous, cls: type[Defense], net: nn.Module) -> Timing:
    """A run of one defense, one round, without the reference."""
    monkeypatch.setattr(timing, "watch", lambda place: device.watch())
    monkeypatch.setattr(timing.classifiers, "trained", lambda name, loaded, progress: (net, "w"))
    monkeypatch.setattr(plugins, "installed", dict)
    monkeypatch.setattr(plugins, "load", lambda name: cls)
    return timing.run(["it"], dataset="digits", ask=Ask(rounds=1, slow_rounds=1, batches=(1,)))


def test_the_first_call_is_timed_before_anything_else_calls(monkeypatch):
    device = Asynchronous()

    class Lazy(Defense):
        """Compiles at its first call."""

        title, paper, year = "Lazy", "https://example.org", 2020

        def __init__(self, classifier: nn.Module) -> None:
            super().__init__(classifier)
            self.net = Warming(device, 50.0)

        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            return self.net(images)

    net = nn.Sequential(Warming(device, 9.0), nn.Flatten(), nn.Linear(784, 10))
    run = timed_alone(monkeypatch, device, Lazy, net)
    assert run.entrant(CLASSIFIER).first_seconds == pytest.approx(9.001)
    assert run.entrant("it").first_seconds == pytest.approx(51, abs=0.01), "its net and the classifier, which is warm"
    assert run.ratio(run.entrant("it"), CLASSIFIER, 1) == pytest.approx(2, abs=0.01), "no round has a first call"


def test_a_defense_that_fails_when_asked_is_left_out(monkeypatch):
    class Failing(Defense):
        """Fails."""

        title, paper, year = "Failing", "https://example.org", 2020

        def purify(self, images: Tensor, generator: Generator) -> Tensor:
            raise ValueError("no such layer")

    device = Asynchronous()
    net = nn.Sequential(Warming(device, 1.0), nn.Flatten(), nn.Linear(784, 10))
    run = timed_alone(monkeypatch, device, Failing, net)
    assert run.left_out == {"it": "ValueError: no such layer"}


class Point:
    """Stands for an entry point."""

    value = "somewhere:Else"
    dist = None


@pytest.mark.slow
def test_a_whole_run_times_what_is_trained_and_says_what_is_not(trained_home, tmp_path, monkeypatch, command):
    found = {**plugins.installed(), timing.SEARCH: Point()}
    load = plugins.load
    monkeypatch.setattr(plugins, "installed", lambda: found)
    monkeypatch.setattr(plugins, "load", lambda name: Tiny if name == timing.SEARCH else load(name))
    status, out, err = command(
        "timing", "identity", "kmeans", "identity_vae", "--dataset", "digits", "--rounds", "2", "--slow-rounds", "2"
    )
    assert status == 0, err
    assert "left out: identity_vae: not trained; purifybench train identity_vae --dataset digits" in out
    (path,) = (tmp_path / "results" / "timing").glob("digits-A-*.json")
    run = timing_record.read(path)
    assert [one.name for one in run.entrants] == [CLASSIFIER, REFERENCE, "identity", "kmeans"]
    assert not run.entrant(REFERENCE).trained and run.entrant("kmeans").trained
    assert run.batches == (1, 128) and run.machine.threads == torch.get_num_threads()
    assert run.entrant(REFERENCE).passes["decoder"].forward == 7
    assert run.ratio(run.entrant(REFERENCE), CLASSIFIER, 1) is not None

    status, out, err = command("train", timing.SEARCH, "--dataset", "digits")
    assert status == 0, err
    status, out, err = command(
        "timing", timing.SEARCH, "--dataset", "digits", "--rounds", "1", "--slow-rounds", "1", "--score-images", "8"
    )
    assert status == 0, err
    run = timing_record.read(path)
    names = [f"{timing.SEARCH}_l{steps}_r{restarts}" for steps, restarts in stopwatch.CURVE]
    assert [one.name for one in run.entrants] == [CLASSIFIER, REFERENCE, timing.SEARCH, *names]
    assert {one.score.n for one in run.entrants if one.score} == {8}
    assert run.entrant(names[1]).weights == run.entrant(timing.SEARCH).weights != ""


def test_unknown_names_are_refused(command):
    status, _, err = command("timing", "defence_gan")
    assert status == 2 and "no defense is called 'defence_gan'" in err
