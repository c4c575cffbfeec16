"""Reads a stream of each API with the official packages, from a gateway whose model is silent in between: `sdks.py URL MODEL`. Prints what came as JSON."""

import json
import sys

from anthropic import Anthropic
from openai import OpenAI

url, model = sys.argv[1:]
openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
anthropic = Anthropic(base_url=url, api_key="none", max_retries=0)
messages = [{"role": "user", "content": "hi"}]
came = {}

# As they come.
chunks = [chunk.choices[0].delta for chunk in openai.chat.completions.create(model=model, messages=messages, stream=True)]
came["chat"] = ["".join(delta.content or "" for delta in chunks), sum(not delta.content for delta in chunks)]
texts = [chunk.choices[0].text for chunk in openai.completions.create(model=model, prompt="hi", stream=True)]
came["text"] = ["".join(texts), sum(not text for text in texts)]
events = list(openai.responses.create(model=model, input="hi", stream=True))
came["responses"] = [
    "".join(event.delta for event in events if event.type == "response.output_text.delta"),
    sum(event.type == "response.in_progress" for event in events),
]
# As the packages put them together, which takes every event for what it says.
with openai.chat.completions.stream(model=model, messages=messages) as stream:
    came["chat together"] = [stream.get_final_completion().choices[0].message.content, 0]
with openai.responses.stream(model=model, input="hi") as stream:
    came["responses together"] = [stream.get_final_response().output_text, 0]
with anthropic.messages.stream(model=model, max_tokens=9, messages=messages) as stream:
    came["messages together"] = ["".join(block.text for block in stream.get_final_message().content), 0]
json.dump(came, sys.stdout)
