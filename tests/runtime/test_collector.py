"""What is built to stay is out of the garbage collector's sight, and nothing else."""

import gc

import pytest

from tidegate.runtime import collector
from tidegate.runtime.collector import building, settled


def test_what_is_built_is_not_looked_at_again() -> None:
    kept: list[list[int]] = []
    with building():
        assert not gc.isenabled()
        kept += ([number] for number in range(1000))
    assert gc.isenabled()
    assert gc.get_freeze_count() >= 1000
    seen = {id(each) for each in gc.get_objects()}
    assert not any(id(each) in seen for each in kept)
    kept.append([0])
    assert id(kept[-1]) in {id(each) for each in gc.get_objects()}


def test_it_is_on_again_after_a_failure() -> None:
    with pytest.raises(KeyError), building():
        raise KeyError
    assert gc.isenabled()


def looked_at(what: object) -> bool:
    return any(each is what for each in gc.get_objects())


def test_what_outlives_a_full_collection_is_not_looked_at_again() -> None:
    settled()
    settled()
    kept, young = [[0]], [[1]]
    gc.collect(1)
    assert looked_at(kept)
    gc.collect()
    assert not looked_at(kept)
    young.append([2])
    assert looked_at(young[-1])


def test_now_and_then_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    settled()
    kept = [[0]]
    gc.collect()
    assert not looked_at(kept)
    monkeypatch.setattr(collector, "THOROUGH", 0.0)
    gc.collect()
    assert looked_at(kept)
    monkeypatch.setattr(collector, "THOROUGH", 3600.0)
    gc.collect()
    assert not looked_at(kept)
