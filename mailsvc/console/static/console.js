// The pages work without this.  It copies, asks before what cannot be undone, and refreshes.
"use strict";

document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const text = document.getElementById(copy.dataset.copy).textContent;
    navigator.clipboard.writeText(text).then(() => {
      copy.dataset.done = "✓";
    });
    return;
  }
  const asking = event.target.closest("[data-ask]");
  if (asking && !window.confirm(asking.dataset.ask)) {
    event.preventDefault();
  }
});

// navigator.clipboard is there for HTTPS and loopback alone.
if (navigator.clipboard) {
  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.hidden = false;
  });
}

// What a tick keeps fresh: the same part of the same page, as it is now.
document.querySelectorAll("[data-refreshes]").forEach((tick) => {
  const part = document.getElementById(tick.dataset.refreshes);
  tick.closest("[hidden]").hidden = false;
  window.setInterval(() => {
    if (!tick.checked || document.hidden || part.contains(document.activeElement)) {
      return;
    }
    fetch(window.location.href).then((answer) => answer.ok ? answer.text() : "").then((text) => {
      const fresh = new DOMParser().parseFromString(text, "text/html").getElementById(part.id);
      if (fresh && !part.contains(document.activeElement)) {
        part.replaceChildren(...fresh.childNodes);
      }
    }).catch(() => {});
  }, 1000 * tick.dataset.seconds);
});
