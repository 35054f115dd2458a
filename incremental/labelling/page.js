// SPDX-License-Identifier: Apache-2.0
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { csrf, kind, agreement } = document.body.dataset;
  // Z and H are kept for undo and hint.
  const KEYS = "1234567890abcdefgijklmnopqrstuvwxy";
  const WAIT = 5000;
  const buttons = [...document.querySelectorAll("#classes .class")];
  const keys = new Map();
  const nameOf = (button) => button.querySelector("span").textContent.toLowerCase();
  // A class called 7 is chosen by 7; the others get the keys that are left, in order.
  buttons.forEach((button) => {
    const name = nameOf(button);
    if (name.length === 1 && KEYS.includes(name) && !keys.has(name)) keys.set(name, button);
  });
  const free = [...KEYS].filter((key) => !keys.has(key));
  const keyed = new Set(keys.values());
  buttons.filter((button) => !keyed.has(button)).slice(0, free.length).forEach((button, place) => keys.set(free[place], button));
  keys.forEach((button, key) => { button.querySelector("kbd").textContent = key.toUpperCase(); });

  let queue = [], current = null, busy = false, timer = 0;
  const later = [];                // put off for now, by this page
  const pictures = new Map();      // id -> promise of what the sample looks like

  class Refused extends Error {
    constructor(status, message) { super(message); this.status = status; }
  }

  async function ask(path, body) {
    const options = { credentials: "same-origin", signal: AbortSignal.timeout(20000) };
    if (body !== undefined) {
      options.method = "POST";
      options.headers = { "content-type": "application/json", "x-csrf-token": csrf };
      options.body = JSON.stringify(body);
    }
    const answer = await fetch(path, options);
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({}));
      throw new Refused(answer.status, told.error || `the hub answered ${answer.status}`);
    }
    return answer;
  }

  function make(tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  // ---- what a sample looks like -------------------------------------------------------------------------------

  async function draw(id) {
    const answer = await ask(`/label/samples/${id}`);
    const form = answer.headers.get("x-shown-as");
    if (form === "image") return image(URL.createObjectURL(await answer.blob()));
    if (form === "audio") return sound(URL.createObjectURL(await answer.blob()));
    const told = await answer.json();
    if (form === "text") return reading(told.text);
    if (form === "series") return curves(told.series, told.length);
    return table(told);
  }

  async function image(url) {
    const element = make("img");
    element.alt = "The sample to label";
    element.src = url;
    await element.decode();
    if (Math.max(element.naturalWidth, element.naturalHeight) <= 160) element.className = "pixels";
    return element;
  }

  function sound(url) {
    const element = make("audio");
    element.controls = true;
    element.src = url;
    element.setAttribute("aria-label", "The sample to label");
    return element;
  }

  function reading(text) {
    const element = make("div", text, "reading");
    element.tabIndex = 0;
    return element;
  }

  function table(told) {
    const box = make("div", undefined, "scroll"), element = make("table");
    box.tabIndex = 0;
    const head = element.createTHead().insertRow();
    told.columns.forEach((name) => { const th = make("th", name); th.scope = "col"; head.append(th); });
    const body = element.createTBody();
    told.rows.forEach((row) => {
      const line = body.insertRow();
      row.forEach((value) => { line.insertCell().textContent = value === null ? "–" : value; });
    });
    box.append(element);
    if (told.more) box.append(make("p", "The rest is not shown.", "soft"));
    return box;
  }

  function curves(series, length) {
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
    const all = series.flat().filter((value) => value !== null);
    const low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
    svg.setAttribute("viewBox", "0 0 1000 400");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${series.length} curves of ${length} values, from ${low} to ${high}`);
    const y = (value) => 380 - 360 * ((value - low) / span);
    const path = (d, name) => {
      const line = document.createElementNS(space, "path");
      line.setAttribute("d", d);
      line.setAttribute("class", name);
      svg.append(line);
    };
    if (low < 0 && high > 0) path(`M0 ${y(0)}H1000`, "zero");
    series.forEach((values, curve) => {
      const step = 1000 / Math.max(values.length - 1, 1);
      path(values.map((v, i) => `${i ? "L" : "M"}${(i * step).toFixed(1)} ${y(v ?? low).toFixed(1)}`).join(""), `c${curve % 6}`);
    });
    return svg;
  }

  function picture(id) {
    if (!pictures.has(id)) {
      const promise = draw(id);
      promise.catch(() => pictures.delete(id));
      pictures.set(id, promise);
    }
    return pictures.get(id);
  }

  function drop(id) {
    const promise = pictures.get(id);
    pictures.delete(id);
    if (promise) promise.then((e) => { if (e.src && e.src.startsWith("blob:")) URL.revokeObjectURL(e.src); }, () => {});
  }

  // ---- the states of the page -----------------------------------------------------------------------------------

  function state(name) {
    $("stage").dataset.state = name;
    $("stage").setAttribute("aria-busy", String(name === "loading"));
    const ready = name === "ready";
    $("notice").hidden = ready || name === "loading";
    if (!ready) { $("view").replaceChildren(); $("tag").hidden = true; }
    document.querySelectorAll(".class, #skip, #later, #ask, #text").forEach((b) => { b.disabled = !ready || busy; });
    $("again").hidden = name !== "error";
  }

  function notice(name, title, text) {
    $("notice-title").textContent = title;
    $("notice-text").textContent = text;
    current = null;
    state(name);
  }

  function failed(error) {
    if (error.status === 401 || error.status === 403) {
      notice("error", "Your session is over", "Open your link again. What you labelled is saved.");
    } else {
      notice("error", "The hub does not answer", `What you labelled is saved. It is tried again by itself. (${error.message})`);
      clearTimeout(timer);
      timer = setTimeout(show, WAIT);
    }
  }

  function progress(told) {
    const whole = told.labelled + told.open + told.conflict;
    $("bar").max = Math.max(whole, 1);
    $("bar").value = told.labelled;
    const parts = [`${told.labelled} of ${whole} labelled`];
    if (told.conflict) parts.push(`${told.conflict} to settle`);
    parts.push(`${told.mine} by you`);
    $("counts").textContent = parts.join(" · ");
    $("undo").disabled = busy || told.mine === 0;
  }

  async function fill() {
    const answer = await ask(`/label/next?left=${later.slice(-60).join(",")}`);
    const told = await answer.json();
    progress(told.progress);
    queue = told.samples;
    const wanted = new Set(queue.map((each) => each.id));
    for (const id of pictures.keys()) if (!wanted.has(id)) drop(id);
  }

  async function show() {
    clearTimeout(timer);
    $("hint").hidden = true;
    state("loading");
    try {
      await fill();
      if (!queue.length && later.length) { later.length = 0; await fill(); }
      if (!queue.length) {
        notice("empty", "All done for now", "New samples appear here by themselves as edges send them.");
        timer = setTimeout(show, WAIT);
        return;
      }
      if (kind === "classes" && !buttons.length) {
        notice("empty", "No classes yet", "The job names none (model.classes), and no sample has told how many there are.");
        timer = setTimeout(() => location.reload(), 2 * WAIT);
        return;
      }
      current = queue[0];
      let element;
      try {
        element = await picture(current.id);
      } catch (error) {
        if (error.status === 401 || error.status === 403) throw error;
        if (error.status === undefined || error.status >= 500) throw error;
        element = reading(`This sample cannot be shown: ${error.message}\n\nAnswer “Can’t tell”.`);
      }
      $("view").replaceChildren(element);
      $("tag").hidden = !current.second;
      state("ready");
      if ($("text")) { $("text").value = ""; $("text").focus(); }
      queue.slice(1, 3).forEach((each) => picture(each.id).catch(() => {}));
    } catch (error) { failed(error); }
  }

  // ---- what a person does -----------------------------------------------------------------------------------------

  function said(parts) {
    $("last").replaceChildren(...parts);
  }

  function tell(name, told, skipped) {
    const parts = [make("strong", skipped ? "Can’t tell" : name), make("span", " — saved. ")];
    if (told.state === "conflict") parts.push(make("span", "You and somebody else disagree: a third person decides. ", "other"));
    else if (told.state !== "labelled" && told.state !== "skipped" && agreement > 1) parts.push(make("span", "A second person looks at it, too. "));
    if (told.guess !== null && !skipped) {
      const sure = told.confidence === null ? "" : ` (${Math.round(100 * told.confidence)} %)`;
      const same = told.guess === name;
      parts.push(make("span", same ? `The model says so, too${sure}.` : `The model said ${told.guess}${sure}.`, same ? "same" : "other"));
    }
    said(parts);
  }

  async function save(value, name, skipped) {
    if (!current || busy) return;
    const sample = current.id;
    busy = true;
    state("ready");
    try {
      const told = await (await ask("/label/labels", skipped ? { sample, skipped: true } : { sample, value })).json();
      tell(name, told, skipped);
      drop(sample);
      busy = false;
      await show();
    } catch (error) {
      busy = false;
      if (error.status === 404) { await show(); return; }
      if (error.status === 401 || error.status === 403) { failed(error); return; }
      said([make("strong", skipped ? "Can’t tell" : name, "bad"), make("span", ` — not saved: ${error.message}. Press it again.`)]);
      state("ready");
    } finally {
      buttons.forEach((button) => button.classList.remove("chosen"));
    }
  }

  function pick(button) {
    if (button.disabled) return;
    button.classList.add("chosen");
    // Else Space, which means "can't tell", would press it again.
    button.blur();
    save(Number(button.dataset.value), button.querySelector("span").textContent, false);
  }

  async function undo() {
    if (busy || $("undo").disabled) return;
    busy = true;
    try {
      const told = await (await ask("/label/undo", {})).json();
      said([make("span", told.sample ? "Taken back. " : "There is nothing to take back.")]);
      busy = false;
      const place = later.indexOf(told.sample);
      if (place >= 0) later.splice(place, 1);
      await show();
      if (told.sample && current && current.id !== told.sample) {
        // What was taken back is shown again, whatever is next in the queue.
        queue.unshift({ id: told.sample, second: false });
        current = queue[0];
        $("view").replaceChildren(await picture(current.id));
      }
    } catch (error) { busy = false; failed(error); }
  }

  function putOff() {
    if (!current || busy) return;
    later.push(current.id);
    show();
  }

  async function hint() {
    if (!current || busy) return;
    try {
      const told = await (await ask(`/label/samples/${current.id}/hint`)).json();
      const sure = told.confidence === null ? "" : `, ${Math.round(100 * told.confidence)} % sure`;
      $("hint").textContent = told.guess === null ? "The model says nothing of it." : `The model says: ${told.guess}${sure}`;
      $("hint").hidden = false;
    } catch (error) { failed(error); }
  }

  buttons.forEach((button) => button.addEventListener("click", () => pick(button)));
  $("skip").addEventListener("click", () => save(null, "", true));
  $("later").addEventListener("click", putOff);
  $("ask").addEventListener("click", hint);
  $("undo").addEventListener("click", undo);
  $("again").addEventListener("click", show);

  if ($("words")) {
    const send = (event) => { event.preventDefault(); const text = $("text").value.trim(); if (text) save(text, text, false); };
    $("words").addEventListener("submit", send);
    $("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) send(event); });
  }
  if ($("filter")) {
    const matching = () => buttons.filter((button) => !button.hidden);
    $("filter").addEventListener("input", () => {
      const text = $("filter").value.trim().toLowerCase();
      buttons.forEach((button) => { button.hidden = !button.textContent.toLowerCase().includes(text); });
    });
    $("filter").addEventListener("keydown", (event) => {
      if (event.key === "Escape") $("filter").blur();
      if (event.key === "Enter" && matching().length) {
        pick(matching()[0]);
        $("filter").value = "";
        buttons.forEach((button) => { button.hidden = false; });
      }
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.matches("input, textarea, audio")) return;
    const key = event.key.toLowerCase();
    const actions = { " ": () => save(null, "", true), arrowright: putOff, "?": hint, h: hint, z: undo, backspace: undo };
    const sound_ = document.querySelector("#view audio");
    if (key === "/" && $("filter")) { event.preventDefault(); $("filter").focus(); }
    else if (key === "." && sound_) { if (sound_.paused) sound_.play(); else sound_.pause(); }
    else if (keys.has(key)) { event.preventDefault(); pick(keys.get(key)); }
    // A focused button is pressed by Space itself.
    else if (key === " " && event.target.matches("button")) return;
    else if (actions[key]) { event.preventDefault(); actions[key](); }
  });

  show();
})();
