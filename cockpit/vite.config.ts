import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const OUT = "../src/scaler_wizard/_cockpit";
const SOURCES = ["src", "scripts", "index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "../src/scaler_wizard/words"];

const files = (path: string): string[] => {
  try {
    return readdirSync(path).flatMap((name) => files(join(path, name)));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOTDIR") return [path];
    throw error;
  }
};

// The sources' fingerprint lies beside what was built from them; a test of the package compares it, without Node.
const fingerprint = () => {
  const digest = createHash("sha256");
  for (const path of SOURCES.flatMap(files).sort()) digest.update(`${path}\n`).update(readFileSync(path));
  return digest.digest("hex");
};

// Built into the package, so that nobody who uses the cockpit needs Node.
export default defineConfig({
  plugins: [react(), { name: "fingerprint", closeBundle: () => writeFileSync(join(OUT, "sources.sha256"), fingerprint()) }],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
    rollupOptions: { output: { assetFileNames: "assets/[name]-[hash][extname]", chunkFileNames: "assets/[name]-[hash].js", entryFileNames: "assets/[name]-[hash].js" } },
  },
  server: { fs: { allow: [".."] } },
});
