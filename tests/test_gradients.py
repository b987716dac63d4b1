"""Finite differences beside gradients: honest ones agree, planted ones do not."""

from __future__ import annotations

import math

import fakes
import pytest
from torch import nn

from bench.submissions import gradients
from defenses.identity import Identity
from defenses.identity_vae import IdentityVAE, SampledIdentityVAE


@pytest.mark.parametrize("cls", [Identity, IdentityVAE, SampledIdentityVAE, fakes.Noise, fakes.Saturates])
def test_a_true_gradient_is_the_slope_of_the_answers(cls):
    assert "is the slope of the answers" in gradients.advice(cls)


def test_a_gradient_that_lies_is_told():
    said = gradients.advice(fakes.Misleads)
    assert said.startswith("ADVICE: along the gradient the answers change by -")


def test_another_functions_gradient_is_told():
    class Sideways(fakes.Fake):
        differentiable = True

        def purify(self, images, generator):
            shifted = images.roll(5, dims=2)
            return images.detach() + shifted - shifted.detach()

    assert gradients.advice(Sideways).startswith("ADVICE")


def test_no_gradient_has_no_slope():
    class Detached(fakes.Detaches):
        differentiable = True

    assert "change by nan" in gradients.advice(Detached)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert math.isnan(gradients.agreement(fakes.Detaches(net), gradients.checks.sixteen_digits()[:2]))


def test_a_defense_that_declares_no_gradient_hears_nothing():
    assert gradients.advice(fakes.Rounds) == ""
