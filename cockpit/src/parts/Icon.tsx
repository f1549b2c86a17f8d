// Small drawings beside words; they are never alone, so readers of the page skip them.
const PATHS = {
  mark: "M4 18h4v-6H4zm6 0h4V8h-4zm6 0h4V3h-4z",
  settings: "M4 7h9m4 0h3M4 17h3m4 0h9M15 5v4M9 15v4",
  ok: "M5 12.5l4.5 4.5L19 7.5",
  run: "M7 5l12 7-12 7z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  warn: "M12 4l9 16H3zM12 10v5m0 2.5v.5",
  fail: "M6 6l12 12M18 6L6 18",
  back: "M9 6L4 11l5 5M4 11h10a6 6 0 010 12",
  undo: "M15 6l5 5-5 5M20 11H10a6 6 0 000 12",
  wait: "M12 7v5l3 3M12 3a9 9 0 100 18 9 9 0 000-18",
  down: "M12 4v11m-5-5l5 5 5-5M5 20h14",
  sound: "M5 9v6h4l5 4V5L9 9zM17 9a4 4 0 010 6",
} as const;
const FILLED = new Set(["mark", "run", "stop"]);

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  const filled = FILLED.has(name);
  return (
    <svg className="icon" viewBox="0 0 24 24" aria-hidden="true" fill={filled ? "currentColor" : "none"} stroke={filled ? "none" : "currentColor"}>
      <path d={PATHS[name]} strokeWidth="2" strokeLinecap="round" strokeLinejoin="round" />
    </svg>
  );
}
