(() => {
  // A panel's data coordinates, and those of the SVG's viewBox.
  class Axis {
    constructor({ scale, limits, label }, start, stop) {
      this.log = scale === "log";
      this.label = label;
      [this.low, this.high] = this.log ? limits.map(Math.log) : limits;
      [this.start, this.stop] = [start, stop];
    }
    at(value) {
      const place = ((this.log ? Math.log(value) : value) - this.low) / (this.high - this.low);
      return this.start + place * (this.stop - this.start);
    }
    value(place) {
      const value = this.low + ((place - this.start) / (this.stop - this.start)) * (this.high - this.low);
      return this.log ? Math.exp(value) : value;
    }
  }

  class Panel {
    constructor({ box, x, y, places, series }) {
      [this.left, this.top, this.right, this.bottom] = box;
      this.x = new Axis(x, this.left, this.right);
      this.y = new Axis(y, this.bottom, this.top);
      this.series = series.map((one) => ({ ...one, x: places[one.x] }));
      const all = new Set();
      for (const one of places) for (const value of one) if (value !== null) all.add(value);
      this.places = [...all].sort((a, b) => a - b);
    }
    holds(point) {
      return point.x >= this.left && point.x <= this.right && point.y >= this.top && point.y <= this.bottom;
    }
  }

  const nearest = (sorted, value) => {
    let [low, high] = [0, sorted.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] <= value) low = middle;
      else high = middle;
    }
    return Math.abs(sorted[high] - value) < Math.abs(sorted[low] - value) ? high : low;
  };

  // What is read off a figure, marked in it and said below it.
  class Reader {
    constructor(figure, panels) {
      this.svg = figure.querySelector("svg");
      this.plot = figure.querySelector(".plot");
      this.readout = figure.querySelector(".readout");
      this.panels = panels.map((panel) => new Panel(panel));
      this.layer = svgNode("g", { "aria-hidden": "true" });
      this.svg.append(this.layer);
      this.panel = this.panels.findIndex((panel) => panel.places.length);
      this.index = -1;
      this.svg.addEventListener("pointermove", (event) => this.follow(event));
      this.svg.addEventListener("pointerleave", () => this.clear());
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("blur", () => this.clear());
    }
    clear() {
      this.layer.replaceChildren();
      this.readout.textContent = "";
    }
    follow(event) {
      const point = pointIn(this.svg, event);
      const number = this.panels.findIndex((panel) => panel.holds(point));
      if (number < 0) return this.clear();
      this.inside(number, point);
    }
    inside(number, point) {
      const panel = this.panels[number];
      if (!panel.places.length) return this.clear();
      this.show(number, nearest(panel.places, panel.x.value(point.x)));
    }
    key(event) {
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
      if (this.panel < 0 || event.target !== this.plot) return;
      const count = this.panels[this.panel].places.length;
      let index = this.index;
      if (event.key in moves) index = Math.min(Math.max(index + moves[event.key], 0), count - 1);
      else if (event.key === "Home") index = 0;
      else if (event.key === "End") index = count - 1;
      else if (event.key === "Escape") return this.clear();
      else if (event.key === "Enter" || event.key === " ") {
        do this.panel = (this.panel + 1) % this.panels.length;
        while (!this.panels[this.panel].places.length);
        index = Math.max(Math.min(index, this.panels[this.panel].places.length - 1), 0);
      } else return;
      event.preventDefault();
      this.show(this.panel, index);
    }
    show(number, index) {
      const panel = this.panels[number];
      [this.panel, this.index] = [number, index];
      const place = panel.places[index];
      this.layer.replaceChildren(this.guide(panel, place));
      const parts = [];
      for (const { label, colour, x, y } of panel.series) {
        const at = x.indexOf(place);
        if (at < 0) continue;
        parts.push(`${label ? label + " " : ""}${say(y[at])}`);
        if (y[at] !== null) this.spot(panel, place, y[at], colour);
      }
      this.readout.textContent = `${panel.x.label || "x"} ${say(place)}: ${panel.y.label}${panel.y.label ? ": " : ""}${parts.join("; ")}`;
    }
    guide(panel, place) {
      const x = panel.x.at(place);
      return svgNode("line", { x1: x, x2: x, y1: panel.top, y2: panel.bottom, class: "guide" });
    }
    spot(panel, x, y, colour) {
      const [cx, cy] = [panel.x.at(x), panel.y.at(y)];
      if (!Number.isFinite(cy) || cy < panel.top - 1 || cy > panel.bottom + 1) return;
      const circle = svgNode("circle", { cx, cy, r: 2.6, class: "spot" });
      circle.style.fill = colour;
      this.layer.append(circle);
    }
  }

  // A map over all steps beside the curve of the one on the slider.
  class Explorer extends Reader {
    constructor(figure, content) {
      super(figure, content.panels);
      const { steps, along, alongName, valueName, low, high, log } = content;
      Object.assign(this, { steps, along, alongName, valueName, low, high, log });
      const bytes = Uint8Array.from(atob(content.codes), (letter) => letter.charCodeAt(0));
      this.codes = new DataView(bytes.buffer);
      this.slider = figure.querySelector("input");
      this.output = figure.querySelector("output");
      this.marker = document.getElementById(`keep-${content.key}-step`).querySelector("path");
      this.curve = document.getElementById(`keep-${content.key}-curve`).querySelector("path");
      this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
      this.svg.addEventListener("pointerdown", (event) => this.drag(event));
      this.svg.addEventListener("pointermove", (event) => event.buttons & 1 && this.drag(event));
      this.panel = 1;
      this.choose(Number(this.slider.value));
    }
    value(step, at) {
      const code = this.codes.getUint16(2 * (step * this.along.length + at), true);
      if (code === 65535) return null;
      if (code === 0) return 0;
      const place = (code - 1) / 65533;
      return this.log ? this.low * Math.pow(this.high / this.low, place) : this.low + place * (this.high - this.low);
    }
    drag(event) {
      const point = pointIn(this.svg, event);
      if (!this.panels[0].holds(point)) return;
      this.slider.value = nearest(this.steps, this.panels[0].x.value(point.x));
      this.choose(Number(this.slider.value));
    }
    choose(index) {
      this.chosen = index;
      const [map, section] = this.panels;
      const name = this.steps[index].toLocaleString("en-US");
      this.output.textContent = name;
      this.slider.setAttribute("aria-valuetext", `step ${name}`);
      const x = map.x.at(this.steps[index]).toFixed(2);
      this.marker.setAttribute("d", `M ${x} ${map.bottom} L ${x} ${map.top}`);
      const values = this.along.map((_, at) => this.value(index, at));
      let [path, pen] = ["", "M"];
      values.forEach((value, at) => {
        if (value === null || (section.y.log && value <= 0)) {
          pen = "M";
          return;
        }
        path += `${pen}${section.x.at(this.along[at]).toFixed(2)} ${section.y.at(value).toFixed(2)}`;
        pen = "L";
      });
      this.curve.setAttribute("d", path || "M 0 0");
      section.series = [{ label: "", colour: section.series.length ? section.series[0].colour : "currentColor", x: this.along, y: values }];
      section.places = this.along;
      this.clear();
    }
    inside(number, point) {
      if (number > 0) return super.inside(number, point);
      const map = this.panels[0];
      const step = nearest(this.steps, map.x.value(point.x));
      const at = nearest(this.along, map.y.value(point.y));
      this.layer.replaceChildren(this.guide(map, this.steps[step]));
      this.readout.textContent =
        `step ${say(this.steps[step])}, ${this.alongName} ${say(this.along[at])}: ${this.valueName} ${say(this.value(step, at))}`;
    }
  }

  for (const plot of document.querySelectorAll("[data-plot], [data-explorer]")) {
    const figure = plot.closest("figure");
    const content = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    if ("explorer" in plot.dataset) new Explorer(figure, content);
    else new Reader(figure, content);
  }

  // A link to a claim opens it; on paper everything is open.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    if (event.target.closest('a[href^="#claim-"]')) setTimeout(reveal);
  });
  reveal();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
