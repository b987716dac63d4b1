"""The contract of bench.defense as a list of checks, run on every installed defense and by submitters on their own.

Each `check_*` takes the class and 16 images (N, C, H, W) in [0, 1], builds an untrained instance in front of an
untrained classifier, and raises ContractError with what was found and what to do. No check knows a defense by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from bench import brief_fit, classifiers, cost, draws, memory, training
from bench.defense import Defense, has_door, settings
from bench.errors import BenchError
from bench.guards import untouched
from bench.isolation import Isolated

Check = Callable[[type[Defense], Tensor], None]
CLOSE = 1e-5  # between two orders of the same floating-point work, on images
CLOSE_OF_LARGEST = 1e-4  # the same of answers on a scale of their own, relative to the largest of the batch
ANSWERS = ("purify", "logits", "rejection_score", "class_scores")  # that a defense is scored or attacked by


class ContractError(BenchError):
    """A defense breaks a point of the contract."""


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _build(cls: type[Defense], images: Tensor) -> Defense:
    """An untrained instance in front of untrained classifier A, the same at every call."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    classifier = classifiers.build("A", shape).requires_grad_(False)
    _, chosen = settings(cls, None, shape)
    with training.global_seed(0):
        return cls(classifier, **{**chosen, **cls.brief}).eval()


def _purify(defense: Defense, images: Tensor, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return defense.purify(images, draws.generator(images.device, "check", seed))


def _logits(defense: Defense, images: Tensor, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return defense.logits(images, draws.generator(images.device, "check", seed))


def _doors(defense: Defense) -> list[str]:
    """The ANSWERS that a defense gives by a method of its own."""
    return [door for door in ANSWERS if has_door(defense, door)]


def _answers(
    defense: Defense, images: Tensor, seed: int = 0, *, backwards: bool = False, gradients: bool = False
) -> dict[str, Tensor]:
    """All that a defense answers to images, by door, each from the same state of the generator.

    Logits that are not its own are its classifier's at what it purified, as in scoring. `backwards` asks in the other
    order, `gradients` as an attacker does.
    """
    doors, found = _doors(defense), {}
    with torch.set_grad_enabled(gradients):
        for door in reversed(doors) if backwards else doors:
            given = images.clone().requires_grad_() if gradients else images
            found[door] = getattr(defense, door)(given, draws.generator(images.device, "check", seed))
        if "logits" not in doors:
            found["logits"] = defense.classifier(found["purify"])
    return {door: answer.detach() for door, answer in found.items()}


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """By how much two times the same answers differ, by door, where it is more than rounding explains.

    Images have a scale, [0, 1]; logits and scores have the one of the largest of them, whatever it is: a score may be
    counted in millionths, as a board sets its own threshold. They get the wider tolerance, since a score is often a
    small difference between large numbers.
    """
    for door, answer in one.items():
        same = (answer == other[door]) | (answer.isnan() & other[door].isnan())
        gap = float(torch.where(same, 0, (answer - other[door]).abs()).max())
        largest = float(answer.nan_to_num(0, 0, 0).abs().max())
        if not gap <= (CLOSE if door == "purify" else CLOSE_OF_LARGEST * largest):  # so also where it is no number
            yield door, gap


def check_facts(cls: type[Defense], images: Tensor) -> None:
    """Title, paper, year, kind and a docstring are there: the board shows them."""
    for fact, kind in (("title", str), ("paper", str), ("year", int), ("trained_on", str)):
        value = getattr(cls, fact, None)
        _expect(
            isinstance(value, kind) and bool(value),
            f"{cls.__name__}.{fact} is {value!r}, expected a {kind.__name__}; set it",
        )
    _expect(
        cls.paper.startswith(("https://", "http://")),
        f"{cls.__name__}.paper is {cls.paper!r}, expected a link",
    )
    _expect(1990 <= cls.year <= 2100, f"{cls.__name__}.year is {cls.year}, expected the year of publication")
    kinds = ("purifier", "selective", "hardened")
    _expect(cls.kind in kinds, f"{cls.__name__}.kind is {cls.kind!r}, expected one of {', '.join(kinds)}")
    _expect(
        bool((cls.__doc__ or "").strip()),
        f"{cls.__name__} has no docstring; its first line is the board's summary",
    )


def check_builds_from_keywords(cls: type[Defense], images: Tensor) -> None:
    """Every hyper-parameter is a keyword with a default, and every recipe sets existing ones."""
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[2:]:
        wanted = parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is not inspect.Parameter.empty
        _expect(
            wanted,
            f"{cls.__name__}.__init__: {parameter.name} must be keyword-only with the paper's default",
        )
    _expect(bool(cls.recipes), f"{cls.__name__}.recipes is empty; leave it out or name one")
    for recipe in cls.recipes:
        settings(cls, recipe)
    _build(cls, images)


def check_classifier_is_not_a_child(cls: type[Defense], images: Tensor) -> None:
    """The shared classifier is neither saved nor trained nor moved with a purifier."""
    defense = _build(cls, images)
    _expect(
        isinstance(defense.classifier, nn.Module),
        f"{cls.__name__} has no classifier; call super().__init__(classifier)",
    )
    if cls.kind == "purifier":
        shared = {id(parameter) for parameter in defense.classifier.parameters()}
        mine = [name for name, parameter in defense.named_parameters() if id(parameter) in shared]
        _expect(
            not mine,
            f"{cls.__name__} owns the classifier's parameter {mine[:1]}; use self.classifier, assign it nowhere",
        )


def check_images_come_back(cls: type[Defense], images: Tensor) -> None:
    """Same shape, type and device, finite, in [0, 1]; for 16 images, for one, for black, white and noise."""
    defense = _build(cls, images)
    noise = draws.ImageDraws.derived(torch.arange(4), "check").uniform(*images.shape[1:])
    for what, batch in {
        "16 images": images,
        "one image": images[:1],
        "black images": torch.zeros_like(images[:2]),
        "white images": torch.ones_like(images[:2]),
        "uniform noise": noise,
    }.items():
        purified = _purify(defense, batch)
        name = f"{cls.__name__}.purify of {what}"
        _expect(isinstance(purified, Tensor), f"{name} returned {type(purified).__name__}, expected a tensor")
        same = (purified.shape, purified.dtype, purified.device) == (batch.shape, batch.dtype, batch.device)
        _expect(
            same,
            f"{name} returned {purified.dtype} {tuple(purified.shape)} on {purified.device}, expected {batch.dtype} "
            f"{tuple(batch.shape)} on {batch.device}",
        )
        _expect(bool(purified.isfinite().all()), f"{name} returned values that are not finite")
        low, high = float(purified.min()), float(purified.max())
        _expect(
            low >= 0 and high <= 1,
            f"{name} returned values in [{low:.4g}, {high:.4g}], expected [0, 1]; rescale or clamp the output",
        )


def check_logits(cls: type[Defense], images: Tensor) -> None:
    """Logits are (N, K) and finite; unless overridden they are the classifier's at the purified image."""
    defense = _build(cls, images)
    logits = _logits(defense, images)
    _expect(
        logits.ndim == 2 and len(logits) == len(images) and bool(logits.isfinite().all()),
        f"{cls.__name__}.logits returned {tuple(logits.shape)}, expected ({len(images)}, classes), all finite",
    )


def check_input_is_unchanged(cls: type[Defense], images: Tensor) -> None:
    """The caller's images are not written to, whatever is asked of them."""
    defense, before = _build(cls, images), images.clone()
    for door in _doors(defense):
        with torch.no_grad():
            getattr(defense, door)(images, draws.generator(images.device, "check", 0))
        _expect(torch.equal(images, before), f"{cls.__name__}.{door} changed its input; work on images.clone()")


def check_same_seed_same_output(cls: type[Defense], images: Tensor) -> None:
    """All randomness comes from the generator: same seed, same answers, whatever torch's global seed is."""
    defense = _build(cls, images)
    with training.global_seed(1):
        first = _answers(defense, images)
    with training.global_seed(2):
        second = _answers(defense, images)
    for door, answer in first.items():
        _expect(
            torch.equal(answer, second[door]),
            f"{cls.__name__}.{door} differs between two calls with the same generator; pass it to every random call",
        )


def check_global_randomness_is_untouched(cls: type[Defense], images: Tensor) -> None:
    """torch's global generator is not used: a random attack would see its numbers."""
    defense = _build(cls, images)
    before = torch.random.get_rng_state()
    _answers(defense, images)
    unused = torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(before)
    _expect(unused, f"{cls.__name__} draws from torch's global generator; pass generator=... instead")


def check_randomness_is_declared(cls: type[Defense], images: Tensor) -> None:
    """Other seeds give other answers if and only if `stochastic` says so."""
    defense = _build(cls, images)
    first = _answers(defense, images)
    others = (_answers(defense, images, seed) for seed in (1, 2))
    differs = any(not torch.equal(answer, other[door]) for other in others for door, answer in first.items())
    _expect(
        differs == cls.stochastic,
        f"{cls.__name__} is {'random' if differs else 'deterministic'} but declares stochastic = {cls.stochastic}; "
        f"set stochastic = {differs}",
    )


def check_rows_are_independent(cls: type[Defense], images: Tensor) -> None:
    """An image's answers do not depend on the other images of the batch; deterministic ones not on its place."""
    defense = _build(cls, images)
    together = _answers(defense, images)
    others = images.clone()
    others[1:] = 1 - others[1:]
    for door, gap in _apart(_first(together), _first(_answers(defense, others))):
        raise ContractError(
            f"{cls.__name__}.{door}: image 0 changes by {gap:.2g} when the others change; use no statistics of the "
            "batch"
        )
    if cls.stochastic:
        return
    one_by_one = [_answers(defense, image[None]) for image in images]
    alone = {door: torch.cat([answers[door] for answers in one_by_one]) for door in together}
    reversed_order = {door: answer.flip(0) for door, answer in _answers(defense, images.flip(0)).items()}
    for what, found in {"alone": alone, "in reversed order": reversed_order}.items():
        for door, gap in _apart(together, found):
            raise ContractError(f"{cls.__name__}.{door}: an image asked {what} differs by {gap:.2g} from the batch")


def _first(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answers to the first image."""
    return {door: answer[:1] for door, answer in answers.items()}


def check_stateless(cls: type[Defense], images: Tensor) -> None:
    """To answer leaves no trace: weights, buffers and later answers stay as they were, in eval mode.

    A second instance is asked about other images first, so that what either keeps of its first batch shows, and in
    another order, so that what one answer keeps for the next does.
    """
    first, defense = _answers(_build(cls, images), images), _build(cls, images)
    before = training.weights_hash(defense)
    _answers(defense, 1 - images, seed=5)
    _expect(training.weights_hash(defense) == before, f"{cls.__name__}: to answer changed its weights or buffers")
    for door, answer in _answers(defense, images, backwards=True).items():
        _expect(
            torch.equal(answer, first[door]),
            f"{cls.__name__}.{door}: the same images give another answer after others were asked about; keep no state",
        )
    _expect(
        not any(module.training for module in defense.modules()),
        f"{cls.__name__}: to answer left a module in training mode",
    )


def check_grad_mode_makes_no_difference(cls: type[Defense], images: Tensor) -> None:
    """The attacker, who needs gradients, and the scorer, who does not, see the same values."""
    defense = _build(cls, images)
    for door, gap in _apart(_answers(defense, images), _answers(defense, images, gradients=True)):
        raise ContractError(
            f"{cls.__name__}.{door} differs by {gap:.2g} between gradients on and off; do not look at the grad mode"
        )


def check_gradient_reaches_the_images(cls: type[Defense], images: Tensor) -> None:
    """A differentiable defense has a finite, nonzero gradient; any other has one through `surrogate_logits`."""
    defense = _build(cls, images)
    door = "logits" if cls.differentiable else "surrogate_logits"
    attacked = images.clone().requires_grad_()
    with torch.enable_grad():
        out = getattr(defense, door)(attacked, draws.generator(images.device, "check", 0))
        _expect(out.requires_grad, f"{cls.__name__}.{door} has no gradient with respect to the images")
        (gradient,) = torch.autograd.grad(out.square().sum(), attacked, allow_unused=True)
    _expect(gradient is not None, f"{cls.__name__}.{door}: the images are not part of the graph")
    _expect(bool(gradient.isfinite().all()), f"{cls.__name__}.{door}: the gradient is not finite")
    dead = int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    advice = "set differentiable = False or mend it" if cls.differentiable else "give `approximate` a gradient"
    _expect(dead == 0, f"{cls.__name__}.{door}: the gradient is zero for {dead} of {len(images)} images; {advice}")


def check_surrogate_has_the_true_value(cls: type[Defense], images: Tensor) -> None:
    """`surrogate_logits` equals `logits` in value; whoever overrides one overrides both or is differentiable."""
    if has_door(cls, "logits") and not has_door(cls, "surrogate_logits"):
        _expect(
            cls.differentiable,
            f"{cls.__name__} overrides logits: override surrogate_logits too, or declare differentiable = True",
        )
    defense = _build(cls, images)
    with torch.no_grad():
        surrogate = defense.surrogate_logits(images, draws.generator(images.device, "check", 0))
    gap = float((surrogate - _logits(defense, images)).abs().max())
    _expect(
        gap <= 1e-3,
        f"{cls.__name__}.surrogate_logits is off by {gap:.2g} from logits; only its gradient may differ",
    )


def check_classifier_is_untouched(cls: type[Defense], images: Tensor) -> None:
    """Purifying and fitting leave the shared classifier's weights and mode alone."""
    defense = _build(cls, images)
    try:
        with untouched(defense.classifier):
            _logits(defense, images)
            if cls.kind == "purifier":
                brief_fit.one_step(defense)
    except RuntimeError as problem:
        raise ContractError(f"{cls.__name__}: {problem}") from problem


def check_fit_learns(cls: type[Defense], images: Tensor) -> None:
    """One step of `fit` on digits changes the weights, keeps them finite and leaves the data alone."""
    if not has_door(cls, "fit"):
        return
    defense = _build(cls, images)
    before, tiny = training.weights_hash(defense), brief_fit.tiny_data()
    _expect(
        bool(before),
        f"{cls.__name__} has a fit but no weights; register what it learns as parameters or buffers",
    )
    untrained = tiny.train.images.clone()
    brief_fit.one_step(defense)
    _expect(training.weights_hash(defense) != before, f"{cls.__name__}.fit changed no weights in its first step")
    finite = all(bool(tensor.isfinite().all()) for tensor in defense.state_dict().values())
    _expect(finite, f"{cls.__name__}.fit made weights that are not finite")
    _expect(torch.equal(tiny.train.images, untrained), f"{cls.__name__}.fit wrote to the training images")


def check_weights_hold_what_fit_learned(cls: type[Defense], images: Tensor) -> None:
    """A new instance with the saved weights answers as the trained one did: nothing learned is kept elsewhere."""
    if not has_door(cls, "fit"):
        return
    trained, loaded = _build(cls, images), _build(cls, images)
    brief_fit.one_step(trained)
    brief_fit.rest(trained)
    loaded.load_state_dict(trained.state_dict())
    for door, gap in _apart(_answers(trained, images), _answers(loaded.eval(), images)):
        raise ContractError(
            f"{cls.__name__}.{door}: with the saved weights the answer differs by {gap:.2g}; what fit learns belongs "
            "in parameters or in register_buffer, not in plain attributes"
        )


def check_latent_doors(cls: type[Defense], images: Tensor) -> None:
    """encode, posterior and decode fit together where they exist."""
    defense = _build(cls, images)
    with torch.no_grad():
        if has_door(cls, "posterior"):
            mean, log_variance = defense.posterior(images)
            fits = mean.shape == log_variance.shape and mean.ndim == 2 and len(mean) == len(images)
            _expect(fits, f"{cls.__name__}.posterior returned {tuple(mean.shape)} and {tuple(log_variance.shape)}")
        if has_door(cls, "encode"):
            codes = defense.encode(images)
            _expect(
                len(codes) == len(images),
                f"{cls.__name__}.encode returned {len(codes)} codes for {len(images)} images",
            )
            _expect(bool(codes.isfinite().all()), f"{cls.__name__}.encode gave codes that are not finite")
            if has_door(cls, "decode"):
                decoded = defense.decode(codes)
                _expect(
                    decoded.shape == images.shape,
                    f"{cls.__name__}.decode(encode(images)) is {tuple(decoded.shape)}, expected {tuple(images.shape)}",
                )
                inside = bool(((decoded >= -CLOSE) & (decoded <= 1 + CLOSE)).all())
                _expect(inside, f"{cls.__name__}.decode gave images that are not finite or leave [0, 1]")


def check_start_codes(cls: type[Defense], images: Tensor) -> None:
    """Random codes to start a search from are the decoder's, one for each image, and others for another seed."""
    if not has_door(cls, "start_codes"):
        return
    _expect(has_door(cls, "decode"), f"{cls.__name__} has start_codes and nothing that decodes them; give it decode")
    defense = _build(cls, images)
    with torch.no_grad():
        first, again, other = (
            defense.start_codes(images, draws.generator(images.device, "check", seed)) for seed in (0, 0, 1)
        )
        decoded = defense.decode(first)
    sound = len(first) == len(images) and bool(first.isfinite().all())
    _expect(sound, f"{cls.__name__}.start_codes returned {tuple(first.shape)}, expected ({len(images)}, ...), finite")
    _expect(
        torch.equal(first, again) and not torch.equal(first, other),
        f"{cls.__name__}.start_codes must follow from the generator alone; pass it to every random call",
    )
    _expect(
        decoded.shape == images.shape and bool(decoded.isfinite().all()),
        f"{cls.__name__}.decode(start_codes) is {tuple(decoded.shape)}, expected {tuple(images.shape)}, all finite",
    )


def check_hurried(cls: type[Defense], images: Tensor) -> None:
    """In a hurry a defense has the same classifier and weights, works no more, keeps the contract, and stays itself."""
    if not has_door(cls, "hurried"):
        return
    defense = _build(cls, images)
    before, first = training.weights_hash(defense), _logits(defense, images)
    quick = defense.hurried()
    _expect(isinstance(quick, Defense), f"{cls.__name__}.hurried returned {type(quick).__name__}, expected a Defense")
    _expect(
        quick.classifier is defense.classifier and training.weights_hash(quick) == before,
        f"{cls.__name__}.hurried has another classifier or other weights; return copy.copy(self) with less to do",
    )
    _expect(
        quick.stochastic == defense.stochastic,
        f"{cls.__name__}.hurried is stochastic = {quick.stochastic}, unlike the whole; make it so",
    )
    answers, again, purified = _logits(quick, images), _logits(quick, images), _purify(quick, images)
    sound = answers.shape == first.shape and bool(answers.isfinite().all()) and purified.shape == images.shape
    _expect(
        sound and bool(((purified >= 0) & (purified <= 1)).all()),
        f"{cls.__name__}.hurried answers {tuple(answers.shape)} for {tuple(first.shape)}, or leaves [0, 1] or is not "
        "finite; it must keep the contract",
    )
    _expect(torch.equal(answers, again), f"{cls.__name__}.hurried differs between two calls with the same generator")
    door = quick.logits if cls.differentiable else quick.surrogate_logits
    _, reaches = _differentiated(door, images)
    _expect(reaches, f"{cls.__name__}.hurried has no finite, nonzero gradient; it must lead where the whole's does")
    _expect(
        training.weights_hash(defense) == before and torch.equal(_logits(defense, images), first),
        f"{cls.__name__}.hurried changed the defense that it was made of; set nothing on self",
    )
    few = images[:4]
    whole_units, units = _units(defense, few), _units(quick, few)
    _expect(
        units <= whole_units,
        f"{cls.__name__}.hurried costs {units:.4g} forward and backward passes an image, the whole {whole_units:.4g}; "
        "it must spend less",
    )


def _units(defense: Defense, images: Tensor) -> float:
    """What a purification costs, counted where it happens."""
    if isinstance(defense, Isolated):
        return defense.units(images)
    return cost.purification_units(defense, defense.classifier, images)


def _differentiated(door: Callable[[Tensor, Generator], Tensor], images: Tensor) -> tuple[Tensor, bool]:
    """What a door says of `images`, and whether its gradient is finite and reaches each of them."""
    attacked = images.clone().requires_grad_()
    with torch.enable_grad():
        said = door(attacked, draws.generator(images.device, "check", 0))
        gradient = torch.autograd.grad(said.sum(), attacked, allow_unused=True)[0] if said.requires_grad else None
    if gradient is None:
        return said.detach(), False
    is_dead = gradient.flatten(1).abs().amax(dim=1).eq(0).any()
    return said.detach(), bool(gradient.isfinite().all() and not is_dead)


def check_rejection_score(cls: type[Defense], images: Tensor) -> None:
    """A selective defense scores each image with one finite number, the same for the same draw, with a gradient."""
    _expect(
        (cls.kind == "selective") == has_door(cls, "rejection_score"),
        f"{cls.__name__}: kind = 'selective' and rejection_score go together",
    )
    if not has_door(cls, "rejection_score"):
        return
    defense = _build(cls, images)
    with torch.no_grad():
        first, second = (defense.rejection_score(images, draws.generator(images.device, "check", 0)) for _ in range(2))
    _expect(
        first.shape == (len(images),) and bool(first.isfinite().all()),
        f"{cls.__name__}.rejection_score returned {tuple(first.shape)}, expected ({len(images)},), all finite",
    )
    _expect(
        torch.equal(first, second),
        f"{cls.__name__}.rejection_score differs between calls with the same generator",
    )
    _, reaches = _differentiated(defense.rejection_score, images)
    _expect(
        reaches,
        f"{cls.__name__}.rejection_score has no finite, nonzero gradient; give it a differentiable stand-in",
    )


def check_class_scores(cls: type[Defense], images: Tensor) -> None:
    """What a defense expects of each class: two finite numbers, with a gradient, that bound the rejection score."""
    if not has_door(cls, "class_scores"):
        return
    defense = _build(cls, images)
    _expect(has_door(cls, "rejection_score"), f"{cls.__name__} has class_scores and never refuses by them")
    scores, reaches = _differentiated(defense.class_scores, images)
    logits = _logits(defense, images)
    _expect(
        scores.shape == (*logits.shape, 2) and bool(scores.isfinite().all()),
        f"{cls.__name__}.class_scores returned {tuple(scores.shape)}, expected {(*logits.shape, 2)}, all finite",
    )
    _expect(
        reaches,
        f"{cls.__name__}.class_scores have no finite, nonzero gradient; give them a differentiable stand-in",
    )
    with torch.no_grad():
        score = defense.rejection_score(images, draws.generator(images.device, "check", 0))
    bound = scores[torch.arange(len(images)), logits.argmax(dim=1)].amax(dim=1)
    gap = float((score - bound).max())
    _expect(
        gap <= CLOSE * max(1.0, float(bound.max())),
        f"{cls.__name__}: the rejection score is larger by {gap:.2g} than the class_scores of the predicted class",
    )


ALL: tuple[Check, ...] = (
    check_facts,
    check_builds_from_keywords,
    check_classifier_is_not_a_child,
    check_images_come_back,
    check_logits,
    check_input_is_unchanged,
    check_same_seed_same_output,
    check_global_randomness_is_untouched,
    check_randomness_is_declared,
    check_rows_are_independent,
    check_stateless,
    check_grad_mode_makes_no_difference,
    check_gradient_reaches_the_images,
    check_surrogate_has_the_true_value,
    check_classifier_is_untouched,
    check_fit_learns,
    check_weights_hold_what_fit_learned,
    check_latent_doors,
    check_start_codes,
    check_hurried,
    check_rejection_score,
    check_class_scores,
)


@dataclass(frozen=True)
class Finding:
    """The result of one check: `problem` is empty where the contract is kept."""

    check: str
    meaning: str
    problem: str


def run(cls: type[Defense], images: Tensor | None = None) -> Iterator[Finding]:
    """Run every check on a class, one after the other; a check that crashes is a finding too. Raises BenchError where
    memory runs out."""
    batch = sixteen_digits() if images is None else images
    for check in ALL:
        meaning = (check.__doc__ or "").strip().splitlines()[0]
        try:
            check(cls, batch.clone())
            problem = ""
        except ContractError as broken:
            problem = str(broken)
        except (Exception, SystemExit) as crash:
            if memory.is_full(crash):
                raise memory.ended(f"{cls.__name__}, held to its contract", crash) from crash
            problem = f"{type(crash).__name__}: {crash}"
        yield Finding(check.__name__.removeprefix("check_"), meaning, problem)


def sixteen_digits() -> Tensor:
    """Sixteen real images, (16, 1, 28, 28)."""
    return brief_fit.digits().train.images[:16].clone()
