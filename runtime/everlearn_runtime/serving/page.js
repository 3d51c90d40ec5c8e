import { Refused, get, keepToken, post, postPicture } from "/api.js";
import { base64, fromFile, fromVideo } from "/pictures.js";
import { $, button, element, notice, showAnswer, showHistory, showStatus } from "/view.js";

const LOOK_EVERY = 250; // ms; less often where the device takes longer
const REFRESH_EVERY = 5000; // ms; other programs may teach it too
const GUESS =
  "The percentages are a first guess, and nothing is called unknown, until it has judged 200 pictures of what it knows.";
const DRIFTED = "What it sees lately is unlike all that it knows: teach it, or see that the lens is clean and there is light.";

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let status = null; // what the device said last of itself
let stream = null; // the camera, while it is on
let cameras = []; // their ids
let shots = []; // { blob, item, says }: what is to be learned
let still = null; // the picture on the stage, while the camera is off

// Runs something a person asked for; what goes wrong is told, never lost.
async function attempt(act) {
  try {
    return await act();
  } catch (error) {
    told(error);
    return undefined;
  }
}

function told(error) {
  if (error instanceof Refused && error.status === 401) {
    if (!$("login").hidden) notice("That token is wrong.", { wrong: true });
    $("main").hidden = true;
    $("login").hidden = false;
    $("token").focus();
  } else {
    notice(error.message, { wrong: true });
  }
}

// The device's state

async function refresh() {
  const [now, { versions }] = await Promise.all([get("/status"), get("/history?last=50")]);
  const changed = status?.version !== now.version;
  status = now;
  $("main").hidden = false;
  $("login").hidden = true;
  if (changed) {
    showStatus(status, { teach, forget });
    showHistory(versions, rollback);
    if (!status.classes.length) showAnswer(null);
    if (still) await attempt(lookAtStill);
    await attempt(captionShots);
  }
  if (!status.classes.length) doubt("It knows nothing yet: show it something, name it, and let it learn.");
  else if (status.drifted) doubt(DRIFTED);
}

function doubt(text) {
  $("doubt").textContent = text;
  $("doubt").hidden = !text;
}

async function change(path, data, says, options) {
  const said = await post(path, data);
  notice(says(said), options?.(said));
  await refresh();
}

const undo = () => attempt(() => change("/undo", {}, ({ to }) => `Back to version ${to}.`));
const rollback = (to) => attempt(() => change("/rollback", { to }, () => `Back to version ${to}.`, () => ({ undo: true })));
const forget = (label) =>
  attempt(() => change("/forget", { label }, () => `Forgot “${label}”.`, () => ({ undo: true })));

function teach(label) {
  $("name").value = label;
  ready();
  $("teach").scrollIntoView({ behavior: "smooth", block: "nearest" });
}

// Looking

function answered({ calibrated, predictions }) {
  showAnswer(predictions[0]);
  if (!status.drifted) doubt(calibrated ? "" : GUESS);
}

async function watch(mine) {
  while (stream === mine) {
    const began = performance.now();
    let rest = 0;
    try {
      const idle = document.hidden || !$("login").hidden || !status?.classes.length;
      const blob = idle ? null : await fromVideo($("video"));
      const found = blob && (await postPicture("/predict?top=3", blob));
      if (found && stream === mine && status.classes.length) answered(found);
    } catch (error) {
      told(error);
      rest = 1000 * (error.wait ?? 1);
    }
    await sleep(Math.max(LOOK_EVERY - (performance.now() - began), 50, rest));
  }
}

async function lookAtStill() {
  if (!status.classes.length) return;
  const blob = still;
  const found = await postPicture("/predict?top=3", blob);
  if (still === blob) answered(found);
}

async function turnOn(id) {
  if (!navigator.mediaDevices?.getUserMedia)
    throw new Error("Browsers give the camera to https pages and to localhost only; choose pictures instead.");
  const video = { width: { ideal: 640 }, ...(id ? { deviceId: { exact: id } } : { facingMode: "environment" }) };
  let opened;
  try {
    opened = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    throw new Error(refused ? "The browser was not allowed to use the camera." : "No camera can be opened.");
  }
  turnOff();
  stream = opened;
  opened.getVideoTracks()[0].addEventListener("ended", turnOff);
  $("video").srcObject = opened;
  await $("video").play();
  showStill(null);
  cameras = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
  stage();
  watch(opened);
}

function turnOff() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  showAnswer(null);
  stage();
}

function stage() {
  $("video").hidden = !stream;
  $("still").hidden = !!stream || !still;
  $("empty").hidden = !!stream || !!still;
  $("camera").textContent = stream ? "Stop camera" : "Start camera";
  $("other").hidden = !stream || cameras.length < 2;
  $("shot").disabled = $("burst").disabled = !stream;
}

function showStill(blob) {
  if (still) URL.revokeObjectURL($("still").src);
  still = blob;
  if (blob) $("still").src = URL.createObjectURL(blob);
  stage();
}

const nextCamera = () => {
  const now = stream?.getVideoTracks()[0].getSettings().deviceId;
  const place = cameras.findIndex((one) => one.deviceId === now);
  return cameras[(place + 1) % cameras.length].deviceId;
};

// Shots

function addShot(blob) {
  if (shots.length >= status.limits.images) throw new Error(`At most ${status.limits.images} shots at once; learn these first.`);
  const image = element("img", null);
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  const says = element("span", "");
  const shot = { blob, says, item: null };
  const remove = button(null, `Remove shot ${shots.length + 1}`, () => removeShots([shot]));
  remove.append(image);
  shot.item = element("li", null, remove, says);
  shots.push(shot);
  $("shots").append(shot.item);
  ready();
}

function removeShots(gone) {
  for (const shot of gone) {
    URL.revokeObjectURL(shot.item.querySelector("img").src);
    shot.item.remove();
  }
  shots = shots.filter((shot) => !gone.includes(shot));
  ready();
}

function ready() {
  const name = $("name").value.trim();
  const count = `${shots.length} ${shots.length === 1 ? "shot" : "shots"}`;
  $("learn").disabled = !name || !shots.length;
  $("learn").textContent = name && shots.length ? `Learn ${count} as “${name}”` : "Learn";
  $("clear").hidden = !shots.length;
}

// Under each shot from a file, what the device makes of it.
async function captionShots() {
  const asked = shots.filter((shot) => shot.blob instanceof File);
  if (!asked.length || !status.classes.length) return;
  const images = await Promise.all(asked.map((shot) => base64(shot.blob)));
  const { predictions } = await post("/predict", { images, top: 1 });
  asked.forEach(({ says }, place) => {
    says.textContent = predictions[place].known ? predictions[place].label : "unknown";
  });
}

async function addFiles(files) {
  for (const file of files) {
    await attempt(async () => {
      const blob = await fromFile(file);
      addShot(blob instanceof File ? blob : new File([blob], file.name, { type: blob.type }));
      if (!stream) showStill(blob);
    });
  }
  if (still) await attempt(lookAtStill);
  await attempt(captionShots);
}

async function takeShot() {
  const blob = await fromVideo($("video"));
  if (blob) addShot(blob);
}

async function takeFive() {
  for (let shot = 0; shot < 5 && stream; shot++) {
    await takeShot();
    await sleep(300);
  }
}

function doubts(suspects) {
  if (!suspects.length) return "";
  const alike = new Map(); // what is said of shots, and their numbers
  for (const { image, looks, reason } of suspects) {
    const says = reason === "label" ? `more like “${looks}”` : "unlike all that it knows";
    alike.set(says, [...(alike.get(says) ?? []), image + 1]);
  }
  const says = [...alike].map(([what, shots]) => `${what}: ${shots.length > 1 ? "shots" : "shot"} ${shots.join(", ")}`);
  return ` But ${says.join("; ")}.`;
}

async function learn() {
  const label = $("name").value.trim();
  const taken = shots;
  const size = taken.reduce((sum, { blob }) => sum + 4 * Math.ceil(blob.size / 3) + 4, 1000);
  if (size > status.limits.body) throw new Error("These are more bytes than the device takes at once; learn fewer shots.");
  $("learn").disabled = true;
  try {
    const images = await Promise.all(taken.map(({ blob }) => base64(blob)));
    await change(
      "/learn",
      { images, label },
      ({ suspects }) => `Learned ${taken.length} of “${label}”.${doubts(suspects)}`,
      () => ({ undo: true }),
    );
    removeShots(taken);
    $("name").value = "";
  } finally {
    ready();
  }
}

// What people press

$("camera").addEventListener("click", () => (stream ? turnOff() : attempt(() => turnOn(null))));
$("other").addEventListener("click", () => attempt(() => turnOn(nextCamera())));
$("shot").addEventListener("click", () => attempt(takeShot));
$("burst").addEventListener("click", () => attempt(takeFive));
$("clear").addEventListener("click", () => removeShots(shots));
$("name").addEventListener("input", ready);
$("undo").addEventListener("click", undo);
$("notice-undo").addEventListener("click", undo);
$("teach").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(learn);
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value.trim());
  $("token").value = "";
  attempt(async () => {
    await refresh();
    $("notice").hidden = true;
  });
});
$("files").addEventListener("change", async () => {
  await addFiles([...$("files").files]);
  $("files").value = "";
});

// Pictures may be dropped anywhere; without this, the browser would open them in place of the page.
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("stage").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && status) addFiles([...event.dataTransfer.files]);
  });

attempt(refresh);
setInterval(() => {
  if (!document.hidden && $("login").hidden) attempt(refresh);
}, REFRESH_EVERY);
