// Which screen is shown, kept in the address's fragment so that Back works and the server never sees it.
import { useMemo, useSyncExternalStore } from "react";

export type Route = { screen: "runs" } | { screen: "new" } | { screen: "run"; id: string } | { screen: "compare"; ids: [string, string] };

export function parse(hash: string): Route {
  const [, first, ...rest] = hash.replace(/^#/, "").split("/").map(decodeURIComponent);
  if (first === "new") return { screen: "new" };
  if (first === "run" && rest[0]) return { screen: "run", id: rest[0] };
  if (first === "compare") return { screen: "compare", ids: [rest[0] ?? "", rest[1] ?? ""] };
  return { screen: "runs" };
}

export function useRoute(): Route {
  const hash = useSyncExternalStore(
    (changed) => {
      addEventListener("hashchange", changed);
      return () => removeEventListener("hashchange", changed);
    },
    () => location.hash,
  );
  return useMemo(() => parse(hash), [hash]);
}

export const to = {
  runs: "#/",
  fresh: "#/new",
  run: (id: string) => `#/run/${encodeURIComponent(id)}`,
  compare: (first: string, second: string) => `#/compare/${encodeURIComponent(first)}/${encodeURIComponent(second)}`,
};
