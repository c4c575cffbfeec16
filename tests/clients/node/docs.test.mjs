// The block of JavaScript in docs/clients.md, with the address and the model of the tests.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { address, model } from "./weather.mjs";

test("the block runs as it is written", () => {
  const [, block] = readFileSync(process.env.LLAMERO_CLIENTS_PAGE, "utf8").match(/^```js\n(.*?)^```/ms);
  assert.ok(block.includes("http://localhost:8000") && block.includes('"llama-8b"'));
  // Beside the packages, where it finds them.
  writeFileSync("block.mjs", block.replaceAll("http://localhost:8000", address).replaceAll('"llama-8b"', JSON.stringify(model)));
  assert.ok(execFileSync(process.execPath, ["block.mjs"], { encoding: "utf8", timeout: 120_000 }).trim());
});
