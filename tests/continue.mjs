// Continue a prompt greedily with llama.cpp: node continue.mjs MODULES TOKENS PROMPT FILE.gguf ... ; prints JSON lines.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, tokens, prompt, ...files] = process.argv.slice(2);
const entry = createRequire(`${modules}/x.js`).resolve("node-llama-cpp");
const { getLlama, LlamaCompletion } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error" });
for (const file of files) {
  const model = await llama.loadModel({ modelPath: file });
  const context = await model.createContext({ contextSize: 128, threads: 1 });
  const completion = new LlamaCompletion({ contextSequence: context.getSequence() });
  const text = await completion.generateCompletion(prompt, { maxTokens: Number(tokens), temperature: 0 });
  console.log(JSON.stringify({ file, text, prompt: model.tokenize(prompt).map(Number) }));
  await context.dispose();
  await model.dispose();
}
process.exit(0);
