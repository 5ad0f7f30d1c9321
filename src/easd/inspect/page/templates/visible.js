// The same as `easd.errors.visible` in Python, which a test checks.
const UNSEEN =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\p{Surrogate}/gu;

/** The text with control, bidirectional and zero-width characters spelt out. */
export function visible(text) {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `<U+${code}>`;
  });
}

const LONGEST = 60; // characters of a name; the text has the whole token

/** A token's name in one line. */
export function named(text) {
  if (/^ +$/.test(text)) return "␣".repeat(text.length);
  const name = visible(text).replaceAll("\n", "⏎").replaceAll("\t", "⇥").trim() || "∅";
  return name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name;
}
