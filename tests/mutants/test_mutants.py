"""The record of faults is kept: each mutant can still be planted, and names a check that exists."""

import subprocess
from collections import Counter

import pytest

from tests.mutants.mutant import ROOT, Mutant, mutants

MUTANTS = mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted(mutant: Mutant) -> None:
    """Its patch applies to the tree as it is; `make mutants` sees what becomes of it."""
    done = subprocess.run(["git", "apply", "--check", mutant.path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_see_a_mutant_exist(mutant: Mutant) -> None:
    """Each test that it names stands in the file that it names."""
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_no_fault_is_recorded_twice() -> None:
    """Each patch plants something else."""
    planted = Counter(mutant.path.read_text().partition("\ndiff --git ")[2] for mutant in MUTANTS)
    assert planted.most_common(1)[0][1] == 1
