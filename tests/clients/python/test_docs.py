"""The blocks of Python in docs/clients.md, with the address and the model of the tests."""

import os

import pytest
from conftest import block

# What each environment of tests/clients has.
SECTIONS = os.environ["LLAMERO_DOCS"].split(",")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_block_runs_as_it_is_written(section, address, model, capsys):
    text = block(section, "python")
    assert "http://localhost:8000" in text and '"llama-8b"' in text
    code = text.replace("http://localhost:8000", address).replace('"llama-8b"', repr(model))
    exec(compile(code, section, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
