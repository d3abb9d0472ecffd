"""The Dockerfile as it stands; what its steps do is shown by `make check-images`."""

import pytest
from tests.deploy.images import DEBIAN, DOCKERFILE, ROOT, ImageError, Stage, Step, parse
from tests.deploy.test_manifests import SOURCE

STAGES = {stage.name: stage for stage in parse(DOCKERFILE.read_text())}


def test_lines_that_go_on_are_one_instruction_and_comments_are_none() -> None:
    text = "# about\nFROM debian:x-slim AS a\nRUN one \\\n # between\n && two\nUSER 1:1\n\nFROM a AS b\n"
    assert parse(text) == [
        Stage("a", "debian:x-slim", (Step("RUN", "one  && two"), Step("USER", "1:1"))),
        Stage("b", "a", ()),
    ]
    with pytest.raises(ImageError):
        parse("RUN one\nFROM a AS b\n")


def test_stages_begin_from_debian_or_an_earlier_one() -> None:
    earlier: set[str] = set()
    for name, stage in STAGES.items():
        assert stage.begins in earlier or DEBIAN.fullmatch(stage.begins)
        for step in stage.steps:
            if step.word == "COPY" and step.rest.startswith("--from="):
                assert step.rest.split()[0].removeprefix("--from=") in earlier
        earlier.add(name)


def test_files_that_are_copied_are_there() -> None:
    for stage in STAGES.values():
        for step in stage.steps:
            if step.word == "COPY" and not step.rest.startswith("--from="):
                assert [name for name in step.rest.split()[:-1] if not (ROOT / name).exists()] == []


def test_there_is_a_stage_for_each_image_of_the_manifests() -> None:
    named = {
        line.split("tidegate/")[1].strip()
        for path in SOURCE.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("image: ")
    }
    assert named == {"sync", "node-agent", "etcd"}
    assert named <= STAGES.keys()


def test_the_lock_of_the_images_has_the_versions_that_are_tested() -> None:
    def pins(name: str) -> set[str]:
        return {line.split()[0] for line in (ROOT / name).read_text().splitlines() if "==" in line.split("#")[0]}

    assert pins("requirements-runtime.lock") < pins("requirements.lock")
