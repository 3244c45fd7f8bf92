"""Evaluates the Tiltfile as Tilt would, with functions in place of Tilt's own that write down how they were called."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import starlark
import yaml

from tests.ships.dockerfile import ROOT, SERVICES
from tests.ships.manifests import NAME, render

_GLOBALS = starlark.Globals.extended_by([starlark.LibraryExtension.StructType])
_PRELUDE = (
    'os = struct(environ={"PATH": "/usr/bin"}, path=struct(abspath=lambda path: path))\nTRIGGER_MODE_MANUAL = 1\n'
)
CERTIFICATES = [f"{service}-certificates" for service in SERVICES]


@dataclass
class Tilt:
    """What the Tiltfile asked of Tilt: by function, the arguments of each call by their names."""

    context: str = "kind-pizza"
    calls: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self) -> "Tilt":
        """Raises starlark.StarlarkError where the Tiltfile fails."""
        self._module("Tiltfile")
        return self

    def named(self, function: str, name: str) -> dict[str, Any]:
        (found,) = (call for call in self.calls[function] if call["name"] == name)
        return found

    def _module(self, path: str) -> starlark.FrozenModule:
        module = starlark.Module()
        for name, function in self._builtins().items():
            module.add_callable(name, function)
        for filename, text in (("prelude", _PRELUDE), (path, (ROOT / path).read_text())):
            ast = starlark.parse(filename, text, starlark.Dialect.extended())
            starlark.eval(module, ast, _GLOBALS, starlark.FileLoader(self._module))
        return module.freeze()

    def _builtins(self) -> dict[str, Callable[..., Any]]:
        return {
            "print": print,
            "version_settings": lambda **_: None,
            "analytics_settings": lambda _: None,
            "k8s_context": lambda: self.context,
            "kustomize": lambda folder: render(folder.removeprefix("k8s/")).text,
            "local": self._local,
            "decode_yaml_stream": lambda text: list(yaml.safe_load_all(text)),
            "link": lambda url, name: [url, name],
            "sync": lambda source, target: {"source": source, "target": target},
            "k8s_yaml": self._noting("k8s_yaml"),
            "k8s_resource": self._noting("k8s_resource"),
            "docker_build": self._noting("docker_build"),
            "local_resource": self._noting("local_resource"),
        }

    def _noting(self, function: str) -> Callable[..., None]:
        def note(name: str = "", context: Any = None, **arguments: Any) -> None:
            arguments |= {"name": name or arguments.get("new_name"), "context": context}
            self.calls.setdefault(function, []).append(arguments)

        return note

    def _local(self, command: str, **_: Any) -> str:
        """What a command prints that the Tiltfile runs while it is read; certificates are not made here."""
        if command != "tools/certificate_secrets":
            return ""
        secrets = [
            {
                "kind": "Secret",
                "metadata": {"name": name, "namespace": "pizza", "labels": {NAME: name.removesuffix("-certificates")}},
            }
            for name in CERTIFICATES
        ]
        return yaml.safe_dump_all(secrets)
