// Step 2: how far it grows, by card or by slider; what cannot be set says why.
import { useId, useState } from "react";
import type { ModelRow, PlanView, Wish } from "../generated/wire";
import { type Key, useWords } from "../words";
import { WishBox } from "./WishBox";

type Props = { wish: Wish; plan: PlanView | null; model: ModelRow | undefined; change: (some: Partial<Wish>) => void };

const CARDS: { name: string; wish: Partial<Wish> }[] = [
  { name: "balanced", wish: { parameters: "1.5x", context: "2x", train: null, more: {} } },
  { name: "longer", wish: { parameters: null, context: "4x", train: null, more: {} } },
  { name: "larger", wish: { parameters: "2x", context: null, train: null, more: {} } },
  { name: "quick", wish: { parameters: null, context: "2x", train: "nothing", more: {} } },
];
const WINDOWS = [1, 2, 4, 8, 16];
const TRAINS = [null, "new", "lora", "norms", "all", "nothing"] as const;
const RANKS = [4, 8, 16, 32, 64, 128];

const times = (text: string | null | undefined) => (text?.endsWith("x") ? Number(text.slice(0, -1)) : 1);
const wished = (factor: number) => (factor > 1 ? `${factor}x` : null);

export function GrowStep({ wish, plan, model, change }: Props) {
  const words = useWords();
  const { t } = words;
  const [size, window] = [times(wish.parameters), times(wish.context)];
  const rank = wish.loraRank ?? plan?.loraRank ?? 16;
  const base = plan?.base;
  const adapters = wish.train === "lora" || (wish.train === null && plan?.trains === "lora");
  return (
    <fieldset className="card step">
      <legend>
        <h2>
          <i aria-hidden="true">2</i> {t("step_grow")}
        </h2>
      </legend>
      <WishBox wish={wish} change={change} />
      <div className="cards" role="group" aria-label={t("recipes")}>
        {CARDS.map((card) => {
          const on = Object.entries(card.wish).every(([field, value]) => field === "more" || wish[field as keyof Wish] === value);
          return (
            <button key={card.name} type="button" className="card-button" aria-pressed={on} onClick={() => change(card.wish)}>
              <b>{t(`card_${card.name}` as Key)}</b>
              <small>{t(`card_${card.name}_what` as Key)}</small>
            </button>
          );
        })}
      </div>
      <Slider
        name={t("parameters")}
        shown={base ? `${words.number(size, 1)}× · ${words.compact(base.parameters * size)}` : `${words.number(size, 1)}×`}
        min={1}
        max={4}
        step={0.1}
        value={size}
        set={(value) => change({ parameters: wished(Math.round(value * 10) / 10) })}
        fact={model?.sizeWhy}
      />
      <Slider
        name={t("window")}
        shown={base ? `${window}× · ${words.tokens(base.context * window)}` : `${window}×`}
        min={0}
        max={WINDOWS.length - 1}
        step={1}
        value={Math.max(0, WINDOWS.indexOf(window))}
        set={(value) => change({ context: wished(WINDOWS[value] ?? 1) })}
        fact={model?.windowWhy}
      />
      <div className="field">
        <span id="trains">{t("trains")}</span>
        <div className="segments" role="radiogroup" aria-labelledby="trains">
          {TRAINS.map((train) => (
            <label key={train ?? "plan"}>
              <input type="radio" name="train" checked={wish.train === train} onChange={() => change({ train, loraRank: train === "lora" ? (wish.loraRank ?? null) : null })} />
              <span>{t(`train_${train ?? "plan"}`)}</span>
            </label>
          ))}
        </div>
      </div>
      <Slider
        name={t("lora_rank")}
        shown={String(rank)}
        min={0}
        max={RANKS.length - 1}
        step={1}
        value={Math.max(0, RANKS.indexOf(rank))}
        set={(value) => change({ loraRank: RANKS[value] ?? 16 })}
        why={adapters ? null : t("lora_why")}
      />
      <Slider
        name={t("memory_share")}
        shown={words.percent(wish.memoryShare ?? 0.9)}
        min={10}
        max={90}
        step={5}
        value={Math.round((wish.memoryShare ?? 0.9) * 100)}
        set={(value) => change({ memoryShare: value / 100 })}
      />
      <label className="check">
        <input type="checkbox" checked={wish.control ?? true} disabled={wish.train === "nothing"} onChange={(event) => change({ control: event.target.checked })} />
        <span>{t("control")}</span>
      </label>
      <Expert wish={wish} change={change} />
    </fieldset>
  );
}

/** What the plan chooses well enough for nearly everybody. */
function Expert({ wish, change }: { wish: Wish; change: (some: Partial<Wish>) => void }) {
  const { t } = useWords();
  const off = wish.train === "nothing";
  return (
    <details>
      <summary>{t("expert")}</summary>
      <div className="row">
        <Field name={t("tokens")} value={wish.tokens ?? ""} example="200K" off={off} set={(text) => change({ tokens: text || null })} />
        <Field
          name={t("learning_rate")}
          value={wish.learningRate?.toString() ?? ""}
          example="0.001"
          off={off}
          set={(text) => change({ learningRate: Number(text) > 0 ? Number(text) : null })}
        />
      </div>
      <p className="quiet">{t("expert_how")}</p>
    </details>
  );
}

type FieldProps = { name: string; value: string; example: string; off: boolean; set: (text: string) => void };

/** A short text that counts when its field is left or Enter is pressed: half a number is no wish. */
function Field({ name, value, example, off, set }: FieldProps) {
  const [draft, setDraft] = useState<string | null>(null);
  const settle = () => {
    if (draft !== null) set(draft.trim());
    setDraft(null);
  };
  return (
    <label className="field">
      <span>{name}</span>
      <input
        value={draft ?? value}
        maxLength={20}
        placeholder={example}
        disabled={off}
        onChange={(event) => setDraft(event.target.value)}
        onBlur={settle}
        onKeyDown={(event) => {
          if (event.key === "Enter") settle();
        }}
      />
    </label>
  );
}

type SliderProps = {
  name: string;
  shown: string;
  min: number;
  max: number;
  step: number;
  value: number;
  set: (value: number) => void;
  /** Why it cannot be moved, in the language of the page. */
  why?: string | null;
  /** The same in the words of the plan, which are English. */
  fact?: string | null;
};

function Slider({ name, shown, min, max, step, value, set, why, fact }: SliderProps) {
  const field = useId();
  const reason = why ?? fact ?? null;
  return (
    <div className="slider">
      <label htmlFor={field}>{name}</label>
      <output htmlFor={field}>{shown}</output>
      <input
        id={field}
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        disabled={reason !== null}
        aria-valuetext={shown}
        aria-describedby={reason === null ? undefined : `${field}-why`}
        onChange={(event) => set(Number(event.target.value))}
      />
      {reason !== null && (
        <p id={`${field}-why`} className="quiet why" lang={why ? undefined : "en"}>
          {reason}
        </p>
      )}
    </div>
  );
}
