// How the page tells what matters: one alert at a time, spoken, shown or passing by, always with its words as subtitle.
import { useCallback, useEffect, useReducer, useRef, useState } from "react";
import { type Alert, type Alerts, type Happening, next, quiet } from "../alerts";
import type { Said } from "../flight";
import type { Settings } from "../settings";
import { canSpeak as speechFor, speak, wake } from "../voice";
import { type Words, useWords } from "../words";
import { Icon } from "./Icon";

export type Telling = { alerts: Alerts; arrive: (said: Said) => void; repeat: (sentence: string) => void; dismiss: () => void; speaking: boolean; canSpeak: boolean | null };

const now = () => performance.now();

export function useTelling(settings: Settings, words: Words): Telling {
  const [speech, setSpeech] = useState<boolean | null>(null);
  const mode = { muted: !settings.voice, reader: settings.reader, canSpeak: speech === true };
  const [alerts, happen] = useReducer(next, quiet(mode));
  const heard = useRef({ words, notify: settings.notify });
  useEffect(() => {
    heard.current = { words, notify: settings.notify };
  });

  useEffect(() => void speechFor(settings.language).then(setSpeech), [settings.language]);
  useEffect(() => {
    happen({ kind: "mode", mode: { muted: !settings.voice, reader: settings.reader, canSpeak: speech === true }, now: now() });
  }, [settings.voice, settings.reader, speech]);
  useEffect(() => {
    const timer = setInterval(() => happen({ kind: "tick", now: now() }), 500);
    return () => clearInterval(timer);
  }, []);
  const wanted = speech === true && settings.voice && !settings.reader;
  useEffect(() => {
    if (wanted) wake(heard.current.words.language);
  }, [wanted]);
  useSpeech(alerts, happen, words);

  const arrive = useCallback((said: Said) => {
    happen({ kind: "arrive", alert: { id: said.seq, level: said.level, sentence: said.sentence, aloud: said.aloud }, now: now() });
    const { words, notify } = heard.current;
    if (notify && document.hidden && said.level !== "info") putNotice(words.say(said.sentence).text);
  }, []);
  const repeat = useCallback((sentence: string) => {
    happen({ kind: "arrive", alert: { id: -now(), level: "warn", sentence, aloud: true }, now: now() });
  }, []);
  return { alerts, arrive, repeat, dismiss: () => happen({ kind: "dismiss", now: now() }), speaking: alerts.current?.modality === "voice", canSpeak: speech };
}

/** A notice of the system; a click on it brings this page to the front. */
function putNotice(body: string): void {
  const notice = new Notification("Scaler Wizard", { body });
  notice.onclick = () => {
    window.focus();
    notice.close();
  };
}

function useSpeech(alerts: Alerts, happen: (happening: Happening) => void, words: Words): void {
  const current = alerts.current;
  const aloud = current?.modality === "voice" ? current.alert : null;
  useEffect(() => {
    if (!aloud) return;
    const told = words.say(aloud.sentence);
    return speak(words.aloud(told), told.language, aloud.level, () => happen({ kind: "spoken", id: aloud.id, now: now() }));
    // eslint-disable-next-line react-hooks/exhaustive-deps -- an alert is spoken once, in the words of its moment
  }, [aloud?.id]);
}

/** The subtitle. Critical words interrupt a screen reader, others wait for it. */
export function Subtitle({ telling }: { telling: Telling }) {
  const words = useWords();
  const current = telling.alerts.current;
  const critical = current?.alert.level === "critical";
  return (
    <div className={`subtitle subtitle-${current?.alert.level ?? "none"}`}>
      <div role="status" aria-live="polite">
        {current && !critical && <Sentence alert={current.alert} words={words} />}
      </div>
      <div role="alert" aria-live="assertive">
        {current && critical && <Sentence alert={current.alert} words={words} />}
      </div>
      {current && (
        <button type="button" className="plain" onClick={telling.dismiss}>
          {words.t("dismiss")}
        </button>
      )}
    </div>
  );
}

function Sentence({ alert, words }: { alert: Alert; words: Words }) {
  const told = words.say(alert.sentence);
  const icon = { critical: "warn", warn: "wait", info: "ok" } as const;
  return (
    <p lang={told.language}>
      <Icon name={icon[alert.level]} />
      <span className="unseen">{words.t(`level_${alert.level}`)}: </span>
      {told.text}
    </p>
  );
}
