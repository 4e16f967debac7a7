"""Limits that no controller can have are refused, and so are the options that ask for them."""

from __future__ import annotations

from typing import Any

import pytest

from nvmeemu.controller.bounds import CHOICES, OPTIONS
from nvmeemu.controller.limits import MOST_TRANSFER, Limits


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"entries": 1}, "mqes 1 is not within"),
        ({"entries": 65537}, "mqes 65537 is not within"),
        ({"mdts": 0}, "mdts 0 is not within"),
        ({"mdts": 10}, "mdts 10 is too large for pages of 4 KiB"),
        ({"min_page_shift": 1}, "mdts 9 is too large for pages of 8 KiB"),
        ({"min_page_shift": 3, "max_page_shift": 2, "mdts": 1}, "mpsmin 3 is above mpsmax 2"),
        ({"aerl": 0}, "aerl 0 is not within"),
        ({"dstrd": 16}, "dstrd 16 is not within"),
        ({"version": "1.5"}, "nvme-version 1.5 is none of 1.2, 1.3, 1.4, 2.0"),
        ({"namespaces": 0}, "max-namespaces 0 is not within"),
    ],
)
def test_what_no_controller_can_be_is_refused(limits: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Limits(**limits)


def test_each_option_is_one_of_a_controller_that_can_be() -> None:
    for field, option in OPTIONS.items():
        for value in (option.least, option.most, option.default):
            limits = Limits.of({option.keyword: value})
            assert getattr(limits, field) == value
            assert limits.transfer <= MOST_TRANSFER
    for field, choice in CHOICES.items():
        for word in choice.choices:
            assert getattr(Limits.of({choice.keyword: word}), field) == word
    assert Limits.of({}) == Limits()
    assert Limits.of({"mdts": None, "mpsmin": 2, "queues": 3}, has_msix=False) == Limits(
        mdts=7, min_page_shift=2, io_queues=3, vectors=0
    )
