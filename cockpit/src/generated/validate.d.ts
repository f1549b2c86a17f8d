import type { Cockpit } from "./wire";
export function isCockpit(data: unknown): data is Cockpit;
