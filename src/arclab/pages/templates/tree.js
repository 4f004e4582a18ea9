/* Draws a search tree: states by colour, details on hover and click, a filter, a replay of how it grew. */
(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var nodes = data.nodes, byId = {}, colors = data.colors, SVG = "http://www.w3.org/2000/svg";
  var STATES = {
    passing: "passes all demonstrations", wrong: "finished, wrong", invalid: "does not run", cut: "cut by a limit",
    open: "open", spent: "nothing left below", prompt: "task and prompts"
  };
  nodes.forEach(function (node, place) { node.children = []; node.place = place; byId[node.id] = node; });
  nodes.forEach(function (node) { if (node.parent !== null) { byId[node.parent].children.push(node); } });
  var root = nodes[0], hidden = {}, current = root, moment = data.draws, timer = null, scale = 1;
  var at = function (id) { return document.getElementById(id); };
  var make = function (name, attributes, parent) {
    var element = document.createElementNS(SVG, name);
    Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
    parent.appendChild(element);
    return element;
  };
  var html = function (name, parent, text, className) {
    var element = document.createElement(name);
    if (text !== undefined) { element.textContent = text; }
    if (className) { element.className = className; }
    parent.appendChild(element);
    return element;
  };
  var number = function (value, digits) { return value === null || value === undefined ? "not known" : value.toFixed(digits === undefined ? 3 : digits); };

  /* What outcomes had been backed up after `moment` draws. */
  var count = function () {
    nodes.forEach(function (node) { node.visits = 0; node.sum = 0; });
    nodes.forEach(function (node) {
      if (node.order > moment || node.reward === null) { return; }
      for (var above = node; above; above = above.parent === null ? null : byId[above.parent]) { above.visits += 1; above.sum += node.reward; }
    });
    nodes.forEach(function (node) {
      var known = node.visits + (node.value === null ? 0 : 1);
      node.q = known ? (node.sum + (node.value || 0)) / known : null;
    });
  };
  var isThere = function (node) { return node.order <= moment; };
  var stateOf = function (node) { return node.state === "spent" && moment < data.draws ? "open" : node.state; };

  /* Leaves below each other, depth to the right. */
  var ROW = 17, COLUMN = 92, lines = 0;
  var place = function (node, depth) {
    node.x = 26 + depth * COLUMN;
    node.children.forEach(function (child) { place(child, depth + 1); });
    if (node.children.length) {
      node.y = (node.children[0].y + node.children[node.children.length - 1].y) / 2;
    } else {
      node.y = 20 + lines * ROW;
      lines += 1;
    }
    deepest = Math.max(deepest, node.x);
  };
  var deepest = 0;
  place(root, 0);
  var width = deepest + 110, height = 30 + lines * ROW;
  var svg = make("svg", { width: width, height: height, viewBox: "0 0 " + width + " " + height, role: "tree", "aria-label": "search tree" }, at("canvas"));
  var edges = make("g", {}, svg), circles = make("g", {}, svg);
  nodes.forEach(function (node) {
    if (node.parent !== null) {
      var from = byId[node.parent], middle = (from.x + node.x) / 2;
      node.edge = make("path", { class: "edge", d: "M" + from.x + " " + from.y + "C" + middle + " " + from.y + " " + middle + " " + node.y + " " + node.x + " " + node.y }, edges);
    }
    node.group = make("g", { class: "node", tabindex: "0", role: "treeitem", "aria-label": node.id + ", " + STATES[node.state], transform: "translate(" + node.x + " " + node.y + ")" }, circles);
    node.shape = node.state === "prompt" ? make("rect", { x: -6, y: -6, width: 12, height: 12, rx: 3 }, node.group) : make("circle", { r: 5.5 }, node.group);
    node.label = make("text", { x: 10, y: 3.5 }, node.group);
    node.group.addEventListener("click", function () { choose(node); });
    node.group.addEventListener("keydown", function (event) { move(event, node); });
    node.group.addEventListener("mouseenter", function (event) { tip(node, event); });
    node.group.addEventListener("mouseleave", function () { at("tip").hidden = true; });
  });

  var move = function (event, node) {
    var parent = node.parent === null ? node : byId[node.parent], place = parent.children.indexOf(node), to = null;
    if (event.key === "Enter" || event.key === " ") { to = node; }
    if (event.key === "ArrowLeft") { to = parent; }
    if (event.key === "ArrowRight") { to = node.children[0]; }
    if (event.key === "ArrowDown") { to = parent.children[place + 1]; }
    if (event.key === "ArrowUp") { to = parent.children[place - 1]; }
    if (to && isThere(to)) { event.preventDefault(); choose(to); to.group.focus(); }
  };
  var tip = function (node, event) {
    var box = at("tip");
    box.textContent = node.id + ": " + STATES[stateOf(node)] + (node.ending !== "open" ? " (" + node.ending + ")" : "") + "\nQ " + number(node.q) +
      ", visits " + node.visits + (node.text ? "\n" + node.text.slice(0, 300) : "");
    box.hidden = false;
    box.style.left = Math.min(event.clientX + 14, window.innerWidth - 360) + "px";
    box.style.top = Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8) + "px";
  };
  var heat = function (q) {
    if (q === null) { return "var(--s-spent)"; }
    return "hsl(" + Math.round(60 + 60 * q) + " 70% 45%)"; /* -1 red, 0 yellow, 1 green */
  };

  var draw = function () {
    count();
    var words = at("words").value.toLowerCase(), byQ = at("colour").value === "q", shown = 0, there = 0, passing = 0;
    nodes.forEach(function (node) {
      var is = isThere(node), fits = !hidden[stateOf(node)] && (!words || node.program.toLowerCase().indexOf(words) >= 0);
      node.group.style.display = is ? "" : "none";
      if (node.edge) { node.edge.style.display = is ? "" : "none"; }
      node.group.classList.toggle("faded", !fits);
      node.group.classList.toggle("fresh", node.order === moment && moment < data.draws);
      node.shape.setAttribute("style", "fill:" + (byQ ? heat(node.q) : "var(--s-" + stateOf(node) + ")"));
      node.label.textContent = node.visits > 1 ? node.visits + " · " + number(node.q, 2) : node.reward !== null ? number(node.reward, 2) : "";
      if (is && node.state !== "prompt") { there += 1; shown += fits ? 1 : 0; passing += node.state === "passing" ? 1 : 0; }
    });
    at("said").textContent = "node " + moment + " of " + data.draws + ", rollout " + rolloutAt() + ": " + passing + " passing" + (shown < there ? ", " + shown + " match" : "");
    at("moment").value = moment;
    details();
  };
  var rolloutAt = function () {
    var rollout = 0;
    nodes.forEach(function (node) { if (isThere(node)) { rollout = Math.max(rollout, node.rollout); } });
    return rollout;
  };
  var choose = function (node) {
    nodes.forEach(function (each) { each.group.classList.remove("current"); if (each.edge) { each.edge.classList.remove("on"); } });
    current = node;
    node.group.classList.add("current");
    for (var above = node; above.edge; above = byId[above.parent]) { above.edge.classList.add("on"); }
    details();
  };

  var grid = function (parent, rows, caption, truth) {
    var figure = html("figure", parent);
    if (!rows) { html("div", figure, caption[1] || "no grid", "none"); html("figcaption", figure, caption[0]); return; }
    var cell = Math.max(4, Math.min(16, Math.floor(120 / Math.max(rows.length, rows[0].length))));
    var canvas = html("canvas", figure);
    canvas.width = rows[0].length * cell; canvas.height = rows.length * cell;
    canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", caption[0] + ", " + rows.length + " x " + rows[0].length);
    var pen = canvas.getContext("2d"), same = truth && truth.length === rows.length && truth[0].length === rows[0].length;
    rows.forEach(function (row, y) {
      row.split("").forEach(function (color, x) {
        pen.fillStyle = colors[Number(color)];
        pen.fillRect(x * cell, y * cell, cell, cell);
        pen.strokeStyle = "rgb(128 128 128 / .4)"; pen.lineWidth = 0.5;
        pen.strokeRect(x * cell, y * cell, cell, cell);
        if (same && truth[y].charAt(x) !== color) { pen.strokeStyle = "#fff"; pen.lineWidth = 1.6; pen.strokeRect(x * cell + 1, y * cell + 1, cell - 2, cell - 2); }
      });
    });
    html("figcaption", figure, caption[0]);
  };
  var outputs = function (parent, title, pairs, found) {
    if (!pairs.length || (!found && title !== "Demonstrations")) { return; }
    html("h3", parent, title);
    pairs.forEach(function (pair, place) {
      var line = html("div", parent, undefined, "pair"), answer = found ? found[place] : undefined;
      grid(line, pair.input, ["input"]);
      if (pair.output) { grid(line, pair.output, ["truth"]); }
      if (answer) {
        var right = answer.grid && pair.output ? (answer.grid.join() === pair.output.join() ? " ✓" : " ✗") : "";
        grid(line, answer.grid, ["program" + right, answer.status + (answer.message ? ": " + answer.message : "")], pair.output);
      }
    });
  };
  var details = function () {
    var box = at("details"), node = current;
    box.textContent = "";
    html("h2", box, node.state === "prompt" ? (node.parent === null ? "The task" : "Prompt " + node.id) : "Node " + node.id);
    var list = html("dl", box), row = function (name, value) { if (value !== null && value !== "") { html("dt", list, name); html("dd", list, String(value)); } };
    row("state", STATES[stateOf(node)] + (node.ending !== "open" ? " (" + node.ending + ")" : ""));
    row("Q, visits", number(node.q) + ", " + node.visits);
    row("reward", node.reward === null ? null : number(node.reward));
    row("value", node.value === null ? null : number(node.value) + " (reward model)");
    row("prior", node.prior === null ? null : number(node.prior) + " among its siblings");
    row("log-probability", node.logprob === null ? null : number(node.logprob, 2) + " over " + node.tokens + " tokens");
    row("temperature", node.temperature);
    row("rollout", node.state === "prompt" ? null : node.rollout);
    row("examples", node.examples.join(", "));
    row("hint", node.hinted ? "in the prompt" : null);
    if (node.program) {
      html("h3", box, node.ending === "open" ? "Program so far" : "Program");
      var pre = html("pre", box), cut = node.before.length;
      if (node.program.slice(0, cut) === node.before) {
        pre.appendChild(document.createTextNode(node.before));
        html("mark", pre, node.program.slice(cut));
      } else { pre.textContent = node.program; }
    }
    outputs(box, "Demonstrations", data.demos, node.demos);
    outputs(box, "Test inputs", data.tests, node.answers);
  };

  Object.keys(STATES).forEach(function (state) {
    var total = nodes.filter(function (node) { return node.state === state; }).length;
    if (!total) { return; }
    var button = html("button", at("states"));
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    html("span", button, undefined, "dot").style.background = "var(--s-" + state + ")";
    html("span", button, STATES[state] + " " + total);
    button.addEventListener("click", function () {
      hidden[state] = !hidden[state];
      button.setAttribute("aria-pressed", String(!hidden[state]));
      draw();
    });
  });
  at("moment").max = data.draws;
  at("moment").addEventListener("input", function () { stop(); moment = Number(at("moment").value); draw(); });
  at("words").addEventListener("input", draw);
  at("colour").addEventListener("change", draw);
  at("zoom").addEventListener("input", function () {
    scale = Number(at("zoom").value);
    svg.setAttribute("width", width * scale); svg.setAttribute("height", height * scale);
  });
  var stop = function () { clearInterval(timer); timer = null; at("play").textContent = "Play"; };
  var forward = function () {
    var rollout = moment === 0 ? 0 : rolloutAt() + 1, next = moment;
    nodes.forEach(function (node) { if (node.rollout <= rollout) { next = Math.max(next, node.order); } });
    moment = next > moment ? next : Math.min(data.draws, moment + 1);
    if (moment >= data.draws) { stop(); }
    draw();
  };
  at("play").addEventListener("click", function () {
    if (timer) { stop(); return; }
    if (moment >= data.draws) { moment = 0; draw(); }
    at("play").textContent = "Pause";
    timer = setInterval(forward, 700);
  });
  choose(nodes.filter(function (node) { return node.state === "passing"; })[0] || root);
  draw();
})();
