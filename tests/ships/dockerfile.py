"""A Dockerfile as what it builds: its stages, and the image that a stage comes to."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = tuple(sorted(path.parent.name for path in ROOT.glob("services/*/Dockerfile")))
"""Those that ship as an image of their own."""
FINAL = ""
"""The name of a Dockerfile's last stage here, which is what a build without a target gives."""


@dataclass
class Image:
    """What a stage inherits and says itself, as Docker would run it."""

    env: dict[str, str] = field(default_factory=dict)
    exposed: set[int] = field(default_factory=set)
    user: str = ""
    healthcheck: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


class Dockerfile:
    def __init__(self, service: str) -> None:
        text = (ROOT / "services" / service / "Dockerfile").read_text()
        text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
        self.lines = [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]
        self.bases: dict[str, str] = {}
        self._stages: dict[str, list[tuple[str, str]]] = {}
        for instruction, value in self.lines:
            if instruction == "FROM":
                base, _, name = value.partition(" AS ")
                self.bases[name] = base
                stage = self._stages[name] = []
            else:
                stage.append((instruction, value))

    def copied(self) -> set[str]:
        """The paths of the repository that it takes in."""
        copies = [value.split() for instruction, value in self.lines if instruction == "COPY"]
        return {path for words in copies if not words[0].startswith("--from") for path in words[:-1]}

    def commands(self) -> list[str]:
        """What its RUN instructions run, one command each."""
        runs = [value for instruction, value in self.lines if instruction == "RUN"]
        return [command.strip() for run in runs for command in run.split("&&")]

    def image(self, stage: str = FINAL) -> Image:
        """The image of a stage. What the base images outside set is not known here."""
        image = self.image(self.bases[stage]) if stage in self.bases else Image()
        for instruction, value in self._stages.get(stage, []):
            match instruction:
                case "ENV":
                    image.env |= dict(word.split("=", 1) for word in value.split())
                case "EXPOSE":
                    image.exposed |= set(map(int, value.split()))
                case "USER":
                    image.user = value
                case "HEALTHCHECK":
                    image.healthcheck = value
                case "ENTRYPOINT":
                    image.entrypoint, image.command = _words(value), []
                case "CMD":
                    image.command = _words(value)
        return image


def _words(command: str) -> list[str]:
    """A command in either of its forms, the exec form and the shell's."""
    words: list[str] = json.loads(command) if command.startswith("[") else ["/bin/sh", "-c", command]
    return words
