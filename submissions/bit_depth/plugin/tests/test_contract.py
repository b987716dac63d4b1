"""The contract, one test a point: what PurifyBench asks of every defense before it measures it."""

from __future__ import annotations

import pytest
from bit_depth import BitDepth

from bench import checks


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_the_contract_is_kept(check):
    check(BitDepth, checks.sixteen_digits())
