"""The contrast of every text and every line of a page with what is behind it."""

CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = (text) => text.match(/[\\d.]+/g)?.map(Number);
  const seen = (text) => parts(text) && (parts(text)[3] ?? 1) > 0;
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (seen(colour)) return light(parts(colour).slice(0, 3));
    }
    return 1;
  };
  const ratio = (text, node) => {
    const [ink, paper] = [light(parts(text).slice(0, 3)), back(node)];
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const found = { text: [], line: [] };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || node.closest("script, style")) continue;
    const style = getComputedStyle(node);
    found.text.push([ratio(node.closest("svg") ? style.fill : style.color, node), texts.currentNode.data.trim()]);
  }
  for (const node of document.querySelectorAll("svg :is(path, use, line, circle)")) {
    const style = getComputedStyle(node);
    if (node.closest("defs, clipPath") || style.opacity * style.strokeOpacity < 0.5) continue; // grids
    const drawn = [style.stroke, ...(style.fillOpacity >= 0.5 ? [style.fill] : [])].filter(seen);
    const ratios = drawn.map((colour) => [ratio(colour, node), colour]); // the outline is seen, or what is inside
    if (ratios.length) found.line.push(ratios.reduce((a, b) => (b[0] > a[0] ? b : a)));
  }
  const least = (list) => [list.length, ...list.reduce((a, b) => (b[0] < a[0] ? b : a))];
  return { text: least(found.text), line: least(found.line) };
}"""
"""The number of texts and of lines and points on the page, the least contrast among them, and which has it."""
