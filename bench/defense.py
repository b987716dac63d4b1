"""The contract: what a defense is. A submitter reads this file, writes one class, and runs `purifybench check`.

Images are float32 (N, C, H, W) with values in [0, 1], in and out, for any N >= 1. A defense purifies images before a
classifier sees them (`purify`), or brings its own answer (`logits`), or may refuse (`rejection_score`). It may loop,
optimise, draw random numbers and have no gradient: it says so in its class attributes, and `bench.checks` proves it.

- The classifier belongs to the harness: shared between defenses, frozen, in eval mode, its hash checked around every
  cell. It is not a child module, so it is neither trained nor saved nor moved with the defense.
- Purification is stateless, in eval mode, and independent of the other images of the batch.
- All randomness comes from the `generator` argument, which lives on the images' device.
- `__init__` takes the classifier and keyword hyper-parameters with the paper's defaults, and does no I/O. A parameter
  called `shape` receives the (C, H, W) of the data set.
- Scoring runs under `torch.no_grad()`: a method that optimises inside opens `torch.enable_grad()` itself.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import math
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from bench import seeds
from bench.data import Dataset
from bench.errors import BenchError, unknown
from bench.progress import Progress

Fact = float | tuple[float, ...]


class Defense(nn.Module, ABC):
    """A purifier in front of a classifier.

    Subclasses give the facts below and `purify`; the rest has defaults. A door that a defense does not have
    (`encode`, `posterior`, `decode`, `start_codes`, `hurried`, `rejection_score`, `class_scores`) raises
    NotImplementedError and is "not applicable".
    """

    title: ClassVar[str]  # for people: "Defense-GAN"
    paper: ClassVar[str]  # "https://arxiv.org/abs/1805.06605"
    year: ClassVar[int]
    kind: ClassVar[Literal["purifier", "selective", "hardened"]] = "purifier"
    stochastic: ClassVar[bool] = False  # True: two calls may differ, so attacks and scores average over draws
    differentiable: ClassVar[bool] = False  # True: autograd through `purify` gives its true gradient
    per_classifier: ClassVar[bool] = False  # True: trained for one classifier, whose weights are part of the key
    trained_on: ClassVar[str] = "nothing"  # "clean images", "FGSM and CW images of its classifier", ...
    version: ClassVar[int] = 1  # raise it when `fit` learns something else: weights of older versions are not used
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"paper": MappingProxyType({})})
    """Named hyper-parameters: "fast" for two CPU cores, "paper" for a GPU. The first is the default."""
    brief: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Hyper-parameters that bench.checks lays over the default recipe: less of the same work, such as fewer steps of a
    search, where the contract could not be proven in seconds. Nothing is measured with them, and a submission in a
    process of its own is proven without them."""

    classifier: nn.Module

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "classifier", classifier)  # past nn.Module: not a child

    def fit(self, data: Dataset, generator: Generator, progress: Progress) -> None:
        """Train on `data.train` and choose on `data.validation`; nothing to do unless overridden. `data.test` is
        empty here."""

    @abstractmethod
    def purify(self, images: Tensor, generator: Generator) -> Tensor:
        """Images moved back towards the clean data, same shape, in [0, 1]."""

    def logits(self, images: Tensor, generator: Generator) -> Tensor:
        """Class scores before softmax, (N, K): the classifier on the purified images unless overridden."""
        return self.classifier(self.purify(images, generator))  # type: ignore[no-any-return]

    def approximate(self, images: Tensor, generator: Generator) -> Tensor:
        """A differentiable stand-in for `purify` in the backward pass; the identity unless overridden."""
        return images

    def surrogate_logits(self, images: Tensor, generator: Generator) -> Tensor:
        """What BPDA differentiates (Athalye et al. 2018, arXiv:1802.00420): the value of `logits`, the gradient of the
        classifier after `approximate`."""
        state = generator.get_state()
        stand_in = self.approximate(images, generator)
        generator.set_state(state)  # the stand-in shares purify's draw
        return self.true_value(images, generator, stand_in)

    def true_value(self, images: Tensor, generator: Generator, stand_in: Tensor) -> Tensor:
        """The value of `logits`, (N, K), with the gradient of the classifier at the purified image, as if that were
        `stand_in` (N, C, H, W). Where a defense gives logits of its own, the gradient is that at the stand-in."""
        with torch.no_grad():
            if has_door(self, "logits"):
                value = self.logits(images, generator)
            else:
                purified = self.purify(images, generator)
        if has_door(self, "logits"):
            imitated = self.classifier(stand_in)
            return imitated + (value - imitated).detach()  # type: ignore[no-any-return]
        return self.classifier(stand_in + (purified - stand_in).detach())  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """The continuous code before any quantizer, (N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} has no encoder")

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the approximate posterior, each (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no posterior")

    def decode(self, latents: Tensor) -> Tensor:
        """Images from codes; contains the quantizer where there is one."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    def start_codes(self, images: Tensor, generator: Generator) -> Tensor:
        """A random code for each image, as `decode` takes them, (N, ...): where a search for its code may start. Other
        states of the generator give other codes. For a decoder without an encoder, such as a GAN's."""
        raise NotImplementedError(f"{type(self).__name__} does not say where a search for a code starts")

    def hurried(self) -> Defense:
        """The same defense that spends less inner work on each answer: fewer steps of a search, fewer restarts. For
        attackers who could not afford the whole at every step; nothing is scored with it. A defense without it is
        asked as a whole, which takes longer and spares it nothing.

        It has the same classifier and the same weights, shared or equal, and this defense stays as it is:
        `copy.copy(self)` with smaller settings is one. Its answers should be close to the whole's and its gradients
        lead where theirs do: one that hides a gradient only makes the defense look better than it is."""
        raise NotImplementedError(f"{type(self).__name__} cannot hurry")

    def facts(self, clean: Tensor, attacked: Tensor, correct: Tensor) -> Mapping[str, Fact]:
        """What each record tells of this defense alone: numbers, or tuples of them, by name; nothing unless overridden.

        `clean` and `attacked` are (N, C, H, W), row by row the same image; `correct` (N,) is the share of scoring draws
        in which the attacked image was classified correctly."""
        return {}

    def rejection_score(self, images: Tensor, generator: Generator) -> Tensor:
        """(N,), differentiable, published thresholds divided out: an image is accepted if and only if it is <= 1. From
        the same generator state it refers to the same draw as `logits`."""
        raise NotImplementedError(f"{type(self).__name__} never refuses")

    def class_scores(self, images: Tensor, generator: Generator) -> Tensor:
        """For a defense that refuses by what it expects of the predicted class: what it would say of each class,
        (N, K, 2), differentiable, published thresholds divided out. First the distance of the code to the class, then
        the reconstruction error. The rejection score is at most the larger of the predicted class's two, from the same
        draw."""
        raise NotImplementedError(f"{type(self).__name__} expects nothing of a class")


def has_door(defense: Defense | type[Defense], door: str) -> bool:
    """Whether a defense overrides an optional method of the contract, such as "encode" or "rejection_score"."""
    cls = defense if isinstance(defense, type) else type(defense)
    return getattr(cls, door) is not getattr(Defense, door)


def settings(
    cls: type[Defense], recipe: str | None = None, shape: tuple[int, int, int] = (1, 28, 28)
) -> tuple[str, dict[str, Any]]:
    """The name of a recipe (default: the class's first) and all hyper-parameters under it, for images of `shape`.

    Raises BenchError for an unknown recipe, for one that sets what `__init__` does not take, and for a hyper-parameter
    without a default or of a kind that a record cannot hold (numbers, strings, booleans, None and tuples of them can).
    """
    name = recipe or next(iter(cls.recipes))
    if name not in cls.recipes:
        raise unknown(f"recipe of {cls.__name__}", name, cls.recipes)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    defaults = {p.name: p.default for p in parameters if p.kind not in variable}
    strange = set(cls.recipes[name]) - set(defaults)
    if strange:
        raise BenchError(
            f"{cls.__name__}: recipe {name!r} sets {', '.join(sorted(strange))}, which __init__ does not take"
        )
    chosen = {**defaults, **({"shape": shape} if "shape" in defaults else {}), **cls.recipes[name]}
    for parameter, value in chosen.items():
        if value is inspect.Parameter.empty:
            raise BenchError(f"{cls.__name__}.__init__: {parameter} has no default; give it the paper's value")
        if not _is_plain(value):
            raise BenchError(
                f"{cls.__name__}.__init__: {parameter} = {value!r} cannot be written to a record; take a number, a "
                "string, a boolean, None or a tuple of them (the name of an activation, say, not its class)"
            )
    return name, chosen


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


_ELSEWHERE: weakref.WeakKeyDictionary[type[Defense], str] = weakref.WeakKeyDictionary()


def source_of(cls: type[Defense], digest: str) -> None:
    """Say what `source_hash` is for a class whose code is in another process."""
    _ELSEWHERE[cls] = digest


def source_hash(cls: type[Defense]) -> str:
    """A hash of the code of a defense: its module, its bases' outside `bench` and torch, and all that these import from
    the same packages. Comments, docstrings and layout do not count. A cell measured with other code is measured again.
    """
    return _ELSEWHERE.get(cls) or _source_hash(cls)


@functools.cache
def _source_hash(cls: type[Defense]) -> str:
    found: dict[str, str] = {}
    todo = [base.__module__ for base in cls.__mro__]
    while todo:
        name = todo.pop()
        package = name.split(".")[0]
        if name in found or package in ("bench", "torch", "abc", "builtins"):
            continue
        tree = _tree(name)
        found[name] = _essence(tree) if tree else ""
        for value in vars(sys.modules[name]).values() if name in sys.modules else ():
            other = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if isinstance(other, str) and other.split(".")[0] == package:
                todo.append(other)
        todo += [other for other in _imports(tree, name) if other.split(".")[0] == package] if tree else []
    return seeds.digest(sorted(essence or _bytecode(cls) for essence in found.values()))


def _tree(module: str) -> ast.Module | None:
    """A module's code; None where there is no source, as in a notebook, or no module of that name."""
    try:
        if module in sys.modules:
            return ast.parse(inspect.getsource(sys.modules[module]))
        spec = importlib.util.find_spec(module)
        return ast.parse(Path(spec.origin).read_text()) if spec is not None and spec.origin else None
    except (OSError, TypeError, SyntaxError, ImportError, ValueError):
        return None


def _imports(tree: ast.Module, module: str) -> list[str]:
    """The modules that a module's import statements name, those inside functions too."""
    named = []
    known = sys.modules.get(module)
    here = module if known is not None and hasattr(known, "__path__") else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = here.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            named += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [name for name in named if _is_module(name)]


def _is_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _essence(tree: ast.Module) -> str:
    """A module's code without prose."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or len(body) < 2 or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.unparse(tree)


def _bytecode(cls: type[Defense]) -> str:
    """The compiled methods of a class and its bases, for code without a source file."""

    def parts(code: CodeType) -> list[object]:
        inner = [parts(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts]
        return [code.co_code.hex(), code.co_names, inner]

    methods = [value for base in cls.__mro__ for value in vars(base).values() if inspect.isfunction(value)]
    return seeds.digest([parts(method.__code__) for method in methods if not method.__module__.startswith("torch")])
