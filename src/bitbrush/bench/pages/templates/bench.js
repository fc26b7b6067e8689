// The slider of a pair, and which pairs are shown in which order. Without this all pairs stand there, half and half.
const pairs = [...document.querySelectorAll(".pair")];
for (const slider of document.querySelectorAll(".compare input")) {
  slider.addEventListener("input", () => slider.parentElement.style.setProperty("--cut", `${slider.value}%`));
}
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
function arrange() {
  const [candidate, set, order] = [chosen("candidate"), chosen("set"), chosen("order")];
  const worst = order === "worst";
  const shown = pairs.filter(({ dataset }) =>
    dataset.candidate === candidate && (set === "all" || dataset.set === set) && (worst ? "worst" : "first") in dataset);
  const key = ({ dataset }) => Number(worst ? dataset.ssim : dataset.place);
  shown.sort((one, other) => key(one) - key(other));
  for (const pair of pairs) pair.hidden = true;
  for (const pair of shown) {
    pair.hidden = false;
    pair.parentElement.append(pair); // in this order
  }
}
for (const control of document.querySelectorAll(".controls input")) control.addEventListener("change", arrange);
if (pairs.length) arrange();
