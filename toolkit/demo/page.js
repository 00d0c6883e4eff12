// The drawings of the page. Each function takes a component's value and returns HTML. Gradio calls them from the
// templates of page.py whenever a value changes. page.py puts `kd.texts` (texts.py) in front of this file.
(() => {
  const LARGEST_T = 20;
  const MOST_CLASSES = 12; // of the softened distributions
  const zh = document.documentElement.lang.startsWith("zh");
  const texts = kd.texts[zh ? "zh" : "en"];
  let temperature = 4;

  const escape = (text) =>
    String(text).replace(/[&<>"'`]/g, (c) => `&#${c.charCodeAt(0)};`);
  /** The text `key` as HTML, with {name}s filled in. */
  const say = (key, values = {}) =>
    escape(texts[key]).replace(/\{(\w+)\}/g, (_, name) => `<b>${escape(values[name])}</b>`);
  /** A dash for a figure that an older report does not have. */
  const number = (value, digits = 0) =>
    !Number.isFinite(value) ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const percent = (share, digits = 1) => `${number(share === null ? NaN : 100 * share, digits)}\u00a0%`;
  const signed = (value, digits) => (!Number.isFinite(value) ? "" : value < 0 ? "−" : "+") + number(Math.abs(value), digits);
  const size = (bytes) =>
    !Number.isFinite(bytes) ? "–" :
    bytes >= 1e6 ? `${number(bytes / 1e6, 1)}\u00a0MB` : bytes >= 1e3 ? `${number(bytes / 1e3, 1)}\u00a0kB` : `${bytes}\u00a0B`;
  const command = (text) => `<code class="kd-command" tabindex="0">${escape(text)}</code>`;

  /** Logarithm of the softmax of logits / T. */
  const logSoften = (logits, T) => {
    const largest = Math.max(...logits);
    const sum = logits.reduce((a, logit) => a + Math.exp((logit - largest) / T), 0);
    return logits.map((logit) => (logit - largest) / T - Math.log(sum));
  };
  /** KL(teacher || student) of the distributions softened by T: never negative, 0 if they are equal. */
  const divergence = (teacher, student, T) => {
    const [p, q] = [logSoften(teacher, T), logSoften(student, T)];
    return Math.max(0, p.reduce((sum, logp, i) => sum + Math.exp(logp) * (logp - q[i]), 0));
  };

  const bars = (rows, digits) =>
    `<ol class="kd-bars">${rows
      .map(
        (row) => `<li class="kd-bar" data-probability="${row.probability}">
          <span class="kd-name" title="${escape(row.class)}">${escape(row.class)}</span>
          <span class="kd-value">${percent(row.probability, digits)}</span>
          <span class="kd-track" aria-hidden="true"><span class="kd-fill" style="width:${100 * row.probability}%"></span></span>
        </li>`,
      )
      .join("")}</ol>`;

  const column = (role, inner) =>
    `<section class="kd-column" data-role="${role}" aria-label="${escape(texts[role])}"><h2>${say(role)}</h2>${inner}</section>`;

  const answers = (value) => {
    if (!value) return `<p class="kd-hint">${say("hint")}</p>`;
    if (value.problem) {
      const { reason, message } = value.problem;
      return `<p class="kd-problem" role="alert">${texts[reason] ? say(reason, value.problem) : escape(message)}</p>`;
    }
    const [teacher, student] = ["teacher", "student"].map((role) => value[role].top[0].class);
    const verdict = value.agree ? say("agree", { answer: teacher }) : say("differ", { teacher, student });
    const notes = Object.entries(value.notes).map(
      ([note, count]) => `<p class="kd-note">${say(note, { frames: number(count) })}</p>`,
    );
    const columns = ["teacher", "student"].map((role) => {
      const { top, latency_ms, size_bytes, precision } = value[role];
      const facts = say("facts", { precision, ms: number(latency_ms, 2), size: size(size_bytes) });
      return column(role, `${bars(top, 1)}<p class="kd-facts">${facts}</p>`);
    });
    return `<p id="verdict" role="status" data-agree="${value.agree}"><span aria-hidden="true">${value.agree ? "✓" : "✗"}</span>
      ${verdict}</p><div class="kd-columns">${columns.join("")}</div>${notes.join("")}`;
  };

  const seen = (value) =>
    value
      ? `<figure><img src="${value.src}" alt="${escape(texts.seen_alt)}"><figcaption>${say("seen", {
          side: value.image_size,
          width: number(value.width),
          height: number(value.height),
        })}</figcaption></figure>`
      : "";

  /** Both networks' softened distributions over the same classes in the same order. */
  const softened = (value) => {
    const { classes, teacher, student } = value;
    const byTeacher = [...classes.keys()].sort((a, b) => teacher.logits[b] - teacher.logits[a]);
    const answer = student.logits.indexOf(Math.max(...student.logits));
    const likeliest = byTeacher.filter((i, place) => place < MOST_CLASSES || i === answer);
    const columns = ["teacher", "student"].map((role) => {
      const probabilities = logSoften(value[role].logits, temperature).map(Math.exp);
      return column(role, bars(likeliest.map((i) => ({ class: classes[i], probability: probabilities[i] })), 2));
    });
    const kl = divergence(teacher.logits, student.logits, temperature);
    const words = { kl: kl.toPrecision(3), loss: (kl * temperature ** 2).toPrecision(3) };
    const cut =
      classes.length > likeliest.length
        ? `<p class="kd-note">${say("more_classes", { shown: likeliest.length, all: number(classes.length) })}</p>`
        : "";
    return `<div class="kd-columns">${columns.join("")}</div>${cut}<p class="kd-divergence">${say("divergence", words)}</p>`;
  };

  const shownTemperature = () => `T = ${temperature.toFixed(1)}`;
  const knowledge = (value) => {
    const why = `<p class="kd-why">${say("why")}</p>`;
    if (!value) return `<p class="kd-hint">${say("knowledge_hint")}</p>${why}`;
    const position = Math.log(temperature) / Math.log(LARGEST_T);
    return `<div class="kd-temperature">
        <img src="${value.src}" alt="${escape(texts.seen_alt)}">
        <label for="temperature">${say("temperature")}</label>
        <span class="kd-scale"><span aria-hidden="true">1</span>
          <input type="range" id="temperature" min="0" max="1" step="0.01" value="${position.toFixed(2)}"
            aria-valuetext="${shownTemperature()}" oninput="kd.setTemperature(this)">
          <span aria-hidden="true">${LARGEST_T}</span></span>
        <output for="temperature">${shownTemperature()}</output>
      </div><div class="kd-softened">${softened(value)}</div>${why}`;
  };
  /** The slider moved: its position is log T / log 20. Only the bars are redrawn, in place; no network runs. */
  const setTemperature = (slider) => {
    temperature = LARGEST_T ** Number(slider.value);
    slider.setAttribute("aria-valuetext", shownTemperature());
    const root = slider.closest("#knowledge");
    root.querySelector("output").textContent = shownTemperature();
    root.querySelector(".kd-softened").innerHTML = softened(kd.compared);
  };

  const caption = (picture) => {
    const said = (role) => `<span class="kd-said"><i>${say(role)}</i> ${escape(picture[role])} ${percent(picture[`${role}_confidence`], 0)}</span>`;
    return `<span class="kd-truth"><i>${say("truth")}</i> <b>${escape(picture.label)}</b></span>${said("teacher")}${said("student")}`;
  };
  const tiles = (pictures, captions) =>
    `<ul class="kd-tiles ${captions ? "kd-captioned" : ""}">${pictures
      .map(
        (picture, index) => `<li><button type="button" data-index="${index}" title="${escape(`${picture.label} (${picture.name})`)}">
          <img src="${picture.src}" alt="${captions ? "" : escape(picture.label)}" loading="lazy">
          ${captions ? caption(picture) : `<span class="kd-truth">${escape(picture.label)}</span>`}</button></li>`,
      )
      .join("")}</ul>`;

  /** A file that is missing or cannot be read, and the command that makes it. */
  const lacking = (value, hint) =>
    value.problem
      ? `<p class="kd-problem">${escape(value.problem)}</p><p class="kd-hint">${command(value.command)}</p>`
      : `<p class="kd-hint">${say(hint)} ${command(value.command)}</p>`;
  const examples = (value) =>
    value.examples
      ? `<h2 class="kd-small">${say("examples")}</h2>${tiles(value.examples, false)}`
      : lacking(value, "no_examples");

  const disagreements = (value) => {
    if (!value.examples) return lacking(value, "no_examples");
    const about = { ...value, count: number(value.differing), images: number(value.images) };
    if (value.differing === 0) return `<p>${say("none_differ", about)}</p>`;
    const shown = value.disagreements.length;
    return `<p>${say("found", { ...about, share: percent(value.differing / value.images) })}
      ${shown ? say("shown", { shown: number(shown) }) : say("none_kept")}</p>${tiles(value.disagreements, true)}`;
  };

  const report = (value) => {
    if (!value.rows) return lacking(value, "no_report");
    const heads = ["model", "runtime", "size", "top1", "agree", "latency", "throughput", "against"];
    const rows = value.rows.map((row) => {
      const [batch, speed] = Object.entries(row.throughput_img_s ?? {}).at(-1) ?? ["", null];
      const better = row.vs_teacher;
      const against = better
        ? say("against", {
            smaller: number(better.times_smaller, 1),
            faster: number(better.times_faster, 1),
            points: signed(100 * better.accuracy_top1_difference, 2),
          })
        : "";
      const cells = [
        `${row.runtime} · ${(row.provider ?? "–").replace("ExecutionProvider", "").toLowerCase()}`,
        size(row.size_bytes),
        percent(row.accuracy_top1, 2),
        percent(row.teacher_agreement, 2),
        `${number(row.latency_ms?.p50, 2)}\u00a0ms`,
        speed === null ? "" : texts.at_batch.replace("{speed}", number(speed)).replace("{batch}", batch),
      ].map((cell) => `<td>${escape(cell)}</td>`);
      return `<tr data-role="${escape(row.model)}"><th scope="row">${say(row.model)} ${escape(row.precision)}</th>
        ${cells.join("")}<td class="kd-words">${against}</td></tr>`;
    });
    const about = { ...value, images: number(value.images) };
    const { gain, seeds } = value;
    const worth =
      gain === null
        ? ""
        : `<p>${say("gain", { points: signed(100 * gain, 2), seeds: seeds > 1 ? texts.seeds_n.replace("{n}", seeds) : texts.seeds_1 })}</p>`;
    const beyond = value.beyond_labels
      ? `<p lang="en"><b${zh ? ' lang="zh-CN"' : ""}>${say("beyond_labels")}</b> ${escape(value.beyond_labels)}</p>`
      : "";
    return `<p lang="en" class="kd-verdict">${zh ? `<b lang="zh-CN">${say("report_verdict")}</b> ` : ""}${escape(value.verdict)}</p>${worth}
      <div class="kd-scroll" tabindex="0" role="region" aria-label="${escape(texts.benchmark)}"><table>
      <thead><tr>${heads.map((head) => `<th scope="col">${say(`col_${head}`)}</th>`).join("")}</tr></thead>
      <tbody>${rows.join("")}</tbody></table></div>${beyond}<p class="kd-note">${say("measured", about)}</p>`;
  };

  const plots = (value) =>
    (value.pictures.length
      ? `<div class="kd-plots">${value.pictures
          .map(
            ({ name, src }) => `<figure data-plot="${name}"><img src="${src}" alt="${escape(texts[name])}" loading="lazy">
            <figcaption>${say(name)}</figcaption></figure>`,
          )
          .join("")}</div>`
      : "") + (value.complete ? "" : `<p class="kd-hint">${say("no_plots")} ${command(value.command)}</p>`);

  const header = () => {
    const button = (code, lang, name) =>
      `<button type="button" lang="${lang}" aria-current="${(code === "zh") === zh}" onclick="kd.speak('${code}')">${name}</button>`;
    return `<header class="kd-header"><div><h1>${say("title")}</h1><p>${say("lead")}</p></div>
      <nav id="language" aria-label="Language / 语言">${button("en", "en", "English")}${button("zh", "zh", "中文")}</nav></header>`;
  };
  const speak = (language) => {
    document.cookie = `kd_language=${language};path=/;max-age=31536000;SameSite=Lax`;
    location.reload();
  };

  /** Clicks on tiles become select events with the tile's index. */
  const onTile = (element, trigger) =>
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-index]");
      if (!button) return;
      trigger("select", { index: Number(button.dataset.index) });
      document.querySelector("h1").scrollIntoView({ block: "nearest" }); // on a phone the answers are far up the page
    });

  /** Gradio refuses such files in English, in a corner and for a moment. Here the message appears in place of the answers. */
  const refuse = (event) => {
    if (!event.target.closest?.("#picture")) return;
    const file = (event.type === "drop" ? event.dataTransfer : event.target).files?.[0];
    const most = window.gradio_config.max_file_size;
    const reason =
      file && (!file.type.startsWith("image/") ? "not_picture" : most && file.size > most ? "too_heavy" : "");
    if (!reason) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    kd.answersProps.value = { problem: { reason, name: file.name, mb: Math.floor(most / 2 ** 20) } };
  };
  const onAnswers = (props) => {
    kd.answersProps = props;
    for (const type of ["change", "drop"]) document.addEventListener(type, refuse, true);
    // A file that is not a picture: the message says why, so hide the broken frame.
    for (const type of ["error", "load"])
      document.addEventListener(type, ({ target }) => target.matches?.("#picture img") && (target.hidden = type === "error"), true);
    // If a file is dropped beside the box, the browser would leave the page and open it.
    for (const type of ["dragover", "drop"])
      document.addEventListener(type, (event) => event.target.closest?.("#picture") || event.preventDefault());
  };
  /** Ctrl-V, except in a text field, acts as if the picture had been chosen as a file; it replaces the current one. */
  const paste = async (event) => {
    const file = event.clipboardData?.files[0];
    const typed = "input:not([type=radio], [type=range], [type=file]), textarea";
    if (!file || event.target.closest?.(typed)) return;
    const find = () => document.querySelector("#picture input[type=file]");
    if (!find()) document.querySelector("#picture .icon-button-wrapper button:last-child")?.click(); // removes it
    for (let tries = 0; !find() && tries < 20; tries++) await new Promise((resolve) => setTimeout(resolve, 50));
    const input = find();
    if (!input) return;
    const transfer = new DataTransfer();
    transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  document.addEventListener("paste", paste);

  // Keep the value that the slider needs when Gradio redraws.
  const remember = (value) => knowledge((kd.compared = value));
  Object.assign(kd, { header, answers, seen, knowledge: remember, setTemperature, examples, disagreements, report, plots, speak, onTile, onAnswers });
})();
