// Shown without a session: how to get one.
import { useWords } from "../words";

export function SignIn({ spent }: { spent: boolean }) {
  const { t } = useWords();
  return (
    <section className="narrow card">
      <h1>{t("signin")}</h1>
      <p>{spent ? t("signin_spent") : t("signin_how")}</p>
      <pre>scaler cockpit</pre>
      <p className="quiet">{t("signin_why")}</p>
    </section>
  );
}
