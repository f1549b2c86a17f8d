// What went wrong and what to do, and a way to try again.
import type { Trouble } from "../api";
import { useWords } from "../words";
import { Icon } from "./Icon";

export function TroubleBox({ trouble, again }: { trouble: Trouble; again?: () => void }) {
  const { t } = useWords();
  const offline = trouble.status === 0;
  return (
    <div className="trouble" role="alert">
      <p>
        <Icon name="warn" /> <strong lang={offline ? undefined : "en"}>{offline ? t("offline") : trouble.wrong}</strong>
      </p>
      <p lang={offline ? undefined : "en"}>{offline ? t("offline_cure") : trouble.cure}</p>
      {again && (
        <button type="button" className="plain" onClick={again}>
          {t("again")}
        </button>
      )}
    </div>
  );
}
