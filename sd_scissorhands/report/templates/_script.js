// Copies a command, opens the pictures where it came back, wipes the first picture of a pair over the second, and shows a pair larger.
const make = (name, facts) => Object.assign(document.createElement(name), facts);
for (const pre of document.querySelectorAll("pre")) {
  const button = make("button", { type: "button", className: "copy", textContent: "Copy command" });
  button.onclick = () => {
    getSelection().selectAllChildren(pre);
    button.textContent = document.execCommand("copy") ? "Copied" : "Marked: copy it";
  };
  pre.before(button);
}
const back = document.querySelector("#back");
if (back) back.onchange = () => document.querySelectorAll(".more").forEach((more) => (more.open = back.checked));
const wipe = (pair) => {
  const [before, after] = pair.querySelectorAll("img");
  if (!after) return;
  const over = before.cloneNode();
  const slider = make("input", { type: "range", value: 0, title: "Draw the first picture over the second" });
  slider.setAttribute("aria-label", `Over ${after.alt}: draw the first picture`);
  slider.oninput = () => (over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`);
  slider.oninput();
  over.alt = "";
  after.after(over);
  after.parentNode.after(slider);
};
const dialog = make("dialog", { ariaLabel: "a pair, larger" });
dialog.onclick = (event) => event.target.matches("input") || dialog.close();
document.body.append(dialog);
for (const pair of document.querySelectorAll(".pair")) {
  const plain = pair.cloneNode(true);
  const button = make("button", { type: "button", className: "enlarge", textContent: "\u2922" });
  button.ariaLabel = `Enlarge: ${pair.querySelector("img, .missing").alt}`;
  pair.onclick = (event) => {
    if (!event.target.matches("img, button")) return;
    const large = plain.cloneNode(true);
    dialog.replaceChildren(make("button", { type: "button", textContent: "Close" }), large);
    wipe(large);
    dialog.showModal();
  };
  wipe(pair);
  pair.querySelector(".frame").append(button);
}
