"""The blocks of Python in docs/clients.md, with the address and the model of the tests."""

import os
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[3] / "docs/clients.md"
BLOCKS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
# What each environment of tests/clients has.
SECTIONS = os.environ["LLAMERO_DOCS"].split(",")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_block_runs_as_it_is_written(section, address, model, capsys):
    block = dict(BLOCKS)[section]
    assert "http://localhost:8000" in block and '"llama-8b"' in block
    code = block.replace("http://localhost:8000", address).replace('"llama-8b"', repr(model))
    exec(compile(code, f"{PAGE}: {section}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
