"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // Themes: that of the system ("auto"), light or dark.
  const themes = ["auto", "light", "dark"];
  const themeButton = one("theme");
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    root.dataset.theme = next;
    themeButton.textContent = `Theme: ${next}`;
  });

  // Thumbnails move unless the system asks for reduced motion. The button overrides both.
  const motionButton = one("motion");
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");
  const showMotion = () => {
    const playing = root.dataset.motion ? root.dataset.motion === "playing" : !reduced.matches;
    motionButton.textContent = playing ? "Pause thumbnails" : "Play thumbnails";
    return playing;
  };
  motionButton.hidden = false;
  showMotion();
  reduced.addEventListener("change", showMotion);
  motionButton.addEventListener("click", () => {
    root.dataset.motion = showMotion() ? "paused" : "playing";
    showMotion();
  });

  // Show one panel at a time. Without this script, all are visible.
  for (const select of all("select[data-panels]")) {
    const show = () => {
      for (const panel of all(`[data-panel="${select.dataset.panels}"]`)) {
        panel.hidden = panel.dataset.value !== select.value;
      }
    };
    select.addEventListener("change", show);
    show();
  }

  const map = one("map-picture");
  if (!map) return;
  const { places, marks, classOf } = JSON.parse(one("map-data").textContent);
  const shapes = JSON.parse(one("map-marks").textContent);
  const points = all(".point", map);
  const card = one("map-card");
  const sourceChoice = one("map-source");
  const columnChoice = one("map-column");
  const legends = all(".legend");
  let source = Object.keys(places)[0];
  let column = Object.keys(marks)[0];

  const placePoints = () => {
    points.forEach((point, i) => {
      // Only CSS transforms are animated, not the `transform` attribute.
      point.style.transform = `translate(${places[source][i][0]}px, ${places[source][i][1]}px)`;
    });
  };
  const markPoints = () => {
    if (!column) return;
    const legend = legends.find((list) => list.dataset.column === column);
    const pressed = all('button[aria-pressed="true"]', legend).map((button) => Number(button.dataset.class));
    points.forEach((point, i) => {
      const number = classOf[column][i];
      const [colour, shape] = marks[column][number];
      const path = point.firstElementChild;
      path.setAttribute("class", `colour-${colour}`);
      path.setAttribute("d", shapes[shape]);
      point.classList.toggle("dim", pressed.length > 0 && !pressed.includes(number));
    });
    for (const list of legends) list.hidden = list !== legend;
  };
  for (const legend of legends) {
    legend.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      markPoints();
    });
  }
  sourceChoice?.addEventListener("change", () => { source = sourceChoice.value; hide(); placePoints(); });
  columnChoice?.addEventListener("change", () => { column = columnChoice.value; hide(); markPoints(); });

  let chosen = null;
  const hide = () => {
    chosen?.classList.remove("chosen");
    chosen = null;
    card.hidden = true;
  };
  // Position of a point in client coordinates. The drawing is centred in its frame, so the screen matrix is needed.
  const onPage = (i) => {
    const matrix = map.getScreenCTM();
    const [x, y] = places[source][i];
    return [matrix.a * x + matrix.e, matrix.d * y + matrix.f];
  };
  const show = (point) => {
    if (point === chosen) return;
    hide();
    chosen = point;
    point.classList.add("chosen");
    const [thumb, name, labels] = card.children;
    thumb.className = `thumb ${point.dataset.picture}`;
    name.textContent = point.dataset.name;
    labels.textContent = point.dataset.labels;
    card.hidden = false;
    const frame = card.parentElement.getBoundingClientRect();
    const [x, y] = onPage(Number(point.dataset.number));
    const [left, top] = [x - frame.left, y - frame.top];
    const room = frame.width - card.offsetWidth;
    card.style.left = `${Math.max(0, Math.min(room, left + 14 > room ? left - card.offsetWidth - 14 : left + 14))}px`;
    card.style.top = `${Math.max(0, Math.min(frame.height - card.offsetHeight, top - card.offsetHeight / 2))}px`;
  };
  const nearest = (event) => {
    // A finger is less precise than a mouse.
    const reach = event.pointerType === "touch" ? 28 : 16;
    let best = null;
    let least = reach * reach;
    points.forEach((point, i) => {
      const [x, y] = onPage(i);
      const distance = (x - event.clientX) ** 2 + (y - event.clientY) ** 2;
      if (distance < least) [best, least] = [point, distance];
    });
    return best;
  };
  map.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    if (point) show(point);
    else if (event.pointerType === "mouse") hide();
  });
  map.addEventListener("pointerdown", (event) => {
    const point = nearest(event);
    if (point) show(point);
    else hide();
  });
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });

  // The Tab key enters the map once; arrow keys move to the nearest video in that direction.
  const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  map.addEventListener("focusin", (event) => show(event.target.closest(".point")));
  map.addEventListener("focusout", hide);
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const from = event.target.closest(".point");
    if (!step[event.key] || !from) return;
    event.preventDefault();
    const [dx, dy] = step[event.key];
    const [x, y] = places[source][Number(from.dataset.number)];
    let best = null;
    let least = Infinity;
    points.forEach((point, i) => {
      const ahead = (places[source][i][0] - x) * dx + (places[source][i][1] - y) * dy;
      const aside = Math.abs((places[source][i][0] - x) * dy) + Math.abs((places[source][i][1] - y) * dx);
      if (ahead > 0 && ahead + 2 * aside < least) [best, least] = [point, ahead + 2 * aside];
    });
    if (!best) return;
    from.tabIndex = -1;
    best.tabIndex = 0;
    best.focus();
  });
  placePoints();
  markPoints();
})();
