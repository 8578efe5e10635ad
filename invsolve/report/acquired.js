"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("time");
const frame = document.getElementById("frame");
const told = document.getElementById("told");
function show() {
  const k = Number(slider.value);
  frame.src = "data:image/png;base64," + data.frames[k];
  const last = data.groups[k].length ? ", the last " + data.groups[k].join(", ") : "";
  told.textContent = data.told[k] + " groups" + last;
}
slider.addEventListener("input", show);
slider.value = slider.max;
show();
