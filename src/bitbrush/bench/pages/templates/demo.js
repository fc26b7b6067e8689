// CSS alone shows the full-precision picture while a pointer presses on a button. This adds the keyboard and touch.
for (const button of document.querySelectorAll(".flip")) {
  const show = () => button.classList.add("held");
  const hide = () => button.classList.remove("held");
  button.addEventListener("pointerdown", show);
  for (const end of ["pointerup", "pointerleave", "pointercancel", "blur"]) button.addEventListener(end, hide);
  button.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault(); // the space bar would scroll
    show();
  });
  button.addEventListener("keyup", hide);
  button.addEventListener("contextmenu", (event) => {
    if (button.classList.contains("held")) event.preventDefault(); // what a long touch would open
  });
}
