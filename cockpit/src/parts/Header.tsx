// Brand, way home, and what a person sets for this browser.
import { useEffect, useRef, useState } from "react";
import { api } from "../api";
import { canListen } from "../ear";
import { to } from "../route";
import type { Settings } from "../settings";
import { LANGUAGES, type Language, useWords } from "../words";
import { Icon } from "./Icon";

type Props = { settings: Settings; change: (some: Partial<Settings>) => void; signedIn: boolean; canSpeak: boolean | null };

export function Header({ settings, change, signedIn, canSpeak }: Props) {
  const { t } = useWords();
  const menu = useClosing();
  return (
    <header className="bar">
      <a className="brand" href={to.runs}>
        <Icon name="mark" /> <span>Scaler Wizard</span>
      </a>
      <div className="bar-end">
        <label className="field-inline">
          <span className="unseen">{t("language")}</span>
          <select value={settings.language} onChange={(event) => change({ language: event.target.value as Language })}>
            {Object.entries(LANGUAGES).map(([code, name]) => (
              <option key={code} value={code} lang={code}>
                {name}
              </option>
            ))}
          </select>
        </label>
        <details className="menu" ref={menu}>
          <summary>
            <Icon name="settings" />
            <span className="unseen">{t("settings")}</span>
          </summary>
          <div className="menu-sheet">
            <SettingsSheet settings={settings} change={change} signedIn={signedIn} canSpeak={canSpeak} />
          </div>
        </details>
      </div>
    </header>
  );
}

/** A sheet over the page closes by Escape, with the keyboard back at its summary, and by a click beside it. */
function useClosing() {
  const sheet = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    const close = () => sheet.current?.removeAttribute("open");
    const onKey = (event: KeyboardEvent) => {
      if (event.key !== "Escape" || !sheet.current?.open) return;
      close();
      sheet.current.querySelector("summary")?.focus();
    };
    const onClick = (event: PointerEvent) => {
      if (!sheet.current?.contains(event.target as Node)) close();
    };
    document.addEventListener("keydown", onKey);
    document.addEventListener("pointerdown", onClick);
    return () => {
      document.removeEventListener("keydown", onKey);
      document.removeEventListener("pointerdown", onClick);
    };
  }, []);
  return sheet;
}

function SettingsSheet({ settings, change, signedIn, canSpeak }: Props) {
  const { t } = useWords();
  const notify = async (wanted: boolean) =>
    change({ notify: wanted && "Notification" in window && (await Notification.requestPermission()) === "granted" });
  return (
    <>
      <fieldset className="segments">
        <legend>{t("theme")}</legend>
        {(["auto", "light", "dark"] as const).map((theme) => (
          <label key={theme}>
            <input type="radio" name="theme" checked={settings.theme === theme} onChange={() => change({ theme })} />
            <span>{t(`theme_${theme}`)}</span>
          </label>
        ))}
      </fieldset>
      <Switch on={settings.voice} flip={(voice) => change({ voice })} name={t("voice")} hint={canSpeak === false ? t("voice_none") : t("voice_hint")} />
      <Switch on={settings.listen} flip={(listen) => change({ listen })} name={t("listen_on")} hint={t(canListen() ? "listen_hint" : "listen_none")} />
      <Switch on={settings.reader} flip={(reader) => change({ reader })} name={t("reader")} hint={t("reader_hint")} />
      <Switch on={settings.notify} flip={(wanted) => void notify(wanted)} name={t("notify")} hint={t("notify_hint")} />
      {signedIn && <NewLink />}
    </>
  );
}

function Switch({ on, flip, name, hint }: { on: boolean; flip: (on: boolean) => void; name: string; hint: string }) {
  return (
    <label className="switch">
      <input type="checkbox" role="switch" checked={on} onChange={(event) => flip(event.target.checked)} />
      <span>
        {name}
        <small>{hint}</small>
      </span>
    </label>
  );
}

function NewLink() {
  const { t } = useWords();
  const [link, setLink] = useState<string | null>(null);
  if (link !== null)
    return (
      <label className="field">
        <span>{t("link_once")}</span>
        <input readOnly value={link} onFocus={(event) => event.target.select()} />
      </label>
    );
  return (
    <button type="button" className="plain" onClick={() => void api.link().then((made) => setLink(location.origin + made.path))}>
      {t("link_new")}
    </button>
  );
}
