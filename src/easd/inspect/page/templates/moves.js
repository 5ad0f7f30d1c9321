// Keyboard navigation in a text.

/** Index of the token that `key` moves to from `at`; null for other keys. */
export function moved(key, at, tokens, elements) {
  switch (key) {
    case "ArrowRight":
      return at + 1;
    case "ArrowLeft":
      return at - 1;
    case "ArrowDown":
      return beside(elements, at, 1);
    case "ArrowUp":
      return beside(elements, at, -1);
    case "Home":
      return 0;
    case "End":
      return elements.length - 1;
    case "n":
      return nextRefusal(tokens, at, 1);
    case "p":
      return nextRefusal(tokens, at, -1);
    default:
      return null;
  }
}

function nextRefusal(tokens, at, step) {
  for (let i = at + step; i >= 0 && i < tokens.length; i += step) {
    if (tokens[i].refused) return i;
  }
  return at;
}

/** The token nearest below or above in the next line. */
function beside(elements, at, step) {
  const from = elements[at].getBoundingClientRect();
  let best = at;
  let distance = Infinity;
  let line = null;
  for (let i = at + step; i >= 0 && i < elements.length; i += step) {
    const box = elements[i].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) >= 4) break;
    const away = Math.abs(box.left - from.left);
    if (away < distance) [best, distance] = [i, away];
  }
  return best;
}
