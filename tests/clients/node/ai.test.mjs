// Vercel's AI SDK through its providers for OpenAI-compatible servers and for OpenAI (the Responses API).
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";
import { baseURL, checkWeather, cities, model, question, units } from "./weather.mjs";

const compatible = createOpenAICompatible({
  name: "llamero",
  baseURL,
  apiKey: "unused",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "unused" });
const Review = z.object({ sentiment: z.enum(["good", "bad"]), stars: z.enum(["one", "two"]) });
const providers = { compatible: compatible(model), responses: openai.responses(model), chat: openai.chat(model) };
const shared = { temperature: 0, maxOutputTokens: 48, maxRetries: 0 };

function weather(called) {
  return tool({
    description: "Weather of a city",
    inputSchema: z.object({ city: z.enum(cities), unit: z.enum(units) }),
    execute: async (args) => (called.push(args), "18 degrees"),
  });
}

for (const [name, language] of Object.entries(providers)) {
  const ask = { model: language, ...shared };

  test(`${name}: whole and streamed`, async () => {
    const whole = await generateText({ ...ask, prompt: "Say hello." });
    assert.ok(whole.text && whole.usage.outputTokens > 0);
    const stream = streamText({ ...ask, prompt: "Say hello.", onError: ({ error }) => assert.fail(error) });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    assert.equal(text, whole.text);
    assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: a tool is called and its result read`, async () => {
    const called = [];
    const toolChoice = name === "compatible" ? "required" : { type: "tool", toolName: "get_weather" };
    // The provider passes fields that it does not know on as they are.
    const providerOptions = { llamero: { parallel_tool_calls: false } };
    const steps = { ...ask, prompt: question, tools: { get_weather: weather(called) }, toolChoice, providerOptions };
    await generateText({ ...steps, stopWhen: isStepCount(2) });
    assert.equal(called.length, 2);
    const stream = streamText({ ...steps, onError: ({ error }) => assert.fail(error) });
    assert.equal((await stream.toolCalls).length, 1);
    called.forEach(checkWeather);
  });

  test(`${name}: an answer has a type`, async () => {
    const typed = { ...ask, prompt: "Rate: the food was great.", output: Output.object({ schema: Review }) };
    Review.parse((await generateText(typed)).output);
    const stream = streamText({ ...typed, onError: ({ error }) => assert.fail(error) });
    Review.parse(await stream.output);
  });
}

test("texts", async () => {
  const { text } = await generateText({ model: compatible.completionModel(model), ...shared, maxOutputTokens: 8, prompt: "Llamas are" });
  assert.ok(text);
});

test("embeddings", async () => {
  const values = ["A llama hums.", "A train leaves."];
  for (const embedder of [compatible.embeddingModel(model), openai.embedding(model)]) {
    const { embeddings } = await embedMany({ model: embedder, values, maxRetries: 0 });
    assert.equal(embeddings.length, 2);
    assert.ok(embeddings[0].length > 100);
  }
});
