// Words behind a marked word: shown while the pointer or the keyboard rests on it. Without this file they open on a
// click or on Enter, since each is a button for a popover.
"use strict";

for (const button of document.querySelectorAll("button[popovertarget]")) {
  const words = document.getElementById(button.getAttribute("popovertarget"));
  const show = () => {
    if (!words.matches(":popover-open")) words.showPopover();
    const from = button.getBoundingClientRect();
    const own = words.getBoundingClientRect();
    const left = Math.min(from.left, document.documentElement.clientWidth - own.width - 8);
    const below = from.bottom + 6;
    const top = below + own.height < window.innerHeight ? below : Math.max(from.top - own.height - 6, 8);
    words.style.inset = `${top}px auto auto ${Math.max(left, 8)}px`;
  };
  const hide = () => words.matches(":popover-open") && words.hidePopover();
  const isKept = () => button.matches(":hover") || words.matches(":hover") || document.activeElement === button;
  const leave = () => window.setTimeout(() => isKept() || hide(), 120);
  button.addEventListener("pointerenter", show);
  button.addEventListener("focus", show);
  button.addEventListener("click", show);
  button.addEventListener("blur", hide);
  for (const part of [button, words]) part.addEventListener("pointerleave", leave);
}
