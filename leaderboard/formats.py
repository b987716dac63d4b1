"""How numbers, names and links are written on the pages: the template filters, and nothing that computes a result."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from bench import sources
from bench.protocol import AttackSpec
from bench.record import Record
from leaderboard.tables import Estimate

_THIN = "\u202f"  # narrow no-break space between a number and its unit
_MINUS = "\u2212"
_ACRONYMS = {"fgsm", "pgd", "apgd", "bim", "cw", "spsa"}
_SOURCES = {"identity_vae": "Identity VAE", "pgd_training": "PGD training"}
_ROUTES = {"bpda": "BPDA"}
_STRENGTHS = {"rho": "ρ = ", "C": "price "}
_CLASHES = {
    "weights": "mixed weights", "images": "different images", "code": "mixed code of the defense",
    "harness": "mixed versions of the harness", "attack_version": "attacks of another version",
}  # fmt: skip
_PUBLISHED = {
    "deepfool": "DeepFool", "apgd_margin": "APGD margin", "apgd_t": "APGD targeted", "square": "Square",
    "towards_class": "Towards a class", "fooling": "Fooling images", "vae_loss": "VAE loss",
    "overpowered": "Overpowered", "latent_ball": "Latent ball", "searched_ball": "Latent ball, searched",
    "hurried_apgd": "APGD in a hurry", "hurried_apgd_ce": "APGD-CE in a hurry", "latent_distance": "Latent distance",
    "target_code": "Target code", "universal": "Universal change", "latent_classifier": "Classifier of codes",
    "lagrangian_pgd": "Lagrangian PGD", "orthogonal_pgd": "Orthogonal PGD",
    "accepted_square": "Square, accepted",
    "mnist": "MNIST", "fmnist": "Fashion-MNIST", "digits": "scikit-learn's digits",
    "svhn": "SVHN", "cifar10": "CIFAR-10", "celeba": "CelebA", "coil100": "COIL-100",
}  # fmt: skip


class Interval(Protocol):
    """Whatever has the two ends of an interval."""

    @property
    def low(self) -> float:
        """The lower end."""
        ...

    @property
    def high(self) -> float:
        """The upper end."""
        ...


def percent(estimate: Estimate) -> str:
    """An accuracy: "97.3 %"; none of n prints as its upper Wilson bound, "≤ 0.4 %"."""
    if estimate.value == 0:
        return f"≤{_THIN}{100 * estimate.high:.1f}{_THIN}%"
    if estimate.value < 0.0005:
        return f"<{_THIN}0.1{_THIN}%"
    return f"{100 * estimate.value:.1f}{_THIN}%"


def percent_range(estimate: Estimate) -> str:
    """The interval of an accuracy, without the unit: "96.1–98.2"."""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def decimal(value: float) -> str:
    """A mean robust radius: "0.528"."""
    return f"{value:.3f}".replace("-", _MINUS)


def decimal_range(estimate: Estimate) -> str:
    """The interval of a mean robust radius: "0.501–0.555"."""
    return f"{decimal(estimate.low)}–{decimal(estimate.high)}"


def signed(value: float) -> str:
    """A difference with its sign: "+0.131", "−0.020"."""
    return _with_sign(f"{value:+.3f}")


def _with_sign(text: str) -> str:
    """A number that was formatted with its sign; what rounds to zero has a plus."""
    return text.replace("-", _MINUS if float(text) else "+")


def signed_range(estimate: Interval) -> str:
    """The interval of a difference: "+0.101 to +0.161"."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def points(value: float) -> str:
    """A difference of accuracies in percentage points with its sign: "+3.5"."""
    return _with_sign(f"{100 * value:+.1f}")


def points_range(estimate: Interval) -> str:
    """The interval of a difference of accuracies: "+1.0 to +6.0"."""
    return f"{points(estimate.low)} to {points(estimate.high)}"


def p_value(p: float) -> str:
    """A p-value in two digits: "0.042"; "< 0.001" where it is smaller."""
    return f"<{_THIN}0.001" if p < 0.001 else f"{p:.2g}"


def radius(eps: float | None) -> str:
    """A radius as short as it can be: "0.05"; a dash where an attack has no budget."""
    return "–" if eps is None else f"{eps:g}"


def thousands(count: float) -> str:
    """A count with thin spaces between thousands: "12 000" and one decimal where it is not whole."""
    text = f"{count:,.0f}" if float(count).is_integer() else f"{count:,.1f}"
    return text.replace(",", _THIN)


def compact(count: float) -> str:
    """A large count in three digits: "950", "12.3 k", "4.07 M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:#.3g}".rstrip(".") + f"{_THIN}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time in its largest fitting unit: "12 s", "3.5 min", "1.2 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 0.995 * size:
            return f"{seconds / size:.1f}{_THIN}{unit}"
    return f"{seconds:.0f}{_THIN}s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}{_THIN}s"


def brief(seconds: float) -> str:
    """A measured time in three digits: "0.42 ms", "1.43 s"."""
    return f"{_three(1000 * seconds)}{_THIN}ms" if seconds < 1 else f"{_three(seconds)}{_THIN}s"


def tick(seconds: float) -> str:
    """A power of ten on an axis of times: "10 ms", "1 s"."""
    return f"{1000 * seconds:g}{_THIN}ms" if seconds < 1 else f"{seconds:g}{_THIN}s"


def ratio(factor: float | None) -> str:
    """How many times as long, in three digits: "2.31", "1 840"; a dash for None."""
    return "–" if factor is None else _three(factor)


def _three(number: float) -> str:
    """Three significant digits, never an exponent."""
    if number <= 0:
        return "0"
    rounded = float(f"{number:.3g}")
    text = f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"
    return text.replace(",", _THIN)


def file_size(count: int) -> str:
    """The size of a file in its largest fitting unit: "950 B", "12.3 kB", "4.1 MB"."""
    for size, unit in ((1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f}{_THIN}{unit}"
    return f"{count}{_THIN}B"


def units(cost: float) -> str:
    """The cost of one purification in two digits: "0.03", "1.7", "240"; "< 0.01" for next to nothing."""
    if 0 < cost < 0.005:
        return f"<{_THIN}0.01"
    return f"{cost:.2g}" if 0 < cost < 10 else f"{cost:,.0f}".replace(",", _THIN)


def words(name: str) -> str:
    """An identifier for people: `gray_box` becomes "gray box"."""
    return name.replace("_", " ")


def attack_name(name: str) -> str:
    """An attack as its paper writes it: `r_fgsm` becomes "R-FGSM", `pgd` "PGD", `uniform_noise` "uniform noise"."""
    if name == "none":
        return "no attack"
    parts = name.split("_")
    if name in _PUBLISHED or _ACRONYMS.isdisjoint(parts):
        return _PUBLISHED.get(name) or " ".join(parts)
    return "-".join(part.upper() for part in parts)


def knowledge(what: AttackSpec | Record) -> str:
    """The track with what else the attacker knows: "white box, BPDA", "transfer, made on Identity VAE", "transfer, made
    on a substitute of the defense, B"."""
    source = f"made on {_SOURCES.get(what.source) or sources.parse(what.source).words}" if what.source else ""
    return ", ".join(filter(None, (words(what.track), _ROUTES.get(what.route, what.route), source)))


def clash_name(clash: str) -> str:
    """What keeps cells from being joined, in words: "mixed weights"."""
    return _CLASHES[clash]


def level(meaning: str) -> str:
    """The level that a rule's text begins with: "breach", "warning" or "note"."""
    return re.split(r"[:,]", meaning)[0].lower()


def dataset_name(name: str) -> str:
    """A data set as its authors write it."""
    return _PUBLISHED.get(name, name)


def norm_name(norm: str | None) -> str:
    """A norm's symbol; a dash where there is none."""
    return {"linf": "L∞", "l2": "L2"}.get(norm or "", norm or "–")


def strength(variant: str) -> str:
    """What sets a cell apart from others of its attack: `rho-2.5` becomes "ρ = 2.5", `C-1_64` "price 1/64", `one-step`
    "one step"; empty stays empty."""
    name, _, value = variant.partition("-")
    if name in _STRENGTHS and re.fullmatch(r"[\d.]+(_\d+)?", value):
        return _STRENGTHS[name] + value.replace("_", "/")
    return re.sub("[-_]", " ", variant)


def parameters(params: Mapping[str, object]) -> str:
    """Keyword arguments in one line, in alphabetical order: "steps 40, step_size 0.01"."""
    return ", ".join(f"{name} {_value(params[name])}" for name in sorted(params)) or "–"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def web_link(address: str) -> str:
    """`address` if it is an http or https link, else the empty string: nothing else may become an `href`."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return address if parts.scheme in ("http", "https") and parts.netloc else ""


def paper_name(address: str) -> str:
    """A short name for a paper's link: "arXiv:1805.06605", else the host."""
    found = re.search(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", address)
    return f"arXiv:{found[1]}" if found else urlsplit(web_link(address)).netloc or "paper"


def file_name(name: str) -> str:
    """A name that is safe in a path and a link; two different names never give the same one."""
    clean = re.sub(r"[^a-z0-9_.-]", "-", name.replace("+", ".").lower()).strip(".-")[:80]
    plain = re.fullmatch(r"[a-z0-9_+-]+", name) is not None and clean == name.replace("+", ".")
    return clean if plain else f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def listing(items: Iterable[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    items = list(items)
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1] if items else ""]))
