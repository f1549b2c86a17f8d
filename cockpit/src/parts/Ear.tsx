// Voice commands on the screen of a run: what may be said, and a notice where this browser cannot hear it.
import { useEffect, useReducer, useRef, useState } from "react";
import { type Deafness, listen } from "../ear";
import { type Listening, type Order, type Sound, attentive, hear } from "../listening";
import { phrasesOf, useWords } from "../words";
import { Icon } from "./Icon";

type Props = { speaking: boolean; obey: (order: Order) => void };
type Heard = Listening & { order: Order | null; count: number };

export function Ear({ speaking, obey }: Props) {
  const words = useWords();
  const { t } = words;
  const [deaf, setDeaf] = useState<Deafness | null>(null);
  const phrases = phrasesOf(words);
  const [heard, sound] = useReducer(
    (state: Heard, one: Sound): Heard => {
      const { state: after, order } = hear(state, one, phrases);
      return { ...after, order, count: order === null ? state.count : state.count + 1 };
    },
    { ...attentive, order: null, count: 0 },
  );
  useEffect(() => sound({ kind: "speaking", on: speaking }), [speaking]);
  useEffect(() => listen(words.language, (text) => sound({ kind: "heard", text, now: performance.now() }), setDeaf), [words.language]);
  useEffect(() => {
    const timer = setInterval(() => sound({ kind: "tick", now: performance.now() }), 500);
    return () => clearInterval(timer);
  }, []);
  useOrders(heard, obey);
  if (deaf !== null)
    return (
      <p className="ear" role="status">
        <Icon name="warn" /> {t(deaf === "refused" ? "listen_refused" : "listen_none")}
      </p>
    );
  const quoted = (forms: readonly string[]) => `“${forms[0] ?? ""}”`;
  return (
    <p className="ear" role="status">
      <Icon name="sound" />{" "}
      {heard.asked === null
        ? t("listen_say", { pause: quoted(phrases.pause), repeat: quoted(phrases.repeat), rollback: quoted(phrases.rollback) })
        : t("listen_confirm", { confirm: quoted(phrases.confirm), cancel: quoted(phrases.cancel) })}
    </p>
  );
}

/** Each order is carried out once, by what the page can do now. */
function useOrders(heard: Heard, obey: (order: Order) => void): void {
  const latest = useRef(obey);
  useEffect(() => {
    latest.current = obey;
  });
  const done = useRef(0);
  useEffect(() => {
    if (heard.count === done.current || heard.order === null) return;
    done.current = heard.count;
    latest.current(heard.order);
  }, [heard.count, heard.order]);
}
