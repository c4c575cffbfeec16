"""What all client suites share: where the gateway is, which model it serves, and a tool whose arguments can be checked."""

import os
import pathlib
import re

import pytest

CITIES = ["Lima", "Cusco"]
UNITS = ["celsius", "fahrenheit"]

# As JSON Schema: the small model of the tests is held to it by guided decoding.
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": CITIES},
        "unit": {"$ref": "#/$defs/unit"},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"type": "string", "enum": UNITS}},
}


def block(section: str, language: str) -> str:
    """The block of a section of docs/clients.md."""
    page = pathlib.Path(__file__).parents[3] / "docs/clients.md"
    _, _, rest = page.read_text().partition(f"\n## {section}\n")
    text = re.search(rf"^```{language}\n(.*?)^```", rest.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert text, f"{page} has no block of {language} in '{section}'"
    return text[1]


def check_weather(arguments: dict) -> None:
    """The arguments of a call have the schema."""
    assert set(arguments) == {"city", "unit"}, arguments
    assert arguments["city"] in CITIES and arguments["unit"] in UNITS, arguments


@pytest.fixture(scope="session")
def address() -> str:
    """The gateway's `http://host:port`."""
    return os.environ["LLAMERO_URL"].rstrip("/")


@pytest.fixture(scope="session")
def base_url(address: str) -> str:
    """What OpenAI's clients take."""
    return f"{address}/v1"


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["LLAMERO_MODEL"]
