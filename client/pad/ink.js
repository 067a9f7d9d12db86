// The sheet: what was written or laid on it, its history, and how it is drawn.

/** One state: strokes ([[x, y], ...] in CSS pixels), and a picture or null. */
const EMPTY = Object.freeze({ strokes: Object.freeze([]), picture: null });
const PEN = 3.2;
const HEAT = [226, 74, 20];

export class Sheet {
  constructor(inkCanvas, heatCanvas, changed) {
    this.canvas = inkCanvas;
    this.heat = heatCanvas;
    this.changed = changed;
    this.history = [EMPTY];
    this.stroke = null;
    this.pointer = null;
    this.map = null;
    const listen = (name, act) => inkCanvas.addEventListener(name, act);
    listen("pointerdown", (event) => this.begin(event));
    listen("pointermove", (event) => this.go(event));
    listen("pointerup", (event) => this.end(event));
    listen("pointercancel", () => this.drop());
    new ResizeObserver(() => this.fit()).observe(inkCanvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get state() { return this.history[this.history.length - 1]; }
  get isEmpty() { return !this.state.strokes.length && !this.state.picture; }
  get isWriting() { return this.stroke !== null; }

  push(state) {
    this.history.push(Object.freeze(state));
    this.map = null;
    this.draw();
    this.changed();
  }

  undo() {
    if (this.history.length < 2) return;
    this.history.pop();
    this.map = null;
    this.draw();
    this.changed();
  }

  clear() { if (!this.isEmpty) this.push(EMPTY); }
  place(picture) { this.push({ strokes: [], picture }); }
  write(strokes) { this.push({ strokes, picture: null }); }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  begin(event) {
    if (this.stroke || event.button !== 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.stroke = [this.at(event)];
    this.map = null;
    this.changed();
    this.draw();
  }

  go(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const parts = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const part of parts.length ? parts : [event]) this.stroke.push(this.at(part));
    this.draw();
  }

  end(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const stroke = this.stroke;
    this.stroke = this.pointer = null;
    // Writing on a picture begins a new sheet: the two can't be read together.
    this.push({ strokes: [...this.state.strokes, stroke], picture: null });
  }

  drop() {
    this.stroke = this.pointer = null;
    this.draw();
    this.changed();
  }

  show(map) { this.map = map; this.drawHeat(); }

  fit() {
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.heat]) {
      canvas.width = Math.round(this.canvas.clientWidth * ratio);
      canvas.height = Math.round(this.canvas.clientHeight * ratio);
    }
    this.draw();
  }

  blank(canvas) {
    const pen = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  draw() {
    const pen = this.blank(this.canvas);
    const { strokes, picture } = this.state;
    if (picture && !this.stroke) {
      const { left, top, scale } = this.placeOf(picture);
      pen.fillStyle = "#ffffff"; // a transparent picture is on white paper, in the dark, too
      if (!picture.isSign) pen.fillRect(left, top, picture.width * scale, picture.height * scale);
      pen.drawImage(picture.bitmap, left, top, picture.width * scale, picture.height * scale);
    }
    pen.strokeStyle = pen.fillStyle = getComputedStyle(this.canvas).getPropertyValue("--ink");
    pen.lineWidth = PEN;
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of this.stroke ? [...strokes, this.stroke] : strokes) {
      pen.beginPath();
      if (stroke.length === 1) {
        pen.arc(...stroke[0], PEN * 0.7, 0, 2 * Math.PI);
        pen.fill();
      } else {
        stroke.forEach(([x, y], index) => (index ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        pen.stroke();
      }
    }
    this.drawHeat();
  }

  placeOf(picture) {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    const scale = Math.min((width - 24) / picture.width, (height - 24) / picture.height, 2);
    return {
      scale,
      left: (width - picture.width * scale) / 2,
      top: (height - picture.height * scale) / 2,
    };
  }

  drawHeat() {
    const pen = this.blank(this.heat);
    if (!this.map || this.state.picture?.isSign) return;
    const { rows, box } = this.map;
    const height = rows.length, width = rows[0].length;
    const peak = Math.max(...rows.flat()) || 1;
    const small = new OffscreenCanvas(width, height);
    const image = new ImageData(width, height);
    rows.flat().forEach((weight, index) => {
      image.data.set([...HEAT, Math.round((200 * weight) / peak)], 4 * index);
    });
    small.getContext("2d").putImageData(image, 0, 0);
    const at = this.state.picture ? this.placeOf(this.state.picture) : { scale: 1, left: 0, top: 0 };
    const [left, top, right, bottom] = box;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(
      small, at.left + left * at.scale, at.top + top * at.scale,
      (right - left) * at.scale, (bottom - top) * at.scale,
    );
  }
}
