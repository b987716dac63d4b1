"""MAD-VAE's control: the same pairs, reconstruction and KL divergence, and none of its own losses."""

from __future__ import annotations

from defenses.mad_vae import FAST, MADVAE

_NONE = {"classification_weight": 0.0, "proximity_weight": 0.0, "distance_weight": 0.0}


class MADVAEVanilla(MADVAE):
    """The VAE that MAD-VAE is compared with, "vanilla" in its tables: what the added losses do shows beside it.

    The report takes it for Defense-VAE. The released code trains it for 5 epochs on MAD-VAE's pairs with averaged
    binary cross-entropy and 0.1 times the KL divergence, where Defense-VAE sums its losses and has pairs of its own.
    """

    title = "MAD-VAE, vanilla"
    recipes = {"fast": {**FAST, **_NONE}, "paper": {**_NONE, "epochs": 5}}
