"""The controller against hosts that are wrong or hostile: random histories, judged at every step. See fuzz/machine.py.

NVMEEMU_FUZZ_SEED=N repeats or changes what hypothesis tries; in CI it is always the same.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from hunt import read_corpus
from machine import WIDTH, Machine, run_program, watched
from operations import OPERATIONS, Operation

pytestmark = pytest.mark.long

SEED = int(os.environ.get("NVMEEMU_FUZZ_SEED", "1" if "CI" in os.environ else random.randrange(1 << 32)))


class Histories(RuleBasedStateMachine):
    """A machine that hypothesis drives: each operation is a rule, the judge is asked after each."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(header=st.binary(min_size=WIDTH, max_size=WIDTH))
    def start(self, header: bytes) -> None:
        self.machine = Machine(header)
        self.stack.enter_context(watched(self.machine))
        self.machine.begin()

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "machine"):
                self.machine.finish()


def _rule(operation: Operation) -> Callable[..., Any]:
    @rule(args=st.binary(min_size=WIDTH - 1, max_size=WIDTH - 1))
    def do(self: Histories, args: bytes) -> None:
        self.machine.do(operation, args)

    return do


# An operation that stands in the table several times is as many rules: it is chosen as often.
for _number, _operation in enumerate(OPERATIONS):
    setattr(Histories, f"{_operation.__name__}_{_number}", _rule(_operation))


@pytest.mark.timeout(300)
def test_no_history_brings_the_controller_to_do_what_it_must_not() -> None:
    print(f"NVMEEMU_FUZZ_SEED={SEED}")
    run_state_machine_as_test(
        seed(SEED)(Histories),
        settings=settings(
            max_examples=120,
            stateful_step_count=60,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)
def test_every_program_of_the_corpus_runs_clean() -> None:
    """What the fuzzer has found to reach far, and what once showed a fault."""
    corpus = read_corpus()
    assert len(corpus) > 100
    for program in corpus:
        run_program(program)
