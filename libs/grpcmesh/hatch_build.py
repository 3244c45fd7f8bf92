"""Ships the policy with the library: its generated code, that of buf.validate which it imports, and its .proto file.

They stand elsewhere in the repository; an sdist holds them beside this file, where its wheel finds them.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Policy(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # which has gen/python on its path: dev-mode-dirs
            return
        here = Path(self.root)
        repository = here.parents[1]
        in_repository = {
            repository / "gen/python/buf": "buf",
            repository / "gen/python/mesh": "mesh",
            repository / "proto/mesh": "mesh",
        }
        in_sdist = {here / "buf": "buf", here / "mesh": "mesh"}
        sources = in_sdist if (here / "mesh").exists() else in_repository
        build_data["force_include"] |= {str(source): target for source, target in sources.items()}
