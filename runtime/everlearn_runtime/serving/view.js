// What the page shows. Text from the device is only ever set as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(tag, text, ...inside) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  made.append(...inside);
  return made;
}

export function button(text, label, act) {
  const made = element("button", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

export function percent(share) {
  if (share > 0.995 && share < 1) return "> 99 %";
  if (share > 0 && share < 0.005) return "< 1 %";
  return `${Math.round(share * 100)} %`;
}

let fading = null;

export function notice(text, { wrong = false, undo = false } = {}) {
  clearTimeout(fading);
  $("notice").hidden = false;
  $("notice").classList.toggle("wrong", wrong);
  $("notice-text").textContent = text;
  $("notice-undo").hidden = !undo;
  fading = setTimeout(() => ($("notice").hidden = true), undo ? 12000 : 8000);
}

export function showAnswer(found) {
  $("answer").hidden = !found;
  if (!found) return;
  $("answer").classList.toggle("unknown", !found.known);
  $("label").textContent = found.known ? found.label : "unknown";
  $("share").textContent = found.known ? percent(found.top[0].probability) : "";
  $("if").hidden = found.known;
  $("top").replaceChildren(
    ...found.top.map(({ label, probability }) => {
      const bar = element("progress", null);
      bar.value = probability;
      bar.setAttribute("aria-hidden", "true");
      return element("li", null, bar, element("span", label), element("span", percent(probability)));
    }),
  );
}

export function showStatus(status, { teach, forget }) {
  const count = status.classes.length;
  $("summary").textContent = `${count} ${count === 1 ? "class" : "classes"} · version ${status.version}`;
  $("nothing").hidden = count > 0;
  $("names").replaceChildren(
    ...status.classes.map(({ label }) => {
      const option = element("option", null);
      option.value = label;
      return option;
    }),
  );
  $("classes").replaceChildren(
    ...status.classes.map(({ label, samples }) => {
      const what = element("span", label, element("small", `${samples} ${samples === 1 ? "sample" : "samples"}`));
      what.className = "what";
      return element(
        "li",
        null,
        what,
        button("Teach", `Teach more of ${label}`, () => teach(label)),
        button("Forget", `Forget ${label}`, () => forget(label)),
      );
    }),
  );
}

const listed = (classes) => classes.map(({ label, samples }) => `${samples} of “${label}”`).join(", ");
const SAYS = {
  start: () => "As it was delivered",
  learn: ({ classes }) => `Learned ${listed(classes)}`,
  forget: ({ classes }) => `Forgot ${classes.map(({ label }) => `“${label}”`).join(", ")}`,
  purge: () => "Forgot a class for good",
  rollback: ({ to }) => `Went back to version ${to}`,
  migrate: () => "Moved to another model",
};

export function showHistory(versions, rollback) {
  const now = versions.at(-1)?.version;
  $("undo").disabled = versions.length < 2;
  $("history").replaceChildren(
    ...versions.toReversed().map((one) => {
      const time = new Date(one.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      const small = element("small", `version ${one.version}, ${time}`);
      const what = element("span", SAYS[one.kind]?.(one) ?? one.kind, small);
      what.className = "what";
      const last = element("span", "now");
      last.className = "now";
      const back = button("Go back", `Go back to version ${one.version}`, () => rollback(one.version));
      return element("li", null, what, one.version === now ? last : back);
    }),
  );
}
