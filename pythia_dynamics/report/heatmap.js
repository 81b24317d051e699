// The heat map tensor × step, and the curve of the tensor that was chosen in it.
(() => {
  const MISSING = 65535;
  const CODES = 65533; // intervals between the codes 1 and 65534, as in explorer.py
  const LOG_COLOURS = 100; // colours are logarithmic from this ratio of the greatest to the least value
  const LOG_CURVE = 10; // and the axis of a curve from this one, as in figures/populations.py
  const TABLE_STEPS = 8; // columns of the table that fit on a screen

  const compact = (value) => new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 }).format(value).replace("K", "k");
  const words = (name) => name.replaceAll("_", " ");
  const withUnits = ({ name, units }) => words(name) + (units ? ` (${units})` : "");
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const tick = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(3)));
  };

  const inflated = async (text) => {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // The values of a column over tensors, runs and steps, as decode_column in heatmap.py: NaN where none is known.
  const expand = async ({ codes, scales }, runs, steps) => {
    const bytes = await inflated(codes);
    const count = bytes.length / 2;
    const values = new Float64Array(count);
    let code = 0;
    for (let at = 0; at < count; at++) {
      code = ((at % steps ? code : 0) + 256 * bytes[at] + bytes[count + at]) & 0xffff;
      const [low, high, log] = scales[Math.floor(at / (runs * steps))];
      const place = (code - 1) / CODES;
      if (code === MISSING) values[at] = NaN;
      else if (code === 0) values[at] = 0;
      else values[at] = log ? Math.exp(Math.log(low) * (1 - place) + Math.log(high) * place) : low * (1 - place) + high * place;
    }
    return values;
  };

  const median = (values) => {
    if (!values.length) return NaN;
    const sorted = Float64Array.from(values).sort();
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  };

  const rangeOf = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values)
      if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    return [low, high];
  };

  // Where a value is between the ends of a scale, 0 to 1.
  class Scale {
    constructor([low, high], ratio) {
      this.log = low > 0 && high >= ratio * low;
      [this.low, this.high] = [low, high];
    }
    at(value) {
      const of = this.log ? Math.log : (one) => one;
      const range = of(this.high) - of(this.low);
      return range > 0 ? (of(value) - of(this.low)) / range : 0.5;
    }
    ticks(count) {
      if (!(this.high > this.low)) return Number.isFinite(this.low) ? [this.low] : [];
      if (this.log) {
        const found = [];
        const decades = Math.log10(this.high / this.low);
        const digits = decades < 2 ? [1, 2, 5] : [1];
        const every = Math.max(1, Math.ceil(decades / count));
        for (let power = Math.floor(Math.log10(this.low)); power <= Math.log10(this.high); power++)
          for (const digit of digits) {
            const value = digit * Math.pow(10, power);
            if (power % every === 0 && value >= this.low && value <= this.high) found.push(value);
          }
        return found.length > 1 ? found : [this.low, this.high];
      }
      const rough = (this.high - this.low) / count;
      const power = Math.pow(10, Math.floor(Math.log10(rough)));
      const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
      const found = [];
      for (let number = Math.ceil(this.low / step); number * step <= this.high; number++) found.push(number * step);
      return found;
    }
  }

  const text = (content, attributes) => {
    const node = svgNode("text", attributes);
    node.textContent = content;
    return node;
  };

  const stroke = (points) => {
    let [path, pen] = ["", "M"];
    points.forEach(([x, y], at) => {
      if (!Number.isFinite(y)) {
        pen = "M";
        return;
      }
      path += `${pen}${x.toFixed(2)} ${y.toFixed(2)}`;
      // A record between two gaps is a dot: a line of no length with round ends.
      if (pen === "M" && !Number.isFinite(points[at + 1]?.[1])) path += "h0";
      pen = "L";
    });
    return path;
  };

  class HeatMap {
    constructor(figure) {
      this.figure = figure;
      this.content = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
      this.colours = bytesOf(this.content.colours);
      const { tensors } = this.content;
      [this.map, this.curve] = figure.querySelectorAll(".plot");
      [this.mapRead, this.curveRead] = figure.querySelectorAll(".readout");
      [this.quantity, this.colouring] = figure.querySelectorAll("select");
      this.boxes = [...figure.querySelectorAll('input[type="checkbox"]')];
      [this.cell, this.open, this.at, this.highlight] = [null, tensors.length - 1, -1, -1];
      this.listen();
      this.choose();
    }

    listen() {
      this.quantity.addEventListener("change", () => this.choose());
      this.colouring.addEventListener("change", () => this.draw());
      for (const [run, box] of this.boxes.entries()) {
        box.addEventListener("change", () => this.draw());
        const shine = (on) => () => {
          this.highlight = on ? run : -1;
          if (this.values) this.drawCurve();
        };
        box.parentElement.addEventListener("pointerenter", shine(true));
        box.parentElement.addEventListener("pointerleave", shine(false));
        box.addEventListener("focus", shine(true));
        box.addEventListener("blur", shine(false));
      }
      for (const button of this.figure.querySelectorAll("button[data-runs]"))
        button.addEventListener("click", () => {
          for (const box of this.boxes) box.checked = button.dataset.runs === "all";
          this.draw();
        });
      this.map.addEventListener("keydown", (event) => this.mapKey(event));
      this.map.addEventListener("pointermove", (event) => this.point(event));
      this.map.addEventListener("pointerleave", () => this.move(null));
      this.map.addEventListener("blur", () => this.move(null));
      this.map.addEventListener("click", (event) => {
        const cell = this.cellAt(event);
        if (cell) this.show(cell.row);
      });
      this.curve.addEventListener("keydown", (event) => this.curveKey(event));
      this.curve.addEventListener("pointermove", (event) => {
        const svg = this.curve.firstElementChild;
        if (svg) this.read(this.stepAt(pointIn(svg, event).x, this.curveBox));
      });
      this.curve.addEventListener("pointerleave", () => this.read(-1));
      this.curve.addEventListener("blur", () => this.read(-1));
    }

    // -- what is shown ------------------------------------------------------------------------------------------

    async choose() {
      const [table, column] = this.quantity.value.split(" ").map(Number);
      const chosen = this.content.tables[table];
      this.figure.setAttribute("aria-busy", "true");
      const values = await expand(chosen.columns[column], this.content.runs.length, chosen.steps.length);
      if (this.quantity.value !== `${table} ${column}`) return; // another one was chosen meanwhile
      Object.assign(this, { values, steps: chosen.steps, column: chosen.columns[column], table: chosen, at: -1 });
      this.figure.setAttribute("aria-busy", "false");
      this.draw();
    }
    get runs() {
      if (!this.boxes.length) return [0];
      return this.boxes.flatMap((box, run) => (box.checked ? [run] : []));
    }
    value(row, run, step) {
      return this.values[(row * this.content.runs.length + run) * this.steps.length + step];
    }
    ofRuns(row, step) {
      return this.runs.map((run) => this.value(row, run, step)).filter(Number.isFinite);
    }
    draw() {
      if (!this.values) return;
      const { tensors } = this.content;
      this.shown = tensors.map((_, row) => this.steps.map((_, step) => median(this.ofRuns(row, step))));
      this.drawMap();
      this.drawCurve();
      this.drawTable();
      this.move(this.cell);
    }
    ofWhat() {
      const count = this.runs.length;
      if (!this.boxes.length) return "";
      if (count === 1) return ` of ${this.content.runs[this.runs[0]]}`;
      return count ? `, median of ${count} runs` : ", no run is chosen";
    }

    // -- the map ------------------------------------------------------------------------------------------------

    drawMap() {
      const { tensors, key } = this.content;
      const rows = tensors.length;
      const height = rows <= 80 ? 11 : Math.max(4, 880 / rows);
      const left = 14 + 4.5 * Math.max(8, ...tensors.map(({ label }) => label.length));
      const box = (this.mapBox = { left, right: left + 400, top: 4, bottom: 4 + rows * height, height });
      const svg = svgNode("svg", {
        viewBox: `0 0 ${box.right + 16} ${box.bottom + 68}`, role: "img",
        "aria-label": `${withUnits(this.column)} of ${rows} tensors at ${this.steps.length} steps${this.ofWhat()}`,
      });
      const pattern = svgNode("pattern", { id: `${key}-none`, width: 5, height: 5, patternUnits: "userSpaceOnUse" });
      pattern.append(svgNode("path", { d: "M-1 1l2 -2M0 5l5 -5M4 6l2 -2", class: "hatch" }));
      const defs = svgNode("defs", {});
      defs.append(pattern);
      const area = { x: left, y: box.top, width: 400, height: rows * height };
      svg.append(defs, svgNode("rect", { ...area, fill: `url(#${key}-none)` }), this.image(this.cells(), area));
      const every = Math.ceil(10 / height);
      this.labels = tensors.map(({ label }, row) => {
        const name = text(label, { x: left - 5, y: box.top + (row + 0.5) * height + 3, class: "row" });
        if (row % every === 0) svg.append(name);
        return name;
      });
      svg.append(svgNode("rect", { ...area, class: "frame" }), ...this.stepTicks(box), ...this.colourBar(box));
      this.marker = svgNode("g", { "aria-hidden": "true" });
      svg.append(this.marker);
      this.map.replaceChildren(svg);
    }
    scaleOf(row) {
      return new Scale(rangeOf(this.colouring.value === "row" ? this.shown[row] : this.shown.flat()), LOG_COLOURS);
    }
    cells() {
      const canvas = Object.assign(document.createElement("canvas"), { width: this.steps.length, height: this.shown.length });
      const pixels = new ImageData(canvas.width, canvas.height);
      const all = this.scaleOf(0);
      this.shown.forEach((values, row) => {
        const scale = this.colouring.value === "row" ? this.scaleOf(row) : all;
        values.forEach((value, step) => {
          if (Number.isFinite(value)) this.paint(pixels.data, row * canvas.width + step, scale.at(value));
        });
      });
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      return canvas;
    }
    paint(pixels, at, place) {
      const colour = 3 * clamp(Math.round(place * (this.colours.length / 3 - 1)), 0, this.colours.length / 3 - 1);
      pixels.set([...this.colours.subarray(colour, colour + 3), 255], 4 * at);
    }
    image(canvas, area) {
      return svgNode("image", { ...area, href: canvas.toDataURL(), preserveAspectRatio: "none", class: "cells" });
    }
    stepTicks({ left, right, bottom }) {
      const count = this.steps.length;
      const places = [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(part * (count - 1))))];
      const width = (right - left) / count;
      const ticks = places.flatMap((step) => {
        const x = left + (step + 0.5) * width;
        return [
          svgNode("line", { x1: x, x2: x, y1: bottom, y2: bottom + 3, class: "tick" }),
          text(compact(this.steps[step]), { x, y: bottom + 12, class: "middle" }),
        ];
      });
      return [...ticks, text("training step", { x: (left + right) / 2, y: bottom + 23, class: "middle" })];
    }
    colourBar({ left, right, bottom }) {
      const canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 1 });
      const pixels = new ImageData(256, 1);
      for (let at = 0; at < 256; at++) this.paint(pixels.data, at, at / 255);
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      const area = { x: left, y: bottom + 33, width: right - left, height: 8 };
      const own = this.colouring.value === "row";
      const scale = this.scaleOf(0);
      const ends = [[left, "least of the row", "start"], [right, "greatest of the row", "end"]];
      const ticks = own
        ? ends.map(([x, word, kind]) => text(word, { x, y: bottom + 51, class: kind }))
        : scale.ticks(5).flatMap((value) => {
            const x = left + scale.at(value) * (right - left);
            return [
              svgNode("line", { x1: x, x2: x, y1: bottom + 41, y2: bottom + 44, class: "tick" }),
              text(tick(value), { x, y: bottom + 52, class: "middle" }),
            ];
          });
      const name = text(withUnits(this.column), { x: (left + right) / 2, y: bottom + 64, class: "middle" });
      return [this.image(canvas, area), svgNode("rect", { ...area, class: "frame" }), ...ticks, name];
    }
    stepAt(x, { left, right }) {
      return clamp(Math.floor(((x - left) / (right - left)) * this.steps.length), 0, this.steps.length - 1);
    }
    cellAt(event) {
      if (!this.values) return null;
      const [point, box] = [pointIn(this.map.firstElementChild, event), this.mapBox];
      const row = Math.floor((point.y - box.top) / box.height);
      if (row < 0 || row >= this.shown.length || point.x < 0 || point.x > box.right) return null;
      return { row, step: this.stepAt(point.x, box) };
    }
    point(event) {
      this.move(this.cellAt(event));
    }
    move(cell) {
      if (!this.values) return;
      this.cell = cell && { row: cell.row, step: clamp(cell.step, 0, this.steps.length - 1) };
      this.marker.replaceChildren();
      this.labels.forEach((label, row) => label.classList.toggle("open", row === this.open));
      if (!this.cell) {
        this.mapRead.textContent = "";
        return;
      }
      const { row, step } = this.cell;
      const { left, right, top, height } = this.mapBox;
      const width = (right - left) / this.steps.length;
      const area = { x: left + step * width, y: top + row * height, width, height };
      this.marker.append(svgNode("rect", { ...area, class: "cell-back" }), svgNode("rect", { ...area, class: "cell" }));
      const value = this.shown[row][step];
      const told = Number.isFinite(value) ? say(value) : "no finite value";
      this.mapRead.textContent =
        `${this.content.tensors[row].name}, step ${say(this.steps[step])}: ${withUnits(this.column)} ${told}${this.ofWhat()}`;
    }
    mapKey(event) {
      if (event.target !== this.map || !this.values) return;
      const { row, step } = this.cell ?? { row: this.open, step: this.steps.length - 1 };
      const moves = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -Infinity], End: [0, Infinity],
      };
      if (event.key === "Escape") return this.move(null);
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.show(row);
        this.mapRead.textContent = `Opened the curve of ${this.content.tensors[row].name}`;
        return;
      }
      if (!(event.key in moves)) return;
      event.preventDefault();
      const [down, along] = this.cell ? moves[event.key] : [0, 0]; // the first key shows where the cell is
      this.move({ row: clamp(row + down, 0, this.shown.length - 1), step: clamp(step + along, 0, this.steps.length - 1) });
    }

    // -- the curve of one tensor --------------------------------------------------------------------------------

    show(row) {
      this.open = row;
      this.drawCurve();
      this.move(this.cell);
      this.curve.scrollIntoView({ block: "nearest" });
    }
    drawCurve() {
      const { tensors, runs } = this.content;
      const chosen = this.runs;
      const curves = chosen.map((run) => this.steps.map((_, step) => this.value(this.open, run, step)));
      const scale = new Scale(rangeOf(curves.flat()), LOG_CURVE);
      const box = (this.curveBox = { left: 48, right: 404, top: 28, bottom: 222 });
      const x = (step) => box.left + ((step + 0.5) * (box.right - box.left)) / this.steps.length;
      const y = (value) => box.bottom - 5 - clamp(scale.at(value), 0, 1) * (box.bottom - box.top - 10);
      const svg = svgNode("svg", {
        viewBox: "0 0 420 250", role: "img",
        "aria-label": `${withUnits(this.column)} of ${tensors[this.open].name} over the steps${this.ofWhat()}`,
      });
      svg.append(text(tensors[this.open].name, { x: box.left, y: 10, class: "start open" }));
      svg.append(text(withUnits(this.column) + this.ofWhat(), { x: box.left, y: 22, class: "start" }));
      for (const value of scale.ticks(5)) {
        svg.append(svgNode("line", { x1: box.left - 3, x2: box.left, y1: y(value), y2: y(value), class: "tick" }));
        svg.append(text(tick(value), { x: box.left - 5, y: y(value) + 3, class: "row" }));
      }
      svg.append(svgNode("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, class: "frame" }));
      svg.append(...this.stepTicks(box));
      const line = (values, kind) => {
        const path = stroke(values.map((value, step) => [x(step), Number.isFinite(value) ? y(value) : NaN]));
        if (path) svg.append(svgNode("path", { d: path, class: kind }));
      };
      const many = chosen.length > 1;
      if (many) curves.forEach((values) => line(values, "run"));
      if (chosen.length) line(this.shown[this.open], "median");
      if (chosen.includes(this.highlight) && many) {
        line(curves[chosen.indexOf(this.highlight)], "run shining");
        svg.append(text(runs[this.highlight], { x: box.right - 5, y: box.top + 11, class: "end open" }));
      }
      this.cursor = svgNode("g", { "aria-hidden": "true" });
      svg.append(this.cursor);
      this.curve.replaceChildren(svg);
      this.y = y;
      this.x = x;
    }
    read(step) {
      if (!this.values) return;
      this.at = step;
      this.cursor.replaceChildren();
      if (step < 0) {
        this.curveRead.textContent = "";
        return;
      }
      const { left, top, bottom } = this.curveBox;
      const place = this.x(step);
      this.cursor.append(svgNode("line", { x1: place, x2: place, y1: top, y2: bottom, class: "guide" }));
      const known = this.runs
        .map((run) => [this.value(this.open, run, step), this.content.runs[run]])
        .filter(([value]) => Number.isFinite(value))
        .sort(([one], [other]) => one - other);
      const middle = median(known.map(([value]) => value));
      let told = "no finite value";
      if (known.length) {
        told = say(middle);
        this.cursor.append(svgNode("circle", { cx: place, cy: this.y(middle), r: 2.6, class: "spot" }));
      }
      if (known.length > 1) {
        const [least, greatest] = [known[0], known.at(-1)].map(([value, run]) => `${say(value)} (${run})`);
        told = `median ${told}; ${known.length} runs from ${least} to ${greatest}`;
      }
      this.curveRead.textContent = `step ${say(this.steps[step])}: ${told}`;
    }
    curveKey(event) {
      if (event.target !== this.curve || !this.values) return;
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") return this.read(-1);
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.read(clamp(this.at + moves[event.key], 0, this.steps.length - 1));
    }

    // -- the same as a table ------------------------------------------------------------------------------------

    drawTable() {
      const count = this.steps.length;
      const places = [...new Set([...Array(TABLE_STEPS).keys()].map((at) => Math.round((at * (count - 1)) / (TABLE_STEPS - 1))))];
      const make = (name, content, more = {}) => Object.assign(document.createElement(name), { textContent: content, ...more });
      const head = document.createElement("tr");
      head.append(make("th", "tensor", { scope: "col" }), ...places.map((step) => make("th", say(this.steps[step]), { scope: "col" })));
      const rows = this.content.tensors.map(({ name }, row) => {
        const [line, first] = [document.createElement("tr"), make("th", "", { scope: "row" })];
        const button = make("button", name, { type: "button" });
        button.addEventListener("click", () => this.show(row));
        first.append(button);
        const cell = (step) => make("td", Number.isFinite(this.shown[row][step]) ? say(this.shown[row][step]) : "–");
        line.append(first, ...places.map(cell));
        return line;
      });
      const table = this.figure.querySelector("table");
      table.caption.textContent = `${withUnits(this.column)}${this.ofWhat()}, at ${places.length} of ${count} steps`;
      table.tHead.replaceChildren(head);
      table.tBodies[0].replaceChildren(...rows);
    }
  }

  for (const figure of document.querySelectorAll("[data-heat]")) new HeatMap(figure);
})();
