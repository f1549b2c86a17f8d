// Requests to the server: typed, same origin, and every failure is two lines for a person.
import type {
  Advised,
  Command,
  ContractView,
  Difference,
  Expected,
  FusionView,
  Link,
  ModelRow,
  Outcome,
  PlanView,
  Preview,
  RunDetail,
  RunRow,
  Said,
  Start,
  Started,
  Upload,
  Wish,
} from "./generated/wire";

/** Told to the window when the server knows no session of this browser: it was started again, or half a day is over. */
export const SIGNED_OUT = "signed-out";

export class Trouble extends Error {
  constructor(
    readonly status: number,
    readonly wrong: string,
    readonly cure: string,
  ) {
    super(wrong);
  }
}

async function ask<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const raw = body instanceof Blob;
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      signal,
      credentials: "same-origin",
      headers: body === undefined || raw ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : raw ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Trouble(0, "offline", "");
  }
  if (answer.status === 204) return undefined as T;
  const data: unknown = await answer.json().catch(() => ({}));
  if (answer.ok) return data as T;
  if (answer.status === 401) dispatchEvent(new Event(SIGNED_OUT));
  throw told(answer.status, data);
}

function told(status: number, data: unknown): Trouble {
  const said = data as { wrong?: string; cure?: string };
  return new Trouble(status, said.wrong ?? `HTTP ${status}`, said.cure ?? "");
}

const run = (id: string) => `/api/runs/${encodeURIComponent(id)}`;

export const api = {
  begin: (token: string) => ask<void>("POST", "/api/session", { token }),
  link: () => ask<Link>("POST", "/api/link"),
  runs: () => ask<RunRow[]>("GET", "/api/runs"),
  run: (id: string) => ask<RunDetail>("GET", run(id)),
  models: () => ask<ModelRow[]>("GET", "/api/models"),
  prepare: (model: string) => ask<ModelRow>("POST", "/api/models", { model }),
  expected: (wish: Wish) => ask<Expected>("POST", "/api/expected", wish),
  plan: (wish: Wish, signal: AbortSignal) => ask<PlanView>("POST", "/api/plan", wish, signal),
  advise: (said: Said) => ask<Advised>("POST", "/api/wish", said),
  contract: (wish: Wish) => ask<ContractView>("POST", "/api/contract", wish),
  start: (start: Start) => ask<Started>("POST", "/api/runs", start),
  uploads: () => ask<Upload[]>("GET", "/api/uploads"),
  upload: (file: File) => ask<Upload>("POST", `/api/uploads?name=${encodeURIComponent(file.name)}`, file),
  command: (id: string, command: Command) => ask<Outcome>("POST", `${run(id)}/commands`, command),
  preview: (id: string, to?: string) => ask<Preview>("GET", `${run(id)}/preview${to ? `?to=${to}` : ""}`),
  difference: (id: string, first: string, second: string) =>
    ask<Difference>("GET", `${run(id)}/difference?first=${first}&second=${second}`),
  fusion: (id: string) => ask<FusionView>("GET", `${run(id)}/fusion`),
  feedback: (id: string, text: string) => ask<void>("POST", `${run(id)}/feedback`, { text }),
  eventsPath: (id: string, after: number) => `${run(id)}/events?after=${after}`,
  exportPath: (id: string) => `${run(id)}/export`,
  reportPath: (id: string) => `${run(id)}/report`,
  pagePath: (id: string) => `${run(id)}/report.html`,
};

export const newKey = () => crypto.randomUUID();
