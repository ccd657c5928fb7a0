// Names that the theme's frame leaves out, for readers who use a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("nav summary")) {
    summary.setAttribute("aria-label", "Show or hide the pages below");
  }
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
});
