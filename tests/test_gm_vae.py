"""GM-VAE: codes, both thresholds, what is refused, and the search that looks again."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Generator, nn

from bench import data, draws, evaluate, protocols, selective, training
from bench.data import Dataset
from bench.progress import Progress
from defenses.gm_vae import GMVAE, Found, GMVAEReclassify, GMVAESemi, GMVAEVariable
from leaderboard import tables

TINY = {"width": 4, "hidden": 16}


def built(cls: type[GMVAE] = GMVAE, **given) -> GMVAE:
    with training.global_seed(0):
        return cls(nn.Identity(), **{**TINY, **given}).eval()


@pytest.fixture(scope="module")
def few() -> Dataset:
    whole = data.load("digits")
    return Dataset("digits", whole.train[:400], whole.validation, whole.test[:0], whole.class_names, whole.split)


@pytest.fixture(scope="module")
def fitted(few) -> GMVAE:
    with training.global_seed(0):
        defense = GMVAEReclassify(nn.Identity(), **TINY, epochs=1, minimum_steps=200, batch_size=64, search_steps=50)
    defense.fit(few, draws.generator("cpu", "gm"), Progress())
    return defense.requires_grad_(False)


def test_means_are_one_hot_and_padded_with_zeros():
    assert torch.equal(built().means, torch.eye(10))
    padded = built(latent=13).means
    assert padded.shape == (10, 13) and torch.equal(padded[:, :10], torch.eye(10)) and not padded[:, 10:].any()


def test_the_entropy_is_constant_or_the_encoders_own():
    images = torch.rand(3, 1, 28, 28)
    assert built().posterior(images)[1].exp().allclose(torch.tensor(1 / 3000))
    mean, log_variance = built(GMVAEVariable, **GMVAEVariable.recipes["fast"] | TINY).posterior(images)
    assert mean.shape == log_variance.shape == (3, 10) and not torch.equal(log_variance[0], log_variance[1])


def test_the_label_is_that_of_the_nearest_mean(few):
    defense, images = built(), few.train.images[:20]
    nearest = torch.cdist(defense.encode(images), defense.means).argmin(dim=1)
    assert torch.equal(defense.logits(images, Generator()).argmax(dim=1), nearest)
    assert defense.classifier is not None and torch.equal(defense.classifier(images).argmax(dim=1), nearest)


def test_both_thresholds_leave_out_their_share_of_each_classs_training_images(fitted, few):
    images = few.train.images
    fitted.level, fitted.thresholds = 0.9, "training"
    try:
        fitted.set_thresholds(images)
        scores = fitted.class_scores(images, Generator())
        predicted = fitted.classifier(images).argmax(dim=1)
        for k in predicted.unique().tolist():
            mine = scores[predicted == k, k]
            if len(mine) > 20:  # else those of all images count
                assert (mine > 1).float().mean(dim=0).tolist() == pytest.approx([0.1, 0.1], abs=1.5 / len(mine))
    finally:
        fitted.level, fitted.thresholds = 0.9973, "chi_square"
        fitted.set_thresholds(images)


def test_the_chi_square_value_of_a_gaussian_refuses_its_tail():
    """Codes that are Gaussian around the means: a tenth lies beyond that value, whatever the covariance."""
    defense = built(level=0.9)
    made = Generator().manual_seed(0)
    stretched = 0.01 * torch.randn(6000, 10, generator=made) * torch.arange(1, 11)
    labels = torch.arange(6000) % 10
    defense.encode = lambda images: images.flatten(1)[:, :10]
    defense.decode = lambda codes: torch.zeros(len(codes), 1, 28, 28)
    images = torch.zeros(6000, 784)
    images[:, :10] = defense.means[labels] + stretched
    images = images.view(-1, 1, 28, 28)
    defense.set_thresholds(images)
    code_scores = defense.class_scores(images, Generator())[torch.arange(6000), labels, 0]
    assert float((code_scores > 1).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert defense.farthest[0] == pytest.approx(math.sqrt(15.987), rel=1e-3)  # from a table, 10 degrees


@pytest.mark.parametrize(("latent", "value"), [(10, 26.90), (32, 58.75), (100, 143.85)])
def test_the_encoders_covariance_takes_all_codes_alike_by_its_constant_variance(latent, value):
    """Distances over its deviation, against the chi-square value of the 3-sigma rule from a table. In 10 dimensions a
    code may lie 0.0947 from its mean, however far the training codes are spread."""
    defense = built(covariance="encoder", latent=latent).requires_grad_(False)
    defense.encode = lambda images: images.flatten(1)[:, :latent]
    images = torch.rand(60, 1, 28, 28, generator=Generator().manual_seed(1))
    defense.set_thresholds(images)
    assert (defense.farthest**2).tolist() == pytest.approx([value] * 10, rel=2e-4)
    apart = np.linalg.norm(images.flatten(1)[:, None, :latent].numpy() - np.eye(10, latent), axis=2)
    found = defense.class_scores(images, Generator())[:, :, 0].numpy()
    assert np.allclose(found, apart / math.sqrt(1 / 3000) / math.sqrt(value), rtol=3e-3)
    if latent == 10:
        assert np.allclose(found, apart / 0.0947, rtol=3e-3)


def test_the_decoders_threshold_is_three_deviations_above_each_classs_mean_error():
    """Errors are the images' lengths, as nothing is decoded; class 2 has too few images, and gets those of all."""
    defense = built()
    defense.encode = lambda images: defense.means[images[:, 0, 0, 0].round().long()]
    defense.decode = lambda codes: torch.zeros(len(codes), 1, 28, 28)
    images = torch.rand(420, 1, 28, 28, generator=Generator().manual_seed(1))
    images *= torch.linspace(0.1, 1, 420)[:, None, None, None]
    labels = torch.tensor([0] * 150 + [1] * 250 + [2] * 20)
    images[:, 0, 0, 0] = labels.float()
    defense.set_thresholds(images)
    errors = np.linalg.norm(images.flatten(1).double().numpy(), axis=1)
    for k, mine in enumerate([errors[:150], errors[150:400], errors]):
        assert float(defense.worst_error[k]) == pytest.approx(mine.mean() + 3 * mine.std(ddof=1), rel=1e-4)
    found = defense.class_scores(images, Generator())[:, :3, 1]
    assert torch.allclose(found, torch.as_tensor(errors)[:, None].float() / defense.worst_error[:3], rtol=1e-4)


def test_the_score_is_the_larger_of_the_predicted_classs_two(fitted, few):
    images = few.validation.images[:30]
    scores = fitted.class_scores(images, Generator())
    predicted = fitted.classifier(images).argmax(dim=1)
    mine = scores[torch.arange(30), predicted]
    assert torch.allclose(GMVAE.rejection_score(fitted, images, Generator()), mine.amax(dim=1))
    assert (fitted.rejection_score(images, Generator()) <= mine.amax(dim=1)).all()


def test_noise_is_refused_and_digits_are_not(fitted, few):
    score = GMVAE.rejection_score(fitted, few.validation.images[:100], Generator())
    noise = GMVAE.rejection_score(fitted, torch.rand(50, 1, 28, 28), Generator())
    assert float((score <= 1).float().mean()) > 0.7 and (noise > 1).all()


def test_the_search_finds_what_the_decoder_made(fitted):
    """Images decoded from codes near the means: the search gives back their class, and accepts them."""
    made = Generator().manual_seed(0)
    codes = fitted.means.repeat(3, 1) + 0.03 * torch.randn(30, 10, generator=made)
    images = fitted.decode(codes)
    found = fitted.reclassify(images)
    right = found.logits.argmax(dim=1) == torch.arange(10).repeat(3)
    assert float(right.float().mean()) > 0.9
    error = (fitted.decode(found.code) - images).flatten(1).norm(dim=1)
    starts = fitted.decode(fitted.means)
    assert (error <= (images[:, None] - starts).flatten(2).norm(dim=2).amin(dim=1) + 1e-6).all()
    alone = torch.cat([fitted.reclassify(image[None]).code for image in images[:4]])
    assert torch.allclose(alone, found.code[:4], atol=1e-3)


def test_refused_images_get_the_searchs_answer_and_accepted_ones_the_encoders(fitted, few):
    images = torch.cat([few.validation.images[:10], torch.rand(5, 1, 28, 28)])
    refused = GMVAE.rejection_score(fitted, images, Generator()) > 1
    assert refused[10:].all() and not refused.all()
    logits, encoders = fitted.logits(images, Generator()), fitted.classifier(images)
    assert torch.equal(logits[~refused], encoders[~refused])
    assert torch.allclose(logits[refused], fitted.reclassify(images[refused]).logits)
    assert (fitted.rejection_score(images, Generator())[10:] > 1).all()  # no code explains noise: fooling images


def test_after_a_search_the_smaller_score_counts_and_accepted_images_are_not_searched(monkeypatch):
    defense = built(GMVAEReclassify).requires_grad_(False)
    images = torch.rand(6, 1, 28, 28, generator=Generator().manual_seed(1))
    errors = defense._error(images, defense.encode(images))
    defense.worst_error[:] = errors.sort().values[1:3].mean()  # two are accepted, four refused
    encoders = GMVAE.rejection_score(defense, images, Generator())
    refused = encoders > 1
    assert int(refused.sum()) == 4
    found, asked = torch.tensor([0.5, 100.0, float(encoders[refused][2]) / 2, 100.0]), []

    def reclassify(some):
        asked.append(some)
        return Found(torch.zeros(4, 10), torch.zeros(4, 10), found)

    monkeypatch.setattr(defense, "reclassify", reclassify)
    score = defense.rejection_score(images, Generator())
    assert len(asked) == 1 and torch.equal(asked[0], images[refused])
    assert torch.equal(score[~refused], encoders[~refused])
    theirs = encoders[refused]
    assert torch.equal(score[refused], torch.stack([found[0], theirs[1], found[2], theirs[3]]))


def test_of_a_semi_supervised_one_only_so_many_labels_decide(few):
    """Other labels on the images whose own are not used change nothing; on the others they do."""
    chosen = {"labels_per_class": 3, "epochs": 1, "minimum_steps": 0, "batch_size": 200, "labelled_batch": 8}
    labels = few.train.labels
    known = built(GMVAESemi, **chosen)._known(labels, draws.generator("cpu", "known"))
    assert torch.bincount(labels[known], minlength=10).tolist() == [3] * 10

    def weights(known_too: bool) -> str:
        spoiled = (labels + 1) % 10
        if not known_too:
            spoiled[known] = labels[known]
        defense = built(GMVAESemi, **chosen)
        defense._known = lambda labels, generator: known
        split = dataclasses.replace(few.train, labels=spoiled)
        defense.fit(dataclasses.replace(few, train=split), draws.generator("cpu", "fit"), Progress())
        return training.weights_hash(defense)

    untouched = built(GMVAESemi, **chosen)
    untouched._known = lambda labels, generator: known
    untouched.fit(few, draws.generator("cpu", "fit"), Progress())
    assert weights(known_too=False) == training.weights_hash(untouched) != weights(known_too=True)
    assert GMVAESemi.recipes["paper"]["labels_per_class"] == 100


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shape": (1, 30, 28)}, "multiples of 4"), ({"latent": 9}, "dimension for each class"),
        ({"entropy": "none"}, "entropy 'constant' or 'variable'"), ({"covariance": "full"}, "covariance 'class'"),
        ({"thresholds": "best"}, "thresholds 'training'"), ({"level": 1.0}, "0 < level < 1"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        built(**wrong)


class SmallGMVAE(GMVAE):
    """So small that it trains in seconds."""

    recipes = {"fast": {**TINY, "epochs": 1, "minimum_steps": 60}}


@pytest.mark.slow
@pytest.mark.usefixtures("trained_home")
def test_its_authors_attacks_go_through_the_whole_harness(tmp_path, monkeypatch):
    whole = protocols.get("digits-selective-v1-quick-draft")
    names = ("clean.none", "rejection.towards_class.autograd", "rejection.fooling.autograd")
    chosen = [spec for spec in whole.attacks if spec.slug in names]
    short = [
        dataclasses.replace(spec, n_examples=None, params=tuple((k, 8 if k == "steps" else v) for k, v in spec.params))
        for spec in chosen
    ]
    asked = dataclasses.replace(
        whole, id="tiny-gm", n_examples=8, linf_radii=(0.3,), headline_radii=(0.3,), efforts=(), attacks=tuple(short)
    )
    monkeypatch.setattr(protocols, "PROTOCOLS", {**protocols.PROTOCOLS, asked.id: asked})
    cells = {cell.record.spec.slug: cell for cell in evaluate(SmallGMVAE, asked, records=tmp_path)}
    assert set(cells) == set(names) and {cell.record.status for cell in cells.values()} == {"ok"}
    assert all(cell.record.card.doors == ("class_scores",) for cell in cells.values())
    fooled = selective.answers(cells["rejection.fooling.autograd"], "1%")
    assert (fooled.right + fooled.wrong + fooled.refused == 1).all()
    assert (cells["rejection.fooling.autograd"].outcomes.linf > 0.5).all()  # in no ball around the clean image
    (row,) = tables.board(asked.id, list(cells.values())).rows
    assert not row.missing
    clean = cells["clean.none"]
    card = clean.record.card.model_copy(update={"doors": ()})
    plain = dataclasses.replace(clean, record=clean.record.model_copy(update={"card": card}))
    (row,) = tables.board(asked.id, [plain]).rows
    assert not row.missing  # not applicable is not missing
