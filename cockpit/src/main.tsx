// The cockpit's beginning: exchange the one-time token of the link for a session, then show the page.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import { api } from "./api";
import "./theme.css";

async function begin(): Promise<boolean> {
  const token = /^#token=(.+)$/.exec(location.hash)?.[1];
  if (token === undefined) return true;
  history.replaceState(null, "", "#/");
  return api.begin(token).then(
    () => true,
    () => false,
  );
}

const linkWorked = await begin();
const root = document.getElementById("root");
if (root)
  createRoot(root).render(
    <StrictMode>
      <App linkWorked={linkWorked} />
    </StrictMode>,
  );
