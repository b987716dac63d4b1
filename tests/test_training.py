"""Training: the same weights whether it was interrupted or not, and weights on disk that are sound or made again."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench import training
from bench.progress import Progress

N, BATCH, EPOCHS = 50, 16, 5  # 4 steps an epoch, the last one smaller
KEY = {"dataset": "lines", "seed": 0}


class Stopped(BaseException):
    """Somebody pressed Ctrl-C."""


class Listening(Progress):
    """Keeps what is said, and stops the training after so many batches."""

    def __init__(self, batches: float = math.inf) -> None:
        self.said: list[str] = []
        self.left = batches

    def say(self, message: str) -> None:
        self.said.append(message)

    def task(self, label, total, done=0):
        def advance(units):
            self.left -= 1
            if self.left < 0:
                raise Stopped

        return nullcontext(advance)


@pytest.fixture(scope="module")
def lines():
    """A linear problem with two classes."""
    images = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    return images, (images[:, 0] > images[:, 1]).long()


def net() -> nn.Module:
    """A net with all that makes resuming hard: dropout draws global random numbers, batch norm has buffers."""
    with training.global_seed(1):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def fitter(module, lines, epochs=EPOCHS, losses=None):
    """What `load_or_fit` calls: Adam, a schedule, clipping."""

    def fit(generator, progress):
        found = training.train(
            module, lambda x, y: nn.functional.cross_entropy(module(x), y), lines,
            optimizer=torch.optim.Adam(module.parameters(), lr=0.02), epochs=epochs, batch_size=BATCH,
            generator=generator, progress=progress, label="training a net", schedule=training.cosine, clip_norm=1.0,
        )  # fmt: skip
        if losses is not None:
            losses.extend(found)

    return fit


def load_or_fit(lines, progress, key=KEY, **options):
    """Train or load a fresh net: its state."""
    module = net()
    found = training.load_or_fit(module, "net", key, fitter(module, lines, **options), progress)
    assert found == training.weights_hash(module)
    return module.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(lines, tmp_path_factory):
    """The weights and losses of a training that nothing disturbed, made in another home."""
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PURIFYBENCH_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        return load_or_fit(lines, Progress(), losses=losses), losses


def weights_folder():
    return training.weights_path("net", KEY).parent


# ---------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("batches", [0, 3, 4, 6, 11, 4 * EPOCHS - 1], ids=lambda n: f"after {n} batches")
def test_a_resumed_training_ends_in_the_same_weights(batches, lines, uninterrupted):
    with pytest.raises(Stopped):
        load_or_fit(lines, Listening(batches))
    resumed, losses = Listening(), []
    assert equal(load_or_fit(lines, resumed, losses=losses), uninterrupted[0])
    assert losses == uninterrupted[1]
    epochs = batches // 4
    assert resumed.said == ([f"training a net: resumes after epoch {epochs}"] if epochs else [])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_stopping_around_the_writing_of_a_checkpoint_changes_nothing(moment, lines, uninterrupted, monkeypatch):
    write = training.CheckpointingProgress.checkpoint

    def stop(self, label, stateful, losses):
        if moment == "after" or len(losses) < 3:
            write(self, label, stateful, losses)
        if len(losses) == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training.CheckpointingProgress, "checkpoint", stop)
        with pytest.raises(Stopped):
            load_or_fit(lines, Progress())
    resumed = Listening()
    assert equal(load_or_fit(lines, resumed), uninterrupted[0])
    assert resumed.said == [f"training a net: resumes after epoch {3 if moment == 'after' else 2}"]


def test_a_training_interrupted_at_every_epoch_gets_there(lines, uninterrupted):
    for _ in range(EPOCHS - 1):
        with pytest.raises(Stopped):
            load_or_fit(lines, Listening(5))  # an epoch and a batch
    assert equal(load_or_fit(lines, Progress()), uninterrupted[0])


def test_resuming_trains_no_epoch_twice(lines):
    with pytest.raises(Stopped):
        load_or_fit(lines, Listening(9))
    resumed = Listening(4 * (EPOCHS - 2))  # one batch more would raise
    load_or_fit(lines, resumed)
    assert resumed.left == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "of another training"])
def test_a_damaged_checkpoint_costs_its_epochs_and_nothing_else(damage, lines, uninterrupted):
    with pytest.raises(Stopped):
        load_or_fit(lines, Listening(9))
    (checkpoint,) = weights_folder().glob("*.checkpoint")
    content = checkpoint.read_bytes()
    if damage == "of another training":
        with pytest.raises(Stopped):
            load_or_fit(lines, Listening(9), key={**KEY, "seed": 1})
        (other,) = set(weights_folder().glob("*.checkpoint")) - {checkpoint}
        content = other.read_bytes()
    checkpoint.write_bytes(
        {"truncated": content[:-7], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}.get(
            damage, content
        )
    )
    resumed = Listening()
    assert equal(load_or_fit(lines, resumed), uninterrupted[0])
    assert any("the checkpoint is ignored" in line for line in resumed.said)


def test_a_checkpoint_of_other_code_is_not_continued(lines, uninterrupted):
    module = net()
    with pytest.raises(Stopped):
        training.load_or_fit(module, "net", KEY, fitter(module, lines), Listening(9), source="old code")
    resumed, module = Listening(), net()
    training.load_or_fit(module, "net", KEY, fitter(module, lines), resumed, source="new code")
    assert equal(module.state_dict(), uninterrupted[0])
    assert any("the checkpoint is ignored" in line for line in resumed.said)


def test_a_checkpoint_of_another_architecture_leaves_no_trace(lines, uninterrupted):
    """The code changed between two runs of one key: some tensors fit, some do not, and none may be taken over."""
    smaller = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(Stopped):
        training.load_or_fit(smaller, "net", KEY, fitter(smaller, lines), Listening(9))
    resumed = Listening()
    assert equal(load_or_fit(lines, resumed), uninterrupted[0])
    assert any("the checkpoint is ignored" in line for line in resumed.said)


def test_two_trainings_of_one_fit_have_a_checkpoint_each(lines):
    """A defense may train two nets one after the other; stopped in the second, the first is not trained again."""

    def both(progress):
        first, second = net(), nn.Linear(6, 2)
        pair = nn.ModuleList([first, second])

        def fit(generator, kept):
            for label, module in (("first", first), ("second", second)):
                training.train(
                    module, lambda x, y, module=module: nn.functional.cross_entropy(module(x), y), lines,
                    optimizer=torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), epochs=2, batch_size=BATCH,
                    generator=generator, progress=kept, label=label,
                )  # fmt: skip

        with training.global_seed(3):
            second.reset_parameters()
        training.load_or_fit(pair, "pair", KEY, fit, progress)
        return pair.state_dict()

    with pytest.raises(Stopped):
        both(Listening(8 + 5))
    resumed = Listening(3)  # of 16 batches, 13 are done; the unfinished epoch's first is repeated: 4 - 1
    with pytest.raises(Stopped):
        both(resumed)
    assert resumed.said == ["first: resumes after epoch 2", "second: resumes after epoch 1"]
    finished = both(Progress())
    training.weights_path("pair", KEY).unlink()
    assert equal(both(Progress()), finished)


def test_no_checkpoint_is_left_at_the_end(lines):
    load_or_fit(lines, Progress())
    assert [path.name for path in weights_folder().iterdir()] == [training.weights_path("net", KEY).name]


@pytest.mark.parametrize("batches", [5, 11], ids=lambda n: f"after {n} batches")
def test_a_resumed_training_with_several_optimizers_ends_in_the_same_weights(batches, lines):
    """All optimizers are part of a checkpoint: Adam's moments and SGD's momentum go on where they stopped."""

    def several(progress):
        module = nn.ModuleList([net(), nn.Linear(6, 2), nn.Linear(6, 2)])
        with training.global_seed(2):
            module[1].reset_parameters(), module[2].reset_parameters()

        def fit(generator, kept):
            training.train(
                module, lambda x, y: nn.functional.cross_entropy(module[0](x) + module[1](x), y), lines,
                optimizer=torch.optim.Adam(module[0].parameters(), lr=0.02), epochs=EPOCHS, batch_size=BATCH,
                generator=generator, progress=kept, label="several", schedule=training.cosine, clip_norm=1.0,
                also=[
                    training.Update(
                        torch.optim.Adam(module[2].parameters(), lr=0.02),
                        lambda x, y: nn.functional.cross_entropy(module[2](x + module[0](x).mean()), y),
                    ),
                    training.Update(
                        torch.optim.SGD(module[1].parameters(), lr=0.5, momentum=0.9),
                        schedule=training.stepwise(0.1, EPOCHS),
                    ),
                ],
            )  # fmt: skip

        training.load_or_fit(module, "several", KEY, fit, progress)
        return module.state_dict()

    with pytest.raises(Stopped):
        several(Listening(batches))
    resumed = Listening()
    continued = several(resumed)
    assert resumed.said == [f"several: resumes after epoch {batches // 4}"]
    training.weights_path("several", KEY).unlink()
    assert equal(several(Progress()), continued)


# ---------------------------------------------------------------------------------------------- the loop


def train_one_weight(epochs=1, n=4, loss=lambda weight, x: weight * x.mean(), rate=0.1, **options):
    """SGD on a loss that is linear in one weight, which starts at 0: the weight and the losses."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    losses = training.train(
        module, lambda x: loss(module.weight, x).sum(), (torch.ones(n, 1),),
        optimizer=torch.optim.SGD(module.parameters(), lr=rate), epochs=epochs, **{"batch_size": 1} | options,
        generator=torch.Generator().manual_seed(0), progress=Progress(), label="one weight",
    )  # fmt: skip
    return module.weight.item(), losses


def test_each_step_goes_down_the_gradient_by_the_learning_rate():
    weight, losses = train_one_weight(epochs=2)
    assert weight == pytest.approx(-0.8)
    assert losses == pytest.approx([-(0 + 0.1 + 0.2 + 0.3) / 4, -(0.4 + 0.5 + 0.6 + 0.7) / 4])


def test_the_mean_loss_weighs_a_smaller_last_batch_by_its_size():
    # batches of 2, 2 and 1 at weights 0, -0.1 and -0.2
    assert train_one_weight(n=5, batch_size=2)[1] == pytest.approx([(2 * 0 - 2 * 0.1 - 1 * 0.2) / 5])


def test_the_cosine_schedule_scales_each_step():
    # shares 0, 1/4, 2/4, 3/4: factors (1 + cos) / 2 add up to (4 + 1 + sqrt(1/2) + 0 - sqrt(1/2)) / 2 = 2.5
    assert train_one_weight(schedule=training.cosine)[0] == pytest.approx(-0.25)


def test_the_schedule_runs_over_all_epochs_and_not_over_each():
    factors = []
    train_one_weight(epochs=2, n=2, schedule=lambda share: factors.append(share) or 1.0)
    assert factors == [0, 0.25, 0.5, 0.75]


def test_clip_norm_bounds_the_gradient():
    steep = {"loss": lambda weight, x: 100 * weight * x.mean(), "n": 1}
    assert train_one_weight(**steep)[0] == pytest.approx(-10)
    assert train_one_weight(**steep, clip_norm=0.5)[0] == pytest.approx(-0.05)


def weights(count=3):
    """A module of so many single weights, all 1, and SGD with rate 0.1 for each."""
    module = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(count)])
    return module, [torch.optim.SGD([weight], lr=0.1) for weight in module]


def train_weights(module, loss, optimizer, also, epochs=1, n=1, **options):
    return training.train(
        module, loss, (torch.ones(n, 1),), optimizer=optimizer, epochs=epochs, batch_size=1, also=also,
        generator=torch.Generator().manual_seed(0), progress=Progress(), label="weights", **options,
    )  # fmt: skip


def test_an_update_without_a_loss_follows_the_trainings_own_at_the_same_point():
    module, (first, second, _) = weights()
    losses = train_weights(module, lambda x: module[0] * module[1] * module[2], first, [training.Update(second)])
    assert [weight.item() for weight in module] == pytest.approx([0.9, 0.9, 1.0])  # nobody holds the third
    assert losses == [1.0]


def test_an_update_with_a_loss_sees_where_those_before_it_have_led():
    module, (first, second, third) = weights()
    also = [
        training.Update(second, lambda x: 2 * module[0] * module[1]),  # gradient 2 * 0.9
        training.Update(third, lambda x: module[0] * module[1] * module[2]),  # gradient 0.9 * 0.82
    ]
    losses = train_weights(module, lambda x: module[0] * x.sum(), first, also)
    assert [weight.item() for weight in module] == pytest.approx([0.9, 1 - 0.18, 1 - 0.1 * 0.9 * 0.82])
    assert losses == [1.0]  # of the first loss


def test_a_later_update_leaves_no_gradient_to_an_earlier_one():
    module, (first, second, _) = weights()
    train_weights(
        module, lambda x: module[0], first, [training.Update(second, lambda x: 50 * module[0] * module[1])], n=3
    )
    assert module[0].item() == pytest.approx(0.7)


def test_each_update_has_a_schedule_and_a_bound_of_its_own():
    module, (first, second, third) = weights()
    also = [
        training.Update(second, schedule=training.stepwise(0.1, 2)),
        training.Update(third, lambda x: 100 * module[2], clip_norm=2.0),
    ]
    train_weights(module, lambda x: 3 * module[0] + module[1], first, also, epochs=2, n=2, clip_norm=1.0)
    assert [weight.item() for weight in module] == pytest.approx([1 - 0.4, 1 - 0.2 - 0.02, 1 - 0.8], abs=1e-5)


@pytest.mark.parametrize(("epochs", "n"), [(1, 7), (7, 1), (2, 4)])
def test_an_update_may_take_part_in_every_third_step_only_across_epochs(epochs, n):
    module, (first, second, _) = weights()
    rare = training.Update(second, lambda x: module[1], every=3)
    train_weights(module, lambda x: module[0], first, [rare], epochs=epochs, n=n)
    assert [weight.item() for weight in module] == pytest.approx([1 - 0.1 * epochs * n, 1 - 0.2, 1.0])


@pytest.mark.parametrize("bad", [{"every": 0, "batch_loss": torch.sum}, {"every": 2}])
def test_an_update_that_is_rarer_needs_a_loss_of_its_own(bad):
    with pytest.raises(ValueError, match="needs a loss of its own, and a number from 1"):
        training.Update(weights()[1][0], **bad)


def test_the_stepwise_schedule_falls_at_each_epoch_down_to_its_lowest():
    schedule = training.stepwise(0.5, 7, lowest=0.1)
    assert [schedule((epoch * 3 + step) / 21) for epoch in range(7) for step in (0, 2)] == pytest.approx(
        [factor for factor in (1, 0.5, 0.25, 0.125, 0.1, 0.1, 0.1) for _ in range(2)]
    )


def test_two_optimizers_may_not_hold_the_same_parameter():
    module, (first, _, _) = weights()
    twice = training.Update(torch.optim.SGD([module[0]], lr=0.1))
    with pytest.raises(ValueError, match="two optimizers of one training hold the same parameter"):
        train_weights(module, lambda x: module[0], first, [twice])


def test_any_loss_that_is_not_finite_stops_the_training():
    module, (first, second, _) = weights()
    lost = training.Update(second, lambda x: module[1] * torch.inf)
    with pytest.raises(RuntimeError, match="weights: the loss is inf after epoch 1"):
        train_weights(module, lambda x: module[0], first, [lost])


@pytest.mark.parametrize(("minimum_steps", "epochs"), [(0, 1), (4, 1), (5, 2), (9, 3)])
def test_small_data_get_as_many_epochs_as_the_minimum_of_steps_needs(minimum_steps, epochs):
    assert len(train_one_weight(minimum_steps=minimum_steps)[1]) == epochs


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(RuntimeError, match="one weight: the loss is nan after epoch 1; lower the learning rate"):
        train_one_weight(loss=lambda weight, x: weight * torch.nan)


def test_every_row_is_seen_once_an_epoch_in_another_order_each_time():
    seen = []
    module = nn.Linear(1, 1)
    training.train(
        module, lambda x: (seen.extend(x.flatten().tolist()), module(x).sum())[1], (torch.arange(20.0)[:, None],),
        optimizer=torch.optim.SGD(module.parameters(), lr=0.0), epochs=2, batch_size=6,
        generator=torch.Generator().manual_seed(0), progress=Progress(), label="rows",
    )  # fmt: skip
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]
    assert seen[:20] != sorted(seen[:20])


def test_training_reads_and_changes_no_global_random_state(lines):
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        module = net()
        fitter(module, lines, epochs=2)(torch.Generator().manual_seed(0), Progress())
        assert torch.equal(torch.get_rng_state(), before)
        hashes.add(training.weights_hash(module))
    assert len(hashes) == 1


def test_an_interrupted_training_gives_the_global_random_state_back(lines):
    before = torch.get_rng_state()
    module = net()
    with pytest.raises(Stopped):
        fitter(module, lines)(torch.Generator().manual_seed(0), Listening(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights(lines):
    assert not equal(load_or_fit(lines, Progress()), load_or_fit(lines, Progress(), key={**KEY, "seed": 1}))


def test_the_module_is_left_in_eval_mode(lines):
    module = net().train()
    fitter(module, lines, epochs=1)(torch.Generator(), Progress())
    assert not any(part.training for part in module.modules())


# ---------------------------------------------------------------------------------------------- weights on disk


def never(generator, progress):
    raise AssertionError("trained although the weights are there")


def test_weights_are_trained_once_and_loaded_from_then_on(lines, uninterrupted):
    first = load_or_fit(lines, Progress())
    module = net().train()
    assert training.load_or_fit(module, "net", KEY, never, Progress()) == training.weights_hash(module)
    assert equal(module.state_dict(), first)
    assert equal(first, uninterrupted[0])
    assert not module.training


def test_another_key_is_another_file(lines):
    load_or_fit(lines, Progress())
    with pytest.raises(AssertionError, match="trained although"):
        training.load_or_fit(net(), "net", {**KEY, "seed": 1}, never, Progress())
    with pytest.raises(AssertionError, match="trained although"):
        training.load_or_fit(net(), "other", KEY, never, Progress())


def rewrite(path, change_tensors=lambda tensors: None, **metadata):
    """Write a safetensors file again with some of it changed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
    tensors = load_file(path)
    change_tensors(tensors)
    save_file(tensors, path, kept | metadata)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def edit(path):
    rewrite(path, lambda tensors: tensors["0.weight"].add_(0.5))


def rename_tensor(path):
    rewrite(path, lambda tensors: tensors.update(extra=tensors.pop("0.weight")))


def claim_another_key(path):
    rewrite(path, key='{"name": "net", "seed": 7}')


def forget_the_checksum(path):
    rewrite(path, sha256="")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, edit, rename_tensor, claim_another_key, forget_the_checksum, empty],
    ids=lambda f: f.__name__,
)
def test_weights_that_are_not_what_they_claim_are_set_aside_and_trained_anew(damage, lines, uninterrupted):
    load_or_fit(lines, Progress())
    path = training.weights_path("net", KEY)
    damage(path)
    damaged, heard = path.read_bytes(), Listening()
    assert equal(load_or_fit(lines, heard), uninterrupted[0])
    assert len(heard.said) == 1
    assert str(path) in heard.said[0]
    assert f"set aside as {path.stem}.corrupt, training again" in heard.said[0]
    assert path.with_suffix(".corrupt").read_bytes() == damaged
    training.load_or_fit(net(), "net", KEY, never, Progress())  # mended


def test_weights_of_another_architecture_leave_no_trace(lines, uninterrupted):
    """Sound, of the right key, but the code changed: some tensors fit, some do not, and none may be taken over."""
    other = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    training.load_or_fit(other, "net", KEY, fitter(other, lines, epochs=1), Progress())
    heard = Listening()
    assert equal(load_or_fit(lines, heard), uninterrupted[0])
    assert "does not fit the module" in heard.said[0]
    assert "\n" not in heard.said[0]


def test_weights_of_older_code_are_used_and_it_is_said(lines):
    module = net()
    training.load_or_fit(module, "net", KEY, fitter(module, lines, epochs=1), Progress(), source="old code")
    heard = Listening()
    training.load_or_fit(net(), "net", KEY, never, heard, source="old code")
    assert heard.said == []
    training.load_or_fit(net(), "net", KEY, never, heard, source="new code")
    assert "was trained by other code than net's now; delete it to train again" in heard.said[0]


def test_nothing_is_written_when_training_fails():
    def fails(generator, progress):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        training.load_or_fit(net(), "net", KEY, fails, Progress())
    assert not training.weights_path("net", KEY).exists()


def test_the_hash_of_weights_tells_names_shapes_types_and_values_apart():
    def module(**tensors):
        made = nn.Module()
        for name, tensor in tensors.items():
            made.register_buffer(name, tensor)
        return made

    four = torch.arange(4.0)
    different = [
        module(a=four), module(b=four), module(a=four.view(2, 2)), module(a=four.double()), module(a=four + 1),
        module(a=four[:3]), module(a=four, b=four),
    ]  # fmt: skip
    hashes = [training.weights_hash(each) for each in different]
    assert len(set(hashes)) == len(different)
    assert training.weights_hash(module(a=four.clone())) == hashes[0]
    assert training.weights_hash(nn.ReLU()) == ""


def test_two_trainings_of_one_fit_need_two_labels(tmp_path):
    kept = training.CheckpointingProgress(Progress(), tmp_path / "x.checkpoint", "key")
    assert kept.restore("first", {}) == kept.restore("second", {}) == (0, [])
    with pytest.raises(ValueError, match="two trainings of one fit are called 'first'"):
        kept.restore("first", {})
