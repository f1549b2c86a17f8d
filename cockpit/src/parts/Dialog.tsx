// A question in front of everything else: the safe answer has the focus, Escape gives it.
import { type ReactNode, useId, useLayoutEffect, useRef } from "react";

type Props = { title: string; safe: string; act: string; danger?: boolean; busy?: boolean; onSafe: () => void; onAct: () => void; children: ReactNode };

export function Dialog({ title, safe, act, danger, busy, onSafe, onAct, children }: Props) {
  const box = useRef<HTMLDialogElement>(null);
  const first = useRef<HTMLButtonElement>(null);
  const name = useId();
  // Before the painting, and undone before it leaves the page: only so does the keyboard go back to where it was.
  useLayoutEffect(() => {
    const opened = box.current;
    if (opened && !opened.open) opened.showModal();
    first.current?.focus(); // the browser would choose the first field
    return () => opened?.close();
  }, []);
  return (
    <dialog ref={box} className="dialog" aria-labelledby={name} onCancel={(event) => (event.preventDefault(), onSafe())}>
      <h2 id={name}>{title}</h2>
      <div className="dialog-body">{children}</div>
      <div className="dialog-foot">
        <button type="button" className="main" ref={first} onClick={onSafe}>
          {safe}
        </button>
        <button type="button" className={danger ? "danger" : "plain"} disabled={busy} onClick={onAct}>
          {act}
        </button>
      </div>
    </dialog>
  );
}
