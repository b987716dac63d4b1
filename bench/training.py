"""One training loop with epoch checkpoints, and the only reader and writer of weights (safetensors, hash-checked)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from bench import draws, places, seeds, weights
from bench.errors import BenchError
from bench.progress import Advance, Progress


def constant(share: float) -> float:
    """A learning-rate factor that stays 1."""
    return 1.0


def cosine(share: float) -> float:
    """A learning-rate factor that falls from 1 to 0 along half a cosine as `share` of the steps goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def stepwise(factor: float, epochs: int, lowest: float = 0.0) -> Callable[[float], float]:
    """A learning-rate factor that is 1 in the first of `epochs` and `factor` times itself in each that follows, but
    never under `lowest`."""
    return lambda share: max(factor ** math.floor(share * epochs + 1e-6), lowest)


@dataclass(frozen=True)
class Update:
    """What one more optimizer does in every step of a training, in what it holds and nowhere else.

    Without a loss of its own it follows the gradient of the training's loss, at the same point. With one, it comes
    after that: `batch_loss(*batch)` is evaluated where the updates before it have led. `schedule` scales its learning
    rate, `clip_norm` bounds the norm of its gradient. With `every`, it does so in each so manieth step only, as the
    generator of a GAN does: raises ValueError below 1, and where it has no loss of its own.
    """

    optimizer: Optimizer
    batch_loss: Callable[..., Tensor] | None = None
    schedule: Callable[[float], float] = constant
    clip_norm: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or (self.every > 1 and self.batch_loss is None):
            raise ValueError(f"an update every {self.every} steps needs a loss of its own, and a number from 1")


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Inside: torch's global generators start from `seed` (layers' initial weights and Dropout know no other). After:
    they are as they were."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def train(
    module: nn.Module,
    batch_loss: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    generator: Generator,
    progress: Progress,
    label: str,
    minimum_steps: int = 0,
    schedule: Callable[[float], float] = constant,
    clip_norm: float | None = None,
    also: Sequence[Update] = (),
) -> list[float]:
    """Minimise `batch_loss(*batch)` over shuffled batches of `tensors` (same first dimension); the mean loss per epoch.

    Small data sets get as many more epochs as `minimum_steps` optimizer steps need. Every epoch starts from seeds
    derived of `generator`'s initial one, so a run that resumes from a checkpoint ends in the same weights. `schedule`
    scales the learning rate; `clip_norm` bounds the norm of the gradient of what the optimizer holds. `also` names
    further optimizers, each with parameters of its own, in the order of their steps. `module` is left in eval mode.
    Raises RuntimeError if a loss stops being finite, ValueError if two optimizers hold one parameter.
    """
    n = len(tensors[0])
    steps_per_epoch = math.ceil(n / batch_size)
    epochs = max(epochs, math.ceil(minimum_steps / steps_per_epoch))
    first_seed = generator.initial_seed()
    phases = _phases([Update(optimizer, batch_loss, schedule, clip_norm), *also])
    optimizers = [update.optimizer for updates in phases for update in updates]
    rates = [[group["lr"] for group in one.param_groups] for one in optimizers]
    stateful: dict[str, nn.Module | Optimizer] = {"module": module, "optimizer": optimizers[0]}
    stateful |= {f"optimizer {number}": one for number, one in enumerate(optimizers[1:], start=2)}
    done, losses = progress.restore(label, stateful)
    module.train()
    with progress.task(label, total=epochs * n, done=done * n) as advance:
        for epoch in range(done, epochs):
            generator.manual_seed(seeds.derive(first_seed, label, epoch))
            with global_seed(seeds.derive(first_seed, label, epoch, "global")):
                order = torch.randperm(n, generator=generator, device=generator.device).to(tensors[0].device)
                totals = torch.zeros(len(phases), device=tensors[0].device)
                for step, rows in enumerate(torch.split(order, batch_size)):
                    share = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
                    for update, initial in zip((u for us in phases for u in us), rates, strict=True):
                        factor = update.schedule(share)
                        for group, rate in zip(update.optimizer.param_groups, initial, strict=True):
                            group["lr"] = rate * factor
                    batch = [tensor[rows] for tensor in tensors]
                    number = epoch * steps_per_epoch + step + 1
                    due = [updates if number % updates[0].every == 0 else () for updates in phases]
                    idle = totals.new_zeros(())
                    totals += torch.stack([_step(updates, batch) if updates else idle for updates in due]) * len(rows)
                    advance(len(rows))
            means = [total / n for total in totals.tolist()]
            strange = [mean for mean in means if not math.isfinite(mean)]
            if strange:
                raise RuntimeError(
                    f"{label}: the loss is {strange[0]} after epoch {epoch + 1}; lower the learning rate"
                )
            losses.append(means[0])
            progress.checkpoint(label, stateful, losses)
    generator.manual_seed(seeds.derive(first_seed, label, "after"))  # the same after a training that was resumed
    module.eval()
    return losses


def _phases(updates: Sequence[Update]) -> list[list[Update]]:
    """The updates of a step, those of one loss together; the training's own loss comes first."""
    held = [id(parameter) for update in updates for parameter in _held(update.optimizer)]
    if len(set(held)) < len(held):
        raise ValueError("two optimizers of one training hold the same parameter; give each its own")
    sharing = [update for update in updates if update.batch_loss is None]
    return [[updates[0], *sharing], *([update] for update in updates[1:] if update.batch_loss is not None)]


def _step(updates: Sequence[Update], batch: Sequence[Tensor]) -> Tensor:
    """Evaluate the loss of `updates[0]` and move what each of them holds; the loss."""
    assert updates[0].batch_loss is not None
    loss = updates[0].batch_loss(*batch)
    for update in updates:
        update.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for update in updates:
        if update.clip_norm is not None:
            nn.utils.clip_grad_norm_(_held(update.optimizer), update.clip_norm)
        update.optimizer.step()
    return loss.detach()


def _held(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# ---------------------------------------------------------------------------------------------- weights


def weights_hash(module: nn.Module) -> str:
    """The sha256 over names, types, shapes and bytes of a module's parameters and buffers; "" if it has none."""
    state = module.state_dict()
    return _hash(state) if state else ""


def _hash(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
        state.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return state.hexdigest()


def weights_path(name: str, key: Mapping[str, Any]) -> Path:
    """Where the weights of `name` under `key` are kept."""
    return places.home() / "weights" / weights.file_name(name, key)


def load_or_fit(
    module: nn.Module,
    name: str,
    key: Mapping[str, Any],
    fit: Callable[[Generator, Progress], object],
    progress: Progress,
    source: str = "",
) -> str:
    """Fill `module` with the weights that `name` and `key` identify, training them if they do not exist; their hash.

    `key` holds all that decides the weights (data split, recipe, seed, classifier where it matters). A corrupted file
    is set aside with a message and trained anew. `fit(generator, progress)` trains `module` in place. `source` is a
    hash of the training code: a difference to the stored one is said, since only `key` decides.
    """
    path = weights_path(name, key)
    described = json.dumps({"name": name, **key}, sort_keys=True)
    if path.exists():
        try:
            if _load(path, module, described).get("source", source) != source:
                progress.say(f"{path} was trained by other code than {name}'s now; delete it to train again")
            return weights_hash(module)
        except BenchError as problem:
            aside = path.with_suffix(".corrupt")
            path.replace(aside)
            progress.say(f"{problem}; set aside as {aside.name}, training again")
    elsewhere = getattr(module, "computes_on", None)  # where the weights are in another process
    here = next((p.device for p in module.parameters()), torch.device("cpu"))
    device = elsewhere if isinstance(elsewhere, torch.device) else here
    kept = CheckpointingProgress(progress, path.with_suffix(".checkpoint"), f"{described} {source}")
    generator = draws.generator(device, "train", name, described)
    fit(generator, kept)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content = save(
        state, {"key": described, "sha256": _hash(state), "losses": json.dumps(kept.losses), "source": source}
    )
    places.write_atomically(path, lambda file: file.write(content))
    kept.forget()
    module.eval()
    return weights_hash(module)


def check(path: Path, module: nn.Module | None = None) -> str:
    """The sha256 of a file's tensors. Raises BenchError if it cannot be read, does not match its own checksum, or does
    not fit `module`, where one is given."""
    tensors, metadata = _sound(path)
    if module is not None:
        try:
            _fits(module, tensors)
        except ValueError as problem:
            raise BenchError(f"{path} {problem}") from problem
    return metadata["sha256"]


def _sound(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as problem:
        raise BenchError(f"{path} cannot be read ({problem})") from problem
    if metadata.get("sha256") != _hash(tensors):
        raise BenchError(f"{path} is corrupted: its tensors do not match their checksum")
    return tensors, metadata


def _read(path: Path, described: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = _sound(path)
    if metadata.get("key") != described:
        raise BenchError(f"{path} was trained for another key ({metadata.get('key')}), expected {described}")
    return tensors, metadata


def _load(path: Path, module: nn.Module, described: str) -> dict[str, str]:
    tensors, metadata = _read(path, described)
    try:
        _fill(module, tensors)
    except ValueError as problem:
        raise BenchError(f"{path} {problem}") from problem
    module.eval()
    return metadata


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all tensors or, with ValueError, none: `load_state_dict` takes those that fit before it complains."""
    _fits(module, tensors)
    module.load_state_dict(dict(tensors))


def _fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless a module has these tensors and no others, each of its shape and type."""
    mine = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    theirs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    strange = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if strange:
        raise ValueError(f"does not fit the module: {', '.join(strange)} differ in name, shape or type")


class CheckpointingProgress(Progress):
    """Shows what `shown` shows and keeps one checkpoint of the training that runs, as safetensors.

    An optimizer's state is kept with its module's, tensor by tensor; a checkpoint that is torn or of another key is
    ignored, which costs the epochs it held and nothing else.
    """

    def __init__(self, shown: Progress, path: Path, described: str) -> None:
        self.shown, self.path, self.described = shown, path, described
        self.losses: dict[str, list[float]] = {}
        self._begun: set[str] = set()

    def task(self, label: str, total: float, done: float = 0) -> AbstractContextManager[Advance]:
        return self.shown.task(label, total, done)

    def say(self, message: str) -> None:
        self.shown.say(message)

    def restore(self, label: str, stateful: Mapping[str, Any]) -> tuple[int, list[float]]:
        if label in self._begun:
            raise ValueError(f"two trainings of one fit are called {label!r}; give each a label of its own")
        self._begun.add(label)
        path = self._of(label)
        if not path.exists():
            return 0, []
        try:
            tensors, metadata = _read(path, f"{self.described} {label}")
            for name, part in stateful.items():
                mine = {
                    key.removeprefix(f"{name}|"): value for key, value in tensors.items() if key.startswith(f"{name}|")
                }
                _unflatten_into(part, mine)
        except (BenchError, RuntimeError, KeyError, ValueError) as problem:
            self.say(f"{label}: {problem}; the checkpoint is ignored")
            return 0, []
        losses = [float(loss) for loss in json.loads(metadata["losses"])]
        self.losses[label] = losses
        self.say(f"{label}: resumes after epoch {len(losses)}")
        return len(losses), list(losses)

    def checkpoint(self, label: str, stateful: Mapping[str, Any], losses: list[float]) -> None:
        self.losses[label] = list(losses)
        tensors = {f"{name}|{key}": value for name, part in stateful.items() for key, value in _flatten(part).items()}
        metadata = {
            "key": f"{self.described} {label}",
            "sha256": _hash(tensors),
            "losses": json.dumps(losses),
        }
        content = save(tensors, metadata)
        places.write_atomically(self._of(label), lambda file: file.write(content))

    def forget(self) -> None:
        """Delete the checkpoints: the weights are written."""
        for path in self.path.parent.glob(f"{self.path.stem}.*.checkpoint"):
            path.unlink()

    def _of(self, label: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{seeds.digest(label)[:8]}.checkpoint")


def _flatten(part: nn.Module | Optimizer) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in part.state_dict().items()}
    state = part.state_dict()["state"]
    return {
        f"{index}|{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def _unflatten_into(part: nn.Module | Optimizer, tensors: Mapping[str, Tensor]) -> None:
    if isinstance(part, nn.Module):
        _fill(part, tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("|", 1)
        state.setdefault(int(index), {})[name] = value
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
