// From a wish to a run, on one page: model, growth, text, contract; the plan beside it follows every change.
import { useEffect, useState } from "react";
import { Trouble, api, newKey } from "../api";
import type { PlanView, Wish } from "../generated/wire";
import { useLoaded } from "../live";
import { ContractStep } from "../parts/ContractStep";
import { DataStep } from "../parts/DataStep";
import { GrowStep } from "../parts/GrowStep";
import { ModelStep } from "../parts/ModelStep";
import { PlanSide } from "../parts/PlanSide";
import { TroubleBox } from "../parts/Trouble";
import { to } from "../route";
import { useWords } from "../words";

const PAUSE_MS = 150;
export const FIRST_WISH: Wish = {
  model: "embedded",
  parameters: "1.5x",
  context: "2x",
  data: "kjv",
  name: null,
  train: null,
  tokens: null,
  learningRate: null,
  loraRank: null,
  control: true,
  memoryShare: 0.9,
  more: {},
};

export type Planned = { plan: PlanView | null; trouble: Trouble | null; waiting: boolean };
type Answered = { to: Wish | null; plan: PlanView | null; trouble: Trouble | null };

/** The plan of a wish, asked for again a moment after each change; the last answer stays meanwhile. */
function usePlan(wish: Wish): Planned {
  const [answered, setAnswered] = useState<Answered>({ to: null, plan: null, trouble: null });
  useEffect(() => {
    const stop = new AbortController();
    const timer = setTimeout(() => {
      api.plan(wish, stop.signal).then(
        (plan) => setAnswered({ to: wish, plan, trouble: null }),
        (error: unknown) => {
          if (error instanceof Trouble) setAnswered((now) => ({ to: wish, plan: now.plan, trouble: error }));
        },
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [wish]);
  return { plan: answered.plan, trouble: answered.trouble, waiting: answered.to !== wish };
}

export function Wizard() {
  const { t } = useWords();
  const [wish, setWish] = useState(FIRST_WISH);
  const [key] = useState(newKey);
  const [busy, setBusy] = useState(false);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const models = useLoaded(() => api.models(), []);
  const planned = usePlan(wish);
  const change = (some: Partial<Wish>) => setWish((now) => ({ ...now, ...some }));
  const start = async (sign: string, textHash: string, standing: boolean) => {
    setBusy(true);
    setTrouble(null);
    try {
      const begun = await api.start({ key, wish, sign, textHash, standing });
      location.hash = to.run(begun.id);
    } catch (error) {
      setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), ""));
      setBusy(false);
    }
  };
  return (
    <section className="page">
      <h1>{t("new_run")}</h1>
      <div className="wizard">
        <div className="wizard-steps">
          {models.trouble && <TroubleBox trouble={models.trouble} again={models.again} />}
          <ModelStep rows={models.data ?? []} wish={wish} change={change} again={models.again} />
          <GrowStep wish={wish} plan={planned.plan} model={models.data?.find((row) => row.id === wish.model)} change={change} />
          <DataStep wish={wish} change={change} />
          <ContractStep wish={wish} ready={planned.plan !== null && planned.trouble === null && !planned.waiting} busy={busy} start={start} />
          {trouble && <TroubleBox trouble={trouble} />}
        </div>
        <PlanSide planned={planned} wish={wish} />
      </div>
    </section>
  );
}
