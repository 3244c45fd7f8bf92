"""The README's first example."""

import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files, as they stand there, print what stands there."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
    for code in (text for language, text in blocks if language == "python"):
        file = tmp_path / code.partition("\n")[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    (console,) = (text for language, text in blocks if language == "console")
    command, _, output = console.partition("\n")
    assert command == "$ python notes.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path("notes.py", run_name="__main__")
    assert capsys.readouterr().out == output
