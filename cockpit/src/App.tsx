// The frame around every screen: header, settings, the one alert that is told now, and the screen itself.
import { useEffect, useMemo, useRef, useState } from "react";
import { SIGNED_OUT, Trouble, api } from "./api";
import { Header } from "./parts/Header";
import { Subtitle, useTelling } from "./parts/Telling";
import { type Route, useRoute } from "./route";
import { Compare } from "./screens/Compare";
import { RunScreen } from "./screens/Run";
import { Runs } from "./screens/Runs";
import { SignIn } from "./screens/SignIn";
import { Wizard } from "./screens/Wizard";
import { type Settings, loadSettings, saveSettings } from "./settings";
import { Words, WordsContext, loadWords } from "./words";
import english from "../../src/scaler_wizard/words/en.json";

export function App({ linkWorked }: { linkWorked: boolean }) {
  const [settings, setSettings] = useState(loadSettings);
  const [words, setWords] = useState(() => new Words("en", english));
  const [known, setKnown] = useState<boolean | null>(null);
  const route = useRoute();
  const telling = useTelling(settings, words);

  useEffect(() => {
    saveSettings(settings);
    void loadWords(settings.language).then(setWords);
  }, [settings]);
  useEffect(() => {
    document.documentElement.lang = words.language;
  }, [words]);
  useEffect(() => {
    const root = document.documentElement;
    if (settings.theme === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", settings.theme);
  }, [settings.theme]);
  useEffect(() => {
    const out = () => setKnown(false);
    addEventListener(SIGNED_OUT, out);
    api.runs().then(
      () => setKnown(true),
      (error: unknown) => setKnown(!(error instanceof Trouble && error.status === 401)),
    );
    return () => removeEventListener(SIGNED_OUT, out);
  }, []);
  useFocusOnTurn(route);

  const change = (some: Partial<Settings>) => setSettings((now) => ({ ...now, ...some }));
  const ear = useMemo(() => (settings.listen ? { repeat: telling.repeat, speaking: telling.speaking } : null), [settings.listen, telling.repeat, telling.speaking]);
  const screen = useMemo(() => {
    if (route.screen === "new") return <Wizard />;
    if (route.screen === "run") return <RunScreen key={route.id} id={route.id} tell={telling.arrive} ear={ear} />;
    if (route.screen === "compare") return <Compare first={route.ids[0]} second={route.ids[1]} />;
    return <Runs />;
  }, [route, telling.arrive, ear]);

  return (
    <WordsContext.Provider value={words}>
      <a className="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
        {words.t("skip")}
      </a>
      <Header settings={settings} change={change} signedIn={known === true} canSpeak={telling.canSpeak} />
      <main id="main" tabIndex={-1}>
        {known === null ? <p className="quiet wait">{words.t("loading")}</p> : known ? screen : <SignIn spent={!linkWorked} />}
      </main>
      <Subtitle telling={telling} />
    </WordsContext.Provider>
  );
}

/** After a change of screen the keyboard stands at its beginning. */
function useFocusOnTurn(route: Route): void {
  const first = useRef(true);
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    document.getElementById("main")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [route]);
}
