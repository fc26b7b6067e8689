// A slider for each row of images, and press and hold on each image. Without this script images stand side by side.
for (const element of document.querySelectorAll(".slider, .difference, [data-script]")) element.hidden = false;

function comparable(frame, reference) {
  const over = reference.cloneNode();
  over.className = "over";
  over.alt = "";
  frame.append(over);
  frame.disabled = false;
  const show = () => frame.classList.add("held");
  const hide = () => frame.classList.remove("held");
  frame.addEventListener("pointerdown", show);
  for (const end of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"]) frame.addEventListener(end, hide);
  frame.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault(); // the space bar would scroll
    show();
  });
  frame.addEventListener("contextmenu", (event) => {
    if (frame.classList.contains("held")) event.preventDefault(); // a long touch opens the menu
  });
}

for (const row of document.querySelectorAll(".image-row")) {
  const reference = row.querySelector(".reference img");
  for (const frame of row.querySelectorAll(".frame")) comparable(frame, reference);
  const slider = row.querySelector(".slider input");
  slider?.addEventListener("input", () => row.style.setProperty("--cut", `${slider.value}%`));
}
