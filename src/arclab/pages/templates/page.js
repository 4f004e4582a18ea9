/* Sorts tables, filters tasks, enlarges grids, lights up a run's lines. The page can be read without it. */
(function () {
  "use strict";
  var all = function (selector, root) { return Array.prototype.slice.call((root || document).querySelectorAll(selector)); };
  document.documentElement.classList.add("scripted");

  all("table.sortable").forEach(function (table) {
    var body = table.tBodies[0];
    all("thead th", table).forEach(function (head, column) {
      if (head.hasAttribute("data-fixed")) { return; }
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var descending = head.getAttribute("aria-sort") !== "descending";
        all("thead th", table).forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        var rows = all("tr", body).map(function (row, place) {
          return { row: row, place: place, key: row.cells[column].getAttribute("data-sort") || "" };
        });
        var numeric = rows.every(function (entry) { return entry.key === "" || !isNaN(Number(entry.key)); });
        rows.sort(function (a, b) {
          if (a.key === "" || b.key === "") { return (a.key === "") - (b.key === "") || a.place - b.place; }
          var order = numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, "en", { numeric: true });
          return (descending ? -order : order) || a.place - b.place;
        });
        rows.forEach(function (entry) { body.appendChild(entry.row); });
      });
    });
  });

  all("form.filter").forEach(function (form) {
    var tasks = all("[data-task]", document.getElementById(form.getAttribute("data-for")));
    var has = function (task, name, run) { return (" " + task.getAttribute(name) + " ").indexOf(" " + run + " ") >= 0; };
    var apply = function () {
      var yes = form.elements.yes.value, no = form.elements.no.value, outcome = form.elements.outcome.value, shown = 0;
      tasks.forEach(function (task) {
        var keep = (!outcome || task.getAttribute("data-outcome") === outcome) && (!yes || has(task, "data-solved", yes)) &&
          (!no || (has(task, "data-answered", no) && !has(task, "data-solved", no)));
        task.hidden = !keep;
        shown += keep ? 1 : 0;
      });
      form.elements.count.value = shown + " of " + tasks.length + " tasks";
    };
    form.hidden = false;
    form.addEventListener("change", apply);
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    apply();
  });

  var viewer = document.createElement("dialog");
  viewer.className = "viewer";
  document.body.appendChild(viewer);
  viewer.addEventListener("click", function () { viewer.close(); });
  var enlarge = function (grid) {
    var copy = grid.cloneNode(true), box = grid.viewBox.baseVal;
    var cell = Math.floor(Math.min(window.innerWidth * 0.86 / box.width, window.innerHeight * 0.78 / box.height, 90));
    copy.removeAttribute("tabindex");
    copy.classList.remove("fine");
    copy.setAttribute("width", cell * box.width);
    copy.setAttribute("height", cell * box.height);
    var close = document.createElement("button");
    close.type = "button";
    close.textContent = "close (" + box.height + " x " + box.width + " cells)";
    viewer.replaceChildren(copy, close);
    viewer.showModal();
  };
  all("svg.g:not(.defs)").forEach(function (grid) {
    grid.setAttribute("tabindex", "0");
    grid.addEventListener("click", function () { enlarge(grid); });
    grid.addEventListener("keydown", function (event) { if (event.key === "Enter") { enlarge(grid); } });
  });

  all("[data-line]").forEach(function (entry) {
    var mark = function (on) {
      var name = entry.getAttribute("data-line");
      all(".curves").forEach(function (curves) { curves.classList.toggle("dimmed", on); });
      all(".curves ." + name).forEach(function (line) { line.classList.toggle("lit", on); });
    };
    entry.addEventListener("mouseenter", function () { mark(true); });
    entry.addEventListener("mouseleave", function () { mark(false); });
    entry.addEventListener("focus", function () { mark(true); });
    entry.addEventListener("blur", function () { mark(false); });
    entry.setAttribute("tabindex", "0");
  });

  var cue = function () {
    all(".scroll").forEach(function (box) { box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1); });
  };
  window.addEventListener("resize", cue);
  all("details").forEach(function (details) { details.addEventListener("toggle", cue); });
  cue();
}());
