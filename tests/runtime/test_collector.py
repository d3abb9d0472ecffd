"""What is built to stay is out of the garbage collector's sight, and nothing else."""

import gc

import pytest

from tidegate.runtime.collector import building


def test_what_is_built_is_not_looked_at_again() -> None:
    kept: list[list[int]] = []
    try:
        with building():
            assert not gc.isenabled()
            kept += ([number] for number in range(1000))
        assert gc.isenabled()
        assert gc.get_freeze_count() >= 1000
        seen = {id(each) for each in gc.get_objects()}
        assert not any(id(each) in seen for each in kept)
        kept.append([0])
        assert id(kept[-1]) in {id(each) for each in gc.get_objects()}
    finally:
        gc.unfreeze()


def test_it_is_on_again_after_a_failure() -> None:
    try:
        with pytest.raises(KeyError), building():
            raise KeyError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
