"""instructor in each of its modes that an OpenAI client has."""

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, ConfigDict


class Review(BaseModel):
    """A review."""

    # Else the schema allows more properties, and the small model never stops writing some.
    model_config = ConfigDict(extra="forbid")
    sentiment: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


ASK = dict(messages=[{"role": "user", "content": "Rate: the food was great."}], max_tokens=80, max_retries=0, temperature=0)
MODES = [
    instructor.Mode.TOOLS,
    instructor.Mode.TOOLS_STRICT,
    instructor.Mode.JSON_SCHEMA,
    instructor.Mode.RESPONSES_TOOLS,
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_an_answer_has_a_type(base_url, model, mode):
    client = instructor.from_openai(openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0), mode=mode)
    assert isinstance(client.chat.completions.create(model=model, response_model=Review, **ASK), Review)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA], ids=lambda mode: mode.value)
def test_a_type_is_streamed(base_url, model, mode):
    client = instructor.from_openai(openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0), mode=mode)
    partial = list(client.chat.completions.create_partial(model=model, response_model=Review, **ASK))
    assert len(partial) > 1 and partial[-1].stars in (1, 2, 3) and partial[-1].sentiment in ("good", "bad")
