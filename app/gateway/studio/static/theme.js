// Runs before the first paint, so that a chosen theme doesn't flash the other.
"use strict";
try {
  const chosen = localStorage.getItem("cynosure.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is off: the system's theme it is.
}
